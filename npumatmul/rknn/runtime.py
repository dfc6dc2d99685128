"""One loaded runtime library: a typed Python method per C function of the matmul API (facts 1.5).

Each method checks the return code and raises the `RknnError` that belongs to it. Callers speak the language of runtime
2.3.2; `differences` translates for older ones. Nothing here keeps state beyond the library handle and its version:
lifetimes are the business of `npumatmul.device.session` and what is above it.
"""

from __future__ import annotations

import ctypes as C
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npumatmul.errors import LibraryNotFoundError, RknnError, UnsupportedByRuntime, rknn_error
from npumatmul.rknn import differences
from npumatmul.rknn import structs as S
from npumatmul.rknn.constants import MEM_FLAG_ALLOC_NO_CONTEXT, CoreMask, MemAllocFlags, MemSyncMode, QueryCmd
from npumatmul.rknn.notes import ContextNote, MemoryNote, noted
from npumatmul.rknn.version import RuntimeVersion

logger = logging.getLogger(__name__)

TensorMemPointer = C.POINTER(S.TensorMem)

_CTX = S.Context
_INT = C.c_int
_PTR = C.c_void_p
_MEM = TensorMemPointer
_INFO = C.POINTER(S.MatmulInfo)
_IO_ATTR = C.POINTER(S.MatmulIoAttr)
_SHAPE = C.POINTER(S.MatmulShape)
_QUANT = C.POINTER(S.QuantParams)

#: name -> (result, arguments, first runtime version that has it)
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "rknn_matmul_create": (_INT, (C.POINTER(_CTX), _INFO, _IO_ATTR), "1.5.0"),
    "rknn_matmul_create_dynamic_shape": (_INT, (C.POINTER(_CTX), _INFO, _INT, _SHAPE, _IO_ATTR), "2.1.0"),
    "rknn_matmul_create_dyn_shape": (_INT, (C.POINTER(_CTX), _INFO, _INT, _SHAPE, _IO_ATTR), "2.0.0b0"),
    "rknn_matmul_set_dynamic_shape": (_INT, (_CTX, _SHAPE), "2.0.0b0"),
    "rknn_matmul_set_io_mem": (_INT, (_CTX, _MEM, C.POINTER(S.MatmulTensorAttr)), "1.5.0"),
    "rknn_matmul_set_core_mask": (_INT, (_CTX, _INT), "1.5.0"),
    "rknn_matmul_set_quant_params": (_INT, (_CTX, _QUANT), "2.0.0b0"),
    "rknn_matmul_get_quant_params": (_INT, (_CTX, _QUANT, C.POINTER(C.c_float)), "2.0.0b0"),
    "rknn_matmul_run": (_INT, (_CTX,), "1.5.0"),
    "rknn_matmul_destroy": (_INT, (_CTX,), "1.5.0"),
    # The five-argument form; 2.0.0b0's took seven (HELPER_OF_2_0_0).
    "rknn_B_normal_layout_to_native_layout": (_INT, (_PTR, _PTR, _INT, _INT, _INFO), "2.0.0b0"),
    "rknn_create_mem": (_MEM, (_CTX, C.c_uint32), "1.5.0"),
    "rknn_create_mem2": (_MEM, (_CTX, C.c_uint64, C.c_uint64), "2.0.0b0"),
    "rknn_create_mem_from_fd": (_MEM, (_CTX, C.c_int32, _PTR, C.c_uint32, C.c_int32), "1.5.0"),
    "rknn_create_mem_from_phys": (_MEM, (_CTX, C.c_uint64, _PTR, C.c_uint32), "1.5.0"),
    # Declared in every header, exported by no library that was looked at (facts 1.5).
    "rknn_create_mem_from_mb_blk": (_MEM, (_CTX, _PTR, C.c_int32), "no published version"),
    "rknn_destroy_mem": (_INT, (_CTX, _MEM), "1.5.0"),
    "rknn_mem_sync": (_INT, (_CTX, _MEM, _INT), "1.6.0"),
    "rknn_query": (_INT, (_CTX, _INT, _PTR, C.c_uint32), "1.5.0"),
}

#: Arguments of the helper that packs B in runtime 2.0.0b0: in, out, K, N, subN, subK, type (facts 1.5, D3).
HELPER_OF_2_0_0 = (_PTR, _PTR, _INT, _INT, _INT, _INT, _INT)

#: Without these no matmul is possible at all, so their absence is an error when the library is loaded.
_REQUIRED = (
    "rknn_matmul_create",
    "rknn_matmul_set_io_mem",
    "rknn_matmul_run",
    "rknn_matmul_destroy",
    "rknn_create_mem",
    "rknn_create_mem_from_fd",
    "rknn_destroy_mem",
)


class Runtime:
    """A loaded `librknnrt.so`, or the simulator that has the same C ABI.

    Parameters
    ----------
    path : str or Path
        The shared library.
    soc : str, optional
        The chip that a simulator simulates for this object; others in the process may have others.

    Attributes
    ----------
    path : Path
    api_version, driver_version : str
        What the library says of itself and of the kernel driver; ``"unknown"`` before the first context.

    Raises
    ------
    LibraryNotFoundError
        If it cannot be loaded, or has no matmul API.

    Examples
    --------
    >>> from npumatmul.rknn import discovery, structs
    >>> runtime = Runtime(discovery.simulator_path())
    >>> info = structs.MatmulInfo(M=1, K=64, N=32, type=2)
    >>> ctx, io_attr = runtime.matmul_create(info)
    >>> io_attr.B.shape, io_attr.B.size
    ((64, 32), 2048)
    >>> runtime.matmul_destroy(ctx)
    """

    def __init__(self, path: str | Path, soc: str | None = None) -> None:
        self.path = Path(path)
        self.soc = soc
        self.api_version = self.driver_version = "unknown"
        self._version: RuntimeVersion | None = None
        if os.path.exists(path) and not os.path.isfile(path):  # which the loader of the system would wait for
            raise LibraryNotFoundError(f"the runtime library {path} is no file")
        try:
            self.library = C.CDLL(str(path))
        except OSError as error:
            raise LibraryNotFoundError(f"the runtime library {path} cannot be loaded: {error}") from error
        self._functions: dict[str, Any] = {}
        for name, (result, arguments, _) in FUNCTIONS.items():
            function = self._bound(name, result, arguments)
            if function is not None:
                self._functions[name] = function
        missing = [name for name in _REQUIRED if name not in self._functions]
        if missing:
            raise LibraryNotFoundError(
                f"{path} is not an RKNN runtime with the matmul API: it does not export {', '.join(missing)}"
            )
        self._window = differences.version_window(self._functions.__contains__)
        self._describe = self._bound("npumm_sim_describe", C.c_char_p, (C.POINTER(C.c_int),))
        self._select = self._bound("npumm_sim_select", _INT, (C.c_char_p,))

    def __repr__(self) -> str:
        return f"Runtime({str(self.path)!r})"

    def _bound(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        try:
            function = self.library[name]  # unlike getattr, a function object of its own each time
        except AttributeError:
            return None
        function.restype = result
        function.argtypes = arguments
        return function

    # ---- version ---------------------------------------------------------------------------------------------------

    @property
    def version(self) -> RuntimeVersion:
        """What the library told when its first context was created; before that the oldest that its exports allow."""
        return self._version or self._window[0]

    @property
    def _newest_possible(self) -> RuntimeVersion:
        return self._version or self._window[1]

    @property
    def int4_low_nibble_first(self) -> bool:
        """Whether the even one of two int4 in a byte is its low half; it was the high one up to 1.6.0 (facts 4.6)."""
        return self.version >= differences.V2_0_0

    def identify(self, ctx: int) -> RuntimeVersion:
        """Ask for the version (facts 11.1), and check the answer against the exports (facts 1.8).

        `matmul_create` does it with the first context. A library that gives no answer, or one that its exports
        contradict, is taken for the oldest version that exports the same.
        """
        try:
            self.api_version, self.driver_version = self.sdk_version(ctx)
        except RknnError as error:  # whether the query takes a matmul context is open on some runtimes (Q24)
            logger.info("%s does not tell its version: %s", self.path, error)
        told = RuntimeVersion.parse(self.api_version)
        if told is not None and self._describe is not None:
            # the simulator's general library exports all functions, whichever version it is told to be
            version = told
        else:
            version = differences.judge_version(told, *self._window)
            if told is not None and version != told:
                logger.warning(
                    "%s calls itself %s but exports the functions of %s: taken for the latter",
                    self.path, self.api_version, version,
                )  # fmt: skip
        self._version = version
        for name in [name for name in self._functions if version < differences.version_since(FUNCTIONS[name][2])]:
            del self._functions[name]
        return version

    def has(self, name: str) -> bool:
        """Whether the library has the C function `name`."""
        return name in self._functions

    def address(self, name: str) -> int | None:
        """Address of a C function, for the executor; None where the library lacks it."""
        return C.cast(self._functions[name], C.c_void_p).value if self.has(name) else None

    def _function(self, name: str) -> Any:
        function = self._functions.get(name)
        if function is None:
            raise UnsupportedByRuntime(
                f"{self.path} (runtime {self.version}) does not export {name} (first in runtime {FUNCTIONS[name][2]}); "
                "update librknnrt.so"
            )
        return function

    def _on_chip(self) -> None:
        """Have the simulator create on this runtime's chip; it keeps the choice per thread."""
        if self.soc is not None and self._select is not None:
            self._select(self.soc.encode())

    def check_info(self, info: S.MatmulInfo) -> S.MatmulInfo:
        """`info` in the language of this runtime.

        Raises
        ------
        UnsupportedByRuntime
            If the runtime is too old for it; the message names the version that is needed.
        ValueError
            If a field has a value that no runtime knows.
        """
        return differences.translated_info(info, self.version, self._newest_possible, self.path)

    def _call(self, name: str, *arguments: Any, **shown: Any) -> None:
        code = self._function(name)(*arguments)
        if code != 0:
            raise rknn_error(name, code, shown)

    def _noted_call(self, codes: list[int] | None, name: str, *arguments: Any, **shown: Any) -> None:
        code = noted([] if codes is None else codes, self._function(name), *arguments)
        if code != 0:
            raise rknn_error(name, code, shown)

    def _memory(self, note: MemoryNote | None, name: str, *arguments: Any, **shown: Any) -> C._Pointer[S.TensorMem]:
        memory = noted([] if note is None else note.created, self._function(name), *arguments)
        if not memory:
            # The pointer-returning functions report failure with NULL only (facts 2).
            raise rknn_error(name, -4, shown)
        return memory  # type: ignore[no-any-return]

    # ---- matmul contexts -------------------------------------------------------------------------------------------

    def matmul_create(self, info: S.MatmulInfo, note: ContextNote | None = None) -> tuple[int, S.MatmulIoAttr]:
        """Create a context; returns its handle and the attributes of A, B and C. It is in the note before that."""
        note = ContextNote() if note is None else note
        io_attr = S.MatmulIoAttr()
        told = self.check_info(info)
        self._on_chip()
        arguments = C.byref(note.handle), C.byref(told), C.byref(io_attr)
        self._noted_call(note.created, "rknn_matmul_create", *arguments, **_show_info(info))
        if self._version is None:
            self.identify(note.value)
        return note.value, io_attr

    def matmul_create_dynamic_shape(
        self, info: S.MatmulInfo, shapes: list[tuple[int, int, int]], note: ContextNote | None = None
    ) -> tuple[int, list[S.MatmulIoAttr]]:
        """Create a context for several (M, K, N); returns its handle and the attributes of each shape.

        It is in the note before that.
        """
        if not shapes:
            raise ValueError("matmul_create_dynamic_shape: at least one (M, K, N) is needed")
        name = "rknn_matmul_create_dynamic_shape"
        if not self.has(name):
            # 2.0.0b0's name for the same five parameters; where that is missing too, it is the first that had them
            name = "rknn_matmul_create_dyn_shape"
        note = ContextNote() if note is None else note
        c_shapes = (S.MatmulShape * len(shapes))(*(S.MatmulShape(*shape) for shape in shapes))
        io_attrs = (S.MatmulIoAttr * len(shapes))()
        told = self.check_info(info)
        self._on_chip()
        arguments = C.byref(note.handle), C.byref(told), len(shapes), c_shapes, io_attrs
        self._noted_call(note.created, name, *arguments, **_show_info(info), shapes=shapes)
        if self._version is None:
            self.identify(note.value)
        return note.value, list(io_attrs)

    def matmul_set_dynamic_shape(self, ctx: int, shape: tuple[int, int, int]) -> None:
        """Choose one of the shapes that a dynamic context was created with."""
        c_shape = S.MatmulShape(*shape)
        self._call("rknn_matmul_set_dynamic_shape", ctx, C.byref(c_shape), ctx=hex(ctx), shape=shape)

    def matmul_set_io_mem(self, ctx: int, memory: C._Pointer[S.TensorMem], attr: S.MatmulTensorAttr) -> None:
        """Bind a buffer to A, B or C; to be called again after every update of A or B (facts 7.2)."""
        self._call(
            "rknn_matmul_set_io_mem",
            ctx,
            memory,
            C.byref(attr),
            ctx=hex(ctx),
            tensor=attr.name.decode("ascii", "replace"),
            dims=attr.shape,
            size=attr.size,
        )

    def matmul_set_core_mask(self, ctx: int, mask: CoreMask) -> None:
        """Bind the context to one NPU core; fails on chips with a single core (facts 8)."""
        self._call("rknn_matmul_set_core_mask", ctx, int(mask), ctx=hex(ctx), core_mask=int(mask))

    def matmul_set_quant_params(self, ctx: int, params: S.QuantParams) -> None:
        """Give the scales and zero points of the matrix that ``params.name`` names; the values are copied."""
        self._call("rknn_matmul_set_quant_params", ctx, C.byref(params), ctx=hex(ctx), tensor=params.name.decode())

    def matmul_get_quant_params(self, ctx: int, params: S.QuantParams) -> float:
        """Scale of B after normalisation over its channels (type 2 with per-channel B only, facts 5.4)."""
        scale = C.c_float(0)
        self._call(
            "rknn_matmul_get_quant_params",
            ctx,
            C.byref(params),
            C.byref(scale),
            ctx=hex(ctx),
            tensor=params.name.decode(),
        )
        return scale.value

    def matmul_run(self, ctx: int, through: Callable[[int, int], int] | None = None) -> None:
        """Run the context; blocks until the NPU is done.

        Parameters
        ----------
        ctx : int
        through : callable, optional
            What makes the call, given the function's address and the context.
        """
        name = "rknn_matmul_run"
        function = self._function(name)
        code = function(ctx) if through is None else through(C.cast(function, C.c_void_p).value or 0, ctx)
        if code != 0:
            raise rknn_error(name, code, {"ctx": hex(ctx)})

    def matmul_destroy(self, ctx: int, note: ContextNote | None = None) -> None:
        """Destroy the context; its memories are to be destroyed before (facts 11.5)."""
        self._noted_call(None if note is None else note.destroyed, "rknn_matmul_destroy", ctx, ctx=hex(ctx))

    def b_normal_layout_to_native_layout(
        self, b_input: int, b_output: int, k: int, n: int, info: S.MatmulInfo, tile: tuple[int, int]
    ) -> None:
        """Pack B with the vendor's helper: both buffers by address, whole matrices; for conformance tests only.

        Parameters
        ----------
        b_input, b_output : int
            Addresses.
        k, n : int
        info : MatmulInfo
            That the context was created with.
        tile : (int, int)
            Rows (along N) and columns (along K) of a tile: the last two of ``io_attr.B.dims``. Only 2.0.0b0 asks.
        """
        name = "rknn_B_normal_layout_to_native_layout"
        function, shown = self._function(name), {"K": k, "N": n, "type": info.type}
        told = self.check_info(info)
        self._on_chip()
        if self.version < differences.V2_1_0:
            helper = self._bound(name, _INT, HELPER_OF_2_0_0)
            code = helper(b_input, b_output, k, n, *tile, told.type)
        else:
            code = function(b_input, b_output, k, n, C.byref(told))
        if code != 0:
            raise rknn_error(name, code, shown)

    # ---- memory ----------------------------------------------------------------------------------------------------

    def create_mem(self, ctx: int, size: int, note: MemoryNote | None = None) -> C._Pointer[S.TensorMem]:
        """Allocate `size` bytes of cacheable NPU memory."""
        _check_range("create_mem", "size", size, 1, 2**32 - 1)
        self._on_chip()
        return self._memory(note, "rknn_create_mem", ctx, size, size=size)

    def create_mem2(self, ctx: int, size: int, flags: MemAllocFlags | int) -> C._Pointer[S.TensorMem]:
        """Allocate `size` bytes of NPU memory with allocation flags."""
        _check_range("create_mem2", "size", size, 1, 2**32 - 1)  # the result's size field is 32 bits (facts 1.8)
        self._function("rknn_create_mem2")
        differences.check_alloc_flags(int(flags), MEM_FLAG_ALLOC_NO_CONTEXT, self._newest_possible, self.path)
        self._on_chip()
        return self._memory(None, "rknn_create_mem2", ctx, size, int(flags), size=size, flags=int(flags))

    def create_mem_from_fd(
        self, ctx: int, fd: int, virt_addr: int, size: int, offset: int, note: MemoryNote | None = None
    ) -> C._Pointer[S.TensorMem]:
        """Wrap part of an allocation: `virt_addr` is the start of the descriptor's memory, without `offset`."""
        _check_range("create_mem_from_fd", "size", size, 1, 2**32 - 1)
        _check_range("create_mem_from_fd", "offset", offset, 0, 2**31 - 1)
        return self._memory(
            note, "rknn_create_mem_from_fd", ctx, fd, virt_addr, size, offset, fd=fd, size=size, offset=offset
        )

    def create_mem_from_phys(self, ctx: int, phys_addr: int, virt_addr: int, size: int) -> C._Pointer[S.TensorMem]:
        """Wrap physical memory."""
        _check_range("create_mem_from_phys", "size", size, 1, 2**32 - 1)
        return self._memory(
            None, "rknn_create_mem_from_phys", ctx, phys_addr, virt_addr, size, phys_addr=hex(phys_addr), size=size
        )

    def create_mem_from_mb_blk(self, ctx: int, mb_blk: int, offset: int) -> C._Pointer[S.TensorMem]:
        """Wrap a media block; declared in the headers, exported by no published library."""
        return self._memory(None, "rknn_create_mem_from_mb_blk", ctx, mb_blk, offset, offset=offset)

    def destroy_mem(self, ctx: int, memory: C._Pointer[S.TensorMem], note: MemoryNote | None = None) -> None:
        """Destroy what a create_mem function returned; memory that the user wrapped stays the user's."""
        codes = None if note is None else note.destroyed
        self._noted_call(codes, "rknn_destroy_mem", ctx, memory, ctx=hex(ctx))

    def mem_sync(self, ctx: int, memory: C._Pointer[S.TensorMem], mode: MemSyncMode) -> None:
        """Write the CPU's cache back (TO_DEVICE) or drop it (FROM_DEVICE)."""
        self._call("rknn_mem_sync", ctx, memory, int(mode), ctx=hex(ctx), mode=mode.name)

    # ---- queries ---------------------------------------------------------------------------------------------------

    def query(self, ctx: int, command: QueryCmd, result: C.Structure) -> None:
        """Fill `result`, the struct that belongs to `command`."""
        self._call("rknn_query", ctx, int(command), C.byref(result), C.sizeof(result), ctx=hex(ctx), cmd=command.name)

    def sdk_version(self, ctx: int) -> tuple[str, str]:
        """Version strings of the runtime and of the kernel driver."""
        result = S.SdkVersion()
        self.query(ctx, QueryCmd.SDK_VERSION, result)
        return result.api_version.decode("ascii", "replace"), result.drv_version.decode("ascii", "replace")

    def mem_size(self, ctx: int) -> S.MemSize:
        """Memory figures of a context."""
        result = S.MemSize()
        self.query(ctx, QueryCmd.MEM_SIZE, result)
        return result

    def perf_run(self, ctx: int) -> int:
        """Microseconds that the last run took, as the runtime measured it (whether it answers is open: Q24)."""
        result = S.PerfRun()
        self.query(ctx, QueryCmd.PERF_RUN, result)
        return int(result.run_duration)

    # ---- identity --------------------------------------------------------------------------------------------------

    def simulated_soc(self) -> tuple[str, int] | None:
        """Chip and number of cores where this is our simulator, else None."""
        if self._describe is None:
            return None
        self._on_chip()
        cores = C.c_int(0)
        return self._describe(C.byref(cores)).decode("ascii"), cores.value

    def version_from_symbols(self) -> RuntimeVersion:
        """Lowest version that exports what this library exports (facts 1.8), for where the query says nothing."""
        return self._window[0]


def _show_info(info: S.MatmulInfo) -> dict[str, Any]:
    return {
        "M": info.M,
        "K": info.K,
        "N": info.N,
        "type": info.type,
        "B_layout": info.B_layout,
        "AC_layout": info.AC_layout,
        "iommu_domain_id": info.iommu_domain_id,
    }


def _check_range(function: str, argument: str, value: int, low: int, high: int) -> None:
    """Refuse what ctypes would silently cut to the width of the C type."""
    if not low <= value <= high:
        raise ValueError(f"{function}: {argument} is {value}, outside {low}..{high}")


if sys.byteorder != "little":  # pragma: no cover - no Rockchip board and no supported host is big-endian
    raise ImportError("npumatmul needs a little-endian machine: the RKNN structs are defined for those only")
