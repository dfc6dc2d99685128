"""Print how fast an RK3588 is modelled to be: single products, and language models.

    python bench/modelled_speed.py

Nothing here is measured: it is `npumatmul.chips.timing` summed up, the tables of docs/board.md. `npumatmul plan` prints
the same of any model and chip, with ranges.
"""

from __future__ import annotations

from npumatmul.chips import CHIPS
from npumatmul.chips.types import MatmulType
from npumatmul.llm.modelled import SHAPES, modelled_pass
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import plan_weight

RK3588 = CHIPS["rk3588"]
TYPES = {"w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32, "w8a8": MatmulType.INT8_INT8_INT32}
MODELS = ("SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5-1.5B")
PRODUCTS = ((1, 2048, 2048), (128, 2048, 2048), (512, 2048, 2048), (1, 2048, 8192), (128, 2048, 8192))
PROMPT = 128


def product_seconds(m: int, k: int, n: int, scheme: str) -> float:
    """Modelled time of one product, packing and storing included."""
    seconds = plan_matmul(m, plan_weight(k, n, TYPES[scheme], RK3588)).modelled_seconds
    assert seconds is not None
    return seconds


def model_seconds(name: str, m: int, scheme: str) -> float:
    """Modelled time of M tokens, the last of `PROMPT` or all of them."""
    found = modelled_pass(SHAPES[name], m, PROMPT, TYPES[scheme], RK3588)
    assert found is not None
    return found.seconds


def table() -> str:
    """The tables of docs/board.md."""
    lines = ["| product (M, K, N) | float16, ms | w8a8, ms |", "|---|---|---|"]
    for m, k, n in PRODUCTS:
        times = " | ".join(f"{product_seconds(m, k, n, scheme) * 1e3:.2f}" for scheme in TYPES)
        lines.append(f"| {m}, {k}, {n} | {times} |")
    lines += ["", "| model | generation, tokens/s: w16a16 | w8a8 | prompt of 128, tokens/s: w16a16 | w8a8 |"]
    lines += ["|---|---|---|---|---|"]
    for name in MODELS:
        cells = [m / model_seconds(name, m, scheme) for m in (1, PROMPT) for scheme in TYPES]
        lines.append(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
