"""`npumatmul probe`: asks the board the open questions, prints a report, keeps the results."""

from __future__ import annotations

from pathlib import Path

from npumatmul.chips import default_path
from npumatmul.cli.files import STANDARD, check_outputs, write_output
from npumatmul.cli.progress import ProgressCallback, working
from npumatmul.cli.terminal import say
from npumatmul.probe import QUESTIONS, Outcome, Question, choose, find_target, markdown, probe


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
    """Probe a device, without asking anything. The report goes to standard output, all else to standard error."""
    questions = choose(numbers, everything=everything)
    check_outputs({"--output": output})
    target = find_target(device, timeout)
    say(
        f"Probing {target.device}: {'a simulated ' if target.simulated else ''}{target.soc}, runtime {target.runtime}, "
        f"driver {target.driver_version}. {len(questions)} questions, at most {timeout:g} s each."
    )
    if not target.simulated:
        say(
            "Stop other programs that use the NPU. Each question is a process of its own; one that hangs is killed, "
            "but an NPU that hangs may need a reboot. "
            + ("--all: expect crashes." if everything else "What may crash or hang is left out (--all asks it, too).")
        )
    with working(lines=False) as bar:  # every question has its lines anyway
        done = probe(
            target, questions, timeout=timeout, everything=everything, quick=quick,
            progress=lambda question, outcome: _progress(bar, questions, question, outcome),
        )  # fmt: skip
    if output == STANDARD:
        say(markdown(done))
        results = done.results()
        write_output(STANDARD, results.to_json())
    else:
        path = output or default_path(target.soc, target.runtime, target.simulated)
        results = done.write(path)
        print(markdown(done), end="")
        say(f"\n{len(results.cells)} cells of the capability table are settled in {path}")
        if output is not None:
            say(f"To use them: NPUMATMUL_PROBE_FILE={path}")
    if done.interrupted:
        raise KeyboardInterrupt


def _progress(bar: ProgressCallback, questions: list[Question], question: Question, outcome: Outcome | None) -> None:
    index, count = questions.index(question), len(questions)
    if outcome is None:
        say(f"[{index + 1:2}/{count}] {question.number} {question.text}")
        bar(index, count, question.number)
    else:
        said = outcome.text if outcome.status == "answered" else f"{outcome.status}: {outcome.text}"
        say(f"        {said} ({outcome.seconds:.1f} s)")
