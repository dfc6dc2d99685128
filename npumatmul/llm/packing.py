"""What a model is packed by while it is loaded: what the cache on disk has is read from there, all else is built."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import PackedFileError, UnusableFileError
from npumatmul.files.locking import locked
from npumatmul.files.reading import parse_json, shown
from npumatmul.host.checksums import array_checksum, text_checksum
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.npu import EXTRAS, product_of_parts
from npumatmul.llm.packed_cache import LABEL, PackedCache, key_of
from npumatmul.nn.product import Float32, Pack, Product
from npumatmul.ops import PackedWeight
from npumatmul.ops.packed.files.api import StoredParts, add_packed, descriptions_of, packed_metadata
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter, WrongTensorFile
from npumatmul.ops.packed.files.tensors import restored

__all__ = ["Packing", "packing"]

logger = logging.getLogger(__name__)

_CHECKSUM = f"{LABEL}.checksum"
#: Room for a header: some 100 bytes for each tile, of which the largest models have ten thousands.
_HEADER_ROOM = 1 << 22
_DAMAGE = (WrongTensorFile, PackedFileError, UnusableFileError, OSError, ValueError, KeyError, TypeError)


@contextlib.contextmanager
def packing(
    source: ModelSource,
    how: Mapping[str, Any],
    build: Pack,
    *,
    device: Device | str | None = None,
    cache: PackedCache | None = None,
) -> Iterator[Packing]:
    """Make what packs the weights of a model, within a ``with`` block in which it is loaded.

    Parameters
    ----------
    source : ModelSource
        The model.
    how : mapping
        Scheme and all else by which `build` decides, as JSON; ``"scheme"`` is shown in lists.
    build : callable
        From a float32 weight ``(N, K)`` and the name of its layer to a product on the device.
    device : Device or str, optional
        The current device by default.
    cache : PackedCache, optional
        Where packed weights are looked for and kept; by default nowhere.

    Yields
    ------
    Packing
        Its products stay. What was built is in the cache after a block that nothing left early; what cannot be written
        there costs a line of the log, and nothing else.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from npumatmul.llm import fetch_demo_model, npu_pack
    >>> from npumatmul.llm.files.opening import open_source
    >>> cache = PackedCache(Path(tempfile.mkdtemp()))
    >>> name = "model.layers.0.self_attn.k_proj"
    >>> for _ in range(2):
    ...     with open_source(fetch_demo_model()) as source:
    ...         build = npu_pack("w8a8", "sim:rk3588")
    ...         with packing(source, {"scheme": "w8a8"}, build, device="sim:rk3588", cache=cache) as pack:
    ...             product = pack.ready(name)
    ...             print(product is None)
    ...             product = pack(source.weights[f"{name}.weight"], name) if product is None else product
    True
    False
    """
    target = current_device(device)
    if cache is None:
        yield Packing(build, target, None)
        return
    with _Kept(cache, key_of(source.digest(), how, target), target, _label(source, how, target)) as kept:
        yield Packing(build, target, kept)
        kept.finish()


class Packing:
    """Packs the weights of a model; `packing` makes one.

    Parameters
    ----------
    build : callable
    device : Device
    kept : _Kept or None

    Attributes
    ----------
    device : Device
    """

    def __init__(self, build: Pack, device: Device, kept: _Kept | None) -> None:
        self.device = device
        self._build, self._kept = build, kept

    def ready(self, name: str) -> Product | None:
        """The product of a layer, if it need not be built: then nobody has to read the weight.

        Parameters
        ----------
        name : str
            Of the layer.

        Raises
        ------
        npumatmul.errors.NpuMemoryError
            If it does not fit.
        """
        return None if self._kept is None else self._kept.product(name)

    def __call__(self, weight: Float32, name: str) -> Product:
        """Build the product of a layer, and keep it.

        Parameters
        ----------
        weight : ndarray of float32, shape (N, K)
        name : str
            Of the layer.
        """
        return self.add(self._build(weight, name), name)

    def add(self, product: Product, name: str) -> Product:
        """Keep the product of a layer that was built otherwise.

        Parameters
        ----------
        product : Product
            Its weight is on the device.
        name : str
            Of the layer.

        Returns
        -------
        Product
            The product itself.
        """
        if self._kept is not None:
            self._kept.add(name, product)
        return product


class _Kept:
    """An entry of the cache while a model is loaded: read where it can be, else written.

    Where a part of an entry turns out to be damaged or missing, a new one is begun, and what was read so far is written
    into it from the device.
    """

    def __init__(self, cache: PackedCache, key: str, device: Device, label: Mapping[str, Any]) -> None:
        self._cache, self._key, self._device, self._label = cache, key, device, label
        self._done: dict[str, Product] = {}
        self._extras: dict[str, dict[str, int]] = {}
        self._descriptions: dict[str, Any] = {}
        self._file: _EntryFile | None = None
        self._writer: TensorWriter | None = None
        self._limit = 0
        self._replaced = False
        self._held = contextlib.ExitStack()

    def __enter__(self) -> _Kept:
        try:
            self._path = self._cache.path(self._key)
        except UnusableFileError as error:  # there is no folder for it
            self._give_up(str(error))
            return self
        try:
            self._file = _EntryFile(self._path, self._device, self._key)
            self._cache.used(self._key)
            logger.info("the packed model is in the cache: %s", self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._begin()
        except _DAMAGE as error:
            self._replace(error)
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()
        self._done.clear()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def product(self, name: str) -> Product | None:
        if self._file is None:
            return None
        try:
            product = self._file.product(name)
        except _DAMAGE as error:
            self._replace(error)
            return None
        self.add(name, product)
        return product

    def add(self, name: str, product: Product) -> None:
        if self._writer is None:
            if self._file is not None:
                self._done[name] = product
            return
        weight = getattr(product, "weight", None)
        if not isinstance(weight, PackedWeight):
            return self._give_up(f"{name} is no packed weight")
        if weight.closed:  # an expert that is not on the device any more, when an entry is made anew
            return self._give_up(f"{name} is not on the device any more")
        if self._writer.size + weight.nbytes > self._limit:
            return self._give_up(f"it has more than {self._limit} bytes, the limit of the cache")
        try:
            with weight.device.lock:
                self._descriptions[name] = add_packed(self._writer, name, weight)
            found = {part: array for part in EXTRAS if (array := getattr(product, part, None)) is not None}
            for part, array in found.items():
                self._writer.add(f"{name}.{part}", array)
            if found:
                self._extras[name] = {part: array_checksum(array) for part, array in found.items()}
        except OSError as error:
            self._give_up(str(error))

    def finish(self) -> None:
        """Put a new entry in its place."""
        if self._writer is None or not self._descriptions:
            return
        label = json.dumps({**self._label, "key": self._key, "extras": self._extras})
        metadata = packed_metadata(self._descriptions)
        try:
            self._writer.finish({**metadata, LABEL: label, _CHECKSUM: text_checksum(label)})
            logger.info("the packed model was put into the cache: %s", self._path)
            self._cache.prune(keep=self._key)
        except OSError as error:
            self._give_up(str(error))

    def _begin(self) -> None:
        try:
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self._path, patience=0))
            self._limit = self._cache.limit()
            self._writer = self._held.enter_context(TensorWriter(self._path, room=_HEADER_ROOM))
        except OSError as error:  # a folder that cannot be written; or another process writes the same entry
            self._give_up(str(error))

    def _give_up(self, why: str | None = None) -> None:
        """Keep nothing; what is half written is removed."""
        if why is not None:
            logger.warning("the packed model is not kept in the cache: %s", why)
        self._writer = None
        self._held.close()

    def _replace(self, error: Exception) -> None:
        """Throw the entry away, and write a new one of what was read from it and what is to come."""
        if self._replaced:
            return
        self._replaced = True
        logger.warning("%s is thrown away and made anew: %s", self._path, error)
        with contextlib.suppress(OSError):  # a folder that cannot be written
            self._cache.remove(self._key)
        done, self._done = self._done, {}
        self._begin()
        for name, product in done.items():
            self.add(name, product)


class _EntryFile:
    """An entry that is open for reading."""

    def __init__(self, path: Any, device: Device, key: str) -> None:
        self._device = device
        self._file = TensorFile(path)
        try:
            self._descriptions = descriptions_of(self._file)
            label = self._file.metadata[LABEL]
            if self._file.metadata[_CHECKSUM] != text_checksum(label):
                raise PackedFileError(f"{path} is damaged: the checksum of its label differs")
            content = parse_json(label)
            if content["key"] != key:  # it was copied there, or is called otherwise than its maker called it
                raise PackedFileError(f"{path} is the entry {shown(content['key'])} by another name")
            self._extras: dict[str, dict[str, int]] = content["extras"]
        except KeyError as error:
            self._file.close()
            raise PackedFileError(f"{path} says nothing of {error}, as files of another version do not") from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def product(self, name: str) -> Product:
        if name not in self._descriptions:
            raise PackedFileError(f"it has no layer {name!r}")
        extras = {part: self._extra(f"{name}.{part}", sum_) for part, sum_ in self._extras.get(name, {}).items()}
        parts = StoredParts(self._file, name)
        return product_of_parts(
            restored(self._descriptions[name], parts, self._device, parts.where, read_into=parts.read_into), extras
        )

    def _extra(self, name: str, checksum: int) -> NDArray[np.float32]:
        array = self._file[name]
        if array.dtype != np.float32 or array_checksum(array) != checksum:
            raise PackedFileError(f"the checksum of {name!r} differs")
        return array


def _label(source: ModelSource, how: Mapping[str, Any], device: Device) -> dict[str, str]:
    return {
        "model": source.name,
        "path": str(source.path.absolute()),
        "scheme": str(how.get("scheme", "")),
        "soc": device.chip.soc,
        "runtime": str(device.runtime_version),
    }
