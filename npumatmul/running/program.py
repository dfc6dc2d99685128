"""A product of so many rows with a weight, prepared once and run again and again."""

from __future__ import annotations

import ctypes as C
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.leases import Lease
from npumatmul.device.session import NO_ROOM
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import ClosedError, NpuError, RknnError
from npumatmul.host.activation import Activation
from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import ELEMENTS, Epilogue, PlacedEpilogue
from npumatmul.host.executor import Call, Element
from npumatmul.planning.product import plan_matmul
from npumatmul.rknn import MatmulLayout
from npumatmul.running.bound import BoundProgram
from npumatmul.running.call import Deferral, NoRoomError, check_place, device_scales, result_element
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.placement import Placement
from npumatmul.running.pool import TileShape
from npumatmul.running.stored import StoredWeight
from npumatmul.running.waiting import Waiting

__all__ = ["Program"]

#: A program is bound so often, each time to contexts of its own, for threads that are at work with it at once.
_BOUND = 8
_NOTHING = Epilogue()


class Program:
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
    ) -> None:
        self._element = result_element(weight, activation, dtype, result_scale)
        self._floats = self._element not in (Element.INT32, Element.INT8)
        self._weight, self._device, self._session = weight, weight.device, weight.device.session
        self._activation, self._reads, self._dtype = activation, activation.read_as, dtype
        self._scales = None if result_scale is None else device_scales(weight, activation, result_scale)
        self._rows, self._result = (m, weight.plan.k), (m, weight.plan.n)
        self._placement = Placement.of(weight.device)
        self._plan = plan_matmul(m, weight.plan, images=weight.images)
        self._bound: list[BoundProgram] = []

    def multiply(
        self,
        a: NDArray[Any] | DeferredResult,
        out: NDArray[Any],
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        fresh: bool = False,
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
        call: Call | None = None
        after: PlacedEpilogue | None = None
        if bias is not None or (epilogue is not None and not epilogue.does_nothing):
            if not self._floats:
                raise TypeError(f"execute: {self._dtype} results have no epilogue")
            after = PlacedEpilogue(epilogue or _NOTHING, out, bias, fresh=fresh)
        if after is not None or not fresh or not (type(a) is np.ndarray and a.flags.c_contiguous):
            call = self._call(a)
            call.out, call.out_row_stride = address_of(out), out.strides[0]
            if after is not None:
                call.out_is_read, call.epilogue = after.reads_out, after.pointer
        elif a.shape != self._rows or a.dtype != self._reads:
            self._refuse(a)
        failed = self._attempt(call, a, out)
        if failed is not None:
            self._repeat(failed, call, a, out)

    def defer(self, a: NDArray[Any] | DeferredResult, epilogue: Epilogue | None = None) -> DeferredResult | None:
        """As `multiply`, but leave the result in C, to be finished when it is read, or on its way into the next A.

        Parameters
        ----------
        a : ndarray or DeferredResult
        epilogue : Epilogue, optional
            Without `multiply` and `residual`. Its bias is copied.

        Returns
        -------
        DeferredResult or None
            None where there is no room for it; nothing was run then.

        Raises
        ------
        RknnError, NotFiniteError, ClosedError, ValueError, TypeError
            As `multiply`.
        """
        call = self._call(a)
        deferral = Deferral(call, self._result, self._dtype, epilogue, self._weight)
        try:
            failed = self._attempt(call, a, None, deferral)
            if failed is not None:
                self._repeat(failed, call, a, None, deferral)
        except NoRoomError:
            return None
        return deferral.result

    def _call(self, a: NDArray[Any] | DeferredResult) -> Call:
        """A call for a left operand, without a place for the result."""
        call = Call(out_type=self._element)
        fits = a.dtype == self._reads
        if isinstance(a, DeferredResult):
            fits = fits or (self._reads == np.float32 and a.dtype in ELEMENTS)
            call.a_deferred = C.pointer(a.struct)
        else:
            call.a, (call.a_row_stride, call.a_col_stride) = address_of(a), a.strides
        if a.shape != self._rows or not fits:
            self._refuse(a)
        return call

    def _plain_call(self) -> Call:
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

    def _attempt(
        self,
        call: Call | None,
        a: Any,
        out: Any,
        deferral: Deferral | None = None,
        *,
        repeated: bool = False,
    ) -> RknnError | None:
        """Run a call as soon as it can begin; what went wrong where contexts broke in a call that can be repeated.

        Without a `call`, rows of `a`, and of `out`, stand one behind the other, and there is no epilogue.

        It is prepared under the device's lock and runs without, so that calls of other threads go on meanwhile. Until
        it is over the weight keeps its memory, whoever closes it.
        """
        weight, device, session = self._weight, self._device, self._session
        if session.inherited:  # looked at before the lock, which may be held for ever in a forked child
            session.check_usable()
        leases, waiting = session.leases, None
        try:
            while True:
                lease = Lease(weight.tiles, out)
                bound = None
                try:
                    with session.lock:
                        if session.closed:
                            session.check_usable()
                        if weight.closed:
                            raise ClosedError("this packed weight is closed; pack it again")
                        if device.released:
                            device.collect()
                        ended = leases.ended
                        others = leases.enter(lease)
                        if not others:
                            try:
                                if device.weights.unsynchronised:
                                    device.weights.flush()
                                for each in self._bound:
                                    if each.acquire(lease):
                                        bound = each
                                        break
                                else:
                                    bound = self._bind(lease)
                                if deferral is not None:
                                    deferral.prepare(bound.tiles, bound.c_bytes, self._placement.workspace)
                            except NO_ROOM as error:
                                bound, waiting = None, waiting or Waiting(session)
                                waiting.no_room(error, lease, ended)
                    if bound is not None:
                        if call is not None:
                            ready = call
                        else:
                            ready = bound.call
                            ready.a, ready.out = address_of(a), address_of(out)
                        if bound.executor.execute(bound.struct, ready) == 0:
                            return None
                        failed = bound.failure(repeated)
                        if not repeated and bound.broken and isinstance(failed, RknnError):
                            session.raise_if_lost(failed)
                            return failed
                        raise failed
                finally:
                    lease.over = True
                    leases.leave(lease)
                waiting = waiting or Waiting(session)
                waiting.wait(others)
        except RknnError as error:
            session.raise_if_lost(error)
            raise
        finally:
            if waiting is not None:
                waiting.end()

    def _repeat(
        self,
        first: RknnError,
        call: Call | None,
        a: Any,
        out: Any,
        deferral: Deferral | None = None,
    ) -> None:
        """Repeat a call whose contexts broke: they are made anew."""
        try:
            self._attempt(call, a, out, deferral, repeated=True)
        except NpuError as error:
            raise error from first

    def _bind(self, lease: Lease) -> BoundProgram:
        """The program bound once more: those that there are are in use or broken."""
        contexts = self._placement.contexts.for_tiles(self._tiles(), lease)
        bound = BoundProgram(self._placement, self._plan, self._weight, self._activation, contexts, self._plain_call())
        bound.acquire_others(lease)
        self._bound = [bound, *(other for other in self._bound if not other.broken)][:_BOUND]
        return bound

    def _tiles(self) -> list[TileShape]:
        """What contexts the tiles need: ranges of rows, slices of K, tiles of N."""
        weight, plan = self._weight, self._plan
        w = plan.weight
        return [
            TileShape(
                ContextSpec(
                    w.mm_type,
                    m_span.padded,
                    each.k_span.padded,
                    n.padded,
                    MatmulLayout.NATIVE,
                    MatmulLayout.NATIVE if w.ac_native else MatmulLayout.NORM,
                    core=plan.core(m_index, n_index) if self._placement.has_cores else None,
                    domain=weight.domain,
                    scales=self._scales,
                ),
                w.buckets,
            )
            for m_index, m_span in enumerate(plan.m_spans)
            for each in weight.slices
            for n_index, n in enumerate(w.n_spans)
        ]
