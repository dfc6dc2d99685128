"""`npumatmul probe`: answers the open questions of docs/hardware.md on a board, and overrides the capability table.

`catalogue` lists the questions, which stand in one module per topic; `instrument` is what they are asked with;
`question` is the process that asks, `runner` starts it with a time limit, `report` makes Markdown of the outcomes.
"""

from npumatmul.probe.answer import Answer, Question
from npumatmul.probe.catalogue import QUESTIONS, choose
from npumatmul.probe.report import markdown
from npumatmul.probe.runner import Outcome, Probe, Target, find_target, probe

__all__ = [
    "QUESTIONS",
    "Answer",
    "Outcome",
    "Probe",
    "Question",
    "Target",
    "choose",
    "find_target",
    "markdown",
    "probe",
]
