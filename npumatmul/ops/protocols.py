"""What numpy's functions do with an `NpuArray`: products run on the NPU, everything else on the CPU.

With a `PackedWeight` they multiply, too; there is nothing else that they do with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npumatmul.ops import family
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.blocks import multiply_blocks
from npumatmul.ops.einsum import einsum
from npumatmul.ops.foreign import ask_others, declined, overriding
from npumatmul.ops.matmul import matmul

__all__ = ["call_function", "call_ufunc"]

#: Our function for each of numpy's, and the options that both have.
_PRODUCTS: dict[Any, tuple[Callable[..., Any], frozenset[str]]] = {}


def _register(where: Any, name: str, ours: Callable[..., Any], *options: str) -> None:
    theirs = getattr(where, name, None)  # vecdot, matvec, vecmat and numpy.linalg's are of numpy 2
    if theirs is not None:
        _PRODUCTS[theirs] = (ours, frozenset(options))


_register(np, "matmul", matmul, "out", "dtype")
_register(np, "vecdot", family.vecdot, "out", "axis")
_register(np, "matvec", family.matvec, "out")
_register(np, "vecmat", family.vecmat, "out")
_register(np, "dot", family.dot, "a", "b", "out")
_register(np, "vdot", family.vdot)
_register(np, "inner", family.inner)
_register(np, "outer", family.outer, "a", "b", "out")
_register(np, "tensordot", family.tensordot, "a", "b", "axes")
_register(np, "einsum", einsum, "out", "optimize")
_register(np.linalg, "matmul", matmul)
_register(np.linalg, "vecdot", family.vecdot, "axis")
_register(np.linalg, "outer", family.outer)
_register(np.linalg, "tensordot", family.tensordot, "axes")


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``__array_ufunc__`` of NpuArray and PackedWeight."""
    if method == "__call__" and ufunc in _PRODUCTS:
        everyone = (*inputs, *options.get("out", ()))
        if overriding("__array_ufunc__", everyone) is not None:  # that class knows what it means
            answer = ask_others("__array_ufunc__", everyone, ufunc, method, *inputs, **options)
            if answer is NotImplemented and ufunc is np.matmul and not options:
                answer = multiply_blocks(*inputs)
            if answer is NotImplemented:
                raise declined(ufunc.__name__, "__array_ufunc__", everyone)
            return answer
        return _product(ufunc, ufunc.__name__, inputs, _without_usual_axes(inputs, options))
    if _holds_arrays(inputs) or _holds_arrays(options):
        return _on_cpu(getattr(ufunc, method), inputs, options)
    raise TypeError(_advice(ufunc.__name__))


def call_function(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """``__array_function__`` of NpuArray and PackedWeight."""
    if function in _PRODUCTS and not (function is np.einsum and len(args) == 2):  # of one operand: no product
        everyone = (*args, *options.values())
        if overriding("__array_function__", everyone) is not None:
            types = {type(x) for x in everyone if hasattr(type(x), "__array_function__")}
            answer = ask_others("__array_function__", everyone, function, types, args, options)
            if answer is NotImplemented:
                raise declined(function.__name__, "__array_function__", everyone)
            return answer
        return _product(function, function.__name__, args, options)
    if function in _QUESTIONS and len(args) == 1 and not options:
        return getattr(args[0], function.__name__)
    if _holds_arrays(args) or _holds_arrays(options):
        return _on_cpu(function, args, options)
    raise TypeError(_advice(function.__name__))


#: What is asked of arrays and weights without reading them.
_QUESTIONS = frozenset({np.shape, np.ndim, np.size})


def _advice(name: str) -> str:
    return (
        f"numpy.{name}: a PackedWeight is an operand of products and has its values in NPU memory; give p.unpack(), "
        "which reads them back"
    )


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_arrays, value))
    if isinstance(value, dict):
        return any(map(_holds_arrays, value.values()))
    return isinstance(value, NpuArray)


def _without_usual_axes(inputs: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What ``a @= b`` says: that matrices are in the last axes, as they are anyhow."""
    if "axes" not in options:
        return options
    ranks = [int(getattr(each, "ndim", -1)) for each in (*inputs, *options.get("out", ()))]
    if options["axes"] == [tuple(range(-min(rank, 2), 0)) for rank in ranks]:
        return {name: value for name, value in options.items() if name != "axes"}
    return options


def _product(theirs: Any, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    ours, known = _PRODUCTS[theirs]
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(
            f"numpy.{name}: option {unknown[0]!r} is not there for products on the NPU"
            f"{' (there are ' + ', '.join(sorted(known)) + ')' if known else ''}; use ndarrays: x.numpy(), p.unpack()"
        )
    return ours(*args, **options)


def _on_cpu(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    """Call with ndarrays that share the memory; places for results are given back as they came."""
    seen: list[tuple[NpuArray, Any]] = []
    result = function(*_as_ndarrays(args, seen), **_as_ndarrays(options, seen))
    return next((array for array, view in seen if view is result), result)


def _as_ndarrays(value: Any, seen: list[tuple[NpuArray, Any]]) -> Any:
    """The value with every NpuArray in it, also in sequences and dicts, as a writable ndarray."""
    if isinstance(value, NpuArray):
        view = value.numpy()
        seen.append((value, view))
        return view
    if type(value) in (list, tuple):
        return type(value)(_as_ndarrays(each, seen) for each in value)
    if type(value) is dict:
        return {key: _as_ndarrays(each, seen) for key, each in value.items()}
    return value
