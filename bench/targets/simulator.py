"""Products of the simulator, beside numpy's float32 ones: how long tests and demos wait, not how fast a chip is."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.host.multiply import instruction_sets
from npumatmul.quant.names import SchemeName
from targets.lines import Turns, UnavailableError, line

K = N = 2048
#: Layers of small language models.
SHAPES = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (4096, 4096))
ROWS = (128, 512)


def integers(*shape: int) -> NDArray[np.int8]:
    """Random int8."""
    return np.random.default_rng(0).integers(-128, 128, shape, np.int8)


def floats(*shape: int) -> NDArray[np.float32]:
    """Random float32."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def one_thread() -> Any:
    """Keep numpy to one thread."""
    try:
        threadpoolctl = import_module("threadpoolctl")
    except ImportError:
        raise UnavailableError("threadpoolctl is not installed") from None
    return threadpoolctl.threadpool_limits(1)


def by_cores(a: NDArray[Any], packed: npu.PackedWeight, *cores: int) -> Callable[[], object]:
    """A product on these cores, which are threads of the simulator."""

    def work() -> object:
        with npu.config(cores=cores):
            return npu.matmul(a, packed)

    return work


@line(
    "simulated {0}x2048 @ 2048x2048, {1}",
    "numpy float32 @, its threads",
    over=product((1, 32, 256), ("w16a16", "w8a8")),
)
def simulated_product(rows: int, scheme: SchemeName) -> Iterator[Turns]:
    """A linear layer, packed once."""
    a, b = floats(rows, K), floats(K, N)
    with npu.pack(b, scheme) as packed:
        yield Turns(lambda: npu.matmul(a, packed), lambda: a @ b)


def over_numpy(rows: int, k: int, n: int, dtype: str) -> Iterator[Turns]:
    """One core of the simulator beside one thread of numpy; A and B have the NPU's types already."""
    a, b = floats(rows, k), floats(k, n)
    x, w = (integers(rows, k), integers(k, n)) if dtype == "int8" else (a.astype(dtype), b.astype(dtype))
    with one_thread(), npu.pack(w) as packed:
        yield Turns(by_cores(x, packed, 0), lambda: a @ b)


@line(
    "simulated int8 {0}x{1[0]} @ {1[0]}x{1[1]}, one core",
    "numpy float32 @, one thread",
    least=2.5 if "avx512" in instruction_sets() else 1.3,
    over=product(ROWS, SHAPES),
)
def int8_product(rows: int, shape: tuple[int, int]) -> Iterator[Turns]:
    """Integers, exact."""
    yield from over_numpy(rows, *shape, "int8")


@line(
    "simulated float16 {0}x{1[0]} @ {1[0]}x{1[1]}, one core",
    "numpy float32 @, one thread",
    least=0.8,
    over=product(ROWS, SHAPES),
)
def float16_product(rows: int, shape: tuple[int, int]) -> Iterator[Turns]:
    """Float32 sums."""
    yield from over_numpy(rows, *shape, "float16")


@line(
    "simulated int4 {0}x2048 @ 2048x2048 by int8 rows, one core",
    "int8",
    least=0.9,
    over=product(ROWS),
)
def int4_product(rows: int) -> Iterator[Turns]:
    """The same rows; B has half the bytes and is widened on the way."""
    x = floats(rows, K)
    with (
        npu.Device("sim:rk3576") as device,
        npu.pack(floats(K, N), "w4a8", device=device) as narrow,
        npu.pack(floats(K, N), "w8a8", device=device) as wide,
    ):
        yield Turns(by_cores(x, narrow, 0), by_cores(x, wide, 0))


def torchs_int8(x: NDArray[np.int8], w: NDArray[np.int8]) -> Callable[[], object]:
    """PyTorch, one thread."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("torch is not installed") from None
    torch.set_num_threads(1)
    a, b = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: torch._int_mm(a, b)


def torchs_float16(x: NDArray[np.int8], w: NDArray[np.int8]) -> Callable[[], object]:
    """PyTorch, one thread."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("torch is not installed") from None
    torch.set_num_threads(1)
    a, b = torch.from_numpy(x.astype(np.float16)), torch.from_numpy(w.astype(np.float16))
    return lambda: a @ b


def onnx_runtimes_int8(x: NDArray[np.int8], w: NDArray[np.int8]) -> Callable[[], object]:
    """Its MatMulInteger with a constant B, one thread."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise UnavailableError("onnx and onnxruntime are not installed") from None
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product",
        [helper.make_tensor_value_info("a", TensorProto.INT8, x.shape)],
        [helper.make_tensor_value_info("c", TensorProto.INT32, (x.shape[0], w.shape[1]))],
        [numpy_helper.from_array(w, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": x})


OTHERS = {
    "torch._int_mm": torchs_int8,
    "onnxruntime MatMulInteger": onnx_runtimes_int8,
    "torch float16 @": torchs_float16,
}


@line(
    "simulated {2} {1}x2048 @ 2048x2048, one core",
    "{0}, one thread",
    over=[(name, rows, "float16" if "16" in name else "int8") for name in OTHERS for rows in ROWS],
)
def beside_others(name: str, rows: int, dtype: str) -> Iterator[Turns]:
    """What other libraries make of the same operands."""
    x, w = integers(rows, K), integers(K, N)
    other = OTHERS[name](x, w)
    with npu.pack(w.astype(dtype)) as packed:
        yield Turns(by_cores(x.astype(dtype), packed, 0), other)


@line("simulated int8 1x8192 @ 8192x8192, one core", "reading B", least=0.75)
def streamed_product() -> Iterator[Turns]:
    """64 MiB of B, which are not in a cache."""
    b = integers(8192, 8192)
    words = b.view(np.uint64)
    with npu.pack(b) as packed:
        yield Turns(by_cores(integers(1, 8192), packed, 0), lambda: np.bitwise_or.reduce(words, axis=None))


def reader_into_there(path: Path) -> Callable[[], object]:
    """Into memory that the program has already: the copy alone."""
    memory = np.zeros(path.stat().st_size, np.uint8)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            file.readinto(memory.data)

    return read


def read_into_shared(path: Path) -> None:
    """Into memory like that of the simulated NPU: new, shared, and made page by page."""
    size, number = path.stat().st_size, os.memfd_create("packed")
    try:
        os.ftruncate(number, size)
        with path.open("rb", buffering=0) as file, mmap.mmap(number, size) as memory:
            file.readinto(memory)
    finally:
        os.close(number)


# Loading ends in memory that is new, which a file's reader pays for, too: that is what the target is for.
LOADED = "load packed weights, {0} of {1}x{1} int8"


def reader_of_all(path: Path) -> Callable[[], object]:
    """As anybody would."""
    return path.read_bytes


def reader_into_shared(path: Path) -> Callable[[], object]:
    """As the simulator's memory is made."""
    return lambda: read_into_shared(path)


@line(LOADED, "Path.read_bytes()", most=1.3, over=[(4, 4096, reader_of_all)])
@line(LOADED, "Path.read_bytes()", most=1.5, over=[(16, 2048, reader_of_all)])
@line(LOADED, "reading the file into new shared memory", over=[(4, 4096, reader_into_shared)])
@line(LOADED, "reading the file into memory that is there", over=[(4, 4096, reader_into_there)])
def packed_file(count: int, size: int, reader: Callable[[Path], Callable[[], object]]) -> Iterator[Turns]:
    """With checksums, into NPU memory that is new each time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        weights = {f"w{i}": npu.pack(integers(size, size)) for i in range(count)}
        npu.save_packed(weights, path)
        for weight in weights.values():
            weight.close()

        def load() -> None:
            with npu.open_packed(path) as file:
                loaded = [file[name] for name in file]
            for weight in loaded:
                weight.close()

        yield Turns(load, reader(path))


@line(
    "simulated {1} {0}x2048 @ 2048x2048, two cores",
    "one core",
    least=1.8,
    over=product((64, 512), ("int8", "float16")),
)
def two_cores(rows: int, dtype: str) -> Iterator[Turns]:
    """Each core is a thread, as a program's own would be; tiles of a weight are as wide on both cores of this chip."""
    if len(os.sched_getaffinity(0)) < 2:
        raise UnavailableError("there is one processor")
    x, w = (integers(rows, K), integers(K, N)) if dtype == "int8" else (floats(rows, K), floats(K, N))
    with npu.Device("sim:rk3576") as device, npu.pack(w.astype(dtype), device=device) as packed:
        yield Turns(by_cores(x.astype(dtype), packed, 0, 1), by_cores(x.astype(dtype), packed, 0))
