"""Print what models of processors say about the loops for 64-bit ARM: nobody has measured them on a board.

    python3 tools/neon_report.py             the table of docs/performance.md
    python3 tools/neon_report.py --far       and the instructions of loops that are far from a limit
    python3 tools/neon_report.py --write     and put the table there

The kernels are cross-built as CMake builds them for the package, and native/checks/neon_calls.c calls each once under
qemu, which tells every instruction that is executed. Those that are executed most are the inner loops; llvm-mca says
how many cycles they take on a core.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import c_tests
import check_aarch64
import packages

NEEDED = {**check_aarch64.NEEDED, "llvm-mca": "llvm"}
DOCUMENT = c_tests.ROOT / "docs" / "performance.md"
#: Bytes per second that one core can move.
MEMORY = 10e9
#: A loop that takes more than so many times its limit is far from it.
FAR = 2.0
#: Iterations that llvm-mca plays through.
ITERATIONS = 200


@dataclass(frozen=True)
class Core:
    """What a core loads and stores per cycle, in bytes, its clock, and llvm-mca's name for it."""

    name: str
    model: str
    clock: float
    load: int
    store: int

    def limits(self, reads: int, writes: int) -> dict[str, float]:
        """Cycles that the bytes of a call take where nothing else does."""
        memory = (reads + writes) * self.clock / MEMORY
        return {"memory": memory, "loads": reads / self.load, "stores": writes / self.store}


CORES = (Core("Cortex-A76", "cortex-a76", 2.2e9, 32, 16), Core("Cortex-A55", "cortex-a55", 1.8e9, 8, 16))


@dataclass(frozen=True)
class Call:
    """A call of a kernel: the bytes it has to move, and how often each instruction was executed, by address."""

    name: str
    reads: int
    writes: int
    counts: Mapping[int, int]

    @property
    def instructions(self) -> int:
        """Executed ones."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Loop:
    """Neighbouring instructions that were executed equally often."""

    count: int
    addresses: tuple[int, ...]

    @property
    def instructions(self) -> int:
        """Executed ones."""
        return self.count * len(self.addresses)


@dataclass(frozen=True)
class Cycles:
    """Of one iteration: those it takes, and those that units of the core are busy if nothing has to wait."""

    taken: float
    busy: float


def traced(lines: Iterable[str], called: Iterable[str], enter: int, leave: int) -> Iterator[Call]:
    """The calls of neon_calls.c, from qemu's log of instructions and from what the program printed."""
    printed = iter(called)
    counts: Counter[int] | None = None
    for line in lines:
        found = re.search(r"\[[^/\]]*/([0-9a-f]+)/", line)
        if found is None:
            continue
        address = int(found[1], 16)
        if address == enter:
            counts = Counter()
        elif address == leave and counts is not None:
            name, reads, writes = next(printed).rsplit(" ", 2)
            yield Call(name, int(reads), int(writes), counts)
            counts = None
        elif counts is not None:
            counts[address] += 1


def loops(counts: Mapping[int, int], least: float = 0.01) -> list[Loop]:
    """Those that make up at least that share of a call. A loop that is entered in its middle is one loop."""
    groups: list[list[int]] = []
    for address in sorted(counts):
        last = groups[-1][-1] if groups else None
        if last == address - 4 and abs(counts[last] - counts[address]) <= 0.12 * counts[last]:
            groups[-1].append(address)
        else:
            groups.append([address])
    found = [Loop(max(counts[address] for address in group), tuple(group)) for group in groups]
    total = sum(counts.values())
    return [loop for loop in found if loop.count > 1 and loop.instructions >= least * total]


def disassembled(text: str) -> dict[int, str]:
    """Instructions by address, from objdump, in words that an assembler takes."""
    found = re.findall(r"^ +([0-9a-f]+):\t(.*)$", text, re.MULTILINE)
    return {
        int(address, 16): re.sub(r"\b[0-9a-f]+ <[^>]*>", "there", re.sub(r"\s*//.*", "", words)).replace("\t", " ")
        for address, words in found
    }


def for_models(words: str) -> list[str]:
    """An instruction as models shall see it.

    They would have the step of a store's pointer wait for what is stored, a load of a part of a register for what was
    in it before, though such loads clear the rest, and a call take a hundred cycles: what is called is counted itself.
    """
    called = re.fullmatch(r"bl(r?) (\w+)", words)
    if called is not None:
        return [f"b{called[1]} {called[2]}"]
    step = re.fullmatch(r"(st[rp] .*\[)(\w+)\], #(-?)(\w+)", words)
    if step is not None:
        store, pointer, sign, distance = step.groups()
        return [f"{store}{pointer}]", f"{'sub' if sign else 'add'} {pointer}, {pointer}, #{distance}"]
    part = re.fullmatch(r"ld(?:u?r|p) ((?:[bhsd]\d+, )+)\[(\w+)(?:, (x\d+))?[^\]]*\](.*)", words)
    if part is not None:
        registers, pointer, index, after = part.groups()
        name = "ldp" if registers.count(",") == 2 else "ldr"
        whole = re.sub(r"[bhsd](?=\d)", "q", registers)
        return [f"{name} {whole}[{pointer}{f', {index}' if index else ''}]{', #16' if after else ''}"]
    return [words]


def regions(code: Mapping[int, str], parts: Iterable[Loop]) -> str:
    """Loops as llvm-mca takes them, numbered in their order."""
    lines: list[str] = []
    for number, loop in enumerate(parts):
        words = [each for address in loop.addresses for each in for_models(code[address])]
        lines += [f"# LLVM-MCA-BEGIN {number}", *words, "# LLVM-MCA-END"]
    return "\n".join(lines) + "\n"


def cycles(report: str) -> list[Cycles]:
    """Of each region of a report of llvm-mca."""
    found = []
    for region in re.split(r"^\[\d+\] Code Region.*$", report, flags=re.MULTILINE)[1:]:
        values = dict(re.findall(r"^(Iterations|Total Cycles|Block RThroughput): +([0-9.]+)$", region, re.MULTILINE))
        found.append(
            Cycles(float(values["Total Cycles"]) / float(values["Iterations"]), float(values["Block RThroughput"]))
        )
    return found


def run(*command: object, stdin: str | None = None) -> str:
    """Output of a program; `RuntimeError` with what it said where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, input=stdin)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """Cross-build the program that calls every kernel, from the very objects of the package's library."""
    check_aarch64.build_libraries(folder / "build")
    objects = sorted((folder / "build" / "CMakeFiles" / "npumm.dir").rglob("*.o"))
    program = folder / "neon_calls"
    include = f"-I{c_tests.NATIVE / 'include'}"
    source = c_tests.NATIVE / "checks" / "neon_calls.c"
    run("aarch64-linux-gnu-gcc", "-O1", "-std=c17", "-static", include, source, *objects, "-lm", "-o", program)
    return program


def calls(program: Path) -> list[Call]:
    """Run it with every instruction told."""
    core = check_aarch64.emulated(check_aarch64.CORES[0])
    symbols = {name: int(address, 16) for address, name in re.findall(
        r"^([0-9a-f]+) \w (enter_call|leave_call)$", run("aarch64-linux-gnu-nm", program), re.MULTILINE
    )}  # fmt: skip
    printed = run(*core, program).splitlines()
    singly = "-one-insn-per-tb" if "-one-insn-per-tb" in run(core[0], "--help") else "-singlestep"
    command = [*core, singly, "-d", "exec,nochain", str(program)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as told:
        assert told.stderr is not None
        found = list(traced(told.stderr, printed, symbols["enter_call"], symbols["leave_call"]))
    if told.returncode != 0 or len(found) != len(printed):
        raise RuntimeError(f"{' '.join(command)} told {len(found)} calls of {len(printed)}")
    return found


@dataclass(frozen=True)
class Judged:
    """A call on a core: the cycles of its inner loops, and those that they need at least, with the reason."""

    taken: float
    limit: float
    reason: str

    @property
    def times(self) -> float:
        """The limit."""
        return self.taken / self.limit


def judged(core: Core, call: Call, parts: list[tuple[Loop, Cycles]]) -> Judged:
    """The loops that are given stand for the rest of a call, too."""
    scale = call.instructions / sum(loop.instructions for loop, _ in parts)
    busy = scale * sum(loop.count * each.busy for loop, each in parts)
    limits = {**core.limits(call.reads, call.writes), "units": busy}
    reason = max(limits, key=limits.__getitem__)
    return Judged(scale * sum(loop.count * each.taken for loop, each in parts), limits[reason], reason)


def modelled(code: Mapping[int, str], found: list[Call]) -> dict[str, list[Judged]]:
    """Every call on every core, by the core's name."""
    parts = [loops(call.counts) for call in found]
    text = regions(code, [loop for each in parts for loop in each])
    result = {}
    for core in CORES:
        report = run("llvm-mca", "-mtriple=aarch64", f"-mcpu={core.model}", f"-iterations={ITERATIONS}",
                     "-instruction-info=false", "-resource-pressure=false", stdin=text)  # fmt: skip
        of = iter(cycles(report))
        result[core.name] = [
            judged(core, call, [(loop, next(of)) for loop in each]) for call, each in zip(found, parts, strict=True)
        ]
    return result


def table(found: list[Call], judgements: Mapping[str, list[Judged]]) -> list[str]:
    """Lines of Markdown; cycles and limits are per byte."""
    heads = [f"{name}: {what}" for name in judgements for what in ("cycles", "limit", "times")]
    lines = [f"| kernel | bytes | instructions | {' | '.join(heads)} |", "|---" * (len(heads) + 3) + "|"]
    for number, call in enumerate(found):
        nbytes = call.reads + call.writes
        cells = [call.name, str(nbytes), str(call.instructions)]
        for each in (of[number] for of in judgements.values()):
            times = f"**{each.times:.1f}**" if each.times > FAR else f"{each.times:.1f}"
            cells += [f"{each.taken / nbytes:.2f}", f"{each.limit / nbytes:.2f} {each.reason}", times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(document: Path, lines: list[str]) -> None:
    """Put the table in the place of the one in a document."""
    text, count = re.subn(r"^\| kernel \|.*(?:\n\|.*)*", "\n".join(lines), document.read_text(), flags=re.MULTILINE)
    if count != 1:
        raise RuntimeError(f"{document} has {count} tables of kernels instead of one")
    document.write_text(text)


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Judge the loops for 64-bit ARM by models of processors.")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(c_tests.ROOT)}")
    parser.add_argument("--far", action="store_true", help="print the instructions of loops that are far from a limit")
    arguments = parser.parse_args()
    packages.ensure("the report on NEON", NEEDED)
    print("modelled by llvm-mca, not measured; cycles per byte; takes a minute", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        found = calls(program)
        code = disassembled(run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program))
    judgements = modelled(code, found)
    lines = table(found, judgements)
    print("\n".join(lines))
    if arguments.write:
        write(DOCUMENT, lines)
    for number, call in enumerate(found if arguments.far else []):
        if any(each[number].times > FAR for each in judgements.values()):
            for loop in loops(call.counts):
                print(f"\n{call.name}: {loop.count} times")
                print("\n".join(f"  {code[address]}" for address in loop.addresses))


if __name__ == "__main__":
    main()
