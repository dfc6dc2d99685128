"""Measure one matmul, step by step, through the C API."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.bench.cases import Case
from npumatmul.chips.timing import Estimate
from npumatmul.chips.types import ElementType
from npumatmul.device.context import MatmulContext
from npumatmul.device.device import Device
from npumatmul.host.executor import run_proven
from npumatmul.ops import Matmul
from npumatmul.rknn import MatmulLayout, MemSyncMode

__all__ = ["Measurement", "Step", "measure"]


class Step(Enum):
    """What is timed."""

    CREATE = "create context"
    PACK_A = "pack A"
    SYNC_A = "sync A"
    BIND = "set_io_mem A, B, C"
    RUN = "run"
    SYNC_C = "sync C"
    UNPACK_C = "unpack C"
    END_TO_END = "Matmul.execute end to end"


@dataclass(frozen=True)
class Measurement:
    """Times of one case.

    Attributes
    ----------
    case : Case
    seconds : dict of Step to list of float
        Every repetition.
    modelled : Estimate or None
        Modelled time of the run on the case's cores of the chip; never measured.
    simulated : bool
        Whether `seconds` are those of a CPU that simulates.
    device : str
        Device string.
    matmul_cores : int
        Cores that `Step.END_TO_END` used: the case's, or fewer where the plan has no use for them.
    """

    case: Case
    seconds: dict[Step, list[float]]
    modelled: Estimate | None
    simulated: bool
    device: str
    matmul_cores: int

    def quantile(self, step: Step, q: float) -> float:
        """Seconds that a share `q` of the repetitions stayed within."""
        return float(np.quantile(self.seconds[step], q))

    def median(self, step: Step) -> float:
        """Median seconds of a step."""
        return self.quantile(step, 0.5)

    @property
    def operations_per_second(self) -> float:
        """Two per multiply-accumulate, by the median run."""
        return 2 * self.case.macs / self.median(Step.RUN)

    @property
    def bytes_per_second(self) -> float:
        """Bytes of A, B and C, by the median run."""
        return self.case.nbytes / self.median(Step.RUN)

    @property
    def beyond_run_seconds(self) -> float | None:
        """What a product takes beyond the run itself: packing, binding, synchronising, unpacking, and Python.

        None where it did not use as many cores as the run: then the difference says nothing.
        """
        if self.matmul_cores != self.case.cores:
            return None
        return self.median(Step.END_TO_END) - self.median(Step.RUN)


def measure(
    device: Device,
    case: Case,
    repetitions: int = 30,
    warmup: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Measurement:
    """Measure a case and check its result.

    On several cores the step `Step.RUN` is from the first run's start to the last one's end, the hand-over between
    Python threads included. `Step.END_TO_END` is `Matmul.execute` with the case's layout and at most its cores.

    Parameters
    ----------
    device : Device
    case : Case
    repetitions : int
        Of each step, after `warmup` more that do not count.
    warmup : int
    seed : int
        Of the random operands.
    progress : callable, optional
        Called with (repetitions done, repetitions in all).

    Returns
    -------
    Measurement

    Raises
    ------
    ValueError
        If the chip cannot run the case as one context.
    RuntimeError
        If the result is wrong: exact for integers, within the bound of float32 sums for float16.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     measurement = measure(device, Case("int8", 4, 64, 32), repetitions=3)
    >>> measurement.simulated, len(measurement.seconds[Step.RUN])
    (True, 3)
    """
    problem = case.problem(device.chip, device.runtime_version)
    if problem is not None:
        raise ValueError(f"{case}: {problem}")
    a, b = _operands(case, np.random.default_rng(seed))
    done = itertools.count(1)
    rounds = 2 * (warmup + repetitions)
    seconds: dict[Step, list[float]] = {step: [] for step in Step}
    runtime = device.runtime
    layouts = MatmulLayout.NATIVE, MatmulLayout.NATIVE if case.ac_native else MatmulLayout.NORM

    shares = case.shares(device.chip.type_limits(case.mm_type, device.runtime_version).n_multiple)

    def create() -> list[MatmulContext]:
        return [
            device.context(
                case.mm_type, case.m, case.k, share.stop - share.start, b_layout=layouts[0], ac_layout=layouts[1],
                core=core if case.cores > 1 else None,
            )
            for core, share in enumerate(shares)
        ]  # fmt: skip

    def timed(step: Step, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[step].append(time.perf_counter() - start)
        return result

    for _ in range(min(repetitions, 5)):  # contexts are costly: a few say enough
        for context in timed(Step.CREATE, create):
            context.close()
    with ExitStack() as held:
        contexts = [held.enter_context(context) for context in create()]
        x = held.enter_context(device.buffer(contexts[0].a.size))  # all cores read the same A
        ys = [held.enter_context(device.buffer(context.b.size)) for context in contexts]
        zs = [held.enter_context(device.buffer(context.c.size)) for context in contexts]
        others = held.enter_context(ThreadPoolExecutor(case.cores - 1)) if case.cores > 1 else None
        for context, y, share in zip(contexts, ys, shares, strict=True):
            y.put(context.b, np.ascontiguousarray(b[:, share]))
            y.memory.flush()

        def bind() -> None:
            for context, y, z in zip(contexts, ys, zs, strict=True):
                for attr, buffer in ((context.a, x), (context.b, y), (context.c, z)):
                    runtime.matmul_set_io_mem(context.handle, buffer.memory.pointer, attr.struct)

        def run() -> None:
            jobs = [] if others is None else [others.submit(runtime.matmul_run, c.handle) for c in contexts[1:]]
            runtime.matmul_run(contexts[0].handle, run_proven)
            for job in jobs:
                job.result()

        for _ in range(warmup + repetitions):
            timed(Step.PACK_A, lambda: x.put(contexts[0].a, a))
            timed(Step.SYNC_A, x.memory.flush)
            timed(Step.BIND, bind)
            timed(Step.RUN, run)
            timed(Step.SYNC_C, lambda: [z.memory.sync(MemSyncMode.FROM_DEVICE) for z in zs])
            result = timed(Step.UNPACK_C, lambda: [z.get(c.c) for z, c in zip(zs, contexts, strict=True)])
            progress(next(done), rounds)
        _check(case, a, b, np.concatenate(result, axis=1))
    options = {"cores": case.cores, "layout": "native" if case.ac_native else "normal"}
    with Matmul(a, b, options=options, device=device) as product:
        plan = product.plan()
        assert plan is not None
        for _ in range(warmup + repetitions):
            timed(Step.END_TO_END, product.execute)
            progress(next(done), rounds)
    for step in Step:
        if step is not Step.CREATE:
            del seconds[step][:warmup]
    model = device.chip.timings.get(device.chip.soc)
    modelled = None
    if model is not None and model.knows(case.mm_type):
        modelled = model.run_estimate(case.mm_type, case.m, case.k, case.n, case.cores, case.ac_native)
    return Measurement(case, seconds, modelled, device.simulated, device.name, plan.cores)


def _operands(case: Case, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    shapes = (case.m, case.k), (case.k, case.n)
    a: NDArray[Any]
    b: NDArray[Any]
    if case.mm_type.a is ElementType.FLOAT16:
        a, b = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    elif case.mm_type.a is ElementType.INT8:
        a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)
    else:  # int4: small enough that no int16 sum overflows
        a, b = (rng.integers(-1, 2, shape).astype(ml_dtypes.int4) for shape in shapes)
    return a, b


def _check(case: Case, a: NDArray[Any], b: NDArray[Any], result: NDArray[Any]) -> None:
    x, y = a.astype(np.float64), b.astype(np.float64)
    exact = x @ y
    if case.mm_type.a is ElementType.FLOAT16:
        allowed = ((1 + 2.0**-24) ** (case.k + 1) - 1) * (np.abs(x) @ np.abs(y))
    else:
        allowed = np.zeros_like(exact)
    wrong = np.abs(result.astype(np.float64) - exact) > allowed
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise RuntimeError(
            f"{case}: wrong result, {int(wrong.sum())} of {wrong.size} elements; at ({row}, {column}) "
            f"{result[row, column]} instead of {exact[row, column]}"
        )
