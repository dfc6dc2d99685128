"""The doctor on files of boards: each chip, each fault, and that each finding says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from doctor_trees import NPU, board, library, write

from npumatmul.doctor import Finding, Level, Report, diagnose


def worse(report: Report) -> list[Finding]:
    """What is worth a warning."""
    return [each for each in report.findings if each.level >= Level.WARNING]


@pytest.mark.parametrize("soc", sorted(NPU))
def test_a_board_on_which_all_is_well(tmp_path: Path, soc: str) -> None:
    report = diagnose(board(tmp_path, soc))
    assert not worse(report), worse(report)
    by_subject = {each.subject: each.what for each in report.findings if each.level is Level.OK}
    assert by_subject["chip"].startswith(soc.removesuffix("s").upper())
    assert by_subject["driver"] == "rknpu 0.9.8"
    assert by_subject["device node"] == "/dev/dri/renderD129"
    assert by_subject["runtime"].startswith("2.3.2 (429f97ae6b")
    assert by_subject["clocks"].startswith("NPU 1000 MHz, memory 2112 MHz, cpu0 1800 MHz")
    assert by_subject["IOMMU"] == "the NPU has one"


def gone(*places: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for place in places:
            for path in root.glob(place):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def put(place: str, text: str | bytes) -> Callable[[Path], None]:
    return lambda root: write(root, place, text) and None


def no_driver(root: Path) -> None:
    gone("sys/module/rknpu", "sys/class/devfreq/*.npu", "sys/class/drm", "dev/dri", "sys/devices/platform/*")(root)


def rocket(root: Path) -> None:
    no_driver(root)
    write(root, "sys/module/rocket/refcnt", "0\n")
    write(root, "dev/accel/accel0", "")


def no_debugfs(root: Path) -> None:
    gone("sys/module/rknpu/version")(root)


def slow_memory(root: Path) -> None:
    write(root, "sys/class/devfreq/dmc/governor", "dmc_ondemand")
    write(root, "sys/class/devfreq/dmc/cur_freq", "528000000")


def slow_cpu(root: Path) -> None:
    write(root, "sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "ondemand")
    write(root, "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "408000")


def slowed(root: Path) -> None:
    write(root, "sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0")
    write(root, "sys/class/thermal/cooling_device0/cur_state", "2")


def another(root: Path) -> None:
    write(root, "proc/4242/comm", "rkllm_server\n")
    (root / "proc/4242/fd").mkdir()
    (root / "proc/4242/fd/7").symlink_to("/dev/dri/renderD129")


#: Change, environment, the level, and what has to be said: subject, part of what, part of the command.
FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, str], Level, tuple[str, str, str]]] = {
    "rv1126": (put("proc/device-tree/compatible", "rockchip,rv1126\0"), {}, Level.ERROR,
               ("chip", "RV1126", "NPUMATMUL_DEVICE=sim")),
    "unknown chip": (put("proc/device-tree/compatible", "a,b\0rockchip,rk9999\0"), {}, Level.ERROR,
                     ("chip", "RK9999", "NPUMATMUL_SOC")),
    "no driver": (no_driver, {}, Level.ERROR, ("driver", "no driver", "CONFIG_ROCKCHIP_RKNPU")),
    "rocket": (rocket, {}, Level.ERROR, ("driver", "rocket", "vendor")),
    "both drivers": (put("sys/module/rocket/refcnt", "0"), {}, Level.WARNING, ("driver", "beside", "blacklist")),
    "old driver": (put("sys/module/rknpu/version", "0.8.2\n"), {}, Level.WARNING, ("driver", "0.8.2", "newer kernel")),
    "driver before 0.9.6": (put("sys/module/rknpu/version", "0.9.3\n"), {}, Level.NOTE, ("driver", "0.9.3", "newer")),
    "version is root's": (no_debugfs, {}, Level.NOTE, ("driver", "cannot be read", "sudo cat")),
    "no node": (gone("dev/dri"), {}, Level.ERROR, ("device node", "no device node", "--device /dev/dri")),
    "no runtime": (gone("usr/lib/librknnrt.so"), {}, Level.ERROR, ("runtime", "no librknnrt.so", "rknn-toolkit2")),
    "two runtimes": (put("usr/lib/aarch64-linux-gnu/librknnrt.so", library("1.6.0 (9a7b5d24c@2023-12-13)")), {},
                     Level.WARNING, ("runtime", "2 libraries of 2 versions", "NPUMATMUL_LIBRARY")),
    "no library": (put("usr/lib/librknnrt.so", "<html>404</html>"), {}, Level.ERROR,
                   ("runtime", "no library", "aarch64")),
    "old runtime": (put("usr/lib/librknnrt.so", library("1.4.0")), {}, Level.ERROR, ("runtime", "1.4.0", "2.3.2")),
    "known problem": (put("usr/lib/librknnrt.so", library("1.6.0")), {}, Level.NOTE,
                      ("known problems", "known of runtime 1.6.0", "capabilities")),
    "logs": (lambda root: None, {"RKNN_LOG_LEVEL": "4"}, Level.WARNING, ("environment", "RKNN_LOG_LEVEL", "unset")),
    "dumps": (lambda root: None, {"RKNN_DUMP_DIR": "/tmp"}, Level.WARNING, ("environment", "RKNN_DUMP_DIR", "unset")),
    "simulated": (lambda root: None, {"NPUMATMUL_DEVICE": "sim:rk3588"}, Level.WARNING,
                  ("environment", "NPUMATMUL_DEVICE", "unset")),
    "slow NPU": (put("sys/class/devfreq/fdab0000.npu/governor", "powersave"), {}, Level.WARNING,
                 ("governor", "NPU: powersave", "tee /sys/class/devfreq/*.npu/governor")),
    "slow memory": (slow_memory, {}, Level.WARNING,
                    ("governor", "memory: dmc_ondemand, now at 528 MHz of 2112", "dmc/governor")),
    "slow CPU": (slow_cpu, {}, Level.WARNING, ("governor", "cpu4: ondemand", "policy4/scaling_governor")),
    "hot": (put("sys/class/thermal/thermal_zone0/temp", "83000"), {}, Level.WARNING, ("heat", "83 degrees", "fan")),
    "slowed down": (slowed, {}, Level.WARNING, ("heat", "slows thermal-cpufreq-0", "fan")),
    "at work": (put("sys/kernel/debug/rknpu/load", "NPU load:  Core0: 43%, Core1:  0%, Core2:  0%,"), {}, Level.NOTE,
                ("load", "43%", "")),
    "no IOMMU": (gone("sys/devices/platform/*.npu/iommu_group"), {}, Level.WARNING, ("IOMMU", "256 MB", "cma=")),
    "few descriptors": (put("proc/self/limits", "Max open files     1024       1024     files\n"), {}, Level.WARNING,
                        ("descriptors", "1024", "limits.d")),
    "little memory": (put("proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 200000 kB\n"), {}, Level.WARNING,
                      ("memory", "195 of 1953 MB", "ps aux")),
    "another process": (another, {}, Level.WARNING, ("another process", "rkllm_server (process 4242)", "kill 4242")),
    "container": (put(".dockerenv", ""), {}, Level.NOTE, ("container", "Docker", "docker run")),
    "Android": (put("system/build.prop", ""), {}, Level.WARNING, ("Android", "Android", "NPUMATMUL_LIBRARY")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_told(tmp_path: Path, fault: str) -> None:
    change, environment, level, (subject, what, command) = FAULTS[fault]
    root = board(tmp_path)
    change(root)
    report = diagnose(root, environment)
    found = [each for each in report.findings if each.level is level and each.subject == subject and what in each.what]
    assert found, report.findings
    assert command in found[0].command
    assert found[0].why
    others = [each for each in worse(report) if each.subject != subject]
    related = {"no driver": {"device node"}, "rocket": {"device node"}}
    assert all(each.subject in related.get(fault, set()) for each in others), "nothing else is blamed"
    assert report.worst == max(level, *(each.level for each in report.findings))


@pytest.mark.skipif(os.getuid() == 0, reason="root may open any node")
def test_a_node_that_may_not_be_opened(tmp_path: Path) -> None:
    root = board(tmp_path)
    (root / "dev/dri/renderD129").chmod(0)
    (found,) = worse(diagnose(root))
    assert "usermod -aG render" in found.command


def test_a_node_is_asked_for_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (found,) = worse(diagnose(board(tmp_path)))
    assert found.level is Level.ERROR
    assert "its group is render" in found.what
    assert found.command.startswith("sudo usermod -aG render $USER")


def test_a_file_that_two_names_lead_to_is_one_library(tmp_path: Path) -> None:
    root = board(tmp_path)
    (root / "usr/local/lib").mkdir(parents=True)
    (root / "usr/local/lib/librknnrt.so").symlink_to(root / "usr/lib/librknnrt.so")
    assert not worse(diagnose(root))


def test_every_finding_that_is_bad_says_why_and_what_to_do(tmp_path: Path) -> None:
    for number, (change, environment, _, _) in enumerate(FAULTS.values()):
        root = board(tmp_path / str(number))
        change(root)
        for each in worse(diagnose(root, environment)):
            assert each.why
            assert each.command


def test_a_laptop_is_told_of_the_simulator(tmp_path: Path) -> None:
    report = diagnose(tmp_path)
    assert report.worst is Level.NOTE
    assert "simulator" in report.findings[0].why


def test_odd_files_are_no_reason_to_fail(tmp_path: Path) -> None:
    root = board(tmp_path)
    for path in [each for each in root.rglob("*") if each.is_file()]:
        path.write_bytes(b"\xff\x00garbage\n" * 3)
    assert diagnose(root).findings
    with pytest.raises(FileNotFoundError, match="no folder"):
        diagnose(tmp_path / "missing")


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "doctor", *options], capture_output=True, text=True, timeout=200
    )


def test_the_command(tmp_path: Path) -> None:
    root = board(tmp_path)
    well = command("--root", str(root))
    assert well.returncode == 0
    assert well.stdout.endswith("1 note\n")
    no_driver(root)
    broken = command("--root", str(root))
    assert broken.returncode == 1
    assert "ERROR" in broken.stdout
    assert "-> install a kernel" in broken.stdout
    assert max(map(len, broken.stdout.splitlines()[:2])) <= 100
    told = json.loads(command("--root", str(root), "--json").stdout)
    assert told["worst"] == "error"
    assert {"level", "subject", "what", "why", "command"} == set(told["findings"][0])


def test_warnings_count_where_they_are_asked_for(tmp_path: Path) -> None:
    root = board(tmp_path)
    write(root, "sys/class/thermal/thermal_zone0/temp", "84000")
    assert command("--root", str(root)).returncode == 0
    assert command("--root", str(root), "--strict").returncode == 1


def test_here_a_product_is_tried() -> None:
    here = command()
    assert here.returncode == 0, here.stdout + here.stderr
    assert "products: right on sim:rk3588" in here.stdout
    assert "products" not in command("--no-run").stdout


def test_a_simulator_that_is_told_to_compute_nothing_is_no_faulty_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_COMPUTE", "off")
    idle = command()
    assert "WARNING  simulator: runs compute nothing" in idle.stdout
    assert "driver may be" not in idle.stdout
    assert "ERROR" not in idle.stdout
    assert "products: right" not in idle.stdout


@pytest.mark.parametrize("kind", ["fifo", "endless", "folder", "loop"])
def test_files_that_are_none_are_passed_over(tmp_path: Path, kind: str) -> None:
    """Whatever stands where the doctor reads: it neither waits nor reads for ever."""
    root = board(tmp_path)
    places = [each for each in root.rglob("*") if each.is_file() and not each.is_symlink()]
    assert len(places) > 10
    for place in places:
        place.unlink()
        if kind == "fifo":
            os.mkfifo(place)
        elif kind == "endless":
            place.symlink_to("/dev/zero")
        elif kind == "folder":
            place.mkdir()
        else:
            place.symlink_to(place.name)
    with ThreadPoolExecutor(1) as pool:  # a wait for a fifo ends when somebody writes to it
        made = pool.submit(diagnose, root)
        try:
            report = made.result(timeout=60)
        finally:
            for place in places:
                if kind == "fifo" and not made.done():
                    with suppress(OSError):
                        os.close(os.open(place, os.O_RDWR | os.O_NONBLOCK))
    assert report.findings


def test_a_library_without_end_is_searched_as_far_as_one_can_be_long(tmp_path: Path) -> None:
    root = board(tmp_path)
    (place,) = [each for each in root.rglob("librknnrt.so") if not each.is_symlink()]
    os.truncate(place, 1 << 40)
    with place.open("r+b") as file:
        file.write(library().replace(b"librknnrt version", b"no version at all"))
    assert diagnose(root).findings
