"""Models by policies: what they say does not depend on where their layers are; parts of them make the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import VARIANTS, torch_model, write_folder

import npumatmul as npu
import npumatmul.llm
from npumatmul import sim
from npumatmul.errors import ClosedError, DeviceLostError, ModelError, NotFiniteError, NpuMemoryError
from npumatmul.llm import ContextFullError, Decoder, Model, Policy, TokenSequence, fetch_demo_encoder
from npumatmul.llm.crossover import measured_crossover
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.weights import load_decoder
from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model, save_quantized
from npumatmul.nn.product import FloatProduct

IDS = [(37 * i + 11) % 264 for i in range(140)]


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


# ---- parts of models -----------------------------------------------------------------------------------------------


def decoder(path: Path, layers: tuple[int, int] | None = None) -> Decoder:
    with open_source(path) as source:
        return load_decoder(source, lambda layer: FloatProduct(layer.weight(source)), layers=layers)


def parts(path: Path, scheme: str, cuts: list[int], **options: Any) -> list[Model]:
    return [npumatmul.llm.load(path, scheme, policy=Policy(layers=layers), **options) for layers in pairwise(cuts)]


@pytest.mark.parametrize("scheme", ["float32", "w8a8", "w16a16"])
def test_two_halves_give_exactly_the_logits_of_the_whole(tiny: Any, device: npu.Device, scheme: str) -> None:
    on = {} if scheme == "float32" else {"device": device}
    blocks = 2
    with npumatmul.llm.load(tiny.path, scheme, policy=Policy(), **on) as whole:
        prompt, rest = IDS[:130], IDS[130:136]  # longer than a block of tokens
        expected = whole.logits(prompt)
        first, second = parts(tiny.path, scheme, [0, 1, blocks], **on)
        assert (str(first.part), str(second.part)) == ("block 0 of 2", "block 1 of 2")
        one, other = first.sequence(), second.sequence()
        np.testing.assert_array_equal(other.run(one.run(prompt), all_logits=True), expected)
        whole_sequence = whole.sequence()
        whole_sequence.run(prompt)
        for token in rest:
            got = other.run(one.run([token]))
            np.testing.assert_array_equal(got, whole_sequence.run([token]))
        assert one.length == other.length == 136
        first.close()
        second.close()


#: The last variant of each architecture: those with most options come last.
LAST = {each.model_type: each for each in VARIANTS}


@pytest.mark.parametrize("variant", LAST.values(), ids=lambda each: each.name)
def test_parts_of_every_architecture(variant: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, variant, torch_model(variant))
    ids = IDS[:20]
    whole = decoder(tmp_path)
    if whole.config.whole_only is not None:
        with pytest.raises(ValueError, match=r"layers \(0, 1\) of .* cannot be computed alone: each of its layers has"):
            decoder(tmp_path, (0, 1))
        return
    states: Any = ids
    for cut in pairwise(range(whole.config.n_layers + 1)):
        part = decoder(tmp_path, cut)
        states = TokenSequence(part, "it", 64, nullcontext).run(states, all_logits=True)
    np.testing.assert_array_equal(states, whole.forward(ids, whole.new_cache(), all_logits=True))


def test_a_part_holds_nothing_of_the_others(tiny: Any, device: npu.Device) -> None:
    with npumatmul.llm.load(tiny.path, device=device, cache=False):
        all_of_it = device.memory_stats().weights_used
    read: list[str] = []
    with npumatmul.llm.load(
        tiny.path,
        device=device,
        policy=Policy("all", layers=(1, 2), decode="npu"),
        progress=lambda done, of, name: read.append(name),
    ) as model:
        assert read == ["blk.1.qkv", "blk.1.attn_out", "blk.1.gate_up", "blk.1.down", "head", "done"]
        assert list(model._model.linears) == read[:-1]
        assert 0 < device.memory_stats().weights_used < all_of_it
        assert model.placement is not None
        assert [each.name for each in model.placement] == read[:-1]
        assert "block 1 of 2" in repr(model)
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy(layers=(0, 1))) as model:
        assert "head" not in model._model.linears
        assert model.weight_macs(3) == 3 * sum(k * n for k, n in (p.shape for p in model._model.linears.values()))


def test_the_cache_on_disk_keeps_parts_apart(tiny: Any, device: npu.Device) -> None:
    for _ in range(2):
        for layers in (None, (0, 1), (1, 2)):
            with npumatmul.llm.load(tiny.path, device=device, policy=Policy(layers=layers)) as model:
                assert len(model._model.linears) == {None: 9, (0, 1): 4, (1, 2): 5}[layers]


def test_what_a_part_cannot_do_alone_says_what_can(tiny: Any) -> None:
    first, second = parts(tiny.path, "float32", [0, 1, 2])
    for call in (lambda: first.logits([1]), lambda: first.generate([1]), lambda: second.embed(["x"], pooling="mean")):
        with pytest.raises(ModelError, match=r"a part of tiny, block \d of 2; its sequence\(\) takes tokens or states"):
            call()
    states = first.sequence().run([1, 2])
    sequence = second.sequence(3)
    for wrong in ([1, 2], states[:, :-1], states.astype(np.float16), states[0], states[:0]):
        with pytest.raises(ValueError, match=r"take states of the part before, float32 of shape \(T, \d+\)"):
            sequence.run(wrong)
    with pytest.raises(NotFiniteError):
        sequence.run(np.full_like(states, np.nan))
    with pytest.raises(TypeError):
        first.sequence().run(states)
    with pytest.raises(ValueError, match="token 264"):
        first.sequence().run([264])
    assert sequence.run(states).shape == (264,)
    with pytest.raises(ContextFullError, match="2 more tokens do not fit: the sequence has 2 of at most 3"):
        sequence.run(states)
    assert sequence.truncate(1) == 1
    assert sequence.run(states).shape == (264,)
    with pytest.raises(ValueError, match=r"layers \(1, 3\) are no part of the model, which has 2 blocks"):
        parts(tiny.path, "float32", [1, 3])
    first.close()
    with pytest.raises(ClosedError):
        first.sequence()


def test_sequences_that_become_long_where_that_matters_have_to_pass_anew(tmp_path: Path) -> None:
    variant = next(each for each in VARIANTS if "long" in each.name)
    write_folder(tmp_path, variant, torch_model(variant))
    model = decoder(tmp_path)
    longest = model.config.longest_short
    assert longest is not None
    expected = model.forward(IDS[: longest + 4], model.new_cache(), all_logits=True)
    first, second = (TokenSequence(model, "it", 64, nullcontext) for _ in range(2))
    first.run(IDS[:longest])
    with pytest.raises(ModelError, match=rf"more than {longest} tokens are rotated otherwise in it"):
        first.run([1])
    np.testing.assert_array_equal(second.run(IDS[: longest + 4], all_logits=True), expected)


# ---- places --------------------------------------------------------------------------------------------------------

POLICIES = [
    Policy("all", decode="npu"),
    Policy("all", prefill="npu", decode="cpu"),
    Policy("all", prefill="cpu", decode="npu"),
    Policy(0),
    Policy(1, prefill="npu"),
    Policy(["blk.*.down", "head"], decode="npu"),
    Policy(),
    Policy(memory_limit="150kB", decode="npu"),
    Policy("all", cores=[1, 2], domains=1, decode="npu"),
]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8_g32", "w4a4", "gguf"])
def test_what_a_model_says_does_not_depend_on_the_policy(
    make_tiny_model: Callable[..., Any], device: npu.Device, scheme: str
) -> None:
    path = make_tiny_model().path
    ids = IDS[:20]
    with npumatmul.llm.load(path, scheme, device=device) as model:
        expected = model.logits(ids)
        told = [piece.text for piece in model.generate(ids, max_tokens=6)]
    for policy in POLICIES:
        with npumatmul.llm.load(path, scheme, device=device, policy=policy) as model:
            np.testing.assert_array_equal(model.logits(ids), expected, err_msg=str(policy))
            assert [piece.text for piece in model.generate(ids, max_tokens=6)] == told


def test_whoever_was_chosen_computes(tiny: Any, device: npu.Device) -> None:
    ids = IDS[:20]
    for policy in POLICIES:
        with npumatmul.llm.load(tiny.path, device=device, policy=policy) as model:
            placement = model.placement
            assert placement is not None
            for rows in (1, 20):
                before = device.stats()
                model._model.forward(ids[:rows], model._model.new_cache())
                after = device.stats()
                wanted = {"npu": 0, "cpu": 0}
                for each in placement:
                    met = 1 if each.name == "head" else rows
                    wanted[each.place(met)] += met * each.k * each.n
                got = {"npu": after.macs - before.macs, "cpu": after.cpu_macs - before.cpu_macs}
                assert got == wanted, (policy, rows)


def test_layers_on_the_cpu_take_no_npu_memory(tiny: Any, device: npu.Device) -> None:
    for policy in POLICIES:
        with npumatmul.llm.load(tiny.path, device=device, policy=policy) as model:
            placement = model.placement
            assert placement is not None
            weights = {name: product.weight for name, product in model._model.linears.items()}  # type: ignore[attr-defined]
            assert {name: weight.memory for name, weight in weights.items()} == {p.name: p.memory for p in placement}
            inside = sum(weight.nbytes for weight in weights.values() if weight.memory == "npu")
            assert device.memory_stats().weights_used == inside
            assert inside <= placement.npu_bytes
        assert device.memory_stats().weights_used == 0


@pytest.mark.parametrize("limit", [70_000, 100_000, 150_000, 200_000, 400_000])
def test_the_device_never_holds_more_than_the_limit(tiny: Any, device: npu.Device, limit: int) -> None:
    with npumatmul.llm.load(tiny.path, "float32") as reference:
        expected = reference.logits(IDS[:100])
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy(memory_limit=limit, decode="npu")) as model:
        got = model.logits(IDS[:100])
        list(model.generate(IDS[:60], max_tokens=4))
        stats = device.memory_stats()
        assert (stats.limit, stats.peak <= limit) == (limit, True)
        assert model.placement is not None
        assert 0 < model.placement.npu_bytes <= limit
    assert device.memory_stats().limit is None
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.99


def test_the_smaller_limit_counts_and_anothers_is_left_alone(tiny: Any, device: npu.Device) -> None:
    device.limit_memory(300_000)
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy(memory_limit="1GB", decode="npu")) as model:
        assert device.memory_stats().limit == 300_000
        assert model.placement is not None
        assert model.placement.npu_bytes <= 300_000
    assert device.memory_stats().limit == 300_000
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy(memory_limit=200_000)):
        device.limit_memory(250_000)
    assert device.memory_stats().limit == 250_000


def test_quantized_files_take_policies(tiny: Any, device: npu.Device, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w4a8_g32"))), path)
    with npumatmul.llm.load(path, device=device) as model:
        expected = model.logits(IDS[:20])
    with npumatmul.llm.load(path, device=device, policy=Policy(1, prefill="npu", decode="cpu")) as model:
        np.testing.assert_array_equal(model.logits(IDS[:20]), expected)
        assert model.placement is not None
        assert {each.memory for each in model.placement} == {"npu", "host"}
        assert {each.scheme for each in model.placement} == {"w4a8_g32"}


def test_a_policy_may_name_schemes_too(tiny: Any, device: npu.Device) -> None:
    schemes = {"*.down": "w16a16", "head": "float32"}
    with npumatmul.llm.load(tiny.path, device=device, policy=schemes) as model:
        expected = model.logits(IDS[:20])
    policy = Policy(schemes=schemes, npu_layers="all", prefill="npu", decode="npu")
    with npumatmul.llm.load(tiny.path, device=device, policy=policy) as model:
        np.testing.assert_array_equal(model.logits(IDS[:20]), expected)
        assert model.placement is not None
        assert [model.placement.named(name).scheme for name in ("blk.1.down", "head", "blk.0.qkv")] == [
            "w16a16", "float32", "w8a8",
        ]  # fmt: skip
        assert "numpy" in str(model.placement)


def test_an_encoder_takes_a_policy(device: npu.Device) -> None:
    path = fetch_demo_encoder()
    texts = ["A cat sits on the mat.", "Shares fell."]
    with npumatmul.llm.load(path, device=device) as model:
        expected = model.embed(texts)
    policy = Policy(["blk.[024].*"], decode="cpu")
    with npumatmul.llm.load(path, device=device, policy=policy) as model:
        np.testing.assert_array_equal(model.embed(texts), expected)
        assert model.placement is not None
        assert sum(each.memory == "npu" for each in model.placement) == 12
        with pytest.raises(ModelError, match="is an encoder"):
            model.sequence()
    with pytest.raises(ValueError, match="a part of a decoder"):
        npumatmul.llm.load(path, device=device, policy=Policy(layers=(0, 1)))


def test_a_lost_device_says_so_whatever_the_policy(tiny: Any) -> None:
    for policy in [Policy(count, prefill="npu", decode=who) for count in (9, 1) for who in ("npu", "cpu")]:
        with npu.Device("sim:rk3588") as device:
            model = npumatmul.llm.load(tiny.path, device=device, policy=policy)
            model.logits(IDS[:20])
            with sim.configured(device, faults="run:lost"), pytest.raises(DeviceLostError, match="rknn_matmul_run"):
                model.logits(IDS[:20])
            for count in (20, 3):
                with pytest.raises(DeviceLostError, match="rknn_matmul_run"):
                    model.logits(IDS[:count])
            model.close()


def test_a_board_is_asked_up_to_how_many_rows_the_cpu_is_faster(
    tiny: Any, device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def measured(weight: npu.PackedWeight) -> int:
        asked.append(weight.shape)
        return 3 if weight.shape[0] == 32 else 0

    monkeypatch.setattr("npumatmul.llm.placing.measured_crossover", measured)
    ids = IDS[:20]
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy("all", prefill="npu")) as model:
        expected = model.logits(ids)
    assert not asked  # a simulation says nothing of a board
    monkeypatch.setattr(device, "simulated", False)
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy("all", prefill="npu"), cache=False) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)
        assert model.placement is not None
        there = [each for each in model.placement if each.memory == "npu"]
        assert sorted(asked) == sorted({(each.k, each.n) for each in there})  # once each
        assert {(each.crossover, each.measured) for each in there} == {(3, True), (0, True)}
        assert all((each.crossover == 3) == (each.k == 32) for each in there)
        assert "cpu up to 3 rows, measured" in str(model.placement)
        before = device.stats()
        model._model.forward(ids[:3], model._model.new_cache())
        after = device.stats()
        met = {each.name: (1 if each.name == "head" else 3) * each.k * each.n for each in model.placement}
        on_cpu = sum(met[each.name] for each in model.placement if each.place(3) == "cpu")
        assert after.cpu_macs - before.cpu_macs == on_cpu < sum(met.values())
        assert after.macs > before.macs
    asked.clear()
    with npumatmul.llm.load(tiny.path, device=device, policy=Policy("all", prefill="npu", decode="npu")):
        assert not asked  # nobody has to know


def test_a_crossover_is_where_the_cpu_stops_being_faster(device: npu.Device) -> None:
    weight = npu.pack(np.ones((64, 32), np.float32), "w8a8", device=device)
    times = {1: (5.0, 1.0), 2: (5.0, 4.0), 4: (5.0, 5.0), 8: (5.0, 1.0)}  # of the NPU and the CPU
    now, seen = [0.0], []

    def clock() -> float:
        stats = device.stats()
        done = stats.macs + stats.cpu_macs, stats.cpu_macs
        if seen:
            rows, is_cpu = (done[0] - seen[-1][0]) // (64 * 32), done[1] > seen[-1][1]
            if rows in times:
                now[0] += times[rows][is_cpu]
        seen.append(done)
        return now[0]

    assert measured_crossover(weight, clock=clock) == 2
    assert measured_crossover(weight, rows=[4, 8], clock=clock) == 0


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_policies_that_do_not_go_with_a_model(tiny: Any, device: npu.Device, tmp_path: Path) -> None:
    def load(policy: Any, scheme: str = "w8a8", path: Path = tiny.path) -> None:
        npumatmul.llm.load(path, scheme, policy=policy, device=device)

    with pytest.raises(TypeError, match="policy is a Policy, or a mapping from patterns to schemes"):
        load("npu_layers=3")
    with pytest.raises(ValueError, match=re.escape("npu_layers has 'blk.7.*', but no layer of the model is called so")):
        load(Policy(npu_layers="blk.7.*"))
    with pytest.raises(ValueError, match="has no room for any layer: the smallest"):
        load(Policy(memory_limit=5000, decode="npu"))
    with pytest.raises(NpuMemoryError, match="9 layers are asked for on the NPU and need"):
        load(Policy("all", prefill="npu", memory_limit=20_000))
    with pytest.raises(ValueError, match="cores has 3; rk3588 has cores 0 to 2"):
        load(Policy(cores=3))
    with pytest.raises(ValueError, match="'float32' is computed by numpy; of a policy only layers and schemes"):
        load(Policy(decode="cpu"), "float32")
    with pytest.raises(ValueError, match="it goes with no policy"):
        load(Policy(schemes={"head": "w8a8"}), "gguf")
    quantized = tmp_path / "q.safetensors"
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w8a8"))), quantized)
    with pytest.raises(ValueError, match="is quantized already and takes no scheme or policy with schemes"):
        load(Policy(schemes={"head": "w8a8"}), path=quantized)
    with pytest.raises(ValueError, match="a part of a model that was not quantized yet"):
        load(Policy(layers=(0, 1)), path=quantized)
    assert device.memory_stats().limit is None
    assert device.memory_stats().weights_used == 0
