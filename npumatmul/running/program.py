"""A product of so many rows with a weight, prepared once and run again and again."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.buffer import Buffer
from npumatmul.errors import NpuMemoryError
from npumatmul.host.activation import Activation
from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import ELEMENTS, Epilogue, PlacedEpilogue
from npumatmul.host.executor import Call, Element
from npumatmul.planning.product import plan_matmul
from npumatmul.running.bound import BoundProgram
from npumatmul.running.call import NoRoomError, check_place, device_scales, result_element
from npumatmul.running.deferred import DeferredResult, ResultSlot
from npumatmul.running.runs import Runs
from npumatmul.running.stored import StoredWeight
from npumatmul.running.where import on_cores

__all__ = ["Program"]

logger = logging.getLogger(__name__)

_NOTHING = Epilogue()


class Program(Runs):
    """A product of so many rows with a weight: checked, planned, and bound to contexts and buffers.

    Parameters
    ----------
    weight : StoredWeight
    m : int
        Rows, at least 1.
    activation : Activation
        How rows of the left operand become rows of A.
    dtype : numpy.dtype
        Of the result: float32, float16 or bfloat16; int32 for integers without scales; or int8 with `result_scale`.
    result_scale : float, optional
        Where the runtime makes int8 of sums (matmul type 3): what one step of the result stands for. K is one slice,
        the weight has one scale, activations one static scale, and nothing has zero points; all three scales go to the
        runtime.
    cores : tuple of int, optional
        The NPU's cores that it may run on; by default those of the weight.

    Raises
    ------
    TypeError, ValueError
        If they do not fit together.
    """

    def __init__(
        self,
        weight: StoredWeight,
        m: int,
        activation: Activation,
        dtype: np.dtype[Any],
        result_scale: float | None = None,
        cores: tuple[int, ...] | None = None,
    ) -> None:
        scales = None if result_scale is None else device_scales(weight, activation, result_scale)
        limited = weight.plan if cores is None else on_cores(weight.plan, len(cores))
        plan = plan_matmul(m, limited, images=weight.images, timings=weight.device.chip.timings)
        super().__init__(weight, plan, activation, scales, cores)
        self._element = result_element(weight, activation, dtype, result_scale)
        self._floats = self._element not in (Element.INT32, Element.INT8)
        self._reads, self._dtype = activation.read_as, dtype
        self._rows, self._result = (m, weight.plan.k), (m, weight.plan.n)
        #: The epilogue of the last call, if it lasts: that of the next one is often the same.
        self._last: PlacedEpilogue | None = None
        #: Of deferred results, waiting for further ones.
        self._slots: list[ResultSlot] = []

    def multiply(
        self,
        a: NDArray[Any] | DeferredResult,
        out: NDArray[Any],
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        fresh: bool = False,
        buffers: tuple[Buffer, ...] = (),
    ) -> None:
        """Compute ``out = epilogue(a @ weight)``.

        Parameters
        ----------
        a : ndarray, shape (M, K), or DeferredResult
            Of any strides, of the type that the activation reads. A deferred result is finished on the way into A; its
            float16 and bfloat16 may be read as float32, too.
        out : ndarray, shape (M, N)
            Adjacent along the columns. It shares no memory with `a`.
        epilogue : Epilogue, optional
            Its dtype does not matter here. Operands may share memory with `out`.
        bias : array_like, shape (N,), optional
            Instead of the epilogue's.
        fresh : bool
            Whether nobody else knows `out` yet.
        buffers : tuple of Buffer
            In which `a` stands; nobody may close them meanwhile.

        Raises
        ------
        RknnError
            If a function of the runtime fails, and fails again when all is repeated with new contexts.
        DeviceLostError
            If it fails because the device is gone.
        NotFiniteError
            If a row that has to be quantized holds an inf or nan.
        ClosedError
            If weight or device are closed.
        ValueError, TypeError
            If shapes or dtypes do not fit.
        """
        if not fresh:
            check_place(out, self._result, self._dtype)
        after: PlacedEpilogue | None = None
        if bias is not None or (epilogue is not None and not epilogue.does_nothing):
            if not self._floats:
                raise TypeError(f"execute: {self._dtype} results have no epilogue")
            after, epilogue = self._last, epilogue or _NOTHING
            if (
                after is None
                or after.given[0] is not epilogue
                or after.given[1] is not bias
                or not (fresh or after.bias is None or not np.may_share_memory(after.bias, out))
            ):
                after = PlacedEpilogue(epilogue, out, bias, fresh=fresh)
                self._last = after if after.lasts else None
        call: Call | None = None
        stands = type(a) is np.ndarray and a.flags.c_contiguous and (fresh or out.flags.c_contiguous)
        usual = stands and (after is None or after.lasts)
        if not usual:
            call = self._call(a)
            call.out, call.out_row_stride = address_of(out), out.strides[0]
            if after is not None:
                call.out_is_read, call.epilogue = after.reads_out, after.pointer
        elif a.shape != self._rows or a.dtype != self._reads:
            self._refuse(a)
        self.run(call, a, out, buffers, after=after)

    def defer(
        self,
        a: NDArray[Any] | DeferredResult,
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        buffers: tuple[Buffer, ...] = (),
    ) -> DeferredResult | None:
        """As `multiply`, but leave the result in C, to be finished when it is read, or on its way into the next A.

        Parameters
        ----------
        a : ndarray, or DeferredResult
        epilogue : Epilogue, optional
            Without `multiply` and `residual`.
        bias : array_like, optional
            Instead of the epilogue's; it is copied.
        buffers : tuple of Buffer
            In which `a` stands; nobody may close them meanwhile.

        Returns
        -------
        DeferredResult or None
            None where there is no room for it; nothing was run then.

        Raises
        ------
        RknnError, NotFiniteError, ClosedError, ValueError, TypeError
            As `multiply`.
        """
        given = a.slot if type(a) is DeferredResult else a
        assert given is not None
        if given.shape != self._rows or given.dtype != self._reads:
            self._call(a)  # which says what is wrong, unless it is widened
        result = DeferredResult(self._slots)
        begin = partial(self._begin, result, a, epilogue, bias)
        try:
            self.run(begin, None, None, buffers)
        except NoRoomError:
            return None
        return result

    def _begin(
        self,
        result: DeferredResult,
        a: NDArray[Any] | DeferredResult,
        epilogue: Epilogue | None,
        bias: ArrayLike | None,
        bound: BoundProgram,
    ) -> Call:
        """The call that leaves a result in C, which gets memory now. The device's lock is held."""
        slot = result.slot
        if slot is None:
            slots = self._slots
            if slots:
                slot = slots.pop()
            else:
                where = bound.tiles, bound.c_bytes, self._weight, self._placement.results
                slot = ResultSlot(self._result, self._dtype, *where)
            result.slot = slot
        try:
            slot.begin(result, epilogue, bias)
        except NpuMemoryError as error:
            logger.info("a result is stored at once: %s", error)
            raise NoRoomError from error
        bound.results = slot.memories
        call = slot.call
        if type(a) is DeferredResult:
            assert a.slot is not None
            call.a, call.a_deferred = None, a.slot.pointer
            return call
        assert not isinstance(a, DeferredResult)
        call.a_deferred = None
        call.a, (call.a_row_stride, call.a_col_stride) = address_of(a), a.strides
        return call

    def _call(self, a: NDArray[Any] | DeferredResult) -> Call:
        """A call for a left operand, without a place for the result."""
        call = Call(out_type=self._element)
        fits = a.dtype == self._reads
        if isinstance(a, DeferredResult):
            fits = fits or (self._reads == np.float32 and a.dtype in ELEMENTS)
            assert a.slot is not None
            call.a_deferred = a.slot.pointer
        else:
            call.a, (call.a_row_stride, call.a_col_stride) = address_of(a), a.strides
        if a.shape != self._rows or not fits:
            self._refuse(a)
        return call

    @property
    def result_shape(self) -> tuple[int, int]:
        """``(M, N)``."""
        return self._result

    def plain_call(self) -> Call:
        """A call for rows that stand one behind the other, without addresses."""
        call = Call(out_type=self._element)
        call.a_col_stride = self._reads.itemsize
        call.a_row_stride, call.out_row_stride = (
            self._rows[1] * self._reads.itemsize,
            self._result[1] * self._dtype.itemsize,
        )
        return call

    def _refuse(self, a: NDArray[Any] | DeferredResult) -> NoReturn:
        if a.shape != self._rows:
            raise ValueError(f"execute: {a.shape} @ {self._weight.plan.k, self._weight.plan.n} does not give a product")
        raise TypeError(f"execute: a is {a.dtype}, the activation reads {self._reads}")
