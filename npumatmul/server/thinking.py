"""Thoughts that a model writes before its answer, told apart from it."""

from __future__ import annotations

__all__ = ["ThoughtReader"]

BEGIN, END = "<think>", "</think>"


class ThoughtReader:
    """Splits what comes between ``<think>`` and ``</think>`` at the beginning of an answer from the rest."""

    def __init__(self) -> None:
        self._held = ""
        self._where = "before"

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; return what is certain of thoughts and of the answer."""
        if self._where == "after":
            return "", text
        self._held += text
        thoughts = ""
        if self._where == "before":
            begun = self._held.lstrip()
            if len(begun) < len(BEGIN) and BEGIN.startswith(begun):
                return "", ""
            if not begun.startswith(BEGIN):
                self._where, text, self._held = "after", self._held, ""
                return "", text
            self._where, self._held = "inside", begun[len(BEGIN) :].lstrip()
        inside, mark, after = self._held.partition(END)
        if mark:
            self._where, self._held = "after", ""
            return thoughts + inside.rstrip(), after.lstrip()
        kept = next((n for n in range(min(len(inside), len(END) - 1), 0, -1) if inside.endswith(END[:n])), 0)
        thoughts, self._held = inside[: len(inside) - kept], inside[len(inside) - kept :]
        return thoughts, ""

    def finish(self) -> tuple[str, str]:
        """What is left when the answer has ended."""
        rest, self._held = self._held, ""
        return (rest, "") if self._where == "inside" else ("", rest)
