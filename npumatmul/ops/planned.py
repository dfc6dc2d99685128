"""`Matmul`: a product that is planned once and executed many times. `matmul` is this, used once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Generic, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.chips.types import ElementType
from npumatmul.device.device import Device
from npumatmul.errors import BusyError, ClosedError
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.array.products import device_of, host
from npumatmul.ops.background import MatmulFuture, Result, submit
from npumatmul.ops.execution import Execution
from npumatmul.ops.finish import Finish
from npumatmul.ops.foreign import check_values
from npumatmul.ops.options import MatmulOptions
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.product import Product
from npumatmul.ops.results import fits
from npumatmul.ops.shapes import Shapes, npu_kind, operand, refusal
from npumatmul.ops.typed import HowMatmul, Into, Operand, Place, Unpack
from npumatmul.ops.weights import Hold, Weights, check_device, chosen_scheme, packed_scheme
from npumatmul.planning.choices import WeightShape
from npumatmul.planning.product import MatmulPlan, plan_matmul
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme
from npumatmul.running.autotune import Tuning, autotune

__all__ = ["Matmul"]


class Matmul(Generic[Result]):
    """A product of matrices on the NPU that is planned once and executed many times.

    The right operand is packed and uploaded by `plan`, or by the first `execute`, and stays on the NPU until
    `reset_operands` or `close`. The left one is referenced, not copied, and read by every `execute`: what stands in it
    then is multiplied.

    Parameters
    ----------
    a : array_like, shape (..., M, K) or (K,)
        A `PackedWeight` is unpacked here.
    b : array_like, shape (..., K, N) or (K,), or PackedWeight of shape (K, N)
        A `PackedWeight` stays the caller's: `close` does not close it.
    dtype : data-type, optional
    scheme : Scheme or str, optional
    precision : str, optional
    epilogue : Epilogue, optional
    bias : array_like, optional
    device : Device or str, optional
        These, and the operands, as for `matmul`.
    options : MatmulOptions or dict, optional
        How the product is cut, and where its phases are logged.

    Attributes
    ----------
    shape : tuple of int
        Of the result.
    dtype : numpy.dtype
        Of the result.
    scheme : Scheme
        How the operands are represented.
    device : Device

    Raises
    ------
    TypeError, ValueError
        As `matmul`; if there is no such option, or `b` is packed already and options say how to cut it.

    Notes
    -----
    Any thread may use it. Each phase (planning, execution, resetting of operands, closing) is logged at level INFO with
    shapes, bytes, seconds and GOPS. Times are those of the host's clock; on a simulated device they say nothing about
    a chip, and the log calls them a simulation.

    Examples
    --------
    >>> import npumatmul as npu
    >>> a, b = np.ones((2, 64), np.float32), np.eye(64, dtype=np.float32)
    >>> with npu.Matmul(a, b) as product:
    ...     plan = product.plan()
    ...     first = product.execute()
    ...     a[:] = 3  # the same array, other values
    ...     second = product.execute()
    >>> plan.runs, first[0, 0], second[0, 0]
    (1, np.float32(1.0), np.float32(3.0))
    """

    @overload
    def __init__(
        self: Matmul[NpuArray], a: NpuArray, b: Operand, /, *, options: MatmulOptions | Mapping[str, Any] | None = None,
        **how: Unpack[HowMatmul],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Matmul[NpuArray], a: Operand, b: NpuArray, /, *, options: MatmulOptions | Mapping[str, Any] | None = None,
        **how: Unpack[HowMatmul],
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: Matmul[NDArray[Any]], a: Operand, b: Operand, /, *,
        options: MatmulOptions | Mapping[str, Any] | None = None, **how: Unpack[HowMatmul],
    ) -> None: ...  # fmt: skip
    def __init__(
        self,
        a: Operand,
        b: Operand,
        /,
        *,
        dtype: DTypeLike | None = None,
        scheme: Scheme | SchemeName | None = None,
        precision: Precision | None = None,
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        options: MatmulOptions | Mapping[str, Any] | None = None,
        device: Device | str | None = None,
    ) -> None:
        check_values("Matmul", (a, b))
        left, right = _left(a), _right(b)
        self._shapes = Shapes.of(left.shape, right.shape)
        self._options = MatmulOptions.of(options)
        if isinstance(right, PackedWeight):
            self._options.check_uncut(right)
            check_device(right, device)
            self.device = right.device
            self.scheme = packed_scheme(right, left.dtype, scheme, precision)
            computed = right.scheme.result
        else:
            kinds = npu_kind(left.dtype), npu_kind(right.dtype)
            if None in kinds or kinds[0] != kinds[1]:
                raise TypeError(refusal(left.dtype, right.dtype))
            self.scheme = chosen_scheme(left.dtype, right.dtype, scheme, precision)
            self.device = device_of([a, b], device)
            self._options.check_chip(self.device.chip)
            computed = self.scheme.result
        self.shape = self._shapes.result
        finish = Finish.of(computed, dtype, epilogue, bias, self._shapes)
        self.dtype = finish.dtype
        self._computed, self._dtype = computed, dtype
        self._lock = threading.RLock()  # a signal's handler may come back here
        self._types = left.dtype, None if isinstance(right, PackedWeight) else right.dtype
        self._left_shape, self._right_shape = left.shape, right.shape
        weights = self._weights(right, left.dtype)
        how = self._shapes, self.scheme, self.device
        self._operands: Execution | None = Execution((a, b), left, weights, finish, *how)

    def __repr__(self) -> str:
        state = ", closed" if self._operands is None else ""
        operands = f"{self._left_shape} @ {self._right_shape}"
        return (
            f"Matmul({operands}, scheme={self.scheme.name!r}, dtype={self.dtype}, device={self.device.name!r}{state})"
        )

    def __enter__(self) -> Matmul[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- planning --------------------------------------------------------------------------------------------------

    def plan(self) -> MatmulPlan | None:
        """Pack the right operand, all matrices of a stack, and say how the product is cut into runs.

        Returns
        -------
        MatmulPlan or None
            For one matrix of the right operand and all rows that it meets; it prints as a table and has `to_json`.
            None where there is nothing to multiply.

        Raises
        ------
        NotFiniteError
            If the scheme quantizes, and `b` holds an inf or nan.
        NpuMemoryError
            If `b` does not fit.
        ClosedError
            If it, or the device, is closed.
        """
        operands, shapes = self._usable(), self._shapes
        if shapes.empty:
            return None
        start = time.perf_counter()
        hold = Hold()
        try:
            operands.weights.hold(hold)
            weights = [operands.weights.at(index) for index in shapes.indices()]
            assert weights[0].plan is not None  # only a weight without elements has none
            plan = plan_matmul(shapes.rows, weights[0].plan, timings=weights[0].device.chip.timings)
        finally:
            operands.weights.let_go(hold)
        self._log(
            "planning: %r: %d matrices of b, %d bytes of NPU memory, %d runs; %.3f ms\n%s",
            self, shapes.matrices, operands.weights.nbytes, plan.runs * shapes.matrices,
            (time.perf_counter() - start) * 1e3, plan,
        )  # fmt: skip
        return plan

    def autotune(self, iterations: int = 9) -> Tuning | None:
        """Measure ways to run this product on the device, keep the best for this machine, and take it.

        Tiles, cores, layouts and buckets are tried, beginning with what is modelled to be best. `b` is packed anew by
        the next `plan` or `execute`. Others take the choice within ``config(tuned=True)``.

        Parameters
        ----------
        iterations : int
            Rounds of each step. In a round each way that is in the running is timed once, in random order, so that a
            machine that gets slower meanwhile favours none; their medians count.

        Returns
        -------
        Tuning or None
            What was measured, which prints as a table, and what was chosen. None where there is nothing to multiply.
            On a simulated device the times are those of the simulation; they are never used on a board.

        Raises
        ------
        ValueError
            If `iterations` is below 1, `b` is a `PackedWeight`, which is cut already, results are int8, or options
            say how to cut it.
        NpuMemoryError
            If `b` does not fit once more beside what is packed already.
        OSError
            If the choice cannot be written to ``$XDG_CACHE_HOME/npumatmul``.
        RknnError
            If the NPU runtime fails.
        ClosedError
            If it, or the device, is closed.

        Notes
        -----
        Of products in ``precision="high"`` and of unsigned integers, one of the products that they are made of is
        measured.
        """
        operands, shapes = self._usable(), self._shapes
        if operands.weights.given is not None:
            raise ValueError("autotune: b is packed and so it is cut already; give the array that it was packed from")
        if self.scheme.result_bits is not None:
            raise ValueError(
                f"autotune: there is one way to cut K for {self.scheme.name!r}, so there is nothing to choose"
            )
        if self._options.asked:
            raise ValueError(f"autotune: options say {', '.join(self._options.asked)}; leave that to what is measured")
        if shapes.empty:
            return None
        hold = Hold()
        try:
            operands.weights.hold(hold)
            packed = operands.weights.at(next(shapes.indices()))
        finally:
            operands.weights.let_go(hold)
        plan = packed.plan
        assert plan is not None  # only a weight without elements has none
        left = operands.a.dtype.newbyteorder("=")
        tuning = autotune(
            self.device,
            WeightShape(plan.k, plan.n, plan.mm_type, plan.k_group, plan.row_images),
            packed.route.activations[np.dtype(np.int8) if left == np.uint8 else left],
            packed.scheme.result,
            rows=(shapes.rows,),
            iterations=iterations,
            # the contents of int4 weights bound the depth of their slices
            k_parts=len(plan.k_spans) if plan.mm_type.c is ElementType.INT16 and plan.k_group is None else 1,
        )
        given = operands.given[1]
        weights = Weights(_right(given), operands.a.dtype, self.scheme, shapes, self.device, tuned=True)
        with self._lock:
            if self._operands is None:
                raise ClosedError(_CLOSED)
            if self._operands.weights is operands.weights:  # else others were set meanwhile
                self._operands = self._operands.with_weights(weights)
                operands.weights.end()
        self._log("autotuning: %r: %s", self, tuning)
        return tuning

    # ---- executing -------------------------------------------------------------------------------------------------

    @overload
    def execute(self, out: None = None) -> Result: ...
    @overload
    def execute(self, out: Place | tuple[Place]) -> Place: ...
    def execute(self, out: Into = None) -> Any:
        """Compute the product.

        Parameters
        ----------
        out : ndarray, optional
            Where the result goes, of the result's shape; it may overlap the operands. If the NPU fails, what stands in
            it is undefined; after any other exception it is unchanged.

        Returns
        -------
        ndarray
            As from `matmul`.

        Raises
        ------
        TypeError, ValueError
            If `out` cannot take the result.
        NotFiniteError
            If the scheme quantizes, and an operand holds an inf or nan.
        RknnError
            If the NPU runtime fails.
        ClosedError
            If it, the device or a packed weight is closed.
        """
        place = out[0] if isinstance(out, tuple) and len(out) == 1 else out
        shape = None if place is None else getattr(place, "shape", None)
        if place is not None and shape != self.shape and not (shape and fits(shape, self.shape, self._shapes.core)):
            given = f"an object of type {type(place).__name__}" if shape is None else f"an array of shape {shape}"
            raise (TypeError if shape is None else ValueError)(
                f"Matmul.execute: out is {given}, the result has shape {self.shape}; execute takes only where the "
                "result goes, other operands are given to reset_operands"
            )
        operands = self._operands
        if operands is None:
            raise ClosedError(_CLOSED)
        weights = operands.weights
        hold = None if weights.given is not None else Hold()  # else they are not this one's to give back
        try:
            if hold is not None:
                weights.hold(hold)
            if self._options.logger.isEnabledFor(self._options.level):
                return self._logged(operands, out)
            return operands.multiply(out)
        finally:
            if hold is not None:
                weights.let_go(hold)

    def _logged(self, operands: Execution, out: Any, *, cache: bool = True) -> Any:
        """Multiply, and log it."""
        start = time.perf_counter()
        result = operands.multiply(out, cache=cache)
        seconds = time.perf_counter() - start
        self._log(
            "execution: %r: %d bytes in, %d out; %.3f ms, %.3f GOPS (host clock%s)",
            self, operands.a.nbytes, math.prod(self.shape) * self.dtype.itemsize, seconds * 1e3,
            2e-9 * self._shapes.macs / max(seconds, 1e-9), ", simulation" if self.device.simulated else "",
        )  # fmt: skip
        return result

    @overload
    def submit(self, out: None = None) -> MatmulFuture[Result]: ...
    @overload
    def submit(self, out: Place | tuple[Place]) -> MatmulFuture[Place]: ...
    def submit(self, out: Into = None) -> MatmulFuture[Any]:
        """Compute the product in the background, by the device's worker thread.

        Parameters
        ----------
        out : ndarray, optional
            As for `execute`. A product that is cancelled leaves it as it is.

        Returns
        -------
        MatmulFuture
            A `concurrent.futures.Future`, which can also be awaited. Exceptions arrive there.

        Raises
        ------
        ClosedError
            If it, or the device, is closed.

        Notes
        -----
        The operands are those of now, even if `reset_operands` follows, but they are referenced, not copied: until the
        product is done, do not change their contents.

        Examples
        --------
        >>> import npumatmul as npu
        >>> with npu.Matmul(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)) as product:
        ...     product.submit().result()
        array([[3, 3],
               [3, 3]], dtype=int32)
        """
        operands = self._usable()
        weights, hold = operands.weights, Hold()

        def execute() -> Any:
            try:
                return self._logged(operands, out)
            finally:
                weights.let_go(hold)

        try:
            weights.hold(hold)
            future = submit(self.device, execute)
        except BaseException:
            weights.let_go(hold)
            raise
        future.add_done_callback(lambda done: weights.let_go(hold) if done.cancelled() else None)
        return future

    # ---- other operands, and the end -------------------------------------------------------------------------------

    def reset_operands(
        self,
        a: Operand | None = None,
        b: Operand | None = None,
        *,
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
    ) -> None:
        """Take other operands, of the same shapes and dtypes.

        Parameters
        ----------
        a, b : optional
            What is not given stays. A `b` that is given is packed anew, even if it is the same array: that is how
            changed contents are taken over.
        epilogue, bias : optional
            If either is given both are replaced; the result's dtype stays.

        Raises
        ------
        ValueError
            If a shape differs, or a packed weight's scheme or device.
        TypeError
            If a dtype differs, or nothing is given.
        ClosedError
            If it is closed.
        BusyError
            If another thread does the same just now.
        """
        given = {"a": a, "b": b, "epilogue": epilogue, "bias": bias}
        changed = [name for name, value in given.items() if value is not None]
        if not changed:
            raise TypeError("reset_operands: nothing is given; close gives the operands up")
        old = self._usable()
        left = old.a if a is None else _left(a)
        _check_same("a", left.shape, left.dtype, self._left_shape, self._types[0])
        weights, finish = old.weights, old.finish
        check_values("reset_operands", (a, b))
        if b is not None:
            right = _right(b)
            dtype = None if isinstance(right, PackedWeight) else right.dtype
            _check_same("b", right.shape, dtype, self._right_shape, self._types[1])
            if isinstance(right, PackedWeight) and (right.scheme, right.device) != (self.scheme, self.device):
                needed = f"scheme {self.scheme.name!r} on {self.device!r}"
                raise ValueError(f"reset_operands: b is {right!r}; {needed} is needed")
            weights = self._weights(right, left.dtype)
        if epilogue is not None or bias is not None:
            finish = Finish.of(self._computed, self._dtype, epilogue, bias, self._shapes)
            if finish.dtype != self.dtype:
                raise TypeError(f"reset_operands: the result would be {finish.dtype}; the plan is for {self.dtype}")
        operands = (old.given[0] if a is None else a, old.given[1] if b is None else b)
        with self._lock:
            if self._operands is not old:
                raise ClosedError(_CLOSED) if self._operands is None else BusyError(_RESET)
            how = self._shapes, self.scheme, self.device
            self._operands = Execution(operands, left, weights, finish, *how)
        if weights is not old.weights:
            old.weights.end()
        self._log("resetting operands: %r: %s", self, ", ".join(changed))

    def close(self) -> None:
        """Give up operands and NPU memory. Closing twice is allowed; products under way and submitted are completed."""
        with self._lock:
            operands, self._operands = self._operands, None
        if operands is not None:
            operands.weights.end()
            self._log("closing: %r", self)

    def _weights(self, right: NDArray[Any] | PackedWeight, left: np.dtype[Any]) -> Weights:
        options = self._options
        return Weights(right, left, self.scheme, self._shapes, self.device, options.tuned, options.plan_options)

    def _usable(self) -> Execution:
        operands = self._operands
        if operands is None:
            raise ClosedError(_CLOSED)
        self.device.check_usable()
        return operands

    def _log(self, message: str, *values: object) -> None:
        self._options.logger.log(self._options.level, message, *values)

    @property
    def prepared(self) -> Product | None:
        """The product with the one matrix of the right operand, once that is packed and was multiplied."""
        operands = self._operands
        return None if operands is None else operands.product

    def once(self, out: Any = None) -> Any:
        """Execute and close; of a stack, one matrix at a time is in NPU memory."""
        operands = self._usable()
        try:
            return self._logged(operands, out, cache=False)
        finally:
            operands.weights.close()
            self._operands = None


def _left(a: Any) -> NDArray[Any] | NpuArray:
    if isinstance(a, NpuArray):
        a._check_usable()
        return a
    return operand(_values(a), "a", "matmul")


def _right(b: Any) -> NDArray[Any] | PackedWeight:
    return b if isinstance(b, PackedWeight) else operand(_values(b), "b", "matmul")


def _values(x: Any) -> Any:
    """What numpy can read; a mask is what `execute` looks at."""
    return x.view(np.ndarray) if isinstance(x, np.ma.MaskedArray) else host(x)


_CLOSED = "this Matmul is closed; make another"
_RESET = "reset_operands: another thread does the same; let it end before"


def _check_same(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any] | None, shape_before: tuple[int, ...],
    dtype_before: np.dtype[Any] | None,
) -> None:  # fmt: skip
    if shape != shape_before:
        raise ValueError(f"reset_operands: {name} has shape {shape}; the plan is for {shape_before}")
    if dtype != dtype_before:
        shown = ["a packed weight" if each is None else str(each) for each in (dtype, dtype_before)]
        raise TypeError(f"reset_operands: {name} is {shown[0]}; the plan is for {shown[1]}")
