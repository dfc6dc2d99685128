"""What speculation makes of copy-heavy, retrieval-like and free text: ``python bench/speculation.py`` prints a table.

Answers are greedy. Tokens of a step and acceptance do not depend on the machine. Modelled tokens per second are those
of the chip by its timing model; measured ones are those of the device at hand, which may be a simulation. Where an
answer is another one than without speculation, the gap is how much more probable the first other token was than the one
in its place, as a difference of logarithms: near ties, which rounding decides.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import npumatmul as npu
import npumatmul.llm
from npumatmul.llm import Model, Piece, Speculation
from npumatmul.llm.run.steps import Step

PASSAGE = (
    "The river Aldern rises in the hills of Morrow at a height of 812 metres and flows north for 143 kilometres before "
    "it reaches the lake of Senn. Its valley was settled in the ninth century. The bridge of Harlow, which was built "
    "in 1427, is the oldest bridge over the river. In 1911 a flood destroyed four mills, and the dam of Keld was built "
    "between 1924 and 1931 to keep the water back. Today the dam supplies 61,000 households with electricity. Salmon "
    "came back to the river in 1998, after the last paper mill had been closed."
)
CODE = (
    "def mean(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
    "    return total / len(values)\n\n\ndef variance(values):\n    middle = mean(values)\n    total = 0\n"
    "    for value in values:\n        total = total + (value - middle) ** 2\n    return total / len(values)\n"
)

TEXTS: dict[str, list[str]] = {
    "copy-heavy": [
        f"Repeat this text word for word:\n\n{PASSAGE}",
        f"Write this program again, unchanged:\n\n{CODE}",
        f"Correct the spelling of this text, and write all of it:\n\n{PASSAGE.replace('oldest', 'oldst')}",
    ],
    "retrieval-like": [
        f"{PASSAGE}\n\nAnswer from the text above: which bridge is the oldest one, and when was it built?",
        f"{PASSAGE}\n\nAnswer from the text above: when was the dam of Keld built, and what does it do today?",
        f"{PASSAGE}\n\nSummarize the text above in three sentences.",
    ],
    "free": [
        "Write a short story about a lighthouse keeper.",
        "Explain why the sky is blue.",
        "What should one think of before buying a bicycle?",
    ],
}


@dataclass
class Counted:
    """What the answers of one kind of text took."""

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    modelled: float = 0.0
    answers: list[list[Piece]] = field(default_factory=list)


def counted(
    model: Model, texts: Sequence[str], tokens: int, speculation: Any, modelled: Callable[[int], float]
) -> Counted:
    """Answer texts, and count."""
    found = Counted()
    compute, rows = model._shared.compute, list[int]()

    def noted(steps: Sequence[Step], unwanted: Callable[[], bool]) -> None:
        compute(steps, unwanted)
        rows.extend(step.rows for step in steps if not step.is_prompt)

    model._shared.compute = noted  # type: ignore[method-assign]
    try:
        for text in texts:
            model.prefixes.clear()
            generation = model.chat(
                [{"role": "user", "content": text}], max_tokens=tokens, speculation=speculation, logprobs=20
            )
            found.answers.append(list(generation))
            stats = generation.stats
            found.tokens += stats.generated_tokens - 1
            found.steps += stats.steps - 1
            found.drafted += stats.drafted_tokens
            found.accepted += stats.accepted_tokens
            found.seconds += stats.generate_seconds
    finally:
        model._shared.compute = compute  # type: ignore[method-assign]
    found.modelled = sum(map(modelled, rows))
    return found


def gaps(plain: Counted, other: Counted) -> list[float]:
    """Of each answer that is another one, how far apart the two first tokens that differ were."""
    found = []
    for one, two in zip(plain.answers, other.answers, strict=True):
        for a, b in zip(one, two, strict=False):
            if a.token != b.token:
                logs = dict(a.top_logprobs)
                found.append(logs[a.token] - logs.get(b.token, float("-inf")))
                break
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="by default the demo's, SmolLM2-135M")
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--device", default="sim:rk3588")
    parser.add_argument("--draft", type=Path, help="a smaller model with the same vocabulary, measured too")
    parser.add_argument("-n", "--tokens", type=int, default=96)
    options = parser.parse_args()
    path = options.model or npumatmul.llm.fetch_demo_model()
    with npu.Device(options.device) as device, npumatmul.llm.load(path, options.scheme, device=device) as model:
        kinds: dict[str, Any] = {"none": None, "lookup": "lookup", "auto": "auto"}
        kinds["lookup, 3 drafts"] = Speculation(drafts=3, when="always")
        small = None if options.draft is None else npumatmul.llm.load(options.draft, options.scheme, device=device)
        if small is not None:
            kinds["draft model"] = Speculation(model=small, drafts=4, when="always")
        seconds = model._costs.seconds
        costs = ", ".join(f"{rows}: {1e3 * (seconds(rows) or 0):.1f}" for rows in (1, 2, 4, 5, 8, 9))
        print(f"{model.name}, {model.scheme} on {device.name}; {options.tokens} tokens; {time.strftime('%Y-%m-%d')}")
        print(f"modelled ms of a step by its rows: {costs}\n")
        print(
            "| text | speculation | tokens a step | accepted | modelled tokens/s | measured tokens/s | other answers |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, texts in TEXTS.items():
            plain: Counted | None = None
            for kind, how in kinds.items():
                found = counted(model, texts, options.tokens, how, lambda rows: seconds(rows) or 0.0)
                plain = plain or found
                other = gaps(plain, found)
                differ = f"{len(other)} of {len(texts)}" + (f", gap {max(other):.3f}" if other else "")
                share = f"{100 * found.accepted / found.drafted:.0f} %" if found.drafted else "-"
                fast = f"{found.tokens / found.modelled:.1f}" if found.modelled else "-"
                print(
                    f"| {name} | {kind} | {found.tokens / found.steps:.2f} | {share} | {fast} | "
                    f"{found.tokens / found.seconds:.1f} | {differ} |",
                    flush=True,
                )
        if small is not None:
            small.close()


if __name__ == "__main__":
    main()
