"""`bench overhead`: the smallest product, by every function of the C API and by every way of Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npumatmul.bench.benchmark import Benchmark, Progress
from npumatmul.bench.cases import TYPES, Case
from npumatmul.bench.contexts import BoundTiles, Tile
from npumatmul.bench.record import Row
from npumatmul.bench.sampling import Stopwatch, settle
from npumatmul.bench.statistics import summarise
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.device.device import Device
from npumatmul.ops import Matmul, asarray, linear, matmul, matmul_async, pack
from npumatmul.quant.schemes import Scheme

__all__ = ["OverheadBenchmark"]

_TYPE = "int8"


@dataclass(frozen=True, kw_only=True)
class OverheadBenchmark(Benchmark):
    """What calls cost beside what they compute: of the C API, and of Python.

    Attributes
    ----------
    scheme : str
        Of the product that Python makes: one row by `size` x `size`.
    size : int
    calls : int
        Of Python are timed as one, for a clock that takes a while to be read.
    """

    name: ClassVar[str] = "overhead"
    drawable: ClassVar[bool] = False

    scheme: str = "w8a8"
    size: int = 64
    calls: int = 20

    def prepare(self, device: Device) -> list[str]:
        self.sampling  # noqa: B018 - looks at its options
        if self.size < 1 or self.calls < 1:
            raise ValueError(f"size is {self.size} and calls {self.calls}; both are 1 or more")
        scheme = Scheme.parse(self.scheme)
        if scheme.integers:
            raise ValueError(f"scheme: {self.scheme} takes integers; overhead is of products of floats")
        problem = Case(self.scheme, 1, self.size, self.size).problem(device.chip, device.runtime_version)
        if problem is not None:
            raise ValueError(problem)
        problem = Case(_TYPE, 1, self.size, self.size).problem(device.chip, device.runtime_version)
        if problem is not None:
            raise ValueError(problem)
        return []

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        watch = SlowdownWatch(self.root, self.throttle)
        progress(0, 2, "functions of the C API")
        yield from self._of_c(device, watch)
        progress(1, 2, "ways of Python")
        yield from self._of_python(device, watch)
        progress(2, 2, "done")

    def _of_c(self, device: Device, watch: SlowdownWatch) -> Iterator[Row]:
        shape = Case(_TYPE, 1, self.size, self.size).padded(device.chip, device.runtime_version)
        bound = BoundTiles(device, TYPES[_TYPE], [Tile(0, 1, shape.k, shape.n)], ac_native=True)
        stopwatch = Stopwatch()
        for _ in self.sampling.rounds(stopwatch, ["create context"]):
            (context,) = stopwatch.time("create context", bound.create)
            stopwatch.time("destroy context", context.close)
            memory = stopwatch.time("create memory", device.buffer, shape.k)
            stopwatch.time("destroy memory", memory.close)
        with bound:
            bound.flush_a()
            bound.bind()
            runtime, handle = device.runtime, bound.contexts[0].handle
            ways: dict[str, Callable[[], object]] = {
                "run": bound.run,
                "set_io_mem of A, B, C": bound.bind,
                "sync of A to the device": bound.flush_a,
                "sync of C from the device": bound.sync_c,
                "ctypes: run": lambda: runtime.matmul_run(handle),
            }
            for _ in self.sampling.rounds(stopwatch, list(ways)):
                for name, way in ways.items():
                    stopwatch.time(name, way)
        yield from self._rows("c", stopwatch.seconds, watch)

    def _of_python(self, device: Device, watch: SlowdownWatch) -> Iterator[Row]:
        scheme, rng = Scheme.parse(self.scheme), np.random.default_rng(self.seed)
        w = rng.standard_normal((self.size, self.size), np.float32)
        x = rng.standard_normal((1, self.size), np.float32)
        out, bias = np.empty((1, self.size), np.float32), np.zeros(self.size, np.float32)
        with ExitStack() as held:
            packed = held.enter_context(pack(w, scheme, device=device))
            planned = held.enter_context(Matmul(x, packed))
            on_npu = asarray(x, device=device)
            result = planned.execute()
            assert planned.prepared is not None
            assert planned.prepared.program is not None
            settle(planned.execute)
            bare = planned.prepared.program.bare_call()
            ways: dict[str, Callable[[], Any]] = {
                "executor": bare,  # into `result`
                "matmul(x, packed)": lambda: matmul(x, packed),
                "matmul(x, packed, out=out)": lambda: matmul(x, packed, out=out),
                "x @ packed": lambda: x @ packed,
                "Matmul.execute()": planned.execute,
                "linear(x, packed, bias, 'silu')": lambda: linear(x, packed, bias, "silu"),
                "NpuArray @ packed": lambda: on_npu @ packed,
                "matmul_async(x, packed).result()": lambda: matmul_async(x, packed).result(),
                "matmul(x, w), packed anew": lambda: matmul(x, w, scheme=scheme, device=device),
                "numpy: x @ w": lambda: x @ w,
            }
            stopwatch = Stopwatch()
            for _ in self.sampling.rounds(stopwatch, list(ways)):
                for name, way in ways.items():
                    stopwatch.time(name, _repeat, way, self.calls)
            del result
        per_call = {name: [each / self.calls for each in times] for name, times in stopwatch.seconds.items()}
        yield from self._rows("python", per_call, watch)

    def _rows(self, of: str, seconds: Mapping[str, list[float]], watch: SlowdownWatch) -> Iterator[Row]:
        slow = watch.reasons()
        least = summarise(seconds["executor"]).median if of == "python" else None
        for name, times in seconds.items():
            above = None if least is None else (summarise(times).median - least) * 1e6
            figures = {"above_executor_us": above} if of == "python" else {}
            marks = [*self.sampling.mark({"call": times}, ["call"]), *slow]
            yield Row(self.name, {"of": of, "call": name}, {"call": times}, figures, {}, marks)


def _repeat(way: Callable[[], object], count: int) -> None:
    for _ in range(count):
        way()
