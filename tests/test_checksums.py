"""Checksums: zlib's values, however they are found."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npumatmul.errors import UnusableFileError
from npumatmul.files import reading
from npumatmul.files.reading import RegularFile
from npumatmul.host import checksums
from npumatmul.host.checksums import SummedReader, array_checksum, checksum_sets, crc32_by

#: Bytes of a piece that a thread reads at once.
PIECE = 1 << 18


@pytest.mark.parametrize("index", range(len(checksum_sets())), ids=checksum_sets())
def test_every_way_gives_zlibs_value(index: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 70_000, np.uint8)
    for start, stop in ((0, 0), (1, 2), (3, 18), (5, 69), (0, 64), (7, 270), (1, 1029), (0, 70_000)):
        part, half = data[start:stop], (start + stop) // 2
        assert crc32_by(index, part) == zlib.crc32(part.tobytes())
        assert crc32_by(index, data[half:stop], crc32_by(index, data[start:half])) == zlib.crc32(part.tobytes())


def test_arrays_of_any_strides_have_the_checksum_of_their_elements() -> None:
    array = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    for each in (array, array.T, array[::3, ::-2], array[0, 0], array[:0]):
        assert array_checksum(each) == zlib.crc32(each.tobytes())
        assert array_checksum(each, 77) == zlib.crc32(each.tobytes(), 77)


def test_a_way_that_this_machine_does_not_have() -> None:
    with pytest.raises(ValueError, match=f"no way number {len(checksum_sets())}, only scalar"):
        crc32_by(len(checksum_sets()), np.zeros(1, np.uint8))


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(1).bytes(9 * PIECE + 5)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "f").write_bytes(content)
    return tmp_path / "f"


@pytest.mark.parametrize("processors", [1, 2, 3, 64])
def test_a_file_is_summed_up_while_it_is_read(
    path: Path, content: bytes, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    with path.open("rb") as file:
        for start, size in ((0, 0), (5, 1), (0, PIECE), (1, PIECE + 1), (77, 4 * PIECE), (0, len(content))):
            memory, reader = np.zeros(size, np.uint8), SummedReader()
            assert reader(file.fileno(), memory, start) == size
            assert memory.tobytes() == content[start : start + size]
            assert reader.checksum == zlib.crc32(content[start : start + size])
            assert reader(file.fileno(), memory[:3], start) == memory[:3].size  # what follows is added
            assert reader.checksum == zlib.crc32(content[start : start + size] + memory[:3].tobytes())


def test_a_file_that_ends_or_cannot_be_read_is_not_summed_up(path: Path, content: bytes) -> None:
    memory, reader = np.zeros(len(content) + PIECE, np.uint8), SummedReader()
    with path.open("rb") as file:
        assert reader(file.fileno(), memory, 10) == len(content) - 10
        assert reader(file.fileno(), memory, len(content)) == 0
    assert reader.checksum == 0
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            reader(directory, memory, 0)
    finally:
        os.close(directory)
    with path.open("rb") as file, pytest.raises(ValueError, match="8 bytes at -1 of descriptor"):
        reader(file.fileno(), memory[:8], -1)


def test_what_is_large_is_shared_by_the_processors_and_read_in_calls(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    class Counting:
        def npumm_read_summed(self, *arguments: Any) -> int:
            asked.append((arguments[4], arguments[5]))  # bytes, threads
            arguments[6]._obj.value = sum(size for size, _ in asked)
            return int(arguments[4])

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(checksums, "library", Counting)
    monkeypatch.setattr(reading, "_AT_ONCE", 4 * PIECE)
    reader = SummedReader()
    with RegularFile(path) as opened:
        opened.read_into(0, np.empty(2 * PIECE - 1, np.uint8), reader)
        opened.read_into(0, np.empty(9 * PIECE, np.uint8), reader)
    assert asked == [(2 * PIECE - 1, 1), (4 * PIECE, 3), (4 * PIECE, 3), (PIECE, 1)]
    assert reader.checksum == 11 * PIECE - 1


def test_a_file_that_became_shorter_says_where_however_many_threads_read(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processors in (1, 4):
        path.write_bytes(content)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, n=processors: set(range(n)))
        with RegularFile(path) as file:
            os.truncate(path, 3 * PIECE + 7)
            with pytest.raises(UnusableFileError, match=f"{len(content)} bytes, then {3 * PIECE + 7}$"):
                file.read_into(0, np.empty(len(content), np.uint8), SummedReader())


def test_no_threads_are_left_and_a_forked_child_reads_as_well(path: Path, content: bytes) -> None:
    memory = np.empty(len(content), np.uint8)
    with path.open("rb") as file:
        for _ in range(20):
            SummedReader()(file.fileno(), memory, 0)
        child = os.fork()
        if child == 0:
            reader = SummedReader()
            reader(file.fileno(), memory, 0)
            os._exit(reader.checksum != zlib.crc32(content))
        assert os.waitpid(child, 0)[1] == 0
