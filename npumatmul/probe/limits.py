"""Questions about sizes: Q8 to Q12, and about int4: X4, X5."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from npumatmul.chips.native_rows import ASKED, FEW_ASKED, RECORDED, NativeRows
from npumatmul.chips.probe_file import AS_RECORDED
from npumatmul.chips.types import MatmulType
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NATIVE, NORMAL, Instrument
from npumatmul.probe.trial import Trials
from npumatmul.rknn.differences import type_since

F16, I8, I4 = MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT8_INT8_INT32, MatmulType.INT4_INT4_INT16


def largest(good: int, bad: int, step: int, test: Callable[[int], bool]) -> int:
    """Largest multiple of `step` from `good` on that passes, where `bad` fails and what is below a pass passes.

    Examples
    --------
    >>> largest(32, 1024, 32, lambda value: value <= 500)
    480
    """
    low, high = good // step, -(-bad // step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if test(middle * step) else (low, middle)
    return low * step


def largest_below(bad: int, step: int, test: Callable[[int], bool]) -> int:
    """Largest multiple of `step` below `bad` that passes, else 1 where that does, else 0."""
    found = largest(0, bad, step, test)
    return found or int(test(1))


def doublings(start: int, times: int) -> Iterable[int]:
    """`start` times 2, 4, 8, ..."""
    return (start << power for power in range(1, times + 1))


@question("Q8", "How large may N be?", "per type: the largest N that came out right, and whether it is a limit")
def n_maximum(instrument: Instrument) -> Answer:
    """Doubles N from the documented maximum on, with the smallest M and K, and compares products with numpy.

    Twice by default, six times with --all. After the first N that is refused the exact limit is found by bisection,
    with create alone.
    """
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in instrument.supported(F16, I8, I4):
        row = instrument.row(mm_type)
        k, best, limit = row.k_multiple.value, 0, None
        for n in (
            row.n_max.value,
            *doublings(row.n_max.value, 1 if instrument.quick else 6 if instrument.everything else 2),
        ):
            instrument.step(f"{mm_type.name} N={n}")
            verdict = instrument.verdict(mm_type, 1, k, n)
            if verdict == "right":
                best = n
                continue
            if verdict.startswith("refused"):
                step = row.n_multiple.value
                limit = largest(best or step, n, step, lambda n, t=mm_type, k=k: instrument.accepted(t, 1, k, n))  # type: ignore[misc]
                instrument.step(f"{mm_type.name} N={limit}")
                if instrument.verdict(mm_type, 1, k, limit) == "right":
                    best = limit
                cells[f"{mm_type.name}.n_limit"] = limit
            details[f"{mm_type.name} first failure"] = f"N={n}: {verdict}"
            break
        details[mm_type.name] = {"largest right": best, "limit": limit}
        if best:
            # what a context is given is bounded further, lest C of m_max rows exceed 16 MiB
            most = (16 << 20) // mm_type.c.nbytes(row.m_max.value)
            cells[f"{mm_type.name}.n_max"] = min(best, max(most, row.n_max.value))
    text = "; ".join(
        f"{t.name}: right up to {details[t.name]['largest right']}"
        + (f", create refuses more than {details[t.name]['limit']}" if details[t.name]["limit"] else ", no limit met")
        for t in instrument.supported(F16, I8, I4)
    )
    return Answer(text, details, cells)


@question("Q9", "How large may K be?", "per type: the largest K that create accepts, or that no limit was met")
def k_maximum(instrument: Instrument) -> Answer:
    """Doubles K with create alone, M and N smallest, then finds the exact limit by bisection; nothing is run.

    It goes to four times the largest K that is documented for one segment. With --all it goes to sixteen times that,
    and the largest accepted K is run and compared with numpy.
    """
    top = (2 if instrument.quick else 16 if instrument.everything else 4) * max(
        instrument.row(t).k_max.value for t in instrument.supported(F16, I8, I4)
    )
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    said = []
    for mm_type in instrument.supported(F16, I8, I4):
        row = instrument.row(mm_type)
        n, step = row.n_multiple.value, row.k_multiple.value
        start = row.k_max.value

        def accepted(k: int, t: MatmulType = mm_type, n: int = n) -> bool:
            instrument.step(f"create {t.name} K={k}")
            return instrument.accepted(t, 1, k, n)

        best = start if accepted(start) else 0
        limit = None if best else largest(step, start, step, accepted)
        k = 2 * start
        while limit is None and k <= top:
            if accepted(k):
                best = k
            else:
                limit = largest(best, k, step, accepted)
            k *= 2
        details[mm_type.name] = {"accepted": limit or best, "limit": limit}
        if limit is not None:
            cells[f"{mm_type.name}.k_limit"] = limit
        if instrument.everything:
            instrument.step(f"run {mm_type.name} K={limit or best}")
            details[mm_type.name]["run"] = instrument.verdict(mm_type, 1, limit or best, n)
        said.append(f"{mm_type.name}: {'at most ' + str(limit) if limit else 'no limit met up to ' + str(best)}")
    return Answer("; ".join(said), details, cells)


@question(
    "Q10",
    "How large may M be, must it be a multiple of something with native A and C, and what does M = 1 cost?",
    "the multiple (1 or 4), largest M accepted, milliseconds of a run by M",
)
def rows(instrument: Instrument) -> Answer:
    """Runs odd M with native A and C laid out by the attributes, and strided by M rounded up; then doubles M.

    Large M are only created. Times are medians of five runs of one shape.
    """
    details: dict[str, Any] = {}
    step = instrument.table.row_multiple.value
    exact: list[bool] = []
    rounded: list[bool] = []
    types = instrument.supported(F16, I8, I4)
    for mm_type in types:
        row = instrument.row(mm_type)
        k, n = 2 * row.k_multiple.value, 2 * row.n_multiple.value
        for m in (2, 3, 5, 7):
            instrument.step(f"{mm_type.name} M={m}, native A and C")
            a, b, expected = instrument.operands(mm_type, m, k, n)
            with instrument.context(mm_type, m, k, n, ac=NATIVE) as context:
                by_attributes = bool((context.product(a, b) == expected).all())
                laid = -(-m // step) * step
                by_rounding = bool((context.product(a, b, rows=laid) == expected).all())
            details[f"{mm_type.name} M={m}"] = {"as attributes say": by_attributes, f"rows of {laid}": by_rounding}
            exact.append(by_attributes)
            rounded.append(by_rounding)
    multiple = 1 if all(exact) else step
    cells: dict[str, Any] = {"row_multiple": multiple}
    why = "M rounded up strides A and C" if not all(exact) and all(rounded) else ""
    for mm_type in types:
        row = instrument.row(mm_type)
        k, n, m_max = row.k_multiple.value, row.n_multiple.value, row.m_max.value
        best, limit = m_max, None
        for m in doublings(m_max, 3 if instrument.quick else 8):
            instrument.step(f"create {mm_type.name} M={m}")
            if instrument.accepted(mm_type, m, k, n):
                best = m
                continue
            limit = largest(best, m, 1, lambda m, t=mm_type, k=k, n=n: instrument.accepted(t, m, k, n))  # type: ignore[misc]
            cells[f"{mm_type.name}.m_limit"] = limit
            break
        details[f"{mm_type.name} largest M"] = {"accepted": limit or best, "limit": limit}
    details["ms"] = {str(m): _milliseconds(instrument, m) for m in (1, step, 4 * step)}
    limits = [name for name in cells if name.endswith("m_limit")]
    return Answer(
        f"M is 1 or a multiple of {multiple}{' (' + why + ')' if why else ''}; "
        f"{'limits met: ' + ', '.join(limits) if limits else 'no largest M met'}; "
        f"milliseconds by M: {', '.join(f'{m}: {ms}' for m, ms in details['ms'].items())}",
        details,
        cells,
    )


def _milliseconds(instrument: Instrument, m: int) -> float:
    row = instrument.row(I8)
    k, n = 16 * row.k_multiple.value, 16 * row.n_multiple.value
    a, b, _ = instrument.operands(I8, m, k, n)
    instrument.step(f"time {I8.name} M={m}")
    with instrument.context(I8, m, k, n) as context:
        context.product(a, b)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            context.run()
            times.append(time.perf_counter() - start)
    return round(1000 * sorted(times)[2], 4)


@question("X4", "How many rows may int4 with native A and C have?", "as recorded on 1.6.0, any, or the rows by K and N")
def int4_rows(instrument: Instrument) -> Answer:
    """Creates int4 with native A and C at K and N of the recording, above what it has as good; nothing is run.

    A runtime may die of that, so a process below this one tries it, and is started again after every death. Where
    create takes more rows than are recorded the table stays as it is, unless --all has their products run and compared.
    """
    if not instrument.supported(I4):
        return Answer("the chip has no int4 times int4")
    row, step = instrument.row(I4), instrument.table.row_multiple.value
    top, limit = row.m_max.value, row.k_limit.value
    some_ks, ns = FEW_ASKED if instrument.quick else ASKED
    ks = [k for k in some_ks if limit is None or k <= limit]
    said: dict[str, str] = {}
    found: dict[tuple[int, int], int] = {}
    with Trials(instrument) as trials:

        def good(m: int, k: int, n: int) -> bool:
            instrument.step(f"{I4.name} {m}x{k}x{n}, native A and C")
            said[f"{m}x{k}x{n}"] = verdict = trials.attempt(I4, m, k, n, native=True, run=instrument.everything)
            return verdict in ("created", "right")

        for k, n in itertools.product(ks, ns):
            known = min(top, RECORDED.most(k, n))
            at = functools.partial(good, k=k, n=n)
            if not at(known):
                found[k, n] = largest_below(known, step, at)
            elif known == top or not at(known + step):
                found[k, n] = known
            else:
                found[k, n] = top if at(top) else largest(known + step, top, step, at)
    recorded = {(k, n): min(top, RECORDED.most(k, n)) for k, n in found}
    cells: dict[str, Any] = {}
    if found == recorded:
        text, cells = "as recorded on 1.6.0", {f"{I4.name}.native_rows": AS_RECORDED}
    elif instrument.everything and set(found.values()) == {top}:
        text, cells = f"any up to {top}, with right products", {f"{I4.name}.native_rows": None}
    else:
        # what is taken but was not run is not relied on
        rows = found if instrument.everything else {at: min(found[at], recorded[at]) for at in found}
        text = ", ".join(f"{m} at K={k} N={n} (recorded {recorded[k, n]})" for (k, n), m in found.items())
        if rows == recorded:
            text = f"create takes more than recorded; whether products are right is asked with --all: {text}"
        else:
            grid = NativeRows(tuple(ks), ns, tuple(tuple(rows[k, n] for n in ns) for k in ks))
            cells = {f"{I4.name}.native_rows": grid.to_dict()}
    return Answer(text, said, cells)


@question("X5", "At which RKNN_LOG_LEVEL does int4 survive?", "the highest of 2, 3 and 4 at which create lives")
def int4_log_level(instrument: Instrument) -> Answer:
    """Creates the smallest contexts with an int4 B in processes with RKNN_LOG_LEVEL 2, 3 and 4; nothing is run."""
    types = instrument.supported(*(mm_type for mm_type in MatmulType if mm_type.b is I4.b))
    if not types:
        return Answer("the chip has no int4")
    details: dict[str, Any] = {}
    highest = 0
    for level in (2, 3, 4):
        with Trials(instrument, {"RKNN_LOG_LEVEL": str(level)}) as trials:
            for mm_type in types:
                row = instrument.row(mm_type)
                for native in (False, True)[: 1 + row.ac_native.value]:
                    instrument.step(f"{mm_type.name} with RKNN_LOG_LEVEL={level}")
                    name = f"{mm_type.name} {'native' if native else 'normal'}, level {level}"
                    details[name] = trials.attempt(
                        mm_type, 1, row.k_multiple.value, row.n_multiple.value, native=native, run=False
                    )
        if all(verdict == "created" for name, verdict in details.items() if name.endswith(str(level))):
            highest = level
        else:
            break
    died = [f"{name}: {verdict}" for name, verdict in details.items() if verdict != "created"]
    text = f"up to {highest}" if highest else "at none of 2, 3 and 4"
    return Answer("; ".join([text, *died]), details, {"int4_log_level": highest})


@question("Q11", "What must N and K be multiples of?", "per type: a multiple of N and one of K")
def multiples(instrument: Instrument) -> Answer:
    """Tries N, then K, at multiples of 8 up to twice the documented multiple; the answer is their common divisor.

    A size counts when create takes it and the product with a native B is right.
    """
    cells: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for mm_type in instrument.supported(F16, I8, I4):
        row = instrument.row(mm_type)
        for name, multiple, other in (("n", row.n_multiple.value, row.k_multiple.value),
                                      ("k", row.k_multiple.value, row.n_multiple.value)):  # fmt: skip
            verdicts = {}
            for size in range(8, 2 * multiple + 1, 8):
                instrument.step(f"{mm_type.name} {name.upper()}={size}")
                k, n = (other, size) if name == "n" else (size, other)
                verdicts[size] = instrument.verdict(mm_type, 1, k, n)
            right = [size for size, verdict in verdicts.items() if verdict == "right"]
            details[f"{mm_type.name} {name.upper()}"] = verdicts
            if right:
                cells[f"{mm_type.name}.{name}_multiple"] = math.gcd(*right)
    said = [
        f"{t.name}: K of {cells.get(f'{t.name}.k_multiple', '?')}, N of {cells.get(f'{t.name}.n_multiple', '?')}"
        for t in instrument.supported(F16, I8, I4)
    ]
    return Answer("; ".join(said), details, cells)


@question("Q12", "Does the chip have types 6, 12, 15, and 10 where it is unlisted?", "per type: right, wrong, refused")
def open_types(instrument: Instrument) -> Answer:
    """Creates each with normal layouts and compares a small product with numpy; reads the tile of B where it works."""
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in (
        MatmulType.FLOAT16_INT8_FLOAT16, MatmulType.FLOAT16_INT4_BFLOAT16, MatmulType.INT8_INT4_FLOAT16, I4,
    ):  # fmt: skip
        row = instrument.row(mm_type)
        if row.supported.value:
            continue
        if instrument.version < type_since(mm_type.code):
            details[mm_type.name] = "newer than this runtime"
            continue
        k, n = 2 * row.k_multiple.value, 2 * row.n_multiple.value
        instrument.step(f"{mm_type.name} with normal layouts")
        details[mm_type.name] = instrument.verdict(mm_type, 4, k, n, b=NORMAL)
        cells[f"{mm_type.name}.supported"] = details[mm_type.name] == "right"
        if details[mm_type.name] == "right":
            with instrument.context(mm_type, 4, k, n) as context:
                dims = context.attr("B").shape
            if len(dims) == 4:
                cells[f"{mm_type.name}.b_tile"] = [dims[2], dims[3]]
    text = ", ".join(f"type {int(MatmulType[name].code)}: {said}" for name, said in details.items())
    return Answer(text or "the chip has all that were in question", details, cells)
