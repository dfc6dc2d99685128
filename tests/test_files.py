"""Opening, writing and locking files: what is no file is refused at once, and what is not finished leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul.bench import parse_shapes
from npumatmul.cli.files import read_matrix
from npumatmul.cli.files import read_text as command_text
from npumatmul.errors import NpuError, UnusableFileError
from npumatmul.files.folders import cache_folder, settings_folder
from npumatmul.files.locking import locked
from npumatmul.files.reading import RegularFile, parse_json, read_bytes, read_json, read_text, shown
from npumatmul.files.writing import check_output, check_target, replacing, scratch_folder, write_bytes, write_text
from npumatmul.llm import GGUFFile
from npumatmul.llm.files.source import CheckedSource, FileSource
from npumatmul.llm.quantize import Recipe, is_quantized, load_quantized
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter
from npumatmul.planning.choices import Machine, TuningCache, WeightShape

TWO = np.full((1, 1), 2, np.int8)


def no_files(folder: Path) -> dict[str, Path]:
    """Things in a folder that have names and are no files."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
    with (folder / "sparse").open("wb") as file:
        file.write(b"GGUF" + bytes(4096))
        file.truncate(4 << 30)
    with (folder / "empty sparse").open("wb") as file:
        file.truncate(4 << 30)
    (folder / "link").symlink_to("pipe")
    (folder / "circle").symlink_to("circle")
    return {
        name: folder / name for name in ("pipe", "folder", "socket", "sparse", "empty sparse", "link", "circle")
    } | {"device": Path("/dev/zero")}


READERS: dict[str, Callable[[Path], Any]] = {
    "read_bytes": read_bytes,
    "read_text": read_text,
    "read_json": read_json,
    "safetensors": TensorFile,
    "packed weights": npu.load_packed,
    "opened packed weights": npu.open_packed,
    "GGUF": GGUFFile,
    "quantized model": load_quantized,
    "recipe": Recipe.read,
    "shapes": lambda path: parse_shapes(str(path) + ".csv"),
    "text": command_text,
    "matrix": lambda path: read_matrix(path, "weight"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    for name, path in no_files(tmp_path).items():
        if reader is READERS["shapes"]:
            path = path.with_name(path.name + ".csv") if name == "device" else path.rename(tmp_path / f"{name}.csv")
            path = path.with_suffix("")
            if name == "link":
                continue
        with pytest.raises((OSError, NpuError)) as caught:
            reader(path)
        assert name == "circle" or str(path) in str(caught.value)


def test_what_only_looks_whether_is_not_kept_waiting(tmp_path: Path) -> None:
    for path in no_files(tmp_path).values():
        assert not is_quantized(path) or path.name == "sparse"


def test_caches_that_are_no_files_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, weight = Machine("rk3588", True, "2.3.2", "0.9.8"), WeightShape(64, 64, npu.MatmulType.INT8_INT8_INT32)
    for path in no_files(tmp_path).values():
        monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(path))
        with pytest.warns(UserWarning, match="ignored"), npu.Device("sim:rk3588") as device:
            assert npu.matmul(TWO, TWO, device=device).tolist() == [[4]]
        folder = tmp_path / f"of {path.name}"
        folder.mkdir()
        (folder / machine.file_name).symlink_to(path)
        with pytest.warns(RuntimeWarning, match="ignored"):
            assert TuningCache(machine, folder).find(weight) is None


def test_files_with_small_holes_are_files(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"a" * (48 << 20))
        file.seek(8 << 20, os.SEEK_CUR)
        file.write(b"b")
    with RegularFile(tmp_path / "f") as opened:
        assert opened.read(opened.size - 2, 2).tobytes() == b"\0b"
    with (tmp_path / "f").open("wb") as file:  # small, whatever is missing
        file.truncate(1 << 20)
    assert read_bytes(tmp_path / "f") == bytes(1 << 20)
    with pytest.raises(UnusableFileError, match="at most 5 are read"):
        read_bytes(tmp_path / "f", 5)


def test_a_program_that_closes_the_descriptor(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "other"
    path.write_bytes(b"ours" * 1000)
    other.write_bytes(b"else" * 1000)
    file = RegularFile(path)
    (ours,) = (number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number, path))
    theirs = os.open(other, os.O_RDONLY)
    os.dup2(theirs, ours)
    with pytest.raises(UnusableFileError, match="closed its descriptor"):
        file.read(0, 4)
    file.close()
    assert os.pread(ours, 4, 0) == b"else"  # not closed
    os.close(ours)
    os.close(theirs)


def _is_open(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def test_files_that_become_shorter_or_are_written_to(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8).tobytes()
    path.write_bytes(content)
    file = RegularFile(path)
    checked = CheckedSource(FileSource(file, 1000, 90_000))
    for start, count in ((0, 90_000), (4095, 2), (89_999, 1), (5, 0)):
        assert checked.read(start, count).tobytes() == content[1000 + start :][:count]
    os.utime(path, ns=(0, 0))
    with pytest.raises(UnusableFileError, match="was changed"):
        file.check_unchanged()
    with path.open("r+b") as writer:
        writer.seek(51_000)
        writer.write(b"x" if content[51_000:51_001] != b"x" else b"y")
    assert checked.read(0, 40_000).tobytes() == content[1000:41_000]
    with pytest.raises(UnusableFileError, match="changed since it was opened"):
        checked.read(50_001, 1)  # in the page
    os.truncate(path, 4000)
    with pytest.raises(UnusableFileError, match="became shorter"):
        file.read(3999, 2)
    with pytest.raises(UnusableFileError, match="are asked for"):
        file.read(0, 100_001)
    file.close()
    file.close()
    assert file.closed
    with pytest.raises(ValueError, match="has been closed"):
        file.read(0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "too deeply"), ('{"a": 1, "a": 2}', "'a' twice"), ("", "Expecting value")],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_values_in_messages_are_short() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, {"a" * 1000: "b" * 1000}, 10**4000, [list(range(1000))] * 1000):
        assert len(shown(value)) < 400


# --- writing


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_is_replaced_with_what_it_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to("f")
    write_text(tmp_path / "link", "new ü")
    assert path.read_text("utf-8") == "new ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (tmp_path / "link").is_symlink()
    write_bytes(tmp_path / "g", b"1")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o666 & ~umask
    assert left(tmp_path) == ["f", "g", "link"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "no room"), KeyboardInterrupt(), MemoryError()])
def test_what_is_not_finished_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "f").write_text("old")

    def write() -> None:
        with scratch_folder(tmp_path) as folder, replacing(tmp_path / "f") as file:
            (folder / "g").write_text("half")
            file.write(b"half")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert left(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_no_room_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from npumatmul.ops.packed.files.reader import TensorWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    with TensorWriter(sys.argv[1]) as writer:\n"
        "        writer.add('a', np.zeros(2 << 20, np.uint8)); writer.finish({})\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "f"], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_save_clears_what_killed_ones_left(tmp_path: Path, ended_by: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from npumatmul.files.writing import replacing, scratch_folder\n"
        "with replacing(sys.argv[1] + '/f') as file, scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    file.write(b'half'); (folder / 'g').write_text('half'); print(flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    write_text(tmp_path / "g", "")
    assert len(left(tmp_path)) == 3, "what is still being written stays"
    process.send_signal(ended_by)
    process.wait()
    process.stdout.close()
    (tmp_path / ".npumatmul-mine").write_text("")  # of another name: not ours
    (tmp_path / ".npumatmul-link.part").symlink_to("g")
    write_text(tmp_path / "g", "")
    assert left(tmp_path) == [".npumatmul-link.part", ".npumatmul-mine", "g"]


def test_nothing_is_written_onto_its_source(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_text("precious")
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "sub").mkdir()
    for name in ("model", "link", "hard", "sub/../model"):
        for write in (
            lambda path: write_text(path, "new", [source]),
            lambda path: check_target(path, [tmp_path / "none", source]),
            lambda path: check_output(path, [source]),
            lambda path: TensorWriter(path, [source]).__enter__(),
        ):
            with pytest.raises(UnusableFileError, match=r"which is the same file; give another name"):
                write(tmp_path / name)
    assert source.read_text() == "precious"
    write_text(tmp_path / "other", "new", [source])


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    things = no_files(tmp_path)
    for name in ("pipe", "folder", "socket", "link", "device"):
        with pytest.raises((UnusableFileError, IsADirectoryError)), replacing(things[name]):
            pass
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_text(tmp_path / "nowhere" / "f", "")
    with pytest.raises(OSError, match="No such device or address"):  # at once: nobody reads it
        write_text(things["pipe"], "text")


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path: Path) -> None:
    write_text("/dev/null", "gone")
    check_output("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    code = "from npumatmul.files.writing import write_text; print('1', flush=True); write_text('/dev/stdout', '2\\n')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "1\n2\n"


# --- locking


def test_a_lock_keeps_threads_and_processes_out(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "f", 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with locked(path), pytest.raises(UnusableFileError, match=r"held its lock for 0\.05 s"), locked(path, 0.05):
        pass
    with pytest.raises(RuntimeError, match="own"), locked(path):
        raise RuntimeError("own")
    with locked(path):
        child = os.fork()  # holds the descriptor, and must not hold the lock
        if not child:
            signal.pause()
    try:
        with locked(path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (tmp_path / ".g.lock").symlink_to("f")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "g"):
        pass
    os.mkfifo(tmp_path / ".h.lock")
    with pytest.raises(UnusableFileError, match="no regular file"), locked(tmp_path / "h"):
        pass


def test_one_rule_for_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for relative in ("", "relative/folder"):
        environment = {"XDG_CACHE_HOME": relative, "XDG_CONFIG_HOME": relative}
        assert cache_folder("sim", environment=environment) == Path.home() / ".cache" / "npumatmul" / "sim"
        assert settings_folder(environment) == Path.home() / ".config" / "npumatmul"
    assert settings_folder({"XDG_CONFIG_HOME": "/a"}) == Path("/a/npumatmul")

    def homeless(_: str) -> str:
        return "~"

    monkeypatch.setattr(os.path, "expanduser", homeless)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("NPUMATMUL_PROBE_FILE", raising=False)
    with pytest.raises(UnusableFileError, match="set XDG_CACHE_HOME"):
        cache_folder(environment={})
    with npu.Device("sim:rk3588") as device:  # a user without a home can compute
        assert npu.matmul(TWO, TWO, device=device).tolist() == [[4]]


@pytest.mark.parametrize("how", ["replacing", "tensors", "lock"])
def test_errors_name_the_file_that_was_asked_for(how: str) -> None:
    """And not the one that it is while it is written; nobody may write into /proc, not even root."""
    path = Path("/proc/choices.json")
    work = {
        "replacing": lambda: write_bytes(path, b"some"),
        "tensors": lambda: TensorWriter(path).__enter__(),
        "lock": lambda: locked(path).__enter__(),
    }
    with pytest.raises(OSError, match=r"'/proc/choices\.json'") as raised:
        work[how]()
    assert raised.value.filename == str(path)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/f'"):
        write_bytes(tmp_path / "f", b"some")
    assert list(tmp_path.iterdir()) == []
