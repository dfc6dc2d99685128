"""Questions about dynamic shapes: Q26."""

from __future__ import annotations

import time
from typing import Any

from npumatmul.chips.types import MatmulType
from npumatmul.errors import RknnError
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NATIVE, TRANSPOSED, Instrument, judge

I8 = MatmulType.INT8_INT8_INT32


@question("Q26", "How many shapes may a dynamic context have, what does switching cost, may K and N vary?",
          "largest number accepted; microseconds; per layout of B right, wrong or refused")  # fmt: skip
def dynamic_shapes(instrument: Instrument) -> Answer:
    """Creates with 1, 2, 4, ... shapes that differ in M; times set_dynamic_shape; runs shapes that differ in K and N.

    An M that was not registered is chosen last, to see the code.
    """
    if not instrument.table.dynamic_shapes.value:
        return Answer("this runtime has no dynamic shapes")
    row = instrument.row(I8)
    k, n = row.k_multiple.value, row.n_multiple.value
    details: dict[str, Any] = {}
    best = 0
    refused = "none refused"
    for power in range(7 if instrument.quick else 13 if instrument.everything else 10):
        count = 1 << power
        instrument.step(f"{count} shapes")
        try:
            with instrument.context(I8, 0, 0, 0, shapes=[(m, k, n) for m in range(1, count + 1)]):
                best = count
        except RknnError as error:
            refused = f"{count} are refused ({error.code})"
            break
    details["shapes"] = {"accepted": best, "next": refused}
    step = instrument.table.row_multiple.value
    shapes = [(1, k, n), (step, k, n), (2 * step, k, n)]
    with instrument.context(I8, 0, 0, 0, shapes=shapes) as context:
        context.allocate_all()
        verdicts = []
        for index, shape in enumerate(shapes):
            instrument.step(f"run shape {shape}")
            a, b, expected = instrument.operands(I8, *shape)
            context.choose(index)
            verdicts.append(judge(context.product(a, b), expected))
        repeats = 100
        start = time.perf_counter()
        for index in range(repeats):
            context.choose(index % len(shapes))
        switch = 1e6 * (time.perf_counter() - start) / repeats
        instrument.step("a shape that was not registered")
        try:
            instrument.runtime.matmul_set_dynamic_shape(context.handle, (3 * step, k, n))
            unregistered = "accepted"
        except RknnError as error:
            unregistered = f"refused ({error.code})"
    details.update({"several M": verdicts, "switch us": round(switch, 1), "unregistered": unregistered})
    varying: dict[str, str] = {}
    layouts = {"native": NATIVE, "transposed": TRANSPOSED} if row.b_transposed.value else {"native": NATIVE}
    for name, layout in layouts.items():
        different = [(1, k, n), (1, 2 * k, 2 * n)]
        instrument.step(f"K and N vary, B {name}")
        try:
            with instrument.context(I8, 0, 0, 0, b=layout, shapes=different) as context:
                context.allocate_all()
                found = []
                for index, shape in enumerate(different):
                    a, b, expected = instrument.operands(I8, *shape)
                    context.choose(index)
                    found.append(judge(context.product(a, b), expected))
            varying[name] = "right" if found == ["right", "right"] else ", ".join(found)
        except RknnError as error:
            varying[name] = f"refused ({error.function}: {error.code})"
    details["K and N vary"] = varying
    return Answer(
        f"{best} shapes ({refused}); several M: {', '.join(verdicts)}; "
        f"K and N varying: {', '.join(f'B {name} {verdict}' for name, verdict in varying.items())}; "
        f"switching {details['switch us']} us; an unregistered shape is {unregistered}",
        details,
        {"dynamic_kn": varying["native"] == "right"},
    )
