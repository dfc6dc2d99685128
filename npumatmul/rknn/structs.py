"""The C structs of runtime 2.3.2 as ctypes (facts 1.2, 1.3); the field names are the vendor's.

Sizes and offsets are compared with a compiled C program in `tests/test_rknn_abi.py`.
"""

from __future__ import annotations

import ctypes as C
import platform
from dataclasses import dataclass
from typing import Any

from npumatmul.rknn import constants


def context_bytes(machine: str, pointer_bytes: int) -> int:
    """Bytes of a `rknn_context`: 4 in 32-bit ARM programs, 8 in all others (facts 1.1).

    A 32-bit program under a 64-bit kernel is told the kernel's machine, ``aarch64``.

    Examples
    --------
    >>> context_bytes("aarch64", 8), context_bytes("armv7l", 4), context_bytes("aarch64", 4)
    (8, 4, 4)
    """
    return 4 if pointer_bytes == 4 and machine.startswith(("arm", "aarch64")) else 8


Context: type[C._SimpleCData[int]] = (
    C.c_uint32 if context_bytes(platform.machine(), C.sizeof(C.c_void_p)) == 4 else C.c_uint64
)


class MatmulInfo(C.Structure):
    """`rknn_matmul_info`, 64 bytes. ctypes zeroes it, as every runtime wants (facts 11.5)."""

    _fields_ = (
        ("M", C.c_int32),
        ("K", C.c_int32),
        ("N", C.c_int32),
        ("type", C.c_int),
        ("B_layout", C.c_int16),
        ("B_quant_type", C.c_int16),
        ("AC_layout", C.c_int16),
        ("AC_quant_type", C.c_int16),
        ("iommu_domain_id", C.c_int32),
        ("group_size", C.c_int16),
        ("reserved", C.c_int8 * 34),
    )


class MatmulTensorAttr(C.Structure):
    """`rknn_matmul_tensor_attr`, 332 bytes: name, dims, size in bytes, `rknn_tensor_type`."""

    _fields_ = (
        ("name", C.c_char * constants.MAX_NAME_LEN),
        ("n_dims", C.c_uint32),
        ("dims", C.c_uint32 * constants.MAX_DIMS),
        ("size", C.c_uint32),
        ("type", C.c_int),
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """The first ``n_dims`` entries of ``dims``."""
        return tuple(self.dims[: min(self.n_dims, constants.MAX_DIMS)])


class MatmulIoAttr(C.Structure):
    """`rknn_matmul_io_attr`, 996 bytes: the attributes of A, B and C, written by create."""

    _fields_ = (("A", MatmulTensorAttr), ("B", MatmulTensorAttr), ("C", MatmulTensorAttr))


class MatmulShape(C.Structure):
    """`rknn_matmul_shape`, 12 bytes."""

    _fields_ = (("M", C.c_int32), ("K", C.c_int32), ("N", C.c_int32))


class QuantParams(C.Structure):
    """`rknn_quant_params`, 288 bytes on 64-bit machines: scales and zero points of one tensor."""

    _fields_ = (
        ("name", C.c_char * constants.MAX_NAME_LEN),
        ("scale", C.POINTER(C.c_float)),
        ("scale_len", C.c_int32),
        ("zp", C.POINTER(C.c_int32)),
        ("zp_len", C.c_int32),
    )


class TensorMem(C.Structure):
    """`rknn_tensor_mem`, 40 bytes: made and freed by the runtime; data starts at ``virt_addr + offset``."""

    _fields_ = (
        ("virt_addr", C.c_void_p),
        ("phys_addr", C.c_uint64),
        ("fd", C.c_int32),
        ("offset", C.c_int32),
        ("size", C.c_uint32),
        ("flags", C.c_uint32),
        ("priv_data", C.c_void_p),
    )


class SdkVersion(C.Structure):
    """`rknn_sdk_version`, 512 bytes."""

    _fields_ = (("api_version", C.c_char * 256), ("drv_version", C.c_char * 256))


class MemSize(C.Structure):
    """`rknn_mem_size`, 64 bytes; ``reserved`` has the header's ten entries (D23)."""

    _fields_ = (
        ("total_weight_size", C.c_uint32),
        ("total_internal_size", C.c_uint32),
        ("total_dma_allocated_size", C.c_uint64),
        ("total_sram_size", C.c_uint32),
        ("free_sram_size", C.c_uint32),
        ("reserved", C.c_uint32 * 10),
    )


class InputOutputNum(C.Structure):
    """`rknn_input_output_num`, 8 bytes."""

    _fields_ = (("n_input", C.c_uint32), ("n_output", C.c_uint32))


class PerfRun(C.Structure):
    """`rknn_perf_run`, 8 bytes: duration of the last run in microseconds."""

    _fields_ = (("run_duration", C.c_int64),)


class PerfDetail(C.Structure):
    """`rknn_perf_detail`, 16 bytes on 64-bit machines."""

    _fields_ = (("perf_data", C.c_char_p), ("data_len", C.c_uint64))


@dataclass(frozen=True)
class StructLayout:
    """How a C compiler lays a struct out: size and alignment in bytes, offset of each field."""

    size: int
    alignment: int
    offsets: dict[str, int]


def layout_on(struct: type[C.Structure], pointer_bytes: int) -> StructLayout:
    """Layout of a struct on a machine with pointers of 4 or 8 bytes, whichever this one has.

    Fixed-width fields have the same size everywhere, and 64-bit integers are aligned to 8 bytes on aarch64, x86-64 and
    32-bit ARM (EABI). What remains is pointers.

    Examples
    --------
    >>> layout_on(QuantParams, 4).offsets
    {'name': 0, 'scale': 256, 'scale_len': 260, 'zp': 264, 'zp_len': 268}
    >>> layout_on(TensorMem, 4).size, layout_on(TensorMem, 8).size
    (40, 40)
    """
    offset, widest, offsets = 0, 1, {}
    for name, kind, *_ in struct._fields_:
        size, alignment = _extent_on(kind, pointer_bytes)
        offset = -(-offset // alignment) * alignment
        offsets[name] = offset
        offset += size
        widest = max(widest, alignment)
    return StructLayout(-(-offset // widest) * widest, widest, offsets)


def _extent_on(kind: Any, pointer_bytes: int) -> tuple[int, int]:
    """Size and alignment of a field's type."""
    if issubclass(kind, C.Structure):
        inner = layout_on(kind, pointer_bytes)
        return inner.size, inner.alignment
    if issubclass(kind, C.Array):
        size, alignment = _extent_on(kind._type_, pointer_bytes)
        return size * kind._length_, alignment
    if issubclass(kind, (C._Pointer, C.c_void_p, C.c_char_p)):
        return pointer_bytes, pointer_bytes
    return C.sizeof(kind), C.sizeof(kind)
