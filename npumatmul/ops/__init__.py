"""What users call: products on the NPU, with numpy's semantics."""

from npumatmul.ops.array import NpuArray, asarray, empty, zeros
from npumatmul.ops.background import MatmulFuture
from npumatmul.ops.einsum import einsum
from npumatmul.ops.family import dot, inner, linear, matvec, outer, tensordot, vdot, vecdot, vecmat
from npumatmul.ops.matmul import matmul, matmul_async
from npumatmul.ops.packed import PackedWeight, pack
from npumatmul.ops.planned import Matmul, MatmulOptions
from npumatmul.ops.settings import config, settings

__all__ = [
    "Matmul",
    "MatmulFuture",
    "MatmulOptions",
    "NpuArray",
    "PackedWeight",
    "asarray",
    "config",
    "dot",
    "einsum",
    "empty",
    "inner",
    "linear",
    "matmul",
    "matmul_async",
    "matvec",
    "outer",
    "pack",
    "settings",
    "tensordot",
    "vdot",
    "vecdot",
    "vecmat",
    "zeros",
]
