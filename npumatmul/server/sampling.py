"""How tokens are chosen, out of the fields that OpenAI's requests have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.server.errors import ApiError
from npumatmul.server.fields import Fields
from npumatmul.server.rules import Penalties
from npumatmul.server.settings import Settings

__all__ = ["Sampling", "sampling_of"]

MOST_STOPS = 16
MOST_BIASES = 1024
MOST_SEED = (1 << 63) - 1
#: What says who asks, where an answer is kept or how it is billed.
OF_OTHERS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)


@dataclass(frozen=True)
class Sampling:
    """As `Ask` has it."""

    options: dict[str, Any]
    seed: int | None
    choices: int
    penalties: Penalties
    bias: dict[int, float] = field(default_factory=dict)


def sampling_of(fields: Fields, settings: Settings, logprobs: int | None) -> Sampling:
    """Read the fields of chats and completions that say how tokens are chosen.

    Raises
    ------
    ApiError
        If one cannot be used.
    """
    fields.pass_over(*OF_OTHERS)
    repetition = "repeat_penalty" if fields.has("repeat_penalty") else "repetition_penalty"  # llama.cpp's, and vLLM's
    options: dict[str, Any] = {
        "temperature": fields.number("temperature", 1.0, 0.0, 2.0),
        "top_p": fields.number("top_p", 1.0, 0.0, 1.0),
        "top_k": max(fields.count("top_k", 0, -1, 1 << 31) or 0, 0),
        "min_p": fields.number("min_p", 0.0, 0.0, 1.0),
        "repetition_penalty": fields.number(repetition, 1.0, 0.01, 100.0),
        "stop": fields.texts("stop", MOST_STOPS),
        "logprobs": logprobs,
    }
    if options["top_p"] == 0:  # the most probable token alone
        options |= {"top_p": 1.0, "temperature": 0.0}
    return Sampling(
        options,
        fields.count("seed", None, -MOST_SEED, MOST_SEED),
        fields.count("n", 1, 1, settings.max_choices) or 1,
        Penalties(
            fields.number("presence_penalty", 0.0, -2.0, 2.0), fields.number("frequency_penalty", 0.0, -2.0, 2.0)
        ),
        _bias(fields),
    )


def _bias(fields: Fields) -> dict[int, float]:
    made = {}
    for token, value in (fields.mapping("logit_bias") or {}).items():
        if not token.isdecimal() or len(token) > 9 or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise fields.wrong(
                "logit_bias", f"has {shown(token)}: {shown(value)}; it maps numbers of tokens to numbers"
            )
        if not -100 <= value <= 100:
            raise fields.wrong("logit_bias", f"has {shown(value)}; it must be from -100 to 100")
        made[int(token)] = float(value)
    if len(made) > MOST_BIASES:
        raise ApiError(400, f"logit_bias has {len(made)} tokens; at most {MOST_BIASES} are taken", param="logit_bias")
    return made
