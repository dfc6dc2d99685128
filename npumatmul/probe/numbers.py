"""Questions about numbers: Q20 and Q32."""

from __future__ import annotations

from typing import Any

import numpy as np

from npumatmul.chips.types import MatmulType
from npumatmul.errors import RknnError
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NORMAL, Instrument, Matrix

F16, F16_OUT = MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.FLOAT16_FLOAT16_FLOAT16
I4, I8_OUT = MatmulType.INT4_INT4_INT16, MatmulType.INT8_INT8_INT8

#: Halves, and what each way of rounding makes of them.
HALVES = (0.5, 1.5, 2.5, -0.5, -1.5, -2.5)
ROUNDINGS = {
    "to nearest, ties to even": (0, 2, 2, 0, -2, -2),
    "to nearest, ties away from zero": (1, 2, 3, -1, -2, -3),
    "to nearest, ties up": (1, 2, 3, 0, -1, -2),
    "towards zero": (0, 1, 2, 0, -1, -2),
    "down": (0, 1, 2, -1, -2, -3),
}


@question("Q20", "What becomes of sums that C cannot hold, how is int8 rounded, in which order are floats added?",
          "saturate or wrap; the rounding; sums with one large term first, in the middle and last")  # fmt: skip
def integer_semantics(instrument: Instrument) -> Answer:
    """Makes sums just beyond C's range, halves for int8, and 2^24 + 1 + 1 + ... for float32.

    In float32 the ones are lost when they are added to 2^24 one by one, and kept when they are added up before.
    """
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    said = []
    for mm_type, a_value, b_value, bits, quant in ((I4, -8, -8, 16, False), (I8_OUT, 4, 3, 8, True)):
        if not instrument.supported(mm_type):
            continue
        row = instrument.row(mm_type)
        k, n = row.k_multiple.value, row.n_multiple.value
        half, product = 1 << (bits - 1), a_value * b_value
        depth = -(-(half + 50) // (product * k)) * k
        total = depth * product
        instrument.step(f"{mm_type.name}: a sum of {total}")
        try:
            with instrument.context(mm_type, 1, depth, n, b=NORMAL) as context:
                if quant:
                    for name in "ABC":
                        context.set_scales(name, [1.0])
                found = context.product(np.full((1, depth), a_value), np.full((depth, n), b_value))
        except RknnError as error:
            details[mm_type.name] = f"refused ({error.function}: {error.code})"
            said.append(f"{mm_type.name}: {details[mm_type.name]}")
            continue
        ways = {"saturate": half - 1, "wrap": (total + half) % (2 * half) - half}
        fits = [way for way, value in ways.items() if (found == value).all()]
        details[mm_type.name] = {"sum": total, "C": sorted(set(found.ravel().tolist()))[:4], "is": fits}
        if fits:
            cells[f"{mm_type.name}.overflow"] = fits[0]
        said.append(f"{mm_type.name}: {fits[0] if fits else 'neither'}")
    if instrument.supported(I8_OUT):
        details["int8 rounding"] = _rounding(instrument)
        said.append(f"int8 is rounded {details['int8 rounding']}")
    if instrument.supported(F16):
        details["float32 sums less 2^24"] = sums = _float_sums(instrument)
        where = ", ".join(f"{sums[place]:g} with it {place}" for place in ("first", "middle", "last"))
        said.append(f"of {sums['ones']} ones beside 2^24 in float32 there remain {where}")
    return Answer("; ".join(said), details, cells)


def _rounding(instrument: Instrument) -> str:
    row = instrument.row(I8_OUT)
    k, n = row.k_multiple.value, row.n_multiple.value
    a = np.zeros((8, k), np.int64)
    a[: len(HALVES), 0] = [int(2 * half) for half in HALVES]
    b = np.zeros((k, n), np.int64)
    b[0] = 1
    instrument.step(f"{I8_OUT.name}: rounding of halves")
    try:
        with instrument.context(I8_OUT, 8, k, n, b=NORMAL) as context:
            for name, scale in (("A", 1.0), ("B", 1.0), ("C", 2.0)):
                context.set_scales(name, [scale])
            found = tuple(context.product(a, b)[: len(HALVES), 0].tolist())
    except RknnError as error:
        return f"not known: refused ({error.function}: {error.code})"
    return next((name for name, values in ROUNDINGS.items() if values == found), f"in no known way: {found}")


def _float_sums(instrument: Instrument) -> dict[str, float]:
    row = instrument.row(F16)
    k, n = 4 * row.k_multiple.value, row.n_multiple.value
    large = 1 << 12
    sums: dict[str, float] = {"ones": k - 1}
    for where, place in (("first", 0), ("middle", k // 2), ("last", k - 1)):
        a, b = np.ones((1, k)), np.ones((k, n))
        a[0, place], b[place] = large, large
        instrument.step(f"{F16.name}: 2^24 {where}, {k - 1} ones")
        with instrument.context(F16, 1, k, n, b=NORMAL) as context:
            sums[where] = float(context.product(a, b)[0, 0]) - large**2
    return sums


@question("Q32", "What becomes of NaN, infinity, subnormal and large float16?", "each result as it came out")
def special_floats(instrument: Instrument) -> Answer:
    """Multiplies special values of A with ones and reads C, in float32 and, where the chip has it, in float16."""
    tiny = 2.0**-24  # the smallest subnormal of float16
    rows = {
        "nan": [np.nan], "inf": [np.inf], "-inf": [-np.inf], "inf - inf": [np.inf, -np.inf], "-0": [-0.0],
        "subnormal": [tiny], "largest": [65504.0], "twice the largest": [65504.0, 65504.0],
    }  # fmt: skip
    details: dict[str, Any] = {}
    for mm_type in instrument.supported(F16, F16_OUT):
        row = instrument.row(mm_type)
        k, n = row.k_multiple.value, row.n_multiple.value
        a = np.zeros((len(rows), k))
        for line, values in zip(a, rows.values(), strict=True):
            line[: len(values)] = values
        instrument.step(f"{mm_type.name}: special values")
        with instrument.context(mm_type, len(rows), k, n, b=NORMAL) as context:
            found: Matrix = context.product(a, np.ones((k, n)))
        results = {name: _shown(value, tiny) for name, value in zip(rows, found[:, 0], strict=True)}
        details[mm_type.name] = results
    text = "; ".join(
        f"{name}: " + ", ".join(f"{value} gives {result}" for value, result in results.items())
        for name, results in details.items()
    )
    return Answer(text, details)


def _shown(value: float, tiny: float) -> str:
    if value == tiny:
        return "itself (2^-24)"
    return "-0" if value == 0 and np.signbit(value) else f"{value:g}"
