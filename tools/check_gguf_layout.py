#!/usr/bin/env python3
"""Let llama.cpp compute the small GGUF files that the tests write.

Tests read GGUF files that they write themselves, so a mistake about llama.cpp's layout could be in both. This writes
all of them with what transformers computes for a text, and has llama.cpp compute the same:

    .venv/bin/python tools/check_gguf_layout.py write FOLDER          # needs the dev extra
    OTHER/bin/python tools/check_gguf_layout.py compare FOLDER        # needs llama-cpp-python and numpy

The second prints a table and fails if a logit differs by more than a 500th of the largest one. The table of a run is in
docs/models.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests" / "llm"
LENGTH = 40
CLOSE = 2e-3  # llama.cpp keeps tables of activation functions in float16


def write(folder: Path) -> int:
    """Write models and what transformers computes."""
    sys.path.insert(0, str(TESTS))
    import model_zoo

    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(0).integers(0, model_zoo.VOCAB, LENGTH).tolist()
    names = []
    for variant in model_zoo.VARIANTS:
        if variant.gguf is None or not variant.llama_cpp:
            continue
        model = model_zoo.torch_model(variant)
        model_zoo.write_gguf(folder / f"{variant.name}.gguf", variant, model)
        np.save(folder / f"{variant.name}.npy", model_zoo.prefill_logits(model, ids))
        names.append(variant.name)
    (folder / "models.json").write_text(json.dumps({"ids": ids, "names": names}))
    print(f"wrote {len(names)} models to {folder}")
    return 0


def compare(folder: Path) -> int:
    """Compute with llama.cpp, and compare."""
    import llama_cpp

    given = json.loads((folder / "models.json").read_text())
    print(f"llama.cpp of llama-cpp-python {llama_cpp.__version__}\n")
    print("| model | largest difference / largest logit | smallest cosine |")
    print("|---|---|---|")
    failed = 0
    for name in given["names"]:
        expected = np.load(folder / f"{name}.npy")
        got = llama_logits(llama_cpp, folder / f"{name}.gguf", given["ids"])
        worst = float(np.abs(got - expected).max() / np.abs(expected).max())
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((got * expected).sum(axis=1) / norms).min())
        failed += not worst <= CLOSE
        print(f"| {name} | {worst:.1e} | {cosine:.7f} |", flush=True)
    print(f"\n{len(given['names']) - failed} of {len(given['names'])} equal within {CLOSE}")
    return 1 if failed else 0


def llama_logits(llama_cpp: Any, path: Path, ids: list[int]) -> np.ndarray:
    """Logits after every token, with keys and values in float32."""
    model = llama_cpp.Llama(
        model_path=str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
    )
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], np.float32)
    model.close()
    return logits


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "compare"):
        sys.exit(__doc__)
    sys.exit({"write": write, "compare": compare}[sys.argv[1]](Path(sys.argv[2])))
