"""Matrix multiplication on Rockchip NPUs for numpy users.

>>> import numpy as np
>>> import npumatmul as npu
>>> a = np.ones((2, 3), np.float32)
>>> npu.matmul(a, a.T)
array([[3., 3.],
       [3., 3.]], dtype=float32)
"""

from importlib.metadata import version as _version

from npumatmul import errors
from npumatmul.device import Device, DeviceStats, current_device, use_device
from npumatmul.ops import (
    PackedWeight,
    config,
    dot,
    einsum,
    inner,
    linear,
    matmul,
    matvec,
    outer,
    pack,
    tensordot,
    vdot,
    vecdot,
    vecmat,
)

__all__ = [
    "Device",
    "DeviceStats",
    "PackedWeight",
    "config",
    "current_device",
    "dot",
    "einsum",
    "errors",
    "inner",
    "linear",
    "matmul",
    "matvec",
    "outer",
    "pack",
    "tensordot",
    "use_device",
    "vdot",
    "vecdot",
    "vecmat",
]

__version__ = _version("npumatmul")
