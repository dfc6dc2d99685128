"""Questions about where elements stand in memory: Q3 to Q7."""

from __future__ import annotations

from typing import Any

import numpy as np

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import RknnError, UnsupportedByRuntime
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NATIVE, NORMAL, TRANSPOSED, Instrument, Matrix, decode, encode, judge, to_tiles
from npumatmul.rknn import MatmulInfo

F16, I8 = MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT8_INT8_INT32


@question("Q3", "What does the helper that packs B take as int4?", "packed (and which nibble), one per byte, neither")
def helper_input(instrument: Instrument) -> Answer:
    """Packs a matrix given as pairs, then given one per byte, and compares with the native layout in each reading.

    Both buffers are large enough for either reading, so that nothing is read or written beyond them.
    """
    types = [t for t in MatmulType if t.b is ElementType.INT4 and instrument.row(t).supported.value]
    if not types:
        return Answer("the chip has no type with an int4 B")
    mm_type = types[0]
    row = instrument.row(mm_type)
    assert row.b_tile.value is not None
    k, n = 2 * row.k_multiple.value, 2 * row.n_multiple.value
    b = instrument.random.integers(-8, 8, (k, n))
    expected = {
        nibble: encode(to_tiles(b, row.b_tile.value), ElementType.INT4, nibble).tobytes() for nibble in ("low", "high")
    }
    inputs = {f"packed, even one {nibble}": encode(b, ElementType.INT4, nibble) for nibble in ("low", "high")}
    inputs["one per byte"] = b.astype(np.int8).view(np.uint8).ravel()
    info = MatmulInfo(M=1, K=k, N=n, type=mm_type.code, B_layout=NATIVE)
    matches: list[tuple[str, str]] = []
    for name, data in inputs.items():
        source, target = np.zeros(2 * k * n, np.uint8), np.zeros(2 * k * n, np.uint8)
        source[: data.size] = data
        instrument.step(f"helper with {name}")
        try:
            instrument.runtime.b_normal_layout_to_native_layout(
                source.ctypes.data, target.ctypes.data, k, n, info, row.b_tile.value
            )
        except UnsupportedByRuntime as error:
            return Answer(f"not asked: {error}")
        except RknnError as error:
            return Answer(f"the helper refuses {mm_type.name}: {error.code}", {"type": mm_type.name})
        matches += [(name, nibble) for nibble, data in expected.items() if target[: k * n // 2].tobytes() == data]
    details = {"type": mm_type.name, "matches (input, even one of the output)": [list(match) for match in matches]}
    if not matches:
        return Answer("neither gives the documented native layout", details)
    own = [m for m in matches if m[1] in m[0]] or matches  # reading and writing in one order is the plain case
    name, nibble = own[0]
    cell = "packed" if name.startswith("packed") else "one per byte"
    cells = {"helper_int4": cell, "int4_even_nibble": instrument.table.int4_even_nibble.value}
    if len({m[1] for m in own}) == 1:
        cells["int4_even_nibble"] = nibble
    return Answer(f"{cell}; the even one is the {cells['int4_even_nibble']} nibble of the output", details, cells)


def _segmented(b: Matrix, tile: tuple[int, int], depths: list[int]) -> Matrix:
    return np.concatenate([to_tiles(part, tile) for part in np.split(b, np.cumsum(depths)[:-1])])


@question("Q4", "How is a native B stored that is deeper than a segment?", "rising with the remainder last, else")
def segments(instrument: Instrument) -> Answer:
    """Runs a product one and a half segments deep with B packed in each conceivable way, and sees which comes out.

    Segments rising with the remainder last; the remainder first; balanced; falling; no segments at all.
    """
    segment = instrument.row(I8).k_segment.value
    if segment is None:
        return Answer("no segments are documented for this chip and runtime")
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for mm_type in (F16, I8):
        row = instrument.row(mm_type)
        tile = row.b_tile.value
        assert tile is not None
        k, n, half = segment + segment // 2, 2 * row.n_multiple.value, segment // 2
        a, b, expected = instrument.operands(mm_type, 1, k, n)
        ways = {
            "rising, remainder last": _segmented(b, tile, [segment, half]),
            "rising, remainder first": _segmented(b, tile, [half, segment]),
            "balanced": _segmented(b, tile, [k // 2, k // 2]),
            "remainder stored first": np.concatenate([to_tiles(b[segment:], tile), to_tiles(b[:segment], tile)]),
            "no segments": to_tiles(b, tile),
        }
        found = []
        try:
            with instrument.context(mm_type, 1, k, n) as context:
                context.allocate_all()
                context.write("A", context.packed_a(a))
                for way, values in ways.items():
                    instrument.step(f"{mm_type.name} K={k}, {way}")
                    context.write("B", instrument.encode(values, mm_type.b))
                    context.bind()
                    context.run()
                    if judge(context.result(), expected) == "right":
                        found.append(way)
        except RknnError as error:
            found.append(f"refused ({error.code})")
        details[mm_type.name] = found or ["none of these"]
        if found and found[0] in ("rising, remainder last", "no segments"):
            cells[f"{mm_type.name}.k_segment"] = segment if found[0] != "no segments" else None
    return Answer("; ".join(f"{name}: {', '.join(said)}" for name, said in details.items()), details, cells)


@question("Q5", "What are dims and size of B when it is segmented?", "dims and size by type")
def segmented_attributes(instrument: Instrument) -> Answer:
    """Creates a context two and a half segments deep and reads the attributes of B; nothing is run."""
    segment = instrument.row(I8).k_segment.value
    if segment is None:
        return Answer("no segments are documented for this chip and runtime")
    details: dict[str, Any] = {}
    for mm_type in (F16, I8):
        row = instrument.row(mm_type)
        k, n = 2 * segment + segment // 2, 2 * row.n_multiple.value
        try:
            instrument.step(f"create {mm_type.name} K={k}")
            with instrument.context(mm_type, 1, k, n) as context:
                attr = context.attr("B")
                details[mm_type.name] = {"K": k, "N": n, "dims": list(attr.shape), "size": attr.size}
        except RknnError as error:
            details[mm_type.name] = f"refused ({error.code})"
    said = [
        f"{name}: dims {'x'.join(map(str, found['dims']))}, {found['size']} bytes for K={found['K']}, N={found['N']}"
        if isinstance(found, dict)
        else f"{name}: {found}"
        for name, found in details.items()
    ]
    return Answer("; ".join(said), details)


@question("Q6", "How does a native C of float16, bfloat16 and int8 stand in memory?", "columns per group")
def native_c(instrument: Instrument) -> Answer:
    """Runs a product that gives every element of C a value of its own, and sees where each value stands.

    What the dims of the attribute say is compared with where the values are.
    """
    details: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    wanted = (ElementType.FLOAT16, ElementType.BFLOAT16, ElementType.INT8)
    types = [t for t in MatmulType if t.c in wanted and instrument.row(t).supported.value]
    for mm_type in types:
        row = instrument.row(mm_type)
        k, n = row.k_multiple.value, row.n_multiple.value
        m = 4 if mm_type.a is ElementType.FLOAT16 or 4 * n <= 128 else 1  # values that int8 can tell apart
        a, b = np.zeros((m, k), np.int64), np.zeros((k, n), np.int64)
        # C[i, j] = i n + j, out of factors that int4 holds on the side of B
        a[:, 0], a[:, 1], a[:, 2] = n * np.arange(m), 8, 1
        b[0], b[1], b[2] = 1, np.arange(n) // 8, np.arange(n) % 8
        expected = a @ b
        try:
            instrument.step(f"{mm_type.name} with native A and C")
            with instrument.context(mm_type, m, k, n, ac=NATIVE) as context:
                context.allocate_all()
                context.write("A", context.packed_a(a))
                context.write("B", context.packed_b(b))
                context.bind()
                context.run()
                context.result()  # synchronises
                dims = context.attr("C").shape
                values = decode(context.view("C"), mm_type.c)
        except RknnError as error:
            details[mm_type.name] = f"refused ({error.code})"
            cells[f"{mm_type.name}.ac_native"] = False
            continue
        groups = [group for group in (1, 2, 4, 8, 16, 32, 64) if _stands(values, expected, group)]
        said = dims[2] if len(dims) == 3 else None
        details[mm_type.name] = {"dims": list(dims), "groups that fit the values": groups}
        if said in groups:
            cells[f"{mm_type.name}.c_group"] = said
            cells[f"{mm_type.name}.ac_native"] = True
    text = "; ".join(
        f"{t.name}: {cells.get(f'{t.name}.c_group', 'dims and values disagree, see details')} columns" for t in types
    )
    return Answer(text or "the chip has no type with such a C", details, cells)


def _stands(values: Matrix, expected: Matrix, group: int) -> bool:
    m, n = expected.shape
    i, j = np.mgrid[:m, :n]
    places = (j // group * m + i) * group + j % group
    return places.max() < values.size and bool((values[places] == expected).all())


@question("Q7", "Is a normal or transposed B converted rightly when K exceeds a segment?", "right or wrong by layout")
def segmented_input(instrument: Instrument) -> Answer:
    """Runs a product one and a half segments deep with B normal, and with B as [N, K], and compares with numpy."""
    segment = instrument.row(I8).k_segment.value
    if segment is None:
        return Answer("no segments are documented for this chip and runtime")
    details: dict[str, Any] = {}
    for mm_type in (F16, I8):
        row = instrument.row(mm_type)
        k, n = segment + segment // 2, 2 * row.n_multiple.value
        for name, layout in (("normal", NORMAL), ("transposed", TRANSPOSED)):
            if layout == TRANSPOSED and not row.b_transposed.value:
                continue
            instrument.step(f"{mm_type.name} K={k}, B {name}")
            details[f"{mm_type.name}, B {name}"] = instrument.verdict(mm_type, 1, k, n, b=layout)
    return Answer("; ".join(f"{name}: {said}" for name, said in details.items()), details)
