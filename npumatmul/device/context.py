"""Matmul contexts of the runtime, of one shape or of several, checked against the capability table."""

from __future__ import annotations

import ctypes as C
import logging
import os
import weakref
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from npumatmul.chips.types import MatmulType
from npumatmul.device.attributes import attributes, zero_points
from npumatmul.device.buffer import Buffer, TensorAttr
from npumatmul.device.given_up import give_up
from npumatmul.device.leases import Lease, is_idle
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session
from npumatmul.device.spec import PER_CHANNEL, PER_GROUP, ContextSpec
from npumatmul.errors import BusyError, ClosedError, NpuError, RknnError
from npumatmul.host import executor
from npumatmul.host.attending import main_thread
from npumatmul.host.executor import Executor
from npumatmul.rknn import (
    CoreMask,
    MatmulIoAttr,
    MatmulLayout,
    MemSyncMode,
    QuantParams,
)

__all__ = ["DynamicMatmulContext", "MatmulContext"]

logger = logging.getLogger(__name__)


class _Slot:
    """One of A, B and C of a context: the buffer that it is to have, and what the runtime was told of it."""

    def __init__(self, attr: TensorAttr) -> None:
        self.attr = attr
        self.buffer: Buffer | None = None
        self.bound: tuple[int, int] | None = None  # the buffer's state when it was bound

    def state_if_changed(self) -> tuple[int, int] | None:
        """The buffer's writes and results, where the runtime has to be told of it, else None (facts 7.2)."""
        buffer = self.buffer
        assert buffer is not None
        # what a run wrote into C is no reason to bind C anew
        state = (buffer._writes, 0 if self.attr.name == "C" else buffer._results)
        return state if state != self.bound or buffer._memory.being_written() else None


_Self = TypeVar("_Self", bound="_Context")
_Dynamic = TypeVar("_Dynamic", bound="_Context")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _alone(
    method: Callable[Concatenate[_Dynamic, _Arguments], _Result],
) -> Callable[Concatenate[_Dynamic, _Arguments], _Result]:
    """A method that one thread at a time is in: whether a runtime takes more is an open question (Q18)."""

    @wraps(method)
    def alone(self: _Dynamic, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        lease = Lease()
        try:
            self._enter(lease)
            return method(self, *args, **kwargs)
        except RknnError as error:
            failure = self._session.diagnosed(error)
            raise failure from failure.__cause__
        finally:
            lease.over = True

    return alone


def _check_session(session: object) -> None:
    if not isinstance(session, Session):
        raise TypeError("contexts are made by Device.context and Device.dynamic_context")


class _Context:
    """What static and dynamic contexts have in common."""

    def __init__(self, session: Session, spec: ContextSpec, shapes: list[tuple[int, int, int]] | None) -> None:
        _check_session(session)
        runtime, chip = session.runtime, session.chip
        self.spec = spec
        self._session = session
        self._runtime = runtime
        every = shapes or [(spec.m, spec.k, spec.n)]
        info = spec.info()
        runtime.check_info(info)
        spec.check(chip, chip.type_limits(spec.mm_type, runtime.version), every)
        spec.check_log_level(chip, os.environ)
        self._handle, self._io_attrs = session.create(info, shapes)
        #: What the executor works with: it keeps the selected shape, and whether a call failed.
        self.struct = executor.ExecutorContext(self._handle.value, shapes is not None, 0, 0)
        self._executor_shapes: dict[int, C._Pointer[executor.ExecutorShape]] = {}
        #: When it was used last, by the clock of the pool that keeps it, and whose it is now.
        self.used = 0
        self.lease: weakref.ref[Lease] | None = None
        try:
            self._attrs = [
                attributes(spec, shape, io_attr, chip, runtime.version, self.int4_low_nibble_first)
                for shape, io_attr in zip(every, self._io_attrs, strict=True)
            ]
            if spec.core is not None and chip.has_core_mask:
                runtime.matmul_set_core_mask(self._handle.value, CoreMask(1 << spec.core))
            self._slots = tuple(_Slot(attr) for attr in self._attrs[0])
            for tensor, scale in zip("ABC", spec.scales or (), strict=False):
                self.set_quant_params(tensor, scale)
        except BaseException:
            self.close()
            raise
        logger.debug("created context %s", spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec}{', closed' if self.closed else ''})"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the context was destroyed."""
        return self._handle.closed

    @property
    def broken(self) -> bool:
        """Whether a run failed: what state the runtime left it in is not known, so it has to be made anew."""
        return bool(self.struct.broken)

    @property
    def handle(self) -> int:
        """Number of the context, for those who call the binding themselves."""
        return self._handle.value

    @property
    def int4_low_nibble_first(self) -> bool:
        """Whether the even one of two int4 in a byte is its low half on this runtime; `Buffer.put` does it right."""
        return self._runtime.int4_low_nibble_first

    @property
    def a(self) -> TensorAttr:
        """Attributes of A, (M, K)."""
        return self._slots[0].attr

    @property
    def b(self) -> TensorAttr:
        """Attributes of B, (K, N)."""
        return self._slots[1].attr

    @property
    def c(self) -> TensorAttr:
        """Attributes of C, (M, N)."""
        return self._slots[2].attr

    def executor_shape(self, m: int) -> C._Pointer[executor.ExecutorShape]:
        """The context in its shape with `m` rows, for the executor."""
        found = self._executor_shapes.get(m)
        if found is None:
            attrs, io_attr = self._shape_with(m)
            a, _, c = attrs
            native = self.spec.ac_layout is MatmulLayout.NATIVE
            groups = (a.known_layout.tile_cols, c.known_layout.tile_cols) if native else (0, 0)
            shape = executor.ExecutorShape(C.pointer(self.struct), m, self.spec.k, self.spec.n, *groups, io_attr)
            found = self._executor_shapes[m] = C.pointer(shape)
        return found

    def sizes(self, m: int) -> tuple[int, int]:
        """Bytes of A and C in the shape with `m` rows, as the runtime says."""
        (a, _, c), _ = self._shape_with(m)
        return a.size, c.size

    def _shape_with(self, m: int) -> tuple[tuple[TensorAttr, TensorAttr, TensorAttr], MatmulIoAttr]:
        for attrs, io_attr in zip(self._attrs, self._io_attrs, strict=True):
            if attrs[0].shape[0] == m:
                return attrs, io_attr
        raise ValueError(f"{self.spec}: there is no shape with {m} rows")

    # ---- use -------------------------------------------------------------------------------------------------------

    @_alone
    def bind(self, *, a: Buffer | None = None, b: Buffer | None = None, c: Buffer | None = None) -> None:
        """Choose the buffers of A, B and C; those that are not given stay as they are.

        The runtime is told at the next run (`rknn_matmul_set_io_mem`, which wants the data to be there), and again
        after every change of a buffer.

        Raises
        ------
        TypeError
            If something else than a `Buffer` is given.
        ValueError
            If a buffer is too small, belongs to another device or IOMMU domain, or C shares bytes with A or B.
        ClosedError
            If context or buffer are closed.
        """
        given = (a, b, c)
        for slot, buffer in zip(self._slots, given, strict=True):
            if buffer is not None:
                self._check_buffer(slot.attr, buffer)
        wanted = [new or slot.buffer for slot, new in zip(self._slots, given, strict=True)]
        for name, other in zip("AB", wanted[:2], strict=True):
            if wanted[2] is not None and other is not None and wanted[2].overlaps(other):
                raise ValueError(f"bind: the buffers of {name} and C share bytes")
        for slot, buffer in zip(self._slots, given, strict=True):
            if buffer is not None:
                slot.buffer, slot.bound = buffer, None

    def _check_buffer(self, attr: TensorAttr, buffer: Buffer) -> None:
        if not isinstance(buffer, Buffer):
            raise TypeError(f"bind: {attr.name} takes a Buffer, not {type(buffer).__name__}")
        if buffer._session is not self._session:
            raise ValueError(
                f"bind: the buffer for {attr.name} belongs to another device ({buffer._session.name}) than the "
                f"context ({self._session.name})"
            )
        memory = buffer.memory
        if memory.domain != self.spec.domain:
            raise ValueError(
                f"bind: the buffer for {attr.name} is in IOMMU domain {memory.domain}, the context in "
                f"{self.spec.domain}; memory of one is not seen in another (facts 7.4)"
            )
        if memory.size < attr.size:
            raise ValueError(f"bind: {attr.name} needs {attr.size} bytes, the buffer has {memory.size}")

    @_alone
    def run(self) -> None:
        """Multiply: C = A x B. Blocks until the NPU is done; C's buffer then shows the result.

        Raises
        ------
        NpuError
            If A, B or C have no buffer yet, or an earlier run failed.
        ClosedError
            If context, device or one of the buffers are closed, or inherited through a fork.
        BusyError
            If another thread uses the context.
        RknnError
            If the runtime fails.
        DeviceLostError
            If it fails because the device is gone.
        """
        slots, session, lease = self._slots, self._session, Lease()
        buffers = [slot.buffer for slot in slots if slot.buffer is not None]
        if len(buffers) < len(slots):
            missing = " and ".join(slot.attr.name for slot in slots if slot.buffer is None)
            raise NpuError(f"run: {missing} have no buffer yet; bind() them first")
        memories = [buffer._memory for buffer in buffers]
        binds = syncs = runs = 0
        try:
            with session.guard:
                for slot, buffer in zip(slots, buffers, strict=True):
                    if buffer.closed:
                        raise ClosedError(f"run: the buffer of {slot.attr.name} is closed; bind another one")
                for memory in memories:
                    memory.use(lease)
            for buffer in buffers:
                buffer.settle()
            # What is to be bound anew is decided before caches are synchronised: what somebody writes from now on is
            # seen by the next run.
            changed = [slot.state_if_changed() for slot in slots]
            for memory in memories:  # before binding, which reads a normal B; and C must have no dirty cache lines
                syncs += memory.flush()
            for slot, memory, state in zip(slots, memories, changed, strict=True):
                if state is not None:
                    binds += 1
                    self._bind(slot, memory, state)
            runs = 1
            try:
                if get_ident() == main_thread[0]:
                    self._run_attended(memories)
                else:
                    self._runtime.matmul_run(self._handle.value)
            except RknnError:
                self.struct.broken = 1
                raise
            syncs += memories[2].sync(MemSyncMode.FROM_DEVICE)
            buffers[2]._computed()
        finally:
            lease.over = True
            with session.guard:
                session.run_calls += runs
                session.set_io_mem_calls += binds
                session.mem_sync_calls += syncs
                session.macs += runs * self._macs()

    def hold(self, lease: Lease) -> None:
        """Be in use by a run that was given up, until it ends after all; then there is no use for it."""
        self.struct.broken = 1
        self.lease = self._handle.lease = lease.ref

    def _run_attended(self, memories: list[Memory]) -> None:
        """Run where handlers of signals are waited for; one that raises twice gives the run up."""
        session, lease = self._session, Lease()
        with session.guard:
            executor = session.executors.acquire(lease, Executor)
        try:
            self._runtime.matmul_run(self._handle.value, executor.run)
        except BaseException:
            if executor.given_up:
                give_up(session.leases, session.guard, executor, [self], memories, keeps=(self, session))
            raise
        finally:
            lease.over = True

    def _bind(self, slot: _Slot, memory: Memory, state: tuple[int, int]) -> None:
        slot.bound = None
        self._runtime.matmul_set_io_mem(self._handle.value, memory.pointer, slot.attr.struct)
        slot.bound = state

    def _macs(self) -> int:
        (m, k), n = self._slots[0].attr.shape, self._slots[1].attr.shape[1]
        return m * k * n

    def _enter(self, lease: Lease) -> None:
        """Have the context until a lease is over."""
        session, handle = self._session, self._handle
        session.check_usable()
        with session.guard:
            if handle.closed:
                raise ClosedError(f"{self.spec}: this context is closed")
            if self.broken:
                raise NpuError(
                    f"{self.spec}: a run of this context failed, and what state that left it in is not known; "
                    "close() it and make another one"
                )
            if not is_idle(handle):
                raise BusyError(f"{self.spec}: another thread is using this context; give each thread its own")
            handle.lease = lease.ref

    # ---- quantization ----------------------------------------------------------------------------------------------

    @_alone
    def set_quant_params(self, tensor: str, scale: ArrayLike, zero_point: ArrayLike | None = None) -> None:
        """Give scales and zero points of one matrix; without, it has scale 1 and zero point 0 (facts 5.3).

        Parameters
        ----------
        tensor : str
            ``"A"``, ``"B"`` or ``"C"``.
        scale : array_like of float
            One for A and C. For B as `b_quant` says: one; N; or (K / group_size, N), whose order in memory is an open
            question (Q1): this is the one of the vendor's demo. A dynamic context takes those of its largest K and N.
        zero_point : array_like of int, optional
            As many as scales; only where the quantization is asymmetric.

        Raises
        ------
        ValueError
            If there are too many or too few, a scale is not positive and finite, or a zero point is out of range.
        UnsupportedByRuntime
            Before runtime 2.0.0b0.
        """
        if tensor not in ("A", "B", "C"):
            raise ValueError(f"set_quant_params: there are the matrices 'A', 'B' and 'C', not {tensor!r}")
        slot = self._slots["ABC".index(tensor)]
        quant = self.spec.b_quant if tensor == "B" else self.spec.ac_quant
        shape = self._scale_shape() if tensor == "B" else (1,)
        scales = np.ascontiguousarray(scale, np.float32)
        count = int(np.prod(shape))
        if scales.size != count or (scales.ndim > 1 and scales.shape != shape):
            raise ValueError(
                f"set_quant_params: {tensor} with {quant.name} takes scales of shape {shape}, not {scales.shape}"
            )
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise ValueError(f"set_quant_params: a scale of {tensor} is not positive and finite as float32")
        points = None if zero_point is None else zero_points(zero_point, slot.attr, scales, quant)
        params = QuantParams(
            name=slot.attr.struct.name, scale=scales.ctypes.data_as(C.POINTER(C.c_float)), scale_len=count
        )
        if points is not None:
            params.zp, params.zp_len = points.ctypes.data_as(C.POINTER(C.c_int32)), count
        self._runtime.matmul_set_quant_params(self._handle.value, params)

    def _scale_shape(self) -> tuple[int, ...]:
        """Shape of B's scales, of the largest K and N (facts 5.3)."""
        k = max(attrs[1].shape[0] for attrs in self._attrs)
        n = max(attrs[1].shape[1] for attrs in self._attrs)
        if self.spec.b_quant in PER_CHANNEL:
            return (n,)
        return (k // self.spec.group_size, n) if self.spec.b_quant in PER_GROUP else (1,)

    @_alone
    def get_quant_params(self) -> float:
        """Scale of B that the runtime brought its channels to; for int8 to int32 with B per channel (facts 5.4).

        Raises
        ------
        ValueError
            For other contexts.
        UnsupportedByRuntime
            Before runtime 2.0.0b0.
        """
        if self.spec.mm_type is not MatmulType.INT8_INT8_INT32 or self.spec.b_quant not in PER_CHANNEL:
            raise ValueError(f"get_quant_params: only for INT8_INT8_INT32 with B per channel, not {self.spec}")
        return self._runtime.matmul_get_quant_params(
            self._handle.value, QuantParams(name=self._slots[1].attr.struct.name)
        )

    def close(self) -> None:
        """Destroy the context; its buffers stay. Closing twice is allowed.

        Raises
        ------
        BusyError
            If another thread uses it.
        """
        self._session.release(self._handle)


class MatmulContext(_Context):
    """A matmul context of one shape; `Device.context` makes one.

    A context is used by one thread at a time, and several contexts by several threads at once. It keeps the buffers
    that it is bound to. One that is dropped is destroyed.

    Attributes
    ----------
    spec : ContextSpec
    a, b, c : TensorAttr
        What buffers for A, B and C have to be like: shape, dtype, size in bytes, layout.
    closed : bool

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.Device("sim") as device:
    ...     context = device.context(npu.MatmulType.INT8_INT8_INT32, 4, 64, 32)
    ...     a, b, c = (device.buffer(each.size) for each in (context.a, context.b, context.c))
    ...     a.put(context.a, np.full((4, 64), 2, np.int8))
    ...     b.put(context.b, np.full((64, 32), 3, np.int8))
    ...     context.bind(a=a, b=b, c=c)
    ...     context.run()
    ...     print(c.get(context.c)[0, :4])
    [384 384 384 384]
    """

    def __init__(self, session: Session, spec: ContextSpec) -> None:
        super().__init__(session, spec, None)


class DynamicMatmulContext(_Context):
    """A matmul context of several shapes, of which one is selected; `Device.dynamic_context` makes one.

    Otherwise like `MatmulContext`. `a`, `b` and `c` describe the shape that is selected.

    Attributes
    ----------
    shapes : tuple of (int, int, int)
        (M, K, N) each.
    largest : (int, int, int)
        Bytes that buffers of A, B and C need for every shape.
    """

    def __init__(self, session: Session, spec: ContextSpec, shapes: list[tuple[int, int, int]]) -> None:
        _check_session(session)
        if spec.b_layout is not MatmulLayout.TP_NORM and len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"shapes may differ in K and N with B in TP_NORM layout only (D16), not {shapes}")
        if len(set(shapes)) < len(shapes):
            raise ValueError(f"a shape is given twice: {shapes}")
        super().__init__(session, spec, shapes)
        self.shapes = tuple(shapes)
        self.largest = tuple(max(attrs[i].size for attrs in self._attrs) for i in range(3))
        try:
            self.select(*shapes[0])
        except BaseException:
            self.close()
            raise

    @_alone
    def select(self, m: int, k: int, n: int) -> None:
        """Choose a shape for the runs to come; A in native layout has to be packed anew (facts 4.3).

        Buffers stay bound where they are large enough for the shape (see `largest`); others have to be bound.

        Raises
        ------
        ValueError
            If the context was not made for that shape.
        ClosedError, BusyError, RknnError
            As for `run`.
        """
        if (m, k, n) not in self.shapes:
            raise ValueError(f"select: {(m, k, n)} is none of the shapes of this context: {self.shapes}")
        attrs = self._attrs[self.shapes.index((m, k, n))]
        self.struct.selected_m = 0
        with self._session.guard:
            self._session.set_dynamic_shape_calls += 1
        self._runtime.matmul_set_dynamic_shape(self._handle.value, (m, k, n))
        self.struct.selected_m = m
        for attr, slot in zip(attrs, self._slots, strict=True):
            slot.attr, slot.bound = attr, None  # set_io_mem comes after every change of shape (facts 6)
            if slot.buffer is not None and slot.buffer.nbytes < attr.size:
                slot.buffer = None
