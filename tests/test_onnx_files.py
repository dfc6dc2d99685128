"""Files of ONNX models, those of their weights, and the command over them."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from test_onnx import CPU, expected_of, model_of, randn, simple, value
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul.chips import chip
from npumatmul.cli.app import app
from npumatmul.onnx import InferenceSession, compare, inspect

FOLDER = "session.model_external_initializers_file_folder_path"
node = helper.make_node


def two_files(folder: Path, k: int = 64) -> tuple[Path, Any]:
    """A product and a table that stays, both in a file beside the model."""
    nodes = [node("Gather", ["table", "i"], ["x"]), node("MatMul", ["x", "w"], ["y"], "product")]
    model = model_of(
        nodes, [value("i", ["m"], TensorProto.INT64)], [value("y", None)], table=randn(9, k), w=randn(k, 40)
    )
    saved = onnx.ModelProto()
    saved.CopyFrom(model)
    folder.mkdir(exist_ok=True)
    onnx.save(saved, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "model.onnx", model


def test_weights_in_a_file_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = two_files(tmp_path / "folder")
    feeds = {"i": np.array([3, 0, 8])}
    wanted = expected_of(model, feeds)[0]
    monkeypatch.chdir(tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(FOLDER, str(path.parent))
    given: Any
    for given, how in ((path, {}), (path.relative_to(tmp_path), {}), (path.read_bytes(), {"sess_options": options})):
        session = InferenceSession(given, **how)
        np.testing.assert_allclose(session.run(None, feeds)[0], wanted, atol=0.05)
        assert session.report.left == {}
    assert options.get_session_config_entry(FOLDER) == str(path.parent)
    monkeypatch.chdir(path.parent)  # as for ONNX Runtime, bytes name files of the working directory
    for given in (path.name, path.read_bytes(), onnx.load(path.name, load_external_data=False)):
        np.testing.assert_allclose(InferenceSession(given).run(None, feeds)[0], wanted, atol=0.05)
    assert [each.rows for each in inspect(path, chip("rk3588"), sizes={"m": 7})] == [7]
    assert all(each.cosine > 0.9999 for each in compare(path, feeds))
    assert len(InferenceSession(path, calibration=[feeds], scheme="w8a8").report) == 1


def test_somebodys_options_are_as_they_were(tmp_path: Path) -> None:
    path, _ = two_files(tmp_path)
    options = onnxruntime.SessionOptions()
    InferenceSession(path, options)
    assert options.get_session_config_entry(FOLDER) == ""
    onnx.save(simple(), tmp_path / "other.onnx")
    assert len(InferenceSession(tmp_path / "other.onnx", options).report) == 1


def test_older_versions_of_onnx_runtime_are_given_all_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = two_files(tmp_path / "folder")
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    feeds = {"i": np.array([3, 0, 8])}
    np.testing.assert_allclose(InferenceSession(path).run(None, feeds)[0], expected_of(model, feeds)[0], atol=0.05)


@pytest.mark.parametrize("kind", ["missing", "short", "a folder"])
def test_a_file_of_weights_that_is_none_is_named(kind: str, tmp_path: Path) -> None:
    path, _ = two_files(tmp_path)
    weights = tmp_path / "weights.bin"
    if kind == "short":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        weights.unlink()
        if kind == "a folder":
            weights.mkdir()
    wanted: Any = {"missing": FileNotFoundError}.get(kind, npu.errors.ModelError)
    for call in (lambda: InferenceSession(path), lambda: inspect(path, chip("rk3588"))):
        with pytest.raises(wanted) as caught:
            call()
        assert "weights.bin" in str(caught.value)
        assert "no ONNX model" not in str(caught.value)
    if kind == "missing":
        assert caught.value.filename == str(weights)
        with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
            InferenceSession(path.read_bytes())


def test_files_outside_of_the_models_folder_are_not_read(tmp_path: Path) -> None:
    path, _ = two_files(tmp_path / "inside")
    (tmp_path / "inside" / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for each in model.graph.initializer:
        next(entry for entry in each.external_data if entry.key == "location").value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(npu.errors.ModelError, match="not read"):
        InferenceSession(path)


def test_models_above_2_gb_take_no_memory_for_what_stays(tmp_path: Path) -> None:
    """A table of 2.4 GB, in a file with a hole: it is where it was, and only rows that are asked for are read."""
    rows = 600_000_000 // 256
    table = TensorProto(name="table", data_type=1, dims=[rows, 256], data_location=TensorProto.EXTERNAL)
    for key, said in (("location", "table.bin"), ("offset", "0"), ("length", str(rows * 1024))):
        table.external_data.add(key=key, value=said)
    row = randn(256)
    with open(tmp_path / "table.bin", "wb") as file:
        file.truncate(rows * 1024)
        file.seek((rows - 2) * 1024)
        file.write(row.tobytes())
    nodes = [node("Gather", ["table", "i"], ["x"]), node("MatMul", ["x", "w"], ["y"], "product")]
    model = model_of(nodes, [value("i", ["m"], TensorProto.INT64)], [value("y", None)], w=randn(256, 64))
    model.graph.initializer.append(table)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session = InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {"i": np.array([rows - 2, 5])})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    np.testing.assert_allclose(y[0], row @ randn(256, 64), atol=0.1)
    assert not y[1].any()


# ---- the command -----------------------------------------------------------------------------------------------------


def called(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["onnx", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(simple(), "model.onnx")
    two_files(tmp_path / "folder")
    (tmp_path / "lost").mkdir()
    os.rename("folder/model.onnx", "lost/model.onnx")
    onnx.save(simple(), "folder/model.onnx")
    Path("empty.onnx").touch()
    torch.save({"a": torch.zeros(3)}, "model.pt")
    Path("model.safetensors").write_bytes((2).to_bytes(8, "little") + b'{"')
    Path("text.onnx").write_text("hello")
    for name, array in (("x", randn(2, 64)), ("wide", randn(2, 64).astype(np.float64)), ("long", randn(2, 65))):
        np.save(name, array)
    np.savez("several", x=randn(2, 64), y=randn(2, 64))
    Path("none.npy").touch()
    return tmp_path


@pytest.mark.parametrize("command", ["inspect", "run", "compare"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("folder", "this is a folder, and a model is a file; in it is model.onnx"),
        ("empty.onnx", "it is empty"),
        ("model.pt", "torch.onnx.export makes an ONNX model"),
        ("model.safetensors", "a safetensors file"),
        ("text.onnx", "this is no ONNX model"),
        ("missing.onnx", "No such file"),
        ("lost/model.onnx", "weights.bin"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_is_no_model_is_told_apart(command: str, model: str, message: str) -> None:
    done = called(command, model)
    assert done.exit_code
    assert isinstance(done.exception, npu.errors.ModelError | OSError)
    assert message in str(done.exception)
    assert os.path.basename(model) in str(done.exception)


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "z=x.npy"], "no input 'z'; it has 'x'"),
        (["-i", "x.npy"], "name=file.npy"),
        (["-i", "x=x.npy", "-i", "x=x.npy"], "given twice"),
        (["-i", "x=wide.npy"], "holds float64 and the model takes float32"),
        (["-i", "x=long.npy"], r"shape (2, 65); the model takes (m, 64)"),
        (["-i", "x=several.npz"], "several arrays"),
        (["-i", "x=none.npy"], "no .npy file"),
        (["-i", "x=missing.npy"], "missing.npy"),
        (["--size", "n=3"], "no input of the model has a dimension 'n'; those that it leaves open: 'm'"),
        (["--size", "m"], "as length=128"),
        (["--scheme", "w9a9"], "w9a9"),
    ],
)
@pytest.mark.usefixtures("files")
def test_inputs_that_do_not_fit_are_told_before_anything_runs(command: str, arguments: list[str], message: str) -> None:
    done = called(command, "model.onnx", *arguments)
    assert done.exit_code
    assert isinstance(done.exception, ValueError | OSError)
    assert message in str(done.exception)


@pytest.mark.usefixtures("files")
def test_the_command_says_what_is_where_and_how_far_off() -> None:
    rows = json.loads(called("inspect", "model.onnx", "--size", "m=9", "--json").stdout)
    assert [(row["name"], row["rows"], row["macs"]) for row in rows] == [("product", 9, 9 * 64 * 32)]
    with pytest.raises(ValueError, match="no input of the model has a dimension 'n'"):
        inspect("model.onnx", chip("rk3588"), sizes={"n": 3})
    done = called("run", "model.onnx", "-i", "x=x.npy", "-o", "y.npz")
    assert done.exit_code == 0
    wanted = onnxruntime.InferenceSession("model.onnx", providers=CPU).run(None, {"x": np.load("x.npy")})[0]
    np.testing.assert_allclose(np.load("y.npz")["y"], wanted, atol=0.05)
    rows = json.loads(called("compare", "model.onnx", "-i", "x=x.npy", "--json").stdout)
    assert [row["name"] for row in rows] == ["product", "y"]
    assert all(row["cosine"] > 0.9999 for row in rows)


@pytest.mark.usefixtures("files")
def test_what_onnx_runtime_says_is_one_line() -> None:
    onnx.save(
        model_of([node("Add", ["x", "w"], ["y"])], [value("x", ["m"])], [value("y", None)], w=randn(4)), "add.onnx"
    )
    np.save("five", randn(5))
    done = called("run", "add.onnx", "-i", "x=five.npy")
    assert isinstance(done.exception, RuntimeError)
    assert str(done.exception).startswith("add.onnx: ONNX Runtime says: ")
    assert "\n" not in str(done.exception)
    assert "ONNXRuntimeError" not in str(done.exception)
