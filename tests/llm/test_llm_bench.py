"""`bench llm`: what is read in which test, by a clock that counts tokens; sizes and modelled speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_models import TinyModel
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul import bench
from npumatmul.bench.llm_bench import LlmBenchmark
from npumatmul.cli.app import app
from npumatmul.llm import load
from npumatmul.llm.modelled.built import decoder_shape
from npumatmul.llm.models import recorded
from npumatmul.llm.run.sequence import TokenSequence


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many tokens were read at once, and after how many."""
    read: list[tuple[int, int]] = []
    run = TokenSequence.run

    def counted(self: TokenSequence, given: Any, **how: Any) -> Any:
        read.append((len(given), self.length))
        return run(self, given, **how)

    monkeypatch.setattr(TokenSequence, "run", counted)
    return read


def test_each_test_reads_what_it_says(device: npu.Device, tiny: TinyModel, tokens: list[tuple[int, int]]) -> None:
    """A second for each token, so that there is one a second; what was read before is read once for all runs."""
    benchmark = LlmBenchmark(
        models=str(tiny.path), prompts="5,0", generated=3, depths="0,7", repetitions=2, cache=False,
        clock=lambda: float(sum(count for count, _ in tokens)),
    )  # fmt: skip
    rows = list(benchmark.measure(device))
    assert [(row.case["test"], row.case["depth"]) for row in rows] == [
        ("pp5", 0), ("tg3", 0), ("pp5", 7), ("tg3", 7),
    ]  # fmt: skip
    expected = []
    for depth in (0, 7):
        before = [(depth, 0)] if depth else []
        expected += before + [(5, depth)] * (3 + 2)  # three of them warm up
        expected += before + [(1, depth + index) for index in range(3)] * (1 + 2)
    assert tokens == expected
    for row in rows:
        assert row.figures["tokens_per_second"] == pytest.approx(1.0)
        assert row.figures["plus_minus"] == pytest.approx(0.0)
        assert [len(times) for times in row.seconds.values()] == [2]


def test_what_counts_is_computed_as_from_then_on(
    device: npu.Device, tiny: TinyModel, tokens: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for each token, and a thousand for blocks that Python computes, as it does before a program is used."""
    by_python = recorded._Work.states_by_python
    calls = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return by_python(*given)

    monkeypatch.setattr(recorded._Work, "states_by_python", counted)
    benchmark = LlmBenchmark(
        models=str(tiny.path), prompts="9,33", generated="1,4", depths="0,7", repetitions=2, cache=False,
        clock=lambda: float(sum(count for count, _ in tokens) + 1000 * len(calls)),
    )  # fmt: skip
    rows = list(benchmark.measure(device))
    assert len(rows) == 8
    assert calls
    for row in rows:
        assert row.figures["tokens_per_second"] == pytest.approx(1.0), row.label


def test_sizes_and_modelled_speed(device: npu.Device, tiny: TinyModel) -> None:
    options: dict[str, Any] = {
        "models": str(tiny.path),
        "prompts": 5,
        "generated": 3,
        "depths": 4,
        "repetitions": 1,
        "cache": False,
    }
    prompt, token = bench.run("llm", device=device, **options).rows
    with load(tiny.path, device=device, cache=False) as model:
        parameters = decoder_shape("", model._loaded.config).parameters
        assert model.parameters == prompt.figures["parameters"] == parameters
        assert isinstance(prompt.figures["weight_bytes"], int)
        assert prompt.figures["weight_bytes"] > 0
        seconds = model.modelled_seconds(5, 4)
        assert seconds is not None
        assert prompt.modelled["test"] == pytest.approx(seconds)
        each = model.modelled_seconds(1, 4 + 1)
        assert each is not None
        assert token.modelled["test"] == pytest.approx(3 * each)
        assert seconds > each  # a row of logits each, and more rows


def test_modelled_time_grows_by_blocks_of_a_prompt(device: npu.Device, tiny: TinyModel) -> None:
    with load(tiny.path, device=device, cache=False) as model:
        first, both, second = model.modelled_seconds(128), model.modelled_seconds(200), model.modelled_seconds(72, 128)
        assert first is not None
        assert second is not None
        assert both == pytest.approx(first + second)
    with load(tiny.path, "float32") as model:
        assert model.modelled_seconds(1) is None


def test_what_a_model_cannot_read_is_told(device: npu.Device, tiny: TinyModel) -> None:
    rows: list[bench.Row] = []
    options: dict[str, Any] = {
        "models": str(tiny.path),
        "prompts": 5,
        "generated": 0,
        "depths": "0,100000",
        "repetitions": 1,
        "cache": False,
    }
    with pytest.raises(ValueError, match=r"pp5 @ d100000: .* reads at most \d+ tokens; ask for fewer \(-p, -n, -d\)"):
        bench.run("llm", device=device, rows_into=rows, **options)
    assert [row.case["test"] for row in rows] == ["pp5"]


def test_command(tiny: TinyModel, tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    arguments = [
        "-m",
        tiny.path,
        "-p",
        4,
        "-n",
        2,
        "-d",
        "0",
        "-r",
        2,
        "--no-cache",
        "--device",
        "sim",
        "--json",
        saved,
    ]
    done = CliRunner().invoke(app, ["bench", "llm", *map(str, arguments)], catch_exceptions=False)
    lines = done.output.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "model", "size", "params", "backend", "test", "t/s", "modelled t/s",
    ]  # fmt: skip
    assert "rk3588 simulated" in lines[2]
    record = bench.read_record(saved)
    assert [row.case["test"] for row in record.rows] == ["pp4", "tg2"]
    assert str(tmp_path) not in saved.read_text()
    assert str(tiny.path) not in saved.read_text()  # names of files are nobody's business
