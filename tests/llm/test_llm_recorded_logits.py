"""Programs that go on to logits, that are given something besides, and whose layers follow others."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_llm_recorded import IDS, by_python, calls_of, decoder, same, steps, trusted

import npumatmul as npu
from npumatmul import nn, sim
from npumatmul.errors import DeviceLostError, NotFiniteError, NpuMemoryError, RknnError
from npumatmul.llm import Decoder, Policy, Sampler, SamplingOptions, load
from npumatmul.llm.models.taps import TappedLinear
from npumatmul.llm.models.together import forward_together
from npumatmul.running.recorded import RecordedProgram

Float32 = NDArray[np.float32]


def logits(model: Decoder, counts: list[int], *, whole: bool = False, **how: Any) -> list[Float32]:
    """After so many tokens, one after the other."""
    cache, found, start = model.new_cache(**how), [], 0
    for count in counts:
        found.append(model.forward([each % 64 for each in IDS[start : start + count]], cache, all_logits=whole))
        start += count
    return found


def endings(model: Decoder) -> list[bool]:
    """Of each program whether it makes logits."""
    return [each.ends for each in model._recorded._programs.values()]


@pytest.mark.parametrize(
    "more", [{}, {"logit_softcap": 3.0}, {"logit_scale": 0.5, "norm": "layer"}, {"tied": True, "norm_offset": 1.0}],
    ids=["plain", "softcap", "scale", "tied"],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_logits_are_the_bits_that_python_gives(more: dict[str, Any], whole: bool) -> None:
    model = decoder(**more)
    counts = [5, 1, 1, 1, 4, 1, 4, 4, 1]
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append(logits(model, counts, whole=whole))
    assert same(*found)
    assert all(endings(model))
    assert trusted(model) >= {1, 4}
    shapes = [each.shape for each in found[1]]
    assert shapes == [((count, 64) if whole else (64,)) for count in counts]


def test_logits_belong_to_whoever_got_them() -> None:
    model = decoder()
    cache = model.new_cache()
    made = [model.forward([token], cache) for token in IDS[:8]]
    kept = [each.copy() for each in made]
    for each in made[::2]:
        each.fill(-1)
    model.forward([1], cache)
    assert same(made[1::2], kept[1::2])


@pytest.mark.parametrize(("counts", "rows"), [((1, 1, 1), (1, 1, 1)), ((2, 1, 3), (1, 1, 2)), ((2, 2), (2, 1))])
def test_several_texts_at_once(counts: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """Of neighbours whose rows stand together, and of others, which are gathered by numpy."""
    model = decoder()
    found = []
    for guard in (by_python, None):
        caches = [model.new_cache() for _ in counts]
        made: list[Float32] = []
        with guard() if guard else npu.config():
            for i in range(5):
                tokens = [IDS[i + j : i + j + count] for j, count in enumerate(counts)]
                made += forward_together(model, tokens, caches, rows)
        found.append(made)
    assert same(*found)
    assert [len(each) for each in found[1][: len(rows)]] == list(rows)
    assert sum(counts) in trusted(model)
    assert endings(model) == [counts == (1, 1, 1)]


def test_a_part_without_an_output_matrix_and_states_alone() -> None:
    """Whoever wants states gets them of a program of its own."""
    model = decoder()
    logits(model, [1] * 4)
    states = steps(model, nn.KVCache(3, 2, 16), [1] * 5)
    with by_python():
        assert same(states, steps(model, nn.KVCache(3, 2, 16), [1] * 5))
    assert sorted(endings(model)) == [False, True]


def test_without_room_for_the_output_matrix_there_are_programs_of_the_blocks() -> None:
    model = decoder()
    right = logits(model, [1] * 4)
    programs = model._recorded._programs
    found, before = programs.copy(), RecordedProgram.run_blocks

    def without_room(self: RecordedProgram, *given: Any, **how: Any) -> Any:
        if any(self is each.program for each in found.values()):
            raise NpuMemoryError("no room for contexts")
        return before(self, *given, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordedProgram, "run_blocks", without_room)
        assert same(right, logits(model, [1] * 4))
        assert endings(model) == [False]
        assert trusted(model) == {1}


def test_an_output_matrix_of_numpy_stays_pythons() -> None:
    model = decoder()
    rng = np.random.default_rng(1)
    model.lm_head.use(nn.FloatProduct(rng.standard_normal((64, 64)).astype(np.float32)))
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append(logits(model, [1] * 6))
    assert same(*found)
    assert endings(model) == [False]
    assert trusted(model) == {1}


def test_an_output_matrix_that_somebody_looks_at_is_looked_at_for_every_token() -> None:
    seen: list[str] = []
    model = decoder()
    model = model.with_linears(
        {"head": TappedLinear(model.linears["head"], "head", lambda name, *_: seen.append(name))}
    )
    logits(model, [1] * 6)
    assert len(seen) == 6


class Doubling(Decoder):
    """Changes what all decoders do."""

    def logits(self, x: Float32) -> Float32:
        return 2 * super().logits(x)


def test_methods_of_derived_models_are_called() -> None:
    model = decoder()
    plain = logits(model, [1] * 5)
    model.__class__ = Doubling
    assert same([2 * each for each in plain], logits(model, [1] * 5))
    model.__class__ = Decoder
    before = model.entering_head
    object.__setattr__(model, "entering_head", lambda x: before(x) * np.float32(2))
    assert not same(plain, logits(model, [1] * 5))


@pytest.mark.parametrize("change", ["norm", "head", "head-product"])
def test_changes_behind_the_blocks_are_seen(change: str) -> None:
    model, other = decoder(), decoder()
    logits(model, [1] * 5)
    rng = np.random.default_rng(9)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    if change == "norm":
        model.model.norm.load_state_dict({"weight": np.full(64, 0.25)})
    elif change == "head":
        other.lm_head.load_state_dict({"weight": weight})
        model.lm_head = other.lm_head
    else:
        model.lm_head.use(nn.PackedProduct(npu.pack(weight, "w8a8")))
    changed = logits(model, [1] * 5)
    with by_python():
        assert same(changed, logits(model, [1] * 5))


@pytest.mark.parametrize("part", ["lm_head", "model"])
def test_a_copy_with_another_end_and_the_same_blocks(part: str) -> None:
    """Both are used in turns; neither gives what the other one would."""
    model = decoder()
    other = copy.copy(model)
    if part == "model":
        other.model = copy.copy(model.model)
        other.model.norm = copy.copy(model.model.norm)
        other.model.norm.load_state_dict({"weight": np.full(64, 0.25)})
    else:
        other.lm_head = decoder().lm_head
        rng = np.random.default_rng(9)
        other.lm_head.load_state_dict({"weight": rng.standard_normal((64, 64)).astype(np.float32)})
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append([logits(each, [1] * 5) for each in (model, other, model, other)])
    for one, another in zip(*found, strict=True):
        assert same(one, another)
    assert not same(*found[1][:2])


def test_a_failure_behind_the_blocks_leaves_the_cache_as_it_was() -> None:
    with sim.configured(), npu.Device("sim:rk3588") as device:
        model = decoder(device=device)
        cache = model.new_cache()
        for token in IDS[:5]:
            model.forward([token], cache)
        with sim.configured(device, faults="run:after=12:times=5:code=-1"), pytest.raises(RknnError, match="in vain"):
            model.forward([7], cache)
        assert cache.length == cache.offset == 5
        with sim.configured(device, faults="run:after=12:times=1:code=-1"):
            one = model.forward([7], cache)
        cache.truncate(5)
        with by_python():
            assert model.forward([7], cache).tobytes() == one.tobytes()


def test_what_is_not_finite_is_told_of_the_output_matrix() -> None:
    model = decoder()
    cache = model.new_cache()
    for token in IDS[:5]:
        model.forward([token], cache)
    norm: Any = model.model.norm
    norm._factor[3] = np.nan  # where it stands
    with pytest.raises(NotFiniteError):
        model.forward([7], cache)
    assert cache.length == 5


def test_a_device_that_is_lost_in_the_middle_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the runs of a token: all later ones name the first failure, and closing is quiet."""
    monkeypatch.setenv("NPUMATMUL_LIBRARY", str(shutil.copy(sim.library_path(), tmp_path / "libown.so")))
    for number in (0, 5, 12):
        with npu.Device() as device:
            model = decoder(device=device)
            cache = model.new_cache()
            for token in IDS[:5]:
                model.forward([token], cache)
            assert trusted(model) == {1}
            with sim.configured(device, faults=f"run:after={number}:lost"):
                with pytest.raises(DeviceLostError, match="rknn_matmul_run"):
                    model.forward([7], cache)
                assert cache.length == 5
                with pytest.raises(DeviceLostError, match="rknn_matmul_run"):
                    model.forward([7], cache)


def test_logits_take_no_more_calls_of_python_than_states() -> None:
    model = decoder(30)
    cache = model.new_cache(300)
    for token in IDS[:6]:
        model.forward([token], cache)
    assert endings(model) == [True]
    assert calls_of(lambda: model.forward([3], cache)) <= 75


# ---- layers that are given something besides, and layers that follow others ------------------------------------------


def beside_decoder() -> Decoder:
    """A small model of Gemma 4's kind."""
    sizes: dict[str, Any] = {"layer_embedding": 32, "layer_vocab": 64}
    return decoder(**sizes)


@pytest.mark.parametrize("counts", [[1] * 8, [5, 1, 5, 1, 5, 1, 1], [40, 40, 40, 40, 1, 1]])
def test_embeddings_of_layers_are_given_to_programs(counts: list[int]) -> None:
    model = beside_decoder()
    for block in model.model.layers:
        block.layer_scalar = np.full(1, 0.5, np.float32)
    found = []
    for guard in (by_python, None):
        made: list[Float32] = []
        with guard() if guard else npu.config():
            cache = model.new_cache()
            for count in counts:
                made.append(model.forward([each % 64 for each in IDS[:count]], cache))
                if count == 40:
                    cache.truncate(0)
        found.append(made)
    assert same(*found)
    assert trusted(model) >= {1}
    if counts[0] > 8:
        assert 40 in trusted(model)


def test_a_factor_is_read_for_every_token() -> None:
    model = decoder()
    blocks: list[Any] = list(model.model.layers)
    for block in blocks:
        block.layer_scalar = np.ones(1, np.float32)
    logits(model, [1] * 4)
    calls = [entry.call for each in model._recorded._programs.values() for entry in each.program._keeps]
    assert calls.count(None) == len(calls), "no step is a call of Python"
    for block in blocks:
        block.layer_scalar.fill(3)
    made = logits(model, [1] * 4)
    with by_python():
        assert same(made, logits(model, [1] * 4))


class CalledAttention(nn.Attention):
    """Is called by programs."""

    recordable = False  # type: ignore[assignment]


@pytest.mark.parametrize("called", [(), (2,), (0,), (1, 3), (0, 1, 2, 3)])
def test_layers_that_follow_others(called: tuple[int, ...]) -> None:
    """Whoever stores keys, steps or Python, whoever looks at them finds those of the same tokens."""
    model = decoder(4)
    blocks: list[Any] = list(model.model.layers)
    rng = np.random.default_rng(4)
    for layer in (2, 3):
        follower = nn.Attention(64, 4, 2, 16, rope=blocks[layer].self_attn.rope, values="shared", scheme="w8a8")
        shapes = follower.parameter_shapes()
        follower.load_state_dict({n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in shapes.items()})
        blocks[layer].use(follower)
    for layer in called:
        blocks[layer].self_attn.__class__ = CalledAttention
    follows = [None, None, 0, 1]
    found = []
    for guard in (by_python, None):
        cache = nn.KVCache(4, 2, 16, follows=follows, chunk=4)
        with guard() if guard else npu.config():
            made = steps(model, cache, [3, 1, 1, 1, 1, 3, 1, 3, 1])
            cache.trim(1)
            made += steps(model, cache, [1, 1])
            assert cache._given == set(), "as Python leaves it"
        found.append(made)
    assert same(*found)
    assert trusted(model) == {1, 3}


def test_gated_attention_is_steps() -> None:
    model = decoder()
    blocks: list[Any] = list(model.model.layers)
    rng = np.random.default_rng(4)
    for block in blocks:
        own = nn.Attention(64, 4, 2, 16, rope=block.self_attn.rope, gate="sigmoid", qk_norm="head", scheme="w8a8")
        shapes = own.parameter_shapes()
        own.load_state_dict({n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in shapes.items()})
        block.use(own)
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append(steps(model, nn.KVCache(3, 2, 16), [5, 1, 1, 1, 5, 1, 5, 1]))
    assert same(*found)
    assert trusted(model) == {1, 5}
    kinds = [entry.call for each in model._recorded._programs.values() for entry in each.program._keeps]
    assert kinds.count(None) == len(kinds), "no step is a call of Python"


# ---- settings, policies, choices -------------------------------------------------------------------------------------


def test_programs_are_of_one_setting_each() -> None:
    """Who multiplies, on which cores, tuned or not: results of integers are the same."""
    model = decoder()
    scopes: list[Callable[[], Any]] = [
        npu.config,
        lambda: npu.config(processor="cpu"),
        lambda: npu.config(processor="auto"),
        lambda: npu.config(cores=(0,)),
        lambda: npu.config(tuned=True),
    ]
    with by_python():
        right = logits(model, [1] * 5)
    for scope in scopes:
        with scope():
            assert same(right, logits(model, [1] * 5))
    assert len(model._recorded._programs) == len(scopes)
    assert all(each.trusted and each.ends for each in model._recorded._programs.values())


def test_weights_cut_as_they_were_tuned_are_multiplied_by_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 64)).astype(np.float32) * 0.3
    with npu.Device("sim:rk3588") as device:
        npu.Matmul(np.ones((1, 64), np.float32), weight.T, scheme="w8a8", device=device).autotune(iterations=1)
        with npu.config(tuned=True):
            model = decoder(device=device)
            model.lm_head.load_state_dict({"weight": weight})
            made = logits(model, [1] * 5)
            with by_python():
                assert same(made, logits(model, [1] * 5))
    assert endings(model) == [True]


@pytest.mark.parametrize(
    "policy",
    [
        Policy(0),
        Policy(1),
        Policy("all", prefill="cpu", decode="cpu"),
        Policy("all", prefill="npu", decode="cpu"),
        Policy("all", cores=(1,)),
        Policy(["blk.*.down", "head"]),
        Policy("all", schemes={"blk.0.qkv": "w16a16", "head": "w4a8_g32"}),
        Policy("all", schemes={"head": "float32"}),
    ],
    ids=str,
)
def test_whatever_the_policy_programs_say_what_python_says(tiny: Any, policy: Policy) -> None:
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config(), load(tiny.path, device="sim:rk3588", policy=policy) as model:
            sequence = model.sequence()
            found.append([sequence.run([each]) for each in [1, 5, 9, 30, 2, 6]] + [model.logits([1, 104, 105])])
    assert same(*found)


def test_greedy_choices_of_programs_are_those_of_python() -> None:
    model = decoder()
    sampler = Sampler(SamplingOptions())
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            cache, token, chosen = model.new_cache(), 3, []
            for _ in range(12):
                token = sampler.sample(model.forward([token], cache))
                chosen.append(token)
        found.append(chosen)
    assert found[0] == found[1]
