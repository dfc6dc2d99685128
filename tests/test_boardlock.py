"""One process at a time on a board; simulated devices play the board's part where they are asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import npumatmul as npu
from npumatmul.errors import BoardInUseError, ClosedError

HOLDER = "import npumatmul as npu, sys\nd = npu.Device('sim')\nprint('open', flush=True)\nsys.stdin.read()"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NPUMATMUL_SHARE_BOARD", raising=False)
    monkeypatch.setenv("NPUMATMUL_LOCK_SIMULATOR", "1")
    monkeypatch.setenv("NPUMATMUL_LOCK_FILE", str(tmp_path / "board.lock"))
    return tmp_path / "board.lock"


@pytest.fixture
def other(board: Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_another_process_is_named_and_can_be_overridden(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BoardInUseError, match=rf"process {other.pid} \(.*python.*-c.*NPUMATMUL_SHARE_BOARD=1"
    ) as raised:
        npu.Device("sim")
    assert "\n" not in str(raised.value)  # though that program has several lines
    with npu.Device("sim", share_board=True) as device:
        assert device.usable
    monkeypatch.setenv("NPUMATMUL_SHARE_BOARD", "1")
    with npu.Device("sim"):
        pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_leaves_the_board(other: subprocess.Popen[str], how: signal.Signals) -> None:
    other.send_signal(how)
    other.wait(timeout=30)
    with npu.Device("sim"):
        pass


def test_devices_of_one_process_share_it_and_the_last_one_leaves(board: Path) -> None:
    probe = "import npumatmul as npu; npu.Device('sim').close(); print('free')"

    def is_free() -> bool:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or "BoardInUseError" in done.stderr, done.stderr
        return done.returncode == 0

    first, second = npu.Device("sim"), npu.Device("sim:rk3576")
    assert not is_free()
    first.close()
    assert not is_free()
    second.close()
    assert is_free()
    third = npu.Device("sim")
    buffer = third.buffer(4096)
    view = buffer.array
    third.__exit__(None, None, None)
    assert not is_free(), "memory of the board is still in use"
    del view, buffer, third
    assert is_free()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_inherit_the_board(board: Path) -> None:
    read, write = os.pipe()
    device = npu.Device("sim")
    child = os.fork()
    if child == 0:
        found = "nothing"
        try:
            try:
                device.buffer(64)
            except ClosedError:
                found = "closed"
            try:
                npu.Device("sim")
            except BoardInUseError as error:
                found += f", in use by {os.getppid()}" if f"process {os.getppid()} " in str(error) else str(error)
            with npu.Device("sim", share_board=True) as own:
                found += f", own {own.buffer(64).nbytes}"
        except BaseException as error:
            found += repr(error)
        os.write(write, found.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4096).decode() == f"closed, in use by {os.getpid()}, own 64"
    os.close(read)
    os.close(write)
    with pytest.raises(BoardInUseError):  # the child's end took nothing from the parent
        _in_another_process()
    device.close()
    _in_another_process()


def _in_another_process() -> None:
    code = "import npumatmul as npu; npu.Device('sim').close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if "BoardInUseError" in done.stderr:
        raise BoardInUseError(done.stderr)
    assert done.returncode == 0, done.stderr


def test_a_place_without_a_lock_is_no_reason_not_to_work(
    board: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NPUMATMUL_LOCK_FILE", str(board.parent / "missing" / "board.lock"))
    with npu.Device("sim"):
        pass
    assert "no lock can be taken" in caplog.text


def test_links_are_not_followed(board: Path, caplog: pytest.LogCaptureFixture) -> None:
    victim = board.parent / "victim"
    victim.write_text("precious")
    board.symlink_to(victim)
    with npu.Device("sim"):
        pass
    assert victim.read_text() == "precious"
    assert "no lock can be taken" in caplog.text


def test_nothing_else_is_overwritten(board: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in (b"precious", b"process " + bytes(10_000)):
        board.write_bytes(content)
        with npu.Device("sim"):
            pass
        assert board.read_bytes() == content
        assert "is no lock of npumatmul" in caplog.text
        caplog.clear()
    board.unlink()
    os.mkfifo(board)
    with npu.Device("sim"):
        pass
    assert "is no lock of npumatmul" in caplog.text


def test_a_program_that_closes_the_descriptor(board: Path) -> None:
    """As those do that become daemons: the number is another file's then, and the lock is given up."""
    first = npu.Device("sim")
    ours = next(number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number, board))
    victim = board.parent / "victim"
    victim.write_text("precious")
    theirs = os.open(victim, os.O_RDWR)
    os.dup2(theirs, ours)
    _in_another_process()
    with npu.Device("sim"), pytest.raises(BoardInUseError):  # which takes it anew
        _in_another_process()
    with pytest.raises(BoardInUseError):
        _in_another_process()
    os.closerange(ours, ours + 1)
    os.dup2(theirs, ours)
    first.close()
    assert victim.read_text() == "precious"
    assert _is_open(ours, victim)
    os.close(theirs)
    os.close(ours)
    _in_another_process()


def _is_open(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def test_simulated_devices_take_no_lock_by_themselves(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPUMATMUL_LOCK_SIMULATOR")
    with npu.Device("sim"):
        assert not board.exists()
