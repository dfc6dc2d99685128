"""Questions about memory: Q13 to Q17, Q27, Q30, and what a domain holds (X2)."""

from __future__ import annotations

import ctypes as C
import mmap
import os
from pathlib import Path
from typing import Any

from npumatmul.chips.types import MatmulType
from npumatmul.errors import RknnError
from npumatmul.probe.answer import Answer, question
from npumatmul.probe.instrument import NATIVE, NORMAL, Context, Instrument, Matrix, judge, view_of
from npumatmul.rknn import MatmulInfo, MatmulLayout, MemAllocFlags, MemSyncMode
from npumatmul.rknn.runtime import TensorMemPointer
from npumatmul.rknn.structs import Context as Handle

I8 = MatmulType.INT8_INT8_INT32


def _sizes(instrument: Instrument, m: int = 4) -> tuple[int, int, int]:
    row = instrument.row(I8)
    return m, 2 * row.k_multiple.value, 2 * row.n_multiple.value


@question("Q13", "Does set_io_mem copy, or only record?", "per matrix and layout: copied, or read at the run")
def copies(instrument: Instrument) -> Answer:
    """Changes a buffer after set_io_mem, writes the cache back, runs again without binding, and sees which data ran."""
    details: dict[str, str] = {}
    m, k, n = _sizes(instrument)
    a, b, old = instrument.operands(I8, m, k, n)
    other_a, other_b, _ = instrument.operands(I8, m, k, n)
    for layout, name in ((NORMAL, "normal"), (NATIVE, "native")):
        for matrix, ac, of_b in (("A", layout, NATIVE), ("B", NORMAL, layout)):
            instrument.step(f"{name} {matrix} changed after set_io_mem")
            with instrument.context(I8, m, k, n, b=of_b, ac=ac) as context:
                if judge(context.product(a, b), old) != "right":
                    details[f"{name} {matrix}"] = "the plain product is wrong"
                    continue
                new = other_a @ b if matrix == "A" else a @ other_b
                context.write(matrix, context.packed_a(other_a) if matrix == "A" else context.packed_b(other_b))
                context.run()
                found = context.result()
            details[f"{name} {matrix}"] = (
                "read at the run" if judge(found, new) == "right" else "copied" if judge(found, old) == "right" else "?"
            )
    return Answer("; ".join(f"{name}: {said}" for name, said in details.items()), details)


@question("Q14", "What memory do normal layouts take beside the buffers, and when is it freed?", "bytes by stage")
def hidden_memory(instrument: Instrument) -> Answer:
    """Asks for memory figures and counts descriptors before create, after it, after set_io_mem and after destroy."""
    details: dict[str, Any] = {}
    m, k, n = _sizes(instrument)
    a, b, _ = instrument.operands(I8, m, k, n)
    with instrument.context(I8, *_sizes(instrument)) as watcher:
        for name, layout in (("normal", NORMAL), ("native", NATIVE)):
            instrument.step(f"memory of {name} layouts")
            stages = {"before": _use(instrument, watcher.handle)}
            with instrument.context(I8, m, k, n, b=layout, ac=layout) as context:
                context.allocate_all()
                stages["created, buffers made"] = _use(instrument, context.handle)
                context.write("A", context.packed_a(a))
                context.write("B", context.packed_b(b))
                context.bind()
                stages["bound"] = _use(instrument, context.handle)
                context.run()
                stages["run"] = _use(instrument, context.handle)
                size_b = context.attr("B").size
            stages["destroyed"] = _use(instrument, watcher.handle)
            details[name] = stages
    taken = {name: _grown(stages["created, buffers made"], stages["run"]) for name, stages in details.items()}
    left = {name: _grown(stages["before"], stages["destroyed"]) for name, stages in details.items()}
    return Answer(
        f"bytes that set_io_mem and run take: {_listed(taken)} (B has {size_b}); "
        f"still taken after destroy: {_listed(left)}",
        details,
    )


def _listed(values: dict[str, int | str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _use(instrument: Instrument, handle: int) -> dict[str, int | None]:
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    try:
        size = instrument.runtime.mem_size(handle)
    except RknnError:
        return {"descriptors": descriptors, "dma": None, "internal": None}
    return {
        "descriptors": descriptors,
        "dma": int(size.total_dma_allocated_size),
        "internal": int(size.total_internal_size),
    }


def _grown(before: dict[str, int | None], after: dict[str, int | None]) -> int | str:
    if before["dma"] is None or after["dma"] is None:
        return "not told"
    return after["dma"] - before["dma"]


@question(
    "Q15", "Is cache maintenance automatic?", "per matrix, for buffers of their own and slices: rounds that were right"
)
def automatic_sync(instrument: Instrument) -> Answer:
    """Runs with changing data, leaving out the synchronisation of one matrix at a time, and counts right results.

    The CPU's cache may or may not hold stale lines, so that one wrong round proves that synchronising is needed.
    Slices (rknn_create_mem_from_fd) are tried without any, and with rknn_mem_sync of the slice itself.
    """
    rounds = 4 if instrument.quick else 16
    details: dict[str, str] = {}
    for kind in ("own", "slice"):
        for left_out in "ABC":
            instrument.step(f"{kind} buffers, {left_out} not synchronised")
            details[f"{kind} {left_out}"] = f"{_rounds(instrument, kind, left_out, rounds, by_slice=False)} of {rounds}"
    for left_out in "ABC":
        instrument.step(f"slices, {left_out} synchronised through the slice")
        details[f"slice {left_out}, synchronised as a slice"] = (
            f"{_rounds(instrument, 'slice', left_out, rounds, by_slice=True)} of {rounds}"
        )
    needed = [name for name, said in details.items() if said.split()[0] != str(rounds)]
    text = f"not for: {', '.join(needed)}" if needed else f"no stale data in {rounds} rounds each"
    return Answer(text, details)


def _rounds(instrument: Instrument, kind: str, left_out: str, rounds: int, *, by_slice: bool) -> int:
    m, k, n = _sizes(instrument)
    right = 0
    with instrument.context(I8, m, k, n) as context:
        context.allocate_all()
        owners = dict(context.memories)
        slices: dict[str, Any] = {}
        if kind == "slice":
            slices = {name: _slice(instrument, context.handle, owner, 0, context.attr(name).size)
                      for name, owner in owners.items()}  # fmt: skip
            context.memories.update(slices)
        try:
            for _ in range(rounds):
                a, b, expected = instrument.operands(I8, m, k, n)
                for name, data in (("A", context.packed_a(a)), ("B", context.packed_b(b))):
                    context.write(name, data, sync=False)
                    _sync(instrument, context, owners, name, MemSyncMode.TO_DEVICE, left_out, by_slice)
                context.view("C").sum()  # lines of C are in the cache now
                context.bind()
                context.run()
                _sync(instrument, context, owners, "C", MemSyncMode.FROM_DEVICE, left_out, by_slice)
                right += judge(context.result(sync=False), expected) == "right"
        finally:
            for memory in slices.values():
                instrument.runtime.destroy_mem(context.handle, memory)
            context.memories.update(owners)
    return right


def _sync(
    instrument: Instrument,
    context: Context,
    owners: dict[str, Any],
    name: str,
    mode: MemSyncMode,
    left_out: str,
    by_slice: bool,
) -> None:
    if name != left_out:
        instrument.sync(context.handle, owners[name], mode)
    elif by_slice:
        instrument.sync(context.handle, context.memories[name], mode)


def _slice(instrument: Instrument, handle: int, owner: Any, offset: int, size: int) -> Any:
    whole = owner.contents
    return instrument.runtime.create_mem_from_fd(handle, whole.fd, whole.virt_addr, size, offset)


@question("Q16", "What must offsets of slices be multiples of?", "the smallest offset that works, in bytes")
def slice_alignment(instrument: Instrument) -> Answer:
    """Puts A, B and C at smaller and smaller offsets of one allocation and compares products with numpy.

    Offsets below 64 bytes are tried with --all only: the NPU may fault.
    """
    m, k, n = _sizes(instrument)
    a, b, expected = instrument.operands(I8, m, k, n)
    details: dict[str, str] = {}
    offset = instrument.table.slice_alignment.value
    best = None
    while offset >= (1 if instrument.everything else 64):
        instrument.step(f"slices at offset {offset}")
        details[str(offset)] = _at_offset(instrument, a, b, expected, offset)
        if details[str(offset)] != "right":
            break
        best, offset = offset, offset // 2
    cells = {"slice_alignment": best} if best else {}
    return Answer(f"{best} bytes work" if best else "none works", details, cells)


def _at_offset(instrument: Instrument, a: Matrix, b: Matrix, expected: Matrix, offset: int) -> str:
    m, k, n = _sizes(instrument)
    try:
        with instrument.context(I8, m, k, n) as context:
            sizes = {name: context.attr(name).size for name in "ABC"}
            owner = instrument.runtime.create_mem(
                context.handle, max(sizes.values()) * 3 + 6 * instrument.table.slice_alignment.value
            )
            slices: dict[str, Any] = {}
            try:
                start = offset
                for name, size in sizes.items():
                    slices[name] = _slice(instrument, context.handle, owner, start, size)
                    start += -(-size // offset) * offset + offset  # odd multiples of the offset, too
                data = view_of(owner)
                packed = {"A": context.packed_a(a), "B": context.packed_b(b)}
                for name, content in packed.items():
                    at = slices[name].contents.offset
                    data[at : at + content.size] = content
                instrument.sync(context.handle, owner, MemSyncMode.TO_DEVICE)
                for name, memory in slices.items():
                    instrument.runtime.matmul_set_io_mem(context.handle, memory, context.attr(name))
                context.run()
                instrument.sync(context.handle, owner, MemSyncMode.FROM_DEVICE)
                context.memories = {"C": slices["C"]}
                found = context.result(sync=False)
            finally:
                context.memories = {}
                for memory in slices.values():
                    instrument.runtime.destroy_mem(context.handle, memory)
                instrument.runtime.destroy_mem(context.handle, owner)
    except RknnError as error:
        return f"refused ({error.code})"
    return judge(found, expected)


@question("Q17", "Can one buffer serve several contexts, and several domains?", "right, wrong or refused, each")
def shared_buffers(instrument: Instrument) -> Answer:
    """Binds the A of one context to another as well and compares both products; with --all across two domains."""
    m, k, n = _sizes(instrument)
    a, b, expected = instrument.operands(I8, m, k, n)
    details: dict[str, str] = {}
    domains = [0, 1] if instrument.everything and instrument.table.iommu_domains.value > 1 else [0]
    for domain in domains:
        instrument.step(f"A of domain 0 in a second context of domain {domain}")
        try:
            with instrument.context(I8, m, k, n) as first, instrument.context(I8, m, k, n, domain=domain) as second:
                one = judge(first.product(a, b), expected)
                for name in "BC":
                    second.allocate(name)
                second.write("B", second.packed_b(b))
                second.memories["A"] = first.memories["A"]
                try:
                    second.bind()
                    second.run()
                    two = judge(second.result(), expected)
                finally:
                    del second.memories["A"]
            details[f"domain {domain}"] = f"{one}, {two}"
        except RknnError as error:
            details[f"domain {domain}"] = f"refused ({error.function}: {error.code})"
    said = "; ".join(f"second context in {name}: {verdict}" for name, verdict in details.items())
    return Answer(said + ("" if instrument.everything else "; across domains only with --all"), details)


@question("Q27", "What does TRY_ALLOC_SRAM do here?", "refused, memory as usual, or SRAM taken (bytes)")
def sram(instrument: Instrument) -> Answer:
    """Allocates with the flag, compares the SRAM figures before and after, and runs a product with A in that memory."""
    m, k, n = _sizes(instrument)
    a, b, expected = instrument.operands(I8, m, k, n)
    with instrument.context(I8, m, k, n) as context:
        instrument.step("create_mem2 with TRY_ALLOC_SRAM")
        try:
            before = instrument.runtime.mem_size(context.handle)
        except RknnError as error:
            return Answer(f"memory figures are refused ({error.code})")
        if not instrument.runtime.has("rknn_create_mem2"):
            return Answer("this runtime has no rknn_create_mem2")
        create = instrument.runtime.library[
            "rknn_create_mem2"
        ]  # around the binding, which refuses the flag before 2.3.2
        create.restype = TensorMemPointer
        create.argtypes = (Handle, C.c_uint64, C.c_uint64)
        made = create(context.handle, context.attr("A").size, int(MemAllocFlags.TRY_ALLOC_SRAM))
        if not made:
            return Answer("refused: NULL")
        context.memories["A"] = made
        after = instrument.runtime.mem_size(context.handle)
        context.allocate("B")
        context.allocate("C")
        verdict = judge(context.product(a, b), expected)
    taken = int(before.free_sram_size) - int(after.free_sram_size)
    total = int(after.total_sram_size)
    kind = f"SRAM, {taken} bytes of {total} taken" if taken else f"memory as usual, no SRAM taken (total {total})"
    return Answer(f"{kind}; the product is {verdict}", {"total": total, "taken": taken, "product": verdict})


@question("Q30", "Is info read during create only?", "yes, or what went wrong")
def info_lifetime(instrument: Instrument) -> Answer:
    """Overwrites info after create, then binds, runs and compares."""
    m, k, n = _sizes(instrument)
    a, b, expected = instrument.operands(I8, m, k, n)
    info = MatmulInfo(M=m, K=k, N=n, type=I8.code, B_layout=NORMAL)
    instrument.step("info overwritten after create")
    handle, io_attr = instrument.runtime.matmul_create(info)
    kept = MatmulInfo.from_buffer_copy(info)
    C.memset(C.byref(info), 0x7F, C.sizeof(info))
    context = Context(instrument, handle, io_attr, kept, I8)
    assert context.b_layout is MatmulLayout.NORM
    try:
        verdict = judge(context.product(a, b), expected)
    finally:
        context.free()
        instrument.runtime.matmul_destroy(handle)
    return Answer("yes" if verdict == "right" else f"no: the product is {verdict}", {"product": verdict})


@question("X2", "How many bytes does one IOMMU domain hold?", "bytes, or at least so many", dangerous=True)
def domain_bytes(instrument: Instrument) -> Answer:
    """Allocates, without touching the memory, until it fails, in halves down to a page.

    It stops at half of the machine's available memory, which is then the answer's lower bound.
    """
    budget = min(available_bytes() // 2, 1 << 32)
    chunk, total = 1 << 28, 0
    with instrument.context(I8, *_sizes(instrument, 1)) as context:
        memories = []
        limited = False
        try:
            while chunk >= mmap.PAGESIZE:
                if total + chunk > budget:
                    limited, chunk = True, chunk // 2
                    continue
                instrument.step(f"{total} bytes allocated, {chunk} more")
                try:
                    memories.append(instrument.runtime.create_mem(context.handle, chunk))
                    total += chunk
                except RknnError:
                    chunk, limited = chunk // 2, False
        finally:
            for memory in memories:
                instrument.runtime.destroy_mem(context.handle, memory)
    if limited:
        return Answer(f"at least {total}; stopped to leave memory to the system", {"bytes": total})
    return Answer(f"{total}", {"bytes": total, "allocations": len(memories)}, {"domain_bytes": total})


def available_bytes() -> int:
    """Memory that the kernel would give without swapping; a cautious guess where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 29
