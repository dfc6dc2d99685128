"""Check what a wheel says it is and what is in it.

python3 tools/check_wheel.py dist/*.whl
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from pathlib import Path

#: Machines of wheel tags, and their number in the header of an ELF file.
MACHINES = {"x86_64": 62, "aarch64": 183}
RUNTIMES = ("1.5.2", "1.6.0", "2.0.0b0", "2.1.0", "2.3.0", "2.3.2")
LIBRARIES = {
    "libnpumm.so",
    "libnpumm_onnx.so",
    "libnpumm_sim.so",
    *(f"libnpumm_sim_{runtime}.so" for runtime in RUNTIMES),
}
HEADERS = {"rknn_abi.h", "rknn_api.h", "rknn_matmul_api.h", "npumatmul_sim.h"}


def problems_of(wheel: Path) -> list[str]:
    """What is wrong with a wheel, in words."""
    name = re.fullmatch(r"npumatmul-([^-]+)-py3-none-((?:many)?linux\w*?_(x86_64|aarch64)(?:\.\w+)*)\.whl", wheel.name)
    if name is None:
        return [f"{wheel.name} is not npumatmul-<version>-py3-none-<linux platform>.whl"]
    version, platforms, machine = name.groups()
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read(f"npumatmul-{version}.dist-info/WHEEL").decode().splitlines()
        tags = {line.partition(": ")[2] for line in said if line.startswith("Tag: ")}
        wanted = {f"py3-none-{platform}" for platform in platforms.split(".")}
        if tags != wanted:
            problems.append(f"WHEEL has the tags {sorted(tags)}, the name says {sorted(wanted)}")
        if "Root-Is-Purelib: false" not in said:
            problems.append("WHEEL says that it is the same for every machine")
        files = {Path(entry).name: entry for entry in archive.namelist() if entry.endswith(".so")}
        if set(files) != LIBRARIES:
            problems.append(f"the libraries are {sorted(files)}, not {sorted(LIBRARIES)}")
        headers = {entry for entry in archive.namelist() if entry.endswith(".h")}
        if headers != {f"npumatmul/_native/include/{header}" for header in HEADERS}:
            problems.append(f"the headers are {sorted(headers)}, not {sorted(HEADERS)} in npumatmul/_native/include")
        for library, entry in files.items():
            if entry != f"npumatmul/_native/{library}":
                problems.append(f"{entry} is not in npumatmul/_native")
            problems += [f"{library}: {problem}" for problem in _problems_of_library(archive.read(entry), machine)]
            newest = _glibc(archive.read(entry))
            for platform in platforms.split("."):
                allowed = re.match(r"manylinux_(\d+)_(\d+)_", platform)
                if allowed and newest > (int(allowed[1]), int(allowed[2])):
                    problems.append(f"{library} needs glibc {newest[0]}.{newest[1]}, more than {platform} has")
    return problems


def _problems_of_library(data: bytes, machine: str) -> list[str]:
    if data[:4] != b"\x7fELF" or data[4] != 2 or data[5] != 1:
        return ["it is not a 64-bit little-endian ELF file"]
    kind, number = int.from_bytes(data[16:18], "little"), int.from_bytes(data[18:20], "little")
    if kind != 3:
        return [f"it is of ELF type {kind}, not a shared object"]
    return [] if number == MACHINES[machine] else [f"it is for ELF machine {number}, not for {machine}"]


def _glibc(data: bytes) -> tuple[int, int]:
    """The newest version of glibc whose symbols a library asks for: the names stand in its string table."""
    found = re.findall(rb"GLIBC_(\d+)\.(\d+)", data)
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def main() -> None:
    """Check the wheels that are named."""
    parser = argparse.ArgumentParser(description="Check the tags and libraries of wheels.")
    parser.add_argument("wheels", type=Path, nargs="+")
    for wheel in parser.parse_args().wheels:
        problems = problems_of(wheel)
        if problems:
            sys.exit("\n".join(f"{wheel.name}: {problem}" for problem in problems))
        with zipfile.ZipFile(wheel) as archive:
            newest = max(_glibc(archive.read(entry)) for entry in archive.namelist() if entry.endswith(".so"))
        print(f"{wheel.name}: tags and {len(LIBRARIES)} libraries are right; needs glibc {newest[0]}.{newest[1]}")


if __name__ == "__main__":
    main()
