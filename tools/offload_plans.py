"""Print the plans of docs/offloading.md: well-known models under policies on each chip, all of them modelled.

    python tools/offload_plans.py

Needs an installed npumatmul. A test compares what is printed with the document.
"""

from __future__ import annotations

import sys

from npumatmul.chips import chip
from npumatmul.chips.timing import TIMINGS
from npumatmul.llm.modelled import SHAPES
from npumatmul.llm.modelled.offload import OffloadPlan, Speeds, plan_offload
from npumatmul.llm.policy import Policy

MODELS = ("Qwen2.5-1.5B", "Gemma2-2B", "Qwen3-4B", "Llama-3.1-8B", "Qwen3-30B-A3B")
SCHEME = "w8a8"
LIMITED = Policy(memory_limit="2GB")
ROWS = 512


def plans() -> list[str]:
    """Each model on each chip: by the usual policy, by each processor alone, and within 2 GB."""
    lines = [
        "| model | chip | NPU MB, domains | contexts, descriptors | usual policy | NPU alone | CPU alone | "
        "within 2 GB: MB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for soc in TIMINGS:
            usual, limited = (plan_offload(SHAPES[name], chip(soc), SCHEME, each) for each in (Policy(), LIMITED))
            cells = [
                f"{_memory(usual)}, {len(usual.domains or {})}",
                f"{usual.contexts}, {usual.descriptors}",
                *(_speeds(each) for each in (usual.under, usual.npu, usual.cpu)),
                _memory(limited),
                _speeds(limited.under),
            ]
            lines.append(f"| {name} | {soc} | {' | '.join(cells)} |")
    return lines


def _memory(plan: OffloadPlan) -> str:
    return "-" if plan.placement is None else f"{plan.placement.npu_bytes / 1e6:.0f}"


def _speeds(speeds: Speeds | None) -> str:
    prompt, token = (None, None) if speeds is None else (speeds.prompt_per_second(ROWS), speeds.tokens_per_second)
    return "-" if prompt is None or token is None else f"{prompt.seconds:.1f}, {token.seconds:.1f}"


TABLES = (plans,)


def main() -> int:
    """Print every table."""
    for table in TABLES:
        print("\n".join(table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
