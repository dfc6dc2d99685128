"""Checks of the vendor's runtime library: which there are, which is used, what is known of it."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from npumatmul.chips import NEWEST_RUNTIME, Problem, capabilities
from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["check_environment", "check_libraries"]

_OLDEST = RuntimeVersion(1, 5, 2)
#: Libraries that are listed.
_LISTED = 6


def check_libraries(machine: Machine) -> Iterator[Finding]:
    """Whether there is one, for this processor, in one version; what was reported of that version."""
    if machine.soc is None:
        return
    libraries = machine.libraries
    if not libraries:
        yield Finding(
            Level.ERROR, "runtime", "there is no librknnrt.so",
            "It is the vendor's library with the matmul functions; npumatmul brings none along.",
            "install the runtime of Rockchip's rknn-toolkit2 (rknpu2/runtime/Linux/librknn_api/aarch64) as "
            "/usr/lib/librknnrt.so, or set NPUMATMUL_LIBRARY to its path",
        )  # fmt: skip
        return
    used = libraries[0]
    own = "64-bit ARM" if machine.is_here and platform.machine() == "aarch64" else None
    if used.machine == "no library" or used.machine.startswith("cannot") or (own and used.machine != own):
        yield Finding(
            Level.ERROR, "runtime", f"{used.path} is {used.machine}, and cannot be loaded here",
            f"This Python is {own or platform.machine()}.", "install the library for aarch64",
        )  # fmt: skip
    versions = {each.version for each in libraries}
    if len(libraries) > 1 and len(versions) > 1:
        listed = "; ".join(f"{each.path}: {each.version or 'no version'}" for each in libraries[:_LISTED])
        yield Finding(
            Level.WARNING, "runtime", f"there are {len(libraries)} libraries of {len(versions)} versions: {listed}",
            f"Each program takes the first that it finds: npumatmul takes {used.path}, others may take another, and an "
            "update of one is not seen by who uses the other.",
            "remove all but the newest, or set NPUMATMUL_LIBRARY",
        )  # fmt: skip
    number = used.number
    if number is None:
        yield Finding(
            Level.NOTE, "runtime", f"{used.path}: its version cannot be read in the file",
            "What it can do is found out by the functions that it exports.",
        )  # fmt: skip
        return
    if number < _OLDEST:
        yield Finding(
            Level.ERROR, "runtime", f"{used.path} is {used.version}", f"Versions before {_OLDEST} are not supported.",
            "install runtime 2.3.2",
        )  # fmt: skip
        return
    newer = " (newer than is known; used like the newest known)" if number > NEWEST_RUNTIME else ""
    yield Finding(Level.OK, "runtime", f"{used.version}{newer}, {used.path}")
    problems = capabilities(machine.soc, min(number, NEWEST_RUNTIME)).problems
    if problems:
        told = "; ".join(f"{_types(each)}{each.what}" for each in problems)
        yield Finding(
            Level.NOTE, "known problems", f"{len(problems)} are known of runtime {number} on this chip",
            f"Reported or recorded: {told}. npumatmul keeps to what works.",
            "npumatmul info --capabilities says who found them",
        )  # fmt: skip


def _types(problem: Problem) -> str:
    """Of which matmul types it is, if not of all."""
    return f"{', '.join(each.name for each in problem.types)}: " if problem.types else ""


#: Variables that change what the runtime or npumatmul does, and what they do.
_SLOW = {
    "RKNN_DUMP_DIR": "the runtime writes tensors to files",
    "RKNN_DUMP_QUANT": "the runtime writes tensors to files",
    "RKNN_DUMP_TXT_TENSOR": "the runtime writes tensors to files",
}


def check_environment(machine: Machine) -> Iterator[Finding]:
    """Variables that slow things down, or choose something else than this machine's NPU (facts 11.3)."""
    environment = machine.environment
    level = environment.get("RKNN_LOG_LEVEL", "")
    if level.isdigit() and int(level) >= 3:
        slows = "From 4 on every run is slowed down" if int(level) >= 4 else "It prints much"
        yield Finding(
            Level.WARNING, "environment", f"RKNN_LOG_LEVEL is {level}",
            f"{slows} (facts 11.3), and from 3 on creating an int4 product ended the process on 1.6.0 (facts 15).",
            "unset RKNN_LOG_LEVEL",
        )  # fmt: skip
    for name, does in _SLOW.items():
        if environment.get(name):
            yield Finding(Level.WARNING, "environment", f"{name} is set", f"Then {does}.", f"unset {name}")
    device = environment.get("NPUMATMUL_DEVICE", "")
    if machine.soc is not None and device.lower().startswith("sim"):
        yield Finding(
            Level.WARNING, "environment", f"NPUMATMUL_DEVICE is {device}",
            "Products are simulated by the CPU although this is a board.", "unset NPUMATMUL_DEVICE",
        )  # fmt: skip
