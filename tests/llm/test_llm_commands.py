"""The commands that measure and make models, called in this process on small models."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_models import write_tokenizer
from model_zoo import VARIANTS, torch_model, write_folder
from prose import PROSE
from typer.testing import CliRunner

from npumatmul.cli import evaluating, generating, quantizing
from npumatmul.cli.app import app
from npumatmul.cli.models import open_model
from npumatmul.errors import DeviceError, ModelError
from npumatmul.llm import LlamaModel, evaluate, load, load_model, numpy_pack, text_tokens, windows
from npumatmul.llm.models.decoder import layer_names
from npumatmul.llm.quantize import (
    LayerRecipe,
    Recipe,
    best_recipe,
    load_quantized,
    own_text,
    quantize_model,
    quick_recipe,
)

runner = CliRunner()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(PROSE[:600], encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    done = runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_perplexity_as_json(tiny: Any, text: Path) -> None:
    found = json.loads(
        run("perplexity", tiny.path, "-f", text, "-c", 64, "--chunks", 3, "--scheme", "float32, w8a8", "--json")
    )
    loaded = load_model(tiny.path, pack=numpy_pack)
    tokens = text_tokens(loaded.tokenizer, PROSE[:600])
    expected = evaluate(loaded.model, loaded.model, windows(tokens, 64, limit=3))
    assert found["windows"] == 3
    assert found["schemes"]["float32"]["perplexity"] == expected.as_dict()["perplexity"]
    assert found["schemes"]["float32"]["mean_kl"] == {"value": 0, "error": 0}
    assert found["schemes"]["w8a8"]["reference_perplexity"] == expected.as_dict()["perplexity"]
    assert 0 < found["schemes"]["w8a8"]["mean_kl"]["value"] < 0.1


def test_perplexity_as_a_table(tiny: Any, text: Path) -> None:
    printed = run("perplexity", tiny.path, "-f", text, "-c", 64, "--stride", 32, "--chunks", 2, "--scheme", "w16a16")
    assert "2 windows of 80 tokens, 64 scored" in printed
    assert "w16a16" in printed
    alone = run("perplexity", tiny.path, "-f", text, "-c", 64, "--scheme", "float32", "--no-reference")
    assert "±" in alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "600"], "--ctx is 600; the model reads at most 512 tokens at once"),
        (["-c", "500", "--stride", "100"], "--ctx is 500, and half a --stride more, 550; the model reads at most 512"),
        (["-c", "400"], "windows of 400 need 800"),
        (["--scheme", "w8a8,q4"], "--scheme: no scheme is called 'q4'"),
        (["-c", "64", "--stride", "64"], "the stride is 64"),
        (["--scheme", "w3a3"], "'w3a3'"),
    ],
)
def test_perplexity_mistakes(tiny: Any, text: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("perplexity", tiny.path, "-f", text, *options)


def test_perplexity_of_what_is_not_a_text(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        run("perplexity", tiny.path, "-f", path)


def test_analyze(tiny: Any, text: Path, tmp_path: Path) -> None:
    table, plot = tmp_path / "errors.csv", tmp_path / "errors.svg"
    options = ["-c", 64, "--chunks", 2, "--csv", table, "--plot", plot]
    printed = run("analyze", tiny.path, "-f", text, "--scheme", "w4a4", "--emulate", *options)
    for words in ("blk.1.down", "alone", "entire", "KL divergence", "w4a4"):
        assert words in printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["layer"] for row in rows] == layer_names(2)
    assert all(float(row["alone_relative_error"]) < 0.5 for row in rows)
    assert plot.read_text().startswith("<?xml")


def test_analyze_one_scheme_only(tiny: Any, text: Path) -> None:
    with pytest.raises(ValueError, match="one scheme at a time, not at w8a8 and w4a4"):
        run("analyze", tiny.path, "-f", text, "--scheme", "w8a8,w4a4", "--emulate")


def test_analyze_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 64)).astype(np.float32), rng.standard_normal((64, 48))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    np.save(tmp_path / "wt.npy", w.T)
    arrays = ["--weight", tmp_path / "w.npy", "--activations", tmp_path / "x.npy"]
    table = tmp_path / "errors.csv"
    assert "product" in run("analyze", *arrays, "--scheme", "w8a8,w4a4", "--csv", table)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["scheme"] for row in rows] == ["w8a8", "w4a4"]
    assert 35 < float(rows[0]["product_snr_db"]) < float(rows[0]["weight_snr_db"]) < 50
    assert 10 < float(rows[1]["product_snr_db"]) < float(rows[1]["weight_snr_db"]) < 25
    turned = ["--weight", tmp_path / "wt.npy", "--transposed", "--activations", tmp_path / "x.npy"]
    first = table.read_text()
    run("analyze", *turned, "--scheme", "w8a8,w4a4", "--csv", table)
    assert table.read_text() == first
    run("analyze", *arrays, "--scheme", "w4a4", "--emulate", "--best", "--csv", table)
    better = next(csv.DictReader(table.read_text().splitlines()))
    assert float(better["product_snr_db"]) > float(rows[1]["product_snr_db"])
    np.savez(tmp_path / "both.npz", weight=w, activations=x)
    both = ["--weight", tmp_path / "both.npz", "--activations", tmp_path / "both.npz"]
    run("analyze", *both, "--scheme", "w8a8,w4a4", "--csv", table)
    assert table.read_text() == first
    np.savez(tmp_path / "other.npz", a=w, b=x)
    with pytest.raises(ValueError, match=r"holds a, b; an array named 'weight'"):
        run("analyze", "--weight", tmp_path / "other.npz", "--activations", tmp_path / "x.npy", "--emulate")
    message = (
        r"--activations \(M, K\) of shape \(40, 64\) do not multiply --weight \(K, N\) of shape \(48, 64\).*K is 64"
    )
    with pytest.raises(ValueError, match=message + r" there and 48 here; with --transposed it would"):
        run("analyze", "--weight", tmp_path / "wt.npy", "--activations", tmp_path / "x.npy", "--emulate")
    (tmp_path / "text").write_text("text")
    np.save(tmp_path / "line.npy", np.zeros(3))
    for wrong in ("text", "line.npy"):
        with pytest.raises(ValueError, match=r"is not a matrix|a matrix of real numbers"):
            run("analyze", "--weight", tmp_path / wrong, "--activations", tmp_path / "x.npy", "--emulate")
    for options in (["--weight", "w.npy"], [], ["-f", "text", "--best"]):
        assert runner.invoke(app, ["analyze", *options]).exit_code == 2


def test_quantize_then_use(tiny: Any, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"scheme": "w4a8", "rounding": "gptq", "layers": {"head": {"scheme": "w8a8"}}}))
    target = tmp_path / "tiny.safetensors"
    run("quantize", tiny.path, "--recipe", recipe, "--calibration", text, "-c", 64, "-o", target)
    assert load_quantized(target).recipe == Recipe.read(recipe)

    measured = ["-f", text, "-c", 64, "--chunks", 2, "--json"]
    found = [
        json.loads(run("perplexity", target, *measured, "--original", tiny.path, *options))["schemes"]["quantized"]
        for options in ([], ["--emulate"])
    ]
    assert 0 < found[0]["mean_kl"]["value"] < 0.5
    assert found[0]["mean_kl"]["value"] == pytest.approx(found[1]["mean_kl"]["value"], rel=0.05)
    done = runner.invoke(app, ["generate", "-m", str(target), "-p", "the", "-n", "4", "--raw"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "as it was quantized" in done.output

    with pytest.raises(ValueError, match="takes no scheme"):
        run("generate", "-m", target, "-p", "the", "--scheme", "w8a8")
    with pytest.raises(ValueError, match="--original"):
        run("perplexity", target, *measured, "--emulate")
    with pytest.raises(ValueError, match="its SHA-256 differs"):
        run("perplexity", target, *measured, "--emulate", "--original", text)
    with pytest.raises(ValueError, match="is quantized already; quantize the GGUF"):
        run("quantize", target, "--scheme", "w8a8", "-o", tmp_path / "again")
    alone = json.loads(run("perplexity", target, *measured, "--emulate", "--no-reference"))
    assert set(alone["schemes"]["quantized"]) == {"tokens", "perplexity"}


def test_quantize_with_the_best_recipe(tiny: Any, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "best.safetensors"
    run("quantize", tiny.path, "--scheme", "w4a4", "--best", "--calibration", text, "-c", 64, "-o", target)
    assert load_quantized(target).recipe == best_recipe("w4a4")


def test_without_a_text_the_model_writes_one(tiny: Any, tmp_path: Path) -> None:
    target = tmp_path / "best.safetensors"
    options = ["--best", "-c", 32, "--chunks", 3, "--portable"]
    run("quantize", tiny.path, "--scheme", "w8a8", *options, "-o", target)
    model = load_quantized(target)
    assert model.recipe == best_recipe("w8a8")
    assert model.notes[-1].endswith("a text that the model wrote itself: 3 windows of 32 tokens")
    expected = quantize_model(tiny.path, best_recipe("w8a8"), own_text(tiny.path, 3, 32))
    for name, layer in expected.layers.items():
        np.testing.assert_array_equal(model.layers[name].restored(), layer.restored())
    run("quantize", tiny.path, "--scheme", "w8a8", "-o", target)
    assert load_quantized(target).notes == ()  # what load does needs no text, and none is written
    assert load_quantized(target).recipe == Recipe(quick_recipe("w8a8"))


def test_quantize_within_a_budget(tiny: Any, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "auto.safetensors"
    options = ["--calibration", text, "-c", 64, "-o", target]
    run(
        "quantize", tiny.path, "--scheme", "auto", "--max-bits", 9, "--candidates", "w4a8, w8a8", "--portable", *options
    )
    model = load_quantized(target)
    assert model.bits_per_weight <= 9
    assert {layer.recipe.scheme for layer in model.layers.values()} == {"w4a8", "w8a8"}
    assert "chosen by sensitivity" in model.notes[0]
    for wrong in (["--scheme", "auto"], ["--scheme", "w8a8", "--max-kl", "1"]):
        done = runner.invoke(app, ["quantize", str(tiny.path), *wrong, "-o", str(target)])
        assert done.exit_code == 2
        assert "goes with" in done.output


def test_a_second_rounding_is_told(demo_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_model(demo_path, "gguf", None)
    assert "second time" not in capsys.readouterr().err
    open_model(demo_path, "w8a8", None)
    assert "stores weights as Q4_1 and Q8_0; w8a8 rounds them a second time" in " ".join(
        capsys.readouterr().err.split()
    )


def test_generate_as_json(tiny: Any) -> None:
    done = runner.invoke(app, ["generate", "-m", str(tiny.path), "-p", "the", "-n", "5", "--raw", "--json"])
    assert done.exit_code == 0
    assert done.stderr == ""
    found = json.loads(done.stdout)
    with load(tiny.path) as model:
        ids = model.tokenizer.encode("the", add_special=True)
        assert found["text"] == "".join(piece.text for piece in model.generate("the", max_tokens=5))
    assert found["stop_reason"] == "max_tokens"
    assert (found["prompt_tokens"], found["generated_tokens"]) == (len(ids), 5)
    assert (found["device"], found["chip"], found["simulated"]) == ("sim:rk3588", "rk3588", True)
    assert (found["model"], found["scheme"], found["share_of_weight_macs"]) == (str(tiny.path), "w8a8", 1)
    for name in ("prompt_tokens_per_second", "tokens_per_second", "prompt_seconds", "generate_seconds", "load_seconds"):
        assert found[name] > 0


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupted_answer_is_kept(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], as_json: bool, after: int
) -> None:
    """Whether it is the prompt that is being read, or a later token."""
    count = itertools.count()
    forward = LlamaModel.forward

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(count) == after:
            raise KeyboardInterrupt
        return forward(*arguments, **named)

    monkeypatch.setattr(LlamaModel, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generating.answer(generating.Request(tiny.path, "the", raw=True, as_json=as_json, stats=not as_json))
    shown = capfd.readouterr()
    if as_json:
        found = json.loads(shown.out)
        assert (found["stop_reason"], found["generated_tokens"]) == ("interrupted", after)
    else:
        assert bool(shown.out.strip()) == bool(after)
        assert "interrupted" in shown.err


def test_what_was_measured_before_an_interrupt_is_shown(
    tiny: Any, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measure = evaluating.evaluate_models

    def interrupted(models: Any, reference: Any, pieces: Any, progress: Any) -> Any:
        def once(done: int, total: int, found: Any) -> None:
            progress(done, total, found)
            if found:
                raise KeyboardInterrupt

        return measure(models, reference, pieces, once)

    monkeypatch.setattr(evaluating, "evaluate_models", interrupted)
    request = evaluating.Request(text, tiny.path, ("w16a16",), context=64, chunks=3, as_json=True)
    with pytest.raises(KeyboardInterrupt):
        evaluating.perplexity(request)
    shown = capfd.readouterr()
    found = json.loads(shown.out)
    assert found["interrupted"] is True
    assert found["schemes"]["w16a16"]["tokens"] == 31
    assert "interrupted: the figures are of the first 31 of 93 tokens" in shown.err


def ended_by(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, calls: int) -> None:
    """Have what a command measures with end with an error once so many of its reports held results."""
    measure = getattr(evaluating, name)

    def ended(*arguments: Any) -> Any:
        *others, progress = arguments
        left = calls

        def report(done: int, total: int, found: Any) -> None:
            nonlocal left
            progress(done, total, found)
            left -= bool(found)
            if left == 0 and (found or not calls):
                raise error

        return measure(*others, report)

    monkeypatch.setattr(evaluating, name, ended)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DeviceError("it is gone")])
def test_layers_compared_before_the_end_are_shown_and_saved(
    tiny: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:  # fmt: skip
    """Windows of 64 tokens are one block each: here the third ends in its midst."""
    ended_by(monkeypatch, "analyze_layers", error, 4)
    saved, picture = tmp_path / "layers.csv", tmp_path / "layers.svg"
    request = evaluating.Request(text, tiny.path, ("w8a8",), emulate=True, context=64, csv=saved, plot=picture)
    with pytest.raises(type(error)):
        evaluating.analyze(request)
    shown = capfd.readouterr()
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended by an error"
    tokens = int(shown.err.partition(f"{reason}: the errors of layers are those of the first ")[2].split()[0])
    pieces = windows(text_tokens(load_model(tiny.path, pack=numpy_pack).tokenizer, PROSE[:600]), 64)
    assert 0 < tokens < sum(len(piece.tokens) for piece in pieces)
    assert "the model as a whole" not in shown.out
    assert [row["layer"] for row in csv.DictReader(saved.read_text().splitlines())] == layer_names(2)
    assert b"<svg" in picture.read_bytes()
    for name in layer_names(2):
        assert name in shown.out
    monkeypatch.undo()
    alone = tmp_path / "alone.csv"  # the same as when only these windows are asked for
    run(
        "analyze",
        tiny.path,
        "-f",
        text,
        "-c",
        64,
        "--chunks",
        tokens // 64,
        "--scheme",
        "w8a8",
        "--emulate",
        "--csv",
        alone,
    )
    assert alone.read_text() == saved.read_text()


@pytest.mark.parametrize("windows_measured", [0, 1])
def test_errors_of_layers_outlive_an_interrupt_of_what_follows(
    tiny: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    windows_measured: int,
) -> None:  # fmt: skip
    ended_by(monkeypatch, "evaluate_models", KeyboardInterrupt(), windows_measured)
    saved = tmp_path / "layers.csv"
    request = evaluating.Request(text, tiny.path, ("w8a8",), emulate=True, context=64, chunks=2, csv=saved)
    with pytest.raises(KeyboardInterrupt):
        evaluating.analyze(request)
    shown = capfd.readouterr()
    assert [row["layer"] for row in csv.DictReader(saved.read_text().splitlines())] == layer_names(2)
    assert "head" in shown.out
    assert ("the model as a whole" in shown.out) == bool(windows_measured)


def test_what_cannot_be_saved_is_shown(
    tiny: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(evaluating, "write_output", full)
    request = evaluating.Request(text, tiny.path, ("w8a8",), emulate=True, context=64, chunks=1, csv=tmp_path / "x.csv")
    with pytest.raises(OSError, match="no room"):
        evaluating.analyze(request)
    assert "head" in capfd.readouterr().out


def test_schemes_of_arrays_measured_before_an_interrupt_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "both.npz", activations=rng.normal(size=(5, 32)), weight=rng.normal(size=(32, 8)))
    analyze_product = evaluating.analyze_product

    def interrupted(x: Any, w: Any, recipe: Any, *others: Any) -> Any:
        if recipe.scheme == "w4a4":
            raise KeyboardInterrupt
        return analyze_product(x, w, recipe, *others)

    monkeypatch.setattr(evaluating, "analyze_product", interrupted)
    saved, both = tmp_path / "errors.csv", tmp_path / "both.npz"
    with pytest.raises(KeyboardInterrupt):
        evaluating.analyze_arrays(evaluating.Arrays(both, both, schemes=("w8a8", "w4a4"), emulate=True, csv=saved))
    shown = capfd.readouterr()
    assert [row["scheme"] for row in csv.DictReader(saved.read_text().splitlines())] == ["w8a8"]
    assert "w8a8" in shown.out
    assert "1 of 2 schemes were measured" in shown.err


def test_an_interrupted_quantization_says_that_nothing_was_written(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Any, recipe: Any, pieces: Any, *, progress: Any) -> Any:
        progress(3, 10, "quantizing blk.0.qkv")
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing, "quantize_model", interrupted)
    output = tmp_path / "out.npumm"
    with pytest.raises(KeyboardInterrupt):
        quantizing.quantize(quantizing.Request(output, tiny.path, Recipe(LayerRecipe("w8a8")), portable=True))
    assert f"interrupted (quantizing blk.0.qkv): {output} was not written" in capfd.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_progress_of_evaluations_is_that_of_tokens(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    pieces = windows(np.arange(200) % 250, 64, limit=2)
    calls: list[tuple[int, int, int]] = []
    evaluate(model, model, pieces, lambda done, total, found: calls.append((done, total, len(found))))
    assert calls[-1] == (2 * 2 * 63, 2 * 2 * 63, 1)  # two models, and the last token of a window predicts nothing
    assert max(b[0] - a[0] for a, b in itertools.pairwise(calls)) <= 32  # every block moves it
    assert [found for *_, found in calls] == sorted(found for *_, found in calls)


def test_a_text_may_come_from_standard_input(tiny: Any) -> None:
    options = ["perplexity", str(tiny.path), "-c", "64", "--chunks", "1", "--scheme", "float32", "--json"]
    piped = runner.invoke(app, [*options, "-f", "-"], input="\ufeff" + PROSE[:600])  # editors put a mark there
    assert piped.exit_code == 0, piped.output
    tokens = text_tokens(load_model(tiny.path, pack=numpy_pack).tokenizer, PROSE[:600])
    model = load_model(tiny.path, pack=numpy_pack).model
    expected = evaluate(model, None, windows(tokens, 64, limit=1)).perplexity.value
    assert json.loads(piped.stdout)["schemes"]["float32"]["perplexity"]["value"] == expected


def test_advice_of_a_file_is_given_once(make_tiny_model: Any, text: Path, tmp_path: Path) -> None:
    """A file is opened several times: for its header, its text, its layers."""
    path = make_tiny_model(change=lambda w: w.add_pad_token_id(9999)).path
    options = ["--scheme", "w8a8", "--best", "-c", "32", "--chunks", "2", "-o", str(tmp_path / "x")]
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "quantize", str(path), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("padding_token_id") == 1
    assert done.stderr.count("a text that the model wrote itself") == 1


def test_demo_takes_a_model(tiny: Any) -> None:
    done = runner.invoke(app, ["demo", "-m", str(tiny.path), "-p", "the", "-n", "3"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "rknn_matmul_run calls" in done.output


def test_quantize_mistakes(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        run("quantize", tiny.path, "--scheme", "w8a8", "-o", tmp_path / "nowhere" / "x")
    with pytest.raises(ValueError, match="'w3a3'"):
        run("quantize", tiny.path, "--scheme", "w3a3", "-o", tmp_path / "x")
    with pytest.raises(ValueError, match="not quantized yet: give --scheme or --recipe"):
        run("quantize", tiny.path, "-o", tmp_path / "x")
    with pytest.raises(DeviceError, match="rk9999"):
        run("quantize", tiny.path, "--scheme", "w8a8", "--chip", "rk9999", "-o", tmp_path / "x")
    with pytest.raises(DeviceError, match="rk3568"):
        run("quantize", tiny.path, "--scheme", "w4a16", "--chip", "rk3568", "-o", tmp_path / "x")
    for options, message in (
        (["--scheme", "w8a8", "--recipe", "x.json"], "either --scheme or --recipe"),
        (["--scheme", "w8a8", "--portable", "--chip", "rk3588"], "for every --chip"),
        (["--best"], "goes with --scheme"),
    ):
        done = runner.invoke(app, ["quantize", str(tiny.path), "-o", str(tmp_path / "x"), *options])
        assert done.exit_code == 2
        assert message in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["generate", "demo"])
def test_commands_take_the_scheme_that_load_takes(tiny: Any, command: str) -> None:
    done = runner.invoke(app, [command, "-m", str(tiny.path), "-p", "the", "-n", "3"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "tiny, w8a8, loaded in" in done.stderr
    with load(tiny.path) as model:
        answer = "".join(piece.text for piece in model.chat([{"role": "user", "content": "the"}], max_tokens=3))
    assert done.stdout == answer + "\n"


def test_texts_that_end_an_answer_are_options(tiny: Any) -> None:
    def text(*more: str) -> Any:
        options = ["-p", "the", "-n", "30", "--raw", "--json", "--scheme", "float32", "--min-p", "0.1", "--no-cache"]
        done = runner.invoke(app, ["generate", "-m", str(tiny.path), *options, *more], catch_exceptions=False)
        return json.loads(done.stdout)

    whole = text()["text"]
    found = text("--stop", whole[9:12], "--stop", "never")
    assert found["text"] == whole[: whole.index(whole[9:12])]
    assert found["stop_reason"] == "stop_text"
    with pytest.raises(ValueError, match="--stop has an empty text"):
        text("--stop", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    variant = next(each for each in VARIANTS if each.gguf == "qwen2")
    path = write_folder(tmp_path / "model", variant, torch_model(variant))
    write_tokenizer(path)
    return path


def test_generate_takes_folders(folder: Path) -> None:
    options = ["-p", "the", "-n", "4", "--device", "sim:rk3576", "--json"]
    done = runner.invoke(app, ["generate", "-m", str(folder), *options], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert (found["scheme"], found["device"], found["share_of_weight_macs"]) == ("w8a8", "sim:rk3576", 1)
    with load(folder, device="sim:rk3576") as model:
        answer = model.chat([{"role": "user", "content": "the"}], max_tokens=4)
        assert found["text"] == "".join(piece.text for piece in answer)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"it has no tokenizer\.json: fetch"):
        run("generate", "-m", folder, "-p", "the")


@pytest.mark.parametrize("options", [["--emulate"], []])
def test_perplexity_of_a_folder(folder: Path, text: Path, options: list[str]) -> None:
    measured = ["-f", text, "-c", 64, "--chunks", 2, "--scheme", "w8a8", "--json"]
    found = json.loads(run("perplexity", folder, *measured, *options))
    assert 0 < found["schemes"]["w8a8"]["mean_kl"]["value"] < 0.5
