"""safetensors files, read and written one tensor after the other, against the package safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter, WrongTensorFile

DTYPES = [np.uint8, np.int8, np.int32, np.float16, np.float32]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(min_size=1, max_size=6), ARRAYS, max_size=6), st.dictionaries(st.text(), st.text()))
def test_the_package_reads_what_is_written(tmp_path: Path, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    arrays = {name: array for name, array in arrays.items() if name < "\ud800" or name > "\udfff"}
    with TensorWriter(tmp_path / "f") as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.finish(metadata)
    theirs = load_file(tmp_path / "f")
    with safe_open(tmp_path / "f", "np") as opened:
        assert (opened.metadata() or {}) == metadata
    ours = TensorFile(tmp_path / "f")
    assert ours.metadata == metadata
    for name, array in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert found.tobytes() == array.tobytes()
    assert all(name.startswith("padding/") for name in ours.names - arrays.keys())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("abc/.", min_size=1, max_size=6), ARRAYS, max_size=6))
def test_what_the_package_writes_is_read(tmp_path: Path, arrays: dict[str, Any]) -> None:
    save_file(arrays, tmp_path / "f", {"some": "text"})
    ours = TensorFile(tmp_path / "f")
    assert ours.names == arrays.keys()
    assert all(ours[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_tensors_are_aligned_in_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "f") as writer:
        for name, size in (("a", 3), ("b", 64), ("c", 65), ("a/1", 10000), ("a/2", 5)):
            writer.add(name, np.arange(size, dtype=np.float32 if name == "c" else np.uint8))
        writer.finish({})
    file = TensorFile(tmp_path / "f")
    for name in ("a", "b", "c"):
        assert file.place(name)[0] % 64 == 0
        assert not file[name].flags.writeable
    assert sorted(file.under("a")) == ["a/1", "a/2"]
    assert file.nbytes(file.under("a")) == 10005
    assert file["a/1"].tolist() == np.arange(10000).astype(np.uint8).tolist()
    assert file.under("nothing") == ()
    with pytest.raises(KeyError):
        file["d"]


def test_a_file_appears_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    for fail in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(fail), TensorWriter(tmp_path / "f"):
            raise fail
        with TensorWriter(tmp_path / "f") as writer:
            writer.add("a", np.zeros(3, np.uint8))
        assert list(tmp_path.iterdir()) == []
    with TensorWriter(tmp_path / "f") as writer:
        writer.add("a", np.zeros(3, np.uint8))
        with pytest.raises(ValueError, match="already"):
            writer.add("a", np.zeros(3, np.uint8))
        writer.finish({})
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    with pytest.raises(FileNotFoundError), TensorWriter(tmp_path / "nowhere" / "f"):
        pass


@pytest.mark.parametrize("room", [64, 4096])
def test_a_writer_with_room_for_the_header_writes_the_same_tensors(tmp_path: Path, room: int) -> None:
    arrays = {f"a/{i}": np.arange(i * 37, dtype=np.int32) for i in range(5)}  # a header of more than 64 bytes
    with TensorWriter(tmp_path / "f", room=room) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.finish({"some": "text"})
    theirs = load_file(tmp_path / "f")
    assert all(theirs[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert TensorFile(tmp_path / "f").metadata == {"some": "text"}
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    before = (tmp_path / "f").read_bytes()
    assert int.from_bytes(before[:8], "little") + 8 == room or room == 64
    with TensorWriter(tmp_path / "f", room=room) as writer:
        writer.add("a", np.zeros(3, np.uint8))
    with pytest.raises(RuntimeError, match="mine"), TensorWriter(tmp_path / "f", room=room) as writer:
        raise RuntimeError("mine")
    assert (tmp_path / "f").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        TensorFile(tmp_path)
    for data in (b"", b"abc", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(WrongTensorFile):
            TensorFile(tmp_path / "f")
    save_file({"a": np.zeros(3, np.float64)}, tmp_path / "f")
    with pytest.raises(WrongTensorFile, match="type F64"):
        TensorFile(tmp_path / "f")["a"]
