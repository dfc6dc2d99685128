"""The command `serve`, in a process of its own as people start it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm_models import write_tiny_model

from npumatmul.cli.app import run

COMMAND = [sys.executable, "-m", "npumatmul.cli", "serve"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("command") / "tiny.gguf").path


@contextmanager
def started(*arguments: object) -> Iterator[tuple[Any, str, list[str]]]:
    """The process, where it is reached, and what it has said on standard error."""
    command = [*COMMAND, *map(str, arguments), "--port", "0", "--scheme", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            said: list[str] = []
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"serving .* at (http://\S+)", line):
                    yield process, found[1], said
                    return
            raise AssertionError(f"it ended: {said}")
        finally:
            process.kill()


def test_models_are_served_until_a_signal(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with started(tiny, f"other={tiny}", "--api-key-file", tmp_path / "key", "-n", 3) as (process, url, _):
        key = {"authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers=key).json()["data"]
        assert [each["id"] for each in models] == ["tiny", "other"]
        body = {"model": "other", "messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"261": -100}}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=key).json()
        assert answer["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (out, rest) == ("", "stopped\n")


def test_who_may_ask_is_said(tiny: Path) -> None:
    with started(tiny, "--host", "0.0.0.0") as (process, url, _):
        assert process.stderr is not None
        assert "everybody who reaches 0.0.0.0 may ask" in process.stderr.readline()
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "stopped\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.gguf"], "none.gguf"),
        (["{tiny}", "{tiny}"], "two models are called 'tiny': write name=path"),
        (["{tiny}", "--api-key", "a", "--api-key-file", "b"], "either --api-key or --api-key-file"),
        (["{tiny}", "--scheme", "w9"], "--scheme"),
        (["{tiny}", "--api-key", "ü"], "api_key is ASCII"),
        (["{tiny}", "--scheme", "float32", "--host", "203.0.113.1"], "the server cannot listen on 203.0.113.1, port"),
    ],
)
def test_mistakes_are_one_line(
    tiny: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [each.replace("{tiny}", str(tiny)) for each in arguments]
    monkeypatch.setattr(sys, "argv", ["npumatmul", "serve", *filled])
    with pytest.raises(SystemExit) as end:
        run()
    assert str(end.value.code).startswith("npumatmul: ")
    assert said in str(end.value.code)
    assert "\n" not in str(end.value.code)
