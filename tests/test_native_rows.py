"""int4 with native A and C: no more rows than a vendor's runtime is recorded to survive are ever asked for.

`rknn_matmul_create` of 1.6.0 dies of SIGFPE above a number of rows that depends on K and N (facts 15).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_rows import GOLDEN, RECORDED, safe_rows

import npumatmul as npu
from npumatmul import sim
from npumatmul.bench.cases import Case
from npumatmul.chips import CHIPS, NEWEST_RUNTIME, Chip, Provenance, capabilities
from npumatmul.chips.native_rows import NativeRows
from npumatmul.chips.probe_file import ProbeResults
from npumatmul.chips.table import build
from npumatmul.chips.timing import TIMINGS
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import DeviceError
from npumatmul.planning.choices import Machine, Tuned, TuningCache, WeightShape
from npumatmul.planning.product import plan_matmul, plan_weight
from npumatmul.planning.weight import WeightPlan, costs_of
from npumatmul.rknn import MatmulLayout, RuntimeVersion

T = npu.MatmulType
INT4 = T.INT4_INT4_INT16
NATIVE = MatmulLayout.NATIVE

# ---- the table -----------------------------------------------------------------------------------------------------


def rows_of(soc: str = "rk3588", runtime: str = "1.6.0") -> NativeRows:
    rows = capabilities(soc, runtime, probed=False).types[INT4].native_rows.value
    assert rows is not None
    return rows


def test_the_table_is_the_recording() -> None:
    rows = rows_of()
    assert {(k, n): rows.most(k, n) for k in rows.ks for n in rows.ns} == RECORDED


@given(k=st.integers(1, 12_000), n=st.integers(1, 200_000))
def test_gaps_take_the_least_of_their_neighbours(k: int, n: int) -> None:
    assert rows_of().most(k, n) == safe_rows(k, n)


def test_what_was_accepted_stays_accepted_but_for_these_five() -> None:
    refused, taken = [], 0
    with gzip.open(GOLDEN / "attr_v1.6.0.jsonl.gz", "rt") as lines:
        for case in map(json.loads, lines):
            if case["soc"] == "rk3588" and case["type"] == 10 and case["AC_layout"] and case["ret"] == 0:
                good = case["M"] <= rows_of().most(case["K"], case["N"])
                taken += good
                if not good:
                    refused.append((case["M"], case["K"], case["N"]))
    # M*K above 262144 before the rows were recorded, and above the rows that were: none is refused that was not
    assert sorted(refused) == [(8192, 64, 64), (8192, 64, 64), (8193, 512, 128), (8193, 4096, 64), (8193, 4096, 64)]
    assert taken == 257


@pytest.mark.parametrize("soc", sorted(CHIPS))
@pytest.mark.parametrize("runtime", ["1.6.0", "2.0.0b0", "2.3.2"])
def test_it_stands_in_the_table_of_capabilities_with_its_source(soc: str, runtime: str) -> None:
    table = capabilities(soc, runtime, probed=False)
    for mm_type, row in table.types.items():
        assert (row.native_rows.value is None) == (mm_type is not INT4), "B alone of int4 is no int4 times int4"
    cell = table.types[INT4].native_rows
    assert "facts 15" in cell.source
    recorded_here = (soc, runtime) == ("rk3588", "1.6.0")
    assert cell.provenance is (Provenance.OBSERVED if recorded_here else Provenance.UNSETTLED)
    shown = json.loads(table.to_json())["types"][INT4.name]["native_rows"]["value"]
    assert NativeRows.of(shown) == cell.value
    if table.types[INT4].supported.value:
        assert "512 (K 512) to 4 (K 10304)" in str(table)


# ---- plans ---------------------------------------------------------------------------------------------------------


def chip_with(soc: str, **cells: Any) -> Chip:
    """A chip on which these cells of int4 were found."""
    found = {f"{INT4.name}.{name}": (value, "tried") for name, value in cells.items()}
    return Chip.of(build(soc, NEWEST_RUNTIME, ProbeResults(soc, NEWEST_RUNTIME, True, found)))


#: As the sources have them, and as probes may find them: int4 on another chip, larger K and N.
ALL_CHIPS = (
    *CHIPS.values(),
    chip_with("rk3576", supported=True),
    chip_with("rk3588", k_max=16384, n_max=32768),
    chip_with("rk3588", k_max=10304, n_max=16384, n_multiple=32),
    chip_with(
        "rk3588", native_rows={"k": [7, 500, 999], "n": [3, 100, 5000], "rows": [[9, 5, 1], [4, 4, 0], [1, 0, 0]]}
    ),
    chip_with("rk3588", native_rows={"k": [1], "n": [1], "rows": [[1]]}),
    chip_with("rk3588", k_max=20480, ac_normal=False),
)


def forbidden(chip: Chip, plan: WeightPlan, rows: int) -> list[tuple[int, int, int]]:
    """Contexts of a plan that a runtime is not known to survive."""
    if plan.mm_type is not INT4 or not plan.ac_native:
        return []
    tiles = {(k.padded, n.padded) for k in plan.k_spans for n in plan.n_spans}
    found_here = chip.type_limits(INT4).native_rows
    safe = safe_rows if found_here == rows_of() or found_here is None else found_here.most
    return [(rows, k, n) for k, n in tiles if rows > safe(k, n)]


@given(
    chip=st.sampled_from(ALL_CHIPS),
    k=st.integers(1, 40_000),
    n=st.integers(1, 100_000),
    m=st.integers(1, 3_000),
    options=st.fixed_dictionaries(
        {},
        optional={
            "k_slices": st.integers(1, 12),
            "n_tiles": st.integers(1, 9),
            "k_group": st.sampled_from([32, 128, 608, 7264, 16000]),
            "row_images": st.sampled_from([1, 2]),
            "cores": st.integers(1, 3),
            "rows": st.sampled_from([(1,), (512,), (1, 128)]),
            "ac_native": st.booleans(),
            "k_parts": st.integers(1, 30),
        },
    ),
    data=st.data(),
)
def test_no_plan_asks_for_more(
    chip: Chip, k: int, n: int, m: int, options: dict[str, Any], data: st.DataObject
) -> None:
    # mostly int4: the others have no such limit
    known = sorted(chip.limits, key=lambda t: t.code)
    mm_type = INT4 if INT4 in known and data.draw(st.integers(0, 4)) else data.draw(st.sampled_from(known))
    timings = data.draw(st.sampled_from([TIMINGS, {}]))
    try:
        weight = plan_weight(k, n, mm_type, chip, timings=timings, **options)
    except (DeviceError, ValueError):
        # what was asked for by name cannot be had, or what is left where the chip has no normal layout
        assert {"ac_native", "k_group"} & set(options) or chip is ALL_CHIPS[-1]
        return
    assert not [each for rows in (*weight.buckets, weight.m_max) for each in forbidden(chip, weight, rows)]
    for share in (None, "tiles"):
        plan = plan_matmul(m, weight, share=share, timings=timings)  # type: ignore[arg-type]
        assert sum(span.length for span in plan.m_spans) == m
        assert not [each for span in plan.m_spans for each in forbidden(chip, weight, span.padded)]


def test_other_ways_are_taken_by_modelled_time() -> None:
    """Slices of K that leave more rows, where fewer rows take longer; the normal layout where nothing else goes."""
    rk3588 = CHIPS["rk3588"]
    deep = plan_weight(8192, 512, INT4, rk3588)
    assert deep.ac_native
    least = min(
        costs.best(128, plan.cores) if plan.m_max >= 128 else np.inf
        for slices in (1, 2, 4, 8, 16)
        if (plan := plan_weight(8192, 512, INT4, rk3588, k_slices=slices)) and (costs := costs_of(plan))
    )
    modelled = plan_matmul(128, deep, share="tiles").modelled_seconds
    assert modelled is not None
    assert modelled <= least * 1.05
    # what a probe found to be accepted by create, deeper and wider than the recording, is no reason to use it
    probed = chip_with("rk3588", k_max=16384, n_max=32768)
    for timings in (TIMINGS, {}):
        plan = plan_weight(16384, 30000, INT4, probed, timings=timings)
        assert plan.ac_native
        assert plan.m_max >= 4
        assert max(span.padded for span in plan.k_spans) <= 10304
        assert max(span.padded for span in plan.n_spans) <= 8192
    assert len(plan_weight(16384, 64, INT4, probed, k_slices=1, ac_native=False).k_spans) == 1
    # eighty times slower (peers B1): the normal layout is what is left where no row is safe with the native one
    none = chip_with("rk3588", native_rows={"k": [32, 8192], "n": [64, 8192], "rows": [[0, 0], [0, 0]]})
    normal, native = plan_weight(8192, 512, INT4, none), plan_weight(8192, 512, INT4, rk3588)
    assert (normal.ac_native, normal.m_max) == (False, 512)
    slow, fast = (plan_matmul(128, plan).modelled_seconds or 0.0 for plan in (normal, native))
    assert 0 < 4 * fast < slow
    with pytest.raises(DeviceError, match=r"no number of rows is known to be safe.*more slices of K.*normal layout"):
        plan_weight(8192, 512, INT4, none, ac_native=True)


def test_time_in_the_normal_layout_is_that_of_boards() -> None:
    """Published (peers B1): unimatrix099, one core; Mojo24x7, N over three cores."""
    model = TIMINGS["rk3588"]
    for m, k, n, cores, published in (
        (128, 2048, 2048, 1, 24.2e-3), (64, 2048, 768, 3, 1.772e-3), (512, 2048, 768, 3, 13.42e-3),
        (1024, 2048, 768, 3, 26.71e-3),
    ):  # fmt: skip
        seconds = model.run_seconds(INT4, m, k, n, cores, ac_native=False)
        assert published / 1.3 < seconds < published * 1.3


def test_an_answer_of_a_board_decides_instead() -> None:
    free = chip_with("rk3588", native_rows=None)
    assert plan_weight(4096, 64, INT4, free, k_slices=1).m_max == 512
    as_recorded = chip_with("rk3588", native_rows="as recorded")
    assert plan_weight(4096, 64, INT4, as_recorded, k_slices=1).m_max == 64
    fewer = chip_with("rk3588", native_rows={"k": [512, 8192], "n": [64, 8192], "rows": [[40, 36], [8, 4]]})
    assert plan_weight(4096, 64, INT4, fewer, k_slices=1).m_max == 8
    assert fewer.type_limits(INT4).provenance
    table = build("rk3588", NEWEST_RUNTIME, fewer.probed)
    assert table.types[INT4].native_rows.provenance is Provenance.PROBED


@pytest.mark.parametrize(
    "value",
    [
        5, "as written", [], {}, {"k": [512], "n": [64]}, {"k": [512], "n": [64], "rows": [[4, 4]]},
        {"k": [512, 512], "n": [64], "rows": [[4], [4]]}, {"k": [1024, 512], "n": [64], "rows": [[4], [4]]},
        {"k": [512], "n": [64], "rows": [[-4]]}, {"k": [512], "n": [64], "rows": [[True]]},
        {"k": [], "n": [], "rows": []}, {"k": [0], "n": [64], "rows": [[4]]}, {"k": [512], "n": [64], "rows": [4]},
        {"k": list(range(1, 2000)), "n": [64], "rows": [[4]] * 1999},
        # 428 rows with K 608 are fewer than 262144 / K, and deadly
        {"k": [1024], "n": [64], "rows": [[200]]},
    ],
)  # fmt: skip
def test_rows_that_make_no_sense_are_refused(value: Any) -> None:
    text = ProbeResults("rk3588", NEWEST_RUNTIME, True, {f"{INT4.name}.native_rows": (value, "X4")}).to_json()
    with pytest.raises(ValueError, match=r"cell 'INT4_INT4_INT16\.native_rows' cannot be"):
        ProbeResults.from_json(text)


# ---- contexts of users ---------------------------------------------------------------------------------------------


def creates(device: npu.Device) -> int:
    calls = sim.counter_details(device)["calls"]
    return sum(count for name, count in calls.items() if "create" in name and "matmul" in name)


@pytest.mark.parametrize("runtime", ["1.6.0", "2.3.2"])
@pytest.mark.parametrize(
    ("m", "k", "n", "advice"),
    [
        (412, 608, 64, "parts of at most 408"), (264, 992, 64, "parts of at most 220"),
        (28, 7264, 2048, "parts of at most 24"), (8, 10304, 64, "parts of at most 4"),
        (2052, 128, 64, "parts of at most 2048"), (4, 4096, 8256, "parts of at most 1,"),
        (1, 10336, 64, "split K, 10336 is too deep"),
    ],
)  # fmt: skip
def test_a_context_is_refused_before_the_runtime_is_called(
    monkeypatch: pytest.MonkeyPatch, runtime: str, m: int, k: int, n: int, advice: str
) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", runtime)
    with npu.Device("sim:rk3588") as device:
        assert str(device.runtime_version) == runtime
        sim.reset_counters(device)
        before = creates(device)
        message = rf"\(\d+, {k}, {n}\): INT4.* native A and C is known to be safe with at most .*kills the process.*"
        with pytest.raises(ValueError, match=message + advice.replace("(", r"\(")):
            device.context(INT4, m, k, n, ac_layout=NATIVE)
        if runtime != "1.6.0":
            with pytest.raises(ValueError, match=message):
                device.dynamic_context(INT4, [(4 if m == 1 else 1, k, n), (m, k, n)], ac_layout=NATIVE)
        assert creates(device) == before
        assert sim.counter_details(device)["fatal_rows"] == 0
        if k <= 10304:  # the normal layout has no such limit; other tests may have set the guide's
            with sim.configured(device, limits="observed"):
                device.context(INT4, m, k, n).close()


def test_no_way_around_the_check(fresh_device: npu.Device) -> None:
    """Contexts of plans are checked as those of users are: a plan that says otherwise does not reach the runtime."""
    plan = plan_weight(4096, 64, INT4, fresh_device.chip, k_slices=1)
    wrong = replace(plan, buckets=(1, 128), m_max=128)
    with pytest.raises(ValueError, match="at most 64 rows"):
        DynamicMatmulContext(
            fresh_device.session, ContextSpec(INT4, 1, 4096, 64, NATIVE, NATIVE), [(m, 4096, 64) for m in wrong.buckets]
        )
    with pytest.raises(ValueError, match="at most 64 rows"):
        MatmulContext(fresh_device.session, ContextSpec(INT4, 128, 4096, 64, NATIVE, NATIVE))


def test_benchmarks_say_so_too() -> None:
    rk3588, version = CHIPS["rk3588"], RuntimeVersion(2, 3, 2)
    assert Case("int4", 412, 608, 64).problem(rk3588, version) is not None
    assert "above 408" in str(Case("int4", 412, 608, 64).problem(rk3588, version))
    assert Case("int4", 408, 608, 64).problem(rk3588, version) is None
    assert Case("int4", 412, 608, 64, ac_native=False).problem(rk3588, version) is None
    # each core has its share of N
    assert Case("int4", 32, 7264, 1536, cores=3).problem(rk3588, version) is None
    assert "above 24" in str(Case("int4", 32, 7264, 1536).problem(rk3588, version))


# ---- products on a runtime that dies -------------------------------------------------------------------------------

PRODUCTS = """
import ml_dtypes, numpy as np, npumatmul as npu
from npumatmul import sim
rng = np.random.default_rng(11)
with npu.Device("sim:rk3588") as device:
    for k, n in ((608, 64), (992, 128), (4096, 64), (10304, 192)):
        b = rng.integers(-7, 8, (k, n)).astype(ml_dtypes.int4)
        packed = npu.pack(b, device=device)
        for m in (1, 130, 513):
            a = rng.integers(-7, 8, (m, k)).astype(ml_dtypes.int4)
            wanted = a.astype(np.float32) @ b.astype(np.float32)
            assert (npu.matmul(a, packed, device=device).astype(np.int32) == wanted).all(), (m, k, n)
    w = rng.standard_normal((992, 96), np.float32)
    for scheme in ("w4a4", "w4a8", "w4a8_g608"):
        packed = npu.pack(w, scheme, device=device)
        for m in (1, 264, 500):
            npu.matmul(rng.standard_normal((m, 992), np.float32), packed, device=device)
    details = sim.counter_details(device)
    print(details["fatal_rows"], sum(details["chips"]["rk3588"]["macs"]["RKNN_INT4_MM_INT4_TO_INT16"]) > 10**9)
"""


def test_products_run_where_more_rows_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS],
        env={**os.environ, "NPUMATMUL_SIM_INT4_ROWS": "deadly"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr[-2000:]


# ---- the level of the runtime's log --------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "lives"), [("3", False), (" 4", False), ("+6", False), ("2", True), ("no", True)])
def test_int4_is_refused_where_the_log_level_is_deadly(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch, level: str, lives: bool
) -> None:
    monkeypatch.setenv("RKNN_LOG_LEVEL", level)
    w = np.ones((64, 64), np.float32)
    with npu.pack(w, "w4a4", device=fresh_device) as int4, npu.pack(w, "w8a8", device=fresh_device) as int8:
        assert (npu.matmul(np.ones((1, 64), np.float32), int8, device=fresh_device) > 0).all()
        before = sum(sim.counter_details(fresh_device)["failures"].values())
        if lives:
            assert (npu.matmul(np.ones((1, 64), np.float32), int4, device=fresh_device) > 0).all()
        else:
            with pytest.raises(DeviceError, match=r"RKNN_LOG_LEVEL is \d: above 2.* int4 kills the process.*or less"):
                npu.matmul(np.ones((1, 64), np.float32), int4, device=fresh_device)
        assert sum(sim.counter_details(fresh_device)["failures"].values()) == before, "the runtime was not asked"


def test_the_log_level_of_int4_is_in_the_table() -> None:
    for soc, runtime, provenance in (
        ("rk3588", "1.6.0", Provenance.OBSERVED), ("rk3588", "2.3.2", Provenance.UNSETTLED),
        ("rk3576", "2.3.2", Provenance.UNSETTLED),
    ):  # fmt: skip
        cell = capabilities(soc, runtime, probed=False).int4_log_level
        assert (cell.value, cell.provenance) == (2, provenance)
    found = ProbeResults("rk3588", NEWEST_RUNTIME, True, {"int4_log_level": (4, "X5")})
    assert Chip.of(build("rk3588", NEWEST_RUNTIME, found)).int4_log_level == 4


#: What people and agents read: messages in code, and documents.
TEXTS = (
    "npumatmul/**/*.py",
    "native/**/*.[ch]",
    "docs/*.md",
    "README.md",
    "CHANGELOG.md",
    "examples/**/*",
    "bench/*.py",
)
ADVICE = re.compile(r"RKNN_LOG_LEVEL\W{1,6}(?:(?:of|to|is|at)\s+)?([3-9])")


def test_nobody_is_advised_a_log_level_that_kills_int4() -> None:
    """Where a level from 3 on is named, what it does to int4 stands beside it."""
    root, named, level = Path(__file__).parent.parent, 0, 0
    for file in sorted({found for pattern in TEXTS for found in root.glob(pattern) if found.is_file()}):
        if file.suffix in (".png", ".svg", ".pdf"):
            continue
        text = file.read_text()
        named += text.count("RKNN_LOG_LEVEL")
        for match in ADVICE.finditer(text):
            level += 1
            around = text[max(0, match.start() - 400) : match.end() + 400]
            assert "int4" in around, f"{file}: {match[0]}"
            assert re.search(r"SIGFPE|die|kill|ends", around), f"{file}: {match[0]}"
    assert named > 5
    assert level > 2
    assert ADVICE.search("set RKNN_LOG_LEVEL=3 to hear more")


# ---- what was kept under other rows --------------------------------------------------------------------------------


def int4_operands(m: int, k: int, n: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-7, 8, shape).astype(ml_dtypes.int4) for shape in ((m, k), (k, n)))
    return a, b, a.astype(np.float32) @ b.astype(np.float32)


def test_what_was_saved_where_more_rows_are_safe_is_run_with_fewer_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A probe's answer raises the rows; a file that is made so is cut to what is safe where it is loaded."""
    found = tmp_path / "probe.json"
    cells = {f"{INT4.name}.native_rows": (None, "X4")}
    found.write_text(ProbeResults("rk3588", NEWEST_RUNTIME, True, cells).to_json())
    a, b, expected = int4_operands(300, 2432, 64)
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(found))
    with npu.Device("sim:rk3588") as device, sim.configured(device, int4_rows="any"):
        # rows that nobody is known to survive: one slice of K, all 512 rows
        packed = npu.pack(b, device=device)
        many = packed.plan
        assert (many.ac_native, many.m_max) == (True, 512)
        assert forbidden(CHIPS["rk3588"], many, many.m_max)
        assert (npu.matmul(a, packed, device=device).astype(np.float32) == expected).all()
        packed.save(tmp_path / "packed")
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", "")
    with npu.Device("sim:rk3588") as device, sim.configured(device, int4_rows="deadly"):
        loaded = npu.load_packed(tmp_path / "packed", device=device)
        few = loaded.plan
        assert few.k_spans == many.k_spans
        assert not [each for rows in few.buckets for each in forbidden(device.chip, few, rows)]
        assert (npu.matmul(a, loaded, device=device).astype(np.float32) == expected).all()


def test_a_tuned_choice_of_more_rows_is_left(tmp_path: Path) -> None:
    rk3588 = CHIPS["rk3588"]
    cache = TuningCache(Machine("rk3588", True, "2.3.2", "0.9.8"), tmp_path)
    shape = WeightShape(4096, 64, INT4)
    cache.record(shape, Tuned(1, 1, True, (1, 64), ((1, 1),)))
    plan = cache.plan(shape, rk3588, NEWEST_RUNTIME)
    assert plan is not None
    assert plan.m_max == 64
    cache.record(shape, Tuned(1, 1, True, (1, 128), ((1, 1),)))
    with pytest.warns(RuntimeWarning, match="the choice for .* is ignored: .*up to 64 for this weight"):
        assert cache.plan(shape, rk3588, NEWEST_RUNTIME) is None
