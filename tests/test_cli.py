"""The command line as users meet it: separate processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul.cli import app as app_module
from npumatmul.cli.app import app
from npumatmul.cli.bench_commands import OPTIONS
from npumatmul.errors import DeviceError
from npumatmul.extras import EXTRAS, INSTALLED_AS
from npumatmul.llm import fetch_demo_model

ROOT = Path(__file__).parent.parent


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


def test_info_says_what_the_simulator_multiplies_with() -> None:
    told = npumatmul("info", "--json", NPUMATMUL_SIM_INSTRUCTIONS="scalar").stdout
    assert json.loads(told)["simulator_uses"] == "scalar"


#: Runs what follows as if packages were not installed.
WITHOUT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if {absent}:
            raise ModuleNotFoundError("No module named " + repr(top), name=top)
sys.meta_path.insert(0, Absent())
"""
ALL_BUT_WHAT_IS_NEEDED = (
    "top not in {*sys.stdlib_module_names, 'numpy', 'ml_dtypes', 'npumatmul'} and top[:10] != '_npumatmul'"
)


def without(absent: str, program: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent) + program, *arguments],
        capture_output=True, text=True, timeout=100, cwd=cwd,
    )  # fmt: skip


ALL_BUT_THE_COMMAND_LINE = f"top in {[package for package, extra in EXTRAS.items() if extra != 'cli']}"
COMMAND = "from npumatmul.cli import main; main()"


def test_info_needs_no_language_model_packages() -> None:
    """On a board the command line alone is enough to look at the device."""
    done = without(ALL_BUT_THE_COMMAND_LINE, COMMAND, "info")
    assert done.returncode == 0, done.stderr
    assert "sim:rk3588" in done.stdout


@pytest.mark.parametrize(
    ("absent", "program", "arguments", "message"),
    [
        (ALL_BUT_WHAT_IS_NEEDED, COMMAND, ["info"], "the command line needs typer: pip install 'npumatmul[cli]'"),
        (ALL_BUT_THE_COMMAND_LINE, COMMAND, ["demo"], "npumatmul.llm needs gguf: pip install 'npumatmul[llm]'"),
        (
            ALL_BUT_THE_COMMAND_LINE,
            COMMAND,
            ["bench", "matmul", "--plot", "x.png"],
            "--plot needs matplotlib: pip install 'npumatmul[bench]'",
        ),
        (ALL_BUT_WHAT_IS_NEEDED, "import npumatmul.llm", [], "npumatmul.llm needs gguf: pip install 'npumatmul[llm]'"),
    ],
)
def test_what_lacks_a_package_names_the_extra(
    tmp_path: Path, absent: str, program: str, arguments: list[str], message: str
) -> None:
    done = without(absent, program, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    if program == COMMAND:
        assert done.stderr == f"npumatmul: {message}\n"
    else:
        assert done.stderr.splitlines()[-1] == f"npumatmul.errors.MissingPackageError: {message}"


def test_extras_are_those_of_the_readme_and_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    readme = (ROOT / "README.md").read_text()
    by_extra: dict[str, set[str]] = {}
    for package, extra in EXTRAS.items():
        by_extra.setdefault(extra, set()).add(INSTALLED_AS.get(package, package))
    for extra, packages in by_extra.items():
        (listed,) = re.findall(rf"^{extra} = \[(.*)\]$", project, re.MULTILINE)
        assert packages == {name for name in re.findall(r'"([a-z0-9_-]+)[>\[]', listed) if name != "npumatmul"}
        (row,) = re.findall(rf"^\| `{extra}` \|(.*?)\|", readme, re.MULTILINE)
        assert packages == {name.strip() for name in row.split(",") if "`" not in name}  # those of extras have it
        for other in by_extra:
            assert (f"npumatmul[{other}]" in listed) == (f"`{other}`" in row)


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


def test_profiles_say_where_the_time_goes(tmp_path: Path) -> None:
    model, trace, figures = str(fetch_demo_model()), tmp_path / "run.trace.json", tmp_path / "run.json"
    options = [
        "-n",
        "3",
        "--no-stats",
        "-p",
        "Hi",
        "--profile",
        "-",
        "--profile",
        str(trace),
        "--profile",
        str(figures),
    ]
    done = npumatmul("generate", "-m", model, *options)
    assert done.returncode == 0, done.stderr
    for text in ("the NPU is simulated", "attention", "qkv 1x576x960 w8a8", str(trace), str(figures)):
        assert text in done.stderr
    assert any(each["layer"] == "blk.7.down" for each in json.loads(figures.read_text())["products"])
    assert len(json.loads(trace.read_text())["traceEvents"]) > 1000
    refused = npumatmul("generate", "-m", model, "-p", "Hi", "--profile", str(tmp_path / "run.csv"))
    assert refused.returncode == 1
    assert "its ending says what is written" in refused.stderr


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


def test_the_readme_example_runs_with_what_its_first_line_installs(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) >= 10
    done = without(ALL_BUT_WHAT_IS_NEEDED, example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(8, 1536) float32\n")


COMMANDS = (
    [], ["info"], ["probe"], ["generate"], ["demo"], ["perplexity"], ["analyze"], ["quantize"], ["bench"],
    *(["bench", name] for name in (*OPTIONS, "demo", "dynshape-demo", "show", "compare", "share")),
    ["sim"], ["sim", "env"], ["sim", "path"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_readable_on_a_narrow_terminal(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is cut, and texts have about half of the width or more."""
    monkeypatch.setenv("COLUMNS", "60")
    app([*command, "--help"], standalone_mode=False)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" not in shown
    assert not re.search(r"\w\.\.\.$", shown, re.MULTILINE)  # how summaries of commands are cut
    assert max(len(line) - len(line.lstrip()) for line in lines if line) <= 32


def test_wrong_usage_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = CliRunner().invoke(app, ["generate", "-m", "x", "-n", "0"])
    assert done.exit_code == 2
    assert "Error: Invalid value for '-n' / '--max-tokens'" in done.output
    assert "│" not in done.output
    done = CliRunner().invoke(app, ["perplexity", "-f", "x", "--scheme", "w8a8,"])
    assert done.exit_code == 2
    assert "--scheme: a name is missing in 'w8a8,'" in done.output


def run(*arguments: bytes | str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", *arguments],
        input=stdin, capture_output=True, timeout=100, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([b"-p", b"caf\xe9"], b"", "the prompt is not UTF-8: the byte 0xe9 at position 3 belongs to no character"),
        ([b"-p", b"a", b"--system", b"\xff"], b"", "--system is not UTF-8: the byte 0xff at position 0"),
        ([], b"caf\xe9", "the prompt on standard input is not UTF-8: the byte 0xe9 at position 3"),
    ],
)
def test_prompts_that_are_not_utf8(arguments: list[bytes], stdin: bytes, message: str) -> None:
    """They are refused before the model is looked at."""
    done = run(b"generate", b"-m", b"none.gguf", *arguments, stdin=stdin)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"npumatmul: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perplexity", "-f", "{tmp}/none"], "{tmp}/none: No such file or directory"),
        (["perplexity", "-f", "{tmp}"], "{tmp}: Is a directory"),
        (["generate", "-m", "", "-p", "a"], "the model has no name: give the path of a file"),
        (["demo", "-m", ""], "the model has no name: give the path of a file"),
        (["quantize", "", "--scheme", "w8a8", "-o", "y"], "the model has no name: give the path of a file"),
        (["generate", "-m", "x", "-p", "a", "--scheme", "q4"], "--scheme: no scheme is called 'q4'; there are"),
        (["generate", "-m", "x", "-p", "a", "--top-p", "0"], "--top-p is 0.0; it must be above 0 and at most 1"),
        (["generate", "-m", "x", "-p", "a", "--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["quantize", "x", "--scheme", "q4", "-o", "y"], "--scheme: no scheme is called 'q4'"),
        (
            ["quantize", "x", "--scheme", "auto", "--max-bits", "5", "--candidates", "w8a8,q4", "-o", "y"],
            "--candidates: no scheme is called 'q4'",
        ),
        (["quantize", "x", "--scheme", "w8a8", "-o", "-"], "--output: a quantized model cannot be written to standard"),
        (["quantize", "x", "--scheme", "w8a8", "-o", ""], "--output names no file"),
        (["bench", "matmul", "--csv", ""], "--csv names no file"),
        (["probe", "-o", "{tmp}/none/x.json"], "there is no folder {tmp}/none"),
        (["info", "--capabilities", "--runtime", "9.9"], "nothing is known of runtime 9.9.0"),
        (["sim", "env", "--set", "strikt=1"], "the simulator has no setting 'strikt' (did you mean 'strict'?)"),
    ],
)
def test_messages_name_what_was_typed(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["npumatmul", *(each.format(tmp=tmp_path) for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        app_module.run()
    assert str(ended.value).startswith(f"npumatmul: {message.format(tmp=tmp_path)}")
    assert "\n" not in str(ended.value)
    assert list(tmp_path.iterdir()) == []
    capfd.readouterr()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NPUMATMUL_DEVICE", "tpu", "device 'tpu' (of NPUMATMUL_DEVICE) is not known: use 'rknn'"),
        ("NPUMATMUL_SIM_SOC", "rk9", "device 'sim:rk9' (of NPUMATMUL_SIM_SOC) is not simulated; these are: sim:rk3588"),
        ("NPUMATMUL_SIM_RUNTIME", "9.9", "runtime '9.9' (of NPUMATMUL_SIM_RUNTIME) is not simulated; these are: 1.5.2"),
        ("NPUMATMUL_SIM_STRICT", "yes", "NPUMATMUL_SIM_STRICT is 'yes'; it can be 0 or 1"),
        (
            "NPUMATMUL_SIM_INSTRUCTIONS",
            "sse9",
            "NPUMATMUL_SIM_INSTRUCTIONS is 'sse9'; it can be best, scalar, or what this",
        ),
        ("NPUMATMUL_SIM_TIMING", "MODEL", "NPUMATMUL_SIM_TIMING is 'MODEL'; it can be off or model or realtime"),
        *(
            ("NPUMATMUL_SIM_TIMING_CONSTANTS", value, f"NPUMATMUL_SIM_TIMING_CONSTANTS is {value!r}; it can be const")
            for value in ("start_seconds", "start_seconds=nan", "start_seconds=-1", "start_seconds=0x10", ",", "=1")
        ),
        ("NPUMATMUL_SIM_CONTEXTS", "0", "NPUMATMUL_SIM_CONTEXTS is '0'; it can be none or a number from 1 on"),
        ("NPUMATMUL_SIM_DOMAIN_BYTES", "-1", "NPUMATMUL_SIM_DOMAIN_BYTES is '-1'; it can be a number from 1 to"),
    ],
)
def test_variables_that_cannot_work_are_named(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(DeviceError, match=re.escape(message)):
        npu.Device()


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--types", "int8", "--shapes", "1x64x32", "--repetitions", "1", "--csv", "/dev/full"]
    monkeypatch.setattr(sys, "argv", ["npumatmul", "bench", "matmul", *arguments])
    with pytest.raises(SystemExit, match="npumatmul: /dev/full: No space left on device"):
        app_module.run()
    assert "int8 1x64x32" in capfd.readouterr().out


def test_settings_of_the_simulator_by_either_name() -> None:
    by_name, by_variable = (
        CliRunner().invoke(app, ["sim", "env", "--set", f"{name}=1"]).output
        for name in ("strict", "NPUMATMUL_SIM_STRICT")
    )
    assert by_name == by_variable
    assert "export NPUMATMUL_SIM_STRICT=1" in by_name


def test_a_reader_that_goes_away_and_a_full_disk_are_no_stack_trace() -> None:
    for command, code in (("info | true", 0), ("info > /dev/full", 1), ("bench demo 2 4,64,32 0 0 2000 | head -1", 0)):
        done = subprocess.run(
            f"{sys.executable} -m npumatmul.cli {command}", shell=True, capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stderr.count("Traceback")) == (code, 0), done.stderr
    assert done.stderr.count("\n") <= 1
