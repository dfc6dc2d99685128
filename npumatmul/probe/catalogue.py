"""All questions, in the order in which they are asked: from harmless to dangerous."""

from __future__ import annotations

from collections.abc import Iterable

from npumatmul.probe import cores, dynamic, layouts, limits, memory, numbers, quantization, queries
from npumatmul.probe.answer import Question

__all__ = ["ORDER", "QUESTIONS", "choose"]

_MODULES = (cores, dynamic, layouts, limits, memory, numbers, quantization, queries)

#: Every question by number.
QUESTIONS: dict[str, Question] = {
    found.number: found
    for found in sorted(
        (value for module in _MODULES for value in vars(module).values() if isinstance(value, Question)),
        key=lambda question: (question.number[0], int(question.number[1:])),
    )
}

#: Looking up and asking, then small documented work, then sizes, then what is undocumented or exhausts something.
ORDER = (
    "Q31", "Q28", "Q24", "Q30", "Q5", "Q13", "Q14", "Q15", "Q32", "Q20", "Q6", "Q17", "Q10", "Q11", "Q26", "Q27",
    "Q3", "Q21", "Q22", "Q29", "Q1", "Q2", "Q12", "Q25", "Q16", "Q19", "Q18", "Q9", "Q8", "Q7", "Q4", "Q23", "X1",
    "X5", "X4", "X2", "X3",
)  # fmt: skip


def choose(numbers: Iterable[str] | None = None, *, everything: bool = False) -> list[Question]:
    """The questions to ask, in order; by default those that no board is expected to crash or hang on.

    Raises
    ------
    ValueError
        If a number is not one of them, or asks for what may crash or hang without `everything`.

    Examples
    --------
    >>> [question.number for question in choose(["Q8", "q28"])]
    ['Q28', 'Q8']
    """
    if numbers is None:
        return [QUESTIONS[number] for number in ORDER if everything or not QUESTIONS[number].dangerous]
    wanted = {number.strip().upper() for number in numbers if number.strip()}
    unknown = sorted(wanted - set(QUESTIONS))
    if unknown or not wanted:
        raise ValueError(f"no such question: {', '.join(unknown) or 'none given'}; there are {', '.join(QUESTIONS)}")
    held_back = [number for number in wanted if QUESTIONS[number].dangerous and not everything]
    if held_back:
        raise ValueError(f"{', '.join(sorted(held_back))} may crash or hang the board: ask with --all")
    return [QUESTIONS[number] for number in ORDER if number in wanted]
