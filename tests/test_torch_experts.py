"""Experts of mixtures, in all the ways in which transformers lays them out, against its own computation."""

from __future__ import annotations

import copy
import importlib
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch_models import cosine, spread

from npumatmul.torch import NpuExperts, offload

pytestmark = pytest.mark.usefixtures("plain_torch")

EXPERTS = {
    "gpt_oss.GptOssExperts": "biases, transposed, interleaved, a gate of its own",
    "aria.AriaExperts": "transposed",
    "minimax_m3_vl.MiniMaxM3VLExperts": "a gate of its own",
    "nemotron_h.NemotronHExperts": "no gate",
    "muse_spark.MuseSparkExperts": "a norm",
    "qwen3_moe.Qwen3MoeExperts": "",
}


def made(name: str) -> nn.Module:
    family, kind = name.split(".")
    config = SimpleNamespace(
        _experts_implementation="eager", hidden_size=64, moe_hidden_size=64, intermediate_size=48,
        moe_intermediate_size=48, num_local_experts=4, num_experts=4, n_routed_experts=4, moe_num_experts=4,
        moe_latent_size=None, swiglu_alpha=1.7, swiglu_limit=2.0, hidden_act="silu", mlp_hidden_act="relu2",
        post_norm_eps=1e-5,
    )  # fmt: skip
    module: nn.Module = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), kind)(
        config
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def routed(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(rows)])
    return torch.randn(rows, 64), chosen, torch.rand(rows, 2)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_compute_what_transformers_does(name: str) -> None:
    model = nn.ModuleDict({"experts": made(name)})
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert [(row.name, row.times) for row in report] == [("experts", 8)]
    assert isinstance(model["experts"], NpuExperts)
    for rows in (1, 7):
        given = routed(rows)
        y, expected = model["experts"](*given), original["experts"](*given)
        assert (y - expected).abs().max() <= 4e-3 * expected.abs().max()
        traced = torch.ops.npumatmul.experts(*given, model["experts"]._number)
        assert torch.equal(traced, y)


@pytest.mark.parametrize("name", EXPERTS)
def test_their_weights_are_read_back_loaded_copied_and_pickled(name: str) -> None:
    model = nn.ModuleDict({"experts": made(name)})
    before = {key: values.clone() for key, values in model.state_dict().items()}
    offload(model, "w16a16")
    after, given = model.state_dict(), routed(5)
    assert after.keys() == before.keys()
    for key, values in after.items():
        torch.testing.assert_close(values, before[key], rtol=1e-3, atol=1e-4)
    y = model["experts"](*given)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other["experts"](*given), y)
    other = nn.ModuleDict({"experts": made(name)})
    model.load_state_dict(other.state_dict())
    expected = other["experts"](*given)
    assert (model["experts"](*given) - expected).abs().max() <= 4e-3 * expected.abs().max()


def test_experts_that_do_not_say_how_they_are_laid_out_stay() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 64, 96))
            self.down_proj = nn.Parameter(torch.zeros(2, 48, 64))

    more, odd = made("qwen3_moe.Qwen3MoeExperts"), made("qwen3_moe.Qwen3MoeExperts")
    more.scale = nn.Parameter(torch.ones(1))
    vars(odd)["is_transposed"] = True
    report = offload(nn.ModuleDict({"taken": nn.Linear(64, 64), "own": Own(), "more": more, "odd": odd}))
    assert [row.name for row in report] == ["taken"]
    assert "does not say how they are laid out" in report.left["own"]
    assert "parameters down_proj, gate_up_proj, scale" in report.left["more"]
    assert "shapes (4, 96, 64) and (4, 64, 48)" in report.left["odd"]


def test_a_whole_model_of_experts_with_biases() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=99, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model: Any = spread(GptOssForCausalLM(config))
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert sum(row.times == 8 for row in report) == 2
    ids = torch.randint(3, 90, (2, 9))
    assert cosine(model(ids).logits, original(ids).logits) > 0.9999
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(ids, **how), original.generate(ids, **how))
