"""Uses of the public functions for type checkers: what they are to see, and what they are to refuse.

Read by tests/test_types.py and never run. A line that ends in ``# refused`` has to be an error, all others none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import npumatmul as npu

x: NDArray[np.float32] = np.ones((2, 64), np.float32)
w: NDArray[np.float32] = np.ones((64, 64), np.float32)
packed = npu.pack(w, "w8a8")
array = npu.asarray(x)

assert_type(packed, npu.PackedWeight)
assert_type(array, npu.NpuArray)

# ---- batches and pools ----------------------------------------------------------------------------------------------
assert_type(npu.Batch(packed, 16).run(), npu.BatchResults)
assert_type(npu.Batch(packed, 16, shape=64, dtype=np.float16).add(x[0]), int)
assert_type(npu.Pool(packed, cores=[(0, 1), 2]).get(timeout=1.0), npu.PoolMember)
assert_type(list(npu.Pool(packed, cores="any").map(x)), list[Any])
npu.Batch(packed, "16")  # refused
npu.Batch(packed, 16, max_wait="soon")  # refused
npu.Pool(packed, cores="all")  # refused
npu.Pool(packed).put(7)  # refused

# ---- products of ndarrays are ndarrays -----------------------------------------------------------------------------
assert_type(npu.matmul(x, w), NDArray[Any])
assert_type(npu.matmul(x, packed, bias=[0.5] * 64, dtype=np.float16), NDArray[Any])
assert_type(npu.matmul([[1.0]], [[2.0]], scheme="w8a8"), NDArray[Any])
assert_type(npu.dot(x, w), NDArray[Any])
assert_type(npu.inner(x, w), NDArray[Any])
assert_type(npu.outer(x, w), NDArray[Any])
assert_type(npu.vecdot(x, x, axis=np.int64(0)), NDArray[Any])
assert_type(npu.matvec(w, x), NDArray[Any])
assert_type(npu.vecmat(x, w), NDArray[Any])
assert_type(npu.tensordot(x, w, axes=(np.int64(1), 0)), NDArray[Any])
assert_type(npu.tensordot(x, w, ([1], [0])), NDArray[Any])
assert_type(npu.einsum("ij,jk->ik", x, packed), NDArray[Any])
assert_type(npu.einsum(x, [0, 1], w, [1, 2], [0, 2]), NDArray[Any])
assert_type(npu.vdot(x, x), np.number[Any])
assert_type(npu.linear(x, w, activation="silu", transposed=True), NDArray[Any])
assert_type(x @ packed, NDArray[Any])
assert_type(packed @ w, NDArray[Any])
assert_type(packed.T, NDArray[Any])
assert_type(packed.unpack(), NDArray[Any])

# ---- those of NpuArrays are NpuArrays ------------------------------------------------------------------------------
assert_type(npu.matmul(array, w), npu.NpuArray)
assert_type(npu.matmul(x, array), npu.NpuArray)
assert_type(npu.matmul(array, packed, epilogue=npu.Epilogue(activation="relu")), npu.NpuArray)
assert_type(npu.dot(array, packed), npu.NpuArray)
assert_type(npu.inner(x, array), npu.NpuArray)
assert_type(npu.outer(array, array), npu.NpuArray)
assert_type(npu.vecdot(array, x), npu.NpuArray)
assert_type(npu.tensordot(array, w, 1), npu.NpuArray)
assert_type(npu.einsum("ij,jk->ik", array, w), npu.NpuArray)
assert_type(npu.einsum("ij,kj->ik", x, array), npu.NpuArray)
assert_type(npu.linear(array, packed), npu.NpuArray)
assert_type(array @ packed, npu.NpuArray)
assert_type(array @ w, npu.NpuArray)
assert_type(array.reshape(-1), npu.NpuArray)
assert_type(array.ravel(), NDArray[Any])
assert_type(array.numpy(), NDArray[Any])

# ---- `out` is what comes back --------------------------------------------------------------------------------------
assert_type(npu.matmul(array, w, out=x), NDArray[np.float32])
assert_type(npu.matmul(x, w, (x,)), NDArray[np.float32])
assert_type(npu.matmul(x, w, array), npu.NpuArray)
assert_type(npu.dot(x, w, x), NDArray[np.float32])

# ---- planned, and in the background --------------------------------------------------------------------------------
product = npu.Matmul(x, w, scheme="w8a8", options={"cores": 1})
assert_type(product.execute(), NDArray[Any])
assert_type(product.execute(array), npu.NpuArray)
assert_type(npu.Matmul(array, packed).execute(), npu.NpuArray)
assert_type(npu.Matmul(array, packed).submit().result(), npu.NpuArray)
assert_type(npu.matmul_async(x, packed).result(), NDArray[Any])
assert_type(npu.matmul_async(array, packed).result(), npu.NpuArray)


async def awaited() -> None:
    assert_type(await npu.matmul_async(x, packed), NDArray[Any])


def declared(planned: npu.Matmul, future: npu.MatmulFuture) -> NDArray[Any]:
    """Without a parameter they are of ndarrays."""
    planned.execute()
    return future.result()


# ---- settings ------------------------------------------------------------------------------------------------------
with npu.config(fallback="numpy", tuned=True), npu.config(fallback=None), npu.use_device("sim"):
    npu.pack(w, npu.Scheme.parse("w4a8_g96"))

# ---- mistakes ------------------------------------------------------------------------------------------------------
npu.matmul(x, w, scheme="w8a7")  # refused
npu.matmul(x, w, precision="higher")  # refused
npu.dot(x, w, scheme="w9a9")  # refused
npu.einsum("ij,jk", x, w, precision="low")  # refused
npu.pack(w, "q4")  # refused
npu.Matmul(x, w, precision="low")  # refused
npu.matmul_async(x, w, scheme="q8")  # refused
npu.config(fallback="torch")  # refused
npu.config(tuned="yes")  # refused
npu.linear(x, w, activation="swish")  # refused
npu.Epilogue(activation="swish")  # refused
npu.MatmulOptions(layout="column")  # refused
npu.matmul(x)  # refused
npu.matmul(x, w, axes=1)  # refused
npu.matmul(x, w, out="here")  # refused
npu.matmul(x, object())  # refused
