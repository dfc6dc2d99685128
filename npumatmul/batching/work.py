"""Whatever computes rows, called in one way: with rows behind one another on a leading axis."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npumatmul.ops import Matmul, PackedWeight, matmul

__all__ = ["Rows", "Work", "check_count", "part_of"]

Rows = Any
"""What is computed at once: an array with a leading axis, such arrays by name, or a list."""

_ONNX = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """How rows are computed, and what is known of them before there is one.

    Attributes
    ----------
    call : callable
        From rows to results: an array with a leading axis, or a tuple or mapping of such.
    name : str
        What messages call it.
    shape : tuple of int or None
        Of a row; None: of the first one.
    dtype : numpy.dtype or None
        The same.
    narrow : bool
        Whether rows of float64 become float32.
    finite : bool
        Whether floats have to be finite, since they may be quantized.
    place : ndarray or None
        Where all rows have to stand, of which as many are computed as it has.
    device : object or None
        Where it computes, if that is known.
    cores : tuple of int or None
        The NPU cores that it is bound to.
    shared : bool
        Whether several threads may call it at once.
    """

    call: Callable[[Rows], Any]
    name: str
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    narrow: bool = False
    finite: bool = True
    place: Any = None
    device: Any = None
    cores: tuple[int, ...] | None = None
    shared: bool = True

    @classmethod
    def of(cls, given: Any, called: str) -> Work:
        """How something computes rows.

        Raises
        ------
        TypeError
            If it cannot be called with rows.
        """
        name = type(given).__name__
        if isinstance(given, PackedWeight):
            return _of_weight(given)
        if isinstance(given, Matmul):
            return _of_matmul(given, called)
        if callable(getattr(given, "get_inputs", None)) and callable(getattr(given, "run", None)):
            return _of_session(given, name)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(given, torch.nn.Module):
            return _of_torch(given, name, torch)
        features = getattr(given, "n_features_in_", None)
        shape = (int(features),) if features is not None else None
        if callable(given):
            layers = sys.modules.get("npumatmul.nn.linear")
            narrow = layers is not None and isinstance(given, layers.Module)
            if layers is not None and isinstance(given, layers.Linear | layers.LinearGroup):
                shape = (given.product_shape[0],)
            return cls(given, getattr(given, "__name__", name), shape, narrow=narrow)
        if callable(getattr(given, "predict", None)):
            return cls(given.predict, f"{name}.predict", shape)
        raise TypeError(
            f"{called}: {name} computes no rows; give a PackedWeight, a Matmul, a module of npumatmul.nn or PyTorch, "
            "an InferenceSession, an estimator with predict, or a function of arrays with a leading axis"
        )

    def with_call(self, call: Callable[[Rows], Any]) -> Work:
        """The same rows, computed otherwise."""
        return replace(self, call=call)


def _of_weight(weight: PackedWeight) -> Work:
    scheme = weight.scheme
    dtype = weight.dtype if scheme.integers else np.dtype(np.float32)
    name = f"PackedWeight of shape {weight.shape}"
    finite = not scheme.takes_any_value

    def call(rows: Rows) -> Any:
        return matmul(rows, weight)

    cores = None if weight.stored is None else weight.stored.where.cores
    return Work(call, name, weight.shape[:1], dtype, finite=finite, device=weight.device, cores=cores)


def _of_matmul(product: Matmul[Any], called: str) -> Work:
    """Its left operand becomes memory of rows; all of them are multiplied, however many were added."""
    shape, dtype = product._left_shape, product._types[0]
    if len(shape) != 2:
        raise ValueError(f"{called}: the left operand of the Matmul has shape {shape}; rows are those of a matrix")
    place = np.zeros(shape, dtype)
    product.reset_operands(a=place)

    def call(_: Rows) -> Any:
        return product.execute()

    finite = not product.scheme.takes_any_value
    return Work(call, repr(product), shape[1:], dtype, finite=finite, place=place, device=product.device, shared=False)


def _of_session(session: Any, name: str) -> Work:
    """A session as ONNX Runtime has them: rows are those of its input, or of its inputs by their names."""
    inputs = session.get_inputs()
    if len(inputs) != 1:

        def call_with_several(rows: Rows) -> Any:
            return _single(tuple(session.run(None, rows)))

        return Work(call_with_several, name)
    (only,) = inputs

    def call(rows: Rows) -> Any:
        return _single(tuple(session.run(None, {only.name: rows})))

    extents = tuple(only.shape[1:])
    known = bool(only.shape) and all(isinstance(each, int) for each in extents)
    dtype = _ONNX.get(only.type)
    return Work(call, name, extents if known else None, None if dtype is None else np.dtype(dtype))


def _of_torch(module: Any, name: str, torch: Any) -> Work:
    """A module of PyTorch: it is given tensors, and gives arrays as it is given them here, without gradients."""

    def tensor(rows: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(rows))

    def array(given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            return given.detach().numpy()
        if isinstance(given, Mapping):
            return {key: array(each) for key, each in given.items() if isinstance(each, torch.Tensor)}
        return tuple(array(each) for each in given) if isinstance(given, tuple) else given

    def call(rows: Rows) -> Any:
        with torch.no_grad():
            if isinstance(rows, Mapping):
                return array(module(**{key: tensor(each) for key, each in rows.items()}))
            return array(module(tensor(rows)))

    features = getattr(module, "in_features", None)
    return Work(call, name, (features,) if isinstance(features, int) else None, narrow=True)


def _single(outputs: tuple[Any, ...]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


def part_of(result: Any, index: int) -> Any:
    """What belongs to one row: of each output, where there are several."""
    if isinstance(result, Mapping):
        return {key: part_of(each, index) for key, each in result.items()}
    if isinstance(result, tuple):
        return tuple(part_of(each, index) for each in result)
    return result[index]


def check_count(result: Any, count: int, name: str) -> None:
    """Raise `ValueError` unless there is a result for each row."""
    if isinstance(result, Mapping | tuple):
        for each in result.values() if isinstance(result, Mapping) else result:
            check_count(each, count, name)
        return
    try:
        found = len(result)
    except TypeError:
        found = None
    if found != count:
        given = type(result).__name__ if found is None else f"{found} results"
        raise ValueError(f"{name} gave {given} for {count} rows; it has to give one for each, on a leading axis")
