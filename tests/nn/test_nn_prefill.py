"""Products of attention on the NPU: within the bound that is stated, of no great depth, and where the model says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_exact import causal, exact

import npumatmul as npu
from npumatmul import nn
from npumatmul.chips import CHIPS, chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError, ModelError
from npumatmul.nn import prefill
from npumatmul.nn import scaled_dot_product_attention as sdpa
from npumatmul.planning.product import plan_matmul, plan_weight

U, V = 2.0**-11, 2.0**-24
HOST = {"cpu_flops": 5e10, "pack_seconds": 3e-4}


def bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, softcap: float = 0.0) -> float:
    """As the docstring states it, for products on an NPU."""
    d, s = k.shape[-1], k.shape[-2]
    keys = np.abs(np.repeat(k.astype(np.float64), q.shape[-3] // k.shape[-3], -3))
    p = scale * (np.abs(q.astype(np.float64)) @ keys.swapaxes(-1, -2)).max(initial=0)
    a, b = scale * np.abs(q.astype(np.float64)).max(initial=0), keys.max(initial=0)
    scores = 2 * (2 * U + (d + 2) * V) * p + 2.0**-20 * d * a * b
    return (scores + 8 * V * softcap + 2 * U + (2 * s + 16) * V + 2.0**-21 * s) * np.abs(v).max(initial=0)


@settings(max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 20)),
    s=st.integers(1, 600),
    dim=st.sampled_from([3, 32, 40]),
    half=st.booleans(),
    softcap=st.none() | st.just(5.0),
    sinks=st.booleans(),
    window=st.none() | st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_products_on_the_npu_are_within_the_bound(
    sizes: tuple[int, int, int, int], s: int, dim: int, half: bool, softcap: float | None, sinks: bool,
    window: int | None, seed: int,
) -> None:  # fmt: skip
    b, g, group, t = sizes
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((b, g * group, t, dim), np.float32)
    k, v = rng.standard_normal((2, b, g, s, dim), np.float32)
    if half:
        k, v = k.astype(np.float16), v.astype(np.float16)
    sink = rng.standard_normal(g * group).astype(np.float32) if sinks else None
    device = npu.current_device("sim:rk3588")
    before = device.stats().run_calls
    y = sdpa(q, k, v, mask="causal", window=window, softcap=softcap, sinks=sink, device=device)
    assert device.stats().run_calls >= before + 2 * b * g
    scale = dim**-0.5
    wanted = exact(q, k, v, scale=scale, seen=causal(t, s, window), softcap=softcap, sinks=sink)
    assert (np.abs(y - wanted) <= bound(q, k, v, scale, softcap or 0.0)).all()


def test_no_product_is_deeper_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 products of large K collapse, and a K beyond the limits would be cut in slices that are added."""
    seen: list[tuple[int, ...]] = []

    def matmul(a: Any, b: Any, **options: Any) -> Any:
        seen.append(b.shape)
        return np.matmul(a, b)

    rng = np.random.default_rng(1)
    q = rng.standard_normal((1, 1, 16, 32), np.float32)
    k = rng.standard_normal((1, 1, 5000, 32), np.float32)
    monkeypatch.setattr(prefill.AttentionPlans, "measured", lambda self, device: (1e10, 1e-4))
    monkeypatch.setattr(prefill, "matmul", matmul)
    y = sdpa(q, k, k, device="sim:rk3588")
    np.testing.assert_allclose(y, sdpa(q, k, k), atol=1e-5)
    widths = [shape[-1] for shape in seen[::2]]
    assert sum(widths) == 5000
    assert [shape[-2:] for shape in seen[1::2]] == [(width, 32) for width in widths]
    assert max(widths) <= 2048


def test_codes_of_a_cache_are_multiplied_too() -> None:
    rng = np.random.default_rng(2)
    cache = nn.KVCache(1, 2, 32, dtype="int8")
    keys, values = cache.update(0, *rng.standard_normal((2, 1, 2, 70, 32), np.float32))
    q = rng.standard_normal((1, 4, 20, 32), np.float32)
    y = sdpa(q, keys, values, mask="causal", device="sim:rk3588")
    wanted = exact(q, np.asarray(keys), np.asarray(values), scale=32**-0.5, seen=causal(20, 70))
    assert (np.abs(y - wanted) <= bound(q, np.asarray(keys), np.asarray(values), 32**-0.5)).all()


# ---- decisions -----------------------------------------------------------------------------------------------------


def test_a_plan_is_the_sum_of_what_planning_says() -> None:
    """One block, written out: both products of each head of keys, packing K and V, and software."""
    rk3588 = chip("rk3588")
    plan = nn.plan_attention((2, 8, 64, 64), (2, 4, 256, 64), rk3588, **HOST)
    model, mm_type = rk3588.timings["rk3588"], MatmulType.FLOAT16_FLOAT16_FLOAT32
    each = 2 * HOST["pack_seconds"] + 2 * 256 * 64 * (4 + 2) / model.host_bandwidth
    for k, n in ((64, 256), (256, 64)):
        modelled = plan_matmul(2 * 64, plan_weight(k, n, mm_type, rk3588), timings=rk3588.timings).modelled_seconds
        assert modelled is not None
        each += modelled
    assert plan.npu is not None
    assert plan.npu.seconds == pytest.approx(2 * 4 * each)
    assert plan.npu.low < plan.npu.seconds < plan.npu.high
    assert plan.cpu_seconds == pytest.approx(4 * 2 * 8 * 64 * 256 * 64 / 5e10)


@pytest.mark.parametrize("soc", sorted(CHIPS))
def test_decisions_follow_the_model(soc: str) -> None:
    def plan(t: int, **host: float) -> nn.AttentionPlan:
        return nn.plan_attention((1, 32, t, 128), (1, 8, 4096, 128), chip(soc), **{**HOST, **host})

    if plan(512).npu is None:
        assert not plan(512, cpu_flops=1.0).pays  # nobody has measured the chip
        assert "not modelled" in str(plan(512))
        return
    for t in (1, 128, 512):
        for flops in (1e9, 1e10, 1e11, 1e12):
            found = plan(t, cpu_flops=flops)
            assert found.npu is not None
            assert found.pays == (found.npu.high < found.cpu_seconds)
    assert plan(512, cpu_flops=1e9).pays
    assert not plan(512, cpu_flops=1e13).pays
    assert not plan(1).pays  # a token of one sequence
    assert not plan(512, cpu_flops=1e10, pack_seconds=10.0).pays


def loaded(**options: Any) -> nn.Attention:
    attention = nn.Attention(64, 4, 2, rope=nn.RoPE(16), **options)
    rng = np.random.default_rng(3)
    attention.load_state_dict(
        {name: rng.standard_normal(each) / 8 for name, each in attention.parameter_shapes().items()}
    )
    return attention


@pytest.mark.parametrize("flops", [1.0, 1e15])
def test_layers_ask_the_model_on_a_board(monkeypatch: pytest.MonkeyPatch, flops: float) -> None:
    device = npu.Device("sim:rk3588")
    attention = loaded(device=device)
    x = np.random.default_rng(4).standard_normal((1, 32, 64), np.float32)

    def runs(x: np.ndarray) -> int:
        before = device.stats().run_calls
        attention(x)
        return device.stats().run_calls - before

    monkeypatch.setattr(prefill.AttentionPlans, "measured", lambda self, device: (flops, 1e-6))
    assert runs(x) == runs(x[:, :1]) == 2  # simulated: the two projections
    monkeypatch.setattr(device, "simulated", False)
    assert runs(x) == (2 + 4 if flops == 1.0 else 2)  # two products of each of two heads of keys
    assert runs(x[:, :1]) == 2


def test_layers_can_be_told() -> None:
    device = npu.Device("sim:rk3588")
    x = np.random.default_rng(4).standard_normal((1, 32, 64), np.float32)
    on_npu, on_cpu = loaded(device=device, products="npu"), loaded(device=device, products="cpu")
    on_npu(x)  # the first time this machine is measured
    before = device.stats().run_calls
    y = on_npu(x)
    assert device.stats().run_calls - before == 6
    np.testing.assert_allclose(y, on_cpu(x), atol=4e-3)
    reference = loaded(scheme="float32", products="npu")
    with pytest.raises(ModelError, match="no NPU has its projections"):
        reference(x)
    with pytest.raises(ValueError, match="products is 'gpu'"):
        nn.Attention(8, 2, products="gpu")  # type: ignore[arg-type]


def test_figures_of_this_machine_are_numbers() -> None:
    device = npu.current_device("sim:rk3588")
    plans = prefill.AttentionPlans.of(device)
    assert plans is prefill.AttentionPlans.of(device)
    flops, seconds = plans.measured(device)
    assert flops > 0
    assert seconds > 0
    assert plans.measured(device) == (flops, seconds)
    for wrong in ({"cpu_flops": 0.0}, {"pack_seconds": -1.0}, {"cpu_flops": float("nan")}):
        with pytest.raises(ValueError, match="plan_attention"):
            nn.plan_attention((1, 1, 1), (1, 1, 1), chip("rk3588"), **{**HOST, **wrong})


def test_chips_without_a_model_or_without_float16_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a board that knows neither, a prompt is the CPU's, and nothing is tried out."""

    def refused(*_: Any) -> Any:
        raise DeviceError("there are no products of float16")

    def measured(*_: Any) -> Any:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(prefill.AttentionPlans, "measured", measured)
    x = np.random.default_rng(4).standard_normal((1, 32, 64), np.float32)
    for change in ("float16", "model"):
        device = npu.Device("sim:rk3588")
        attention = loaded(device=device, scheme="w8a8")
        monkeypatch.setattr(device, "simulated", False)
        with monkeypatch.context() as patch:
            if change == "float16":
                patch.setattr(prefill, "route_for", refused)
            else:
                patch.setattr(prefill.AttentionPlans, "known", False)
            before = device.stats().run_calls
            attention(x)
            assert device.stats().run_calls - before == 2
