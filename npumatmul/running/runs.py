"""Runs of one plan with a weight: one call at a time on contexts of its own, which may wait, or be repeated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import Any

from npumatmul.device.budget import NO_ROOM
from npumatmul.device.buffer import Buffer
from npumatmul.device.leases import Lease
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import ClosedError, NpuError, RknnError
from npumatmul.host.activation import Activation
from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import PlacedEpilogue
from npumatmul.host.executor import Call
from npumatmul.planning.product import MatmulPlan
from npumatmul.rknn import MatmulLayout
from npumatmul.running.bound import PROVEN, SHORT, BoundProgram
from npumatmul.running.logged import log_file, logged
from npumatmul.running.placement import Placement
from npumatmul.running.pool import PooledContext, TileShape
from npumatmul.running.stored import StoredWeight
from npumatmul.running.waiting import Waiting

__all__ = ["Runs"]

#: A plan is bound so often, each time to contexts of its own, for threads that are at work with it at once.
_BOUND = 8
#: Of a bound program whose call may refer to one epilogue or another.
_UNKNOWN: Any = object()


class Runs:
    """What products of one plan with a weight have in common.

    Parameters
    ----------
    weight : StoredWeight
    plan : MatmulPlan
    activation : Activation
        How rows of the left operand become rows of A.
    scales : tuple of float, optional
        Of A, B and C, where the runtime itself applies them.
    cores : tuple of int, optional
        The NPU's cores, in the order in which the plan counts them; by default those of the weight.
    """

    #: Whether A and C stand in the memory of arrays.
    _in_place = False
    #: Whether the NPU computes.
    on_npu = True

    def __init__(
        self,
        weight: StoredWeight,
        plan: MatmulPlan,
        activation: Activation,
        scales: tuple[float, float, float] | None = None,
        cores: tuple[int, ...] | None = None,
    ) -> None:
        self._cores = weight.where.cores if cores is None else cores
        self._weight, self._device, self._session = weight, weight.device, weight.device.session
        self._plan, self._activation, self._scales = plan, activation, scales
        self._placement = Placement.of(weight.device)
        self._bound: list[BoundProgram] = []
        #: That of the last call.
        self._last_bound: BoundProgram | None = None

    def run(
        self,
        call: Call | Callable[[BoundProgram], Call] | None,
        a: Any,
        out: Any,
        buffers: tuple[Buffer, ...] = (),
        computes: tuple[int, int] | None = None,
        start: Callable[[], None] | None = None,
        end: Callable[[], None] | None = None,
        after: PlacedEpilogue | None = None,
        addresses: tuple[int, int] | None = None,
    ) -> None:
        """Run a call as soon as it can begin. Where contexts broke they are made anew, and it is repeated once.

        It is prepared under the device's lock and runs without, so that calls of other threads go on meanwhile. Until
        it is over the weight keeps its memory, whoever closes it.

        Parameters
        ----------
        call : Call, callable or None
            What is given a bound program under the lock makes it. Without one, rows of `a`, and of `out`, stand one
            behind the other: nothing is looked at.
        a, out : ndarray or None
            What the CPU reads, and where it stores the result.
        buffers : tuple of Buffer
            Of arrays that it runs with, which nobody may close meanwhile.
        computes : (int, int), optional
            Where the NPU writes the result, as of a `Lease`.
        start, end : callable, optional
            Are called before and after the run. Where they fail contexts count as broken: caches may be wrong.
        after : PlacedEpilogue, optional
            Without a call: the epilogue, one that lasts.
        addresses : (int, int), optional
            Of `a` and `out`, where they are known.

        Raises
        ------
        RknnError
            If a function of the runtime fails, and fails again when all is repeated with new contexts.
        DeviceLostError
            If it fails because the device is gone.
        NotFiniteError
            If a row that has to be quantized holds an inf or nan.
        ClosedError
            If weight, device or one of the buffers are closed.
        """
        weight, device, session = self._weight, self._device, self._session
        if session.inherited:  # looked at before the lock, which may be held for ever in a forked child
            session.check_usable()
        leases, waiting = session.leases, None
        first: RknnError | None = None
        try:
            while True:
                lease: Lease | None = None
                bound: BoundProgram | None = None
                others: Sequence[Lease] = ()
                try:
                    with session.lock:
                        if session.closed:
                            session.check_usable()
                        if weight.closed:
                            raise ClosedError("this packed weight is closed; pack it again")
                        for buffer in buffers:
                            if buffer.is_left or buffer._memory.closed:
                                raise ClosedError("this NPU buffer is closed")
                        if device.released:
                            device.collect()
                        ended, last = leases.ended, self._last_bound
                        same = None if last is None else last.last_lease()
                        if same is not None and leases.enter_again(same):  # nearly always
                            lease, bound = same, last  # it is this call's own from here on, and not before
                            lease.over, lease.thread = False, get_ident()
                            lease.stores, lease.computes, lease.buffers = out, computes, buffers
                        else:
                            lease = Lease(weight.tiles, out, computes, buffers)
                            others = leases.enter(lease)
                        if not others:
                            try:
                                if device.weights.unsynchronised:
                                    device.weights.flush()
                                if bound is None:
                                    bound = self._acquire(lease)
                                ready = call if call is None or isinstance(call, Call) else call(bound)
                            except NO_ROOM as error:
                                bound, waiting = None, waiting or Waiting(session)
                                if not self.does_without_turns():
                                    waiting.no_room(error, lease, ended)
                    if bound is not None:
                        if ready is None:
                            ready = bound.call
                            ready.a, ready.out = addresses or (address_of(a), address_of(out))
                            if bound.after is not after:
                                bound.after = _UNKNOWN  # until the call has it, for an interrupt may come before
                                ready.epilogue = None if after is None else after.pointer
                                bound.after = after
                        try:
                            if start is not None:
                                start()
                            if bound.executor.execute(bound.struct, ready, bound.proven >= PROVEN) == 0:
                                if bound.proven < PROVEN:
                                    bound.proven += 0 < bound.executor.report.nanoseconds < SHORT
                                if end is not None:
                                    end()
                                return
                        except RknnError as error:
                            session.raise_if_lost(error)
                            if not bound.is_repeated_after(error):
                                raise
                            bound.mark_broken()
                            if first is not None:
                                raise bound.in_vain(error) from error
                            first = error
                        else:
                            failed = bound.failure(repeated=first is not None)
                            if first is not None or not bound.broken or not isinstance(failed, RknnError):
                                raise failed
                            session.raise_if_lost(failed)
                            first = failed
                except BaseException:
                    if bound is not None and bound.executor.given_up:
                        bound.give_up(session, weight, [buffer._memory for buffer in buffers], (call, a, out))
                    raise
                finally:
                    if lease is not None:
                        lease.over = True
                        lease.stores, lease.buffers = None, ()
                        leases.leave(lease)
                        if bound is not None and lease.worn:
                            bound.forget_lease(lease)
                if bound is None:
                    waiting = waiting or Waiting(session)
                    waiting.wait(others)
                elif waiting is not None:
                    waiting.end()
                    waiting = None
        except NpuError as error:
            if isinstance(error, RknnError):
                session.raise_if_lost(error)
            if first is not None and error is not first:
                raise error from first
            raise
        finally:
            first = None  # its traceback refers to this frame
            if waiting is not None:
                waiting.end()

    @property
    def weight(self) -> StoredWeight:
        """The weight."""
        return self._weight

    @property
    def plan(self) -> MatmulPlan:
        """How it is cut."""
        return self._plan

    @property
    def products(self) -> Iterable[Runs]:
        """What one run multiplies: this one product."""
        return (self,)

    def bare_call(self, *, runs: bool = True) -> Callable[[], int]:
        """The executor's call of the last run, which was one without a call, to be timed: it gives the executor's code.

        What that run read and wrote has to stay where it was, and nothing else may run on the device until the last
        time that this is called. Without `runs` it does all but the runs.
        """
        bound = self._last_bound
        assert bound is not None  # nothing ran
        return bound.executor.bare_call(bound.struct, bound.call, runs=runs)

    def plain_call(self) -> Call:
        """A call for rows that stand one behind the other, without addresses."""
        return Call()

    def does_without_turns(self) -> bool:
        """Have one thread serve each core from now on, with half the contexts and buffers; whether that is new."""
        changes = self._plan.turns > 1
        if changes:
            self._plan, self._bound = self._plan.without_turns(), []
        return changes

    def _acquire(self, lease: Lease) -> BoundProgram:
        """The program bound to what a lease is of from now on."""
        for each in self._bound:
            if each.acquire(lease):
                self._last_bound = each
                return each
        self._last_bound = bound = self._bind(lease)
        return bound

    def _bind(self, lease: Lease) -> BoundProgram:
        """The program bound once more: those that there are are in use or broken."""
        contexts = self._placement.contexts.for_tiles(self.tiles(), lease)
        return self._bound_once_more(self.bound_with(contexts, self.plain_call()), lease)

    def bound_with(self, contexts: Sequence[PooledContext], call: Call) -> BoundProgram:
        """The program bound to contexts that have the shapes of `tiles`, with a call; nothing else is acquired."""
        how = self._plan, self._weight, self._activation, contexts, call
        return BoundProgram(self._placement, *how, in_place=self._in_place)

    def _bound_once_more(self, bound: BoundProgram, lease: Lease) -> BoundProgram:
        """Remember what was bound, with all that a call of the lease needs."""
        bound.acquire_others(lease)
        self._bound = [bound, *(other for other in self._bound if not other.broken)][:_BOUND]
        return bound

    def tiles(self) -> list[TileShape]:
        """What contexts the tiles need: ranges of rows, slices of K, tiles of N."""
        weight, plan = self._weight, self._plan
        if weight.in_host_memory:
            raise ValueError("this packed weight stands in ordinary memory; the NPU cannot multiply with it")

        cores = self._cores

        def core(number: int) -> int:
            return number if cores is None else cores[number]

        w = plan.weight
        return [
            TileShape(
                ContextSpec(
                    w.mm_type,
                    m_span.padded,
                    each.k_span.padded,
                    n.padded,
                    MatmulLayout.NATIVE,
                    MatmulLayout.NATIVE if w.ac_native else MatmulLayout.NORM,
                    core=core(plan.core(m_index, n_index)) if self._placement.has_cores else None,
                    domain=weight.domain,
                    scales=self._scales,
                ),
                w.buckets,
                plan.turn(m_index),
            )
            for m_index, m_span in enumerate(plan.m_spans)
            for each in weight.slices
            for n_index, n in enumerate(w.n_spans)
        ]


_path = log_file()
if _path is not None:
    Runs.run = logged(Runs.run, _path)  # type: ignore[method-assign]
