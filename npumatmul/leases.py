"""Who uses what: contexts, buffers and weights are leased to a call, or to a result, for as long as it needs them."""

from __future__ import annotations

import weakref
from typing import Protocol

__all__ = ["Lease", "Leased", "is_idle"]


class Lease:
    """What it was given to is in use until it is `over`, or nobody holds it any more.

    Both end all that it holds at one stroke, so that an interrupt cannot leave a part of it behind: `over` is set by a
    plain assignment, and what is leased knows its lease by a weak reference only.

    Attributes
    ----------
    over : bool
        Set it when the work is done.
    ref : weakref to this
        What is leased keeps it.
    """

    __slots__ = ("__weakref__", "over", "ref")

    def __init__(self) -> None:
        self.over = False
        self.ref: weakref.ref[Lease] = weakref.ref(self)


class Leased(Protocol):
    """Something that one lease at a time holds."""

    lease: weakref.ref[Lease] | None


def is_idle(resource: Leased) -> bool:
    """Whether no lease holds it."""
    if resource.lease is None:
        return True
    lease = resource.lease()
    return lease is None or lease.over
