"""Operands of other classes: subclasses of ndarray, and what defines numpy's protocols.

As in numpy, a class with ``__array_ufunc__`` (`matmul`, `vecdot`, `matvec`, `vecmat`) or ``__array_function__`` (the
others) decides itself what a product means, so numpy is asked, which asks it. Other classes get results:

=====================================  =================================================================================
`matmul`, `vecdot`, `matvec`, `vecmat`  from ``__array_wrap__`` of `out`, else of the operand with the highest
                                        ``__array_priority__``
`dot`, `inner`                          of the subclass of ndarray with the higher ``__array_priority__``
`vdot`, `outer`, `tensordot`, `einsum`  as ndarrays or scalars
=====================================  =================================================================================

Where numpy would lose a mask without a word, there is an error.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.shapes import operand
from npumatmul.quant.given import way_to_ndarray

__all__ = [
    "OWN",
    "as_numpy",
    "ask_others",
    "check_kept",
    "check_masks",
    "check_values",
    "declined",
    "handed_out",
    "holds_masks",
    "of_others",
    "overriding",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Types of operands with which there is nothing to look at.
OWN = frozenset({np.ndarray, NpuArray, PackedWeight, NoneType, bool, int, float, complex, list, str})
_PLAIN = OWN - {PackedWeight}

_UFUNCS = frozenset({"matmul", "vecdot", "matvec", "vecmat"})
_SUBCLASS_OF_SUMS = frozenset({"dot", "inner"})
#: Functions that take packed weights as they are; the others read their values back.
_TAKES_PACKED = frozenset({"matmul", "dot", "tensordot", "einsum", "vecmat"})
#: What numpy's functions do not have.
_OURS = ("scheme", "precision", "epilogue", "bias", "device")
#: Before, plain ndarrays have no say in whose ``__array_wrap__`` is called, and none is told about scalars.
_NUMPY_2 = int(np.__version__.partition(".")[0]) >= 2


def overriding(protocol: str, given: Sequence[Any]) -> Any:
    """The first object whose class defines the protocol and is neither ndarray's nor ours, or None."""
    for x in given:
        if type(x) not in OWN and not isinstance(x, NpuArray | PackedWeight):
            theirs = getattr(type(x), protocol, np.ndarray)
            if theirs is not np.ndarray and theirs is not getattr(np.ndarray, protocol):
                return x
    return None


def as_numpy(function: _Function) -> _Function:
    """Make a relative of `matmul` that knows ndarrays treat other classes as numpy's function of the same name does."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        if _PLAIN.issuperset(map(type, args)) and _PLAIN.issuperset(map(type, options.values())):
            return function(*args, **options)
        return of_others(function, args, options)

    return cast("_Function", wrapped)


def of_others(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call a product with operands of any class.

    Parameters
    ----------
    function : callable
        Named as numpy's; it gets operands that are ndarrays or ours.
    args, options
        As they were given.

    Raises
    ------
    TypeError
        If a class decides what the product is and knows nothing of an option of ours, or a mask would be lost.
    """
    name = function.__name__
    protocol = "__array_ufunc__" if name in _UFUNCS else "__array_function__"
    everything = [
        each for given in (*args, *options.values()) for each in (given if isinstance(given, tuple) else (given,))
    ]
    decides = overriding(protocol, everything)
    if decides is not None:
        return _left_to_numpy(name, protocol, decides, args, options)
    bound = inspect.signature(function).bind(*args, **options)
    given = bound.arguments
    out = given.get("out")
    place = out
    if isinstance(out, tuple) and name in _UFUNCS:
        if len(out) != 1:
            raise ValueError(f"{name}: out is a tuple of {len(out)}; there is one result")
        (place,) = out
    if name == "einsum":
        operands = [x for x in (given["subscripts"], *given.get("operands", ())) if not isinstance(x, str | list)]
        given["subscripts"] = _plain(given["subscripts"], name)
        given["operands"] = tuple(_plain(x, name) for x in given.get("operands", ()))
    else:
        names = list(given)[:2]
        operands = [given[each] for each in names]
        for each in names:
            given[each] = _plain(given[each], name, each if each in ("a", "b") else "an operand")
    _settle_device(operands, given)
    check_masks(name, operands, place)
    if isinstance(place, np.ndarray):
        given["out"] = place.view(np.ndarray)
    elif place is not None and not isinstance(place, NpuArray):
        raise TypeError(f"{name}: out has to be an ndarray, not {type(place).__name__}")
    result = function(*bound.args, **bound.kwargs)
    if place is not None and not isinstance(place, np.ndarray):
        return result
    if name in _UFUNCS:
        made = handed_out(getattr(np, name, None), result, operands, place)
    elif place is not None:
        return place
    else:
        made = _of_subclass(result, operands) if name in _SUBCLASS_OF_SUMS else result
    check_kept(name, operands, made)
    return made


def _left_to_numpy(name: str, protocol: str, decides: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    theirs = getattr(np, name, None)
    given = {each: value for each, value in options.items() if value is not None}
    ours = [each for each in _OURS if each in given]
    if ours or theirs is None:
        unknown = " and ".join(ours) or f"npumatmul.{name}, since this numpy has no function of that name"
        raise TypeError(_unknown(name, protocol, decides, unknown))
    own = next((x for x in (*args, *given.values()) if isinstance(x, NpuArray | PackedWeight)), None)
    try:
        return theirs(*args, **given)
    except ValueError:
        raise
    except Exception as error:
        if own is None or _comes_of_us(error):
            raise
        raise TypeError(_unknown(name, protocol, decides, type(own).__name__)) from error


def _comes_of_us(error: Exception) -> bool:
    """Whether an error was raised in this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("npumatmul.")


def ask_others(protocol: str, given: Sequence[Any], *call: Any, **options: Any) -> Any:
    """What the classes that decide make of a call: the first answer, or NotImplemented.

    Parameters
    ----------
    protocol : str
        ``__array_ufunc__`` or ``__array_function__``.
    given : sequence
        Everything that was given, among it an object of a class that decides.
    *call, **options
        What the protocol is called with.
    """
    answer: Any = NotImplemented
    for x in given:
        if answer is NotImplemented and overriding(protocol, (x,)) is not None:
            theirs = getattr(x, protocol)
            answer = NotImplemented if theirs is None else theirs(*call, **options)
    return answer


def declined(name: str, protocol: str, given: Sequence[Any]) -> TypeError:
    """The error for a product that no class among the operands knows."""
    own = next(x for x in given if isinstance(x, NpuArray | PackedWeight))
    return TypeError(_unknown(name, protocol, overriding(protocol, given), type(own).__name__))


def _unknown(name: str, protocol: str, decides: Any, what: str) -> str:
    kind = f"{type(decides).__module__}.{type(decides).__qualname__}"
    return (
        f"{name}: {kind} decides by its {protocol} what a product is, and it knows nothing of {what}; give "
        f"{way_to_ndarray(decides) or 'the ndarray that it holds'}"
    )


def _plain(x: Any, function: str, called: str | None = None) -> Any:
    """An operand as an ndarray or one of ours; where it has a name, also of what numpy would have to convert."""
    if isinstance(x, PackedWeight):
        return x if function in _TAKES_PACKED else x.unpack()
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    return x if type(x) in OWN or called is None else operand(x, called, function)


def _settle_device(operands: Sequence[Any], given: dict[str, Any]) -> None:
    """Have values of a packed weight that are read back multiplied where it is."""
    devices = {id(x.device): x.device for x in operands if isinstance(x, PackedWeight)}
    if len(devices) == 1 and given.get("device") is None:
        (given["device"],) = devices.values()


# ---- results -----------------------------------------------------------------------------------------------------


def handed_out(ufunc: Any, result: Any, operands: Sequence[Any], out: Any = None) -> Any:
    """A ufunc's result, or `out` with the result in it, as numpy hands it out.

    Parameters
    ----------
    ufunc : numpy.ufunc or None
    result : ndarray, scalar or NpuArray
    operands : sequence
        As they were given.
    out : ndarray, optional
    """
    if out is not None:
        return out if type(out) is np.ndarray else _wrapped(out, out, (ufunc, (*operands, out), 0))
    if isinstance(result, NpuArray):
        return result
    array = np.asarray(result)
    wraps = _wrapping(operands)
    if wraps is None or (not isinstance(wraps, np.ndarray) and array.dtype.kind == "V"):
        return array[()]  # types that numpy itself has not are nothing to other libraries
    return _wrapped(wraps, array, (ufunc, tuple(operands), 0), array.ndim == 0)


def _wrapping(operands: Sequence[Any]) -> Any:
    """The operand whose ``__array_wrap__`` makes the result; None where it is an ndarray."""
    least = 0.0 if _NUMPY_2 and any(type(x) is np.ndarray for x in operands) else -np.inf
    found = [x for x in operands if type(x) not in OWN and not isinstance(x, np.generic)]
    found = [x for x in found if hasattr(x, "__array_wrap__") and _priority(x) >= least]
    return max(found, key=_priority, default=None)


def _priority(x: Any) -> float:
    return float(getattr(x, "__array_priority__", 0.0))


def _wrapped(x: Any, array: NDArray[Any], context: tuple[Any, tuple[Any, ...], int], scalar: bool = False) -> Any:
    wrap, mistakes = x.__array_wrap__, []
    calls = ((array, context, scalar), (array, context), (array,))  # the last as older numpy, and PyTorch expects still
    for given in calls if _NUMPY_2 else calls[1:]:
        try:
            return wrap(*given)
        except TypeError as error:
            mistakes.append(error)
        except ValueError as error:
            if not isinstance(x, np.ma.MaskedArray):
                raise
            raise ValueError(
                f"{context[0].__name__}: masked arrays take operands of other shapes in no product, as in numpy "
                f"({error}); write x.filled(0), or use dot"
            ) from error
    raise mistakes[0]


def _of_subclass(result: Any, operands: Sequence[Any]) -> Any:
    """Sums of products as an array of the operand's class that numpy's `dot` would make."""
    x, y = operands
    if isinstance(result, NpuArray):
        return result
    first, second = (_priority(each) if isinstance(each, np.ndarray) else 0.0 for each in (x, y))
    if first == second and np.ndim(x) == 0:
        x, y = y, x  # a scalar multiplies the other one
        first, second = second, first
    chosen = y if second > first else x
    array = np.asarray(result)
    if not isinstance(chosen, np.ndarray) or type(chosen) is np.ndarray:
        return result
    made = np.empty_like(chosen, array.dtype, "C", shape=array.shape)
    values = made.view(np.ndarray)
    values[...] = array.reshape(values.shape)  # a matrix has 2 dimensions always
    return made if made.ndim else values[()]


# ---- masks -------------------------------------------------------------------------------------------------------


def check_values(function: str, operands: Sequence[Any]) -> None:
    """Raise where a class decides what products are, which a function that numpy has not cannot ask."""
    decides = overriding("__array_ufunc__", operands)
    if decides is not None:
        raise TypeError(_unknown(function, "__array_ufunc__", decides, f"npumatmul.{function}"))


def holds_masks(operands: Sequence[Any]) -> bool:
    """Whether one of the operands has masked elements."""
    return any(isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x) for x in operands)


def check_masks(name: str, operands: Sequence[Any], out: Any) -> None:
    """Raise where it is clear from the beginning that a mask would be lost."""
    if holds_masks(operands):
        gives_arrays = name not in _UFUNCS and name not in _SUBCLASS_OF_SUMS
        elsewhere = out is not None and not (isinstance(out, np.ma.MaskedArray) and name in _UFUNCS)
        if gives_arrays or elsewhere or any(isinstance(x, NpuArray) for x in operands):
            raise TypeError(_lost(name))


def check_kept(name: str, operands: Sequence[Any], result: Any) -> None:
    """Raise where a mask was lost."""
    if holds_masks(operands) and result is not np.ma.masked and np.ma.getmask(result) is np.ma.nomask:
        raise TypeError(_lost(name))


def _lost(name: str) -> str:
    return (
        f"{name}: the mask of an operand would be lost in this product, as numpy loses it; write x.filled(0) for the "
        "product without masked elements (numpy.ma.dot, on the CPU, keeps masks)"
    )
