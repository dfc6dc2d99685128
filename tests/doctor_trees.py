"""Files of boards for the doctor: each chip as it should be, and changes that make it slow or broken."""

from __future__ import annotations

import os
import struct
from pathlib import Path

NPU = {
    "rk3588": "fdab0000", "rk3588s": "fdab0000", "rk3576": "27700000", "rk3568": "fde40000", "rk3566": "fde40000",
    "rk3562": "ff300000",
}  # fmt: skip


def write(root: Path, place: str, text: str | bytes) -> Path:
    """A file of the machine."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def library(version: str = "2.3.2 (429f97ae6b@2025-04-09T09:09:27)", machine: int = 183) -> bytes:
    """What a runtime library looks like to who looks for its version."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)
    return head + bytes(1 << 20) + b"librknnrt version: " + version.encode() + b"\0more"


def board(root: Path, soc: str = "rk3588") -> Path:
    """A board on which all is well."""
    npu = NPU[soc]
    write(root, "proc/device-tree/compatible", f"vendor,{soc}-board\0rockchip,{soc}\0")
    write(root, "proc/device-tree/model", f"Some Board of {soc.upper()}\0")
    write(root, "proc/sys/kernel/osrelease", "6.1.84-vendor-rk35xx\n")
    memory = {"MemTotal": 16000000, "MemAvailable": 12000000, "SwapTotal": 0, "SwapFree": 0, "CmaTotal": 262144}
    write(root, "proc/meminfo", "".join(f"{name}: {size} kB\n" for name, size in memory.items()))
    write(
        root,
        "proc/self/limits",
        "Limit Soft Hard Units\nMax open files            1024                 1048576              files\n",
    )
    write(root, "etc/group", f"render:x:{os.getgid()}:\n")
    write(root, "sys/module/rknpu/version", "0.9.8\n")
    write(root, f"sys/class/devfreq/{npu}.npu/governor", "performance\n")
    write(root, f"sys/class/devfreq/{npu}.npu/cur_freq", "1000000000\n")
    write(root, f"sys/class/devfreq/{npu}.npu/max_freq", "1000000000\n")
    write(root, "sys/class/devfreq/dmc/governor", "performance\n")
    write(root, "sys/class/devfreq/dmc/cur_freq", "2112000000\n")
    write(root, "sys/class/devfreq/dmc/max_freq", "2112000000\n")
    for policy in (0, 4):
        folder = f"sys/devices/system/cpu/cpufreq/policy{policy}"
        write(root, f"{folder}/scaling_governor", "performance\n")
        write(root, f"{folder}/scaling_cur_freq", "1800000\n")
        write(root, f"{folder}/scaling_max_freq", "1800000\n")
    write(root, "sys/class/thermal/thermal_zone0/type", "npu-thermal\n")
    write(root, "sys/class/thermal/thermal_zone0/temp", "45000\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_0_type", "passive\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_0_temp", "85000\n")
    write(root, f"sys/devices/platform/{npu}.npu/iommu_group/name", "0\n")
    write(root, "dev/dri/renderD129", "")
    driver = root / "sys/class/drm/renderD129/device/driver"
    driver.parent.mkdir(parents=True)
    driver.symlink_to("../../../../bus/platform/drivers/RKNPU")
    write(root, "usr/lib/librknnrt.so", library())
    return root
