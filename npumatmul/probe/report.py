"""What a probe found, as Markdown that can be pasted into an issue."""

from __future__ import annotations

from npumatmul.probe.catalogue import QUESTIONS
from npumatmul.probe.runner import Probe

__all__ = ["markdown"]


def markdown(probe: Probe) -> str:
    """The report: what was probed, a table of the answers, and the end of the log where there is none."""
    target = probe.target
    lines = [
        f"## npumatmul probe of {'a simulated ' if target.simulated else ''}{target.soc}, runtime {target.runtime}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in probe.facts.items()),
        f"| asked | {len(probe.outcomes)} questions in {sum(o.seconds for o in probe.outcomes):.1f} s |",
        "",
        "| | question | answer | s |",
        "|---|---|---|---|",
    ]
    for outcome in probe.outcomes:
        known = QUESTIONS.get(outcome.number)
        said = outcome.text if outcome.status == "answered" else f"**{outcome.status}**: {outcome.text}"
        asked = known.text if known else ""
        lines.append(f"| {outcome.number} | {_cell(asked)} | {_cell(said)} | {outcome.seconds:.1f} |")
    for outcome in probe.outcomes:
        if outcome.log:
            lines += ["", f"Log of {outcome.number}:", "", *(f"    {line}" for line in outcome.log.splitlines()[-8:])]
    settled = [f"`{name}` = {value} ({outcome.number})" for outcome in probe.outcomes
               for name, value in outcome.cells.items()]  # fmt: skip
    if settled:
        lines += ["", f"Cells of the capability table: {', '.join(settled)}"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
