"""What users call: products on the NPU, with numpy's semantics."""

from npumatmul.ops.array.array import NpuArray, asarray, empty, zeros
from npumatmul.ops.background import MatmulFuture
from npumatmul.ops.einsum import einsum
from npumatmul.ops.family import dot, inner, matvec, outer, tensordot, vdot, vecdot, vecmat
from npumatmul.ops.linear import linear
from npumatmul.ops.matmul import matmul, matmul_async
from npumatmul.ops.operators import operators
from npumatmul.ops.options import MatmulOptions
from npumatmul.ops.packed.files.api import PackedFile, load_packed, open_packed, save_packed
from npumatmul.ops.packed.pack import pack
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.planned import Matmul
from npumatmul.ops.protocols import call_function, call_ufunc
from npumatmul.ops.settings import config, settings

operators.matmul, operators.save_packed = matmul, save_packed
operators.call_ufunc, operators.call_function, operators.weight = call_ufunc, call_function, PackedWeight

__all__ = [
    "Matmul",
    "MatmulFuture",
    "MatmulOptions",
    "NpuArray",
    "PackedFile",
    "PackedWeight",
    "asarray",
    "config",
    "dot",
    "einsum",
    "empty",
    "inner",
    "linear",
    "load_packed",
    "matmul",
    "matmul_async",
    "matvec",
    "open_packed",
    "outer",
    "pack",
    "save_packed",
    "settings",
    "tensordot",
    "vdot",
    "vecdot",
    "vecmat",
    "zeros",
]
