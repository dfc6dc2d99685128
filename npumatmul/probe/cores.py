"""Questions about cores, threads, contexts and domains: Q18, Q19, Q23, X1."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from npumatmul.chips.types import MatmulType
from npumatmul.device.budget import descriptor_limit, open_descriptors, provide_descriptors
from npumatmul.errors import NpuMemoryError, RknnError
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import Context, Instrument, Matrix, judge
from npumatmul.rknn import CoreMask

I8 = MatmulType.INT8_INT8_INT32


def _sizes(instrument: Instrument, m: int = 4) -> tuple[int, int, int]:
    row = instrument.row(I8)
    return m, 2 * row.k_multiple.value, 2 * row.n_multiple.value


@question("Q18", "May contexts be used from several threads?", "wrong results and errors, by kind of use")
def threads(instrument: Instrument) -> Answer:
    """Runs one context per thread at the same time, then creates and destroys in several threads; counts failures.

    With --all one context is run from two threads.
    """
    repeats = 20 if instrument.quick else 100
    details = {
        "a context per thread": _failures(instrument, repeats, shared=False),
        "create and destroy in threads": _failures(instrument, repeats // 5, shared=False, renew=True),
    }
    if instrument.everything:
        details["one context in two threads"] = _failures(instrument, repeats, shared=True)
    return Answer("; ".join(f"{use}: {said}" for use, said in details.items()), details)


def _failures(instrument: Instrument, repeats: int, *, shared: bool, renew: bool = False) -> str:
    instrument.step(
        f"{repeats} runs per thread, {'one context' if shared else 'own contexts'}{', renewed' if renew else ''}"
    )
    count = max(2, instrument.table.cores.value)
    m, k, n = _sizes(instrument)
    data = [instrument.operands(I8, m, k, n) for _ in range(count)]
    bad: list[str] = []

    def prepared(stack: ExitStack, a: Matrix, b: Matrix) -> Context:
        context = stack.enter_context(instrument.context(I8, m, k, n))
        context.product(a, b)
        return context

    def work(number: int, context: Context | None, expected: Matrix) -> None:
        a, b, _ = data[number]
        for _ in range(repeats):
            try:
                if context is None:
                    with ExitStack() as stack:
                        found = prepared(stack, a, b).result()
                else:
                    context.run()
                    found = context.result()
                if judge(found, expected) != "right":
                    bad.append("wrong")
            except RknnError as error:
                bad.append(f"{error.function}: {error.code}")

    with ExitStack() as stack:
        contexts: list[Context | None] = [None] * count
        if shared:
            contexts = [prepared(stack, *data[0][:2])] * count
        elif not renew:
            contexts = [prepared(stack, a, b) for a, b, _ in data]
        _together([
            lambda i=i: work(i, contexts[i], data[0 if shared else i][2])  # type: ignore[misc]
            for i in range(count)
        ])  # fmt: skip
    return f"{len(bad)} of {count * repeats} bad{' (' + ', '.join(sorted(set(bad))) + ')' if bad else ''}"


def _together(tasks: list[Callable[[], None]]) -> None:
    started = [threading.Thread(target=task) for task in tasks]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


@question("Q19", "Which core masks does a context take?", "the masks that are accepted and give right results")
def core_masks(instrument: Instrument) -> Answer:
    """Sets each mask that the headers list, then runs and compares; with --all numbers that no header lists, too."""
    m, k, n = _sizes(instrument)
    a, b, expected = instrument.operands(I8, m, k, n)
    masks = [0, 1, 2, 4, 3, 7, 0xFFFF] + ([5, 6, 8, 100, -1] if instrument.everything else [])
    details: dict[str, str] = {}
    for mask in masks:
        instrument.step(f"core mask {mask}")
        with instrument.context(I8, m, k, n) as context:
            try:
                instrument.runtime.matmul_set_core_mask(context.handle, CoreMask(mask) if mask >= 0 else mask)  # type: ignore[arg-type]
            except RknnError as error:
                details[str(mask)] = f"refused ({error.code})"
                continue
            details[str(mask)] = judge(context.product(a, b), expected)
    taken = [int(mask) for mask, verdict in details.items() if verdict == "right" and int(mask) >= 0]
    return Answer(f"accepted: {taken or 'none'}", details, {"core_masks": taken})


@question(
    "Q23", "How many IOMMU domains are there?", "the number of ids from 0 on that create takes; what runs in them"
)
def domains(instrument: Instrument) -> Answer:
    """Creates a context in one domain after the other until one is refused; runs in the first, second and last.

    Two processes that use domains at the same time can panic the kernel: stop other users of the NPU before.
    """
    m, k, n = _sizes(instrument)
    if not instrument.table.quant_params.value:
        return Answer("this runtime has no domains")
    count = 0
    refused = "none refused"
    while count < 2 * instrument.table.iommu_domains.value:
        instrument.step(f"create in domain {count}")
        try:
            with instrument.context(I8, m, k, n, domain=count):
                count += 1
        except RknnError as error:
            refused = f"{count} is refused ({error.code})"
            break
    details: dict[str, Any] = {"accepted": count, "next": refused}
    for domain in sorted({0, 1, count - 1} & set(range(count))):
        instrument.step(f"run in domain {domain}")
        details[f"product in domain {domain}"] = instrument.verdict(I8, m, k, n, domain=domain)
    works = all(said == "right" for name, said in details.items() if name.startswith("product"))
    cells = {"iommu_domains": count} if count and works else {}
    return Answer(f"{count} domains; {refused}; products {'right' if works else 'wrong'}", details, cells)


#: More than the 1,876 that a client in the field holds (facts 15).
CONTEXTS_TRIED = 2000


@question(
    "X1", "How many contexts can one process have?", "the number, or at least so many; descriptors that each holds"
)
def context_count(instrument: Instrument) -> Answer:
    """Creates the smallest contexts until one is refused, at most 2,000, more than any client is known to hold."""
    row = instrument.row(I8)
    with suppress(NpuMemoryError):
        provide_descriptors(instrument.table.context_descriptors.value * CONTEXTS_TRIED)
    before = open_descriptors()
    count, refused = 0, ""
    with ExitStack() as stack:
        while count < CONTEXTS_TRIED and not refused:
            if count % 10 == 0:
                instrument.step(f"{count} contexts")
            try:
                stack.enter_context(instrument.context(I8, 1, row.k_multiple.value, row.n_multiple.value))
                count += 1
            except RknnError as error:
                refused = str(error.code)
        held = open_descriptors() - before
        left = descriptor_limit() - open_descriptors()
    each = held // count if count else 0
    details = {"contexts": count, "descriptors each": each, "descriptors left": left}
    if not refused:
        return Answer(f"at least {count}, {each} descriptors each", details)
    if left <= max(each, 1):
        return Answer(f"{count}, {each} descriptors each; then there were no descriptors left ({refused})", details)
    return Answer(f"{count}, {each} descriptors each; then {refused}", details, {"contexts": count} if count else {})
