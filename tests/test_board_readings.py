"""What boards say of themselves, read from made-up trees of files."""

from __future__ import annotations

from pathlib import Path

from npumatmul.board.readings import (
    clocks,
    governors,
    highest_clocks,
    npu_load,
    slowed_down,
    temperature_limits,
    temperatures,
)
from npumatmul.board.slowdown import SlowdownWatch

NPU, CPU = "sys/class/devfreq/27700000.npu", "sys/devices/system/cpu/cpufreq/policy4"
ZONE = "sys/class/thermal/thermal_zone0"


def board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_clocks_governors_and_temperatures_of_a_board(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "sys/class/devfreq/fdab0000.npu/cur_freq": "300000000\n",
            "sys/class/devfreq/fdab0000.npu/governor": "rknpu_ondemand\n",
            "sys/class/devfreq/dmc/cur_freq": "2112000000\n",
            "sys/kernel/debug/rknpu/freq": "1000000000\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "2256000\n",
            "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
            "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "41615\n",
            "sys/class/thermal/thermal_zone1/type": "soc-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "40000\n",
            "sys/class/thermal/thermal_zone2/temp": "nonsense",
            "sys/class/thermal/thermal_zone3/temp": "39000",
        },
    )
    assert clocks(root) == {"npu": 1_000_000_000, "ddr": 2_112_000_000, "cpu4": 2_256_000_000}
    assert governors(root) == {"npu": "rknpu_ondemand", "cpu4": "schedutil"}
    assert temperatures(root) == {"soc": 41.615, "zone1_soc": 40.0, "zone3": 39.0}
    assert [read(tmp_path / "nothing") for read in (clocks, governors, temperatures)] == [{}, {}, {}]


def test_the_last_passive_point_is_the_limit(tmp_path: Path) -> None:
    points = {"0": ("passive", 75000), "1": ("passive", 85000), "2": ("critical", 115000), "3": ("active", 60000)}
    files = {f"{ZONE}/temp": "50000", f"{ZONE}/type": "soc-thermal"}
    for number, (kind, degrees) in points.items():
        files |= {f"{ZONE}/trip_point_{number}_type": kind, f"{ZONE}/trip_point_{number}_temp": str(degrees)}
    assert temperature_limits(board(tmp_path, files)) == {"soc": 85.0}


def test_what_is_slowed_down_and_fans(tmp_path: Path) -> None:
    devices = [("thermal-cpufreq-0", "3"), ("thermal-devfreq-0", "0"), ("pwm-fan", "4"), ("Fan", "1"), ("odd", "-1")]
    files: dict[str, str] = {}
    for number, (kind, state) in enumerate(devices):
        folder = f"sys/class/thermal/cooling_device{number}"
        files |= {f"{folder}/type": kind + "\n", f"{folder}/cur_state": state + "\n"}
    assert slowed_down(board(tmp_path, files)) == ["thermal-cpufreq-0"]


def test_highest_clocks_and_load(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            f"{NPU}/max_freq": "950000000", f"{CPU}/scaling_max_freq": "2208000",
            "sys/kernel/debug/rknpu/load": "NPU load:  Core0: 53%, Core1:  0%, Core2:  0%,\n",
        },
    )  # fmt: skip
    assert highest_clocks(root) == {"npu": 950_000_000, "cpu4": 2_208_000_000}
    assert npu_load(root) == "NPU load:  Core0: 53%, Core1:  0%, Core2:  0%,"
    assert npu_load(tmp_path / "nothing") is None


def test_slow_clocks_heat_and_cooling_are_reasons(tmp_path: Path) -> None:
    files = {
        f"{NPU}/cur_freq": "1000000000", f"{CPU}/scaling_cur_freq": "2400000", f"{ZONE}/type": "soc-thermal",
        f"{ZONE}/temp": "84900", f"{ZONE}/trip_point_0_type": "passive", f"{ZONE}/trip_point_0_temp": "85000",
    }  # fmt: skip
    root = board(tmp_path, files)
    watch, only_npu = SlowdownWatch(root), SlowdownWatch(root, only=("npu",))
    assert watch.reasons() == only_npu.reasons() == []
    board(tmp_path, {f"{NPU}/cur_freq": "760000000", f"{CPU}/scaling_cur_freq": "1700000"})
    assert watch.reasons() == ["cpu4 at 1700 of 2400 MHz"]
    assert only_npu.reasons() == []
    board(tmp_path, {f"{NPU}/cur_freq": "300000000", f"{CPU}/scaling_cur_freq": "2500000", f"{ZONE}/temp": "85000"})
    assert only_npu.reasons() == ["npu at 300 of 1000 MHz", "soc has 85 degrees, and is to stay below 85"]
    device = "sys/class/thermal/cooling_device0"
    board(tmp_path, {f"{device}/type": "thermal-cpufreq-0", f"{device}/cur_state": "2", f"{ZONE}/temp": "60000"})
    assert watch.reasons() == ["npu at 300 of 1000 MHz", "the kernel slows thermal-cpufreq-0 down"]
