"""What a process holds of an NPU, and of the system for it: bytes per IOMMU domain, contexts, file descriptors."""

from __future__ import annotations

import enum
import logging
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from npumatmul.errors import NpuMemoryError, RknnFail, RknnMallocFail

__all__ = [
    "NO_ROOM",
    "DomainStats",
    "Holder",
    "MemoryStats",
    "Reclaimer",
    "by_holder",
    "descriptor_limit",
    "descriptors_within_reach",
    "open_descriptors",
    "provide_descriptors",
]

logger = logging.getLogger(__name__)

#: What is raised where there is no memory, or no further context.
NO_ROOM = (NpuMemoryError, RknnFail, RknnMallocFail)

#: Descriptors that are left to the rest of the process before the limit is raised or an allocation refused.
_SPARE_DESCRIPTORS = 32


class Holder(enum.Enum):
    """Whom memory is for."""

    WEIGHTS = "packed weights"
    WORKSPACES = "A and C of matmuls"
    BUFFERS = "buffers of users"


class Reclaimer(Protocol):
    """Something that holds what it could do without."""

    def spare_one(self) -> bool:
        """Give up the context that was used longest ago, unless it is in use; whether there was one."""

    def reclaim(self, domain: int | None = None) -> bool:
        """Give up every context and all memory that is not in use, of one domain or of all; whether there was any."""


@dataclass(frozen=True)
class DomainStats:
    """One IOMMU domain.

    Attributes
    ----------
    domain : int
    weights, workspaces, buffers : int
        Bytes, by what holds them.
    limit : int
        Bytes that the domain can hold, by the capability table.
    """

    domain: int
    weights: int
    workspaces: int
    buffers: int
    limit: int

    @property
    def nbytes(self) -> int:
        return self.weights + self.workspaces + self.buffers


@dataclass(frozen=True)
class MemoryStats:
    """What a device holds.

    Attributes
    ----------
    device : str
    domains : tuple of DomainStats
        Those in use.
    peak : int
        Most bytes that were in use at once.
    limit : int or None
        What `memory_limit` allows the device, in bytes.
    weights_used : int
        Bytes that packed weights fill of those that are held for them.
    contexts : int
        Living matmul contexts, those that memory is allocated under included.
    contexts_process : int
        Those of all devices of this name in the process.
    context_limit : int or None
        How many it can have; None: as many as there are descriptors and memory for.
    descriptors : int
        File descriptors that the device's memory holds.
    descriptors_open, descriptor_limit : int
        Open descriptors of the process, and how many it may have (``ulimit -n``).
    """

    device: str
    domains: tuple[DomainStats, ...]
    peak: int
    limit: int | None
    weights_used: int
    contexts: int
    contexts_process: int
    context_limit: int | None
    descriptors: int
    descriptors_open: int
    descriptor_limit: int

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(domain.nbytes for domain in self.domains)

    def __str__(self) -> str:
        limit = "no limit is set" if self.limit is None else f"the limit is {_mib(self.limit)}"
        lines = [f"{self.device}: {_mib(self.nbytes)} of NPU memory in use, at most {_mib(self.peak)} so far; {limit}"]
        for each in self.domains:
            lines.append(
                f"  domain {each.domain}: {_mib(each.nbytes)} of {_mib(each.limit)}: weights {_mib(each.weights)}, "
                f"A and C {_mib(each.workspaces)}, buffers {_mib(each.buffers)}"
            )
        most = "" if self.context_limit is None else f"of {self.context_limit} "
        lines.append(
            f"  weights fill {_mib(self.weights_used)}; contexts {self.contexts} ({self.contexts_process} {most}in the "
            "process)"
        )
        lines.append(
            f"  descriptors {self.descriptors} ({self.descriptors_open} of {self.descriptor_limit} in the process)"
        )
        return "\n".join(lines)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 2**20 or nbytes == 0 else f"{nbytes / 2**10:.1f} KiB"


def open_descriptors() -> int:
    """Open file descriptors of this process; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # one of them is that of the listing itself
    except OSError:
        return 0


def descriptor_limit() -> int:
    """How many descriptors this process may have open (``ulimit -n``)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def descriptors_within_reach() -> int | None:
    """How many descriptors this process may have open once its limit has been raised; None: any number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def provide_descriptors(wanted: int = 1) -> None:
    """See to it that so many descriptors can be opened: raise the soft limit to the hard one where that is needed.

    Counting what is open takes longer the more there is: after a count a quarter of what was free is taken on trust.

    Raises
    ------
    NpuMemoryError
        If even the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or _trusted.take(soft, wanted):
        return
    needed = open_descriptors() + wanted
    _trusted.counted(soft, soft - needed - _SPARE_DESCRIPTORS)
    if needed + _SPARE_DESCRIPTORS <= soft:
        return
    if hard == resource.RLIM_INFINITY or hard > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            logger.info("raised the limit of open files from %d to %d: %d are open", soft, hard, needed - wanted)
            soft = hard
        except (OSError, ValueError) as error:
            logger.info("the limit of %d open files cannot be raised: %s", soft, error)
    if soft != resource.RLIM_INFINITY and needed > soft:
        raise NpuMemoryError(
            f"{wanted} more file descriptors are needed, which allocations of NPU memory and contexts hold: "
            f"{needed - wanted} are open and the process may have {soft}. Close what is not needed, or raise the limit "
            "(ulimit -n)."
        )


class _Trusted:
    """Descriptors that may be opened before they are counted again."""

    def __init__(self) -> None:
        self._soft, self._left = 0, 0

    def counted(self, soft: int, free: int) -> None:
        self._soft, self._left = soft, free // 4

    def take(self, soft: int, wanted: int) -> bool:
        self._left -= wanted
        return self._left >= 0 and self._soft == soft


_trusted = _Trusted()


def by_holder(sizes: Sequence[tuple[int, Holder, int]], limit: int) -> tuple[DomainStats, ...]:
    """Sum (domain, holder, bytes) per domain."""
    found = []
    for domain in sorted({domain for domain, _, _ in sizes} | {0}):
        totals = dict.fromkeys(Holder, 0)
        for where, holder, nbytes in sizes:
            if where == domain:
                totals[holder] += nbytes
        found.append(
            DomainStats(domain, totals[Holder.WEIGHTS], totals[Holder.WORKSPACES], totals[Holder.BUFFERS], limit)
        )
    return tuple(found)
