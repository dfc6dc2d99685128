"""Which library is chosen, what is said when none can be, and what an incomplete one still does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compiling import compile_c
from hypothesis import given
from hypothesis import strategies as st

from npumatmul import sim
from npumatmul.chips import capabilities, chip
from npumatmul.errors import DeviceError, LibraryNotFoundError, UnsupportedByRuntime
from npumatmul.rknn import MatmulInfo, Runtime, RuntimeVersion
from npumatmul.rknn.discovery import discover, load, simulator_path
from npumatmul.rknn.socs import COMPATIBLE


@pytest.fixture
def rk3588_tree(tmp_path: Path) -> Path:
    tree = tmp_path / "compatible"
    tree.write_bytes(b"xunlong,orangepi-5\0rockchip,rk3588s\0")
    return tree


@pytest.fixture
def laptop_tree(tmp_path: Path) -> Path:
    return tmp_path / "no-device-tree"


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A library with the required functions of the API and nothing else, as an old or foreign one may be."""
    from npumatmul.rknn.runtime import _REQUIRED

    source = tmp_path / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in _REQUIRED))
    return compile_c(tmp_path / "libstub.so", [source], "-shared", "-fPIC")


def test_on_other_machines_the_simulator_serves(laptop_tree: Path) -> None:
    found = discover(None, {}, laptop_tree, ())
    assert (found.device, found.soc, found.library) == ("sim:rk3588", "rk3588", simulator_path())


def test_on_a_board_the_boards_library_serves(rk3588_tree: Path, tmp_path: Path) -> None:
    library = tmp_path / "librknnrt.so"
    library.touch()
    found = discover(None, {}, rk3588_tree, (str(tmp_path / "nowhere.so"), str(library)))
    assert (found.device, found.soc, found.library) == ("rknn", "rk3588", library)
    assert "nowhere.so: not there" in found.report()


def test_on_a_board_without_a_library_there_is_an_error_and_no_simulation(rk3588_tree: Path, tmp_path: Path) -> None:
    found = discover(None, {}, rk3588_tree, (str(tmp_path / "librknnrt.so"),))
    with pytest.raises(LibraryNotFoundError) as caught:
        load(found)
    text = str(caught.value)
    assert "rk3588" in text
    assert f"{tmp_path / 'librknnrt.so'}: not there" in text
    assert "NPUMATMUL_DEVICE=sim" in text


def test_on_a_board_with_a_broken_library_there_is_an_error(rk3588_tree: Path, tmp_path: Path) -> None:
    library = tmp_path / "librknnrt.so"
    library.write_bytes(b"not a library")
    with pytest.raises(LibraryNotFoundError, match=r"cannot be loaded(?s:.*)Looked at"):
        load(discover(None, {}, rk3588_tree, (str(library),)))


def test_on_a_board_the_simulator_serves_when_it_is_named(rk3588_tree: Path) -> None:
    assert discover("sim:rk3588", {}, rk3588_tree, ()).library == simulator_path()
    assert discover(None, {"NPUMATMUL_DEVICE": "sim"}, rk3588_tree, ()).library == simulator_path()


def test_the_argument_beats_the_environment_and_the_device_beats_the_library(
    laptop_tree: Path, rk3588_tree: Path
) -> None:
    environment = {"NPUMATMUL_DEVICE": "rknn", "NPUMATMUL_LIBRARY": "/opt/lib.so"}
    assert discover("sim", environment, laptop_tree, ()).device == "sim:rk3588"
    found = discover(None, environment, rk3588_tree, ())
    assert (found.device, found.soc, str(found.library)) == ("rknn", "rk3588", "/opt/lib.so")
    environment["NPUMATMUL_DEVICE"] = "sim"
    assert discover(None, environment, rk3588_tree, ()).library == simulator_path()


def test_a_named_library_on_an_unknown_machine_needs_a_chip(laptop_tree: Path, stub: Path) -> None:
    with pytest.raises(LibraryNotFoundError, match="chip is not known"):
        load(discover(None, {"NPUMATMUL_LIBRARY": str(stub)}, laptop_tree, ()))


# ---- NPUMATMUL_SOC -------------------------------------------------------------------------------------------------


def test_a_chip_can_be_named_where_no_device_tree_names_one(
    laptop_tree: Path, rk3588_tree: Path, stub: Path, tmp_path: Path
) -> None:
    environment = {"NPUMATMUL_SOC": "rk3576"}
    found = discover(None, environment, laptop_tree, (str(stub),))
    assert (found.device, found.soc, found.library) == ("rknn", "rk3576", stub)
    assert "NPUMATMUL_SOC: 'rk3576'" in found.report()
    other_tree = tmp_path / "other"
    other_tree.write_bytes(b"vendor,board\0rockchip,rk3582\0")
    assert discover(None, environment, other_tree, (str(stub),)).soc == "rk3576"
    # a library that is named needs it no less, and it may say what the device tree says
    assert load(discover(None, {**environment, "NPUMATMUL_LIBRARY": str(stub)}, laptop_tree, ())).path == stub
    assert discover(None, {"NPUMATMUL_SOC": "rk3588"}, rk3588_tree, (str(stub),)).soc == "rk3588"


def test_a_named_chip_simulates_nothing(laptop_tree: Path) -> None:
    """Whoever names a chip has a board: a missing runtime is an error there."""
    with pytest.raises(LibraryNotFoundError, match="this machine is an rk3576"):
        load(discover(None, {"NPUMATMUL_SOC": "rk3576"}, laptop_tree, ()))


def test_a_named_chip_is_no_matter_where_a_simulator_is_named(laptop_tree: Path) -> None:
    assert discover("sim:rk3588", {"NPUMATMUL_SOC": "rk3576"}, laptop_tree, ()).device == "sim:rk3588"


def test_chips_that_cannot_be_named(laptop_tree: Path, rk3588_tree: Path) -> None:
    with pytest.raises(DeviceError, match=r"NPUMATMUL_SOC is 'rk3399'.*rk3588, rk3576, rk3568, rk3566, rk3562"):
        discover(None, {"NPUMATMUL_SOC": "rk3399"}, laptop_tree, ())
    with pytest.raises(DeviceError, match=r"NPUMATMUL_SOC is 'rk3576', but .* names an rk3588"):
        discover(None, {"NPUMATMUL_SOC": "rk3576"}, rk3588_tree, ())


def test_rknn_asked_for_where_there_is_none(laptop_tree: Path) -> None:
    with pytest.raises(LibraryNotFoundError, match="'rknn' was asked for"):
        load(discover("rknn", {}, laptop_tree, ()))


@pytest.mark.parametrize("name", ["cuda", "sim:rk9999", "rknn:rk3588", ""])
def test_unknown_devices(laptop_tree: Path, name: str) -> None:
    with pytest.raises(DeviceError, match="sim:rk3588"):
        discover(name, {}, laptop_tree, ())


@pytest.mark.parametrize(("name", "soc"), COMPATIBLE.items())
def test_every_chip_is_recognised(tmp_path: Path, name: str, soc: str) -> None:
    tree = tmp_path / "compatible"
    tree.write_bytes(f"vendor,board\0{name}\0".encode())
    assert discover(None, {}, tree, ()).soc == soc


def test_other_device_trees_are_no_boards(tmp_path: Path) -> None:
    tree = tmp_path / "compatible"
    tree.write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    found = discover(None, {}, tree, ())
    assert found.device == "sim:rk3588"
    assert "brcm,bcm2712" in found.report()


def test_a_missing_optional_function_raises_only_when_it_is_used(stub: Path) -> None:
    runtime = Runtime(stub)
    assert not runtime.has("rknn_mem_sync")
    with pytest.raises(UnsupportedByRuntime, match=r"does not export rknn_matmul_set_dynamic_shape .*2\.0\.0b0"):
        runtime.matmul_set_dynamic_shape(1, (1, 32, 32))
    with pytest.raises(UnsupportedByRuntime, match=r"rknn_B_normal_layout_to_native_layout .*2\.0\.0b0"):
        runtime.b_normal_layout_to_native_layout(0, 0, 32, 32, MatmulInfo(type=2), (32, 32))
    assert runtime.version_from_symbols() == RuntimeVersion(1, 5, 2)


def test_a_library_without_the_matmul_api_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int rknn_matmul_create(void) { return 0; }\n")
    library = compile_c(tmp_path / "libempty.so", [source], "-shared", "-fPIC")
    with pytest.raises(LibraryNotFoundError, match="does not export rknn_matmul_set_io_mem, rknn_matmul_run"):
        Runtime(library)


def test_sizes_that_c_would_cut_are_refused() -> None:
    runtime = Runtime(simulator_path())
    for size in (0, -1, 2**32):
        with pytest.raises(ValueError, match="size is"):
            runtime.create_mem(0, size)
    with pytest.raises(ValueError, match="offset is"):
        runtime.create_mem_from_fd(0, 3, 0, 16, 2**31)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.3.2 (429f97ae6b@2025-04-09T09:09:27)", (2, 3, 2)),
        ("1.5.2 (c6b7b351a@2023-08-23T15:29:04)", (1, 5, 2)),
        ("2.0.0b0", (2, 0, 0)),
        ("librknnrt version: 2.3 (c949ad889d)", (2, 3, 0)),
    ],
)
def test_version_strings(text: str, version: tuple[int, int, int]) -> None:
    assert RuntimeVersion.parse(text) == RuntimeVersion(*version)


@given(st.text())
def test_any_version_string_is_survived(text: str) -> None:
    found = RuntimeVersion.parse(text)
    assert found is None or found >= RuntimeVersion(0, 0, 0)


@pytest.mark.parametrize("name", ["sim:RK3588", "SIM:rk3588", "Sim:Rk3588"])
def test_names_of_devices_are_taken_however_they_are_capitalized(name: str) -> None:
    found = discover(name, {})
    assert (found.device, found.soc) == ("sim:rk3588", "rk3588")
    assert discover("RKNN", {}, "/nowhere", ()).device == "rknn"
    assert discover(None, {"NPUMATMUL_SOC": "RK3576"}, "/nowhere", ()).soc == "rk3576"
    assert chip("RK3588") is chip("rk3588")
    assert capabilities("RK3588") == capabilities("rk3588")
    assert sim.environment("RK3576") == sim.environment("rk3576")


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("rk3588", "did you mean 'sim:rk3588', or on a board 'rknn'?"),
        ("RK3576", "did you mean 'sim:rk3576', or on a board 'rknn'?"),
        ("sim:rk3558", "did you mean 'sim:rk3588'?"),
        ("sim:RK3588S", "did you mean 'sim:rk3588'?"),
        ("sin:rk3566", "did you mean 'sim:rk3566'?"),
    ],
)
def test_what_a_device_was_perhaps_to_be(name: str, question: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(question)):
        discover(name, {})


@pytest.mark.parametrize("name", ["tpu", "sim:tpu", "x" * 1000])
def test_nothing_is_guessed_of_what_is_like_no_device(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        discover(name, {})
    assert "did you mean" not in str(caught.value)
