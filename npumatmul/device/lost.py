"""Whether a device is gone, and what is said then."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from npumatmul.device.budget import Holder, descriptor_limit, open_descriptors
from npumatmul.device.memory import Memory
from npumatmul.device.registry import ContextEntry, MemoryEntry, Registry
from npumatmul.errors import DeviceLostError, RknnError
from npumatmul.rknn import MatmulInfo, MemSyncMode, Runtime

__all__ = ["LOOK_AT_THE_DRIVER", "LOOK_AT_THE_SETTINGS", "answers", "lost_error"]

#: Bytes that are allocated to find out.
_LITTLE = 1 << 12
#: So near to their limit descriptors may be the reason why nothing can be made.
_FEW_DESCRIPTORS = 8
#: What may be wrong where not even the smallest context can be made.
LOOK_AT_THE_DRIVER = (
    "Not even the smallest context can be made: the NPU's kernel driver cannot be opened, or is too old for this "
    "runtime (0.9.2 or newer is advised). What the runtime printed on standard error says which. Look at: the driver's "
    "version (dmesg | grep -i rknpu, or /sys/kernel/debug/rknpu/version); whether this user may open /dev/dri/renderD* "
    "or /dev/rknpu (in a container they have to be passed on); and whether librknnrt.so and the driver are of one age. "
    "docs/board.md goes through it step by step."
)
LOOK_AT_THE_SETTINGS = (
    " Here the NPU is simulated: a variable NPUMATMUL_SIM_... may ask for just that (DRIVER, FAULTS), or for what this "
    "CPU does not have (INSTRUCTIONS); docs/simulator.md has them all."
)


def lost_error(name: str, first: RknnError) -> DeviceLostError:
    """The error of a device that is gone, caused by the call that failed first."""
    lost = DeviceLostError(
        f"the device {name} is gone: {first.what}; since then the runtime does nothing any more, whatever it is asked. "
        "What was on the device is lost. A new Device may work, with weights packed anew; if it does not, the kernel's "
        "log (dmesg) may say why."
    )
    lost.__cause__ = first
    return lost


def answers(runtime: Runtime, registry: Registry, anchors: Iterable[ContextEntry], smallest: MatmulInfo) -> bool:
    """Whether a device does what it can always do. The session's lock is held.

    A NULL of `rknn_create_mem` and a context that is refused may mean that there is no room; a lost device fails to do
    what needs none as well.

    Parameters
    ----------
    runtime, registry
        Of the session.
    anchors : iterable of ContextEntry
        Contexts under which memory can be allocated.
    smallest : MatmulInfo
        Of the smallest context.
    """
    if any(_allocates(runtime, registry, anchor) for anchor in anchors):
        return True
    if runtime.has("rknn_mem_sync"):
        for memory in registry.allocations():
            try:
                runtime.mem_sync(memory.ctx, memory.pointer, MemSyncMode.TO_DEVICE)
            except RknnError:
                return False
            return True
    context = ContextEntry()
    try:
        runtime.matmul_create(smallest, context)
    except RknnError:
        return descriptor_limit() - open_descriptors() < _FEW_DESCRIPTORS
    with suppress(RknnError):
        registry.destroy(context)
    return True


def _allocates(runtime: Runtime, registry: Registry, anchor: ContextEntry) -> bool:
    """Whether a page can be allocated; it is given back."""
    entry = MemoryEntry(anchor.value, 0, _LITTLE, Holder.WORKSPACES)
    memory = Memory(runtime, entry)
    registry.add(entry, memory)
    with suppress(RknnError):
        runtime.create_mem(entry.ctx, entry.size, entry)
    made = entry.exists
    with suppress(RknnError):
        registry.destroy(entry)
    return made
