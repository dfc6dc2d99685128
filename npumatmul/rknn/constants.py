"""Constants and enumerations of `rknn_api.h` and `rknn_matmul_api.h`, runtime 2.3.2 (facts 1.1, 1.4).

The names are the vendor's without the ``RKNN_`` prefix, so that a C programmer finds every one of them.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAX_DIMS = 16
MAX_NUM_CHANNEL = 15
MAX_NAME_LEN = 256
MAX_DYNAMIC_SHAPE_NUM = 512
MEM_FLAG_ALLOC_NO_CONTEXT = 0x00020000
SUCC = 0


class ErrorCode(IntEnum):
    """Return codes; 0 is success (facts 2)."""

    SUCC = 0
    ERR_FAIL = -1
    ERR_TIMEOUT = -2
    ERR_DEVICE_UNAVAILABLE = -3
    ERR_MALLOC_FAIL = -4
    ERR_PARAM_INVALID = -5
    ERR_MODEL_INVALID = -6
    ERR_CTX_INVALID = -7
    ERR_INPUT_INVALID = -8
    ERR_OUTPUT_INVALID = -9
    ERR_DEVICE_UNMATCH = -10
    ERR_INCOMPATILE_PRE_COMPILE_MODEL = -11
    ERR_INCOMPATILE_OPTIMIZATION_LEVEL_VERSION = -12
    ERR_TARGET_PLATFORM_UNMATCH = -13


class TensorType(IntEnum):
    """`rknn_tensor_type`: element type of a tensor."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    UINT8 = 3
    INT16 = 4
    UINT16 = 5
    INT32 = 6
    UINT32 = 7
    INT64 = 8
    BOOL = 9
    INT4 = 10
    BFLOAT16 = 11


class MatmulTypeCode(IntEnum):
    """`rknn_matmul_type`: element types of A, B and C together."""

    FLOAT16_MM_FLOAT16_TO_FLOAT32 = 1
    INT8_MM_INT8_TO_INT32 = 2
    INT8_MM_INT8_TO_INT8 = 3
    FLOAT16_MM_FLOAT16_TO_FLOAT16 = 4
    FLOAT16_MM_INT8_TO_FLOAT32 = 5
    FLOAT16_MM_INT8_TO_FLOAT16 = 6
    FLOAT16_MM_INT4_TO_FLOAT32 = 7
    FLOAT16_MM_INT4_TO_FLOAT16 = 8
    INT8_MM_INT8_TO_FLOAT32 = 9
    INT4_MM_INT4_TO_INT16 = 10
    INT8_MM_INT4_TO_INT32 = 11
    FLOAT16_MM_INT4_TO_BFLOAT16 = 12
    INT8_MM_INT4_TO_FLOAT16 = 15


class QuantType(IntEnum):
    """`rknn_matmul_quant_type` from 2.1.0 on; 2.0.0b0 numbered otherwise (facts 1.4)."""

    PER_LAYER_SYM = 0
    PER_LAYER_ASYM = 1
    PER_CHANNEL_SYM = 2
    PER_CHANNEL_ASYM = 3
    PER_GROUP_SYM = 4
    PER_GROUP_ASYM = 5


class MatmulLayout(IntEnum):
    """`rknn_matmul_layout`: how a matrix stands in memory."""

    NORM = 0
    NATIVE = 1
    TP_NORM = 2


class CoreMask(IntFlag):
    """`rknn_core_mask`. A matmul context takes CORE_AUTO or one single core; combined masks fail (D12)."""

    CORE_AUTO = 0
    CORE_0 = 1
    CORE_1 = 2
    CORE_2 = 4
    CORE_0_1 = 3
    CORE_0_1_2 = 7
    CORE_ALL = 0xFFFF
    CORE_UNDEFINED = 0x10000


class MemSyncMode(IntEnum):
    """`rknn_mem_sync_mode`: which side wrote last."""

    TO_DEVICE = 1
    FROM_DEVICE = 2
    BIDIRECTIONAL = 3


class MemAllocFlags(IntFlag):
    """`rknn_mem_alloc_flags` of `rknn_create_mem2`; SRAM from 2.3.2."""

    DEFAULT = 0
    CACHEABLE = 1
    NON_CACHEABLE = 2
    TRY_ALLOC_SRAM = 4


class TensorMemFlags(IntEnum):
    """`rknn_tensor_mem_flags`: where a `rknn_tensor_mem` came from."""

    ALLOC_INSIDE = 1
    FROM_FD = 2
    FROM_PHYS = 3
    UNKNOWN = 4


class QueryCmd(IntEnum):
    """`rknn_query_cmd`: IN_OUT_NUM, PERF_RUN, SDK_VERSION and MEM_SIZE matter to a matmul context."""

    IN_OUT_NUM = 0
    INPUT_ATTR = 1
    OUTPUT_ATTR = 2
    PERF_DETAIL = 3
    PERF_RUN = 4
    SDK_VERSION = 5
    MEM_SIZE = 6
    CUSTOM_STRING = 7
    NATIVE_INPUT_ATTR = 8
    NATIVE_OUTPUT_ATTR = 9
    NATIVE_NC1HWC2_INPUT_ATTR = 8
    NATIVE_NC1HWC2_OUTPUT_ATTR = 9
    NATIVE_NHWC_INPUT_ATTR = 10
    NATIVE_NHWC_OUTPUT_ATTR = 11
    DEVICE_MEM_INFO = 12
    INPUT_DYNAMIC_RANGE = 13
    CURRENT_INPUT_ATTR = 14
    CURRENT_OUTPUT_ATTR = 15
    CURRENT_NATIVE_INPUT_ATTR = 16
    CURRENT_NATIVE_OUTPUT_ATTR = 17
    CMD_MAX = 18
