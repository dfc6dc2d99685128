"""How keys and values of one layer stand in memory: as floats or codes, and where, and who else reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.host.attention import (
    NO_ROOM,
    OUT_OF_RANGE,
    KvLayer,
    KvRows,
    KvType,
    append,
    describe,
    segments,
    tell,
)
from npumatmul.host.kernels import NOT_FINITE
from npumatmul.nn.product import Float32

__all__ = ["FORMATS", "CachedRows", "Format", "LayerRows", "LayerShared"]

_BEYOND_HALVES = np.float32(65520)  # from here on values are rounded to an infinity

Parts = Sequence[NDArray[Any]]
"""Arrays ``(batch, heads, capacity, width)`` of which rows consist: floats, or codes and their scales."""


class Format:
    """Rows as floats of some type."""

    def __init__(self, dtype: type[Any], kind: KvType) -> None:
        self.dtype, self.kind = np.dtype(dtype), kind

    def columns(self, dim: int) -> tuple[tuple[str, int, np.dtype[Any]], ...]:
        """Name, width and type of each part."""
        return (("floats", dim, self.dtype),)

    def seen(self, parts: Parts, start: int, stop: int) -> Any:
        """Rows, without a copy."""
        return parts[0][:, :, start:stop]


class _Codes(Format):
    """Rows as int8, with a scale for each token and head."""

    def columns(self, dim: int) -> tuple[tuple[str, int, np.dtype[Any]], ...]:
        return ("codes", dim, np.dtype(np.int8)), ("scales", 1, np.dtype(np.float32))

    def seen(self, parts: Parts, start: int, stop: int) -> Any:
        return CachedRows([_Segment(self, parts, start, stop)])


#: By the names that `KVCache` takes.
FORMATS: dict[str, Format] = {
    "float16": Format(np.float16, KvType.FLOAT16),
    "float32": Format(np.float32, KvType.FLOAT32),
    "int8": _Codes(np.int8, KvType.INT8),
}


class _Segment:
    """Rows start to stop of some parts, which nobody writes any more."""

    __slots__ = ("format", "parts", "start", "stop")

    def __init__(self, format: Format, parts: Parts, start: int, stop: int) -> None:
        self.format, self.parts, self.start, self.stop = format, tuple(parts), start, stop

    def described(self) -> KvRows:
        """Where its rows stand."""
        return describe(self.parts, self.start)

    def floats(self, first: int, stop: int) -> NDArray[Any]:
        """Rows by their numbers in the segment: a view where they are stored as floats."""
        codes = self.parts[0][:, :, self.start + first : self.start + stop]
        if len(self.parts) == 1:
            return codes
        values: Float32 = codes.astype(np.float32)
        values *= self.parts[1][:, :, self.start + first : self.start + stop]
        return values


class CachedRows:
    """Keys or values of a cache that are not one array of floats.

    `scaled_dot_product_attention` reads them block by block; ``np.asarray`` gives all of them.

    Attributes
    ----------
    shape : tuple of int
        (batch, heads, S, D).
    cuts : tuple of int
        Where one stretch of memory ends and the next one begins.
    """

    def __init__(self, segments: Sequence[_Segment]) -> None:
        self._segments = segments
        batch, heads, _, dim = segments[0].parts[0].shape
        stops, end = [], 0
        for each in segments:
            end += each.stop - each.start
            stops.append(end)
        self.shape = (batch, heads, end, dim)
        self.cuts = tuple(stops)

    def as_segments(self, values: CachedRows) -> tuple[KvType, Any] | None:
        """The memory of these keys, and of values that stand beside them, as C reads them; None where it cannot."""
        pairs = list(zip(self._segments, values._segments, strict=False))
        if self.cuts != values.cuts or len({each.format.kind for pair in pairs for each in pair}) > 1:
            return None
        return self._segments[0].format.kind, _told_of(pairs)

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Those of positions start to stop, as floats."""
        found, before = [], 0
        for each, end in zip(self._segments, self.cuts, strict=True):
            if start < end and stop > before:
                found.append(each.floats(max(start - before, 0), min(stop, end) - before))
            before = end
        if len(found) == 1:
            return found[0]
        return np.concatenate(found, axis=2) if found else self._segments[0].floats(0, 0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self.block(0, self.shape[2])
        return values.astype(values.dtype if dtype is None else dtype, copy=bool(copy))


def _told_of(pairs: Sequence[tuple[_Segment, _Segment]]) -> Any:
    return segments([(keys.described(), values.described(), keys.stop - keys.start) for keys, values in pairs])


class LayerShared:
    """A layer that looks at keys and values of another one, and has none of its own."""

    window: int | None = None
    nbytes = 0

    def __init__(self, source: int) -> None:
        self.source = source

    def parts(self) -> list[NDArray[Any]]:
        return []

    def fork(self, offset: int) -> LayerShared:
        return self

    def stored(self, offset: int) -> dict[str, NDArray[Any]]:
        return {}

    def wanted(self, offset: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {}

    def restore(self, offset: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """There is nothing to be restored."""


class LayerRows:
    """Keys and values of one layer.

    Attributes
    ----------
    window : int or None
    base : int
        Number of the first token in memory of its own. With a window those before it are gone; without one they stand
        in segments that other caches read, too.
    """

    def __init__(self, rows: tuple[int, int, int], format: Format, window: int | None, chunk: int) -> None:
        self.base, self.window = 0, window
        self._rows, self._format, self._chunk, self._capacity = rows, format, chunk, 0
        self._columns = [(width, dtype) for _, width, dtype in format.columns(rows[2])]
        self._keys: list[NDArray[Any]] = self._allocated(0)
        self._values: list[NDArray[Any]] = self._allocated(0)
        self._before: list[tuple[_Segment, _Segment]] = []
        #: Rows of its own that other caches read, too.
        self._shared = 0
        #: What C is told of these, and where else that has to stand.
        self.struct = KvLayer()
        self._copies: tuple[KvLayer, ...] = ()
        self._is_told = False
        self._before_told: Any = ()

    def tell_in(self, struct: KvLayer, copies: Sequence[KvLayer]) -> None:
        """Say in these structs where rows are, now and whenever that changes."""
        self.struct, self._copies = struct, tuple(copies)
        self._told()

    def _changes(self) -> None:
        """Memory is about to change: until that is told, nothing is stored there, whatever interrupts it."""
        self._is_told = False
        self.struct.capacity = 0

    def _told(self) -> None:
        batch, heads, dim = self._rows
        made = KvLayer(self._format.kind, len(self._before), batch * heads, dim, dim, self.window or 0)
        made.base, made.shared, made.capacity = self.base, self._shared, self._capacity
        made.keys, made.values = describe(self._keys), describe(self._values)
        before = _told_of(self._before)
        made.before = before
        tell(made, (*self._copies, self.struct))
        self._before_told, self._is_told = before, True

    def _allocated(self, capacity: int) -> list[NDArray[Any]]:
        batch, heads, _ = self._rows
        made = []
        for width, dtype in self._columns:
            made.append(np.empty((batch, heads, capacity, width), dtype))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of its own memory."""
        return sum(part.nbytes for part in (*self._keys, *self._values))

    def parts(self) -> list[NDArray[Any]]:
        """All arrays that rows stand in, also those that other caches read."""
        shared = [part for pair in self._before for segment in pair for part in segment.parts]
        return [*self._keys, *self._values, *shared]

    def needs(self, offset: int) -> int:
        """Number of the first token that a token of number `offset` looks at."""
        return 0 if self.window is None else max(0, offset - self.window + 1)

    def put(self, offset: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """Store rows of the tokens from number `offset` on."""
        k, v = (x if x.dtype == np.float32 else x.astype(np.float32) for x in (k, v))
        code = append(self.struct, offset, k, v)
        if code == NO_ROOM:
            self.make_room(offset, k.shape[2])
            code = append(self.struct, offset, k, v)
        if code == NOT_FINITE:
            raise NotFiniteError("KVCache.update: keys or values hold an inf or nan, which int8 cannot keep")
        if code == OUT_OF_RANGE:
            lost = next(x for each in (k, v) for x in each[np.isfinite(each)] if abs(x) >= _BEYOND_HALVES)
            raise OverflowError(
                f"KVCache.update: a key or value of {abs(lost):.4g} is beyond float16's range; make the cache with "
                "dtype='float32'"
            )
        assert code == 0, code

    def looked_at(self, offset: int, count: int) -> tuple[Any, Any]:
        """What tokens of the numbers from `offset` on look at, all of which are stored."""
        start = offset - self.base
        return self.seen(0 if self.window is None else max(0, start - self.window + 1), start + count)

    def seen(self, first: int, stop: int) -> tuple[Any, Any]:
        """Rows of its own from `first` to `stop`, and all before them that others read, too."""
        if not self._before:
            return self._format.seen(self._keys, first, stop), self._format.seen(self._values, first, stop)
        last = self._segments(first, stop)
        keys, values = zip(*self._before, last, strict=True)
        return CachedRows(keys), CachedRows(values)

    def _segments(self, first: int, stop: int) -> tuple[_Segment, _Segment]:
        made = (_Segment(self._format, parts, first, stop) for parts in (self._keys, self._values))
        return next(made), next(made)

    def make_room(self, offset: int, count: int) -> None:
        """Have memory of its own for the rows of more tokens."""
        start = offset - self.base
        if start < self._shared or start + count > self._capacity:
            self._changes()
            if self.window is not None:
                self._slide(offset, count)
            else:
                self._grow(offset, count)
        if not self._is_told:
            self._told()

    def _grow(self, offset: int, count: int) -> None:
        start = offset - self.base
        if start < 0:  # tokens that others have, too, were forgotten
            self._cut_before(offset)
            start = 0
        kept = min(start, self._shared)
        if self._shared:  # what others read stays as it is
            if kept:
                self._before.append(self._segments(0, kept))
            self.base += kept
            self._shared, self._capacity = 0, 0
        self._copy_into(kept, start - kept, start - kept + count)

    def _slide(self, offset: int, count: int) -> None:
        """Move to the front what is still looked at; if that is not enough, into longer arrays."""
        assert self.window is not None
        first = self.needs(offset)
        kept, gone = offset - first, first - self.base
        wanted = max(kept + count, min(self.window + self._chunk, offset + count))
        if wanted > self._capacity:
            self._copy_into(gone, kept, wanted)
        elif gone:
            for part in (*self._keys, *self._values):
                part[:, :, :kept] = part[:, :, gone : gone + kept]
        self.base = first

    def _copy_into(self, first: int, kept: int, wanted: int) -> None:
        """Take arrays that have room for so many rows; some rows of the old ones come first."""
        if wanted <= self._capacity and first == 0:
            return
        capacity = -(-wanted // self._chunk) * self._chunk
        for parts in (self._keys, self._values):
            for before, longer, i in zip(tuple(parts), self._allocated(capacity), range(len(parts)), strict=True):
                longer[:, :, :kept] = before[:, :, first : first + kept]
                parts[i] = longer
        self._capacity = capacity

    def _cut_before(self, length: int) -> None:
        """Forget tokens from number `length` on, all of which are in segments."""
        end, kept = 0, []
        for keys, values in self._before:
            count = min(keys.stop - keys.start, length - end)
            if count > 0:
                kept.append(
                    (
                        _Segment(self._format, keys.parts, keys.start, keys.start + count),
                        _Segment(self._format, values.parts, values.start, values.start + count),
                    )
                )
                end += count
        self._before, self.base = kept, length

    def fork(self, offset: int) -> LayerRows:
        """The same rows of the tokens before number `offset`, for another cache: shared, or copied with a window."""
        made = LayerRows(self._rows, self._format, self.window, self._chunk)
        start = offset - self.base
        if self.window is not None:
            made._keys = [part.copy() for part in self._keys]
            made._values = [part.copy() for part in self._values]
            made.base, made._capacity = self.base, self._capacity
            return made
        if start < 0:
            self._changes()
            self._cut_before(offset)
            start = 0
        made._before = list(self._before)
        if start:
            made._before.append(self._segments(0, start))
        made.base = offset
        self._shared = max(self._shared, start)
        self._told()
        return made

    # ---- files -----------------------------------------------------------------------------------------------------

    def wanted(self, offset: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Names, shapes and types of what `stored` gives."""
        batch, heads, dim = self._rows
        count = offset - self.needs(offset)
        return {
            f"{name}.{called}": ((batch, heads, count, width), dtype)
            for called, width, dtype in self._format.columns(dim)
            for name in ("keys", "values")
        }

    def stored(self, offset: int) -> dict[str, NDArray[Any]]:
        """Parts of the rows that tokens from number `offset` on look at, by name."""
        if offset < self.base and self.window is None:
            self._changes()
            self._cut_before(offset)
            self._told()
        own = self._segments(self.needs(offset) - self.base if self.window else 0, offset - self.base)
        found = {}
        for name, index in (("keys", 0), ("values", 1)):
            segments = [*(each[index] for each in self._before), own[index]]
            for i, (called, _, _) in enumerate(self._format.columns(self._rows[2])):
                stretches = [each.parts[i][:, :, each.start : each.stop] for each in segments]
                found[f"{name}.{called}"] = np.concatenate(stretches, axis=2)
        return found

    def restore(self, offset: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Take rows of the last tokens before number `offset`, as `stored` gave them."""
        first = self.needs(offset)
        self._changes()
        self._copy_into(0, 0, max(offset - first, 1))
        for i, (called, _, _) in enumerate(self._format.columns(self._rows[2])):
            self._keys[i][:, :, : offset - first] = arrays[f"keys.{called}"]
            self._values[i][:, :, : offset - first] = arrays[f"values.{called}"]
        self.base = first
        self._told()
