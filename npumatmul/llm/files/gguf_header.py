"""The header of a GGUF file: metadata and the table of tensors.

A strict reader: every length is checked against the bytes that are left before anything is allocated or looped
over, and what becomes objects of Python, which are many times larger, has a limit besides; so a damaged file costs an
error message and neither time nor memory. (The reader of the ``gguf`` package trusts the lengths it finds: an array
that claims 2**60 numbers keeps it busy forever.)

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from npumatmul.files.reading import shown
from npumatmul.llm.files.source import Source

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ARRAY_DEPTH = 4
MAX_ARRAY_ITEMS = 1 << 22  # of all arrays: the largest vocabularies have some 2**18 tokens and 2**19 merges
MAX_NESTED_ARRAYS = 64  # in one array; no model in use has any
MAX_VALUES = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = (1 << 16) - 1  # of the format, for keys
MAX_EXTENT = 1 << 48  # numpy counts the bytes of an array in 63 bits
MAX_ALIGNMENT = 1 << 20
WINDOW_BYTES = 1 << 20
MIN_KEY_VALUE_BYTES = 8 + 4 + 1  # empty key, type, one-byte value
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # empty name, no dimensions, type, offset

GGUFValue = Union[bool, int, float, str, "list[Any]"]
"""A metadata value as plain Python: arrays are lists."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


class HeaderError(ValueError):
    """The bytes are not a GGUF header; the message says which rule they break, not which file it is."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how its values are stored.

    Attributes
    ----------
    name : str
        Name in the file, such as ``blk.0.attn_q.weight``.
    shape : tuple of int
        Shape in numpy's order, slowest dimension first: ``(N, K)`` for a linear layer.
    kind : GGMLQuantizationType
        Storage type of the values.
    offset : int
        First byte, counted from the start of the file.
    nbytes : int
        Stored size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Everything that precedes the tensor data of a GGUF file."""

    version: int
    metadata: dict[str, GGUFValue]
    metadata_span: tuple[int, int]  # where the bytes of the metadata lie: start and stop
    tensors: dict[str, TensorInfo]


class _Cursor:
    """Reads forward through bytes, some at a time, and refuses to read past their end."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.size = source.size
        self.offset = 0
        self.items = MAX_ARRAY_ITEMS  # that arrays may still have
        self._window = memoryview(b"")
        self._first = 0  # where the window begins

    def take(self, count: int, what: str) -> memoryview:
        """Return the next `count` bytes."""
        start = self.offset
        if count > self.size - start:
            raise HeaderError(
                f"it ends inside {what}: {count} bytes needed at offset {start}, {self.size - start} left "
                f"(truncated or corrupted)"
            )
        at = start - self._first
        if at + count > len(self._window):
            self._window = self.source.read(start, min(max(count, WINDOW_BYTES), self.size - start)).data
            self._first, at = start, 0
        self.offset = start + count
        return self._window[at : at + count]

    def u32(self, what: str) -> int:
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def string(self, what: str, most: int = MAX_STRING_BYTES) -> str:
        length = self.u64(what)
        if most < length <= self.size - self.offset:
            raise HeaderError(f"{what} at offset {self.offset} has {length} bytes; at most {most} are accepted")
        data = self.take(length, what)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise HeaderError(f"{what} before offset {self.offset} is not valid UTF-8 ({error.reason})") from error

    def strings(self, count: int, what: str) -> list[str]:
        """Read as many strings as `string` would: vocabularies have hundreds of thousands."""
        found: list[str] = []
        while len(found) < count:
            found.append(self.string(what))  # brings the next window, and looks at what is unusual
            window, at = self._window, self.offset - self._first
            last, unpack, append = len(window) - 8, _U64.unpack_from, found.append
            try:
                for _ in range(count - len(found)):
                    if at > last:
                        break
                    start = at + 8
                    end = start + unpack(window, at)[0]
                    if end > last + 8 or end - start > MAX_STRING_BYTES:
                        break
                    append(str(window[start:end], "utf-8"))
                    at = end
            except UnicodeDecodeError:
                pass  # read again by `string`, which says where it is
            self.offset = self._first + at
        return found

    def count(self, what: str, smallest_item: int, most: int) -> int:
        """Read a count of items that each take at least `smallest_item` bytes."""
        value = self.u64(what)
        if value * smallest_item > self.size - self.offset:
            raise HeaderError(
                f"{what} is {value}, more than the {self.size - self.offset} bytes left can hold "
                f"(truncated or corrupted)"
            )
        if value > most:
            raise HeaderError(f"{what} is {value}; at most {most} are accepted")
        return value


def parse_header(source: Source) -> Header:
    """Parse the header of a GGUF file.

    Parameters
    ----------
    source : Source
        The bytes of the whole file.

    Returns
    -------
    Header
        Metadata and tensor table; every tensor lies within `source`.

    Raises
    ------
    HeaderError
        If the bytes break a rule of the format.
    UnusableFileError
        If they cannot be read.
    """
    cursor = _Cursor(source)
    magic = bytes(cursor.take(min(4, source.size), "the magic number"))
    if magic != MAGIC:
        raise HeaderError(f"it is not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise HeaderError("it is big-endian; convert it to little-endian (gguf_convert_endian.py of llama.cpp)")
        raise HeaderError(f"it has GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} can be read")
    tensor_count = cursor.count("the tensor count", MIN_TENSOR_BYTES, MAX_TENSORS)
    value_count = cursor.count("the metadata count", MIN_KEY_VALUE_BYTES, MAX_VALUES)
    metadata_start = cursor.offset
    metadata = _metadata(cursor, value_count)
    metadata_span = (metadata_start, cursor.offset)
    raw_tensors = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata)
    base = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in raw_tensors:
        if name in tensors:
            raise HeaderError(f"tensor {shown(name)} is listed twice")
        tensors[name] = _place(name, shape, kind, offset, base, alignment, source.size)
    _check_apart(tensors.values())
    return Header(version, metadata, metadata_span, tensors)


def subset(source: Source, header: Header, names: Collection[str]) -> bytes:
    """Make the bytes of a GGUF file with the metadata of another and some of its tensors.

    Parameters
    ----------
    source : Source
        The bytes of the whole file.
    header : Header
        What `parse_header` made of them.
    names : collection of str
        Tensors to keep.

    Returns
    -------
    bytes
        A file; metadata and tensors are as they were, byte for byte.
    """
    alignment = _alignment(header.metadata)
    kept = [info for info in header.tensors.values() if info.name in names]
    start, stop = header.metadata_span
    parts = [
        MAGIC,
        _U32.pack(header.version),
        _U64.pack(len(kept)),
        _U64.pack(len(header.metadata)),
        source.read(start, stop - start).tobytes(),
    ]
    offset = 0
    for info in kept:
        name = info.name.encode()
        parts += [_U64.pack(len(name)), name, _U32.pack(len(info.shape))]
        parts += [_U64.pack(extent) for extent in reversed(info.shape)]
        parts += [_U32.pack(int(info.kind)), _U64.pack(offset)]
        offset += -(-info.nbytes // alignment) * alignment
    size = sum(map(len, parts))
    parts.append(bytes(-size % alignment))
    for info in kept:
        parts += [source.read(info.offset, info.nbytes).tobytes(), bytes(-info.nbytes % alignment)]
    return b"".join(parts)


def _metadata(cursor: _Cursor, count: int) -> dict[str, GGUFValue]:
    metadata: dict[str, GGUFValue] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise HeaderError(f"metadata key {shown(key)} is listed twice")
        kind = _value_type(cursor.u32(f"the type of {shown(key)}"), key)
        metadata[key] = _value(cursor, kind, key, 0)
    return metadata


def _value_type(raw: int, key: str) -> GGUFValueType:
    try:
        return GGUFValueType(raw)
    except ValueError:
        raise HeaderError(f"metadata key {shown(key)} has the unknown value type {raw}") from None


def _value(cursor: _Cursor, kind: GGUFValueType, key: str, depth: int) -> GGUFValue:
    what = f"the value of {shown(key)}"
    if kind == GGUFValueType.STRING:
        return cursor.string(what)
    if kind == GGUFValueType.ARRAY:
        return _array(cursor, key, depth)
    dtype = _SCALARS[kind]
    scalar: GGUFValue = np.frombuffer(cursor.take(dtype.itemsize, what), dtype).item()
    return scalar


def _array(cursor: _Cursor, key: str, depth: int) -> list[Any]:
    what = f"the array {shown(key)}"
    kind = _value_type(cursor.u32(what), key)
    dtype = _SCALARS.get(kind)
    smallest = dtype.itemsize if dtype is not None else (8 if kind == GGUFValueType.STRING else 12)
    most = MAX_NESTED_ARRAYS if kind == GGUFValueType.ARRAY else MAX_ARRAY_ITEMS
    count = cursor.count(f"the length of {what}", smallest, most)
    cursor.items -= count
    if cursor.items < 0:
        raise HeaderError(f"{what} makes it more than {MAX_ARRAY_ITEMS} items in all arrays; no more are accepted")
    if dtype is not None:
        items: list[Any] = np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype).tolist()
        return items
    if kind == GGUFValueType.STRING:
        return cursor.strings(count, what)
    if depth + 1 >= MAX_ARRAY_DEPTH:
        raise HeaderError(f"{what} is nested more than {MAX_ARRAY_DEPTH} levels deep")
    return [_array(cursor, key, depth + 1) for _ in range(count)]


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    n_dims = cursor.u32(f"the dimensions of tensor {shown(name)}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise HeaderError(f"tensor {shown(name)} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [cursor.u64(f"the dimensions of tensor {shown(name)}") for _ in range(n_dims)]
    raw_kind = cursor.u32(f"the type of tensor {shown(name)}")
    try:
        kind = GGMLQuantizationType(raw_kind)
    except ValueError:
        raise HeaderError(f"tensor {shown(name)} has the unknown storage type {raw_kind}") from None
    return name, tuple(reversed(dims)), kind, cursor.u64(f"the offset of tensor {shown(name)}")


def _check_apart(tensors: Iterable[TensorInfo]) -> None:
    """Refuse tensors that share bytes: a small file could be many large tensors."""
    end, before = 0, ""
    for info in sorted(tensors, key=lambda each: each.offset):
        if info.nbytes and info.offset < end:
            raise HeaderError(f"tensors {shown(before)} and {shown(info.name)} overlap in the file")
        if info.nbytes:
            end, before = info.offset + info.nbytes, info.name


def _alignment(metadata: dict[str, GGUFValue]) -> int:
    value = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value & (value - 1):
        raise HeaderError(f"general.alignment is {shown(value)}; it must be a power of two")
    if value > MAX_ALIGNMENT:
        raise HeaderError(f"general.alignment is {value}; at most {MAX_ALIGNMENT} is accepted")
    return value


def _place(
    name: str,
    shape: tuple[int, ...],
    kind: GGMLQuantizationType,
    offset: int,
    base: int,
    alignment: int,
    size: int,
) -> TensorInfo:
    """Work out where a tensor lies, and check that it lies inside the file."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise HeaderError(
            f"tensor {shown(name)} has rows of {shape[-1]} values, not a multiple of {kind.name}'s {block}"
        )
    nbytes = math.prod(shape) // block * block_bytes
    if not nbytes and math.prod(max(extent, 1) for extent in shape) > MAX_EXTENT:
        raise HeaderError(f"tensor {shown(name)} has the shape {shape}, which no array can have")
    if offset % alignment:
        raise HeaderError(f"tensor {shown(name)} starts at {offset}, not a multiple of the alignment {alignment}")
    start = base + offset
    if start + nbytes > size:
        raise HeaderError(
            f"the data of tensor {shown(name)} (bytes {start} to {start + nbytes}) reaches beyond the end of the file "
            f"({size} bytes): it is truncated or corrupted"
        )
    return TensorInfo(name, shape, kind, start, nbytes)
