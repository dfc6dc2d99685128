"""Runs that an interrupt gave up: what they work with stays theirs until they end after all, if they ever do."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from npumatmul.device.leases import Lease, Leases
from npumatmul.device.memory import Memory
from npumatmul.host.executor import Executor

__all__ = ["give_up", "recover"]


class _Context(Protocol):
    def hold(self, lease: Lease) -> None: ...


@dataclass(eq=False)
class _GivenUp:
    """A call whose threads still wait for the runtime."""

    leases: Leases
    lease: Lease
    executor: Executor
    keeps: object


#: Whose executors are that lost threads: nobody's.
_for_ever = Lease()
#: Held here, so that no garbage collector takes what those threads work with.
_all: list[_GivenUp] = []


def give_up(
    leases: Leases,
    guard: AbstractContextManager[Any],
    executor: Executor,
    contexts: Iterable[_Context],
    memories: Iterable[Memory],
    weight: object = None,
    keeps: object = None,
) -> Lease:
    """Let threads that do not come back have what they were given.

    Parameters
    ----------
    leases, guard
        Of the session.
    executor : Executor
        Whose threads they are. It serves nobody else any more.
    contexts, memories : iterable
        What they may use.
    weight : object, optional
        Of `Lease`.
    keeps : object, optional
        What else has to live.

    Returns
    -------
    Lease
        It is over when they came back.
    """
    lease = Lease(weight)
    lease.given_up = True
    executor.lease = _for_ever.ref
    given_up = _GivenUp(leases, lease, executor, keeps)
    _all.append(given_up)
    leases.given_up.append(lease)
    with guard:
        for context in contexts:
            context.hold(lease)
        for memory in memories:
            memory.use(lease)
            memory.lease, memory.home = lease.ref, None  # it serves nobody else, either
    return lease


def recover(leases: Leases) -> None:
    """Take back what threads had that came back after all."""
    for each in [each for each in list(_all) if each.leases is leases and not each.executor.lost]:
        each.lease.over = True
        leases.given_up.remove(each.lease)
        _all.remove(each)
