"""Questions about scales and zero points: Q1, Q2, Q21, Q22, Q29."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import RknnError
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NORMAL, Instrument, judge
from npumatmul.rknn import QuantParams, RuntimeVersion

I8 = MatmulType.INT8_INT8_INT32
GROUPED = (MatmulType.FLOAT16_INT4_FLOAT32, MatmulType.FLOAT16_INT4_FLOAT16, MatmulType.INT8_INT8_FLOAT32)
NO_GROUPS = Answer("the chip or the runtime has no type with groups")


def _grouped(instrument: Instrument) -> list[MatmulType]:
    return instrument.supported(*GROUPED) if instrument.version >= RuntimeVersion(2, 1, 0) else []


def _group(instrument: Instrument, mm_type: MatmulType) -> int:
    """The group size of the vendor's demos, which is one tile deep."""
    tile = instrument.row(mm_type).b_tile.value
    assert tile is not None
    return tile[1]


@question("Q1", "In which order are the scales of groups given?", "g*N+n or n*(K/G)+g")
def group_order(instrument: Instrument) -> Answer:
    """Gives every group and column a scale of its own, and reads the scales back out of the product.

    Row g of A has ones in group g, B is all ones: C[g, n] is G times the scale that served group g of column n.
    """
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in _grouped(instrument):
        row, group = instrument.row(mm_type), _group(instrument, mm_type)
        k, n = 4 * group, row.n_multiple.value
        a = np.repeat(np.eye(4, dtype=np.int64), group, axis=1)
        scales = (1 + np.arange(4 * n)) / 64
        instrument.step(f"{mm_type.name} with scales per group of {group}")
        try:
            with instrument.context(mm_type, 4, k, n, quant="group", group=group) as context:
                context.set_scales("B", scales.tolist())
                found = context.product(a, np.ones((k, n), np.int64))
        except RknnError as error:
            details[mm_type.name] = f"refused ({error.code})"
            continue
        orders = {"g*N+n": scales.reshape(4, n), "n*(K/G)+g": scales.reshape(n, 4).T}
        fits = [name for name, served in orders.items() if np.array_equal(found, group * served)]
        details[mm_type.name] = fits[0] if fits else "neither" if found.any() else "C is all zeros"
        if fits:
            cells["group_order"] = fits[0]
        if mm_type is MatmulType.INT8_INT8_FLOAT32:
            cells[f"{mm_type.name}.per_group"] = bool(fits)
    if not details:
        return NO_GROUPS
    return Answer("; ".join(f"{name}: {said}" for name, said in details.items()), details, cells)


@question("Q2", "Which group sizes are allowed, must they divide K, and may groups have zero points?", "sizes, yes/no")
def group_sizes(instrument: Instrument) -> Answer:
    """Tries sizes with scales that differ by group, and compares with numpy; a size counts when C is right.

    Sizes are fractions and multiples of a tile's depth, one that is no multiple of it, and one that does not divide K.
    """
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in _grouped(instrument):
        row, unit = instrument.row(mm_type), _group(instrument, mm_type)
        k, n = 16 * unit, row.n_multiple.value
        sizes = [unit // 2, unit, 3 * unit // 2, 2 * unit, 3 * unit, 4 * unit, 8 * unit, k]
        verdicts = {}
        for size in sizes[:4] if instrument.quick else sizes:
            instrument.step(f"{mm_type.name} group size {size} of K={k}")
            verdicts[str(size)] = _group_verdict(instrument, mm_type, k, n, size, asymmetric=False)
        instrument.step(f"{mm_type.name} group size {unit} with zero points")
        asymmetric = _group_verdict(instrument, mm_type, k, n, unit, asymmetric=True)
        details[mm_type.name] = {"K": k, "sizes": verdicts, "with zero points": asymmetric}
        right = [int(size) for size, verdict in verdicts.items() if verdict == "right"]
        cells[f"{mm_type.name}.group_sizes"] = right
        cells[f"{mm_type.name}.per_group"] = bool(right)
        cells[f"{mm_type.name}.group_asymmetric"] = asymmetric == "right"
    if not details:
        return NO_GROUPS
    text = "; ".join(
        f"{name}: {cells[f'{name}.group_sizes'] or 'none'} of K={found['K']}, zero points {found['with zero points']}"
        for name, found in details.items()
    )
    return Answer(text, details, cells)


def _group_verdict(instrument: Instrument, mm_type: MatmulType, k: int, n: int, size: int, *, asymmetric: bool) -> str:
    groups = -(-k // size)
    a, b, _ = instrument.operands(mm_type, 1, k, n)
    steps = 2.0 ** instrument.random.integers(-3, 1, groups)  # the same for every column: the order does not matter
    zeros = instrument.random.integers(-2, 3, groups) if asymmetric else np.zeros(groups, np.int64)
    of_k = np.arange(k) // size
    expected = a @ ((b - zeros[of_k, None]) * steps[of_k, None])
    kind = "group asym" if asymmetric else "group"
    found = []
    for order in ("g*N+n", "n*(K/G)+g"):
        spread = np.repeat if order == "g*N+n" else np.tile
        try:
            with instrument.context(mm_type, 1, k, n, quant=kind, group=size) as context:
                context.set_scales("B", spread(steps, n).tolist(), spread(zeros, n).tolist())
                found.append(judge(context.product(a, b), expected))
        except RknnError as error:
            return f"refused ({error.code})"
    return "right" if "right" in found else found[0]


@question("Q21", "Do scales change a C that is a plain sum (types 2, 10, 11), and does type 2 work per channel?",
          "applied, ignored, refused; zeros")  # fmt: skip
def plain_sums(instrument: Instrument) -> Answer:
    """Gives B one scale of 0.5 and compares C with the sum and half the sum; then scales per channel for type 2."""
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in instrument.supported(I8, MatmulType.INT4_INT4_INT16, MatmulType.INT8_INT4_INT32):
        row = instrument.row(mm_type)
        k, n = row.k_multiple.value, row.n_multiple.value
        a, b, plain = instrument.operands(mm_type, 1, k, n)
        a, plain = 2 * a, 2 * plain
        instrument.step(f"{mm_type.name} with a scale of B")
        try:
            with instrument.context(mm_type, 1, k, n) as context:
                context.set_scales("B", [0.5])
                found = context.product(a, b)
            same, halved = np.array_equal(found, plain), np.array_equal(2 * found, plain)
            details[mm_type.name] = "ignored" if same else "applied" if halved else judge(found, plain)
            if same or halved:
                cells[f"{mm_type.name}.scales_apply"] = halved
        except (RknnError, NotImplementedError) as error:
            details[mm_type.name] = f"refused ({getattr(error, 'code', 'no such function')})"
    if instrument.table.quant_params.value:
        row = instrument.row(I8)
        k, n = row.k_multiple.value, row.n_multiple.value
        a, b, plain = instrument.operands(I8, 1, k, n)
        instrument.step(f"{I8.name} with scales per channel")
        try:
            with instrument.context(I8, 1, k, n, quant="channel") as context:
                context.set_scales("B", [1.0] * n)
                verdict = judge(context.product(a, b), plain)
        except RknnError as error:
            verdict = f"refused ({error.code})"
        details[f"{I8.name} per channel, all scales 1"] = verdict
        cells[f"{I8.name}.per_channel"] = verdict == "right"
    return Answer("; ".join(f"{name}: {said}" for name, said in details.items()), details, cells)


@question("Q22", "What does get_quant_params make of the scales per channel?", "largest, smallest, mean, ...")
def normalised_scale(instrument: Instrument) -> Answer:
    """Gives type 2 scales per channel and compares the one that comes back with their statistics.

    C is compared, too: with each column's sum as it is, and times its scale over the common one.
    """
    if not instrument.table.quant_params.value:
        return Answer("this runtime has no quantization parameters")
    row = instrument.row(I8)
    k, n = row.k_multiple.value, row.n_multiple.value
    scales = np.roll(1 + np.arange(n), n // 2) / 256  # neither first nor last is the largest or smallest
    a, b, plain = instrument.operands(I8, 1, k, n)
    instrument.step(f"{I8.name} with scales per channel")
    try:
        with instrument.context(I8, 1, k, n, quant="channel") as context:
            context.set_scales("B", scales.tolist())
            common = instrument.runtime.matmul_get_quant_params(
                context.handle, QuantParams(b"B", C.POINTER(C.c_float)(), 0)
            )
            found = context.product(a, b)
    except RknnError as error:
        return Answer(f"refused: {error.function} returned {error.code}")
    statistics = {
        "largest": scales.max(), "smallest": scales.min(), "mean": scales.mean(), "first": scales[0],
        "last": scales[-1], "geometric mean": np.exp(np.log(scales).mean()), "one": 1.0,
    }  # fmt: skip
    fits = [name for name, value in statistics.items() if np.isclose(common, value, rtol=1e-5)]
    scaled = plain * scales / common if common else plain * np.nan
    c_is = "plain sums" if np.array_equal(found, plain) else "zeros" if not found.any() else "something else"
    if c_is == "something else" and np.abs(found - scaled).max() <= 1:
        c_is = "sums times scale over the common one, rounded"
    details = {"returned": common, "scales": "1/256 .. n/256, rotated", "n": n, "equals": fits, "C": c_is}
    return Answer(f"the {' or '.join(fits) or f'unexplained value {common}'}; C is {c_is}", details)


@question("Q29", "Do scales stay across set_dynamic_shape, and may they change between runs?", "yes or no, each")
def kept_scales(instrument: Instrument) -> Answer:
    """Scales B of a type with scaled C, runs, chooses another shape, runs; then changes the scale alone and runs."""
    types = instrument.supported(
        MatmulType.FLOAT16_INT8_FLOAT32, MatmulType.FLOAT16_INT4_FLOAT32, MatmulType.INT8_INT8_INT8,
    )  # fmt: skip
    if not types or not instrument.table.quant_params.value:
        return Answer("the chip or the runtime has no type with scaled C")
    mm_type = types[0]
    row = instrument.row(mm_type)
    k, n = row.k_multiple.value, row.n_multiple.value
    a, b = np.zeros((4, k), np.int64), np.zeros((k, n), np.int64)
    a[:, 0], b[0] = 2, 4 if mm_type.b is not ElementType.INT4 else 2
    plain = a @ b
    shapes = [(4, k, n), (1, k, n)]
    instrument.step(f"{mm_type.name} with a scale and two shapes")
    with instrument.context(mm_type, 0, 0, 0, b=NORMAL, shapes=shapes) as context:
        for name in "ABC" if mm_type.c is ElementType.INT8 else "B":
            context.set_scales(name, [1.0 if name != "B" else 0.5])
        first = judge(2 * context.product(a, b), plain)
        context.set_scales("B", [0.25])
        context.run()
        changed = judge(4 * context.result(), plain)
        context.choose(1)
        kept = judge(4 * context.product(a[:1], b), plain[:1])
    details = {"type": mm_type.name, "first run": first, "changed between runs": changed, "after another shape": kept}
    said = {"right": "yes"}
    return Answer(
        f"kept across set_dynamic_shape: {said.get(kept, f'no ({kept})')}; "
        f"changed between runs without binding anew: {said.get(changed, f'no ({changed})')}",
        details,
    )
