"""The C structs of runtime 2.3.2 as ctypes (facts 1.2, 1.3); the field names are the vendor's.

Sizes and offsets are compared with a compiled C program in `tests/test_rknn_abi.py`.
"""

from __future__ import annotations

import ctypes as C
import platform

from npumatmul.rknn import constants

#: `rknn_context` is 32 bits wide on 32-bit ARM only (facts 1.1).
Context: type[C._SimpleCData[int]] = (
    C.c_uint32 if platform.machine().startswith("arm") and C.sizeof(C.c_void_p) == 4 else C.c_uint64
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
