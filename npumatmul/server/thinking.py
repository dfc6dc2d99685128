"""Thoughts that a model writes before its answer, told apart from it."""

from __future__ import annotations

__all__ = ["ThoughtReader"]

BEGIN, END = "<think>", "</think>"


class ThoughtReader:
    """Splits what comes between ``<think>`` and ``</think>`` at the beginning of an answer from the rest.

    Space at the ends of both is left out where there are thoughts.
    """

    def __init__(self) -> None:
        self._held = ""
        self._where = "before"

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return what is certain of thoughts and of the answer."""
        if self._where == "after":
            return "", text
        self._held += text
        if self._where == "before":
            begun = self._held.lstrip()
            if len(begun) < len(BEGIN) and BEGIN.startswith(begun):
                return "", ""
            if not begun.startswith(BEGIN):
                self._where = "after"
                return "", self._taken(0)
            self._where, self._held = "opened", begun[len(BEGIN) :]
        thoughts = ""
        if self._where == "opened":
            self._held = self._held.lstrip()
            if self._held and not END.startswith(self._held):
                self._where = "inside"
        if self._where in ("opened", "inside"):
            inside, mark, after = self._held.partition(END)
            if mark:
                thoughts, self._held, self._where = inside.rstrip(), after, "closed"
            elif self._where == "inside":
                thoughts = self._taken(_kept(self._held))
        if self._where == "closed":
            self._held = self._held.lstrip()
            if self._held:
                self._where = "after"
                return thoughts, self._taken(0)
        return thoughts, ""

    def finish(self) -> tuple[str, str]:
        """What is left when the answer has ended."""
        rest = self._taken(0)
        return (rest.rstrip(), "") if self._where in ("opened", "inside") else ("", rest)

    def _taken(self, kept: int) -> str:
        """What is held but for the last characters."""
        cut = len(self._held) - kept
        taken, self._held = self._held[:cut], self._held[cut:]
        return taken


def _kept(text: str) -> int:
    """How many characters at the end may be space before the end of thoughts, or the beginning of that."""
    begun = next((n for n in range(min(len(text), len(END) - 1), 0, -1) if text.endswith(END[:n])), 0)
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip())
