"""The capability table: values of the sources, a source for every cell, and overriding by what was probed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npumatmul
from npumatmul.chips import (
    CHIPS,
    NEWEST_RUNTIME,
    Cell,
    ProbeResults,
    Provenance,
    capabilities,
    chip_here,
    default_path,
    find_probe_results,
    load_probe_results,
)
from npumatmul.chips.limits import Chip
from npumatmul.chips.native_rows import NativeRows
from npumatmul.chips.table import build
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.planning.product import plan_weight
from npumatmul.rknn import RuntimeVersion

T = MatmulType
SOCS = ["rk3588", "rk3576", "rk3568", "rk3566", "rk3562"]
RUNTIMES = ["1.5.2", "1.6.0", "2.0.0b0", "2.1.0", "2.2.0", "2.3.0", "2.3.2"]

# Guide table 3-13 (facts 3.2), by number of the type.
GUIDE = {
    "rk3588": {1, 2, 3, 4, 9, 10},
    "rk3576": {1, 2, 4, 5, 7, 8, 11},
    "rk3568": {1, 2},
    "rk3566": {1, 2},
    "rk3562": {1, 2},
}
# First header of each type (facts 1.4); types 1 and 2 are tensor types of 1.5.2.
SINCE = {1: "1.5.2", 2: "1.5.2", 3: "2.0.0", 4: "2.0.0", 5: "2.0.0", 7: "2.0.0", 8: "2.0.0", 9: "2.1.0",
         10: "1.6.0", 11: "2.0.0"}  # fmt: skip


def version(text: str) -> RuntimeVersion:
    parsed = RuntimeVersion.parse(text)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("soc", SOCS)
def test_types_are_those_of_the_guide_and_the_header(soc: str, runtime: str) -> None:
    table = capabilities(soc, runtime)
    supported = {int(t.code) for t, row in table.types.items() if row.supported.value}
    old_chip = soc == "rk3576" and version(runtime) < version("2.0.0")
    wanted = {number for number in GUIDE[soc] if version(SINCE[number]) <= version(runtime) and not old_chip}
    assert supported == wanted
    assert len(table.types) == 13


@pytest.mark.parametrize("soc", SOCS)
def test_what_no_source_settles_is_off(soc: str) -> None:
    table = capabilities(soc)
    for mm_type in (T.FLOAT16_INT8_FLOAT16, T.FLOAT16_INT4_BFLOAT16, T.INT8_INT4_FLOAT16):
        cell = table.types[mm_type].supported
        assert (cell.value, cell.provenance) == (False, Provenance.UNSETTLED)
        assert "Q12" in cell.source
    for mm_type in (T.FLOAT16_FLOAT16_FLOAT16, T.INT8_INT8_INT8):
        assert not table.types[mm_type].ac_native.value
        assert table.types[mm_type].c_group.value is None
    assert not capabilities(soc, "2.0.0").types[T.INT8_INT8_INT32].b_transposed.value
    for _, cell in table.cells():
        if cell.provenance is Provenance.UNSETTLED:
            assert cell.value is None or not cell.value or isinstance(cell.value, int | NativeRows), (
                "off, unknown or careful"
            )


def test_type_10_of_rk3576_is_off() -> None:
    cell = capabilities("rk3576").types[T.INT4_INT4_INT16].supported
    assert (cell.value, cell.provenance) == (False, Provenance.UNSETTLED)
    assert "D18" in cell.source


def test_known_broken_paths_are_marked() -> None:
    table = capabilities("rk3588", "2.3.2")
    for cell in (table.types[T.INT8_INT8_INT32].per_channel, table.types[T.INT8_INT8_FLOAT32].per_group):
        assert (cell.value, cell.provenance) == (False, Provenance.BROKEN)
        assert "#550" in cell.source
    assert table.core_masks.provenance is Provenance.BROKEN
    assert table.core_masks.value == (0, 1, 2, 4)
    assert capabilities("rk3576").core_masks.value == (0, 1, 2)
    assert capabilities("rk3566").core_masks.value == ()
    assert str(table.types[T.INT4_INT4_INT16].native_rows.value) == "512 (K 512) to 4 (K 10304)"
    text = " ".join(problem.what for problem in table.problems)
    for part in ("16640", "per-channel", "per-group", "native B", "SIGFPE"):
        assert part in text
    assert not capabilities("rk3588", "2.2.0").types[T.FLOAT16_FLOAT16_FLOAT32].ac_normal.value  # rknn-toolkit2#154
    assert capabilities("rk3588", "2.1.0").types[T.FLOAT16_FLOAT16_FLOAT32].ac_normal.value


# Facts 3.3 and 14.
@pytest.mark.parametrize(
    ("soc", "runtime", "fp16", "int8"),
    [
        ("rk3588", "1.5.2", 2048, 4096), ("rk3566", "1.5.2", 2048, 4096), ("rk3588", "1.6.0", 10304, 10304),
        ("rk3566", "1.6.0", 14336, 14336), ("rk3562", "1.6.0", 12352, 12352), ("rk3566", "2.3.2", 10240, 10240),
        ("rk3588", "2.3.2", None, None),
    ],
)  # fmt: skip
def test_largest_k_of_create(soc: str, runtime: str, fp16: int | None, int8: int | None) -> None:
    types = capabilities(soc, runtime).types
    assert types[T.FLOAT16_FLOAT16_FLOAT32].k_limit.value == fp16
    assert types[T.INT8_INT8_INT32].k_limit.value == int8
    for row in types.values():
        assert row.k_limit.value is None or row.k_max.value <= row.k_limit.value


def test_tiles_of_mixed_types_follow_a() -> None:
    """Facts 4.5."""
    types = capabilities("rk3576").types
    for mm_type in (T.FLOAT16_INT8_FLOAT32, T.FLOAT16_INT4_FLOAT32, T.FLOAT16_INT4_FLOAT16):
        assert types[mm_type].b_tile.value == (16, 32)
    assert types[T.INT8_INT4_INT32].b_tile.value == (32, 32)
    assert types[T.INT8_INT4_FLOAT16].b_tile.value is None, "two rules of the guide disagree (D17)"
    assert CHIPS["rk3576"].b_tile(T.INT8_INT4_INT32) == (32, 32)
    with pytest.raises(DeviceError, match="D17"):
        CHIPS["rk3576"].b_tile(T.INT8_INT4_FLOAT16)


def test_versions_decide_what_exists() -> None:
    """Facts 1.5 and 4.6."""
    has = {runtime: capabilities("rk3588", runtime) for runtime in RUNTIMES}
    assert [has[r].mem_sync.value for r in ("1.5.2", "1.6.0")] == [False, True]
    assert [has[r].quant_params.value for r in ("1.6.0", "2.0.0b0")] == [False, True]
    assert [has[r].iommu_domains.value for r in ("1.6.0", "2.0.0b0")] == [1, 16]
    assert [has[r].int4_even_nibble.value for r in ("1.6.0", "2.0.0b0")] == ["high", "low"]
    assert [has[r].types[T.INT8_INT8_INT32].per_layer.value for r in ("1.6.0", "2.0.0b0")] == [False, True]
    rk3576 = [capabilities("rk3576", r).types[T.FLOAT16_INT4_FLOAT32].per_group.value for r in ("2.0.0b0", "2.1.0")]
    assert rk3576 == [False, True]
    assert [capabilities(soc, "2.3.2").types[T.INT8_INT8_INT32].b_transposed.value for soc in SOCS] == [
        True, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("soc", SOCS)
def test_every_cell_has_a_source_and_everything_is_json(soc: str, runtime: str) -> None:
    table = capabilities(soc, runtime)
    cells = dict(table.cells())
    assert len(cells) > 300
    for name, cell in cells.items():
        assert isinstance(cell, Cell)
        assert cell.source, name
    content = json.loads(table.to_json())
    assert content["soc"] == soc
    assert set(content["types"]) == {t.name for t in MatmulType}
    assert content["types"]["INT8_INT8_INT32"]["number"] == 2
    assert content["types"]["INT8_INT8_INT32"]["k_multiple"] == {
        "value": 32, "provenance": "documented", "source": "guide 3-14",
    }  # fmt: skip


def test_text_names_every_supported_type_and_source() -> None:
    table = capabilities("rk3588")
    text = str(table)
    assert all(f"{int(t.code)} {t.name}" in text for t in MatmulType)
    for cell in (table.contexts, table.types[T.INT8_INT8_INT32].k_max, table.types[T.INT8_INT8_INT32].per_channel):
        assert f"{cell.provenance.value}: {cell.source}" in text
    assert all(problem.what in text for problem in table.problems)
    assert max(map(len, text.splitlines())) < 200


def test_planning_takes_the_table() -> None:
    for soc, chip in CHIPS.items():
        table = capabilities(soc)
        assert set(chip.limits) == {t for t, row in table.types.items() if row.supported.value}
        for mm_type, limits in chip.limits.items():
            row = table.types[mm_type]
            assert (limits.k_multiple, limits.n_multiple) == (row.k_multiple.value, row.n_multiple.value)
            assert (limits.k_max, limits.n_max, limits.m_max) == (row.k_max.value, row.n_max.value, row.m_max.value)
            assert limits == chip.type_limits(mm_type)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_chip_under_a_runtime_has_the_limits_of_that_runtime(runtime: str) -> None:
    for soc in SOCS:
        if soc == "rk3576" and version(runtime) < version("2.0.0"):
            continue
        here = chip_here(soc, version(runtime))
        assert here.runtime == version(runtime)
        for mm_type, limits in here.limits.items():
            assert (
                limits
                == here.type_limits(mm_type, version(runtime))
                == CHIPS[soc].type_limits(mm_type, version(runtime))
            )


def test_the_function_is_what_the_package_exports() -> None:
    assert npumatmul.capabilities("rk3588").soc == "rk3588"
    assert "capabilities" in npumatmul.__all__


@pytest.mark.parametrize(("soc", "runtime"), [("rk9999", "2.3.2"), ("rk3588", "new")])
def test_unknown_chips_and_versions_are_refused(soc: str, runtime: str) -> None:
    with pytest.raises(DeviceError, match=soc if soc == "rk9999" else runtime):
        capabilities(soc, runtime)


# ---- what was probed overrides ------------------------------------------------------------------------------------


def results(cells: dict[str, tuple[Any, str]], soc: str = "rk3588", **more: Any) -> ProbeResults:
    return ProbeResults(soc, more.pop("runtime", NEWEST_RUNTIME), more.pop("simulated", False), cells, more)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NPUMATMUL_PROBE_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def write(found: ProbeResults, path: Path | None = None) -> Path:
    path = path or default_path(found.soc, found.runtime, found.simulated)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.to_json())
    return path


CELLS: dict[str, tuple[Any, str]] = {
    "INT8_INT8_INT32.n_max": (16384, "Q8"),
    "FLOAT16_FLOAT16_FLOAT32.n_multiple": (16, "Q11"),
    "INT8_INT8_INT32.k_limit": (1000, "Q9"),
    "FLOAT16_FLOAT16_FLOAT16.c_group": (8, "Q6"),
    "FLOAT16_INT8_FLOAT16.supported": (True, "Q12"),
    "row_multiple": (1, "Q10"),
    "contexts": (99, "X1"),
    "core_masks": ([0, 1], "Q19"),
}


def test_probed_cells_reach_the_table_and_planning(config: Path) -> None:
    write(results(CELLS))
    table = capabilities("rk3588")
    cells = dict(table.cells())
    for name, (value, source) in CELLS.items():
        assert cells[name] == Cell(tuple(value) if isinstance(value, list) else value, Provenance.PROBED, source)
    assert "[" in str(table)
    assert "probed here: Q8" in str(table)
    chip = chip_here("rk3588", NEWEST_RUNTIME)
    assert chip.memory.contexts == 99
    plan = plan_weight(5000, 20000, T.INT8_INT8_INT32, chip, n_tiles=1)
    assert max(span.padded for span in plan.n_spans) > 8192, "the larger N is used"
    assert max(span.padded for span in plan.k_spans) <= 1000, "a limit that was met is kept"
    assert plan.row_multiple == 1
    assert plan_weight(64, 16, T.FLOAT16_FLOAT16_FLOAT32, chip).n_spans[0].padded == 16
    assert plan_weight(64, 64, T.FLOAT16_FLOAT16_FLOAT16, chip).ac_native, "C's layout is known now"
    assert T.FLOAT16_INT8_FLOAT16 in chip.limits
    # the sources themselves are as they were
    assert capabilities("rk3588", probed=False).contexts.provenance is Provenance.OBSERVED
    assert CHIPS["rk3588"].memory.contexts is None


def test_a_device_plans_with_what_was_probed(config: Path) -> None:
    """Cells that hold on the simulator: products stay right, with fewer rows of padding and a larger N."""
    cells: dict[str, tuple[Any, str]] = {
        "FLOAT16_FLOAT16_FLOAT32.n_multiple": (16, "Q11"),
        "FLOAT16_FLOAT16_FLOAT32.n_max": (16384, "Q8"),
        "row_multiple": (1, "Q10"),
        "contexts": (20, "X1"),
    }
    write(results(cells, simulated=True))
    rng = np.random.default_rng(5)
    x = rng.integers(-3, 4, (3, 64)).astype(np.float32)
    w = rng.integers(-3, 4, (64, 5008)).astype(np.float32)
    with npumatmul.Device("sim:rk3588") as device:
        assert device.chip.memory.contexts == 20
        assert device.chip.native.row_multiple == 1
        with npumatmul.Matmul(x, w, options={"cores": 1}, device=device) as product:
            assert (product.execute() == x @ w).all()
        assert device.stats().run_calls == 1, "one run for an N that needed two"


def test_results_are_for_their_runtime_and_device_only(config: Path) -> None:
    write(results(CELLS, runtime=RuntimeVersion(2, 3, 0)))
    assert capabilities("rk3588", "2.3.0").contexts.value == 99
    assert capabilities("rk3588", "2.3.2").contexts.value is None
    assert capabilities("rk3576", "2.3.0").contexts.value is None
    assert capabilities("rk3588", "2.3.0", simulated=True).contexts.value is None
    chip = chip_here("rk3588", RuntimeVersion(2, 3, 0))
    assert chip.type_limits(T.INT8_INT8_INT32, RuntimeVersion(2, 3, 0)).k_max <= 1000
    assert chip.type_limits(T.INT8_INT8_INT32, RuntimeVersion(2, 1, 0)).k_max == 8192
    write(results({"contexts": (7, "X1")}, simulated=True))
    assert capabilities("rk3588", simulated=True).contexts.value == 7


def test_a_named_file_beats_the_default_and_empty_disables(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(results({"contexts": (1, "X1")}))
    named = write(results({"contexts": (2, "X1")}), config / "named.json")
    assert capabilities("rk3588").contexts.value == 1
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(named))
    assert capabilities("rk3588").contexts.value == 2
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", "")
    assert capabilities("rk3588").contexts.value is None
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(config / "nowhere.json"))
    with pytest.warns(UserWarning, match=r"nowhere\.json are ignored: .*not there"):
        assert capabilities("rk3588").contexts.value is None


def good() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(results({"contexts": (9, "X1")}).to_json())
    return content


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda c: "", "not JSON"),
        (lambda c: json.dumps(c)[:-9], "not JSON"),
        (lambda c: "[1]", "not a file of npumatmul probe"),
        (lambda c: json.dumps({**c, "format": "other"}), "not a file of npumatmul probe"),
        (lambda c: json.dumps({**c, "version": 2}), "version is 2"),
        (lambda c: json.dumps({**c, "runtime": 5}), "malformed"),
        (lambda c: json.dumps({**c, "simulated": "yes"}), "malformed"),
        (lambda c: json.dumps({**c, "cells": []}), "cells are missing"),
        (lambda c: json.dumps({**c, "cells": {"colour": {"value": 1, "source": "Q1"}}}), "'colour'"),
        (lambda c: json.dumps({**c, "cells": {"INT9.n_max": {"value": 1, "source": "Q1"}}}), "'INT9.n_max'"),
        (lambda c: json.dumps({**c, "cells": {"contexts": {"value": -1, "source": "Q1"}}}), "cannot be -1"),
        (lambda c: json.dumps({**c, "cells": {"contexts": {"value": True, "source": "Q1"}}}), "cannot be True"),
        (lambda c: json.dumps({**c, "cells": {"contexts": {"value": 5}}}), "has no source"),
        (lambda c: json.dumps({**c, "soc": "rk3566"}), "it is about rk3566"),
        (lambda c: json.dumps({**c, "runtime": "2.1.0"}), "under 2.1.0"),
        (lambda c: "[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_one_warning(config: Path, damage: Any, why: str) -> None:
    path = default_path("rk3588", NEWEST_RUNTIME)
    path.parent.mkdir(parents=True)
    path.write_text(damage(good()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        tables = [capabilities("rk3588") for _ in range(3)]
    assert all(table.contexts.value is None for table in tables)
    assert len(caught) == 1, "once"
    assert str(path) in str(caught[0].message)
    assert why in str(caught[0].message)


def test_a_file_that_is_no_text_is_ignored(config: Path) -> None:
    path = default_path("rk3588", NEWEST_RUNTIME)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="ignored"):
        assert find_probe_results("rk3588", NEWEST_RUNTIME) is None
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="ignored"):
        assert find_probe_results("rk3588", NEWEST_RUNTIME) is None


@given(
    contexts=st.integers(1, 10_000),
    tile=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    sizes=st.lists(st.integers(0, 512), max_size=6),
    flag=st.booleans(),
)
def test_files_come_back_as_they_were_written(
    contexts: int, tile: tuple[int, int], sizes: list[int], flag: bool
) -> None:
    written = results(
        {
            "contexts": (contexts, "X1"),
            "INT8_INT4_FLOAT16.b_tile": (list(tile), "Q12"),
            "INT8_INT8_FLOAT32.group_sizes": (sizes, "Q2"),
            "INT8_INT8_INT32.scales_apply": (flag, "Q21"),
            "INT8_INT8_INT32.k_segment": (None, "Q4"),
        },
        date="today",
    )
    read = ProbeResults.from_json(written.to_json())
    assert read == written
    table = build("rk3588", NEWEST_RUNTIME, read)
    assert table.types[T.INT8_INT4_FLOAT16].b_tile.value == tile
    assert Chip.of(table).b_tile(T.INT8_INT4_FLOAT16) == tile


def test_where_files_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = RuntimeVersion(2, 3, 2)
    assert default_path("rk3588", runtime, environment={"XDG_CONFIG_HOME": "/x"}) == Path(
        "/x/npumatmul/probe-rk3588-2.3.2.json"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "relative"}):
        wanted = tmp_path / ".config/npumatmul/probe-sim-rk3588-2.3.2.json"
        assert default_path("rk3588", runtime, True, environment) == wanted
    with pytest.raises(OSError, match="nowhere"):
        load_probe_results("/nowhere/file.json")
