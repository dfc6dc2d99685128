"""`npumatmul probe`: asks the board the open questions, prints a report, keeps the results."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from npumatmul.chips import default_path
from npumatmul.probe import QUESTIONS, Outcome, Question, choose, find_target, markdown, probe

#: The report goes to standard output, so that it can be piped on; what happens meanwhile goes here.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def list_questions() -> None:
    """Print every question, what answers are possible and how the answer is found."""
    for question in QUESTIONS.values():
        print(f"{question.number}  {question.text}{'  [only with --all]' if question.dangerous else ''}")
        if question.ask is None:
            print("    not answerable by software:")
        else:
            print(f"    answers: {question.possible}")
        print("\n".join(f"    {line}".rstrip() for line in question.how.splitlines()), end="\n\n")


def run(
    device: str | None,
    numbers: list[str] | None,
    *,
    timeout: float,
    output: Path | None,
    quick: bool,
    everything: bool,
) -> None:
    """Probe a device; nothing is asked interactively."""
    questions = choose(numbers, everything=everything)
    target = find_target(device, timeout)
    path = output or default_path(target.soc, target.runtime, target.simulated)
    console.print(
        f"Probing {target.device}: {'a simulated ' if target.simulated else ''}{target.soc}, runtime {target.runtime}, "
        f"driver {target.driver_version}. {len(questions)} questions, at most {timeout:g} s each."
    )
    if not target.simulated:
        console.print(
            "Stop other programs that use the NPU. Each question is a process of its own; one that hangs is killed, "
            "but an NPU that hangs may need a reboot. "
            + ("--all: expect crashes." if everything else "What may crash or hang is left out (--all asks it, too).")
        )
    done = probe(
        target, questions, timeout=timeout, everything=everything, quick=quick,
        progress=lambda question, outcome: _progress(question, outcome, len(questions), questions.index(question)),
    )  # fmt: skip
    results = done.write(path)
    print(markdown(done), end="")
    console.print(f"\n{len(results.cells)} cells of the capability table are settled in {path}")
    if output is not None:
        console.print(f"To use them: NPUMATMUL_PROBE_FILE={path}")
    if done.interrupted:
        raise KeyboardInterrupt


def _progress(question: Question, outcome: Outcome | None, count: int, index: int) -> None:
    if outcome is None:
        console.print(f"[{index + 1:2}/{count}] {question.number} {question.text}")
    else:
        said = outcome.text if outcome.status == "answered" else f"{outcome.status}: {outcome.text}"
        console.print(f"        {said} ({outcome.seconds:.1f} s)")
