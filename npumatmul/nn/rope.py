"""`RoPE`: queries and keys rotated by angles that grow with their positions."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.files.reading import shown
from npumatmul.host.arrays import address_of
from npumatmul.host.layers import Rotation, rotate
from npumatmul.nn.module import Module, check_number, check_size, float32_of, rounded_to
from npumatmul.nn.product import Float32

__all__ = ["SCALINGS", "RoPE"]

_Float64 = NDArray[np.float64]
_F32 = np.dtype(np.float32)
#: Rows of the first table; later ones are twice as long as was asked for, up to a limit.
_FIRST, _LONGEST = 1024, 1 << 18
#: While what kernels read of an object refers to longer tables.
_REFERRING = Lock()
#: Radians per position at most: then float64 has digits left of the angles of all positions.
_FASTEST = 1 << 20
#: What rotated values are multiplied by at most: scores, products of two of them, stay within float32.
_STRONGEST = 1 << 16
_LARGEST = sys.float_info.max


class RoPE(Module):
    """Rotary position embedding: pairs of values are rotated by ``position * frequency``.

    Parameters
    ----------
    dim : int
        Leading values of each head that are rotated; even. The others stay (partial rotation).
    base : float
        Frequencies are ``base ** (-2 i / dim)``: ``rope_theta`` of configurations.
    interleaved : bool
        Which values are pairs: neighbours, 0 and 1, 2 and 3, as in GGUF files of the llama family; or by default i and
        ``i + dim / 2``, as in checkpoints of Hugging Face.
    scaling : mapping, optional
        How frequencies are changed for longer texts, as ``rope_scaling`` or ``rope_parameters`` of configurations:
        ``rope_type`` (or ``type``) is ``"default"``, ``"linear"``, ``"llama3"``, ``"yarn"``, ``"longrope"`` or
        ``"proportional"``, by which the fastest frequencies alone turn (``partial_rotary_factor`` of them).
    max_position : int, optional
        ``max_position_embeddings`` of the configuration; yarn and longrope without ``factor`` need it.
    factors : array_like, shape (dim / 2,), optional
        Divisors of the frequencies, as the tensor ``rope_freqs`` of GGUF files.
    length : int, optional
        For longrope, the length of text that factors are chosen for. By default that of each call, its largest position
        and one, as transformers does; keys in a cache do not fit any more when that passes the original length.
    sections : sequence of int, optional
        For positions of three axes (time, height and width of pictures, as in Qwen-VL): how many frequencies belong to
        each, ``dim / 2`` together.
    alternate : bool
        Whether the frequencies of the axes take turns, as in Qwen3-VL, instead of following one another.

    Attributes
    ----------
    attention_factor : float
        What rotated values are multiplied by: not 1 for yarn and longrope.

    Raises
    ------
    ValueError
        If a size is wrong, the kind of scaling is not known, or it lacks or has a key that it should not.

    Notes
    -----
    Angles are computed in float64, cosines and sines rounded to float32; with v = 2**-24 results are off by at most
    5 v times the magnitude of their pair, and a float16 result is rounded once more.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> rope = nn.RoPE(2)
    >>> rope(np.array([[1, 0], [1, 0]], np.float32)).round(3)  # positions 0 and 1
    array([[1.   , 0.   ],
           [0.54 , 0.841]], dtype=float32)
    >>> rope(np.array([[1, 0]], np.float32), offset=1).round(3)
    array([[0.54 , 0.841]], dtype=float32)
    """

    def __init__(
        self,
        dim: int,
        *,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling: Mapping[str, Any] | None = None,
        max_position: int | None = None,
        factors: ArrayLike | None = None,
        length: int | None = None,
        sections: Sequence[int] | None = None,
        alternate: bool = False,
    ) -> None:
        check_size("RoPE", dim=dim, **({} if max_position is None else {"max_position": max_position}))
        check_number("RoPE", base=base)
        if dim % 2 or base <= 0:
            raise ValueError(f"RoPE: dim is {dim} and base {base}; dim has to be even, and base positive")
        self._dim, self._half, self._base, self._interleaved = dim, dim // 2, float(base), bool(interleaved)
        with np.errstate(all="ignore"):  # what comes of absurd numbers is looked at in the end
            plain = self._base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
            self._kind = _kind(scaling)
            found = _Given(self._kind, scaling or {}, plain, self._base, dim, max_position)
            try:
                self._frequencies, self.attention_factor = SCALINGS[self._kind](found)
            except ArithmeticError as error:
                raise ValueError(f"RoPE: numbers of {self._kind} scaling do not fit together: {error}") from error
            self._long: _Float64 | None = None
            self._original = 0
            if self._kind == "longrope":
                self._original = int(found.number("original_max_position_embeddings"))
                self._long = plain / found.factors("long_factor")
            found.check_all_used()
            if factors is not None:
                divisors = _positive(factors, self._half, "factors are")
                self._frequencies = self._frequencies / divisors
                self._long = None if self._long is None else self._long / divisors
        self._check_frequencies()
        if length is not None:
            check_size("RoPE", length=length)
            if self._long is not None and length > self._original:
                self._frequencies = self._long
            self._long = None
        self._axes = None if sections is None else _axes(sections, self._half, alternate)
        self._tables: dict[bool, tuple[Float32, Float32]] = {}
        #: What the kernel reads, and all that it has referred to: somebody may be at work with it.
        self._rotation: Rotation | None = None
        self._referred: list[tuple[Float32, Float32]] = []

    def __getstate__(self) -> dict[str, Any]:
        """All but what holds addresses, for copies."""
        return {**vars(self), "_rotation": None, "_referred": []}

    def __repr__(self) -> str:
        order = ", interleaved" if self._interleaved else ""
        return f"RoPE({self._dim}, base={self._base:g}{order}, scaling={self._kind!r})"

    def _check_frequencies(self) -> None:
        for each in (self._frequencies, self._long):
            if each is not None and not (each <= _FASTEST).all():
                raise ValueError(
                    f"RoPE: values turn by up to {each.max():.3g} radians per position; more than {_FASTEST} are no"
                    f" angles any more: base is {self._base:g}, scaling {self._kind!r}"
                )
        if not 1 / _STRONGEST <= self.attention_factor <= _STRONGEST:
            raise ValueError(
                f"RoPE: attention_factor of {self._kind} scaling is {self.attention_factor:.3g}; it has to be between "
                f"1 / {_STRONGEST} and {_STRONGEST}"
            )

    @property
    def recordable(self) -> bool:
        """Unless angles depend on how long a text is."""
        return self._long is None

    @property
    def dim(self) -> int:
        """Values of each head that are rotated."""
        return self._dim

    @property
    def frequencies(self) -> _Float64:
        """Radians per position, ``(dim / 2,)``; for longrope those of short texts, unless `length` says otherwise."""
        return self._frequencies

    def __call__(
        self, x: Any, offset: int = 0, positions: ArrayLike | None = None, out: NDArray[Any] | None = None
    ) -> Any:
        """Rotate.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., T, D)
            D at least `dim`: queries or keys ``(B, heads, T, D)``, say.
        offset : int
            Position of the first of the T.
        positions : array_like of int, shape (..., T), or with `sections` (3, ..., T), optional
            All positions, instead of `offset`; leading dimensions are broadcast to those of `x`. Without them,
            positions on all axes are the same.
        out : ndarray, shape (..., T, D), optional
            Where the result goes, such as a place in a cache.

        Returns
        -------
        ndarray or NpuArray, shape (..., T, D)
            `out`, or a new array of the dtype of `x`.

        Raises
        ------
        ValueError
            If `x` has fewer values than are rotated, or a position is negative.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x, offset, positions, out)
        dim, half = self._dim, self._half
        if x.ndim < 2 or x.shape[-1] < dim:
            raise ValueError(f"{self!r} takes (..., T, D) with D of {dim} or more; the input has shape {x.shape}")
        if out is not None and out.shape != x.shape:
            raise ValueError(f"{self!r}: out has shape {out.shape}; the input has {x.shape}")
        is_plain = positions is None and out is None and x.dtype == _F32 and hasattr(offset, "__index__")
        if is_plain and self.reach(offset, x.shape[-2]):
            assert self._rotation is not None
            return rotate(x, self._rotation, offset, self)
        cos, sin = self._rows(offset, x.shape, positions)
        given = x if x.dtype == _F32 else float32_of(x, repr(self))
        y = np.empty(x.shape, _F32) if out is None or out.dtype != _F32 else out
        rotated = given if x.shape[-1] == dim else given[..., :dim]
        if self._interleaved:
            first, second, one, two = rotated[..., 0::2], rotated[..., 1::2], y[..., 0:dim:2], y[..., 1:dim:2]
        else:
            first, second, one, two = rotated[..., :half], rotated[..., half:], y[..., :half], y[..., half:dim]
        turned = second * sin
        last = first * sin
        np.multiply(first, cos, out=one)
        np.multiply(second, cos, out=two)
        one -= turned
        two += last
        if x.shape[-1] > dim:
            y[..., dim:] = given[..., dim:]
        if out is None:
            return y if x.dtype == _F32 else rounded_to(y, x.dtype)
        if out is not y:
            out[...] = y
        return out

    def reach(self, offset: int, count: int) -> bool:
        """Have angles of so many positions from `offset` on at hand; whether one table has them, whatever comes later.

        Raises
        ------
        ValueError
            If a position is negative.
        """
        stop, rotation = offset + count, self._rotation
        if offset >= 0 and rotation is not None and stop <= rotation.count:
            return True
        if self._long is not None or stop > _LONGEST or not count:
            return False
        self._rows(offset, (count, self._dim), None)
        with _REFERRING:
            cos, sin = table = self._tables[False]
            rotation = self._rotation
            if rotation is not None and rotation.count >= len(cos):  # another thread was here with a longer table
                return bool(stop <= rotation.count)
            self._referred.append(table)
            if rotation is None:
                rotation = self._rotation = Rotation(None, None, 0, self._half, self._interleaved)
            rotation.cos, rotation.sin = address_of(cos), address_of(sin)
            rotation.count = len(cos)  # at last: who is at work meanwhile knows of no more
            return bool(stop <= rotation.count)

    def _rows(self, offset: int, shape: tuple[int, ...], positions: ArrayLike | None) -> tuple[Float32, Float32]:
        """Cosines and sines of positions, ``(..., T, dim / 2)``."""
        if positions is not None:
            at = self._checked(positions, shape) if self._axes is None else self._on_axes(positions, shape)
            low, stop = (int(at.min()), int(at.max()) + 1) if at.size else (0, 0)
        else:
            low, stop = offset, offset + shape[-2]
        if low < 0:
            raise ValueError(f"{self!r}: position {low} is negative")
        is_long = self._long is not None and stop > self._original
        table = self._tables.get(is_long)
        if table is None or len(table[0]) < stop:
            if stop > _LONGEST:
                if positions is None:
                    return self._of(np.arange(low, stop), is_long)
                cos, sin = self._of(at, is_long)
                return self._mixed(cos), self._mixed(sin)
            table = self._tables[is_long] = self._of(np.arange(max(_FIRST, min(2 * stop, _LONGEST))), is_long)
        cos, sin = table
        return (cos[low:stop], sin[low:stop]) if positions is None else (self._mixed(cos[at]), self._mixed(sin[at]))

    def _mixed(self, values: Float32) -> Float32:
        """Of values of all axes, those of the axis that each frequency belongs to."""
        if self._axes is None:
            return values
        mixed: Float32 = np.choose(self._axes, values)
        return mixed

    def _on_axes(self, positions: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
        at = np.asarray(positions)
        if at.ndim < 2 or len(at) != 3:
            raise ValueError(f"{self!r}: positions are those of three axes, (3, ..., T); these have shape {at.shape}")
        self._checked(at[0], shape)
        return at

    def _checked(self, positions: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
        at = np.asarray(positions)
        wanted = shape[:-1]
        given = (1,) * (len(wanted) - at.ndim) + at.shape
        fits = len(given) == len(wanted) and all(a in (1, w) for a, w in zip(given[:-1], wanted[:-1], strict=True))
        if at.dtype.kind not in "iu" or not fits or given[-1] != wanted[-1]:
            raise ValueError(
                f"{self!r}: positions are integers that can be broadcast to {wanted}; these are {at.dtype} of shape "
                f"{at.shape}"
            )
        return at

    def _of(self, positions: NDArray[Any], is_long: bool) -> tuple[Float32, Float32]:
        chosen = self._long if is_long and self._long is not None else self._frequencies
        angles = positions.astype(np.float64)[..., None] * chosen
        factor = self.attention_factor
        return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


# ---- kinds of scaling ---------------------------------------------------------------------------------------------

#: Keys that do not belong to a kind of scaling, and are checked against arguments or mean nothing to us.
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def _axes(sections: Sequence[int], half: int, alternate: bool) -> NDArray[np.int64]:
    """Which axis each frequency belongs to."""
    if len(sections) != 3 or any(type(each) is not int or each < 0 for each in sections) or sum(sections) != half:
        raise ValueError(f"RoPE: sections are {shown(sections)}; they have to be three numbers that add up to {half}")
    if not alternate:
        return np.repeat(np.arange(3), sections)
    axes = np.zeros(half, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _positive(values: Any, count: int, what: str) -> _Float64:
    """Divisors of frequencies, one for each; `what` begins a message."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"RoPE: {what} {count} positive numbers, not {shown(values)}") from None
    if array.shape != (count,) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"RoPE: {what} {count} positive numbers; these have shape {array.shape}")
    return array


class _Given:
    """What a configuration says of a scaling; keys are noted that were used."""

    def __init__(
        self, kind: str, values: Mapping[str, Any], plain: _Float64, base: float, dim: int, max_position: int | None
    ) -> None:
        self._kind, self._values, self._max = kind, values, max_position
        self.plain, self.base, self.dim = plain, base, dim
        self._used: set[str] = set(_COMMON)
        theta = values.get("rope_theta")
        if theta is not None and theta != base:
            raise ValueError(f"RoPE: base is {base}, but scaling says rope_theta {theta}; they have to be the same")

    def optional(self, key: str) -> float | None:
        """A positive number, or None where the key is missing or null."""
        self._used.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise ValueError(f"RoPE: {key} of {self._kind} scaling is {shown(value)}; it has to be a positive number")
        return float(value)

    def number(self, key: str) -> float:
        value = self.optional(key)
        if value is None:
            raise ValueError(f"RoPE: {self._kind} scaling needs {key}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        self._used.add(key)
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"RoPE: {key} of {self._kind} scaling is {value!r}; it has to be true or false")
        return value

    def factor(self) -> float:
        """By how much texts are longer than the model's first ones."""
        found = self.optional("factor")
        if found is not None:
            return found
        if self._max is None:
            raise ValueError(f"RoPE: {self._kind} scaling needs factor, or else max_position")
        return self._max / self.number("original_max_position_embeddings")

    def factors(self, key: str) -> _Float64:
        self._used.add(key)
        values = self._values.get(key)
        wanted = self.dim // 2
        if not isinstance(values, Sequence | np.ndarray) or len(values) != wanted:
            found = f"{len(values)} values" if isinstance(values, Sequence | np.ndarray) else repr(values)
            raise ValueError(f"RoPE: {key} of {self._kind} scaling has to be {wanted} numbers, not {found}")
        return _positive(values, wanted, f"{key} of {self._kind} scaling has to be")

    def check_all_used(self) -> None:
        """Raise for keys that nothing was made of: they may change the angles."""
        unknown = [key for key, value in self._values.items() if key not in self._used and value is not None]
        if unknown:
            raise ValueError(f"RoPE: {self._kind} scaling has no {', '.join(map(repr, unknown))}")


def _kind(scaling: Mapping[str, Any] | None) -> str:
    if scaling is None:
        return "default"
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in ("su", "longrope"):
        return "longrope"
    if kind not in SCALINGS:
        known = ", ".join(map(repr, SCALINGS))
        raise ValueError(f"RoPE: no kind of scaling is called {kind!r}; there are {known}")
    return str(kind)


def _default(given: _Given) -> tuple[_Float64, float]:
    return given.plain, 1.0


def _linear(given: _Given) -> tuple[_Float64, float]:
    return given.plain / given.number("factor"), 1.0


def _llama3(given: _Given) -> tuple[_Float64, float]:
    """Long waves are stretched, short ones stay, and those between are mixed."""
    factor, original = given.number("factor"), given.number("original_max_position_embeddings")
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if high <= low:
        raise ValueError(f"RoPE: high_freq_factor of llama3 scaling is {high:g}, not above low_freq_factor, {low:g}")
    waves = original * given.plain / (2 * math.pi)  # of each frequency in a text of the original length
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return (1 - smooth) * given.plain / factor + smooth * given.plain, 1.0


def _yarn(given: _Given) -> tuple[_Float64, float]:
    """As `_llama3`, by the number of the frequency; and rotated values become larger."""
    original, factor = given.number("original_max_position_embeddings"), given.factor()
    fast, slow = given.optional("beta_fast") or 32.0, given.optional("beta_slow") or 1.0
    mscale, over = given.optional("mscale"), given.optional("mscale_all_dim")
    attention = given.optional("attention_factor")
    if attention is None:
        attention = _mscale(factor, mscale) / _mscale(factor, over) if mscale and over else _mscale(factor, 1.0)

    def number_of(rotations: float) -> float:
        """Of the frequency that turns so often in a text of the original length."""
        turns = original / (rotations * 2 * math.pi)
        if turns == 0 or math.isinf(turns):
            raise ArithmeticError(f"a length of {original:g} and {rotations:g} turns")
        return given.dim * math.log(turns) / (2 * math.log(given.base))

    first, last = number_of(fast), number_of(slow)
    if given.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, given.dim - 1)
    ramp = np.clip((np.arange(given.dim // 2) - first) / (last - first or 0.001), 0, 1)
    return given.plain / factor * ramp + given.plain * (1 - ramp), attention


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(given: _Given) -> tuple[_Float64, float]:
    original, attention = given.number("original_max_position_embeddings"), given.optional("attention_factor")
    factor = given.factor()
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return given.plain / given.factors("short_factor"), attention


def _proportional(given: _Given) -> tuple[_Float64, float]:
    """The first of the frequencies, as if there were no others; those behind them do not turn."""
    share, factor = given.optional("partial_rotary_factor") or 1.0, given.optional("factor") or 1.0
    if share > 1:
        raise ValueError(f"RoPE: partial_rotary_factor of proportional scaling is {share:g}; it is 1 at most")
    return np.where(np.arange(given.dim // 2) < int(share * given.dim // 2), given.plain / factor, 0.0), 1.0


#: Kinds of scaling by their names in configurations.
SCALINGS: dict[str, Callable[[_Given], tuple[_Float64, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
