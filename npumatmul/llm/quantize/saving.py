"""Quantized models as files: safetensors with tiles of one chip or codes for all, and JSON that says what they are.

The tensor ``gguf`` is a whole GGUF file with everything but the linear layers. The metadata entry ``npumatmul`` is a
JSON object: format, versions, recipe, source, checksums, and each layer's recipe, parameters and checksums;
``npumatmul.checksum`` is its CRC-32. Every byte that can change a result is under one of these checksums; files of the
first versions lack some, and are read with a warning that says so.

Format 2, packed, is a file of packed weights (`npumatmul.ops.packed.files.api`), one for each layer, in the layout of a
chip: loading copies tiles from the file into device memory, byte for byte. Beside them are ``<layer>.bias``,
``.offset`` and ``.centre``.

Format 1, portable, holds for each layer ``<layer>.codes`` (int8, or uint8 with two int4 in each byte, the even column
in the low nibble) with ``.scale``, ``.zero_point``, ``.offset``, ``.bias`` and ``.centre`` where it has them, or
``<layer>.half`` (float16) with ``.row_scale``. Scales of groups are float16 where that is exact, with ``.minimum``
(float16) instead of the offset. Codes are in rows as they are: one file serves every chip, and loading lays them out
while it copies them to the device. Neither quantizes anything again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import ModelError, PackedFileError, UnusableFileError
from npumatmul.files.reading import RegularFile, parse_json
from npumatmul.host.checksums import array_checksum, text_checksum
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.paths import missing, model_path, refuse_part
from npumatmul.llm.files.source import CheckedSource, FileSource
from npumatmul.llm.models.weights import Progress, layer_tensors
from npumatmul.llm.quantize.layer import QuantizedLayer, offset_of
from npumatmul.llm.quantize.packed_layer import PackedLayer, pack_layer
from npumatmul.llm.quantize.quantized_model import QuantizedModel, Source
from npumatmul.llm.quantize.recipe import LayerRecipe, Recipe
from npumatmul.ops.packed.files.api import StoredParts, add_packed, descriptions_of, packed_metadata
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter, WrongTensorFile
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.transforms import transform_from

logger = logging.getLogger(__name__)

__all__ = ["is_quantized", "load_quantized", "save_quantized"]

PORTABLE, PACKED = 1, 2
"""Formats."""
EXTRAS = ("offset", "bias", "row_scale", "centre")
"""Arrays that a layer may have beside its weight, by the names of its attributes."""
PORTABLE_TYPES: dict[str, tuple[type[Any], ...]] = {
    "codes": (np.int8, np.uint8),
    "scale": (np.float32, np.float16),
    "zero_point": (np.int8,),
    "half": (np.float16,),
    "minimum": (np.float16,),
    **dict.fromkeys(EXTRAS, (np.float32,)),
}
"""Types of the arrays of a portable layer."""
PACKED_EXTRAS = ("offset", "bias", "centre")
"""Those that a packed weight does not hold itself."""
KEY = "npumatmul"
CHECKSUM = f"{KEY}.checksum"
Arrays = dict[str, NDArray[Any]]


def save_quantized(
    model: QuantizedModel,
    path: str | os.PathLike[str],
    *,
    device: Device | str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a quantized model to a file; the file appears when it is complete.

    Layers are written one after the other, so no more than one is in memory beside the model.

    Parameters
    ----------
    model : QuantizedModel
        The model.
    path : str or os.PathLike
        The file; one that is there is replaced. By custom its name ends in ``.safetensors``.
    device : Device or str, optional
        For whose chip and runtime the layers are laid out, one at a time in its memory; a simulated one does as well as
        the board. By default the file holds codes, for every chip.
    progress : callable, optional
        Called with layers done, layers in all, and a name.

    Raises
    ------
    OSError
        If it cannot be written.
    npumatmul.errors.UnusableFileError
        If it is the file that the model comes from.
    npumatmul.errors.DeviceError
        If the chip cannot compute a layer's scheme.

    Examples
    --------
    >>> import tempfile
    >>> from npumatmul.llm import fetch_demo_model
    >>> from npumatmul.llm.quantize import LayerRecipe, Recipe, load_quantized, quantize_model, save_quantized
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_quantized(quantize_model(fetch_demo_model(), Recipe(LayerRecipe("w8a8"))), path, device="sim:rk3588")
    >>> load_quantized(path).soc
    'rk3588'
    """
    check_progress("save_quantized", progress)
    target = None if device is None else current_device(device)
    source = GGUFSource.of(model.rest)
    linear = {
        source.weights.tensor_name(each)
        for tensors in layer_tensors(source).values()
        for each in tensors.parameters
        if each in source.weights
    }
    kept = [name for name in model.rest.tensors if name not in linear or name == "token_embd.weight"]
    layers: dict[str, Any] = {}
    packed: dict[str, Any] = {}
    with TensorWriter(path, (model.path, *model.rest.paths)) as writer:
        for done, (name, layer) in enumerate(model.layers.items()):
            if progress is not None:
                progress(done, len(model.layers), f"writing {name}")
            plain = layer.unpacked() if isinstance(layer, PackedLayer) else layer
            if target is None:
                arrays, description = _layer_arrays(plain)
            else:
                packed[name] = _add_tiles(writer, name, plain, target)
                arrays = {part: array for part in PACKED_EXTRAS if (array := getattr(plain, part)) is not None}
                description = {"recipe": dataclasses.asdict(plain.recipe)}
            layers[name] = {**description, "checksums": _checksums(arrays)}
            for part, array in arrays.items():
                writer.add(f"{name}.{part}", array)
        rest = np.frombuffer(model.rest.subset(kept), np.uint8)
        writer.add("gguf", rest)
        header = json.dumps(
            {
                "format": PORTABLE if target is None else PACKED,
                "versions": {"npumatmul": npumatmul.__version__, "numpy": np.__version__},
                "source": dataclasses.asdict(model.source),
                "recipe": model.recipe.as_dict(),
                "notes": list(model.notes),
                "layers": layers,
                "checksums": {"gguf": array_checksum(rest)},
            }
        )
        metadata = {} if target is None else packed_metadata(packed)
        writer.finish({**metadata, KEY: header, CHECKSUM: text_checksum(header)})


def _add_tiles(writer: TensorWriter, name: str, layer: QuantizedLayer, device: Device) -> dict[str, Any]:
    with pack_layer(layer, device) as weight, device.lock:
        return add_packed(writer, name, weight)


def is_quantized(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a safetensors file rather than a GGUF file, by its first bytes.

    Parameters
    ----------
    path : str or os.PathLike
        A file.

    Returns
    -------
    bool
        Whether it begins as safetensors files do.
    """
    try:
        with RegularFile(path) as file:
            start = file.read(0, min(9, file.size)).tobytes()
    except OSError:
        return False
    return len(start) == 9 and start[:4] != b"GGUF" and start[8:9] == b"{"


def load_quantized(path: str | os.PathLike[str]) -> QuantizedModel:
    """Open a quantized model, packed or portable. Weights are read, and checked, when they are used.

    Parameters
    ----------
    path : str or os.PathLike
        A file that `save_quantized` wrote.

    Returns
    -------
    QuantizedModel
        The model. Its `QuantizedModel.soc` says which chip it was packed for, if it was.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    npumatmul.errors.ModelError
        If it is damaged, of a newer format, or something else.

    Examples
    --------
    >>> import tempfile
    >>> from npumatmul.llm import fetch_demo_model
    >>> from npumatmul.llm.quantize import LayerRecipe, Recipe, load_quantized, quantize_model, save_quantized
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_quantized(quantize_model(fetch_demo_model(), Recipe(LayerRecipe("gguf"))), path)
    >>> load_quantized(path).layers["blk.0.qkv"].recipe.scheme
    'gguf'
    """
    target = model_path(path, "load_quantized")
    try:
        file = TensorFile(target)
    except FileNotFoundError:
        raise missing(target) from None
    except IsADirectoryError:
        raise _error(target, "it is a folder; give the path of a file") from None
    except UnusableFileError as error:
        raise ModelError(str(error)) from error
    except WrongTensorFile as error:
        raise _error(target, f"it is not a complete safetensors file ({error})") from error
    header = _header(file, target)
    kind = header.get("format")
    if kind not in (PORTABLE, PACKED):
        raise _error(target, f"it has format {kind!r}; this version reads {PORTABLE} and {PACKED}: update npumatmul")
    if "gguf" not in file.names:
        raise _error(target, "the tensor 'gguf' is missing")
    try:
        rest = _rest(file, header, target)
        parts: dict[str, dict[str, str]] = {}
        for name in file.names:
            layer, _, part = name.rpartition(".")
            if layer and "/" not in name:
                parts.setdefault(layer, {})[part] = name
        held = layer_tensors(GGUFSource.of(rest), elsewhere=len(header["layers"]))
        shapes = {name: each.shape for name, each in held.items()}
        layers: Mapping[str, QuantizedLayer | PackedLayer]
        if kind == PACKED:
            make = partial(_packed_layer, file, descriptions_of(file), parts, header["layers"])
            layers = {name: make(name, shape) for name, shape in shapes.items()}
        else:
            layers = _PortableLayers(file, target, shapes, parts, header["layers"])
        recipe, source, notes = Recipe.from_dict(header["recipe"]), Source(**header["source"]), header["notes"]
        if not all(isinstance(text, str) for text in (source.name, source.sha256, *notes)):
            raise ValueError("source and notes are texts")
        return QuantizedModel(target, rest, recipe, source, layers, tuple(notes))
    except ModelError:
        raise
    except PackedFileError as error:
        raise ModelError(f"cannot use the model file {error}") from error
    except UnusableFileError as error:
        raise ModelError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _error(
            target, f"its description does not fit its tensors: {error!r}; quantize the model again"
        ) from error


def _header(file: TensorFile, path: Path) -> dict[str, Any]:
    """Our part of the metadata."""
    if KEY not in file.metadata:
        if (path.parent / "config.json").exists():
            refuse_part(path)
        raise _error(path, "it is a safetensors file without a quantized model; make one with `npumatmul quantize`")
    text = file.metadata[KEY]
    checksum = file.metadata.get(CHECKSUM)  # files of format 1 did not always have one
    if checksum is not None and checksum != text_checksum(text):
        raise _error(path, "it is damaged: the checksum of its description differs; fetch or quantize it again")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _error(path, f"its description is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _error(path, "its description is not a JSON object")
    if checksum is None and "checksums" in header:
        raise _error(path, "it is damaged: the checksum of its description is missing; fetch or quantize it again")
    return header


def _rest(file: TensorFile, header: Mapping[str, Any], path: Path) -> GGUFFile:
    """What is no linear layer; from now on the same bytes, or an error."""
    if file.dtype("gguf") != np.uint8 or len(file.shape("gguf")) != 1:
        raise ValueError("the tensor 'gguf' is no file")
    source = CheckedSource(FileSource(file.file, *file.place("gguf")))
    if "checksums" not in header:
        logger.warning(
            "%s was written by an older npumatmul, without a checksum of embedding, norms and tokenizer: damage there "
            "is not noticed; quantize the model again",
            path,
        )
    elif header["checksums"]["gguf"] != source.checksum():
        raise _error(
            path, "it is damaged: the checksum of its GGUF part (embedding, norms, tokenizer) differs; fetch it again"
        )
    return GGUFFile.within(source, path)


def _packed_layer(
    file: TensorFile,
    weights: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, str]],
    descriptions: Mapping[str, Any],
    name: str,
    shape: tuple[int, int],
) -> PackedLayer:
    found, description = parts.get(name, {}), descriptions[name]
    extra = {part: file[found[part]] for part in PACKED_EXTRAS if part in found}
    if _checksums(extra) != description["checksums"]:
        raise ValueError(f"arrays of layer {name!r} are missing, or their checksums differ")
    return PackedLayer(LayerRecipe(**description["recipe"]), shape, weights[name], StoredParts(file, name), **extra)


def _checksums(arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    return {part: array_checksum(array) for part, array in arrays.items()}


class _PortableLayers(Mapping[str, QuantizedLayer]):
    """Layers of a portable file. Each is read when it is asked for.

    So codes of one layer at a time are in memory, unless somebody keeps them.
    """

    def __init__(
        self,
        file: TensorFile,
        path: Path,
        shapes: Mapping[str, tuple[int, int]],
        parts: Mapping[str, Mapping[str, str]],
        descriptions: Mapping[str, Any],
    ) -> None:
        self._file, self._path = file, path
        self._shapes, self._parts, self._descriptions = shapes, parts, descriptions
        for name in shapes:
            self._layer(name, read=False)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __getitem__(self, name: str) -> QuantizedLayer:
        if name not in self._shapes:
            raise KeyError(name)
        try:
            return self._layer(name)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        except ValueError as error:
            raise _error(self._path, f"layer {name!r} is damaged ({error}); quantize the model again") from error

    def _layer(self, name: str, read: bool = True) -> QuantizedLayer:
        """A layer; if its codes are not to be read, all else is checked."""
        file, parts = self._file, self._parts[name]
        found = {part: file[tensor] for part, tensor in parts.items() if read or part not in ("codes", "half")}
        for part in parts.keys() - found.keys():  # takes no memory
            found[part] = np.broadcast_to(np.zeros((), file.dtype(parts[part])), file.shape(parts[part]))
        description = self._descriptions[name]
        if read and description.get("checksums", {}) != (_checksums(found) if "checksums" in description else {}):
            raise ValueError("a checksum differs")  # files that were made before there were any are taken as they are
        for part, array in found.items():
            if array.dtype not in PORTABLE_TYPES.get(part, ()):
                raise ValueError(f"{part!r} is of {array.dtype}")
        return _layer(found, description, self._shapes[name], read)


def _layer_arrays(layer: QuantizedLayer) -> tuple[Arrays, dict[str, Any]]:
    """The tensors of a layer, and the rest of it as JSON."""
    found: Arrays = {}
    description: dict[str, Any] = {"recipe": dataclasses.asdict(layer.recipe)}
    for part in EXTRAS:
        array = getattr(layer, part)
        if array is not None:
            found[part] = np.ascontiguousarray(array)
    weight = layer.weight
    if isinstance(weight, np.ndarray):
        found["half"] = np.ascontiguousarray(weight)
        return found, description
    found["codes"] = weight.codes if weight.params.bits > 4 else pack_nibbles(weight.codes)
    found["scale"] = weight.params.scale
    if not weight.params.symmetric:
        found["zero_point"] = weight.params.zero_point.astype(np.int8)  # it is one of the codes
    half = layer.half_groups()
    if half is not None:
        found["scale"], minimum = half
        if minimum is not None:
            del found["offset"]
            found["minimum"] = minimum
    description.update(weight.description())
    return {name: np.ascontiguousarray(array) for name, array in found.items()}, description


def _layer(
    found: Mapping[str, NDArray[Any]], description: Mapping[str, Any], shape: tuple[int, int], read: bool
) -> QuantizedLayer:
    recipe = LayerRecipe(**description["recipe"])
    extra = {part: found.get(part) for part in EXTRAS}
    if "half" in found:
        return QuantizedLayer(recipe, found["half"], **extra)
    params = QuantParams(found["scale"], found.get("zero_point", 0), **description["params"])
    if "minimum" in found:
        extra["offset"] = offset_of(found["scale"], found["minimum"], params.qmin)
    codes, packed = found["codes"], params.bits <= 4
    stored = (shape[0], -(-shape[1] // 2)) if packed else shape
    if codes.dtype != (np.uint8 if packed else np.int8) or codes.shape != stored:
        raise ValueError(f"codes are {codes.dtype} of shape {codes.shape}, {stored} is needed")
    if not read:
        codes = np.zeros(shape, np.int8)  # no memory, as nobody writes to it
    elif packed:
        codes = unpack_nibbles(codes, shape[1])
    transform = description["input_transform"]
    transform = None if transform is None else transform_from(transform)
    return QuantizedLayer(recipe, QuantizedWeight(codes, params, transform), **extra)


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Put two int4 into each byte, the even column in the low nibble.

    Parameters
    ----------
    codes : ndarray of int8, shape (N, K)
        Codes in -8..7.

    Returns
    -------
    ndarray of uint8, shape (N, ceil(K / 2))
        The bytes; the last nibble of odd rows is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.quantize.saving import pack_nibbles, unpack_nibbles
    >>> packed = pack_nibbles(np.array([[-8, 7, 1]], np.int8))
    >>> packed, unpack_nibbles(packed, 3)
    (array([[120,   1]], dtype=uint8), array([[-8,  7,  1]], dtype=int8))
    """
    low = codes[:, 0::2].view(np.uint8) & 15
    packed: NDArray[np.uint8] = low.copy()
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2].view(np.uint8) << 4
    return packed


def unpack_nibbles(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """Undo `pack_nibbles`.

    Parameters
    ----------
    packed : ndarray of uint8, shape (N, ceil(K / 2))
        The bytes.
    columns : int
        K.

    Returns
    -------
    ndarray of int8, shape (N, K)
        The codes.

    Raises
    ------
    ValueError
        If the bytes are not of that shape.
    """
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-columns // 2):
        raise ValueError(f"int4 codes of {columns} columns are not {packed.dtype} of shape {packed.shape}")
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.int8)
    signed = packed.view(np.int8)
    codes[:, 0::2] = np.left_shift(signed, 4) >> 4
    codes[:, 1::2] = signed >> 4
    return np.ascontiguousarray(codes[:, :columns])


def _error(path: Path, problem: str) -> ModelError:
    return ModelError(f"cannot use the model file {path}: {problem}")
