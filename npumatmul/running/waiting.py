"""Waiting for other threads' calls: those in the way, and those that leave no room."""

from __future__ import annotations

from collections.abc import Sequence

from npumatmul.device.leases import Lease, Turn
from npumatmul.device.session import Session
from npumatmul.errors import NpuMemoryError

__all__ = ["Waiting"]


class Waiting:
    """Of a call that cannot begin yet. It holds nothing meanwhile; call `end` when the call is over."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn: Turn | None = None
        self._others: Sequence[Lease] = ()
        self._no_room = self._alone = False

    def no_room(self, error: Exception, lease: Lease, ended: int) -> None:
        """There was no room for what the call needs. The device's lock is held.

        Parameters
        ----------
        error : Exception
            It is raised where neither other calls nor what is kept for reuse can be the reason.
        lease : Lease
            Of what the call got, which it gives up.
        ended : int
            `Leases.ended`, from before the call asked for anything.
        """
        leases = self._session.leases
        lease.over = self._no_room = True
        self._others = leases.others()
        if self._others or leases.ended != ended:
            self._turn = self._turn or Turn(leases)
            return
        if self._alone or not isinstance(error, NpuMemoryError):
            raise error
        self._alone = True  # contexts that it leased may still be bound to buffers that were given up
        self._session.reclaim()

    def wait(self, in_the_way: Sequence[Lease]) -> None:
        """Wait until it is worth another attempt."""
        if not self._no_room:
            self._session.leases.wait_for(in_the_way)
        elif self._turn is not None:
            self._turn.wait(self._others)
        self._no_room = False

    def end(self) -> None:
        """Let those begin that were kept from it."""
        if self._turn is not None:
            self._turn.over = True
            self._turn.leave()
