"""What a call costs beyond its product: the smallest one, beside numpy's smallest one, and beside the executor's."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np

import npumatmul as npu
from npumatmul.host.executor import Call, Executor, Report
from npumatmul.rknn.constants import MemSyncMode
from npumatmul.rknn.structs import Context
from targets.lines import Turns, line

#: So many calls are timed as one, for a clock that is read in a tenth of the time of one.
CALLS = 100


@line("dispatch 1x32 @ 32x32, {0}", "numpy float32 @", over=[("w16a16",), ("w8a8",)])
def smallest_product(scheme: str) -> Iterator[Turns]:
    """One row by one tile: Python, packing, binding and storing are nearly all of it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1, 32)).astype(np.float32), rng.standard_normal((32, 32)).astype(np.float32)
    out = np.empty((1, 32), np.float32)
    with npu.pack(b, scheme) as packed:
        yield Turns(lambda: npu.matmul(a, packed), lambda: np.matmul(a, b, out=out))


def bare_call(product: Callable[[], Any]) -> Callable[[], None]:
    """The call of the executor that a product makes, with its arguments ready: nothing of Python but ctypes."""
    made: list[tuple[Executor, Any, Call]] = []
    execute = Executor.execute

    def noted(self: Executor, placed: Any, call: Call, proven: bool = False) -> int:
        made.append((self, placed, Call.from_buffer_copy(call)))
        return execute(self, placed, call, proven)

    product()  # what there is to prepare
    with patch.object(Executor, "execute", noted):
        result = product()
    ((executor, placed, call),) = made
    function, address, report = executor._execute, executor._address, Report()

    def bare(keep: Any = result) -> None:  # the call refers to its memory
        for _ in range(CALLS):
            function(address, placed, call, report)

    return bare


@line(
    "100 x 1x64 @ 64x64 by {0}, w8a8",
    "the executor's calls",
    most=3.0,
    over=[("matmul",), ("@",), ("Matmul.execute",), ("linear",), ("out",)],
)
def above_the_executor(way: str) -> Iterator[Turns]:
    """By whichever way it goes, the time above the bare call is to be at most twice that of the call itself."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 64)).astype(np.float32), rng.standard_normal((64, 64)).astype(np.float32)
    bias, out = rng.standard_normal(64).astype(np.float32), np.empty((1, 64), np.float32)
    with npu.pack(w, "w8a8") as packed:
        execute = npu.Matmul(x, packed).execute
        ways: dict[str, Callable[[], Any]] = {
            "matmul": lambda: npu.matmul(x, packed),
            "@": lambda: x @ packed,
            "Matmul.execute": execute,
            "linear": lambda: npu.linear(x, packed, bias, "silu"),
            "out": lambda: npu.matmul(x, packed, out=out),
        }
        product = ways[way]

        def products() -> None:
            for _ in range(CALLS):
                product()

        yield Turns(products, bare_call(product))


def bare_runtime(product: Callable[[], Any]) -> Callable[[], None]:
    """What any binding has to call for a product of one tile whose weight is ready, with arguments that are ready, too.

    A and C are synchronised, three memories bound, and the NPU run; A is not packed, and C not read.
    """
    made: list[Any] = []
    execute = Executor.execute

    def noted(self: Executor, placed: Any, call: Call, proven: bool = False) -> int:
        made.append(placed)
        return execute(self, placed, call, proven)

    product()  # what there is to prepare
    with patch.object(Executor, "execute", noted):
        product()
    (placed,) = made
    functions, shape = placed.runtime.contents, placed.shapes[0].contents
    whole = C.CFUNCTYPE(C.c_int, Context)(functions.run)
    bind = C.CFUNCTYPE(C.c_int, Context, C.c_void_p, C.c_void_p)(functions.set_io_mem)
    sync = C.CFUNCTYPE(C.c_int, Context, C.c_void_p, C.c_int)(functions.mem_sync)
    handle = shape.context.contents.handle
    a, b, c = (C.cast(memory[0], C.c_void_p) for memory in (placed.a_memories, placed.b_memories, placed.c_memories))
    attributes = [C.addressof(shape.io_attr) + getattr(type(shape.io_attr), name).offset for name in "ABC"]

    def bare() -> None:
        for _ in range(CALLS):
            sync(handle, a, MemSyncMode.TO_DEVICE)
            bind(handle, a, attributes[0])
            bind(handle, b, attributes[1])
            bind(handle, c, attributes[2])
            whole(handle)
            sync(handle, c, MemSyncMode.FROM_DEVICE)

    return bare


@line("100 x 1x64 @ 64x64 by {0}, w8a8", "the calls of the runtime by ctypes", most=2.0, over=[("matmul",), ("@",)])
def beside_the_runtime(way: str) -> Iterator[Turns]:
    """The smallest product with a ready weight: quantized, packed, run, rescaled and given as an array."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 64)).astype(np.float32), rng.standard_normal((64, 64)).astype(np.float32)
    with npu.pack(w, "w8a8") as packed:
        ways: dict[str, Callable[[], Any]] = {"matmul": lambda: npu.matmul(x, packed), "@": lambda: x @ packed}
        product = ways[way]

        def products() -> None:
            for _ in range(CALLS):
                product()

        yield Turns(products, bare_runtime(product))
