"""Checks of memory: what there is, how the NPU sees it, descriptors, and who else uses the NPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine

__all__ = ["check_descriptors", "check_iommu", "check_memory", "check_others"]

#: Descriptors of a context as recorded of 1.6.0 (facts 15), and contexts that real clients hold.
_PER_CONTEXT, _CONTEXTS = 4, 1000
_LEAST_MB = 512


def check_descriptors(machine: Machine) -> Iterator[Finding]:
    """Whether enough files may be open: each context and each piece of memory holds some."""
    if machine.soc is None:
        return
    limits = machine.text("proc/self/limits") or ""
    found = re.search(r"^Max open files\s+(\d+|unlimited)\s+(\d+|unlimited)", limits, re.MULTILINE)
    if found is None:
        return
    hard = found[2]
    wanted = _PER_CONTEXT * _CONTEXTS
    if hard != "unlimited" and int(hard) < wanted:
        yield Finding(
            Level.WARNING, "descriptors", f"at most {hard} files may be open",
            f"A context holds {_PER_CONTEXT} descriptors (facts 15), each piece of memory one; 'Too many open files' "
            "is what users of this NPU report most often.",
            "raise the hard limit: echo '* hard nofile 65536' | sudo tee /etc/security/limits.d/npu.conf, and log in "
            "again",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "descriptors", f"up to {hard} files (npumatmul raises the soft limit of {found[1]})")


def check_iommu(machine: Machine) -> Iterator[Finding]:
    """Whether the NPU may use all of memory."""
    if machine.soc is None or not machine.has_driver:
        return
    devices = list(machine.at("sys/devices/platform").glob("*.npu"))
    if not devices:
        return
    megabytes = _kilobytes(machine, "CmaTotal") // 1024
    if any((device / "iommu_group").exists() for device in devices):
        yield Finding(Level.OK, "IOMMU", "the NPU has one")
    else:
        yield Finding(
            Level.WARNING, "IOMMU", f"the NPU has none; it can only use the CMA area, {megabytes} MB",
            "Memory has to be in one piece then: allocations fail early (rknn-toolkit2#44).",
            "enable the node of the NPU's IOMMU in the device tree, or boot with a larger area, such as cma=512M",
        )  # fmt: skip
    region = machine.text("sys/kernel/debug/rknpu/mm")
    if region:
        yield Finding(Level.OK, "SRAM", "the NPU has some; products through the matmul API do not use it")


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Whether there is memory for weights."""
    total, available = (_kilobytes(machine, name) // 1024 for name in ("MemTotal", "MemAvailable"))
    if not total:
        return
    if available < _LEAST_MB:
        yield Finding(
            Level.WARNING, "memory", f"{available} of {total} MB are available",
            "Weights on the NPU are in the same memory, and cannot be swapped.",
            "end other programs: ps aux --sort=-rss",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "memory", f"{available} of {total} MB are available")
    used = _kilobytes(machine, "SwapTotal") - _kilobytes(machine, "SwapFree")
    if used // 1024 > total // 10:
        yield Finding(
            Level.NOTE, "memory", f"{used // 1024} MB are swapped out", "Programs that have to be swapped in are slow."
        )


def check_others(machine: Machine) -> Iterator[Finding]:
    """Whether other processes use the NPU."""
    if machine.soc is None or not machine.has_driver:
        return
    for number, name in sorted(machine.users().items()):
        yield Finding(
            Level.WARNING, "another process", f"{name} (process {number}) has the NPU open",
            "Two that use it at once share its memory's bandwidth and address space, and have taken boards down.",
            f"end it: kill {number}",
        )  # fmt: skip


def _kilobytes(machine: Machine, name: str) -> int:
    """A value of /proc/meminfo, 0 where it is not there."""
    found = re.search(rf"^{name}:\s+(\d+) kB", machine.text("proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) if found else 0
