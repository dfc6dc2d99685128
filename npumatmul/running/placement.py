"""What the products of a device share: contexts, buffers for A and C, executors, threads."""

from __future__ import annotations

import weakref

from npumatmul.device.device import Device
from npumatmul.device.leases import Lease, Spares
from npumatmul.device.result_memory import ResultMemory
from npumatmul.errors import ClosedError
from npumatmul.host.executor import Executor, RuntimeFunctions
from npumatmul.running.cpu_memory import CpuMemories
from npumatmul.running.pool import ContextPool
from npumatmul.running.workspace import Workspace

__all__ = ["Placement"]


class Placement:
    """What the products of one device share; `Device.attached` keeps the one instance.

    All that is acquired from it is leased, under the device's lock.

    Attributes
    ----------
    contexts : ContextPool
    workspace : Workspace
    cpu_memories : CpuMemories
        For products that the CPU makes.
    results : ResultMemory
    functions : RuntimeFunctions
        The runtime's, for executors.
    has_cores : bool
        Whether contexts can be bound to one core.
    """

    def __init__(self, device: Device) -> None:
        self._device = weakref.ref(device)
        self.has_cores = device.chip.has_core_mask
        self.contexts = ContextPool(device.session)
        self.workspace = Workspace(device.session)
        self.cpu_memories = CpuMemories()
        self.results = ResultMemory(device.session)
        self._executors: Spares[Executor] = Spares()
        address = device.runtime.address
        names = ("rknn_matmul_set_io_mem", "rknn_matmul_run", "rknn_mem_sync", "rknn_matmul_set_dynamic_shape")
        self.functions = RuntimeFunctions(*map(address, names))
        device.session.reclaimers.add(self)

    @classmethod
    def of(cls, device: Device) -> Placement:
        return device.attached(cls, cls)

    def executor(self, lease: Lease) -> Executor:
        """An executor, until the lease is over."""
        return self._executors.acquire(lease, self._make_executor)

    def _make_executor(self) -> Executor:
        device = self._device()
        if device is None:
            raise ClosedError("the device is gone")
        made = Executor()
        device.reports.append(made.report)
        return made

    def spare_one(self) -> bool:
        """Destroy the context that was used longest ago, unless all are in use."""
        return self.contexts.spare()

    def reclaim(self, domain: int | None = None) -> bool:
        """Give up contexts and buffers of A and C that are idle, to be made anew. The lock is held."""
        if domain is None:
            self.cpu_memories.clear()
        contexts = self.contexts.clear(domain)
        return self.workspace.clear(domain) or contexts

    def close(self) -> None:
        """End the threads, free buffers, then contexts."""
        self._executors.close()
        self.cpu_memories.clear()
        self.workspace.clear()
        self.contexts.clear()
