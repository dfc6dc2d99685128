"""Speculation: tokens are proposed cheaply, and the model checks several of them in one step.

What the model would not have chosen is given up, so that answers are those without speculation: of greedy choice token
for token, unless products of floats with more rows, which may be summed in another order, decide between two tokens
that are as good as each other; of sampling with the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.counts import count_from_one
from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.run.sampling import Sampler, SamplingOptions
from npumatmul.llm.run.steps import Step, shared_length

__all__ = ["Costs", "Draft", "DraftModel", "Drafts", "Lookup", "Proposer", "Speculation"]

#: What is believed of proposals before there were any, and how many proposals that counts for.
_PRIOR, _PRIOR_WEIGHT = 0.6, 4.0
#: How much older proposals count, for each step.
_FADING = 0.98
#: By how much speculation has to be faster before it is used, as times vary.
_MARGIN = 1.05
MOST_DRAFTS = 32


@dataclass(frozen=True)
class Draft:
    """Proposed tokens, and what they were drawn from if they were drawn."""

    tokens: Sequence[int] = ()
    distributions: Sequence[NDArray[np.float64]] = ()


@dataclass(frozen=True)
class Speculation:
    """How tokens are proposed, several of which the model checks in one step.

    Attributes
    ----------
    drafts : int
        Tokens that are proposed at once, at most.
    match : int
        Without `model`: what followed when the last tokens stood together before is proposed; so many tokens are looked
        for first, then fewer. That suits answers that repeat parts of their prompt.
    least : int
        Without `model`: so many tokens are looked for at least.
    model : Model or None
        A smaller model with the same vocabulary, which proposes instead. It stays open as long as it is used.
    when : {"auto", "always"}
        ``"auto"``: as many tokens are proposed as pay by what steps of more rows take, as measured, and by how often
        proposals were right; ``"always"``: wherever there are any.

    Raises
    ------
    ValueError, TypeError
        If an option cannot be used.

    Examples
    --------
    >>> from npumatmul.llm import Speculation
    >>> Speculation(drafts=4).match
    6
    """

    drafts: int = 8
    match: int = 6
    least: int = 2
    model: Any = None
    when: Literal["auto", "always"] = "auto"

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("drafts", "match", "least"):
            count_from_one(getattr(self, name), name, "Speculation")
        if self.drafts > MOST_DRAFTS:
            raise ValueError(f"Speculation: drafts is {self.drafts}; {MOST_DRAFTS} tokens are checked at once at most")
        if self.when not in ("auto", "always"):
            raise ValueError(f"Speculation: when is {self.when!r}; it can be 'auto' or 'always'")

    @classmethod
    def of(cls, given: object) -> Speculation | None:
        """What an argument `speculation` stands for: one of these, None, ``"auto"`` or ``"lookup"``."""
        if given is None or isinstance(given, cls):
            return given
        if given in ("auto", "lookup"):
            return cls(when="auto" if given == "auto" else "always")
        raise ValueError(f"speculation is {given!r}; it can be None, 'auto', 'lookup' or a Speculation")


class Proposer(Protocol):
    """What proposes tokens."""

    def propose(self, sequence: list[int], most: int, options: SamplingOptions) -> Draft:
        """Up to so many tokens that may follow a sequence."""
        ...


class Lookup:
    """Proposes what followed when the last tokens stood together before: for answers that repeat their prompt.

    Parameters
    ----------
    match : int
        How many tokens are looked for, first so many and then fewer.
    least : int
        How many at least.

    Examples
    --------
    >>> from npumatmul.llm import SamplingOptions
    >>> Lookup(match=3).propose([7, 1, 2, 3, 4, 5, 1, 2, 3], 2, SamplingOptions()).tokens
    [4, 5]
    """

    def __init__(self, match: int = 6, least: int = 2) -> None:
        self.match = count_from_one(match, "match", "Lookup")
        self.least = min(count_from_one(least, "least", "Lookup"), self.match)
        self._forget()

    def _forget(self) -> None:
        self._known: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def propose(self, sequence: list[int], most: int, options: SamplingOptions) -> Draft:
        """As `Proposer.propose`."""
        if self._known != sequence[: len(self._known)]:  # a window slid
            self._forget()
        for end in range(len(self._known), len(sequence) - 1):  # but for the last tokens, which are looked for
            for size in range(self.least, self.match + 1):
                if size <= end + 1:
                    self._ends[tuple(sequence[end + 1 - size : end + 1])] = end + 1
        self._known = sequence[: max(len(sequence) - 1, 0)]
        for size in range(min(self.match, len(sequence)), self.least - 1, -1):
            start = self._ends.get(tuple(sequence[-size:]))
            if start is not None:
                return Draft(self._followed(sequence, start, most))
        return Draft()

    @staticmethod
    def _followed(sequence: list[int], start: int, most: int) -> list[int]:
        """What followed then; where that comes to the end of the sequence it is taken to go round."""
        period = len(sequence) - start
        found = [sequence[start + i % period] for i in range(most)]
        outside = next((i for i, each in enumerate(found) if each < 0), most)  # rows of pictures are no tokens
        return found[:outside]


class DraftModel:
    """Proposes what a smaller model with the same vocabulary goes on with.

    Parameters
    ----------
    new_cache : callable
        Makes a cache of that model.
    compute : callable
        Computes one of its steps, and waits for it.
    """

    def __init__(self, new_cache: Callable[[], KVCache], compute: Callable[[Step], None]) -> None:
        self._cache, self._compute = new_cache(), compute

    def propose(self, sequence: list[int], most: int, options: SamplingOptions) -> Draft:
        """As `Proposer.propose`."""
        if min(sequence) < 0:  # rows of pictures, which that model does not know
            return Draft()
        cache = self._cache
        cache.truncate(shared_length(cache.tokens, sequence[:-1]))
        most = min(most, cache.capacity - len(sequence))
        sampler = Sampler(replace(options, seed=None if options.seed is None else options.seed + len(sequence)))
        drawn = options.temperature > 0
        tokens, distributions, whole = [], [], list(sequence)
        for i in range(most):
            step = Step(whole, 1, cache, lambda done, total: None, id(self))
            self._compute(step)
            if step.logits is None:  # it was unwanted, or failed: then nothing is proposed
                break
            if i == 0 and not cache.trimmable:  # what is proposed must not get into what is kept
                cache = cache.fork()
            logits = step.logits[0]
            if drawn:
                distributions.append(sampler.distribution(logits, whole))
                tokens.append(sampler.drawn(distributions[-1]))
            else:
                tokens.append(sampler.sample(logits, whole))
            whole = [*whole, tokens[-1]]
        return Draft(tokens, distributions)


@dataclass
class Costs:
    """What steps take by their number of rows, as measured while they were computed.

    Parameters
    ----------
    modelled : callable, optional
        Seconds of a step of so many rows by a timing model; where it is given nothing measured is asked, as on a
        simulated device, whose times are not those of a chip.
    """

    modelled: Callable[[int], float | None] | None = None
    measured: dict[int, float] = field(default_factory=dict)

    def note(self, rows: int, seconds: float) -> None:
        """Take in how long a step of its own took."""
        before = self.measured.get(rows)
        self.measured[rows] = seconds if before is None else 0.8 * before + 0.2 * seconds

    def seconds(self, rows: int) -> float | None:
        """Of such a step; of one that was never tried the least that it can be, so that it is tried once."""
        if self.modelled is not None:
            return self.modelled(rows)
        if 1 not in self.measured:
            return None
        return self.measured.get(rows, max(each for size, each in self.measured.items() if size <= rows))


class Drafts:
    """Proposals for one generation, and how they fared.

    Parameters
    ----------
    proposer : Proposer
    most : int
        Tokens that are proposed at once, at most.
    costs : Costs, optional
        Where it is given, as many are proposed as make tokens fastest by these costs and the proposals that were
        right so far: none where none pays.
    """

    def __init__(self, proposer: Proposer, most: int, costs: Costs | None = None) -> None:
        self._proposer, self._most, self._costs = proposer, most, costs
        self._right, self._tried = 0.0, 0.0

    def propose(self, sequence: list[int], room: int, options: SamplingOptions) -> Draft:
        """Tokens to be checked with the next step."""
        most = min(self._most, room)
        if self._costs is not None:
            most = self._that_pays(most)
        return self._proposer.propose(sequence, most, options) if most > 0 else Draft()

    def told(self, draft: Draft, accepted: int, step: Step) -> None:
        """Learn how many of them the model chose, too, and what the step took."""
        self._right, self._tried = _FADING * self._right, _FADING * self._tried
        if draft.tokens:
            self._right += accepted
            self._tried += min(accepted + 1, len(draft.tokens))
        if self._costs is not None and not step.is_prompt and not step.shared:
            self._costs.note(step.rows, step.seconds)

    @property
    def rate(self) -> float:
        """How often a proposal is believed to be right, if those before it were."""
        return (self._right + _PRIOR * _PRIOR_WEIGHT) / (self._tried + _PRIOR_WEIGHT)

    def _that_pays(self, most: int) -> int:
        """How many proposals make tokens fastest; 0 if none do."""
        assert self._costs is not None
        one = self._costs.seconds(1)
        if one is None:
            return 0
        best, fastest = 0, _MARGIN / one
        for count in range(1, most + 1):
            seconds = self._costs.seconds(count + 1)
            tokens = math.fsum(self.rate**i for i in range(count + 1))
            if seconds is not None and tokens / seconds > fastest:
                best, fastest = count, tokens / seconds
        return best
