"""`PackedWeight`: a right operand that stays on the NPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.host.activation import Activation
from npumatmul.ops.operators import operators
from npumatmul.ops.packed.unpack import stored_floats, stored_integers
from npumatmul.ops.settings import PROCESSORS, Processor
from npumatmul.planning.product import WeightPlan
from npumatmul.quant.params import InputTransform, QuantParams
from npumatmul.quant.routes import Route
from npumatmul.quant.transforms import kernel_of
from npumatmul.running.stored import StoredWeight

if TYPE_CHECKING:
    from npumatmul.ops.array.array import NpuArray

__all__ = ["PackedWeight"]


class PackedWeight:
    """A right operand of `matmul` that stays on the NPU: packed and uploaded once, used again and again.

    Made by `pack`. Immutable; any thread may use it. Its memory is given back by `close`, at the end of a ``with``
    block, or when it is dropped.

    Attributes
    ----------
    shape : tuple of int
        (K, N).
    scheme : Scheme
    route : Route
        How the device computes the scheme; ``route.note`` says what there is to know about it.
    device : Device
    plan : WeightPlan or None
        How it is cut into tiles; None for a weight without elements.
    zero_point : int
        What the stored values lack: 128 for uint8 weights, which are stored as int8, else 0.
    column_sums : ndarray of int32, shape (N,), or None
        Sums over K of integer weights (modulo 2**32); without them no uint8 activations are taken.
    params : QuantParams or None
        Scales and zero points of a quantized weight (N, K).
    input_transform : InputTransform or None
        What `matmul` does to activations before they meet this weight.
    activations : mapping of numpy.dtype to Activation
        Those of the route; where the input transform is done by the executor, they say so.
    products : dict
        What was prepared for left operands that it met, by what `matmul` was given: it is found again there.
    processor : str or None
        Who multiplies it, ``"npu"``, ``"cpu"`` or ``"auto"``; None: as `npumatmul.config` says. See `on`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        route: Route,
        device: Device,
        plan: WeightPlan | None,
        stored: StoredWeight | None,
        zero_point: int = 0,
        column_sums: NDArray[np.int32] | None = None,
        params: QuantParams | None = None,
        input_transform: InputTransform | None = None,
        processor: Processor | None = None,
    ) -> None:
        self.shape = shape
        self.scheme = route.scheme
        self.route = route
        self.device = device
        self.plan = plan
        self.zero_point = zero_point
        self.column_sums = column_sums
        self.params = params
        self.input_transform = input_transform
        self.activations = _fused(route, input_transform)
        self.products: dict[Hashable, Any] = {}
        placed = stored is not None and stored.where.decides
        self.processor: Processor | None = processor or ("auto" if placed else None)
        self._stored = stored
        if stored is not None:
            stored.scheme = route.scheme.name

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"PackedWeight(shape={self.shape}, scheme={self.scheme.name!r}, device={self.device.name!r}{state})"

    def __enter__(self) -> PackedWeight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on(self, processor: Processor | None) -> PackedWeight:
        """The same weight, multiplied by one processor whatever `npumatmul.config` says.

        Parameters
        ----------
        processor : {"npu", "cpu", "auto", None}
            As for `npumatmul.config`; None: as the scope says.

        Returns
        -------
        PackedWeight
            With the same memory: closing one closes both, and it is given back when both are dropped.

        Raises
        ------
        ValueError
            If there is no such processor.

        Examples
        --------
        >>> import npumatmul as npu
        >>> x, w = np.ones((1, 64), np.float32), npu.pack(np.eye(64, dtype=np.float32), "w8a8")
        >>> bool((npu.matmul(x, w.on("cpu")) == npu.matmul(x, w)).all())
        True
        """
        if processor is not None and processor not in PROCESSORS:
            raise ValueError(f"on: processor is {processor!r}; it can be {', '.join(map(repr, PROCESSORS))} or None")
        if processor == self.processor:
            return self
        return PackedWeight(
            self.shape, self.route, self.device, self.plan, self._stored, self.zero_point, self.column_sums,
            self.params, self.input_transform, processor,
        )  # fmt: skip

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def size(self) -> int:
        """Number of values, K * N."""
        return self.shape[0] * self.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `unpack` gives: what they are stored as, `scheme` says."""
        if not self.scheme.integers:
            return np.dtype(np.float32)
        return np.dtype(np.uint8) if self.zero_point else self.scheme.weights[0]

    @property
    def T(self) -> NDArray[Any]:  # noqa: N802 - numpy's name
        """The values as `unpack` gives them, transposed: an ndarray, read back on every use.

        Weights are laid out for one direction; to multiply by the transpose again and again, pack it.
        """
        transposed: NDArray[Any] = self.unpack().T
        return transposed

    def __len__(self) -> int:
        """K, as of an array of its shape."""
        return self.shape[0]

    def __bool__(self) -> bool:
        return True

    __iter__ = None

    @property
    def memory(self) -> str:
        """``"npu"``, or ``"host"``: it stands in ordinary memory, for products that the CPU computes."""
        return "host" if self._stored is not None and self._stored.in_host_memory else "npu"

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory, or of ordinary memory where it is there."""
        return 0 if self._stored is None else self._stored.nbytes

    @property
    def domain(self) -> int:
        """IOMMU domain that it is in; where there is room is decided when it is packed (`Device.memory_stats`)."""
        return 0 if self._stored is None else self._stored.domain

    @property
    def stored(self) -> StoredWeight | None:
        """What is in device memory; None for a weight without elements."""
        return self._stored

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self.device.closed or (self._stored is not None and self._stored.closed)

    def close(self) -> None:
        """Give the NPU memory back. Closing twice is allowed."""
        if self._stored is not None:
            self._stored.close()

    def unpack(self, *, transformed: bool = False) -> NDArray[Any]:
        """The values that are stored, as a plain array of shape (K, N).

        Parameters
        ----------
        transformed : bool
            Of a weight with an `input_transform`: the values as they are stored, for activations that were transformed.
            By default the transform is undone, in float32.

        Returns
        -------
        ndarray
            int8, uint8 or int4 where the scheme takes integers as they are. Else float32: the stored float16 exactly,
            or ``(q - zero_point) * scale`` of quantized values.

        Raises
        ------
        ClosedError
            If weight or device are closed.

        Examples
        --------
        >>> import npumatmul as npu
        >>> npu.pack(np.array([[0.1, 100], [-0.2, 50]], np.float32), "w8a8").unpack().round(3)
        array([[  0.101, 100.   ],
               [ -0.2  ,  50.394]], dtype=float32)
        """
        integers, dtype = self.scheme.integers, self.dtype
        if self._stored is None:
            self.device.check_usable()
            return np.zeros(self.shape, dtype)
        if not integers:
            values = stored_floats(self._stored)
            if self.input_transform is None or transformed:
                return values
            return np.ascontiguousarray(self.input_transform.inverse_weight(values.T).T)
        codes = stored_integers(self._stored)
        if self.zero_point:  # uint8 less 128
            unsigned: NDArray[Any] = np.bitwise_xor(codes.view(np.uint8), np.uint8(self.zero_point))
            return unsigned
        return codes.astype(dtype, copy=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a file of its own, for `load_packed`; see `save_packed`, which writes several into one."""
        operators.save_packed(self, path)

    def __setattr__(self, name: str, value: object) -> None:
        if "_stored" in self.__dict__:  # the last one that is set
            raise AttributeError(f"a PackedWeight is immutable: {name!r} cannot be set; pack another one")
        if isinstance(value, np.ndarray):
            frozen = value.view()
            frozen.flags.writeable = False
            value = frozen
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a PackedWeight is immutable: {name!r} cannot be deleted")

    @overload
    def __rmatmul__(self, a: NpuArray) -> NpuArray: ...  # type: ignore[overload-overlap]
    @overload
    def __rmatmul__(self, a: ArrayLike) -> NDArray[Any]: ...
    def __rmatmul__(self, a: ArrayLike) -> Any:
        """``a @ packed``."""
        return operators.matmul(a, self)

    @overload
    def __matmul__(self, b: NpuArray) -> NpuArray: ...  # type: ignore[overload-overlap]
    @overload
    def __matmul__(self, b: ArrayLike | PackedWeight) -> NDArray[Any]: ...
    def __matmul__(self, b: ArrayLike | PackedWeight) -> Any:
        """``packed @ b``: `unpack` as left operand, of shape (K, N) with `b` of (..., N, P).

        The values are read back on every call and multiplied as a plain array of their dtype would be; to use a weight
        from this side again and again, pack its transpose: ``(b.T @ pack(w.T)).T``.
        """
        return operators.matmul(self, b)

    # ---- numpy's protocols -----------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Products run on the NPU; other ufuncs are refused."""
        if ufunc is np.matmul and method == "__call__" and type(inputs[0]) is np.ndarray and not options:
            return operators.matmul(*inputs)
        return operators.call_ufunc(ufunc, method, inputs, options)

    def __array_function__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Products run on the NPU, `numpy.shape`, `ndim` and `size` answer; other functions are refused."""
        return operators.call_function(function, args, options)

    if not TYPE_CHECKING:  # or else checkers take it for something that becomes an ndarray

        def __array__(self, dtype: object = None, copy: object = None) -> NDArray[Any]:
            """Nobody reads weights back from NPU memory by accident."""
            raise TypeError(
                f"{self!r} is in NPU memory and becomes no ndarray by itself: p.unpack() reads its values back; for a "
                "product write npumatmul.matmul(x, p) with x an ndarray, such as df.to_numpy() of a DataFrame"
            )


def _fused(route: Route, transform: InputTransform | None) -> Mapping[np.dtype[Any], Activation]:
    """The route's activations, those of float32 rows with the transform if it is one that the executor can do."""
    kernel = None if transform is None else kernel_of(transform)
    if kernel is None:
        return route.activations
    return {
        dtype: replace(each, transform=kernel) if each.read_as == np.float32 else each
        for dtype, each in route.activations.items()
    }
