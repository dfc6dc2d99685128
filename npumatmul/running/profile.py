"""Profiles: how long each step of products and layers took, as a table, as JSON and as a trace."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from time import monotonic_ns
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.writing import replacing
from npumatmul.host import profiling
from npumatmul.host.profiling import EVENT, Span
from npumatmul.rknn.simulator import Simulator
from npumatmul.running import profiled
from npumatmul.running.profiled import Multiplied
from npumatmul.running.times import Times, is_step, nanoseconds_covered

__all__ = ["ProductTime", "Profile", "StepTime", "profile"]

_NAMES = {
    Span.CALL: "call of the executor",
    Span.PROGRAM: "recorded program",
    Span.MEASURE: "scale rows of A",
    Span.PACK_A: "pack A",
    Span.SYNC_A: "sync A",
    Span.SELECT: "select shape",
    Span.BIND: "bind A, B, C",
    Span.RUN: "run",
    Span.MULTIPLY: "multiply on the CPU",
    Span.SYNC_C: "sync C",
    Span.STORE: "unpack C, store",
    Span.FUSE: "unpack C, pack A",
    Span.APPEND: "append to caches",
    Span.ATTEND: "attention",
    Span.RMS_NORM: "RMS norm",
    Span.LAYER_NORM: "layer norm",
    Span.ROTATE: "rotary positions",
    Span.GATE: "gate",
    Span.ADD: "add",
    Span.SCALE: "scale",
    Span.PYTHON: "Python in a program",
}
_EXECUTOR = "executor, threads"
_OUTSIDE = "Python and all else"
_MULTIPLIES = (Span.RUN, Span.MULTIPLY)
#: Of the products that take longest, so many have a line in a table.
_LINES = 24
_WIDTH = 80
_PIECE = 4096


@dataclass(frozen=True)
class StepTime:
    """One kind of step, all of them together.

    Attributes
    ----------
    name : str
    calls : int
    seconds : float
        That went by with it; where threads were at work at once they share what went by.
    busy_seconds : float
        In which at least one thread was at it, whatever others did: what rates are over.
    share : float
        Of the whole, from 0 to 1. The shares of all steps add up to 1.
    bytes : int
        That were written or read; 0 where nobody counts them.
    macs : int
        Multiply-accumulates.
    """

    name: str
    calls: int
    seconds: float
    busy_seconds: float
    share: float
    bytes: int
    macs: int

    @property
    def gops(self) -> float:
        """Operations per nanosecond in which a thread was at it, two for each multiply-accumulate."""
        return 2e-9 * self.macs / self.busy_seconds if self.busy_seconds else 0.0


@dataclass(frozen=True)
class ProductTime:
    """The products of a weight, or of those like it, with so many rows.

    Attributes
    ----------
    layer : str
        The path of the weight's layer in its model; empty for others.
    scheme : str
    m, k, n : int
    on_cpu : bool
        Whether the CPU computed them instead of the NPU.
    calls : int
    seconds : float
        That went by with their steps.
    run_seconds : float
        Part of it: with runs, or with what the CPU multiplied.
    busy_seconds : float
        In which at least one of its runs was going on, whatever other threads did.
    share : float
        Of the whole, from 0 to 1.
    runs : int
    macs : int
    """

    layer: str
    scheme: str
    m: int
    k: int
    n: int
    on_cpu: bool
    calls: int
    seconds: float
    run_seconds: float
    busy_seconds: float
    share: float
    runs: int
    macs: int

    @property
    def gops(self) -> float:
        """Operations per nanosecond in which a run of it was going on."""
        return 2e-9 * self.macs / self.busy_seconds if self.busy_seconds else 0.0


class Profile:
    """What took how long; `profile` makes it.

    It has its figures once its ``with`` block has ended, also by an exception.

    Attributes
    ----------
    seconds : float
        That the block took.
    simulated : bool
        Whether an NPU was simulated: then the time of its runs is that of this machine's CPU.
    lost : int
        Events that were more than were to be kept; figures know nothing of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._state = "new"
        self._start = self._stop = 0
        self._events: NDArray[Any] = np.zeros(0, EVENT)
        self._known: dict[int, Multiplied] = {}
        self._counted: Times | None = None
        self._lock = Lock()
        #: What simulated runs did by settings other than to compute as fast as the CPU can; mostly empty.
        self._simulated_runs = ""
        self.lost = 0

    def __enter__(self) -> Profile:
        if self._state != "new":
            raise ValueError("profile: a profile is of one block; make another one")
        if not profiling.start(self._most):
            raise ValueError("profile: another profile is on in this process; it has to end first")
        try:
            self._state = "on"
            profiled.keep()
            self._start = monotonic_ns()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def __del__(self) -> None:
        if self._state == "on":  # an interrupt came before `__exit__` did anything
            profiling.stop()
            profiled.kept()

    def _end(self) -> None:
        try:
            self._stop = monotonic_ns()
        finally:
            events, self.lost = profiling.stop()
            self._known = profiled.kept()
            whole = (events["start"] >= self._start) & (events["start"] + events["nanoseconds"] <= self._stop)
            self._events = events[whole]
            self._state = "over"
            simulators = {each.simulator for each in self._multiplied(Span.RUN) if each.simulator is not None}
            self._simulated_runs = "; ".join(sorted({Simulator(each).runs() for each in simulators} - {""}))

    @property
    def seconds(self) -> float:
        """How long the block took."""
        self._check()
        return (self._stop - self._start) / 1e9

    @property
    def simulated(self) -> bool:
        """Whether an NPU was simulated."""
        return any(each.simulator is not None for each in self._multiplied(Span.RUN))

    @property
    def steps(self) -> list[StepTime]:
        """Each kind of step, in the order in which a product takes them; what is in no step comes last."""
        times, whole, run_name, found = self._times(), max(self.seconds, 1e-9), self._run_name(), []
        for kind in Span:
            which = self._events["kind"] == kind
            if not which.any() or not is_step(self._events[which])[0]:
                continue
            of = self._events[which]
            seconds = float(times.each[which].sum()) / 1e9
            name = run_name if kind is Span.RUN else _NAMES[kind]
            busy = nanoseconds_covered(of) / 1e9
            found.append(
                StepTime(name, len(of), seconds, busy, seconds / whole, int(of["bytes"].sum()), int(of["macs"].sum()))
            )
        calls = len(self._of(Span.CALL)) + len(self._of(Span.PROGRAM))
        for name, count, nanoseconds in (
            (_EXECUTOR, calls, times.executor),
            (_OUTSIDE, len(self._of(Span.PYTHON)), times.outside),
        ):
            seconds = nanoseconds / 1e9
            found.append(StepTime(name, count, seconds, seconds, seconds / whole, 0, 0))
        return found

    @property
    def products(self) -> list[ProductTime]:
        """Products, those first that took longest. What is no product of this library's is not among them."""
        times, events, whole = self._times(), self._events, max(self.seconds, 1e-9)
        size = int(events["product"].max(initial=0)) + 1

        def per_number(which: NDArray[np.bool_], of: NDArray[Any]) -> NDArray[np.float64]:
            counts: NDArray[Any] = np.bincount(events["product"][which], weights=of[which], minlength=size)
            return counts.astype(np.float64)

        multiplies, every = np.isin(events["kind"], _MULTIPLIES), np.ones(len(events), bool)
        ones = np.ones(len(events))
        figures = np.stack(
            [
                per_number(events["kind"] == Span.CALL, ones),
                per_number(every, times.each),
                per_number(multiplies, times.each),
                per_number(multiplies, ones),
                per_number(multiplies, events["macs"]),
            ]
        )
        runs_of = _by_number(events[multiplies])
        alike: dict[tuple[str, str, int, int, int, bool], NDArray[np.float64]] = {}
        runs_alike: dict[tuple[str, str, int, int, int, bool], list[NDArray[Any]]] = {}
        for number in np.unique(events["product"]).tolist():
            about = self._known.get(number)
            if about is not None:
                key = about.layer, about.scheme, about.m, about.k, about.n, about.on_cpu
                alike[key] = alike.get(key, np.zeros(5)) + figures[:, number]
                runs_alike.setdefault(key, []).append(runs_of.get(number, events[:0]))
        busy = {key: nanoseconds_covered(np.concatenate(each)) / 1e9 for key, each in runs_alike.items()}
        found = [
            ProductTime(*key, int(calls), spent / 1e9, run / 1e9, busy[key], spent / 1e9 / whole, int(runs), int(macs))
            for key, (calls, spent, run, runs, macs) in alike.items()
        ]
        return sorted(found, key=lambda each: (-each.seconds, each.layer, each.m))

    def table(self) -> str:
        """Two tables, of steps and of products, of at most 80 columns.

        Layers whose paths differ in numbers alone share a line.

        Returns
        -------
        str
        """
        steps = [
            (each.name, f"{each.calls}", _ms(each.seconds), _percent(each.share), _rate(each), _gops(each))
            for each in self.steps
        ]
        head = f"{self.seconds * 1e3:.3f} ms in all"
        if self.simulated:
            head += "; the NPU is simulated, so its "
            head += self._simulated_runs or "runs take the CPU's time"
        parts = [head, "", *_lines(("step", "calls", "ms", "share", "GB/s", "GOPS"), steps)]
        products = _alike(self.products)
        if products:
            rows = [
                (
                    _name(each),
                    f"{each.calls}",
                    _ms(each.seconds),
                    _ms(each.run_seconds),
                    _percent(each.share),
                    _gops(each),
                )
                for each in products[:_LINES]
            ]
            parts += ["", *_lines(("product", "calls", "ms", "of it run", "share", "GOPS"), rows)]
        if len(products) > _LINES:
            parts.append(f"and {len(products) - _LINES} others; JSON has all")
        if self.lost:
            parts.append(f"{self.lost} events came after the first {self._most} and are missing here")
        return "\n".join(parts)

    def to_json(self) -> str:
        """All figures: seconds, bytes and multiply-accumulates of steps and of products.

        Returns
        -------
        str
            An object with ``seconds``, ``simulated``, ``simulated_runs``, ``lost``, ``steps`` and ``products``.
        """
        content = {
            "seconds": self.seconds,
            "simulated": self.simulated,
            "simulated_runs": self._simulated_runs,
            "lost": self.lost,
            "steps": [{**asdict(each), "gops": each.gops} for each in self.steps],
            "products": [{**asdict(each), "gops": each.gops} for each in self.products],
        }
        return json.dumps(content, indent=1)

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write every event with its thread and its time, as browsers' ``chrome://tracing`` and Perfetto read it.

        Parameters
        ----------
        path : path_like
            Of a file of JSON.
        """
        self._check()
        with replacing(path) as file:
            for piece in self._trace():
                file.write(piece.encode())

    def _trace(self) -> Iterator[str]:
        yield '{"displayTimeUnit": "ms", "traceEvents": [\n'
        process, run_name = os.getpid(), self._run_name()
        yield json.dumps({"name": "process_name", "ph": "M", "pid": process, "args": {"name": "npumatmul"}})
        for thread, name in _threads(self._events):
            yield ",\n" + json.dumps(
                {"name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
            )
        for kind, core, thread, number, start, lasts, nbytes, macs in _rows(self._events):
            about = self._known.get(number)
            name = run_name if kind == Span.RUN else _NAMES[Span(kind)]
            arguments: dict[str, Any] = {}
            if about is not None:
                shape = f"{about.m}x{about.k}x{about.n}"
                arguments = {"layer": about.layer, "scheme": about.scheme, "shape": shape}
                if kind == Span.CALL:
                    name = f"{about.layer or about.scheme} {shape}"
            figures = (("core", core, core >= 0), ("bytes", nbytes, nbytes), ("macs", macs, macs))
            arguments |= {key: value for key, value, there in figures if there}
            event = {
                "name": name,
                "ph": "X",
                "ts": (start - self._start) / 1e3,
                "dur": lasts / 1e3,
                "pid": process,
                "tid": thread,
                "args": arguments,
            }
            yield ",\n" + json.dumps(event)
        yield "\n]}\n"

    def _check(self) -> None:
        if self._state != "over":
            raise ValueError("profile: it has figures when its with block has ended")

    def _of(self, kind: Span) -> NDArray[Any]:
        self._check()
        events: NDArray[Any] = self._events[self._events["kind"] == kind]
        return events

    def _run_name(self) -> str:
        if not self.simulated:
            return _NAMES[Span.RUN]
        if not self._simulated_runs:
            return "run (simulated by the CPU)"
        return "run (modelled time)" if "modelled" in self._simulated_runs else "run (nothing computed)"

    def _multiplied(self, kind: Span) -> list[Multiplied]:
        """The products that have steps of this kind."""
        numbers = np.unique(self._of(kind)["product"]).tolist()
        return [about for number in numbers if (about := self._known.get(number)) is not None]

    def _times(self) -> Times:
        self._check()
        with self._lock:
            if self._counted is None:
                self._counted = Times.of(self._events, self._start, self._stop)
            return self._counted


def profile(*, most: int = 2_000_000) -> Profile:
    """Measure what products and layers spend their time with, in a ``with`` block.

    All threads of the process are measured: those of the program, and those that serve cores. Outside of such blocks
    nothing is measured, and it costs nothing. One profile is on at a time in a process; blocks do not nest.

    Parameters
    ----------
    most : int
        Events that are kept, 56 bytes each: a run of the NPU is about ten. The first ones are kept, and those that are
        not are counted.

    Returns
    -------
    Profile

    Raises
    ------
    TypeError
        If `most` is no integer.
    ValueError
        If `most` is below 1; at the beginning of the block, if another profile is on.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> w = npu.pack(np.eye(64, dtype=np.float32), "w8a8")
    >>> with npu.profile() as p:
    ...     y = npu.matmul(np.ones((4, 64), np.float32), w)
    >>> [(each.scheme, each.m, each.k, each.n, each.calls) for each in p.products]
    [('w8a8', 4, 64, 64, 1)]
    >>> print(p.table())  # doctest: +SKIP
    """
    if not isinstance(most, int):
        raise TypeError(f"profile: most is {most!r}; it is a number of events")
    if most < 1:
        raise ValueError(f"profile: most is {most}; at least one event has to be kept")
    return Profile(most)


def _rows(events: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Events as tuples, of which few are there at a time."""
    for first in range(0, len(events), _PIECE):
        yield from events[first : first + _PIECE].tolist()


def _threads(events: NDArray[Any]) -> Iterator[tuple[int, str]]:
    """Each thread, and what it does: it calls products, or serves cores."""
    for thread in np.unique(events["thread"]).tolist():
        of = events[events["thread"] == thread]
        cores = np.unique(of["core"][of["core"] >= 0]).tolist()
        if cores and is_step(of).all():
            yield thread, f"core{'s' * (len(cores) > 1)} {', '.join(map(str, cores))}"
        else:
            yield thread, "calls"


def _by_number(events: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """The events of each product."""
    ordered = events[np.argsort(events["product"], kind="stable")]
    numbers, first = np.unique(ordered["product"], return_index=True)
    return dict(zip(numbers.tolist(), np.split(ordered, first[1:]), strict=False))


def _alike(products: Sequence[ProductTime]) -> list[ProductTime]:
    """Those whose layers differ in numbers alone as one."""
    found: dict[tuple[Any, ...], ProductTime] = {}
    for each in products:
        key = re.sub(r"\d+", "*", each.layer), each.scheme, each.m, each.k, each.n, each.on_cpu
        old = found.get(key)
        sums = tuple(
            getattr(each, name) + (0 if old is None else getattr(old, name))
            for name in ("calls", "seconds", "run_seconds", "busy_seconds", "share", "runs", "macs")
        )
        found[key] = ProductTime(*key, *sums)
    return sorted(found.values(), key=lambda each: -each.seconds)


def _name(product: ProductTime) -> str:
    layer = product.layer.rpartition("*.")[2]
    return f"{layer} {product.m}x{product.k}x{product.n} {product.scheme}{' CPU' * product.on_cpu}".strip()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rate(step: StepTime) -> str:
    if step.name in (_NAMES[Span.SYNC_A], _NAMES[Span.SYNC_C]):  # which passes over caches, and not over memory
        return ""
    return f"{step.bytes / step.busy_seconds / 1e9:.2f}" if step.bytes and step.busy_seconds else ""


def _gops(each: StepTime | ProductTime) -> str:
    return f"{each.gops:.1f}" if each.macs else ""


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: what names the rows to the left, cut at its beginning where it is too long, figures to the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(1, len(heads))]
    names = [row[0] for row in (heads, *rows)]
    widest = min(max(map(len, names)), _WIDTH - sum(widths) - 2 * len(widths))
    names = [name if len(name) <= widest else "…" + name[1 - widest :] for name in names]
    lines = [
        [name.ljust(widest), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))]
        for name, row in zip(names, (heads, *rows), strict=True)
    ]
    lines.insert(1, ["-" * width for width in (widest, *widths)])
    return ["  ".join(cells).rstrip() for cells in lines]
