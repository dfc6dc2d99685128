"""Questions about calls and codes: Q24, Q25, Q28, and Q31, which software cannot answer."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from typing import Any

from npumatmul.chips.types import MatmulType
from npumatmul.errors import RknnError, rknn_error
from npumatmul.probe.answer import Answer, Question, question
from npumatmul.probe.instrument import NORMAL, Instrument
from npumatmul.probe.trial import Trials
from npumatmul.rknn import (
    InputOutputNum,
    MatmulInfo,
    MatmulIoAttr,
    MemSize,
    MemSyncMode,
    PerfRun,
    QueryCmd,
    SdkVersion,
)
from npumatmul.rknn.structs import Context

I8 = MatmulType.INT8_INT8_INT32


class _TooLarge(C.Structure):
    """A result of a wrong size; larger than any, lest a runtime that does not look write beyond it."""

    _fields_ = (("bytes", C.c_uint8 * 1024),)


@question("Q24", "Which queries does a matmul context answer?", "per query: its figures, or the code")
def queries(instrument: Instrument) -> Answer:
    """Asks a context that has run for its version, memory, number of tensors and time of the last run."""
    details: dict[str, Any] = {}
    row = instrument.row(I8)
    m, k, n = 4, 16 * row.k_multiple.value, 16 * row.n_multiple.value
    a, b, _ = instrument.operands(I8, m, k, n)
    asked = {
        QueryCmd.SDK_VERSION: SdkVersion(), QueryCmd.IN_OUT_NUM: InputOutputNum(), QueryCmd.MEM_SIZE: MemSize(),
        QueryCmd.PERF_RUN: PerfRun(),
    }  # fmt: skip
    with instrument.context(I8, m, k, n) as context:
        context.product(a, b)
        for command, result in asked.items():
            instrument.step(f"query {command.name}")
            try:
                instrument.runtime.query(context.handle, command, result)
            except RknnError as error:
                details[command.name] = f"refused ({error.code})"
                continue
            values = {name: getattr(result, name) for name, *_ in result._fields_ if name != "reserved"}
            details[command.name] = {
                name: value.decode("ascii", "replace") if isinstance(value, bytes) else value
                for name, value in values.items()
            }
    said = [
        f"{command}: {', '.join(f'{n} {v}' for n, v in found.items()) if isinstance(found, dict) else found}"
        for command, found in details.items()
    ]
    return Answer("; ".join(said), details)


@question("Q25", "Which code does each wrong call return?", "a code per call")
def return_codes(instrument: Instrument) -> Answer:
    """Makes calls that are wrong in ways that no recorded runtime crashes on, and notes the codes.

    With --all also a run without buffers, which reaches the driver.
    """
    row, runtime = instrument.row(I8), instrument.runtime
    k, n = row.k_multiple.value, row.n_multiple.value
    codes: dict[str, int | str] = {}

    def note(what: str, call: Callable[[], object]) -> None:
        instrument.step(what)
        try:
            call()
            codes[what] = 0
        except RknnError as error:
            codes[what] = error.code
        except NotImplementedError:
            codes[what] = "no such function"

    def create(**fields: int) -> None:
        info = {"M": 1, "K": k, "N": n, "type": int(I8.code), "B_layout": int(NORMAL), **fields}
        ctx, io_attr = Context(0), MatmulIoAttr()
        # around the binding, which refuses on its own what no runtime knows
        code = runtime.library["rknn_matmul_create"](C.byref(ctx), C.byref(MatmulInfo(**info)), C.byref(io_attr))
        if code != 0:
            raise rknn_error("rknn_matmul_create", code)
        runtime.matmul_destroy(ctx.value)

    note("create: unknown type", lambda: create(type=14))
    note("create: K not aligned", lambda: create(K=k + 1))
    note("create: N not aligned", lambda: create(N=n + 1))
    if instrument.table.quant_params.value:
        note("create: unknown layout", lambda: create(B_layout=9))
        note("create: unknown quantization", lambda: create(B_quant_type=9))
        note("create: negative domain", lambda: create(iommu_domain_id=-1))
    note("run: context 0", lambda: runtime.matmul_run(0))
    note("destroy: context 0", lambda: runtime.matmul_destroy(0))
    note("set_core_mask: context 0", lambda: runtime.matmul_set_core_mask(0, 1))  # type: ignore[arg-type]
    with instrument.context(I8, 1, k, n) as context:
        context.allocate_all()
        memory, handle = context.memories["A"], context.handle
        note("set_io_mem: context 0", lambda: runtime.matmul_set_io_mem(0, memory, context.attr("A")))
        note("set_io_mem: no memory", lambda: runtime.matmul_set_io_mem(handle, None, context.attr("A")))  # type: ignore[arg-type]
        unknown = type(context.attr("A")).from_buffer_copy(context.attr("A"))
        unknown.name = b"Z"
        note("set_io_mem: unknown name", lambda: runtime.matmul_set_io_mem(handle, memory, unknown))
        note("set_core_mask: 3", lambda: runtime.matmul_set_core_mask(handle, 3))  # type: ignore[arg-type]
        note("mem_sync: no memory", lambda: runtime.mem_sync(handle, None, MemSyncMode.TO_DEVICE))  # type: ignore[arg-type]
        note("destroy_mem: no memory", lambda: runtime.destroy_mem(handle, None))  # type: ignore[arg-type]
        note("query: wrong size", lambda: runtime.query(handle, QueryCmd.SDK_VERSION, _TooLarge()))
        if instrument.table.dynamic_shapes.value:
            note("set_dynamic_shape: static context", lambda: runtime.matmul_set_dynamic_shape(handle, (1, k, n)))
        if instrument.everything:
            note("run: nothing bound", lambda: runtime.matmul_run(handle))
    return Answer("; ".join(f"{what}: {code}" for what, code in codes.items()), codes)


@question("Q28", "Is rknn_matmul_create_dyn_shape exported?", "yes or no, with its successor")
def old_name(instrument: Instrument) -> Answer:
    """Looks the names up in the library; nothing is called."""
    names = ("rknn_matmul_create_dyn_shape", "rknn_matmul_create_dynamic_shape", "rknn_create_mem_from_mb_blk")
    exported = {name: instrument.runtime.has(name) for name in names}
    return Answer(", ".join(f"{name}: {'yes' if has else 'no'}" for name, has in exported.items()), exported)


rv1126b = Question(
    "Q31",
    "Does RV1126B have the matmul API?",
    reason="npumatmul has no row for this chip, so that its device tree is not recognised: a report from such a board "
    "with the vendor's own demo program would tell.",
)


@question("X3", "Do the shapes that are reported to abort the process do so here?", "per shape: right, or how it ended",
          dangerous=True)  # fmt: skip
def aborting_shapes(instrument: Instrument) -> Answer:
    """Runs the reported N with the smallest M and K, in a process below this one, started again after a crash."""
    details: dict[str, str] = {}
    with Trials(instrument) as trials:
        for problem in instrument.table.problems:
            for extent in problem.extents:
                for mm_type in instrument.supported(*problem.types[:1]):
                    instrument.step(f"{mm_type.name} N={extent}")
                    details[f"{mm_type.name} N={extent}"] = trials.attempt(
                        mm_type, 1, instrument.row(mm_type).k_multiple.value, extent
                    )
    return Answer("; ".join(f"{what}: {said}" for what, said in details.items()) or "none is reported", details)
