"""What a generation yields, what it counts, and what an answer may have to obey."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from npumatmul.nn.product import Float32

__all__ = ["Constraint", "GenerationStats", "Piece", "StopReason", "check_constraint"]


class StopReason(str, Enum):
    """Why a generation ended."""

    STOP_TOKEN = "stop_token"
    """The model chose a token that ends its answer."""
    STOP_TEXT = "stop_text"
    """The answer came to a text that ends it; that text is no part of it."""
    MAX_TOKENS = "max_tokens"
    """As many tokens were generated as had been asked for."""
    CONTEXT_FULL = "context_full"
    """The cache has no room for another token."""
    INTERRUPTED = "interrupted"
    """It was given up: a keyboard interrupt, an error, `Generation.close` or `Generation.cancel`."""


@dataclass
class GenerationStats:
    """What a generation did. Times are those of the model and sampler, not of whoever reads the pieces.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt.
    cached_tokens : int
        How many of these were in the cache already.
    generated_tokens : int
        Tokens generated, a final stop token included.
    prompt_seconds : float
        Time from the start to the first token.
    generate_seconds : float
        Time for all tokens after the first.
    stop_reason : StopReason or None
        Why it ended; None while it has not.
    stop_text : str or None
        The text that ended it, if one did.
    dropped_tokens : int
        How many tokens were left out where the context was full (``on_full="window"``).
    steps : int
        How often the model computed for this generation, the prompt being one time.
    shared_steps : int
        How many of these it shared with other sequences.
    drafted_tokens, accepted_tokens : int
        Tokens that speculation proposed, and those of them that the model chose too.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    stop_reason: StopReason | None = None
    stop_text: str | None = None
    dropped_tokens: int = 0
    steps: int = 0
    shared_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def acceptance(self) -> float | None:
        """The part of proposed tokens that the model chose too; None where none were proposed."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt, tokens found in the cache not counted; 0 if unknown."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the tokens after the first; 0 if there are none."""
        later = self.generated_tokens - 1
        return later / self.generate_seconds if later > 0 and self.generate_seconds else 0.0


class Piece(NamedTuple):
    """A generated token, and the text that is certain with it.

    Attributes
    ----------
    token : int
        Token number.
    text : str
        Whole characters, possibly none: a character that is not complete yet and the beginning of what may become a
        stop are held back. Empty for control tokens.
    logprob : float or None
        Natural logarithm of the probability that the model gave to the token, before temperature and all else; None
        where that was not asked for.
    top_logprobs : tuple of (int, float)
        The most probable tokens and their logarithms, best first, as many as were asked for.
    stats : GenerationStats or None
        Of the whole generation, with the last piece.
    """

    token: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    stats: GenerationStats | None = None

    @property
    def reason(self) -> StopReason | None:
        """Why the generation ended, with the last piece."""
        return None if self.stats is None else self.stats.stop_reason


class Constraint(Protocol):
    """What an answer has to obey, such as a grammar: asked before each token is chosen, told which one was."""

    def allowed(self, logits: Float32, /) -> None:
        """Set the scores of tokens that must not come next to ``-inf``, in place; shape (vocab,)."""
        ...

    def accept(self, token: int, /) -> None:
        """Go on behind a token; those that end the answer come here, too."""
        ...


def check_constraint(constraint: object) -> None:
    """Raise if it has not the methods of a `Constraint`."""
    if constraint is not None and not all(callable(getattr(constraint, name, None)) for name in ("allowed", "accept")):
        raise TypeError(
            f"constraint is a {type(constraint).__name__}; it needs methods allowed(logits), which sets scores to "
            "-inf, and accept(token)"
        )
