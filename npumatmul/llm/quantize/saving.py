"""Quantized models as files: safetensors that hold codes and scales, and JSON that says what they are.

The tensors of a layer are ``<layer>.codes`` (int8, or uint8 with two int4 in each byte, the even column in the low
nibble) with ``.scale``, ``.zero_point``, ``.offset``, ``.bias`` and ``.centre`` where it has them, or ``<layer>.half``
(float16) with ``.row_scale``. Scales of groups are float16 where that is exact, with ``.minimum`` (float16) instead of
the offset. The tensor ``gguf`` is a whole GGUF file with everything but the linear layers. The metadata entry
``npumatmul`` is a JSON object: format, versions, recipe, source, and each layer's recipe and parameters.

Codes are in rows as they are, not in the layout of some chip: one file serves every chip, and loading lays them out
while it copies them to the device. Nothing is quantized again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import npumatmul
from npumatmul.errors import ModelError
from npumatmul.llm.config import LlamaConfig
from npumatmul.llm.gguf_file import GGUFFile
from npumatmul.llm.loader import layer_tensors
from npumatmul.qparams import QuantizedWeight, QuantParams
from npumatmul.quant.transforms import transform_from

from .layer import QuantizedLayer, offset_of
from .quantized_model import QuantizedModel, Source
from .recipe import LayerRecipe, Recipe

__all__ = ["is_quantized", "load_quantized", "save_quantized"]

FORMAT = 1
EXTRAS = ("offset", "bias", "row_scale", "centre")
"""Arrays that a layer may have beside its weight, by the names of its attributes."""
KEY = "npumatmul"
Arrays = dict[str, NDArray[Any]]


def save_quantized(model: QuantizedModel, path: str | os.PathLike[str]) -> None:
    """Write a quantized model to a file; the file appears when it is complete.

    Parameters
    ----------
    model : QuantizedModel
        The model.
    path : str or os.PathLike
        The file; one that is there is replaced. By custom its name ends in ``.safetensors``.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    target = Path(path)
    linear = {
        tensor
        for tensors in layer_tensors(model.rest, LlamaConfig.from_gguf(model.rest)).values()
        for tensor in tensors.tensors
    }
    kept = [name for name in model.rest.tensors if name not in linear or name == "token_embd.weight"]
    arrays: Arrays = {"gguf": np.frombuffer(model.rest.subset(kept), np.uint8)}
    layers = {}
    for name, layer in model.layers.items():
        found, description = _layer_arrays(layer)
        arrays.update({f"{name}.{part}": array for part, array in found.items()})
        layers[name] = description
    header = {
        "format": FORMAT,
        "versions": {"npumatmul": npumatmul.__version__, "numpy": np.__version__},
        "source": dataclasses.asdict(model.source),
        "recipe": model.recipe.as_dict(),
        "notes": list(model.notes),
        "layers": layers,
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as scratch:
        complete = Path(scratch) / "model"
        save_file(arrays, complete, {KEY: json.dumps(header)})
        os.replace(complete, target)


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
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and start[:4] != b"GGUF" and start[8:9] == b"{"


def load_quantized(path: str | os.PathLike[str]) -> QuantizedModel:
    """Open a quantized model. Its arrays are views of the mapped file (int4 codes are unpacked when they are used).

    Parameters
    ----------
    path : str or os.PathLike
        A file that `save_quantized` wrote.

    Returns
    -------
    QuantizedModel
        The model.

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
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"there is no model file {target}")
    arrays, header = _mapped(target)
    if header.get("format") != FORMAT:
        raise _error(target, f"it has format {header.get('format')!r}; this version reads {FORMAT}: update npumatmul")
    if "gguf" not in arrays:
        raise _error(target, "the tensor 'gguf' is missing")
    rest = GGUFFile.of_bytes(arrays["gguf"], target)
    try:
        layers = {
            name: _layer(
                {key[len(name) + 1 :]: each for key, each in arrays.items() if key.rpartition(".")[0] == name},
                description,
                rest_shape,
            )
            for (name, rest_shape), description in zip(
                _shapes(rest).items(), [header["layers"][name] for name in _shapes(rest)], strict=True
            )
        }
        return QuantizedModel(
            target,
            rest,
            Recipe.from_dict(header["recipe"]),
            Source(**header["source"]),
            layers,
            tuple(header["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _error(
            target, f"its description does not fit its tensors: {error!r}; quantize the model again"
        ) from error


def _shapes(rest: GGUFFile) -> dict[str, tuple[int, int]]:
    return {name: tensors.shape for name, tensors in layer_tensors(rest, LlamaConfig.from_gguf(rest)).items()}


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


def _layer(found: Mapping[str, NDArray[Any]], description: Mapping[str, Any], shape: tuple[int, int]) -> QuantizedLayer:
    recipe = LayerRecipe(**description["recipe"])
    extra = {part: found.get(part) for part in EXTRAS}
    if "half" in found:
        return QuantizedLayer(recipe, found["half"], **extra)
    params = QuantParams(found["scale"], found.get("zero_point", 0), **description["params"])
    if "minimum" in found:
        extra["offset"] = offset_of(found["scale"], found["minimum"], params.qmin)
    codes = found["codes"]
    if params.bits <= 4:
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


def _mapped(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """The tensors of a safetensors file as views of the mapped file, and our part of its metadata."""
    try:
        with safe_open(path, "np") as opened:  # checks every length and offset
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _error(path, f"it is not a complete safetensors file ({error})") from error
    if KEY not in metadata:
        raise _error(path, "it is a safetensors file without a quantized model; make one with `npumatmul quantize`")
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    length = int(data[:8].view("<u8")[0])
    entries = json.loads(data[8 : 8 + length].tobytes())
    kinds = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "F16": np.float16, "F32": np.float32}
    arrays: Arrays = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in kinds:
            raise _error(path, f"tensor {name!r} is of type {entry['dtype']}, which no quantized model has")
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = data[start:stop].view(kinds[entry["dtype"]]).reshape(entry["shape"])
    try:
        header = json.loads(metadata[KEY])
    except json.JSONDecodeError as error:
        raise _error(path, f"its description is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _error(path, "its description is not a JSON object")
    return arrays, header


def _error(path: Path, problem: str) -> ModelError:
    return ModelError(f"cannot use the model file {path}: {problem}")
