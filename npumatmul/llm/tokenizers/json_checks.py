"""What of a tokenizer.json is looked at before texts are given to the ``tokenizers`` package.

The package parses what it is given, bounds how deeply it is nested, and gives up a regular expression that tries too
long at one place of a text. What it does not bound is how much a text may grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown

PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
MOST_STEPS = 64
MOST_GROWTH = 64
_DECODERS = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"})

Problem = Callable[[str], ModelError]


def check_steps(described: Mapping[str, Any], error: Problem) -> None:
    """Refuse a tokenizer that makes a text many times as long, by replacements one after another.

    Raises
    ------
    npumatmul.errors.ModelError
        If it does, or has more steps than any that is in use.
    """
    for part in PARTS:
        growth = 1.0
        for count, step in enumerate(_steps(described.get(part)), 1):
            if count > MOST_STEPS:
                raise error(f"the {part} in its tokenizer.json has more than {MOST_STEPS} steps")
            growth *= _growth(step)
            if growth > MOST_GROWTH:
                raise error(
                    f"the {part} in its tokenizer.json makes a text more than {MOST_GROWTH} times as long, by "
                    f"{shown(step.get('content'))} among others"
                )


def decoder_steps(decoder: object, error: Problem) -> frozenset[str]:
    """Which steps lead from tokens to text.

    Raises
    ------
    npumatmul.errors.ModelError
        If there is one whose result cannot be told token by token.
    """
    kinds = frozenset(str(step.get("type")) for step in _steps(decoder))
    if kinds - _DECODERS:
        raise error(
            f"the decoder in its tokenizer.json is {', '.join(sorted(kinds - _DECODERS))}; "
            f"supported: {', '.join(sorted(_DECODERS))}"
        )
    return kinds


def _steps(part: object) -> Iterator[Mapping[str, Any]]:
    """All steps of a part that may be a sequence of steps, of sequences too."""
    rest = [part]
    while rest:
        each = rest.pop()
        if not isinstance(each, dict):
            continue
        inner = [each[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in each]
        if inner and each.get("type") == "Sequence":
            rest += [step for steps in inner if isinstance(steps, list) for step in reversed(steps)]
        else:
            yield each


def _growth(step: Mapping[str, Any]) -> float:
    """By which factor a step makes a text longer, at most."""
    content = step.get("content")
    if step.get("type") == "Prepend":
        return 1.0  # once, by what stands in the file
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    pattern = step.get("pattern")
    found = pattern.get("String") if isinstance(pattern, dict) else None
    # a regular expression may match nothing, between any two characters
    return max(1.0, len(content) / len(found)) if isinstance(found, str) and found else 1.0 + len(content)
