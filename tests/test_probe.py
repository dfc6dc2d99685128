"""The probe against known truth: answers must come out as the simulator was set; trouble costs one answer only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import probe_trouble
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npumatmul.chips import NEWEST_RUNTIME, ProbeResults, capabilities, load_probe_results
from npumatmul.chips.native_rows import RECORDED, NativeRows
from npumatmul.chips.probe_file import CHIP_KINDS, TYPE_KINDS, checked_cells
from npumatmul.chips.table import build
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.probe import QUESTIONS, Outcome, Probe, Question, Target, choose, find_target, markdown, probe, runner
from npumatmul.probe.instrument import Instrument, decode, encode, from_groups, judge, to_groups, to_tiles
from npumatmul.probe.limits import largest
from npumatmul.probe.trial import Trials
from npumatmul.rknn import Runtime, RuntimeVersion
from npumatmul.rknn.discovery import simulator_path

F16, I8, I4 = "FLOAT16_FLOAT16_FLOAT32", "INT8_INT8_INT32", "INT4_INT4_INT16"


def ask(*arguments: str, version: str = "", **settings: str) -> dict[str, dict[str, Any]]:
    """Lines of answers by question, from one process with these settings of the simulator."""
    library = simulator_path()
    if version:
        library = library.with_name(f"libnpumm_sim_{version}.so")
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.probe.question", *arguments, "--library", str(library)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **{f"NPUMATMUL_SIM_{name.upper()}": value for name, value in settings.items()}},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["question"]: line for line in lines if "question" in line and "step" not in line}


# ---- answers come out as the simulator was set ----------------------------------------------------------------------


# What the recordings and the documents say (facts 3.3, 3.4, 14), by chip, limits and runtime: K limits, N limits,
# multiples of K and N of float16.
@pytest.mark.parametrize(
    ("soc", "limits", "version", "k_limit", "n_limit", "k_multiple", "n_multiple"),
    [
        ("rk3588", "observed", "2.3.2", {}, {}, 32, 16),
        ("rk3588", "documented", "2.3.2", {}, {F16: 4096, I8: 4096, I4: 8192}, 32, 32),
        ("rk3576", "documented", "2.3.0", {}, {F16: 4096, I8: 4096}, 32, 32),
        ("rk3566", "observed", "2.1.0", {F16: 14336, I8: 14336}, {}, 16, 8),
        ("rk3566", "documented", "2.3.2", {F16: 10240, I8: 10240}, {F16: 4096, I8: 4096}, 32, 16),
        ("rk3588", "observed", "1.6.0", {F16: 10304, I8: 10304, I4: 10304}, {}, 32, 16),
        ("rk3588", "observed", "1.5.2", {F16: 2048, I8: 4096}, {}, 32, 16),
    ],
)
def test_limits_and_multiples(
    soc: str, limits: str, version: str, k_limit: dict[str, int], n_limit: dict[str, int], k_multiple: int,
    n_multiple: int,
) -> None:  # fmt: skip
    answers = ask("Q8", "Q9", "Q11", soc=soc, limits=limits, version=version)
    k_cells, n_cells, multiples = (answers[number]["cells"] for number in ("Q9", "Q8", "Q11"))
    assert k_cells == {f"{name}.k_limit": value for name, value in k_limit.items()}
    found = {name.removesuffix(".n_limit"): v for name, v in n_cells.items() if name.endswith("n_limit")}
    assert found == n_limit
    assert all(n_cells[f"{name}.n_max"] == value for name, value in n_limit.items())
    assert (multiples[f"{F16}.k_multiple"], multiples[f"{F16}.n_multiple"]) == (k_multiple, n_multiple)


@pytest.mark.parametrize(("overflow", "cell"), [("saturate", "saturate"), ("wrap", "wrap"), ("error", None)])
def test_overflow(overflow: str, cell: str | None) -> None:
    answer = ask("Q20", overflow=overflow)["Q20"]
    assert answer["cells"].get(f"{I4}.overflow") == cell
    if cell is None:
        assert "refused" in answer["details"][I4]


@pytest.mark.parametrize(("setting", "multiple"), [("exact", 1), ("ceil4", 4)])
def test_rows(setting: str, multiple: int) -> None:
    assert ask("Q10", "--quick", rows=setting)["Q10"]["cells"]["row_multiple"] == multiple


def test_stale_data_of_strict_memory_is_seen() -> None:
    kind = ask("Q15", "--quick", strict="0")["Q15"]["details"]
    strict = ask("Q15", "--quick", strict="1")["Q15"]["details"]
    assert set(kind.values()) == {"4 of 4"}
    for name, rounds in strict.items():
        assert (rounds == "4 of 4") == name.startswith("own"), f"only slices are stale: {name}"


def test_bytes_of_a_domain() -> None:
    size = 96 * 1024**2 + 3 * 4096
    assert ask("X2", "--all", domain_bytes=str(size))["X2"]["cells"] == {"domain_bytes": size}


def test_what_kills_a_process_is_asked_in_one_of_its_own() -> None:
    answers = ask("X4", "X5", "--quick", int4_rows="deadly")
    assert answers["X4"]["cells"] == {f"{I4}.native_rows": "as recorded"}
    tried = answers["X4"]["details"]
    assert (tried["408x608x64"], tried["412x608x64"]) == ("created", "died (SIGFPE)")
    assert (tried["24x8160x8192"], tried["28x8160x8192"]) == ("created", "died (SIGFPE)")
    assert answers["X5"]["cells"] == {"int4_log_level": 2}
    assert answers["X5"]["details"][f"{I4} normal, level 3"] == "died (SIGFPE)"


def test_a_runtime_that_lives_is_believed_only_with_products() -> None:
    answer = ask("X4", "--quick", int4_rows="any")["X4"]
    assert answer["cells"] == {}
    assert "whether products are right is asked with --all" in answer["answer"]


@pytest.mark.parametrize(
    ("lives", "everything", "cell"),
    [
        (lambda m, k, n: True, True, None),
        (lambda m, k, n: m <= RECORDED.most(k, n), True, "as recorded"),
        (lambda m, k, n: m * k <= 262144 or m == 1, True, {608: 428, 10304: 24}),
        (lambda m, k, n: m * k <= 131072, False, {608: 212, 10304: 4}),
        (lambda m, k, n: m == 1, False, {608: 1, 10304: 1}),
        (lambda m, k, n: False, False, {608: 0, 10304: 0}),
    ],
)  # fmt: skip
def test_rows_of_int4_by_what_a_board_does(
    monkeypatch: pytest.MonkeyPatch, lives: Callable[[int, int, int], bool], everything: bool, cell: Any
) -> None:
    class Board(Trials):
        def attempt(
            self, mm_type: MatmulType, m: int, k: int, n: int, *, native: bool = False, run: bool = True
        ) -> str:
            assert (native, run) == (True, everything)
            return ("right" if run else "created") if lives(m, k, n) else "died (SIGFPE)"

    monkeypatch.setattr("npumatmul.probe.limits.Trials", Board)
    runtime = Runtime(simulator_path())
    instrument = Instrument(runtime, build("rk3588", NEWEST_RUNTIME), everything=everything)
    ask_rows = QUESTIONS["X4"].ask
    assert ask_rows is not None
    found = checked_cells(ask_rows(instrument).cells, "X4")[f"{I4}.native_rows"][0]
    if not isinstance(cell, dict):
        assert found == cell
        return
    grid = NativeRows.of(found)
    assert {k: grid.most(k, 64) for k in cell} == cell
    assert grid.most(8192, 8192) <= grid.most(8160, 8192), "planning's largest K and N are covered"


@pytest.mark.parametrize("count", [37, 160])
def test_contexts_of_a_process(count: int) -> None:
    assert ask("X1", contexts=str(count))["X1"]["cells"] == {"contexts": count}


@pytest.mark.parametrize(("soc", "masks"), [("rk3588", [0, 1, 2, 4]), ("rk3576", [0, 1, 2]), ("rk3568", [])])
def test_core_masks(soc: str, masks: list[int]) -> None:
    assert ask("Q19", soc=soc)["Q19"]["cells"] == {"core_masks": masks}


def test_what_is_reported_broken_is_found_broken() -> None:
    whole, broken = (ask("Q1", "Q2", "Q21", "--quick", broken=value) for value in ("0", "1"))
    per_group, per_channel = "INT8_INT8_FLOAT32.per_group", f"{I8}.per_channel"
    assert whole["Q1"]["cells"] == {"group_order": "g*N+n", per_group: True}
    assert broken["Q1"]["cells"] == {per_group: False}
    assert "zeros" in broken["Q1"]["answer"]
    assert (whole["Q2"]["cells"][per_group], broken["Q2"]["cells"][per_group]) == (True, False)
    assert (whole["Q21"]["cells"][per_channel], broken["Q21"]["cells"][per_channel]) == (True, False)


@pytest.mark.parametrize(
    ("version", "old", "new"), [("1.6.0", False, False), ("2.0.0b0", True, False), ("2.3.2", False, True)]
)
def test_exports_by_version(version: str, old: bool, new: bool) -> None:
    found = ask("Q28", version=version)["Q28"]["details"]
    assert found["rknn_matmul_create_dyn_shape"] == old
    assert found["rknn_matmul_create_dynamic_shape"] == new


def test_layouts_and_order_of_the_simulator() -> None:
    """Facts 4.2 to 4.6, and what the simulator chose where they are silent (its chips.c)."""
    rk3588 = ask("Q3", "Q4", "Q5", "Q6", "Q13", "Q23")
    assert rk3588["Q3"]["cells"] == {"helper_int4": "packed", "int4_even_nibble": "low"}
    assert rk3588["Q4"]["details"] == {F16: ["rising, remainder last"], I8: ["rising, remainder last"]}
    assert rk3588["Q5"]["details"][I8]["size"] == 20480 * 64
    assert rk3588["Q6"]["cells"]["FLOAT16_FLOAT16_FLOAT16.c_group"] == 8
    assert rk3588["Q6"]["cells"]["INT8_INT8_INT8.c_group"] == 16
    assert rk3588["Q13"]["details"] == {
        "normal A": "read at the run", "normal B": "copied",
        "native A": "read at the run", "native B": "read at the run",
    }  # fmt: skip
    assert rk3588["Q23"]["cells"] == {"iommu_domains": 16}
    rk3576 = ask("Q1", "Q6", soc="rk3576")
    assert rk3576["Q1"]["details"] == dict.fromkeys(("FLOAT16_INT4_FLOAT32", "FLOAT16_INT4_FLOAT16"), "g*N+n")
    assert rk3576["Q6"]["cells"]["FLOAT16_INT4_FLOAT16.c_group"] == 8


@pytest.mark.parametrize(
    ("soc", "version"),
    [
        ("rk3588", "2.3.2"), ("rk3576", "2.3.0"), ("rk3568", "2.1.0"), ("rk3588", "2.0.0b0"), ("rk3562", "1.6.0"),
        ("rk3566", "1.5.2"),
    ],
)  # fmt: skip
def test_every_question_gets_an_answer_of_usable_cells(soc: str, version: str) -> None:
    answers = ask(*(q.number for q in choose()), "--quick", soc=soc, version=version)
    assert set(answers) == {question.number for question in choose()}
    for number, line in answers.items():
        assert "error" not in line, f"{number}: {line.get('trace')}"
        assert line.get("answer") or line.get("reason")
        assert set(checked_cells(line.get("cells", {}), number)) == set(line.get("cells", {})), number


# ---- the catalogue ------------------------------------------------------------------------------------------------


def test_the_catalogue_has_every_open_question() -> None:
    facts = (Path(__file__).parent.parent / "docs/hardware.md").read_text()
    section = facts.partition("Open questions")[2].partition("\n## ")[0]
    wanted = set(re.findall(r"^\| (Q\d+) \|", section, flags=re.M))
    assert wanted == {f"Q{number}" for number in range(1, 33)}
    assert wanted <= set(QUESTIONS)
    documented = (Path(__file__).parent.parent / "docs/probe.md").read_text()
    for question in QUESTIONS.values():
        assert question.how, f"{question.number} does not say how it is answered"
        assert (question.ask is None) == bool(question.reason)
        assert re.search(rf"^\| {question.number} \|", documented, flags=re.M), question.number


def test_dangerous_questions_are_asked_on_demand_only() -> None:
    assert not any(question.dangerous for question in choose())
    assert {question.number for question in choose(everything=True)} == set(QUESTIONS)
    with pytest.raises(ValueError, match="--all"):
        choose(["X2"])
    with pytest.raises(ValueError, match="no such question: Q77"):
        choose(["Q77", "Q8"])
    with pytest.raises(ValueError, match="none given"):
        choose([" "])


# ---- packing of its own -------------------------------------------------------------------------------------------


@given(m=st.integers(1, 9), k=st.integers(1, 40), group=st.sampled_from([4, 8, 16]), more=st.integers(0, 4))
def test_groups_follow_the_formula(m: int, k: int, group: int, more: int) -> None:
    matrix = np.arange(1, m * k + 1).reshape(m, k)
    values, rows = to_groups(matrix, group, m + more), m + more
    for row, column in ((0, 0), (m - 1, k - 1), (m // 2, k // 2)):
        assert values[(column // group * rows + row) * group + column % group] == matrix[row, column]  # facts 4.3
    assert (from_groups(values, m, k, group, rows) == matrix).all()


@given(k=st.integers(1, 70), n=st.integers(1, 70), tile=st.sampled_from([(16, 32), (32, 32), (8, 16)]))
def test_tiles_follow_the_formula(k: int, n: int, tile: tuple[int, int]) -> None:
    matrix = np.arange(1, k * n + 1).reshape(k, n)
    values = to_tiles(matrix, tile)
    tile_n, tile_k = tile
    tiles_k = -(-k // tile_k)
    for row, column in ((0, 0), (k - 1, n - 1), (k // 2, n // 2)):
        place = ((column // tile_n * tiles_k + row // tile_k) * tile_n + column % tile_n) * tile_k + row % tile_k
        assert values[place] == matrix[row, column]  # facts 4.3


def test_nibbles() -> None:
    assert encode(np.array([1, -2, 7, -8]), ElementType.INT4, "low").tolist() == [0xE1, 0x87]
    assert encode(np.array([1, -2, 7, -8]), ElementType.INT4, "high").tolist() == [0x1E, 0x78]
    assert decode(np.array([0x00, 0x3C, 0x00, 0xC0], np.uint8), ElementType.FLOAT16).tolist() == [1.0, -2.0]


@given(limit=st.integers(1, 5000), step=st.sampled_from([1, 8, 32]), beyond=st.integers(1, 5000))
def test_bisection(limit: int, step: int, beyond: int) -> None:
    found = largest(0, limit + beyond, step, lambda value: value <= limit)
    assert found == limit // step * step


def test_verdicts() -> None:
    right = np.ones((2, 2))
    assert [judge(found, right) for found in (right, right * 0, right * 2)] == ["right", "zeros", "wrong"]


# ---- trouble ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target() -> Target:
    return find_target("sim:rk3588")


def test_trouble_costs_one_answer(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    trouble = probe_trouble.TROUBLE
    asked = [trouble["T1"], trouble["T3"], QUESTIONS["Q31"], trouble["T4"], trouble["T5"], QUESTIONS["Q28"]]
    crash, raised, unanswerable, left, late, fine = probe(target, asked, timeout=60, module="probe_trouble").outcomes
    assert (crash.status, crash.text) == ("crashed", "ended by SIGSEGV at: about to crash")
    assert (raised.status, raised.text) == ("failed", "ZeroDivisionError: of course")
    assert (left.status, left.text) == ("crashed", "ended with code 3 at: load " + str(target.library))
    assert (late.status, late.cells) == ("answered", {"contexts": 5})
    assert "said in time (the process then ended by SIGABRT)" in late.text
    assert unanswerable.status == "unanswerable"
    assert fine.status == "answered"


def test_a_hang_is_ended(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    hung = probe(target, [probe_trouble.TROUBLE["T2"]], timeout=6, module="probe_trouble").outcomes[0]
    assert (hung.status, hung.text) == ("hung", "hung for 6 s at: about to hang")


def test_a_process_that_cannot_be_killed_ends_the_asking(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    kill = runner._kill
    said = f"hung {runner._UNKILLABLE}"
    monkeypatch.setattr(runner, "_kill", lambda process, timeout: kill(process, timeout) and said)
    asked = [probe_trouble.TROUBLE["T2"], QUESTIONS["Q28"]]
    hung, skipped = probe(target, asked, timeout=1, module="probe_trouble").outcomes
    assert hung.status == "hung"
    assert "reboot" in hung.text
    assert (skipped.status, skipped.text) == ("skipped", "not asked, because the process of T2 waits inside the kernel")


def test_an_interruption_keeps_what_was_answered(target: Target) -> None:
    def interrupt(question: Question, outcome: Outcome | None) -> None:
        if question.number == "Q5":
            raise KeyboardInterrupt

    done = probe(target, choose(["Q28", "Q5", "Q30"]), progress=interrupt)
    assert done.interrupted
    assert [outcome.number for outcome in done.outcomes] == ["Q28", "Q30"]


def test_a_run_that_hangs_costs_only_what_runs(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_FAULTS", "run:hang")
    runs, creates = probe(target, choose(["Q30", "Q5"]), timeout=6).outcomes
    assert (runs.number, runs.status) == ("Q30", "hung")
    assert "info overwritten after create" in runs.text
    assert creates.status == "answered"


def test_a_runtime_that_refuses_everything_is_an_error_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_FAULTS", "create:code=-1")
    with pytest.raises(ValueError, match=r"cannot be probed: rknn_matmul_create\(.*RKNN_ERR_FAIL"):
        find_target("sim:rk3588")


# ---- results ------------------------------------------------------------------------------------------------------


def made(*outcomes: Outcome) -> Probe:
    target = Target("sim:rk3588", Path("lib.so"), "rk3588", RuntimeVersion(2, 3, 2), True, "2.3.2", "0.9.8")
    return Probe(target, {"device": "sim:rk3588", "date": "2026-01-01"}, outcomes)


def test_results_replace_earlier_answers_to_the_same_questions_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "probe.json"
    made(
        Outcome("Q8", "answered", "so", cells={f"{I8}.n_max": 64, f"{I8}.n_limit": 64}),
        Outcome("X1", "answered", "so", cells={"contexts": 9}),
    ).write(path)
    made(Outcome("Q8", "answered", "so", cells={f"{I8}.n_max": 128, "nonsense": 1})).write(path)
    results = load_probe_results(path)
    assert results.cells == {f"{I8}.n_max": (128, "Q8"), "contexts": (9, "X1")}
    assert set(results.facts["answers"]) == {"Q8", "X1"}
    path.write_text("damaged")
    made(Outcome("Q8", "crashed", "ended by SIGSEGV")).write(path)
    assert load_probe_results(path).cells == {}


def test_the_report_is_a_table_whatever_the_answers_say() -> None:
    report = markdown(
        made(
            Outcome("Q8", "answered", "a | b\nc", 1.0, cells={"contexts": 3}),
            Outcome("Q9", "crashed", "ended by SIGSEGV at: create", 2.0, log="E RKNN: boom"),
        )
    )
    rows = [line for line in report.splitlines() if line.startswith("| Q")]
    assert rows[0].replace("\\|", "").count("|") == rows[1].count("|") == 5
    assert "**crashed**: ended by SIGSEGV at: create" in rows[1]
    for text in ("a simulated rk3588, runtime 2.3.2", "E RKNN: boom", "`contexts` = 3 (Q8)", "2 questions in 3.0 s"):
        assert text in report


def test_cells_that_can_be_overridden_are_cells_of_the_table() -> None:
    names = {name.rpartition(".")[2] for name, _ in capabilities("rk3588", probed=False).cells() if "." in name}
    chip = {name for name, _ in capabilities("rk3588", probed=False).cells() if "." not in name}
    assert set(TYPE_KINDS) <= names
    assert set(CHIP_KINDS) <= chip


# ---- the command --------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
        env={**os.environ, "COLUMNS": "120", **environment},
    )  # fmt: skip


def test_the_command_writes_what_the_table_then_shows(tmp_path: Path) -> None:
    config = {"XDG_CONFIG_HOME": str(tmp_path)}
    done = command("probe", "--device", "sim:rk3588", "--questions", "Q11,q28", "--quick", **config)
    assert done.returncode == 0, done.stderr
    assert "## npumatmul probe of a simulated rk3588, runtime 2.3.2" in done.stdout
    assert "| Q28 |" in done.stdout
    assert "2 questions, at most 60 s each" in done.stderr
    path = tmp_path / "npumatmul" / "probe-sim-rk3588-2.3.2.json"
    assert ProbeResults.from_json(path.read_text()).cells[f"{F16}.n_multiple"] == (16, "Q11")
    unset = {"NPUMATMUL_PROBE_FILE": str(path)}  # the tests' own setting says: none
    shown = json.loads(command("info", "--capabilities", "--json", "--device", "sim", **unset).stdout)
    cell = shown["types"][F16]["n_multiple"]
    assert cell == {"value": 16, "provenance": "probed here", "source": "Q11"}


def test_info_shows_any_chip_and_version() -> None:
    done = command("info", "--capabilities", "--soc", "rk3576", "--runtime", "2.1.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(capabilities("rk3576", "2.1.0")).strip()
    wrong = command("info", "--soc", "rk3576")
    assert wrong.returncode == 2
    assert "--capabilities" in wrong.stderr


def test_the_command_lists_and_refuses() -> None:
    listed = command("probe", "--list")
    assert listed.returncode == 0
    assert all(f"\n{number}  " in "\n" + listed.stdout for number in QUESTIONS)
    for arguments, message in (
        (["--questions", "Q99"], "no such question: Q99"),
        (["--questions", "X3"], "--all"),
        (["--device", "sim:rk9999"], "rk9999"),
    ):
        done = command("probe", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_mm_types_are_named_as_the_cells_are() -> None:
    assert {F16, I8, I4} <= set(MatmulType.__members__)
