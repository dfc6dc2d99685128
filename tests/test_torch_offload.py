"""Offloaded models of PyTorch against the same models in float32, by PyTorch and transformers themselves."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm
from torch.nn.utils.parametrizations import weight_norm as parametrized_norm

import npumatmul as npu
from npumatmul.torch import NpuConfig, NpuExperts, NpuLinear, NpuModule, analyze, offload
from npumatmul.torch.tensors import PackedTensor

U, V = 2.0**-11, 2.0**-24


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def bound(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What `npumatmul.matmul` may be off in w16a16; the float32 reference itself is off a little, too."""
    k = w.shape[1]
    a, b = x.abs().double(), w.abs().double()
    tiny = 2.0**-21 * k * a.amax(-1, keepdim=True) * b.amax(-1)
    return ((1 + U) ** 2 * (1 + V) ** (2 * k + 3) - 1) * (a @ b.T) + tiny


@given(
    k=st.integers(1, 90), n=st.integers(1, 90), lead=st.lists(st.integers(0, 4), max_size=3), has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), strided=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_linear_is_pytorchs_within_the_bound_of_products(
    k: int, n: int, lead: list[int], has_bias: bool, dtype: torch.dtype, strided: bool
) -> None:
    torch.manual_seed(k * 91 + n)
    model = nn.Sequential(nn.Linear(k, n, bias=has_bias))
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    x = torch.randn(*lead, k).to(dtype)
    if strided:
        x = torch.stack([x, x], dim=-1)[..., 0]
    with torch.no_grad():
        y = model(x)
        expected = original(x.float())
    assert y.dtype == dtype
    assert y.shape == expected.shape
    step = {torch.float32: 2 * V, torch.float16: U, torch.bfloat16: 2.0**-8}[dtype]
    allowed = bound(x.float(), original[0].weight) * (1 + step) + step * expected.abs() + 1e-6
    assert ((y.double() - expected).abs() <= allowed).all()


CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(32, 40, 3),
    lambda: nn.Conv1d(32, 40, 5, stride=2, padding=2, dilation=2, bias=False),
    lambda: nn.Conv1d(64, 64, 3, padding="same", padding_mode="reflect", groups=2),
    lambda: nn.ConvTranspose1d(32, 40, 8, stride=4, padding=2, output_padding=1),
    lambda: nn.ConvTranspose1d(64, 64, 3, dilation=2, groups=2),
    lambda: nn.Conv2d(8, 40, (3, 5), stride=(1, 2), padding=(0, 1)),
    lambda: parametrized_norm(nn.Conv1d(32, 40, 3)),
    lambda: weight_norm(nn.Conv1d(32, 40, 3)),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "float32"])
@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_convolutions(case: int, scheme: str) -> None:
    original = nn.Sequential(CONVOLUTIONS[case](), nn.ReLU())
    model = nn.Sequential(CONVOLUTIONS[case](), nn.ReLU())
    model.load_state_dict(original.state_dict())
    report = offload(model, scheme)
    assert len(report) == 1
    shape = (2, 8, 9, 11) if isinstance(original[0], nn.Conv2d) else (2, original[0].in_channels, 29)
    x = torch.randn(*shape)
    y, expected = model(x), original(x)
    assert y.shape == expected.shape
    off = {"w16a16": 2e-3, "w8a8": 3e-2, "float32": 1e-6}[scheme]
    assert (y - expected).abs().max() <= off * expected.abs().max()
    torch.testing.assert_close(model(x[0]), y[0], rtol=1e-5, atol=1e-5)
    found = torch.export.export(model, (x,)).module()(x)
    assert torch.equal(found, y)


def tiny(name: str) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    """A tiny random model of transformers, what it is called with, and which result is compared."""
    ids = torch.randint(3, 90, (2, 9))
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    causal = {
        **sizes,
        "vocab_size": 99,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    t = transformers
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**causal)), {"input_ids": ids}, "logits"
    if name == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**causal)), {"input_ids": ids}, "logits"
    if name == "qwen3-moe":
        more = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}
        return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**causal, **more)), {"input_ids": ids}, "logits"
    if name == "gpt2":
        config = t.GPT2Config(
            vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
        )
        return t.GPT2LMHeadModel(config), {"input_ids": ids}, "logits"
    if name == "bert":
        return t.BertModel(t.BertConfig(vocab_size=99, **sizes)), {"input_ids": ids}, "last_hidden_state"
    if name == "t5":
        config = t.T5Config(
            vocab_size=99,
            d_model=64,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            d_kv=16,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
        return t.T5ForConditionalGeneration(config), {"input_ids": ids, "decoder_input_ids": ids}, "logits"
    if name == "whisper":
        config = t.WhisperConfig(
            vocab_size=99, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, num_mel_bins=80,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1, max_source_positions=50, suppress_tokens=[],
            begin_suppress_tokens=[],
        )  # fmt: skip
        given = {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": ids}
        return t.WhisperForConditionalGeneration(config), given, "logits"
    if name == "vit":
        config = t.ViTConfig(image_size=32, patch_size=8, **sizes)
        return t.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, "logits"
    config = t.VitsConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, flow_size=64,
        spectrogram_bins=33, upsample_initial_channel=128, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_wavenet_layers=2, duration_predictor_filter_channels=32, prior_encoder_num_flows=2,
        depth_separable_num_layers=1,
    )  # fmt: skip
    return t.VitsModel(config), {"input_ids": ids[:1]}, "waveform"


NAMES = ["llama", "qwen2", "qwen3-moe", "gpt2", "bert", "t5", "whisper", "vit", "vits"]


def spread(model: nn.Module) -> nn.Module:
    """The model in evaluation, with weights large enough that layers matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "parametrizations" not in name:
            parameter.mul_(3.0)
    return model.eval()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_models_of_transformers(name: str) -> None:
    model, given_, key = tiny(name)
    if name != "vits":  # whose waveform would be at its limits
        spread(model)
    model.eval()
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert sum(isinstance(each, NpuModule) for each in model.modules()) == len(report) > 7

    def result(of: nn.Module) -> torch.Tensor:
        torch.manual_seed(7)
        found: torch.Tensor = of(**given_)[key]
        return found

    expected = result(original)
    for y, e in zip(result(model), expected, strict=True):
        assert cosine(y, e) >= 0.9999
    if name != "vits":  # whose length follows from rounded durations
        rounded = copy.deepcopy(original)
        offload(rounded)
        assert cosine(result(rounded), expected) > 0.99
    if hasattr(model, "generate") and name != "vits" and name != "bert" and name != "vit":
        prompt = {k: v for k, v in given_.items() if k != "decoder_input_ids"}
        for options in ({}, {"num_beams": 3}):
            how = {"max_new_tokens": 6, "do_sample": False, **options}
            assert torch.equal(model.generate(**prompt, **how), original.generate(**prompt, **how))


def test_a_static_cache_batches_and_a_pipeline() -> None:
    model, given_, _ = tiny("llama")
    spread(model)
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    how = {"max_new_tokens": 6, "do_sample": False}
    expected = original.generate(**given_, **how)
    assert torch.equal(model.generate(**given_, **how, cache_implementation="static", disable_compile=True), expected)
    padded = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1] * 4]),
    }
    assert torch.equal(model.generate(**padded, **how), original.generate(**padded, **how))


@pytest.mark.long
def test_programs_are_compiled_and_exported_whole() -> None:
    model, given_, _ = tiny("llama")
    spread(model)
    ids = given_["input_ids"]
    offload(model, "w16a16")
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled(ids[:, :5], use_cache=False).logits, expected[:, :5], rtol=1e-4, atol=1e-4)
    layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Conv1d(5, 33, 7))
    offload(layers, filter_fn=lambda module, name: True)
    program = torch.export.export(layers, (torch.randn(5, 64),), dynamic_shapes=None)
    assert {"npumatmul.linear.default", "npumatmul.convolve.default"} <= {str(n.target) for n in program.graph.nodes}


def test_operators_pass_pytorchs_own_checks() -> None:
    model, _, _ = tiny("qwen3-moe")
    layers = nn.Sequential(nn.Linear(64, 33), nn.Conv1d(32, 40, 3, padding=1), nn.ConvTranspose1d(32, 40, 4, stride=2))
    offload(layers)
    offload(model)
    linear, convolution, transposed = layers
    torch.library.opcheck(torch.ops.npumatmul.linear.default, (torch.randn(2, 64), linear._number, 33))
    shape = list(convolution.weight.shape)
    torch.library.opcheck(
        torch.ops.npumatmul.convolve.default,
        (torch.randn(2, 32, 9), convolution._number, shape, [1], [1], [1], False, [0], 1),
    )
    shape = list(transposed.weight.shape)
    torch.library.opcheck(
        torch.ops.npumatmul.convolve.default,
        (torch.randn(2, 32, 9), transposed._number, shape, [2], [0], [1], True, [0], 1),
    )
    experts = next(each for each in model.modules() if isinstance(each, NpuExperts))
    chosen = torch.tensor([[0, 1], [3, 2]])
    torch.library.opcheck(
        torch.ops.npumatmul.experts.default, (torch.randn(2, 64), chosen, torch.rand(2, 2), experts._number)
    )


# ---- weights that are read, copied, moved and saved ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_weights_are_read_back_and_loaded(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    original = copy.deepcopy(model)
    before = original.state_dict()
    offload(model, scheme)
    after = model.state_dict()
    assert list(after) == list(before)
    for name, values in after.items():
        assert values.dtype == before[name].dtype
        assert (values - before[name]).abs().max() <= before[name].abs().max() * (2e-3 if scheme == "w16a16" else 2e-2)
    x = torch.randn(3, 64)
    y = model[0](x)
    assert model.load_state_dict(after) == ([], [])
    assert cosine(model[0](x), y) > 0.99999
    other = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    model.load_state_dict(other.state_dict())
    assert cosine(model[0](x), other[0](x)) > 0.999
    with pytest.raises(RuntimeError, match=r"0\.weight has shape"):
        model.load_state_dict({**after, "0.weight": torch.zeros(3, 3)})
    assert cosine(model[0](x), other[0](x)) > 0.999
    found = model.load_state_dict({"0.bias": torch.zeros(48), "more": torch.zeros(1)}, strict=False)
    assert found.unexpected_keys == ["more"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict({"0.bias": torch.zeros(48)})


def test_a_weight_looks_like_one() -> None:
    model = nn.Sequential(nn.Linear(64, 48).to(torch.bfloat16))
    expected = model[0].weight.clone()
    offload(model, "w16a16")
    weight = model[0].weight
    assert isinstance(weight, PackedTensor)
    assert (weight.shape, weight.dtype, weight.device.type) == ((48, 64), torch.bfloat16, "cpu")
    torch.testing.assert_close(weight + 0, expected, rtol=1e-2, atol=1e-2)
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(nn.functional.linear(x, weight, model[0].bias), model(x), rtol=2e-2, atol=2e-2)
    assert "on the NPU" in repr(weight)
    assert isinstance(weight, nn.Parameter)
    np.testing.assert_array_equal(weight.float().numpy(), weight.float().tolist())
    model[0].weight = nn.Parameter(torch.eye(48, 64))
    torch.testing.assert_close(model(x) - model[0].bias, x[:, :48], rtol=2e-2, atol=2e-2)
    assert dict(model.named_parameters()).keys() == {"0.bias"}


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        nn.init.zeros_,
        lambda weight: setattr(weight, "data", torch.zeros(48, 64)),
    ],
)
def test_a_weight_that_would_be_changed_in_place_says_how_to_change_it(change: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w16a16")
    x = torch.randn(2, 64)
    y = model(x)
    with pytest.raises(RuntimeError, match=r"cannot be changed in place; assign"):
        change(model[0].weight)
    assert torch.equal(model(x), y)


def test_a_weight_that_was_taken_stays_what_it_was() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32))
    offload(model, "w8a8")
    x = torch.randn(2, 64)
    y, weight, other = model(x), model[0].weight, copy.deepcopy(model)
    values = weight.clone()
    given_ = {name: 2 * each for name, each in model.state_dict().items()}
    swapped = torch.func.functional_call(model, given_, (x,))
    assert cosine(swapped, y) < 0.99999
    assert torch.equal(model(x), y)
    other.load_state_dict(given_)
    assert torch.equal(other(x), swapped)
    assert torch.equal(model(x), y)
    assert torch.equal(weight, values)
    model[0].weight = torch.zeros(48, 64)
    assert torch.equal(weight, values)
    model[0].weight = weight
    assert torch.equal(model(x), y)


def test_copies_share_weights_and_files_hold_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    offload(model, "w8a8")
    x = torch.randn(3, 64)
    other = copy.deepcopy(model)
    assert other[0]._held["weight"] is model[0]._held["weight"]
    assert other[0]._number != model[0]._number
    assert torch.equal(other[0](x), model[0](x))
    torch.save(model, tmp_path / "model.pt")
    for again in (torch.load(tmp_path / "model.pt", weights_only=False), pickle.loads(pickle.dumps(model))):
        assert cosine(again[0](x), model[0](x)) > 0.99999
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert list(torch.load(tmp_path / "weights.pt", weights_only=True)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_weights_leave_with_their_module() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model)
    gone = weakref.ref(model[0].products()[0].weight)
    number = model[0]._number
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="is gone"):
        torch.ops.npumatmul.linear(torch.zeros(1, 64), number, 48)


def test_moving_and_casting_touch_biases_only() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w16a16")
    x = torch.randn(3, 64)
    y = model(x)
    half = model.half()
    assert half[0].bias.dtype == torch.float16
    assert half(x.half()).dtype == torch.float16
    torch.testing.assert_close(model.float().to("cpu")(x), y, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_frozen_models_say_so() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48))
    report = offload(model)
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    assert len(report) == 1
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()
    model.eval()
    with torch.enable_grad():
        y = model(torch.randn(2, 64, requires_grad=True)).sum()
        with pytest.raises(RuntimeError, match="frozen"):
            y.backward()


def test_hooks_stay() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    seen = []
    handle = model[0].register_forward_hook(lambda module, given, result: seen.append(result.shape))
    offload(model)
    model(torch.zeros(2, 64))
    assert seen == [torch.Size([2, 48])]
    handle.remove()
    model(torch.zeros(2, 64))
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("case", range(4))
def test_weights_that_are_made_of_others_are_made_once(case: int) -> None:
    layer = nn.Linear(64, 48)
    if case == 0:
        nn.utils.spectral_norm(layer)
    elif case == 1:
        nn.utils.parametrizations.spectral_norm(layer)
    elif case == 2:
        nn.utils.parametrizations.orthogonal(layer)
    else:
        nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
        nn.utils.prune.l1_unstructured(layer, "bias", 0.5)
    model = nn.Sequential(layer).eval()
    x = torch.randn(3, 64)
    expected = model(x)
    offload(model, "w16a16")
    assert cosine(model(x), expected) > 0.999999
    assert model.state_dict().keys() == {"0.weight", "0.bias"}


class Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Named(nn.Linear):
    """A linear layer under another name."""


def test_subclasses_go_if_they_compute_the_same() -> None:
    replaced = nn.Linear(64, 64)
    replaced.forward = lambda x: 2 * x  # type: ignore[method-assign]
    model = nn.Sequential(Named(64, 64), Own(64, 64), replaced, nn.ConvTranspose2d(32, 32, 3))
    attention = nn.MultiheadAttention(64, 4)
    model.append(attention)
    report = offload(model)
    assert [(row.name, row.kind) for row in report] == [("0", "Named")]
    assert {name: text.split(",")[0].split(" ")[0] for name, text in report.left.items()} == {
        "1": "its", "2": "its", "3": "its", "4.out_proj": "nn.MultiheadAttention",
    }  # fmt: skip
    assert "Own" in report.left["1"]
    assert "forward was replaced" in report.left["2"]


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from npumatmul.torch import offloading

    made: list[str] = []
    row_of = offloading.row_of

    def interrupted(name: str, *rest: Any) -> Any:
        made.append(name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return row_of(name, *rest)

    monkeypatch.setattr(offloading, "row_of", interrupted)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Dropout())
    model[0].register_forward_hook(lambda *each: None)
    model[2].eval()
    before = list(model)
    with pytest.raises(KeyboardInterrupt):
        offload(model, example_inputs=torch.randn(99, 64))
    assert list(model) == before
    assert [each.training for each in model.modules()] == [True, True, True, False]
    assert all(each.requires_grad for each in model.parameters())
    monkeypatch.undo()
    assert len(offload(model)) == 2


# ---- what goes where -------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One layer under two names, and one that is only looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 9)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.again(self.first(x)))
        return self.lm_head(self.attention(x, x, x)[0])


def test_shared_modules_stay_shared_and_attention_stays() -> None:
    model = Shared().eval()
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert model.first is model.again
    assert [row.name for row in report] == ["first", "again"]
    assert report.left["lm_head"] == "skip_modules names it"
    assert report.left.keys() == {"lm_head", "attention.out_proj"}
    x = torch.randn(2, 5, 64)
    assert cosine(model(x), original(x)) > 0.99999


def test_layers_that_multiply_in_ways_of_their_own_are_named() -> None:
    model = nn.ModuleDict(
        {
            "taken": nn.Linear(64, 64), "lstm": nn.LSTM(64, 64), "cell": nn.GRUCell(64, 64),
            "both": nn.Bilinear(8, 8, 8), "volume": nn.Conv3d(64, 64, 3), "table": nn.Embedding(9, 64),
        }
    )  # fmt: skip
    report = offload(model)
    assert [row.name for row in report] == ["taken"]
    kinds = {"lstm": "LSTM", "cell": "GRUCell", "both": "Bilinear", "volume": "Conv3d"}
    assert report.left == {name: f"{kind} is not supported" for name, kind in kinds.items()}


def test_devices_by_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "c": nn.Linear(64, 64)})
    report = offload(model, device_map={"": "sim:rk3588", "b": "sim:rk3576", "c": "cpu"})
    assert [(row.name, row.where) for row in report] == [("a", "sim:rk3588"), ("b", "sim:rk3576")]
    assert report.left == {"c": "device_map leaves it on the CPU"}
    assert type(model["c"]) is nn.Linear
    for name in "ab":
        model[name](torch.zeros(1, 64))
    text = str(report)
    assert "sim:rk3576" in text
    assert "modelled, not measured" in text or report.gain() is None
    assert report.nbytes == sum(row.nbytes for row in report) >= 2 * 64 * 64


def test_filters_choose() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv1d(3, 4, 3), nn.Linear(64, 64))
    asked = []
    report = offload(model, filter_fn=lambda module, name: asked.append(name) or name != "2")  # type: ignore[func-returns-value]
    assert asked == ["0", "1", "2"]
    assert [row.name for row in report] == ["0", "1"]
    assert report.left == {"2": "filter_fn leaves it out"}


@pytest.mark.parametrize(
    ("make", "how", "kind", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, TypeError, "cannot be replaced in place"),
        (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "has none of Linear"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"skip_modules": ["0"]}, ValueError, "skip_modules names it"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": "w9a9"}, ValueError, "w9a9"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": 8}, TypeError, "scheme is a name"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": "int8"}, TypeError, "int8"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": {"5": "sim:rk3588"}}, ValueError, "name of nothing"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": {"": None}}, TypeError, "no device"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": "cpu"}, ValueError, "leaves it on the CPU"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"example_text": "a"}, ValueError, "needs a tokenizer"),
        (lambda: nn.Sequential(nn.Linear(3, 3, dtype=torch.float64)), {}, ValueError, "float64"),
        (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), {}, ValueError, "on meta"),
        (lambda: "model", {}, TypeError, "a torch.nn.Module"),
    ],
)  # fmt: skip
def test_what_cannot_be_offloaded_says_why(make: Any, how: Any, kind: type[Exception], message: str) -> None:
    model = make()
    before = dict(model.named_modules()) if isinstance(model, nn.Module) else None
    with pytest.raises(kind, match=message):
        offload(model, **how)
    assert before is None or dict(model.named_modules()) == before


def test_a_weight_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight[3, 4] = np.nan
    with pytest.raises(npu.errors.NotFiniteError, match="1: the weight"):
        offload(model)
    assert all(type(each) is nn.Linear for each in model)
    assert model.training


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(2, 64, dtype=torch.float64), TypeError, r"not float64.*x\.float\(\)"),
        (torch.zeros(2, 64, dtype=torch.int32), TypeError, "not int32"),
        (torch.zeros(2, 63), RuntimeError, r"shape \(2, 63\)"),
        (torch.full((2, 64), np.nan), npu.errors.NotFiniteError, "row"),
        (torch.zeros(2, 64, device="meta"), Exception, ""),
    ],
)
def test_wrong_inputs(x: torch.Tensor, kind: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w8a8")
    if x.device.type == "meta":
        assert model(x).shape == (2, 48)
        return
    with pytest.raises(kind, match=message):
        model(x)


# ---- calibration and analysis ----------------------------------------------------------------------------------------


def test_examples_decide_how_four_bits_are_rounded() -> None:
    rng = torch.Generator().manual_seed(1)
    mixing = torch.randn(128, 128, generator=rng) * torch.logspace(-1, 1, 128)
    x = torch.randn(400, 128, generator=rng) @ mixing
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))
    original = copy.deepcopy(model)
    plain, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    offload(plain, "w4a8")
    offload(calibrated, "w4a8", example_inputs=[x[:100], (x[100:200],), {"input": x[200:300]}])
    test = x[300:]
    errors = [float((each(test) - original(test)).square().mean()) for each in (plain, calibrated)]
    assert errors[1] < 0.7 * errors[0]
    assert original.training
    after = calibrated.state_dict()
    reloaded = copy.deepcopy(original)
    reloaded.load_state_dict(after)
    assert cosine(reloaded(test), original(test)) > 0.98


def test_layers_are_compared_on_what_comes_into_them() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    model[2].take("weight", original[2].weight + 0.05 * torch.randn(64, 64))
    found = analyze(model, original, [torch.randn(50, 64), torch.randn(3, 64)])
    assert found[0].name == "2"
    assert found[0].sqnr < 25 < 55 < found[1].sqnr
    assert 0 < found[1].largest < 1e-2
    assert found[1].cosine > 0.9999
    with pytest.raises(ValueError, match="nothing of the model is offloaded"):
        analyze(original, original, torch.randn(1, 64))


# ---- transformers' own loading ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
def test_weights_are_packed_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    model, given_, key = tiny(name)
    spread(model)
    model.save_pretrained(tmp_path / "floats")
    kind: Any = type(model)
    expected = model(**given_)[key]
    made = kind.from_pretrained(tmp_path / "floats", quantization_config=NpuConfig("w8a8"))
    packed = [name for name, each in made.named_modules() if isinstance(each, NpuModule)]
    assert len(packed) >= 8
    assert not any(each.endswith("lm_head") for each in packed)
    other = copy.deepcopy(model)
    offload(other, "w8a8")
    y = made(**given_)[key]
    assert cosine(y, other(**given_)[key]) > 0.99999
    assert cosine(y, expected) > 0.99
    made.save_pretrained(tmp_path / "packed")
    again = kind.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(each, NpuModule) for each in again.modules()) == len(packed)
    assert cosine(again(**given_)[key], y) > 0.9999
    other.save_pretrained(tmp_path / "plain")  # of `offload`: a model of floats
    plain = kind.from_pretrained(tmp_path / "plain")
    assert not any(isinstance(each, NpuModule) for each in plain.modules())
    assert cosine(plain(**given_)[key], y) > 0.999


def test_an_output_matrix_that_was_tied_is_written_and_read_again(tmp_path: Path) -> None:
    model, given_, key = tiny("t5")
    spread(model)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "floats")
    kind: Any = type(model)
    made = kind.from_pretrained(tmp_path / "floats", quantization_config=NpuConfig("w16a16", skip_modules=[]))
    assert isinstance(made.lm_head, NpuLinear)
    y = made(**given_)[key]
    assert cosine(y, model(**given_)[key]) > 0.9999
    made.save_pretrained(tmp_path / "packed")
    again = kind.from_pretrained(tmp_path / "packed")
    assert isinstance(again.lm_head, NpuLinear)
    assert torch.equal(again(**given_)[key], y)


def test_a_head_that_no_file_has_is_made_as_transformers_does(tmp_path: Path) -> None:
    model, given_, _ = tiny("bert")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    kind = transformers.BertForSequenceClassification
    made = kind.from_pretrained(tmp_path, quantization_config=NpuConfig("w16a16", skip_modules=[]))
    assert isinstance(made.classifier, NpuLinear)
    assert made(**given_).logits.isfinite().all()
    assert 0.015 < made.classifier.weight.std() < 0.025  # drawn, not whatever was in memory
    assert not made.classifier.bias.any()
    made.save_pretrained(tmp_path)
    other = kind.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other(**given_).logits.shape == (2, 7)
    assert 0.015 < other.classifier.weight.std() < 0.025
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(tmp_path, num_labels=7)


def test_mistakes_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="w9a9"):
        NpuConfig("w9a9")
    with pytest.raises(TypeError, match="NpuConfig has no bits"):
        NpuConfig("w8a8", bits=3)


def test_repr_says_where_a_layer_is() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    offload(model)
    assert "NpuLinear(in_features=64, out_features=48, bias=True, scheme='w8a8', where='sim:" in repr(model)
    assert "NpuConv1d(32, 48, kernel_size=(3,)" in repr(model)
    assert isinstance(model[0], NpuLinear)


@pytest.mark.long
def test_sentence_transformers_run_on_offloaded_models(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from npumatmul.llm import fetch_demo_encoder

    folder = fetch_demo_encoder()
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["A cat sits on the mat.", "", "Shares fell on Monday, and " * 40]
    before = model.encode(texts)
    offload(model)
    for batch in (1, 3):
        after = model.encode(texts, batch_size=batch)
        assert ((before * after).sum(axis=1) >= 0.999).all()
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, num_labels=1
    )
    spread(transformers.BertForSequenceClassification(config)).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    scorer = CrossEncoder(str(tmp_path), device="cpu")
    pairs = [("a question", "an answer"), ("another", "text " * 50)]
    expected = scorer.predict(pairs)
    offload(scorer, "w16a16")
    np.testing.assert_allclose(scorer.predict(pairs), expected, atol=1e-3)
    pipe = transformers.pipeline("feature-extraction", model=str(folder), tokenizer=str(folder), device="cpu")
    rows = np.array(pipe("hello world"))
    offload(pipe.model, "w16a16")
    np.testing.assert_allclose(np.array(pipe("hello world")), rows, atol=5e-3)
