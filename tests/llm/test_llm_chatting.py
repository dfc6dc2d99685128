"""The command `chat`: through pipes, and at a terminal whose keys are pressed."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_models import text_of
from typer.testing import CliRunner

import npumatmul.llm
from npumatmul.cli import files, terminal
from npumatmul.cli.app import app
from npumatmul.cli.chatting import Chat
from npumatmul.llm import Model

HOW: dict[str, Any] = {"max_tokens": 5, "stop_ids": []}


@pytest.fixture(scope="module")
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


def _has_something(descriptor: int, seconds: float) -> bool:
    """Whether something can be read within so many seconds; any descriptor will do, as with `select` it would not."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


class Talked:
    """What a chat with some lines of input printed, and its conversation."""

    def __init__(self, model: Model, lines: str, monkeypatch: Any, capsys: Any, **settings: Any) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        talk = Chat(model, model.session(**{**HOW, **settings}))
        talk.run()
        self.out, self.err = capsys.readouterr()
        self.session = talk.session
        self.said = [each["content"] for each in talk.session.messages if each["role"] == "user"]


def test_lines_of_a_pipe_are_messages(model: Model, monkeypatch: Any, capsys: Any) -> None:
    talked = Talked(model, "one\n\ntwo", monkeypatch, capsys)
    expected = model.session(**HOW)
    assert talked.out == "".join(text_of(expected.send(text)) + "\n" for text in ("one", "two"))
    assert talked.session.messages == expected.messages
    assert talked.err == "(ended by max tokens)\n" * 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("a\\\nb\\\nc\n", ["a\nb\nc"]),
        ('"""a\n\n/b"""\nc\n', ["a\n\n/b", "c"]),
        ('"""\na\nb\n"""\n', ["a\nb"]),
        ('"""a"""\n', ["a"]),
        ('"""a\nb', ["a\nb"]),
        ("a\\", ["a\n"]),
        ("//etc is a folder\n", ["/etc is a folder"]),
        (" /etc\n", [" /etc"]),
    ],
)
def test_messages_of_several_lines(model: Model, typed: str, said: list[str], monkeypatch: Any, capsys: Any) -> None:
    assert Talked(model, typed, monkeypatch, capsys).said == said


def test_commands(model: Model, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    file = tmp_path / "talk"
    lines = ["/system be brief", "one", f"/save {file}", "/reset", "two", "/history", "/system -", "/system"]
    lines += [f"/load {file}", "/history", "/set max_tokens 2", "/retry", "/stats", "/set", "/help", "/quit", "never"]
    talked = Talked(model, "\n".join(lines), monkeypatch, capsys)
    assert [each["role"] for each in talked.session.messages] == ["system", "user", "assistant"]
    assert talked.said == ["one"]
    assert "system: be brief\nuser: two\nassistant: " in talked.err
    assert "(the system says nothing)" in talked.err
    assert f"saved to {file}\n" in talked.err
    assert f"3 messages from {file}\nsystem: be brief\nuser: one\n" in talked.err
    assert re.search(r"prompt \d+ tokens, \d+ of them known, .* answer 2 tokens", talked.err)
    assert "max_tokens 2\n" in talked.err
    assert "/retry" in talked.err
    assert "never" not in talked.said


def test_every_setting_that_is_listed_can_be_set(model: Model, monkeypatch: Any, capsys: Any) -> None:
    listed = [line.split() for line in Talked(model, "/set", monkeypatch, capsys).err.splitlines()]
    names = [name for name, *_ in listed if name != "stop_ids"]
    assert names, "settings of the session"
    changed = {"speculation": "lookup", "on_full": "error", "seed": "3", "max_tokens": "7"}
    lines = [f"/set {name} {changed.get(name, '1')}" for name in (*names, *changed)]
    talked = Talked(model, "\n".join(lines), monkeypatch, capsys)
    assert talked.err == ""
    wanted = {"speculation": "lookup", "on_full": "error", "seed": 3, "max_tokens": 7}
    assert talked.session.settings.items() >= wanted.items()
    talked = Talked(model, "/set speculation none\n/set on_full slide", monkeypatch, capsys, speculation="auto")
    assert talked.session.settings["speculation"] is None
    assert talked.err == "npumatmul: /set: on_full is window or error, not 'slide'\n"


def test_mistakes_are_told_and_the_conversation_goes_on(
    model: Model, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "none").write_text("no session")
    lines = [
        "/nope",
        "/save",
        "/load",
        f"/load {tmp_path / 'none'}",
        f"/load {tmp_path / 'missing'}",
        "/retry",
        "/stats",
    ]
    lines += ["/set temperature hot", "/set top_p 3", "/set stop x", f"/save {tmp_path / 'a' / 'b'}", "x" * 600, "one"]
    talked = Talked(model, "\n".join(lines), monkeypatch, capsys)
    said = [line for line in talked.err.splitlines() if line.startswith("npumatmul: ")]
    assert len(said) == 12
    for part in (
        "no command /nope",
        "/save: give the name",
        "cannot be used",
        "nothing was answered yet",
        "top_p is 3",
    ):
        assert any(part in line for line in said), part
    assert f"npumatmul: {tmp_path / 'missing'}: No such file or directory" in talked.err.splitlines()
    assert "Errno" not in talked.err
    assert talked.said == ["one"]


def test_a_full_context_slides(model: Model, monkeypatch: Any, capsys: Any) -> None:
    talked = Talked(model, "x" * 600 + "\none\n", monkeypatch, capsys, on_full="window")
    assert len(talked.said) == 2
    assert "tokens of older messages were left out" in talked.err


def test_the_command_goes_on_with_its_session(tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    options = ["chat", "-m", str(tiny.path), "--scheme", "float32", "-n", "4", "--session", str(file)]
    runner = CliRunner()
    first = runner.invoke(app, [*options, "--system", "be brief"], input="one\n", catch_exceptions=False)
    assert first.exit_code == 0, first.output
    second = runner.invoke(app, options, input="/history\n", catch_exceptions=False)
    assert second.exit_code == 0
    assert f"3 messages from {file}" in second.output
    assert "user: one" in second.output
    failed = runner.invoke(app, options, input="/nope\ntwo\n")
    assert failed.exit_code == 1, "a program hears that something went wrong"
    assert f"saved to {file}" in failed.output
    assert "user: two" in runner.invoke(app, options, input="/history\n", catch_exceptions=False).output
    for wrong, message in (
        (["--on-full", "slide"], "--on-full is window or error"),
        (["--speculation", "maybe"], "--speculation is none, auto or lookup"),
    ):
        refused = runner.invoke(app, [*options, *wrong])
        assert refused.exit_code == 2
        assert message in refused.output
    with pytest.raises(ValueError, match="--top-p is 0"):
        runner.invoke(app, [*options, "--top-p", "0"], catch_exceptions=False)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"talk\.session"):
        runner.invoke(app, options, input="x\n", catch_exceptions=False)


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._own, theirs = pty.openpty()
        start = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str, press: Callable[[], object] | None = None) -> None:
        """Wait for a text; what comes up to its end is looked at no more.

        What is pressed is pressed again after a while: Python's editor of lines notices no signal that comes just
        before it waits for input.
        """
        self._wait(lambda: text in self.seen, press)
        self.seen = self.seen.split(text, 1)[1]

    def more_than(self, count: int) -> None:
        """Wait for so many characters."""
        self._wait(lambda: len(self.seen) > count)

    def _wait(self, there: Callable[[], bool], press: Callable[[], object] | None = None) -> None:
        ends, next_press = time.monotonic() + 60, time.monotonic()
        while not there():
            if press is not None and time.monotonic() >= next_press:
                press()
                next_press = time.monotonic() + 2
            assert time.monotonic() < ends, self.seen[-2000:]
            if _has_something(self._own, 0.2):
                self.seen += os.read(self._own, 1 << 16).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def end(self, number: int = 0) -> int:
        """Wait for the end, or bring it by a signal; what is printed last is taken off the terminal, which would hold
        the program up."""
        ends, next_signal = time.monotonic() + 60, time.monotonic()
        while self.process.poll() is None and time.monotonic() < ends:
            if number and time.monotonic() >= next_signal:
                os.kill(self.process.pid, number)
                next_signal = time.monotonic() + 5
            if _has_something(self._own, 0.05):
                try:
                    os.read(self._own, 1 << 16)
                except OSError:
                    break
        code = self.process.wait(60)
        os.close(self._own)
        return code


def test_control_c_stops_the_answer_and_not_the_program(tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.session"
    terminal = Terminal(
        "-m", "npumatmul.cli", "chat", "-m", str(tiny.path), "--scheme", "float32", "-n", "1000000",
        "--session", str(file),
    )  # fmt: skip
    terminal.until("Ctrl-D leaves")
    terminal.until("> ")
    terminal.until("(Ctrl-D or /exit leaves)", lambda: terminal.type("\x03"))
    terminal.until("> ")
    stops = 0
    for message in ("one", "two"):
        terminal.type(f"{message}\n")
        terminal.until(f"{message}\r\n")
        terminal.more_than(40)  # the answer is under way
        terminal.type("\x03")
        terminal.until("(stopped)")
        terminal.until("> ")
        stops += 1
    assert stops == 2
    terminal.type("/history\n")
    terminal.until("user: one")
    terminal.until("user: two")
    terminal.until("> ")
    terminal.type("\x04")
    terminal.until(f"saved to {file}")
    assert terminal.end() == 0
    with npumatmul.llm.load(tiny.path, "float32") as model:
        session = model.load_session(file)
        assert [each["role"] for each in session.messages] == ["user", "assistant"] * 2
        assert all(each["content"] for each in session.messages)


def test_a_terminal_obeys_nothing_that_others_wrote_and_a_signal_loses_nothing(tiny: Any, tmp_path: Path) -> None:
    """Neither a file from somewhere nor a model clears the screen; who closes the terminal finds the conversation."""
    theirs, file = tmp_path / "theirs", tmp_path / "talk.session"
    with npumatmul.llm.load(tiny.path, "float32") as model:
        said = [{"role": "system", "content": "\x1b[2J\x9b31m\ttab"}, {"role": "\x07user", "content": "a\rb\nc"}]
        model.session(said).save(theirs)
    terminal = Terminal(
        "-m", "npumatmul.cli", "chat", "-m", str(tiny.path), "--scheme", "float32", "-n", "5", "--session", str(file)
    )
    terminal.until("Ctrl-D leaves")
    for line in (f"/load {theirs}", "/system", "/history", "/reset", "/system -", "hello"):
        terminal.type(f"{line}\n")
    terminal._wait(lambda: "(ended by" in terminal.seen)
    seen = (
        terminal.seen.split("(ended by")[0].replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    )  # of the editor of lines
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", seen), repr(seen)
    assert "\\x1b[2J\\x9b31m" in seen
    assert terminal.end(signal.SIGTERM) == 128 + signal.SIGTERM
    with npumatmul.llm.load(tiny.path, "float32") as model:
        assert [each["role"] for each in model.load_session(file).messages] == ["user", "assistant"]


def test_what_is_piped_on_is_as_the_model_wrote_it(model: Model, monkeypatch: Any, capsys: Any) -> None:
    talked = Talked(model, "/system \x1b[2J\n/system", monkeypatch, capsys)
    assert "\\x1b[2J" in talked.err
    for watched, seen in ((False, "a\x1b[2J\n"), (True, "a\\x1b[2J\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda watched=watched: watched, raising=False)
        terminal.stream("a\x1b[2J\n")
        files.write_output(files.STANDARD, "a\x1b[2J\n")
        assert capsys.readouterr().out == 2 * seen


def test_messages_of_a_file_may_lack_a_content(model: Model, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    model.session([{"role": "system"}, {"role": "user"}]).save(tmp_path / "file")
    talked = Talked(
        model, f"/load {tmp_path / 'file'}\n/system\n/history\n/retry\none\n/reset\none", monkeypatch, capsys
    )
    assert 'message 0 has no "content"' in talked.err
