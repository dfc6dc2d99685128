"""Mixtures of experts against PyTorch: which rows are multiplied with which expert, and what comes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.models.granitemoe import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE
from transformers.models.qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

import npumatmul as npu
from npumatmul import nn
from npumatmul.errors import ModelError
from npumatmul.nn.product import FloatProduct

HIDDEN, INSIDE, EXPERTS, TOP = 16, 24, 6, 2


def random_state(module: Any, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for value in module.parameters():
            value.normal_(0, value.shape[-1] ** -0.5)
    return {name: value.numpy() for name, value in module.state_dict().items()}


def rows(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((*shape, HIDDEN)).astype(np.float32)


def mixture(**options: Any) -> nn.MixtureOfExperts:
    return nn.MixtureOfExperts(HIDDEN, INSIDE, EXPERTS, TOP, **{"scheme": "float32", **options})


def loaded(**options: Any) -> nn.MixtureOfExperts:
    layer = mixture(**options)
    rng = np.random.default_rng(1)
    layer.load_state_dict(
        {name: rng.standard_normal(shape) / shape[-1] ** 0.5 for name, shape in layer.parameter_shapes().items()}
    )
    return layer


@pytest.mark.parametrize("normalize", [False, True])
def test_a_shared_expert_and_its_gate_equal_transformers(normalize: bool) -> None:
    config = Qwen2MoeConfig(
        hidden_size=HIDDEN,
        moe_intermediate_size=INSIDE,
        shared_expert_intermediate_size=40,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
        norm_topk_prob=normalize,
    )
    reference = Qwen2MoeSparseMoeBlock(config)
    layer = mixture(normalize=normalize, shared_size=40, shared_gate=True)
    layer.load_state_dict(random_state(reference))
    x = rows(0, 2, 9)
    with torch.no_grad():
        expected = reference(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layer(x), expected, rtol=0, atol=2e-6)


def test_a_softmax_of_the_chosen_scores_equals_transformers() -> None:
    config = GraniteMoeConfig(
        hidden_size=HIDDEN, intermediate_size=INSIDE, num_local_experts=EXPERTS, num_experts_per_tok=TOP
    )
    reference = GraniteMoeMoE(config)
    layer = mixture(softmax="chosen")
    layer.load_state_dict(random_state(reference))
    x = rows(0, 2, 9)
    with torch.no_grad():
        expected = reference(torch.from_numpy(x))
    np.testing.assert_allclose(layer(x), expected.numpy(), rtol=0, atol=2e-6)


@given(st.integers(0, 1 << 32), st.integers(1, 9), st.integers(1, 5), st.sampled_from(["all", "chosen"]), st.booleans())
def test_a_row_is_what_its_experts_give_for_it_alone(
    seed: int, tokens: int, top: int, softmax: Any, norm: bool
) -> None:
    layer = nn.MixtureOfExperts(HIDDEN, 8, 5, top, softmax=softmax, normalize=norm, scheme="float32")
    rng = np.random.default_rng(seed)
    layer.load_state_dict({name: rng.standard_normal(shape) for name, shape in layer.parameter_shapes().items()})
    x = rows(seed, tokens)
    scores = x.astype(np.float64) @ layer.gate.weight.T
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = np.zeros((tokens, HIDDEN))
    for i, each in enumerate(powers):
        best = np.argsort(-each)[:top]
        whole = each[best].sum() if softmax == "chosen" or norm else each.sum()
        for e in best:
            expected[i] += layer.experts[e](x[i]) * (each[e] / whole)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-3)


def test_only_rows_of_the_chosen_experts_are_multiplied_each_expert_once() -> None:
    layer = loaded()
    seen: dict[str, list[int]] = {}

    class Counted(FloatProduct):
        def __init__(self, weight: Any, name: str) -> None:
            super().__init__(weight)
            self.name = name

        def __call__(self, x: Any) -> Any:
            seen.setdefault(self.name, []).append(len(x))
            return super().__call__(x)

    state = layer.state_dict()
    state["gate.weight"][3] = 0  # never among the best two of these rows, whose scores are all positive but that one's
    state["gate.weight"][:3], state["gate.weight"][4:] = (
        np.abs(state["gate.weight"][:3]),
        np.abs(state["gate.weight"][4:]),
    )
    layer.load_state_dict(state, pack=Counted)
    x = np.abs(rows(2, 3, 11))
    layer(x)
    chosen, _ = layer.gate(x.reshape(-1, HIDDEN))
    counts = np.bincount(chosen.reshape(-1), minlength=EXPERTS)
    assert counts[3] == 0
    wanted = {e: [int(count)] for e, count in enumerate(counts) if count}
    assert {f"experts.{e}.{part}": count for e, count in wanted.items() for part in ("gate_up", "down_proj")} == seen
    assert sum(sum(each) for each in seen.values()) == 33 * TOP * 2


def test_of_equal_scores_the_first_experts_are_chosen() -> None:
    router = nn.Router(HIDDEN, EXPERTS, TOP)
    chosen, weights = router(rows(0, 3))
    np.testing.assert_array_equal(chosen, [[0, 1]] * 3)
    np.testing.assert_allclose(weights, 1 / EXPERTS, rtol=1e-6)


def test_stacks_of_all_kinds_load_as_matrices_do() -> None:
    layer = loaded()
    state = layer.state_dict()
    gate, up, down = (
        np.stack([state[f"experts.{e}.{part}_proj.weight"] for e in range(EXPERTS)]) for part in ("gate", "up", "down")
    )
    both = np.concatenate([gate, up], axis=1)
    router = state["gate.weight"]
    spellings: list[dict[str, NDArray[np.float32]]] = [
        {"gate.weight": router, "experts.gate_up_proj": both, "experts.down_proj": down},
        {"gate.weight": router, "experts.gate_proj.weight": gate, "experts.up_proj.weight": up}
        | {"experts.down_proj.weight": down},
        {"router.layer.weight": router, "input_linear.weight": both, "output_linear.weight": down},
        {"router.weight": router, "experts.gate_up_proj": both, "experts.down_proj": down},
    ]
    x = rows(3, 7)
    for each in spellings:
        other = mixture()
        other.load_state_dict(each)
        np.testing.assert_array_equal(other(x), layer(x))
        with_prefix = mixture()
        with_prefix.load_state_dict(
            {f"layers.3.block_sparse_moe.{name}": value for name, value in each.items()}, prefix="layers.3.mlp."
        )
        np.testing.assert_array_equal(with_prefix(x), layer(x))


def test_a_stack_of_another_shape_or_beside_its_own_matrices_is_refused() -> None:
    state = {"gate.weight": np.ones((EXPERTS, HIDDEN)), "experts.down_proj": np.ones((EXPERTS, HIDDEN, INSIDE))}
    with pytest.raises(ModelError, match=r"experts\.0\.gate_proj\.weight has shape \(23, 16\)"):
        mixture().load_state_dict({**state, "experts.gate_up_proj": np.ones((EXPERTS, 46, HIDDEN))})
    fused = np.ones((EXPERTS, 2 * INSIDE, HIDDEN))
    with pytest.raises(ModelError, match=r"1 name is left over: experts\.down_proj\.weight"):
        mixture().load_state_dict(
            {**state, "experts.gate_up_proj": fused, "experts.down_proj.weight": state["experts.down_proj"][:2]}
        )
    with pytest.raises(ModelError, match="left over"):
        mixture().load_state_dict({**state, "experts.gate_up_proj": np.ones((EXPERTS + 1, 2 * INSIDE, HIDDEN))})


def test_of_a_lazy_mapping_no_more_than_one_matrix_is_read_at_a_time() -> None:
    layer = loaded()
    state = layer.state_dict()
    stack = np.stack([state[f"experts.{e}.down_proj.weight"] for e in range(EXPERTS)])
    asked: list[tuple[int, int, int]] = []

    class Lazy(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            assert name != "experts.down_proj"
            return super().__getitem__(name)

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.get(name).shape)  # type: ignore[union-attr]

        def matrix(self, name: str, number: int, start: int, stop: int) -> Any:
            asked.append((number, start, stop))
            return self.get(name)[number, start:stop]  # type: ignore[index]

    others = {name: value for name, value in state.items() if "down_proj" not in name}
    other = mixture()
    other.load_state_dict(Lazy({**others, "experts.down_proj": stack}))
    assert asked == [(e, 0, HIDDEN) for e in range(EXPERTS)]
    np.testing.assert_array_equal(other(rows(4, 5)), layer(rows(4, 5)))


def test_experts_on_the_npu_and_in_other_types() -> None:
    exact = loaded(shared_size=8)
    layer = mixture(shared_size=8, scheme="w16a16", device="sim:rk3588")
    layer.load_state_dict(exact.state_dict())
    x = rows(5, 4, 3)
    np.testing.assert_allclose(layer(x), exact(x), rtol=0, atol=5e-3)
    half = layer(x.astype(np.float16))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, exact(x), rtol=0, atol=1e-2)
    on_device = layer(npu.asarray(x, device="sim:rk3588"))
    assert isinstance(on_device, npu.NpuArray)
    np.testing.assert_array_equal(on_device.numpy(), layer(x))
    assert layer(x[:0]).shape == (0, 3, HIDDEN)


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="7 experts are to be chosen, and there are 6"):
        nn.MixtureOfExperts(HIDDEN, INSIDE, 6, 7)
    with pytest.raises(ValueError, match="'all' scores or the 'chosen' ones"):
        nn.Router(HIDDEN, 6, 2, softmax="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing for a shared gate"):
        nn.MixtureOfExperts(HIDDEN, INSIDE, 6, 2, shared_gate=True)
    with pytest.raises(ValueError, match=r"takes \(\.\.\., 16\); the input has shape \(2, 15\)"):
        loaded()(np.ones((2, 15), np.float32))
