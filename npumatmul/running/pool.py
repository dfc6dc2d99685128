"""Contexts and buffers of a device that are kept for reuse, shared by all weights."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from npumatmul.chips import MemoryLimits
from npumatmul.device.budget import descriptors_within_reach
from npumatmul.device.buffer import PAGE
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.leases import Lease, is_idle
from npumatmul.device.session import NO_ROOM, Memory, Session
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import LayoutMismatchError, NpuMemoryError, RknnError

__all__ = ["ContextPool", "TileShape", "Workspace"]

logger = logging.getLogger(__name__)

#: Share of the process's contexts, or of its descriptors, that is kept for reuse; the rest is left to others in it.
_SHARE = 0.8
#: Most contexts that are kept where the process can have any number: each takes memory of the host as well. Twice what
#: real clients hold (facts 15).
_KEPT_MOST = 4096
_DYNAMIC_FUNCTIONS = (
    "rknn_matmul_create_dynamic_shape",
    "rknn_matmul_create_dyn_shape",
    "rknn_matmul_set_dynamic_shape",
)

#: A context of one shape, or of several: (spec, every M). M of the spec is the first of them.
_Key = tuple[ContextSpec, tuple[int, ...]]
_Pooled = MatmulContext | DynamicMatmulContext


@dataclass(frozen=True)
class TileShape:
    """What a tile needs: a context with this shape.

    Attributes
    ----------
    spec : ContextSpec
        With the M of the tile.
    buckets : tuple of int
        Every M that tiles with this K and N will have; the context is made for all of them where the runtime can.
    """

    spec: ContextSpec
    buckets: tuple[int, ...]


class ContextPool:
    """Matmul contexts of one device: the least recently used give way when there are too many.

    A context is leased to one call at a time; another call that wants the same meanwhile gets a copy. All that use the
    pool hold the device's lock. Other pools in the process are asked to give up a context where the runtime makes no
    further one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._contexts: dict[_Key, list[_Pooled]] = {}
        self._uses = 0  # a clock: each use is an instant of its own
        self._limit = _kept_most(session.chip.memory)
        runtime = session.runtime
        makes = runtime.has("rknn_matmul_create_dynamic_shape") or runtime.has("rknn_matmul_create_dyn_shape")
        self._dynamic = makes and runtime.has("rknn_matmul_set_dynamic_shape")
        #: What the runtime could not make with several shapes.
        self._static: set[_Key] = set()
        _pools.add(self)

    def __len__(self) -> int:
        return sum(map(len, self._contexts.values()))

    def static(self, specs: Sequence[ContextSpec], lease: Lease) -> list[MatmulContext]:
        """Contexts of one shape each, leased."""
        found = self._get([(spec, ()) for spec in specs], lease)
        assert all(isinstance(context, MatmulContext) for context in found)
        return found  # type: ignore[return-value]

    def for_tiles(self, tiles: Sequence[TileShape], lease: Lease) -> list[_Pooled]:
        """Contexts that have the shape of each tile, leased."""
        while True:
            try:
                return self._get([self._key(tile) for tile in tiles], lease)
            except _NotDynamicError as failed:
                logger.warning("%s: %s; contexts of one shape each serve instead", failed.key[0], failed.__cause__)
                self._static.add(failed.key)

    def again(self, contexts: Sequence[_Pooled], lease: Lease) -> bool:
        """Lease these contexts, if none of them is gone, broken or in use."""
        for context in contexts:  # every product comes here: no calls that can be spared
            ref = context.lease
            held = None if ref is None else ref()
            if (held is not None and not held.over) or context.struct.broken or context.closed:
                return False
        self._uses = uses = self._uses + 1
        ref = lease.ref
        for context in contexts:
            context.lease, context.used = ref, uses
        return True

    def _lease(self, contexts: Iterable[_Pooled], lease: Lease) -> None:
        self._uses += 1
        for context in contexts:
            context.lease = lease.ref
            context.used = self._uses

    def _key(self, tile: TileShape) -> _Key:
        if self._dynamic and len(tile.buckets) > 1 and tile.spec.m in tile.buckets:
            key = (replace(tile.spec, m=tile.buckets[0]), tile.buckets)
            if key not in self._static:
                return key
        return tile.spec, ()

    def _get(self, keys: Sequence[_Key], lease: Lease) -> list[_Pooled]:
        self.discard_broken()
        found = {key: self._idle(key) for key in dict.fromkeys(keys)}
        # what is leased now gives no way to what is made
        self._lease([context for context in found.values() if context is not None], lease)
        self._make_room(sum(context is None for context in found.values()))
        got: dict[_Key, _Pooled] = {}
        for key, context in found.items():
            got[key] = self._create(key) if context is None else context
            self._lease([got[key]], lease)
        return [got[key] for key in keys]

    def _idle(self, key: _Key) -> _Pooled | None:
        """One that is idle, the same one whenever several are."""
        return next((context for context in self._contexts.get(key, ()) if is_idle(context)), None)

    def _create(self, key: _Key) -> _Pooled:
        spec, buckets = key
        while True:
            try:
                context: _Pooled
                if buckets:
                    context = DynamicMatmulContext(self._session, spec, [(m, spec.k, spec.n) for m in buckets])
                else:
                    context = MatmulContext(self._session, spec)
                self._contexts.setdefault(key, []).append(context)
                return context
            except (RknnError, LayoutMismatchError, NpuMemoryError) as error:
                if buckets and _is_about_shapes(error) and self._works(spec):
                    raise _NotDynamicError(key) from error
                # Descriptors and memory are limited per process: give up our own contexts, the least recently used
                # first, then those of other devices in it, before giving up.
                limited = isinstance(error, NO_ROOM)
                if not (limited and (self.spare_one() or any(other.spare() for other in _others(self)))):
                    raise

    def _works(self, spec: ContextSpec) -> bool:
        """Whether a context of one shape can be made."""
        try:
            MatmulContext(self._session, spec).close()
        except (RknnError, LayoutMismatchError, NpuMemoryError):
            return False
        return True

    def _make_room(self, missing: int) -> None:
        """Destroy the least recently used contexts until so many more fit."""
        beyond = len(self) + missing - self._limit if missing else 0
        for key, context in self._spares() if beyond > 0 else ():
            if beyond <= 0:
                return
            logger.debug("destroying the least recently used context %s", key[0])
            self._destroy(key, context)
            beyond -= 1

    def spare_one(self) -> bool:
        """Destroy the least recently used context that is idle, if there is one."""
        spares = self._spares()
        if spares:
            key, context = spares[0]
            logger.info("no further context can be created; destroying %s", key[0])
            self._destroy(key, context)
        return bool(spares)

    def _spares(self) -> list[tuple[_Key, _Pooled]]:
        """Those that are idle, the least recently used first."""
        every = ((key, context) for key, copies in self._contexts.items() for context in copies)
        return sorted((each for each in every if is_idle(each[1])), key=lambda each: each[1].used)

    def spare(self) -> bool:
        """Destroy a context for the sake of another device, unless this one is being changed just now."""
        session = self._session
        if session.inherited or not session.lock.acquire(blocking=False):
            return False
        try:
            return not session.closed and self.spare_one()
        finally:
            session.lock.release()

    def discard_broken(self) -> None:
        """Destroy the contexts that failed, when the call that they failed in is over."""
        for key, context in self._spares_broken():
            logger.warning("a run failed: %s is destroyed and made anew", key[0])
            self._destroy(key, context)

    def _spares_broken(self) -> list[tuple[_Key, _Pooled]]:
        every = ((key, context) for key, copies in self._contexts.items() for context in copies)
        return [each for each in every if each[1].broken and is_idle(each[1])]

    def _destroy(self, key: _Key, context: _Pooled) -> None:
        copies = self._contexts[key]
        copies.remove(context)
        if not copies:
            del self._contexts[key]
        try:
            context.close()
        except RknnError as error:
            logger.warning("a context could not be destroyed: %s", error)

    def clear(self, domain: int | None = None) -> bool:
        """Destroy all that are idle, or those of an IOMMU domain; whether there was one."""
        going = [each for each in self._spares() if domain in (None, each[0][0].domain)]
        for key, context in going:
            self._destroy(key, context)
        return bool(going)


class WorkspaceBuffers(list[Memory]):
    """Buffers that are nobody else's until their lease is over, or nobody holds it any more.

    Attributes
    ----------
    lease : Lease
        By which they are held.
    """

    __slots__ = ("__weakref__", "lease")

    def __init__(self, memories: Sequence[Memory], lease: Lease) -> None:
        super().__init__(memories)
        self.lease = lease


class Workspace:
    """Buffers of A and C, of a few sizes, each four times the one before; each is lent to one user at a time.

    They are synchronised as a whole, so one token must not pay for what a prompt needed; but each holds a descriptor.
    What was A is never lent as C: the NPU would write there while the CPU's caches may hold what it wrote itself. They
    are in the IOMMU domain of the contexts that are bound to them. All that use it hold the device's lock.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._buffers: dict[tuple[str, int, int], list[Memory]] = {}  # by role, domain and size
        #: Lent when all was cleared: freed when they come back. A callback sees to those whose buffers is dropped.
        self._retired: dict[Memory, weakref.ref[Lease]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buffers.values()))

    @staticmethod
    def size_for(nbytes: int) -> int:
        """Bytes of a buffer with room for `nbytes`.

        Examples
        --------
        >>> Workspace.size_for(5000), Workspace.size_for(16384)
        (16384, 16384)
        """
        size = PAGE
        while size < nbytes:
            size *= 4
        return size

    def acquire(
        self, role: str, count: int, nbytes: int, lease: Lease | None = None, domain: int = 0
    ) -> WorkspaceBuffers:
        """Buffers that nobody else gets.

        Parameters
        ----------
        role : str
            ``"A"`` where the CPU writes into them, ``"C"`` where the NPU does.
        count : int
        nbytes : int
            For which each has room.
        lease : Lease, optional
            They are lent until it is over, or nobody holds it any more; by default one that only the list holds.
        domain : int
            IOMMU domain.

        Returns
        -------
        WorkspaceBuffers
            A list of them.

        Raises
        ------
        NpuMemoryError
            If there is no room for them. Nothing is lent then.
        """
        self._free_retired()
        size = self.size_for(nbytes)
        buffers = WorkspaceBuffers((), lease or Lease())
        for memory in self._buffers.get((role, domain, size), ()):
            if len(buffers) < count and is_idle(memory) and not memory.closed:
                memory.lease = buffers.lease.ref
                buffers.append(memory)
        while len(buffers) < count:
            memory = self._session.allocate(size, domain)  # idle buffers may have to go for it
            memory.lease = buffers.lease.ref
            self._buffers.setdefault((role, domain, size), []).append(memory)
            buffers.append(memory)
        return buffers

    def reacquire(self, buffers: WorkspaceBuffers, lease: Lease) -> bool:
        """Lend the same buffers until a lease is over, if all of them are there and nobody else has one."""
        retired = self._retired
        for memory in buffers:  # every product comes here: no calls that can be spared
            ref = memory.lease
            held = None if ref is None else ref()
            if (held is not None and not held.over) or memory.closed or (retired and memory in retired):
                return False  # retired ones are going to be freed
        buffers.lease = lease
        ref = lease.ref
        for memory in buffers:
            memory.lease = ref
        return True

    def clear(self, domain: int | None = None) -> bool:
        """Free those that are idle now, and those that are lent when they come back; whether there was an idle one.

        Those of one IOMMU domain, or all.
        """
        freed = False
        for key, kept in [each for each in self._buffers.items() if domain in (None, each[0][1])]:
            for memory in kept:
                if is_idle(memory):
                    freed = freed or not memory.closed
                    self._session.release(memory)
                else:
                    self._retire(memory)
            del self._buffers[key]
        self._free_retired()
        return freed

    def _retire(self, memory: Memory) -> None:
        lease = memory.lease() if memory.lease else None
        if lease is not None:
            session = self._session
            self._retired[memory] = weakref.ref(lease, lambda _: session.release_later(memory))

    def _free_retired(self) -> None:
        for memory in [memory for memory in self._retired if is_idle(memory)]:
            self._session.release(memory)
            del self._retired[memory]


class _NotDynamicError(Exception):
    """The runtime makes a context of one shape, but not of several."""

    def __init__(self, key: _Key) -> None:
        self.key = key


def _kept_most(limits: MemoryLimits) -> int:
    """How many contexts are kept for reuse."""
    if limits.contexts is not None:
        return int(limits.contexts * _SHARE)
    descriptors = descriptors_within_reach()
    if descriptors is None:
        return _KEPT_MOST
    return max(1, min(_KEPT_MOST, int(descriptors * _SHARE) // limits.context_descriptors))


def _is_about_shapes(error: Exception) -> bool:
    if isinstance(error, NpuMemoryError):
        return False
    return not isinstance(error, RknnError) or error.function in _DYNAMIC_FUNCTIONS


#: The pools of all devices in the process, which share its contexts.
_pools: weakref.WeakSet[ContextPool] = weakref.WeakSet()


def _others(than: ContextPool) -> list[ContextPool]:
    return [pool for pool in list(_pools) if pool is not than]
