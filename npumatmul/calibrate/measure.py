"""Timing of points on a device, through the binding; and what is timed beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.calibrate.clocks import Clock
from npumatmul.calibrate.points import Point
from npumatmul.chips.types import MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.context import MatmulContext
from npumatmul.device.device import Device
from npumatmul.host.activation import Activation
from npumatmul.host.executor import run_proven
from npumatmul.host.kernels import Conversion
from npumatmul.planning.weight import plan_weight
from npumatmul.rknn import MatmulLayout
from npumatmul.running.program import Program
from npumatmul.running.stored import KSlice
from npumatmul.running.storing import TileRow, store

__all__ = ["Sample", "measure_binding", "measure_host", "measure_point"]

#: Repetitions of a point: at least, and at most where they fit into its share of the time.
LEAST, MOST = 3, 31
_WARM_UP = 2
_BINDINGS = 50


@dataclass(frozen=True)
class Sample:
    """What something took.

    Attributes
    ----------
    seconds : float
        Median.
    spread : float
        Between the quartiles, as a share of the median.
    """

    seconds: float
    spread: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Sample:
        """Out of single times.

        Examples
        --------
        >>> Sample.of([2.0, 1.0, 3.0])
        Sample(seconds=2.0, spread=0.5)
        """
        median = statistics.median(times)
        if len(times) == 1:
            return cls(median, 0.0)
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, (high - low) / median if median else 0.0)


def _sample(act: Callable[[], object], before: Callable[[], object], clock: Clock, budget: float) -> Sample:
    """Time an act again and again, at most for about `budget` seconds; what is done before each time does not count."""
    times: list[float] = []
    started = time.monotonic()
    for count in range(1 if clock.exact else _WARM_UP + MOST):
        before()
        start = clock.now()
        act()
        taken = clock.now() - start
        if clock.exact or count >= _WARM_UP:
            times.append(taken)
        if len(times) >= LEAST and time.monotonic() - started > budget:
            break
    return Sample.of(times)


def measure_point(device: Device, point: Point, clock: Clock, budget: float) -> Sample:
    """Time a run, or what runs on several cores at once take from the first one's start to the last one's end."""
    return _alone(device, point, clock, budget) if point.cores == 1 else _together(device, point, clock, budget)


@contextmanager
def _bound(device: Device, point: Point) -> Iterator[tuple[MatmulContext, tuple[Buffer, ...]]]:
    ac_layout = MatmulLayout.NATIVE if point.ac_native else MatmulLayout.NORM
    with ExitStack() as held:
        context = held.enter_context(
            device.context(
                point.mm_type, point.m, point.k, point.n, b_layout=MatmulLayout.NATIVE, ac_layout=ac_layout,
                core=0 if device.chip.has_core_mask else None,
            )
        )  # fmt: skip
        a, b, c = (held.enter_context(device.buffer(attr.size)) for attr in (context.a, context.b, context.c))
        context.bind(a=a, b=b, c=c)
        context.run()
        yield context, (a, b, c)


def _alone(device: Device, point: Point, clock: Clock, budget: float) -> Sample:
    runtime = device.runtime
    with _bound(device, point) as (context, (a, _, _)):
        return _sample(
            lambda: runtime.matmul_run(context.handle, run_proven), lambda: _refresh(device, context, a), clock, budget
        )


def _refresh(device: Device, context: MatmulContext, a: Buffer) -> None:
    """New operands: what is timed next does not belong to what was timed before."""
    with a.write():
        pass
    a.memory.flush()
    device.runtime.matmul_set_io_mem(context.handle, a.memory.pointer, context.a.struct)


def _together(device: Device, point: Point, clock: Clock, budget: float) -> Sample:
    """By products that differ in nothing but the cores: what the host does for both is not counted."""
    alone = _alone(device, replace(point, cores=1), clock, budget / 3)
    one, several = (_product(device, point, cores, clock, budget / 3) for cores in (1, point.cores))
    return Sample(alone.seconds + several.seconds - one.seconds, max(alone.spread, one.spread, several.spread))


def _product(device: Device, point: Point, cores: int, clock: Clock, budget: float) -> Sample:
    plan = plan_weight(
        point.k, point.n * cores, point.mm_type, device.chip, device.runtime_version, k_slices=1, n_tiles=cores,
        buckets=(point.m,), ac_native=True, measured_cores=((1, cores),),
    )  # fmt: skip
    assert [span.padded for span in plan.n_spans] == [point.n] * cores
    zeros: NDArray[Any] = np.broadcast_to(np.zeros(1, np.int8), (plan.n, plan.k))
    rows = [TileRow(plan.k_spans[0], zeros, Conversion.COPY_8)]
    stored = store(device, plan, rows, [KSlice(plan.k_spans[0], tiles=0)])
    try:
        a, out = np.zeros((point.m, point.k), np.int8), np.zeros((point.m, plan.n), np.int32)
        program = Program(stored, point.m, Activation(np.dtype(np.int8), Conversion.COPY_8), out.dtype)
        return _sample(lambda: program.multiply(a, out), lambda: None, clock, budget)
    finally:
        stored.close()


def measure_binding(device: Device, clock: Clock, budget: float) -> Sample:
    """Time one `rknn_matmul_set_io_mem` with native matrices."""
    runtime = device.runtime
    with _bound(device, Point(MatmulType.INT8_INT8_INT32, 4, 1024, 1024)) as (context, buffers):
        pairs = [
            (attr.struct, buffer.memory.pointer)
            for attr, buffer in zip((context.a, context.b, context.c), buffers, strict=True)
        ]

        def bind() -> None:
            for _ in range(_BINDINGS):
                for struct, pointer in pairs:
                    runtime.matmul_set_io_mem(context.handle, pointer, struct)

        all_of_them = _sample(bind, lambda: _refresh(device, context, buffers[0]), clock, budget)
    return Sample(all_of_them.seconds / (3 * _BINDINGS), all_of_them.spread)


def measure_host(clock: Clock, budget: float) -> dict[str, float]:
    """The CPU's constants, of one thread: copying, products of float32, exponentials."""
    source = np.ones(16 << 20, np.float32)
    target = np.empty_like(source)
    few = np.ones((64, 64), np.float32)  # so few that no BLAS starts threads
    result = np.empty_like(few)
    negative = np.full(1 << 16, -1.0, np.float32)
    exponentials = np.empty_like(negative)

    def multiply() -> None:
        for _ in range(200):
            np.matmul(few, few, out=result)

    share = budget / 3
    copied = _sample(lambda: np.copyto(target, source), lambda: None, clock, share)
    multiplied = _sample(multiply, lambda: None, clock, share)
    exponentiated = _sample(lambda: np.exp(negative, out=exponentials), lambda: None, clock, share)
    return {
        "host_bandwidth": source.nbytes / copied.seconds,
        "host_flops": 200 * 2 * 64**3 / multiplied.seconds,
        "host_exp_seconds": exponentiated.seconds / negative.size,
    }
