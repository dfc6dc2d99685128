"""Typed binding of the executor in `libnpumm.so` (`native/include/npumatmul_executor.h`, `npumatmul_store.h`)."""

from __future__ import annotations

import ctypes as C
import weakref
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache, partial
from threading import get_ident
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ClosedError
from npumatmul.host import kernels
from npumatmul.host.attending import ATTEND, Attendant, main_thread
from npumatmul.rknn.structs import Context, MatmulIoAttr, TensorMem

__all__ = [
    "ActivationStruct",
    "BoundStruct",
    "Call",
    "DeferredStruct",
    "Element",
    "EpilogueStruct",
    "Executor",
    "ExecutorContext",
    "ExecutorShape",
    "Function",
    "Matrix",
    "OnCpu",
    "PlacedMatmul",
    "Report",
    "Result",
    "ResultType",
    "RuntimeFunctions",
    "Sequence",
    "SliceStruct",
    "SpanStruct",
    "Step",
    "StepsRun",
    "Term",
    "finish",
    "run_proven",
    "store_deferred",
]


class ResultType(IntEnum):
    """`npumm_result_type`: element type of C."""

    INT32 = 0
    FLOAT32 = 1
    INT16 = 2
    FLOAT16 = 3
    INT8 = 4


class Element(IntEnum):
    """`npumm_element`: element type of a matrix of the caller."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT32 = 3
    INT8 = 4


class Function(IntEnum):
    """`npumm_function`: what an epilogue applies to every element."""

    IDENTITY = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4
    RELU2 = 5
    SIGMOID = 6


class Step(IntEnum):
    """`npumm_step`: where the executor stopped."""

    NONE = 0
    ARGUMENTS = 1
    PACK_A = 2
    SYNC_A = 3
    BIND_A = 4
    BIND_B = 5
    BIND_C = 6
    RUN = 7
    SYNC_C = 8
    STORE_C = 9
    SELECT = 10


class RuntimeFunctions(C.Structure):
    """`npumm_runtime`: addresses of the runtime's functions that the executor calls."""

    _fields_ = tuple((name, C.c_void_p) for name in ("set_io_mem", "run", "mem_sync", "set_dynamic_shape"))


class ExecutorContext(C.Structure):
    """`npumm_context`: a context, which of its shapes is selected, and whether it failed."""

    _fields_ = (("handle", Context), ("dynamic", C.c_int32), ("selected_m", C.c_int32), ("broken", C.c_int32))


class ExecutorShape(C.Structure):
    """`npumm_shape`: a context in one of its shapes, with padded extents and native groups."""

    _fields_ = (
        ("context", C.POINTER(ExecutorContext)),
        ("padded_m", C.c_int32),
        ("padded_k", C.c_int32),
        ("padded_n", C.c_int32),
        ("a_group", C.c_int32),
        ("c_group", C.c_int32),
        ("io_attr", MatmulIoAttr),
    )


class SpanStruct(C.Structure):
    """`npumm_range`: a range of one dimension."""

    _fields_ = (("start", C.c_int64), ("length", C.c_int64))


class ActivationStruct(C.Structure):
    """`npumm_activation`: how rows of `a` become rows of A."""

    _fields_ = (
        ("conversion", C.c_int),
        ("scaling", C.c_int),
        ("levels", C.c_int32),
        ("clip", C.c_float),
        ("static_scale", C.c_float),
        ("static_zero", C.c_int32),
        ("transform", C.POINTER(kernels.Hadamard)),
    )


class SliceStruct(C.Structure):
    """`npumm_slice`: one pass A[:, k] x B."""

    _fields_ = (
        ("k", SpanStruct),
        ("part", C.c_int32),
        ("tiles", C.c_int32),
        ("column_scale", C.c_void_p),
        ("column_zero", C.c_void_p),
        ("column_sums", C.c_void_p),
        ("group", SpanStruct),
    )


class OnCpu(C.Structure):
    """`npumm_on_cpu`: tiles that the CPU multiplies."""

    _fields_ = (
        ("operands", C.c_int),
        ("high_first", C.c_int32),
        ("tile_n", C.c_int64),
        ("tile_k", C.c_int64),
        ("requantize", C.c_double),
    )


class PlacedMatmul(C.Structure):
    """`npumm_placed_matmul`: everything that one call of the executor needs but the caller's matrices."""

    _fields_ = (
        ("runtime", C.POINTER(RuntimeFunctions)),
        ("activation", ActivationStruct),
        ("c_type", C.c_int),
        ("row_images", C.c_int32),
        ("common_scale", C.c_int32),
        ("m_count", C.c_int32),
        ("slice_count", C.c_int32),
        ("n_count", C.c_int32),
        ("core_count", C.c_int32),
        ("a_count", C.c_int32),
        ("m_ranges", C.POINTER(SpanStruct)),
        ("n_ranges", C.POINTER(SpanStruct)),
        ("slices", C.POINTER(SliceStruct)),
        ("tile_cores", C.POINTER(C.c_int32)),
        ("range_cores", C.POINTER(C.c_int32)),
        ("a_memories", C.POINTER(C.POINTER(TensorMem))),
        ("c_memories", C.POINTER(C.POINTER(TensorMem))),
        ("b_memories", C.POINTER(C.POINTER(TensorMem))),
        ("shapes", C.POINTER(C.POINTER(ExecutorShape))),
        ("on_cpu", C.POINTER(OnCpu)),
        ("number", C.c_int64),
        ("turns", C.c_int32),
    )


class Matrix(C.Structure):
    """`npumm_matrix`: an operand of an epilogue."""

    _fields_ = (("data", C.c_void_p), ("row_stride", C.c_int64), ("type", C.c_int))


class EpilogueStruct(C.Structure):
    """`npumm_epilogue`: what is done to the result."""

    _fields_ = (
        ("scale", C.c_double),
        ("bias", C.c_void_p),
        ("function", C.c_int),
        ("multiply", Matrix),
        ("residual", Matrix),
        ("low", C.c_float),
        ("high", C.c_float),
    )


class Term(C.Structure):
    """`npumm_term`: what a tile of C stands for."""

    _fields_ = (
        ("type", C.c_int),
        ("row_images", C.c_int32),
        ("row_zero", C.c_void_p),
        ("column_sums", C.c_void_p),
        ("row_sum", C.c_void_p),
        ("column_zero", C.c_void_p),
        ("column_scale", C.c_void_p),
        ("row_factor", C.c_void_p),
    )


class DeferredStruct(C.Structure):
    """`npumm_deferred`: a result that is not stored."""

    _fields_ = (
        ("rows", C.c_int64),
        ("cols", C.c_int64),
        ("type", C.c_int),
        ("epilogue", C.POINTER(EpilogueStruct)),
        ("m_count", C.c_int32),
        ("n_count", C.c_int32),
        ("m_ranges", C.POINTER(SpanStruct)),
        ("n_ranges", C.POINTER(SpanStruct)),
        ("padded_m", C.POINTER(C.c_int32)),
        ("padded_n", C.POINTER(C.c_int32)),
        ("memories", C.POINTER(C.POINTER(TensorMem))),
        ("row_factor", C.c_void_p),
        ("row_zero", C.c_void_p),
        ("row_sum", C.c_void_p),
        ("sums", C.c_void_p),
        ("term", Term),
        ("c_group", C.c_int32),
        ("scaled_each", C.c_int32),
        ("last_factor", C.c_void_p),
        ("last_scale", C.c_void_p),
    )


class BoundStruct(C.Structure):
    """`npumm_bound`: a result that the NPU writes where it is wanted."""

    _fields_ = (("parts", C.POINTER(C.POINTER(TensorMem))), ("whole", C.POINTER(TensorMem)))


class Call(C.Structure):
    """`npumm_call`: the caller's matrices."""

    _fields_ = (
        ("a", C.c_void_p),
        ("a_row_stride", C.c_int64),
        ("a_col_stride", C.c_int64),
        ("a_deferred", C.POINTER(DeferredStruct)),
        ("a_bound", C.POINTER(C.POINTER(TensorMem))),
        ("out", C.c_void_p),
        ("out_row_stride", C.c_int64),
        ("out_deferred", C.POINTER(DeferredStruct)),
        ("out_bound", C.POINTER(BoundStruct)),
        ("out_type", C.c_int),
        ("out_is_read", C.c_int32),
        ("epilogue", C.POINTER(EpilogueStruct)),
    )


class Report(C.Structure):
    """`npumm_report`: where the last call stopped, and what all calls did."""

    _fields_ = (
        ("step", C.c_int),
        ("code", C.c_int32),
        ("row", C.c_int64),
        ("m_index", C.c_int32),
        ("slice_index", C.c_int32),
        ("n_index", C.c_int32),
        ("core", C.c_int32),
        ("run_calls", C.c_uint64),
        ("set_io_mem_calls", C.c_uint64),
        ("mem_sync_calls", C.c_uint64),
        ("set_dynamic_shape_calls", C.c_uint64),
        ("macs", C.c_uint64),
        ("cpu_macs", C.c_uint64),
        ("conversions", C.c_uint64),
        ("nanoseconds", C.c_int64),
    )


class Sequence(C.Structure):
    """`npumm_sequence`: a text that tokens come to, and its cache."""

    _fields_ = (
        ("position", C.c_int64),
        ("offset", C.c_int64),
        ("layers", C.c_void_p),
        ("layer_count", C.c_int64),
    )


class StepsRun(C.Structure):
    """`npumm_run`: what differs from run to run of steps."""

    _fields_ = (
        ("sequences", C.POINTER(Sequence)),
        ("sequence_count", C.c_int64),
        ("first", C.c_int64),
        ("stop", C.c_int64),
        ("threads", C.c_int32),
        ("attend", ATTEND),
    )


class Result(C.Structure):
    """`npumm_result`: where finished sums go."""

    _fields_ = (
        ("data", C.c_void_p),
        ("row_stride", C.c_int64),
        ("type", C.c_int),
        ("row_factor", C.c_void_p),
        ("column_scale", C.c_void_p),
        ("epilogue", C.POINTER(EpilogueStruct)),
        ("row", C.c_int64),
        ("column", C.c_int64),
        ("widen", C.c_int32),
    )


@lru_cache(maxsize=1)
def _store() -> Any:
    function = kernels.library().npumm_store
    function.restype = C.c_int
    function.argtypes = (
        C.POINTER(kernels.Tiling), C.POINTER(Term), C.c_void_p, C.c_int64, C.c_void_p, C.POINTER(Result),
    )  # fmt: skip
    return function


def finish(sums: NDArray[Any], out: NDArray[Any], element: Element, epilogue: EpilogueStruct) -> None:
    """Apply an epilogue to sums that stand in the host's memory, as the executor does to those in tiles.

    Parameters
    ----------
    sums : ndarray of float32 or int32, shape (M, N), C-contiguous
    out : ndarray, shape (M, N), of `element`, adjacent along the columns
    element : Element
    epilogue : EpilogueStruct
        Placed for `out`.
    """
    rows, columns = sums.shape
    tiling = kernels.Tiling(rows, columns, rows, columns, rows, columns)
    term = Term(
        ResultType.INT32 if sums.dtype == np.int32 else ResultType.FLOAT32, 1, None, None, None, None, None, None
    )
    result = Result(out.ctypes.data, out.strides[0], element, None, None, C.pointer(epilogue), 0, 0, 0)
    code = _store()(tiling, term, sums.ctypes.data, sums.nbytes, None, result)
    assert code == 0, f"npumm_store: code {code}"


def store_deferred(deferred: C._Pointer[DeferredStruct], rows: int, address: int, row_stride: int) -> None:
    """Finish a deferred result in memory of the host.

    Parameters
    ----------
    deferred : pointer to DeferredStruct
        As a call of the executor left it.
    rows : int
        All that it has.
    address : int
        Of the first element; elements of a row are adjacent.
    row_stride : int
        In bytes.
    """
    code = _library().npumm_deferred_store(deferred, 0, rows, address, row_stride)
    assert code == 0, f"npumm_deferred_store: code {code}"


@lru_cache(maxsize=1)
def _library() -> Any:
    library = kernels.library()
    library.npumm_executor_create.restype = C.c_void_p
    library.npumm_executor_create.argtypes = ()
    library.npumm_executor_destroy.restype = None
    library.npumm_executor_destroy.argtypes = (C.c_void_p,)
    library.npumm_execute.restype = C.c_int
    library.npumm_execute.argtypes = (C.c_void_p, C.POINTER(PlacedMatmul), C.POINTER(Call), C.POINTER(Report))
    library.npumm_execute_attended.restype = C.c_int
    library.npumm_execute_attended.argtypes = (*library.npumm_execute.argtypes, ATTEND)
    library.npumm_execute_proven.restype = C.c_int
    library.npumm_execute_proven.argtypes = library.npumm_execute.argtypes
    library.npumm_run_attended.restype = C.c_int
    library.npumm_run_attended.argtypes = (C.c_void_p, C.c_void_p, Context, C.POINTER(Report), ATTEND)
    library.npumm_run_proven.restype = C.c_int
    library.npumm_run_proven.argtypes = (C.c_void_p, Context)
    library.npumm_program_run.restype = C.c_int
    library.npumm_program_run.argtypes = (C.c_void_p, C.c_void_p, C.POINTER(StepsRun), C.POINTER(Report))
    library.npumm_executor_lost.restype = C.c_int32
    library.npumm_executor_lost.argtypes = (C.c_void_p,)
    library.npumm_deferred_store.restype = C.c_int
    library.npumm_deferred_store.argtypes = (C.POINTER(DeferredStruct), C.c_int64, C.c_int64, C.c_void_p, C.c_int64)
    return library


def run_proven(function: int, context: int) -> int:
    """Run a context in the main thread itself, to be timed: nothing but the call is between the clock's two readings.

    Signals wait until it ends; the third SIGINT in one that does not end ends the program.

    Parameters
    ----------
    function : int
        Address of ``rknn_matmul_run``.
    context : int
    """
    code: int = _library().npumm_run_proven(function, context)
    return code


#: Those that nobody needs just now.
_attendants: list[Attendant] = []


class Executor:
    """`npumm_executor`: the threads that serve NPU cores beyond the first, started when there is work for them.

    One thread at a time may call `execute`. A forked child must not; dropping and closing it does nothing there.

    Attributes
    ----------
    lease : weakref or None
        Whose it is.
    report : Report
        What the last call met, and what all did.
    """

    def __init__(self) -> None:
        self.lease: weakref.ref[Any] | None = None
        self.report = Report()
        self._closed = False
        library = _library()
        self._address = library.npumm_executor_create()
        if not self._address:
            raise MemoryError("no memory for an executor")
        self._execute = library.npumm_execute
        self._execute_attended = library.npumm_execute_attended
        self._execute_proven = library.npumm_execute_proven
        self._program_run = library.npumm_program_run
        self._run_attended, self._lost = library.npumm_run_attended, library.npumm_executor_lost
        self._finalizer = weakref.finalize(self, library.npumm_executor_destroy, self._address)
        self._finalizer.atexit = False  # a thread of the program may still be at work when the interpreter ends

    def execute(self, placed: PlacedMatmul, call: Call, proven: bool = False) -> int:
        """Run a placed matmul; zero, or the code that is in the report.

        In the main thread signals are handled meanwhile, unless the call is `proven` to be short. What a handler raises
        ends it; where handlers raise a second time runs that do not end are given up.

        Raises
        ------
        BaseException
            What a handler raised first. Look whether runs are `given_up`.
        """
        if self._closed:
            raise ClosedError("the executor is closed")
        code: int
        if get_ident() != main_thread[0]:  # there no handler of a signal runs
            code = self._execute(self._address, placed, call, self.report)
            return code
        if proven:
            code = self._execute_proven(self._address, placed, call, self.report)
            return code
        attendant = _attendants.pop() if _attendants else Attendant()
        code = self._execute_attended(self._address, placed, call, self.report, attendant.function)
        _attendants.append(attendant)
        if attendant.interrupts:
            attendant.raise_first()
        return code

    def steps(self, ops: Any, run: StepsRun) -> int:
        """Run steps, an array of `npumatmul.host.layers.Op`; as `execute`. ``run.first`` is where they stopped."""
        if self._closed:
            raise ClosedError("the executor is closed")
        code: int
        if get_ident() != main_thread[0]:
            run.attend = ATTEND()
            code = self._program_run(self._address, C.addressof(ops), run, self.report)
            return code
        attendant = _attendants.pop() if _attendants else Attendant()
        run.attend = attendant.function
        code = self._program_run(self._address, C.addressof(ops), run, self.report)
        _attendants.append(attendant)
        if attendant.interrupts:
            attendant.raise_first()
        return code

    def bare_call(self, placed: PlacedMatmul, call: Call, *, runs: bool = True) -> Callable[[], int]:
        """The call that `execute` makes, with its arguments ready, to be timed: nothing of Python but ctypes is in it.

        No signal is handled meanwhile. What `call` refers to has to stay.

        Parameters
        ----------
        placed : PlacedMatmul
        call : Call
        runs : bool
            Whether the NPU runs: without, only what is around the runs is done, and results are those of the last one.
        """
        if not runs:
            functions = RuntimeFunctions.from_buffer_copy(placed.runtime.contents)
            functions.run = C.cast(_library().npumm_run_nothing, C.c_void_p)
            placed = PlacedMatmul.from_buffer_copy(placed)
            placed.runtime = C.pointer(functions)
        return partial(self._execute, self._address, placed, Call.from_buffer_copy(call), Report())

    def run(self, function: int, context: int) -> int:
        """Run a context by ``rknn_matmul_run``, given its address; signals are handled meanwhile, as by `execute`."""
        attendant = _attendants.pop() if _attendants else Attendant()
        code: int = self._run_attended(self._address, function, context, self.report, attendant.function)
        _attendants.append(attendant)
        if attendant.interrupts:
            attendant.raise_first()
        return code

    @property
    def given_up(self) -> bool:
        """Whether runs of the last call were given up."""
        return bool(self.report.code == kernels.GIVEN_UP)

    @property
    def lost(self) -> int:
        """How many threads still wait in runs that were given up."""
        return int(self._lost(self._address)) if self._finalizer.alive else 0

    def close(self) -> None:
        """End the threads. Closing twice is allowed."""
        self._closed = True
        self._finalizer()
