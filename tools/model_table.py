#!/usr/bin/env python3
"""Print the table of architectures in docs/models.md: what their small random models give, against transformers.

.venv/bin/python tools/model_table.py     # needs the dev extra; some seconds
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests" / "llm"
sys.path.insert(0, str(TESTS))
warnings.simplefilter("ignore")

import test_llm_architectures as tried  # noqa: E402
from model_zoo import VARIANTS, Variant, prefill_logits, torch_model, write_folder, write_gguf  # noqa: E402

from npumatmul.llm import npu_pack, numpy_pack  # noqa: E402
from npumatmul.llm.models.registry import ARCHITECTURES  # noqa: E402

TOKENIZERS = {
    "llama": "SentencePiece (2), BPE (3)",
    "mistral": "SentencePiece, BPE",
    "gemma2": "SentencePiece",
    "gemma3_text": "SentencePiece",
    "phi3": "SentencePiece (3), BPE (4)",
}
"""What vocabularies its models have; BPE of bytes where nothing is said."""

HEADER = """\
| architecture | models | safetensors | GGUF | tokenizer | variants | prefill, float32 | decode, float32 | cosine |
|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
    """Print a row for each architecture."""
    print(HEADER)
    for architecture in ARCHITECTURES:
        variants = [each for each in VARIANTS if each.model_type in architecture.model_types]
        found = np.array([row for each in variants for row in measured(each)])
        prefill, decode = found[:, :2].max(axis=0)
        gguf = ", ".join(sorted({each.gguf for each in variants if each.gguf})) or "llama.cpp has none"
        vocabulary = TOKENIZERS.get(architecture.model_types[0], "BPE")
        print(
            f"| {', '.join(architecture.model_types)} | {architecture.models} | yes | {gguf} | {vocabulary} | "
            f"{len(variants)} | {prefill:.0e} | {decode:.0e} | {np.floor(found[:, 2].min() * 1e7) / 1e7:.7f} |",
            flush=True,
        )
    return 0


def measured(variant: Variant) -> list[tuple[float, float, float]]:
    """Largest differences over the largest logit of a prompt and of single tokens, and the smallest cosine."""
    model = torch_model(variant)
    whole, steps = prefill_logits(model, tried.IDS), tried.stepwise_logits(model)
    largest = np.abs(whole).max()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [write_folder(folder / "folder", variant, model)]
        if variant.gguf is not None:
            paths.append(write_gguf(folder / "model.gguf", variant, model))
        for path in paths:
            exact, half = tried.load(path, numpy_pack), tried.load(path, npu_pack("w16a16", "sim:rk3588"))
            prefill = exact.forward(tried.IDS, exact.new_cache(), all_logits=True)
            through = half.forward(tried.IDS, half.new_cache(), all_logits=True)
            cosine = min(tried.cosines(through, whole).min(), tried.cosines(tried.decoded(half), steps).min())
            prefill_off, decode_off = (
                float(np.abs(a - b).max() / largest) for a, b in ((prefill, whole), (tried.decoded(exact), steps))
            )
            rows.append((prefill_off, decode_off, float(cosine)))
    return rows


if __name__ == "__main__":
    sys.exit(main())
