"""tools/neon_report.py: what it takes from the output of qemu, objdump and llvm-mca. None of them is needed here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import neon_report  # noqa: E402
from neon_report import Call, Core, Cycles, Judged, Loop  # noqa: E402

LOG = """\
Trace 0: 0x7f9f58000100 [0000000000001001/0000000000400580/00000001/00000201] main
Trace 0: 0x7f9f58000140 [0000000000001001/0000000000400600/00000001/00000201] enter_call
{}Trace 0: 0x7f9f58000140 [0000000000001001/0000000000400700/00000001/00000201] leave_call
Trace 0: 0x7f9f58000140 [0000000000001001/0000000000400584/00000001/00000201] main
"""
STEP = "Trace 0: 0x7f9f58000140 [0000000000001001/{:016x}/00000001/00000201] sum\n"

OBJDUMP = """
neon_calls:     file format elf64-littleaarch64

0000000000400800 <sum>:
  400800:\tldr\tq0, [x2], #16
  400804:\tadrp\tx1, 4a0000 <bytes+0x10>
  400808:\tfmov\tv1.4s, #1.0e+00 // not a word of it
  40080c:\tstp\tq0, q1, [x4], #-32
  400810:\tb.ne\t400800 <sum>  // b.any
"""

MCA = """
[0] Code Region - 0

Iterations:        200
Instructions:      2000
Total Cycles:      1010
Total uOps:        2200

Dispatch Width:    3
uOps Per Cycle:    2.18
IPC:               1.98
Block RThroughput: 3.5


[1] Code Region - 1

Iterations:        200
Instructions:      800
Total Cycles:      400
Total uOps:        800

Dispatch Width:    3
uOps Per Cycle:    2.00
IPC:               2.00
Block RThroughput: 2.0
"""


def test_instructions_between_the_marks_belong_to_the_call_that_was_printed() -> None:
    steps = [0x400800, *[0x400804, 0x400808] * 5, 0x40080C]
    log = LOG.format("".join(map(STEP.format, steps))) + LOG.format(STEP.format(0x400900))
    calls = list(neon_report.traced(log.splitlines(), ["rows sum 64 8", "checksum 7 0"], 0x400600, 0x400700))
    assert calls == [
        Call("rows sum", 64, 8, {0x400800: 1, 0x400804: 5, 0x400808: 5, 0x40080C: 1}),
        Call("checksum", 7, 0, {0x400900: 1}),
    ]
    assert calls[0].instructions == 12


def test_loops_are_neighbours_that_were_executed_equally_often() -> None:
    counts = {0: 1, 4: 100, 8: 100, 12: 99, 16: 1, 20: 40, 24: 40, 40: 40, 60: 2}
    assert neon_report.loops(counts) == [Loop(100, (4, 8, 12)), Loop(40, (20, 24)), Loop(40, (40,))]


def test_instructions_become_what_an_assembler_takes() -> None:
    code = neon_report.disassembled(OBJDUMP)
    assert code[0x400804] == "adrp x1, there"
    assert code[0x400808] == "fmov v1.4s, #1.0e+00"
    text = neon_report.regions(code, [Loop(9, (0x400800, 0x40080C)), Loop(3, (0x400810,))])
    assert text.splitlines() == [
        "# LLVM-MCA-BEGIN 0", "ldr q0, [x2], #16", "stp q0, q1, [x4]", "sub x4, x4, #32", "# LLVM-MCA-END",
        "# LLVM-MCA-BEGIN 1", "b.ne there", "# LLVM-MCA-END",
    ]  # fmt: skip


def test_calls_are_branches_to_models() -> None:
    assert [neon_report.for_models(words) for words in ("bl there", "blr x3", "b.ls there", "br x3")] == [
        ["b there"], ["br x3"], ["b.ls there"], ["br x3"],
    ]  # fmt: skip


def test_cycles_are_those_of_an_iteration() -> None:
    assert neon_report.cycles(MCA) == [Cycles(5.05, 3.5), Cycles(2.0, 2.0)]


@pytest.mark.parametrize(
    ("reads", "writes", "busy", "expected"),
    [(1000, 1000, 1.0, "memory"), (3000, 0, 1.0, "loads"), (0, 3000, 1.0, "stores"), (8, 8, 4.0, "units")],
)
def test_the_limit_is_what_takes_longest(reads: int, writes: int, busy: float, expected: str) -> None:
    clock = 2e9 if expected == "memory" else 1e9  # 0.2 or 0.1 cycles per byte
    core = Core("a core", "", clock, 8, 8)
    call = Call("a call", reads, writes, {0: 10, 4: 10, 8: 5})
    it = neon_report.judged(core, call, [(Loop(10, (0, 4)), Cycles(8.0, busy))])
    limits = {"memory": 400.0, "loads": 375.0, "stores": 375.0, "units": 10 * 4.0 * 25 / 20}
    assert (it.taken, it.limit, it.reason) == (8.0 * 10 * 25 / 20, limits[expected], expected)


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    lines = neon_report.table([Call("rows sum", 6, 2, {0: 1})], {"A76": [Judged(16.0, 4.0, "units")]})
    assert lines[-1] == "| rows sum | 8 | 1 | 2.00 | 0.50 units | **4.0** |"
    document = tmp_path / "document.md"
    document.write_text("Before\n\n| kernel | x |\n|---|---|\n| old | 1 |\n\nAfter\n")
    neon_report.write(document, lines)
    assert document.read_text() == "\n".join(["Before", "", *lines, "", "After", ""])
    document.write_text("nothing\n")
    with pytest.raises(RuntimeError, match="0 tables"):
        neon_report.write(document, lines)


TABLES = {
    "kernels/rows.h": "npumm_row_kernels",
    "kernels/finish.h": "npumm_finish_kernels",
    "kernels/hadamard.h": "npumm_hadamard_kernels",
    "kernels/multiply.h": "npumm_multipliers",
    "layers/attend.h": "npumm_attend_loops",
    "layers/loops.h": "npumm_layer_loops",
}


@pytest.mark.parametrize("header", TABLES)
def test_every_kernel_is_called_and_stands_in_the_document(header: str) -> None:
    """Fields of the tables of kernels; one that is added has to be judged, too."""
    body = re.search(rf"typedef struct {{([^}}]*)}} {TABLES[header]};", (ROOT / "native" / header).read_text())
    assert body is not None
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    fields = re.findall(r"\(\*(\w+)\)\(", code)
    for names in re.findall(r"npumm_\w+_loop ([^;]*);", code):
        fields += re.findall(r"\w+", names)
    assert len(fields) >= 2
    calls = (ROOT / "native" / "checks" / "neon_calls.c").read_text()
    document = neon_report.DOCUMENT.read_text()
    for field in fields:
        assert re.search(rf"->{field}\(|PRODUCT\({field},", calls), field
        assert re.search(rf"^\| [\w ]*\b{field}\b", document, re.MULTILINE), field
