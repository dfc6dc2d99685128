"""The command line as users meet it: separate processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from npumatmul.llm import fetch_demo_model


def npumatmul(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NPUMATMUL_")}
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={**clean, "COLUMNS": "120", **environment},
        timeout=300,
    )


def test_info() -> None:
    done = npumatmul("info")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:1].strip() and " " in line)
    assert lines["device"] == "sim:rk3588"
    assert lines["simulated"] == "yes"
    assert lines["chip"] == "rk3588"
    for text in ("runtime version", "driver version", "npu cores", "NPUMATMUL_LIBRARY: not set", "libnpumm_sim.so"):
        assert text in done.stdout


def test_info_as_json() -> None:
    facts = json.loads(npumatmul("info", "--json", "--device", "sim").stdout)
    assert facts["npu_cores"] == 3
    assert facts["simulated"] is True
    assert {"where": "device argument", "found": "'sim'"} in facts["looked_at"]


def test_info_needs_no_language_model_packages() -> None:
    """On a board the command line alone is enough to look at the device."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(['gguf', 'tokenizers', 'jinja2', 'matplotlib'])); "
    start = "from npumatmul.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked + start, "info"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sim:rk3588" in done.stdout
    done = subprocess.run([sys.executable, "-c", blocked + start, "demo"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'npumatmul[llm]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_info_where_there_is_no_runtime_says_what_was_looked_at() -> None:
    done = npumatmul("info", NPUMATMUL_DEVICE="rknn", NPUMATMUL_LIBRARY="/nowhere/librknnrt.so")
    assert done.returncode == 1
    assert "/nowhere/librknnrt.so cannot be loaded" in done.stderr
    assert "NPUMATMUL_DEVICE: 'rknn'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "-m", "/nowhere/model.gguf", "-p", "Hi"], "/nowhere/model.gguf"),
        (["generate", "-m", __file__, "-p", "Hi"], "not a GGUF file"),
        (["generate", "-m", __file__], "prompt is empty"),
        (["generate", "-m", __file__, "-p", "  "], "prompt is empty"),
        (["generate", "-m", __file__, "-p", "Hi", "--device", "tpu"], "'tpu' is not known"),
        (["generate", "-m", __file__, "-p", "Hi", "--scheme", "w3a3"], "'w3a3'"),
        (["generate", "-m", __file__, "-p", "Hi", "--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = npumatmul(*arguments, stdin="" if "-p" not in arguments else None)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("npumatmul: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "-m", "x", "-n", "0"], ["frobnicate"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = npumatmul(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_version() -> None:
    import npumatmul as package

    assert npumatmul("--version").stdout.strip() == package.__version__


def test_a_truncated_model_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    with fetch_demo_model().open("rb") as source:
        damaged.write_bytes(source.read(5_000_000))
    done = npumatmul("generate", "-m", str(damaged), "-p", "Hi")
    assert done.returncode == 1
    assert str(damaged) in done.stderr
    assert "truncated" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate_reads_the_prompt_from_standard_input() -> None:
    model = str(fetch_demo_model())
    question = "What is the capital of France?"
    command = ("generate", "-m", model, "--scheme", "w8a8", "-n", "12")
    done = npumatmul(*command, stdin=question)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stdout == npumatmul(*command, "-p", question).stdout
    for text in ("CPU simulation", "rknn_matmul_run calls", "contexts", "file descriptors", "NPU memory in use"):
        assert text in done.stderr
    assert "100.00 %" in done.stderr
    quiet = npumatmul("generate", "-m", model, "--scheme", "w8a8", "-n", "12", "--no-stats", "-p", question)
    assert quiet.stdout == done.stdout
    assert quiet.stderr == ""


def test_seeds_repeat() -> None:
    model = str(fetch_demo_model())
    options = ["--temperature", "1.5", "-n", "12", "--no-stats", "-p", "Tell me a story."]
    texts = [npumatmul("generate", "-m", model, *options, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_raw_prompts_are_continued() -> None:
    done = npumatmul(
        "generate", "-m", str(fetch_demo_model()), "--raw", "-n", "4", "--no-stats", "-p", "One, two, three, four,"
    )
    assert "five" in done.stdout


def test_a_prompt_longer_than_the_context() -> None:
    done = npumatmul("generate", "-m", str(fetch_demo_model()), "--context", "20", "-p", "word " * 50)
    assert done.returncode == 1
    assert "shorten it" in done.stderr


def test_the_readme_example_runs() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) >= 10
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(8, 1536) float32\n")
