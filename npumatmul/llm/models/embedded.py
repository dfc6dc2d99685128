"""Rows that stand in a prompt instead of embeddings of tokens: what an encoder of one's own made of a picture, say.

In lists of tokens, and so in caches, each of these rows has a negative number that is made of its contents. So prompts
that differ in a picture differ in their tokens, and whatever compares tokens to find out what a cache holds is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.files.reading import shown
from npumatmul.llm.models.cache import KVCache, Stretch
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.nn.module import as_floats
from npumatmul.nn.product import Float32

__all__ = ["Embedded", "EmbeddedRows", "FilledPrompt", "Placing", "check_no_places", "filled"]

_NUMBERS = 1 << 62
_MOST_AXIS = 1 << 20
_LARGEST = 2.0**50
"""Squares of larger values, added up, are beyond float32: norms would make zeros of them."""


class Embedded:
    """Rows for consecutive places of a prompt.

    Parameters
    ----------
    rows : array_like, shape (n, hidden)
        What enters the first block there. Rows are taken as they are: factors that a model has for embeddings of tokens
        are not applied.
    grid : tuple of int, optional
        ``(frames, height, width)`` of a picture or video in rows, after an encoder merged patches, so that their
        product is n; rows follow one another line by line. For models that tell positions on three axes (Qwen-VL); by
        default positions go on as those of text.
    deep : sequence of array_like, each (n, hidden), optional
        What is added behind the first blocks, one for each: the ``deepstack`` features of Qwen3-VL.
    interval : float
        By how much positions of frames grow: for videos of Qwen2.5-VL, ``tokens_per_second`` of its configuration times
        the seconds between two frames.

    Attributes
    ----------
    rows : ndarray of float32, shape (n, hidden)
    grid : tuple of int or None
    deep : tuple of ndarray of float32
    numbers : list of int
        What stands for the rows in lists of tokens: negative numbers, made of all that is given here.

    Raises
    ------
    TypeError
        If values are no floats.
    ValueError
        If shapes do not fit together, or a value is not finite, or too large to be normalized.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import Embedded
    >>> Embedded(np.zeros((6, 8)), grid=(1, 2, 3))
    <Embedded: 6 rows of 8, grid (1, 2, 3)>
    """

    def __init__(
        self,
        rows: ArrayLike,
        grid: Sequence[int] | None = None,
        *,
        deep: Sequence[ArrayLike] = (),
        interval: float = 1.0,
    ) -> None:
        self.rows = _matrix(rows, "rows")
        if not isinstance(deep, Sequence):
            raise TypeError(f"Embedded: deep is a list of matrices, not {shown(deep)}")
        self.deep = tuple(_matrix(each, f"deep[{i}]") for i, each in enumerate(deep))
        self.grid = None if grid is None else _grid(grid, len(self.rows))
        for i, each in enumerate(self.deep):
            if each.shape != self.rows.shape:
                raise ValueError(f"Embedded: deep[{i}] has shape {each.shape}, and rows {self.rows.shape}")
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 <= interval <= _MOST_AXIS:
            raise ValueError(f"Embedded: interval is {shown(interval)}; it has to be a number from 0 to {_MOST_AXIS}")
        self._interval = float(interval)
        first = self._digest() % _NUMBERS
        self.numbers = [-1 - (first + i) % _NUMBERS for i in range(len(self.rows))]

    def __repr__(self) -> str:
        """Return how many rows there are."""
        count, width = self.rows.shape
        return f"<Embedded: {count} rows of {width}{'' if self.grid is None else f', grid {self.grid}'}>"

    def __reduce__(self) -> Any:
        """Copies are made anew: what their numbers are made of cannot be written to, either."""
        return _remade, (self.rows, self.grid, self.deep, self._interval)

    def __len__(self) -> int:
        """How many places of a prompt they take."""
        return len(self.rows)

    def _digest(self) -> int:
        found = hashlib.blake2b(repr((self.rows.shape, self.grid, len(self.deep), self._interval)).encode())
        for each in (self.rows, *self.deep):
            found.update(each.tobytes())
        return int.from_bytes(found.digest()[:8], "little")

    @property
    def span(self) -> int:
        """By how much the position of what follows is larger than that of the first row."""
        return len(self.rows) if self.grid is None else max(self.grid[1:])

    def offsets(self) -> NDArray[np.int64]:
        """Positions of the rows on three axes, ``(3, n)``, counted from that of the first."""
        if self.grid is None:
            return np.tile(np.arange(len(self.rows)), (3, 1))
        frames, height, width = (np.arange(each) for each in self.grid)
        frames = (frames * np.float32(self._interval)).astype(np.int64)
        return np.stack(np.meshgrid(frames, height, width, indexing="ij")).reshape(3, -1)


def _remade(rows: Float32, grid: tuple[int, int, int] | None, deep: tuple[Float32, ...], interval: float) -> Embedded:
    return Embedded(rows, grid, deep=deep, interval=interval)


def _matrix(values: ArrayLike, what: str) -> Float32:
    with np.errstate(over="ignore"):  # what is too large is told below
        matrix: Float32 = np.array(_floats(values, what), np.float32, order="C")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"Embedded: {what} has shape {matrix.shape}; one row for each place is needed, (n, hidden)")
    if not np.isfinite(matrix).all():
        raise ValueError(f"Embedded: {what} holds NaN or infinity")
    if max(matrix.max(), -matrix.min()) > _LARGEST:
        raise ValueError(f"Embedded: {what} holds values beyond {_LARGEST:.1e}, which no model can normalize")
    matrix.flags.writeable = False
    return matrix


def _floats(values: ArrayLike, what: str) -> NDArray[Any]:
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    try:
        return as_floats(values, f"Embedded: {what}")
    except ValueError as error:
        raise ValueError(f"Embedded: {what} is no matrix of floats ({error})") from None


def _grid(grid: Sequence[int], count: int) -> tuple[int, int, int]:
    sizes = tuple(grid) if isinstance(grid, Sequence | np.ndarray) else ()
    if len(sizes) != 3 or not all(
        isinstance(each, int | np.integer) and not isinstance(each, bool) and 0 < each < _MOST_AXIS for each in sizes
    ):
        raise ValueError(f"Embedded: grid is {shown(grid)}; it is (frames, height, width), each 1 or more")
    frames, height, width = (int(each) for each in sizes)
    if frames * height * width != count:
        raise ValueError(f"Embedded: a grid of {frames} x {height} x {width} has not the {count} rows that there are")
    return frames, height, width


@dataclass(frozen=True)
class Placing:
    """What blocks are told of a part of a prompt with rows from outside.

    Attributes
    ----------
    positions : ndarray of int, shape (3, T), or None
        Where they are told on three axes.
    deep : tuple of ndarray of float32, each (T, hidden)
        What is added behind the first blocks.
    stretches : tuple of Stretch
        Pictures whose last row is in the part.
    """

    positions: NDArray[np.int64] | None
    deep: tuple[Float32, ...]
    stretches: tuple[Stretch, ...]


class EmbeddedRows:
    """The rows from outside of a prompt, by their numbers.

    Parameters
    ----------
    pictures : iterable of Embedded
    config : DecoderConfig
        Of the model that they are for.

    Raises
    ------
    ValueError
        If they do not fit the model.
    """

    def __init__(self, pictures: Iterable[Embedded], config: DecoderConfig) -> None:
        self._on_axes = config.has_axes
        self._found: dict[int, tuple[Embedded, int]] = {}
        for each in pictures:
            _check_fit(each, config)
            self._found.update((number, (each, i)) for i, number in enumerate(each.numbers))

    def __contains__(self, number: object) -> bool:
        """Whether there is a row of this number."""
        return number in self._found

    def put(self, numbers: NDArray[np.int64], x: Float32) -> None:
        """Put rows into embeddings of tokens ``(T, hidden)`` where numbers are negative."""
        for i in np.flatnonzero(numbers < 0):
            picture, row = self._found[int(numbers[i])]
            x[i] = picture.rows[row]

    def placing(self, numbers: NDArray[np.int64], cache: KVCache) -> Placing | None:
        """What blocks have to be told of a part of a prompt behind what is in a cache; None of text alone."""
        outside = np.flatnonzero(numbers < 0)
        if not len(outside):
            return None
        positions = np.empty((3, len(numbers)), np.int64)
        first, shift = cache.length, cache.shift
        stretches: list[Stretch] = []
        deep: dict[int, Float32] = {}
        i = 0
        while i < len(numbers):
            if numbers[i] >= 0:
                positions[:, i] = first + i + shift
                i += 1
                continue
            picture, row = self._found[int(numbers[i])]
            count = min(len(picture) - row, len(numbers) - i)
            start = first + i - row  # of the picture, perhaps in the cache
            positions[:, i : i + count] = start + shift + picture.offsets()[:, row : row + count]
            for level, values in enumerate(picture.deep):
                added = deep.setdefault(level, np.zeros((len(numbers), values.shape[1]), np.float32))
                added[i : i + count] = values[row : row + count]
            i += count
            if row + count == len(picture):
                shift += picture.span - len(picture)
                stretches.append(Stretch(first + i, shift))
        return Placing(
            positions if self._on_axes else None, tuple(deep[each] for each in sorted(deep)), tuple(stretches)
        )


def _check_fit(picture: Embedded, config: DecoderConfig) -> None:
    if config.part is not None:
        raise ValueError("embeddings: a part of a model takes no rows from outside; load the whole one")
    if config.layer_embedding:
        raise ValueError(
            f"embeddings: layers of {config.architecture} have embeddings of tokens, which rows from outside have not"
        )
    if picture.rows.shape[1] != config.hidden_size:
        raise ValueError(
            f"embeddings: rows have {picture.rows.shape[1]} values; the model's states have {config.hidden_size}"
        )
    if picture.grid is not None and not config.has_axes:
        raise ValueError(
            f"embeddings: a grid of {picture.grid} is for models that tell positions on three axes; "
            f"{config.architecture} has one"
        )
    if len(picture.deep) != config.deep_layers:
        raise ValueError(
            f"embeddings: {len(picture.deep)} deep features are given; {config.architecture} adds {config.deep_layers}"
        )


class FilledPrompt(list[int]):
    """Tokens of a prompt, with negative numbers where rows from outside stand, and these rows.

    Attributes
    ----------
    rows : EmbeddedRows
    """

    def __init__(self, tokens: Iterable[int], rows: EmbeddedRows) -> None:
        super().__init__(tokens)
        self.rows = rows


def filled(
    ids: Sequence[int],
    embeddings: Mapping[int, Embedded] | Sequence[Embedded],
    config: DecoderConfig,
) -> FilledPrompt:
    """Put rows from outside into a prompt.

    Parameters
    ----------
    ids : sequence of int
        The prompt's tokens, all of the vocabulary.
    embeddings : mapping of int to Embedded, or sequence of Embedded
        By where the first row goes; tokens that stand there are replaced. Or in the order of the prompt's placeholders:
        each of these has one token, or one for each row.
    config : DecoderConfig
        Of the model.

    Returns
    -------
    FilledPrompt
        Negative numbers in it are the model's business alone.

    Raises
    ------
    TypeError, ValueError
        If they do not fit the prompt, or the model.
    """
    if isinstance(embeddings, Mapping):
        given = dict(embeddings)
    elif isinstance(embeddings, Sequence) and not isinstance(embeddings, str | bytes):
        given = dict(enumerate(embeddings))
    else:
        raise TypeError(f"embeddings are a mapping or a list of Embedded, not {type(embeddings).__name__}")
    for place, each in given.items():
        if not isinstance(each, Embedded):
            raise TypeError(f"embeddings[{shown(place)}] is a {type(each).__name__}; an Embedded is needed")
    rows = EmbeddedRows(given.values(), config)
    if isinstance(embeddings, Mapping):
        tokens = _at_places(ids, given)
        check_no_places(tokens, config)
        return FilledPrompt(tokens, rows)
    return FilledPrompt(_at_placeholders(ids, list(given.values()), config.placeholders), rows)


def check_no_places(ids: Sequence[int], config: DecoderConfig) -> None:
    """Refuse a prompt in which tokens stand for pictures that were not given: they were trained to mean nothing else.

    Raises
    ------
    ValueError
        If there are such tokens.
    """
    if not config.placeholders:
        return
    places = [i for i, each in enumerate(ids) if each in config.placeholders]
    if places:
        raise ValueError(
            f"embeddings: {len(places)} of the prompt's tokens, the first at {places[0]}, stand for a picture or a "
            "video, and no rows are given for them (docs/embedded.md)"
        )


def _at_places(ids: Sequence[int], given: Mapping[int, Embedded]) -> list[int]:
    tokens, before = list(ids), 0
    for place in given:
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= place <= len(ids):
            raise ValueError(f"embeddings: {shown(place)} is no place in a prompt of {len(ids)} tokens")
    for place in sorted(given):
        stop = int(place) + len(given[place])
        if place < before or stop > len(ids):
            raise ValueError(
                f"embeddings: {len(given[place])} rows at {place} are to replace as many tokens; "
                + (f"the rows before them end at {before}" if place < before else f"the prompt has {len(ids)}")
            )
        tokens[int(place) : stop] = given[place].numbers
        before = stop
    return tokens


def _standing(places: int, waiting: Sequence[Embedded]) -> int | None:
    """How many pictures stand in places that follow one another: one for each row, or else one for each picture."""
    rows = 0
    for count, picture in enumerate(waiting, 1):
        rows += len(picture)
        if rows >= places:
            if rows == places:
                return count
            break
    return places if places <= len(waiting) else None


def _at_placeholders(ids: Sequence[int], given: list[Embedded], placeholders: Collection[int]) -> list[int]:
    if not placeholders:
        raise ValueError(
            "embeddings: the model names no token that stands for a picture; give a mapping from places to Embedded"
        )
    tokens: list[int] = []
    waiting = list(given)
    i = 0
    while i < len(ids):
        stop = i + 1
        if ids[i] in placeholders:
            while stop < len(ids) and ids[stop] == ids[i]:
                stop += 1
            count = _standing(stop - i, waiting)
            if count is None:
                rows = f"for a picture of {len(waiting[0])} rows" if waiting else "and no picture is left"
                raise ValueError(
                    f"embeddings: {stop - i} places stand at {i} {rows}, of {len(given)} pictures; each has one place, "
                    "or one for each row"
                )
            for picture in waiting[:count]:
                tokens += picture.numbers
            del waiting[:count]
        else:
            tokens.append(ids[i])
        i = stop
    if waiting:
        raise ValueError(
            f"embeddings: {len(given)} are given, and the prompt has places for {len(given) - len(waiting)}"
        )
    return tokens
