"""Texts that end an answer, wherever tokens begin and end in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_STOPS = 64


class StopTexts:
    """Passes text on up to the first of some texts, and never a part of one.

    What may be the beginning of one is held back until it is known.

    Parameters
    ----------
    stops : str or sequence of str
        Texts that end an answer.

    Raises
    ------
    TypeError, ValueError
        If one is no text, or is empty, or there are too many.

    Examples
    --------
    >>> stops = StopTexts(["END"])
    >>> stops.push("an E"), stops.push("Nd, the E"), stops.push("ND of it"), stops.found
    ('an ', 'ENd, the ', '', 'END')
    """

    def __init__(self, stops: str | Sequence[str] = ()) -> None:
        if not isinstance(stops, Iterable):
            raise TypeError(f"stop is a text or a list of texts, not {stops!r}")
        listed = [stops] if isinstance(stops, str) else list(stops)
        for each in listed:
            if not isinstance(each, str):
                raise TypeError(f"stop is a text or a list of texts; {each!r} is none")
            if not each:
                raise ValueError("stop has an empty text, which would end every answer before it begins")
        if len(listed) > MOST_STOPS:
            raise ValueError(f"stop has {len(listed)} texts; at most {MOST_STOPS} are looked for")
        self._stops = tuple(dict.fromkeys(listed))
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text, and return what certainly comes before any of the stops."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        text = self._held + text
        places = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            at, _, self.found = min(places)
            self._held = ""
            return text[:at]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:count]):
            return count
    return 0
