"""Run Kokoro, a text-to-speech model that converters cannot take whole, with its products on the NPU, and compare.

    python -m pip install --no-deps kokoro==0.9.4 loguru attrs
    python bench/text_to_speech.py              PyTorch, and ONNX as PyTorch exports it
    python bench/text_to_speech.py torch        one of them

The model has the sizes of the published one (ALBERT, LSTMs, a decoder that ends in an inverse Fourier transform) and
random weights. Only its network is imported, not the part that reads texts. Several numbers of tokens go through
one model, in w16a16, with the noise that the model adds made the same. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import tempfile
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "vocab": {}, "n_token": 178, "hidden_dim": 512, "style_dim": 128, "n_layer": 3, "max_dur": 50, "dropout": 0.2,
    "text_encoder_kernel_size": 5, "n_mels": 80,
    "plbert": {
        "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048, "max_position_embeddings": 512,
        "num_hidden_layers": 12, "dropout": 0.1,
    },
    "istftnet": {
        "upsample_rates": [10, 6], "upsample_kernel_sizes": [20, 12], "upsample_initial_channel": 512,
        "resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "gen_istft_n_fft": 20, "gen_istft_hop_size": 5,
    },
}  # fmt: skip
TOKENS = (2, 5, 9)  # of a single one the exported graph makes none, in ONNX Runtime itself
SPEED = 3.0


def network(folder: Path) -> Any:
    """The model with random weights, without what its package imports to read texts."""
    import torch

    found = importlib.util.find_spec("kokoro")
    if found is None or found.submodule_search_locations is None:
        sys.exit("Kokoro is not installed; python -m pip install --no-deps kokoro==0.9.4 loguru attrs")
    package = types.ModuleType("kokoro")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["kokoro"] = package
    from kokoro.model import KModel  # type: ignore[import-not-found]

    empty = folder / "empty.pth"
    torch.save({}, empty)
    torch.manual_seed(0)
    return KModel("random", CONFIG, str(empty), disable_complex=True).eval()


def inputs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and voices."""
    rng = np.random.default_rng(0)
    return [(rng.integers(1, 170, (1, n)), rng.normal(0, 0.3, (1, 256)).astype(np.float32)) for n in TOKENS]


def compared(name: str, tokens: int, wanted: np.ndarray, durations: bool, made: np.ndarray) -> str:
    """A row of the table."""
    if wanted.shape != made.shape:
        return f"| {name} | {tokens} | {wanted.size} | another length: {made.size} | |"
    x, y = wanted.astype(np.float64).ravel(), made.astype(np.float64).ravel()
    cosine = x @ y / np.sqrt((x @ x) * (y @ y))
    return f"| {name} | {tokens} | {wanted.size} | {cosine:.4f} | {'the same' if durations else 'others'} |"


def by_torch(model: Any) -> None:
    """Offload the model in place, and compare it with itself; beside it what float16 weights alone do."""
    import torch

    from npumatmul.torch import offload

    def run(of: Any, ids: np.ndarray, style: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        torch.manual_seed(1)
        audio, durations = of.forward_with_tokens(torch.from_numpy(ids), torch.from_numpy(style), SPEED)
        return np.atleast_1d(audio.numpy()), np.atleast_1d(durations.numpy())

    wanted = [run(model, *each) for each in inputs()]
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.half().float())
    rows = []
    offloaded = copy.deepcopy(model)
    report = offload(offloaded, "w16a16")
    for name, of in (("PyTorch, offloaded", offloaded), ("PyTorch, weights in float16", rounded)):
        for each, (audio, durations) in zip(inputs(), wanted, strict=True):
            made, its_durations = run(of, *each)
            rows.append(compared(name, each[0].size, audio, np.array_equal(durations, its_durations), made))
    print("\n".join(rows))
    print()
    print("on the NPU:", dict(Counter(row.kind for row in report)))
    for name, why in report.left.items():
        print(f"stays: {name}: {why}")
    print()


def by_onnx(model: Any, folder: Path) -> None:
    """Export the model, and run it by ONNX Runtime alone and with its products on the NPU."""
    import onnx
    import onnxruntime
    import torch
    from kokoro.model import KModelForONNX

    from npumatmul.onnx import InferenceSession

    path = str(folder / "kokoro.onnx")
    ids, style = inputs()[1]
    torch.onnx.export(
        KModelForONNX(model).eval(), (torch.from_numpy(ids), torch.from_numpy(style), torch.tensor([SPEED])), path,
        input_names=["ids", "style", "speed"], output_names=["audio", "durations"], opset_version=17, dynamo=False,
        dynamic_axes={"ids": {1: "T"}, "audio": {0: "L"}, "durations": {0: "T"}},
    )  # fmt: skip
    exported = onnx.load(path)
    for i, node in enumerate(node for node in exported.graph.node if node.op_type.startswith("Random")):
        node.attribute.append(onnx.helper.make_attribute("seed", float(i + 1)))  # else there is other noise each time
    onnx.save(exported, path)

    def run(kind: Any) -> tuple[Any, list[list[np.ndarray]]]:
        session = kind(path)
        speed = np.array([SPEED], np.float32)
        return session, [session.run(None, {"ids": i, "style": s, "speed": speed}) for i, s in inputs()]

    _, wanted = run(onnxruntime.InferenceSession)
    session, made = run(InferenceSession)
    for (audio, durations), (its_audio, its_durations) in zip(wanted, made, strict=True):
        same = np.array_equal(durations, its_durations)
        print(compared("ONNX", durations.size, audio, same, its_audio))
    print()
    print("on the NPU:", dict(Counter(row.op_type for row in session.report)))
    for why, count in Counter(session.report.left.values()).items():
        print(f"stays: {count} because {why}")


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help="torch, onnx (both)")
    ways = parser.parse_args().ways or ["torch", "onnx"]
    if set(ways) - {"torch", "onnx"}:
        parser.error("there are torch and onnx")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = network(Path(folder))
        print("| way | tokens | values of the waveform | cosine to the original | durations |")
        print("|---|---|---|---|---|")
        if "torch" in ways:
            by_torch(model)
        if "onnx" in ways:
            by_onnx(model, Path(folder))


if __name__ == "__main__":
    main()
