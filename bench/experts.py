"""A mixture of experts that is larger than the memory set for it: ``python bench/experts.py [--folder]``.

A model of random weights (8 layers of 64 experts, of which a token passes 4; 170 million parameters) is written and
loaded with less and less memory for experts. For each limit the table has megabytes of NPU memory in use, of experts
there and of experts in all; how often a matrix of an expert was brought in by the prompt, by each token, and how often
it was found; megabytes brought in for a token, and what `npumatmul plan` expects of these; and whether all tokens are
those of the model that has all its experts there. Counts do not depend on the machine. What is expected assumes that
every token chooses independently; tokens are drawn here, and choices of one text are alike, so more is found. With room
for all of them every matrix is brought in once, when it is used first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gguf
import numpy as np
import synthetic_model

import npumatmul.llm
from npumatmul.chips.types import MatmulType
from npumatmul.device.current import current_device
from npumatmul.llm.modelled import modelled_pass, shape_of
from npumatmul.nn import Residency

LAYERS, HIDDEN, HEADS, HEAD_DIM, EXPERTS, CHOSEN, WIDTH = 8, 512, 8, 64, 64, 4, 192
PROMPT, TOKENS = 48, 32
#: Shares of all experts that have room; beside them, a byte less than what one token passes in all layers.
SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)


def write(path: Path) -> None:
    """Write the model as a GGUF file, piece by piece."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "qwen3moe")
    writer.add_name("synthetic experts")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(4 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(synthetic_model.tokens()[:258])
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(256)

    def matrix(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, np.float32) * np.float32(1.5 / np.sqrt(shape[-1]))
        writer.add_tensor(name, values.astype(np.float16))

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    matrix("token_embd.weight", 258, HIDDEN)
    matrix("output.weight", 258, HIDDEN)
    ones("output_norm.weight", HIDDEN)
    for i in range(LAYERS):
        stem = f"blk.{i}."
        matrix(f"{stem}attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{stem}attn_k.weight", HEADS * HEAD_DIM // 2, HIDDEN)
        matrix(f"{stem}attn_v.weight", HEADS * HEAD_DIM // 2, HIDDEN)
        matrix(f"{stem}attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        matrix(f"{stem}ffn_gate_inp.weight", EXPERTS, HIDDEN)
        matrix(f"{stem}ffn_gate_exps.weight", EXPERTS, WIDTH, HIDDEN)
        matrix(f"{stem}ffn_up_exps.weight", EXPERTS, WIDTH, HIDDEN)
        matrix(f"{stem}ffn_down_exps.weight", EXPERTS, HIDDEN, WIDTH)
        for norm, size in (("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", HEAD_DIM),
                           ("attn_k_norm", HEAD_DIM)):  # fmt: skip
            ones(f"{stem}{norm}.weight", size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def counts(experts: Residency | None) -> tuple[int, int]:
    """How often a matrix was brought in and found."""
    return (0, 0) if experts is None else (experts.brought, experts.found)


def row(path: Path, limit: int | None, total: int, folder: Path | None, known: list[int]) -> str:
    """Load, generate, and say what that took; tokens of the first call are kept in `known`."""
    device = current_device("sim:rk3588")
    where = None if limit is None else folder
    with npumatmul.llm.load(path, "w8a8", device=device, expert_memory=limit, expert_folder=where) as model:
        rng = np.random.default_rng(1)
        prompt = [int(each) for each in rng.integers(0, 256, PROMPT)]
        pieces = model.generate(prompt, max_tokens=TOKENS, stop_ids=(), temperature=1.0, seed=0)
        ids, at = [], [counts(model.experts)]
        for piece in pieces:
            if piece.token is not None:
                ids.append(piece.token)
            at.append(counts(model.experts))
        known[:] = known or ids
        npu, here = device.stats().npu_bytes, total if model.experts is None else model.experts.nbytes
    steps = max(1, len(ids) - 1)  # the first token comes of the prompt
    brought, found = ((at[-1][i] - at[1][i]) / steps for i in (0, 1))
    one = total / (2 * LAYERS * EXPERTS)  # on average of both matrices, which are used equally often
    modelled = modelled_pass(shape_of(path), 1, PROMPT, MatmulType.INT8_INT8_INT32, device.chip, expert_memory=limit)
    assert modelled is not None
    cells = [
        "all" if limit is None else f"{limit / 1e6:.1f}", f"{npu / 1e6:.1f}", f"{here / 1e6:.1f}", f"{total / 1e6:.1f}",
        f"{at[1][0]}", f"{brought:.1f}", f"{found:.1f}", f"{brought * one / 1e6:.2f}", f"{modelled.brought / 1e6:.2f}",
        "yes" if ids == known else "NO",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the model, load it with each limit, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", action="store_true", help="experts wait in files instead of the host's memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path, waiting = Path(name) / "experts.gguf", Path(name) / "waiting"
        waiting.mkdir()
        write(path)
        with npumatmul.llm.load(path, "w8a8", device="sim:rk3588") as model:
            weights = [p.weight for n, p in model._model.linears.items() if ".expert." in n]
            total = sum(weight.nbytes for weight in weights)
        print(
            "| limit, MB | NPU memory, MB | experts there | experts in all | prompt: brought in | a token: brought in "
            "| found | MB a token | expected | same tokens |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        known: list[int] = []
        print(row(path, None, total, None, known), flush=True)
        for share in SHARES:
            limit = int(total * share)
            print(row(path, limit, total, waiting if options.folder else None, known), flush=True)
        through = total * CHOSEN // EXPERTS
        print(row(path, through - 1, total, waiting if options.folder else None, known), flush=True)


if __name__ == "__main__":
    main()
