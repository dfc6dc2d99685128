"""A model that several generations share: their steps are computed in turns, and together where they wait together.

There is no thread of its own. Who has the turn takes the steps of those who wait in line into its own product, so that
each weight is read once for all of them; prompts are read block by block, and between blocks others have their turns.
Sequences come and go at any step. Where a step with others goes wrong, each of them is computed alone, so that an error
comes to whom it concerns; where the thread that computed it is interrupted, the others have turns of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.together import is_long
from npumatmul.llm.run.prefixes import KeptCaches
from npumatmul.llm.run.steps import Step, compute_alone, compute_together
from npumatmul.llm.run.turns import Turns

__all__ = ["Shared"]

#: Rows of a step at most, of all sequences together.
MOST_ROWS = 64
#: How much of a step's time those who had the step before are waited for, and how many seconds at most: their threads
#: are choosing tokens, and come back soon.
PATIENCE, MOST_PATIENCE = 0.25, 0.05


class Shared:
    """What generations of one model get from it.

    Parameters
    ----------
    model : Decoder
    turns : Turns
        The line for it.
    kept : KeptCaches
        Caches of those that ended.
    """

    def __init__(self, model: Decoder, turns: Turns, kept: KeptCaches) -> None:
        self._model, self._turns, self._kept = model, turns, kept
        #: Owners of the last steps, whose next ones are expected, and their threads.
        self._expected: dict[int, int] = {}
        self._seconds = 0.0

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """A cache that holds as much of the prompt as any that is known. Memory is taken as tokens come."""
        if self._turns.inherited:  # by a forked child, where locks may be held for ever
            return self._model.new_cache()
        cache = self._kept.take(prompt)
        if cache is None:
            cache = self._model.new_cache()
            self._kept.runs(cache)
        return cache

    def give(self, cache: KVCache, owner: int) -> None:
        """Keep the cache of a generation that has ended."""
        self.ended(owner)
        if not self._turns.inherited and not self._turns.closed:
            self._kept.give(cache)

    def unseen(self) -> AbstractContextManager[object]:
        """Let nobody take a cache meanwhile, nor fork one."""
        return self._kept.held

    def ended(self, owner: int) -> None:
        """Nobody waits for steps of this owner any more."""
        if not self._turns.inherited and self._expected.pop(owner, None) is not None:
            self._turns.look_again()

    def compute(self, steps: Sequence[Step], unwanted: Callable[[], bool]) -> None:
        """Compute steps in turns with others, prompts each in a turn of its own."""
        for step in steps:
            if step.is_prompt or step.alone:
                with self._turns.turn(unwanted) as pass_on:
                    if not unwanted():
                        self._alone(step, pass_on if step.is_prompt else None)
        left = [each for each in steps if not each.done]
        while left and not unwanted():
            with self._turns.turn(unwanted, left):
                left = [each for each in left if not each.done]
                if left and not unwanted():
                    self._lead(left)
            left = [each for each in left if not each.done]

    def _alone(self, step: Step, rest: Callable[[], object] | None) -> None:
        step.claimed = False
        compute_alone(self._model, step, rest)
        self._note([step])

    def _lead(self, own: Sequence[Step]) -> None:
        """Compute own steps, as many as go together, and with them those of others."""
        first = own[0]
        nobody = len(own) == 1 and self._turns.short and self._expected.keys() <= {first.owner}
        if first.alone or nobody:
            return self._alone(first, None)
        first.claimed = False
        steps = [first]
        rotated = self._rotated(first)
        rows = len(first.tokens())

        def fits(offer: Collection[Step]) -> bool:
            nonlocal rows
            wanted = [each for each in offer if each not in steps and not each.done]
            for each in wanted:
                each.claimed = True
                if each.withdrawn or each.alone:
                    each.claimed = False
                    return False
            tokens = sum(len(each.tokens()) for each in wanted)
            alike = all(self._rotated(each) == rotated for each in wanted)
            if not wanted or not alike or rows + tokens > MOST_ROWS:
                for each in wanted:
                    each.claimed = False
                return False
            rows += tokens
            steps.extend(wanted)
            return True

        for each in own[1:]:
            fits([each])
        for each in steps:  # an interrupt of this thread leaves nobody at work on them
            each.claimed = False
        if rotated is None:
            return self._alone(first, None)
        patience = min(PATIENCE * self._seconds, MOST_PATIENCE)
        places = self._turns.claim(fits, lambda offers: self._missing(own, offers), patience)
        self._expected = {each.owner: each.thread for each in steps}  # who did not come in time is not waited for again
        if len(steps) == 1:
            return self._alone(first, None)
        try:
            compute_together(self._model, steps)
        except Exception:  # whose fault it is shows when each is computed alone
            for each in steps:
                each.alone = True
                each.claimed = False
            return self._alone(first, None)
        self._note(steps)
        for each in steps:
            each.claimed = False
        self._turns.serve(places)
        return None

    def _rotated(self, step: Step) -> bool | None:
        """How its sequence is rotated; None where it cannot be computed with others."""
        tokens = step.tokens()
        return None if min(tokens) < 0 else is_long(self._model, step.cache, len(tokens))

    def _note(self, steps: Sequence[Step]) -> None:
        """Expect the next steps of these owners."""
        if not steps[0].is_prompt or not self._seconds:
            self._seconds = steps[0].seconds
        self._expected = {**self._expected, **{each.owner: each.thread for each in steps if not each.withdrawn}}

    def _missing(self, own: Sequence[Step], offers: Collection[Collection[Step]]) -> bool:
        """Whether others are expected that did not come yet; those of this very thread do not come meanwhile."""
        here = {each.owner for offer in offers for each in offer} | {each.owner for each in own}
        thread = threading.get_ident()
        missing = {owner for owner, other in list(self._expected.items()) if owner not in here and other != thread}
        return bool(missing)
