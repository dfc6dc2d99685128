"""Matrix multiplication on Rockchip NPUs for numpy users.

>>> import numpy as np
>>> import npumatmul as npu
>>> a = np.ones((2, 3), np.float32)
>>> npu.matmul(a, a.T)
array([[3., 3.],
       [3., 3.]], dtype=float32)
"""

from importlib.metadata import version as _version

from npumatmul import errors, quant
from npumatmul.batching import Batch, BatchResults, Pool, PoolMember, QueueStats
from npumatmul.chips import capabilities
from npumatmul.chips.types import MatmulType
from npumatmul.device.budget import MemoryStats
from npumatmul.device.buffer import Buffer, TensorAttr
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.current import current_device, empty_cache, memory_limit, memory_stats, set_device, use_device
from npumatmul.device.device import Device, DeviceStats
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops import (
    Matmul,
    MatmulFuture,
    MatmulOptions,
    NpuArray,
    PackedFile,
    PackedWeight,
    asarray,
    config,
    dot,
    einsum,
    empty,
    inner,
    linear,
    load_packed,
    matmul,
    matmul_async,
    matvec,
    open_packed,
    outer,
    pack,
    save_packed,
    tensordot,
    vdot,
    vecdot,
    vecmat,
    zeros,
)
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.schemes import Scheme
from npumatmul.rknn import MatmulLayout, QuantType
from npumatmul.running.profile import ProductTime, Profile, StepTime, profile

__all__ = [
    "Batch",
    "BatchResults",
    "Buffer",
    "Device",
    "DeviceStats",
    "DynamicMatmulContext",
    "Epilogue",
    "Matmul",
    "MatmulContext",
    "MatmulFuture",
    "MatmulLayout",
    "MatmulOptions",
    "MatmulType",
    "MemoryStats",
    "NpuArray",
    "PackedFile",
    "PackedWeight",
    "Pool",
    "PoolMember",
    "ProductTime",
    "Profile",
    "QuantParams",
    "QuantType",
    "QuantizedWeight",
    "QueueStats",
    "Scheme",
    "StepTime",
    "TensorAttr",
    "asarray",
    "capabilities",
    "config",
    "current_device",
    "dot",
    "einsum",
    "empty",
    "empty_cache",
    "errors",
    "inner",
    "linear",
    "load_packed",
    "matmul",
    "matmul_async",
    "matvec",
    "memory_limit",
    "memory_stats",
    "open_packed",
    "outer",
    "pack",
    "profile",
    "quant",
    "save_packed",
    "set_device",
    "tensordot",
    "use_device",
    "vdot",
    "vecdot",
    "vecmat",
    "zeros",
]

__version__ = _version("npumatmul")


def __dir__() -> list[str]:
    """Only what programs may rely on (docs/api.md), not what happens to be imported here."""
    return [*__all__, "__version__"]
