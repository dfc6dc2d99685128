"""Several generations that one thread runs: each step of the model is one of all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.run.generation import Generation
from npumatmul.llm.run.pieces import Piece
from npumatmul.llm.run.steps import Host, Step

__all__ = ["BatchGeneration"]


class BatchGeneration(Uncopied, Iterator[tuple[int, Piece]]):
    """Running generations: an iterator over pieces, each with the number of its prompt.

    Pieces of different generations come in turns. What goes wrong with one of them is raised where its next piece would
    be; whoever then goes on with the iteration gets the pieces of the others.

    Attributes
    ----------
    generations : tuple of Generation
        In the order of the prompts, with ``stats`` and ``ids``; ``cancel`` ends one of them.
    """

    def __init__(self, host: Host, generations: Sequence[Generation]) -> None:
        self._host = host
        self.generations = tuple(generations)
        self._steps: dict[int, Step] = {}
        self._ready: deque[tuple[int, Piece | Exception]] = deque()
        self._begun = False

    def __repr__(self) -> str:
        """Return how many there are, and how many have ended."""
        ended = sum(each.stats.stop_reason is not None for each in self.generations)
        return f"<BatchGeneration: {len(self.generations)} generations, {ended} ended>"

    def __iter__(self) -> BatchGeneration:
        """Return itself."""
        return self

    def __next__(self) -> tuple[int, Piece]:
        """Return the next piece of any of them."""
        while not self._ready:
            self._compute()
        number, found = self._ready.popleft()
        if isinstance(found, Exception):
            raise found
        return number, found

    def texts(self) -> list[str]:
        """Run all of them to their ends, and return their texts in the order of the prompts."""
        made = [""] * len(self.generations)
        for number, piece in self:
            made[number] += piece.text
        return made

    def close(self) -> None:
        """End all of them early."""
        self._begun = True
        self._steps.clear()
        self._ready.clear()
        for each in self.generations:
            each.close()

    def _compute(self) -> None:
        if not self._begun:
            self._begun = True
            for number in range(len(self.generations)):
                self._advance(number)
            return
        if not self._steps:
            raise StopIteration
        steps = list(self._steps.values())
        self._host.compute(steps, lambda: all(self.generations[each].cancelled for each in self._steps))
        for number in list(self._steps):
            del self._steps[number]
            self._advance(number)

    def _advance(self, number: int) -> None:
        """Take pieces of a generation until it wants another step."""
        generation = self.generations[number]
        try:
            while isinstance(item := generation.advance(), Piece):
                self._ready.append((number, item))
        except StopIteration:
            return
        except Exception as error:
            self._ready.append((number, error))
            return
        self._steps[number] = item
