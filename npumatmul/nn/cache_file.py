"""Files of caches: safetensors, with a description and checksums in the metadata; see `KVCache.save`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json, shown
from npumatmul.host.checksums import array_checksum, text_checksum
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter, WrongTensorFile

__all__ = ["CacheFile", "read_cache", "write_cache"]

_FORMAT = "npumatmul kv cache"
#: Files of caches with states are of the second version, which older readers refuse.
_VERSION, _WITH_STATES, _WITH_SIZES = "1", "2", "3"
_SIZES = ("layers", "kv_heads", "head_dim", "chunk", "batch")
#: Most layers, heads and so on of a file that is believed; arrays are held against the length of the file besides.
_LARGEST = 1 << 24
_MOST_LAYERS = 1 << 12
#: Most values in a chunk of tokens: those of 256 tokens with a thousand heads of 1024.
_LARGEST_CHUNK = 1 << 28
#: Most arrays in the state of a layer, and most dimensions of each.
_MOST_ARRAYS = 8


def write_cache(
    path: str | os.PathLike[str], content: dict[str, Any], layers: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Write a description, and arrays of one layer after the other."""
    checksums: dict[str, int] = {}
    with TensorWriter(path) as writer:
        for i, arrays in enumerate(layers):
            for name, array in arrays.items():
                writer.add(f"layers.{i}.{name}", array)
                checksums[f"layers.{i}.{name}"] = array_checksum(array)
        text = json.dumps({**content, "checksums": checksums}, separators=(",", ":"), allow_nan=False)
        version = _WITH_STATES if "states" in content else _VERSION
        version = _WITH_SIZES if "sizes" in content else version
        writer.finish({"format": _FORMAT, "version": version, "description": text, "checksum": text_checksum(text)})


def read_cache(path: str | os.PathLike[str]) -> CacheFile:
    """Open a file of `write_cache`; nothing of its arrays is read yet."""
    try:
        file = TensorFile(path)
    except WrongTensorFile as error:
        raise UnusableFileError(f"{os.fspath(path)} cannot be used: {error}") from error
    return CacheFile(file)


class CacheFile:
    """An open file of a cache; whatever it says is checked before memory is taken for it."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._checksums: dict[str, Any] = {}

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _wrong(self, problem: str) -> UnusableFileError:
        return self._file.file.error(problem)

    def content(self) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Arguments of the cache, its tokens, and its notes."""
        metadata = self._file.metadata
        if metadata.get("format") != _FORMAT:
            raise self._wrong("it is no file of KVCache.save")
        version = metadata.get("version")
        if version not in (_VERSION, _WITH_STATES, _WITH_SIZES):
            raise self._wrong(f"its version is {shown(version)}; this npumatmul reads {_VERSION} to {_WITH_SIZES}")
        text = metadata.get("description", "")
        if text_checksum(text) != metadata.get("checksum"):
            raise self._wrong("it is damaged: the checksum of its description differs")
        try:
            content = parse_json(text)
        except ValueError as error:
            raise self._wrong(f"its description is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise self._wrong("its description is no object")
        options: dict[str, Any] = {name: self._integer(content, name, 1) for name in _SIZES}
        if options["batch"] * options["kv_heads"] * options["head_dim"] * options["chunk"] > _LARGEST_CHUNK:
            raise self._wrong("its sizes are none of a cache")
        offset = self._integer(content, "offset", 0)
        windows, limit, notes = content.get("window"), content.get("limit"), content.get("notes")
        right = options["layers"] <= _MOST_LAYERS and isinstance(windows, list) and len(windows) == options["layers"]
        if not right or not all(each is None or _is_size(each) for each in [*(windows or ()), limit]):
            raise self._wrong("its layers, windows or limit are none")
        if limit is not None and offset > limit:
            raise self._wrong(f"it has {offset} tokens, more than its limit of {limit}")
        if content.get("dtype") not in ("float16", "float32", "int8"):
            raise self._wrong(f"its dtype is {shown(content.get('dtype'))}")
        if not isinstance(notes, dict) or not all(isinstance(each, str) for each in notes.values()):
            raise self._wrong("its notes are no texts")
        checksums = content.get("checksums")
        if not isinstance(checksums, dict):
            raise self._wrong("it has no checksums")
        self._checksums = checksums
        options |= {"dtype": content["dtype"], "window": windows, "limit": limit}
        if version == _WITH_SIZES:
            options |= self._sizes(content, options)
        if version == _WITH_STATES or (version == _WITH_SIZES and "states" in content):
            options["states"] = self._states(content.get("states"), options["layers"], options["batch"])
        return options, offset, notes

    def _sizes(self, content: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes of each layer, and which one it follows."""
        sizes, follows = content.get("sizes"), content.get("follows")
        for given in (sizes, follows):
            if not isinstance(given, list) or len(given) != options["layers"]:
                raise self._wrong("its layers have not a size each")
        assert isinstance(sizes, list)
        assert isinstance(follows, list)
        most = _LARGEST_CHUNK // (options["batch"] * options["chunk"])
        for each in sizes:
            if not isinstance(each, list) or len(each) != 2 or not all(_is_size(part) for part in each):
                raise self._wrong(f"a layer of it has the size {shown(each)}")
            if each[0] * each[1] > most:
                raise self._wrong("its sizes are none of a cache")
        windows, states = content["window"], content.get("states") or [None] * options["layers"]
        for i, each in enumerate(follows):
            right = each is None or (type(each) is int and 0 <= each < i and follows[each] is None)
            if right and each is not None:
                right = sizes[each] == sizes[i] and windows[each] == windows[i] and states[i] is states[each] is None
            if not right:
                raise self._wrong(f"layer {i} of it follows {shown(each)}")
        heads, dims = ([each[part] for each in sizes] for part in (0, 1))
        return {"kv_heads": heads, "head_dim": dims, "follows": follows}

    def _states(self, states: Any, layers: int, batch: int) -> list[Any]:
        right = isinstance(states, list) and len(states) == layers
        if not right or not all(each is None or _are_shapes(each, batch) for each in states):
            raise self._wrong("its states have shapes that are none")
        return list(states)

    def _integer(self, content: dict[str, Any], name: str, low: int) -> int:
        value = content.get(name)
        if type(value) is not int or not low <= value <= _LARGEST:
            raise self._wrong(f"its {name} is {shown(value)}, not an integer from {low} to {_LARGEST}")
        return value

    def arrays(
        self, layer: int, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Arrays of a layer, of the shapes and types that they have to be of."""
        found = {}
        for name, (shape, dtype) in wanted.items():
            full = f"layers.{layer}.{name}"
            if full not in self._file.names or self._file.shape(full) != shape:
                raise self._wrong(f"it has no array {full} of shape {shape}")
            try:
                right = self._file.dtype(full) == dtype
            except WrongTensorFile:
                right = False
            if not right:
                raise self._wrong(f"its array {full} is not of type {dtype}")
            array = self._file[full]
            if array_checksum(array) != self._checksums.get(full):
                raise self._wrong(f"it is damaged: the checksum of {full} differs")
            found[name] = array
        return found


def _are_shapes(shapes: Any, batch: int) -> bool:
    """Whether a value describes arrays of a layer, of a size that memory may be taken for."""
    if not isinstance(shapes, list) or not 1 <= len(shapes) <= _MOST_ARRAYS:
        return False
    for shape in shapes:
        if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_ARRAYS or not all(map(_is_size, shape)):
            return False
        if batch * math.prod(shape) > _LARGEST_CHUNK:
            return False
    return True


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST
