"""`einsum`: any expression whose pairwise contractions are matmuls."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.array.products import as_array, host, reshaped, taking_npu_arrays, turned
from npumatmul.ops.foreign import as_numpy
from npumatmul.ops.matmul import matmul
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.settings import settings
from npumatmul.ops.shapes import npu_kind
from npumatmul.ops.typed import How, Operand, Place, Unpack
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["einsum"]

#: In which order operands are contracted.
Optimize = bool | Literal["greedy", "optimal"] | Sequence[Any]

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@overload
def einsum(  # type: ignore[overload-overlap]
    subscripts: str, x: NpuArray, /, *operands: Operand, out: None = None, optimize: Optimize = "greedy",
    **how: Unpack[How],
) -> NpuArray: ...  # fmt: skip
@overload
def einsum(  # type: ignore[overload-overlap]
    subscripts: str, x: Operand, y: NpuArray, /, *operands: Operand, out: None = None, optimize: Optimize = "greedy",
    **how: Unpack[How],
) -> NpuArray: ...  # fmt: skip
@overload
def einsum(
    subscripts: Operand, /, *operands: Operand | Sequence[SupportsIndex | EllipsisType], out: None = None,
    optimize: Optimize = "greedy", **how: Unpack[How],
) -> NDArray[Any]: ...  # fmt: skip
@overload
def einsum(
    subscripts: Operand, /, *operands: Operand | Sequence[SupportsIndex | EllipsisType], out: Place,
    optimize: Optimize = "greedy", **how: Unpack[How],
) -> Place: ...  # fmt: skip
@as_numpy
@taking_npu_arrays
def einsum(
    subscripts: Operand,
    /,
    *operands: Operand | Sequence[SupportsIndex | EllipsisType],
    out: NDArray[Any] | NpuArray | None = None,
    optimize: Optimize = "greedy",
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: Device | str | None = None,
) -> Any:
    """Sum of products by index notation; see `numpy.einsum`.

    Parameters
    ----------
    subscripts : str
        Such as ``"bij,bjk->bik"``; or numpy's other form, operands and lists of integers in turns.
    *operands : array_like
        Floats or integers as for `matmul`.
    out : ndarray, optional
    optimize : bool, str or path
        In which order operands are contracted, as for `numpy.einsum_path`.
    scheme, precision, device
        As for `matmul`, in every contraction.

    Returns
    -------
    ndarray or scalar
        float32 for floats, int32 for integers; a view where there is one operand and nothing to sum.

    Raises
    ------
    ValueError
        If the notation is wrong, extents do not fit, or an index is summed over within one operand (which is no
        product; sum it first, or allow numpy to: ``config(fallback="numpy")``).
    TypeError
        As `matmul`. The int32 result of one contraction cannot enter another: three integer operands are refused.

    Examples
    --------
    >>> import npumatmul as npu
    >>> a = np.arange(6, dtype=np.int8).reshape(2, 3)
    >>> npu.einsum("ij,kj->ik", a, a)
    array([[ 5, 14],
           [14, 50]], dtype=int32)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    notation, arrays = _as_string(subscripts, operands)
    terms, output = _parsed(notation, arrays)
    if settings().fallback == "numpy" and not _computable(terms, output, arrays):
        options: dict[str, Any] = {} if out is None else {"out": out}
        return np.einsum(f"{','.join(terms)}->{output}", *map(host, arrays), optimize=optimize, **options)
    sizes = _sizes(terms, arrays)
    parts = [_without_repeats(term, array, sizes) for term, array in zip(terms, arrays, strict=True)]
    outlines = [
        np.broadcast_to(np.empty((), array.dtype), array.shape) for array in arrays
    ]  # whose values are not read
    order = np.einsum_path(f"{','.join(terms)}->{output}", *outlines, optimize=optimize or "greedy")[0][1:]
    for positions in order if len(parts) > 1 else ():
        chosen = [parts.pop(position) for position in sorted(positions, reverse=True)][::-1]
        while len(chosen) > 1:  # a path may name more than two at once: they are taken in turn
            rest = "".join(term for term, _ in parts) + "".join(term for term, _ in chosen[2:]) + output
            chosen[:2] = [_contracted(chosen[0], chosen[1], rest, how)]
        parts.append(chosen[0])
    term, result = parts[0]
    lone = [label for label in term if label not in output]
    if lone:
        raise ValueError(_summed_alone(lone[0]))
    result = (
        host(turned(result, [term.index(label) for label in output]))
        if len(arrays) == 1
        else turned(result, [term.index(label) for label in output])
    )
    if out is None:
        return result[()]
    if not isinstance(out, np.ndarray):
        raise TypeError(f"einsum: out has to be an ndarray, not {type(out).__name__}")
    if out.shape != result.shape:
        raise ValueError(f"einsum: out has shape {out.shape}, the result has {result.shape}")
    np.copyto(out, result, casting="same_kind")
    return out


def _as_string(subscripts: Any, operands: tuple[Any, ...]) -> tuple[str, list[NDArray[Any]]]:
    """Bring numpy's form with lists of integers into the form with letters."""
    if isinstance(subscripts, str):
        return subscripts.replace(" ", ""), [as_array(x, "an operand", "einsum") for x in operands]
    everything = [subscripts, *operands]

    def letters(indices: Sequence[int | EllipsisType]) -> str:
        try:
            return "".join("..." if i is Ellipsis else _LETTERS[i] for i in indices)
        except (TypeError, IndexError) as error:
            raise ValueError(f"einsum: {indices!r} is not a list of indices from 0 to {len(_LETTERS) - 1}") from error

    pairs = len(everything) // 2
    notation = ",".join(letters(everything[2 * i + 1]) for i in range(pairs))
    if len(everything) % 2:
        notation += "->" + letters(everything[-1])
    return notation, [as_array(everything[2 * i], "an operand", "einsum") for i in range(pairs)]


def _parsed(notation: str, arrays: list[NDArray[Any]]) -> tuple[list[str], str]:
    """Terms and output with every ellipsis replaced by letters."""
    left, arrow, right = notation.partition("->")
    terms = left.split(",")
    if len(terms) != len(arrays):
        raise ValueError(f"einsum: {notation!r} names {len(terms)} operands, {len(arrays)} were given")
    free = [letter for letter in reversed(_LETTERS) if letter not in notation]
    hidden = 0
    expanded = []
    for term, array in zip(terms, arrays, strict=True):
        named = len(term.replace("...", "", 1))
        count = array.ndim - named if "..." in term else 0
        if count < 0 or (count == 0 and named != array.ndim):
            raise ValueError(f"einsum: {term!r} does not fit an operand with {array.ndim} dimensions")
        hidden = max(hidden, count)
        expanded.append((term, count))
    if hidden > len(free):
        raise ValueError(f"einsum: {notation!r} needs more indices than there are letters")
    letters = "".join(free[:hidden])
    terms = [term.replace("...", letters[hidden - count :]) for term, count in expanded]
    everything = "".join(terms)
    if arrow:
        output = right.replace("...", letters)
    else:
        output = letters + "".join(sorted(x for x in set(everything) if everything.count(x) == 1 and x not in letters))
    for name, text in (*(("operand", term) for term in terms), ("output", output)):
        wrong = [x for x in text if x not in _LETTERS]
        if wrong:
            raise ValueError(f"einsum: {wrong[0]!r} in {notation!r} is not an index; letters are")
        if name == "output" and (len(set(text)) != len(text) or set(text) - set(everything)):
            raise ValueError(f"einsum: the output of {notation!r} repeats an index or names one that no operand has")
    return terms, output


def _sizes(terms: list[str], arrays: list[NDArray[Any]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, array in zip(terms, arrays, strict=True):
        for label, size in zip(term, array.shape, strict=True):
            known = sizes.get(label, 1)
            if 1 not in (known, size) and known != size:
                raise ValueError(f"einsum: index {label!r} has length {known} in one operand and {size} in another")
            sizes[label] = size if known == 1 else known
    return sizes


def _without_repeats(term: str, array: NDArray[Any], sizes: dict[str, int]) -> tuple[str, NDArray[Any]]:
    """Broadcast to the extents of the indices, and take the diagonal where an index stands twice: a view."""
    wanted = tuple(sizes[label] for label in term)
    unique = "".join(dict.fromkeys(term))
    if array.shape == wanted and unique == term:
        return term, array
    array = np.broadcast_to(host(array), wanted)
    return unique, np.einsum(f"{term}->{unique}", array) if unique != term else array


def _computable(terms: list[str], output: str, arrays: list[NDArray[Any]]) -> bool:
    """Whether every index that is summed stands in two operands, and all types can be multiplied."""
    kinds = {npu_kind(array.dtype) for array in arrays}
    summed_alone = any(
        label not in output and sum(label in term for term in terms) == 1 for term in terms for label in term
    )
    if any(isinstance(array, PackedWeight) for array in arrays):
        return True  # what is packed is the NPU's
    return not summed_alone and (kinds == {"float"} or (kinds == {"integer"} and len(terms) <= 2))


def _contracted(
    left: tuple[str, Any], right: tuple[str, Any], needed: str, how: dict[str, Any]
) -> tuple[str, NDArray[Any]]:
    """One contraction as a matmul: stacked over indices that both have and that stay, summed over those that go."""
    if (isinstance(right[1], NpuArray) and not isinstance(left[1], NpuArray)) or isinstance(left[1], PackedWeight):
        left, right = (
            right,
            left,
        )  # arrays need not be stored first on the left, nor weights unpacked on the right
    (x_term, x), (y_term, y) = left, right
    stacked = [label for label in x_term if label in y_term and label in needed]
    summed = [label for label in x_term if label in y_term and label not in needed]
    rows = [label for label in x_term if label not in y_term]
    columns = [label for label in y_term if label not in x_term]
    for label in rows + columns:
        if label not in needed:
            raise ValueError(_summed_alone(label))
    x = turned(x, [x_term.index(label) for label in stacked + rows + summed])
    y = turned(y, [y_term.index(label) for label in stacked + summed + columns])
    s, r, c = len(stacked), len(rows), len(columns)
    shape = x.shape[: s + r] + y.shape[y.ndim - c :]
    k = int(np.prod(x.shape[s + r :], dtype=np.int64))
    x = reshaped(x, *x.shape[:s], int(np.prod(x.shape[s : s + r], dtype=np.int64)), k)
    y = reshaped(y, *y.shape[:s], k, int(np.prod(y.shape[y.ndim - c :], dtype=np.int64)))
    product = matmul(x, y, **how).reshape(shape)
    return "".join(stacked + rows + columns), product


def _summed_alone(label: str) -> str:
    return (
        f"einsum: index {label!r} is summed over within one operand, which is no product; sum over it first, or let "
        "numpy compute the whole: with npu.config(fallback='numpy')"
    )
