"""The RKNN runtime's C API, one to one: structs, constants, and a typed method per function.

This is the lowest layer: it adds nothing but types and exceptions. `Runtime` loads a library, `discovery` chooses it.
"""

from npumatmul.rknn.constants import (
    CoreMask,
    ErrorCode,
    MatmulLayout,
    MatmulTypeCode,
    MemAllocFlags,
    MemSyncMode,
    QuantType,
    QueryCmd,
    TensorMemFlags,
    TensorType,
)
from npumatmul.rknn.discovery import Discovery, discover, load
from npumatmul.rknn.runtime import Runtime
from npumatmul.rknn.structs import (
    InputOutputNum,
    MatmulInfo,
    MatmulIoAttr,
    MatmulShape,
    MatmulTensorAttr,
    MemSize,
    PerfDetail,
    PerfRun,
    QuantParams,
    SdkVersion,
    TensorMem,
)
from npumatmul.rknn.version import RuntimeVersion

__all__ = [
    "CoreMask",
    "Discovery",
    "ErrorCode",
    "InputOutputNum",
    "MatmulInfo",
    "MatmulIoAttr",
    "MatmulLayout",
    "MatmulShape",
    "MatmulTensorAttr",
    "MatmulTypeCode",
    "MemAllocFlags",
    "MemSize",
    "MemSyncMode",
    "PerfDetail",
    "PerfRun",
    "QuantParams",
    "QuantType",
    "QueryCmd",
    "Runtime",
    "RuntimeVersion",
    "SdkVersion",
    "TensorMem",
    "TensorMemFlags",
    "TensorType",
    "discover",
    "load",
]
