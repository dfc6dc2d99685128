"""`Policy` and where it puts layers: values, texts, limits. Pure: no device, no weights."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npumatmul.chips import Chip, chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import NpuMemoryError
from npumatmul.llm.fitting import LayerShape, Room, product_seconds
from npumatmul.llm.placement import ModelPlacement, place_layers
from npumatmul.llm.policy import Policy
from npumatmul.planning.weight import plan_weight
from npumatmul.running.where import DECODE_ROWS

INT8 = MatmulType.INT8_INT8_INT32
RK3588 = chip("rk3588")
PARTS = {"qkv": (1536, 2048), "attn_out": (1536, 1536), "gate_up": (1536, 17920), "down": (8960, 1536)}


def model(blocks: int = 4, scheme: str = "w8a8", head: int = 32000) -> list[LayerShape]:
    inside = [LayerShape(f"blk.{i}.{part}", *kn, scheme) for i in range(blocks) for part, kn in PARTS.items()]
    return [*inside, LayerShape("head", 1536, head, scheme)]


def placed(policy: Policy, layers: list[LayerShape] | None = None, on: Chip = RK3588, **room: Any) -> ModelPlacement:
    given = Room.of(on, policy)
    return place_layers(layers or model(), policy, on, dataclasses.replace(given, **room))


def on_npu(placement: ModelPlacement) -> list[str]:
    return [each.name for each in placement if each.memory == "npu"]


# ---- values and texts ----------------------------------------------------------------------------------------------

PATTERN = st.text("abkl.0129_*?[]-", min_size=1, max_size=12).filter(lambda text: not text.isdigit())
POLICIES = st.builds(
    Policy,
    npu_layers=st.one_of(st.sampled_from(["auto", "all"]), st.integers(0, 1000), st.lists(PATTERN, min_size=1)),
    prefill=st.sampled_from(["auto", "npu", "cpu"]),
    decode=st.sampled_from(["auto", "npu", "cpu"]),
    memory_limit=st.none() | st.integers(1, 1 << 40) | st.sampled_from(["2GB", "1.5 GiB", "800MB"]),
    domains=st.none() | st.integers(1, 16),
    cores=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 5), min_size=1, unique=True),
    layers=st.none() | st.tuples(st.integers(0, 9), st.integers(10, 99)),
    schemes=st.dictionaries(PATTERN, st.sampled_from(["w8a8", "w4a8_g32", "float32"]), max_size=3),
)


@given(POLICIES)
def test_a_policy_is_read_again_as_it_was_written(policy: Policy) -> None:
    assert Policy.parse(str(policy)) == policy
    assert eval(repr(policy), {"Policy": Policy}) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(Policy.parse(str(policy))) == hash(policy)


@given(st.text(max_size=40) | st.text("npu_layers=decode,cores+:0123456789.*", max_size=40))
def test_nonsense_is_refused_in_words_or_is_a_policy(text: str) -> None:
    said = "policy: "
    try:
        policy = Policy.parse(text)
    except ValueError as error:
        policy, said = Policy(), str(error)
    assert Policy.parse(str(policy)) == policy
    assert said.lower().startswith("policy: ")


def test_one_form_of_each_value() -> None:
    policy = Policy(npu_layers="blk.*.down", cores=[2, 0], memory_limit="1.5 GiB", layers=[0, 3])  # type: ignore[arg-type]
    assert (policy.npu_layers, policy.cores, policy.memory_limit) == (("blk.*.down",), (0, 2), 3 << 29)
    assert policy.layers == (0, 3)
    assert Policy() == Policy.parse("") == Policy.parse("  ")
    assert (repr(Policy()), str(Policy())) == ("Policy()", "")
    given = {"head": "w16a16"}
    kept = Policy(schemes=given)
    given["head"] = "float32"
    assert kept.schemes == {"head": "w16a16"}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"npu_layers": -1}, ValueError, "npu_layers is -1; it must be 0 or more"),
        ({"npu_layers": 1.5}, TypeError, "a number of blocks, 'auto', 'all' or patterns"),
        ({"npu_layers": True}, TypeError, "npu_layers is a number of blocks"),
        ({"npu_layers": []}, ValueError, "has no patterns; 0 has no layer"),
        ({"npu_layers": ["auto"]}, ValueError, "give 'auto' by itself"),
        ({"npu_layers": "20"}, ValueError, "the pattern '20'; give 20 by itself"),
        ({"npu_layers": ["blk 1"]}, ValueError, "'blk 1', which is no pattern"),
        ({"npu_layers": [3]}, TypeError, "patterns of the names of layers, not 3"),
        ({"decode": "gpu"}, ValueError, "decode is 'gpu'; it can be 'auto', 'npu' or 'cpu'"),
        ({"prefill": None}, ValueError, "prefill is None"),
        ({"memory_limit": "much"}, ValueError, "'much' is no size"),
        ({"memory_limit": 0}, ValueError, "memory_limit is 0; it must be 1 or more"),
        ({"memory_limit": 2.5}, TypeError, "a number of bytes, such as 2000000000 or '2GB'"),
        ({"domains": 0}, ValueError, "domains is 0"),
        ({"cores": []}, ValueError, "one or more numbers of cores"),
        ({"cores": [1, 1]}, ValueError, "each once"),
        ({"cores": "0"}, TypeError, "numbers of cores, from 0 on, not '0'"),
        ({"layers": (3, 3)}, ValueError, "holds no block"),
        ({"layers": 3}, ValueError, "two numbers of blocks, such as"),
        ({"layers": (0, "1")}, TypeError, "two numbers of blocks"),
        ({"schemes": "w8a8"}, TypeError, "a mapping from patterns to schemes"),
        ({"schemes": {"head": 8}}, TypeError, "gives schemes by their names, not 8"),
        ({"schemes": {"head": "w8 a8"}}, ValueError, "the name of no scheme"),
        ({"schemes": {"a,b": "w8a8"}}, ValueError, "'a,b', which is no pattern"),
    ],
)
def test_values_that_make_no_sense(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        Policy(**options)
    assert str(caught.value).startswith("Policy: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("npu_layer=20", "'npu_layer=20' is not understood; it is name=value"),
        ("decode", "'decode' is not understood"),
        ("decode=cpu,,", "'' is not understood"),
        ("decode=cpu,decode=npu", "decode is given twice"),
        ("decode=", "decode has no value"),
        ("layers=0-12", "layers is '0-12'; it is two numbers of blocks, such as 0:12"),
        ("cores=0+x", "cores is 'x', and not a number"),
        ("domains=1e3", "domains is '1e3', and not a number"),
        ("schemes=head", "schemes has 'head'; it is pattern:scheme"),
        ("schemes=head:w8a8+head:w4a4", "schemes has 'head' twice"),
        ("npu_layers=99999999999", "npu_layers is '99999999999'"),
    ],
)
def test_texts_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^policy: ") as caught:
        Policy.parse(text)
    assert said in str(caught.value)


# ---- which layers --------------------------------------------------------------------------------------------------


def test_a_number_is_so_many_of_the_last_blocks_as_of_llama_cpp() -> None:
    names = [each.name for each in model()]
    assert Policy(npu_layers=0).wanted(names) == []
    assert Policy(npu_layers=1).wanted(names) == [f"blk.3.{part}" for part in PARTS]
    assert Policy(npu_layers=4).wanted(names) == names[:-1]
    assert Policy(npu_layers=5).wanted(names) == Policy(npu_layers=999).wanted(names) == names
    assert Policy(npu_layers="all").wanted(names) == names
    assert Policy().wanted(names) is None


def test_patterns_choose_by_name_in_the_order_of_the_model() -> None:
    chosen = placed(Policy(npu_layers=["head", "blk.?.down"]))
    assert on_npu(chosen) == ["blk.0.down", "blk.1.down", "blk.2.down", "blk.3.down", "head"]
    assert all(each.prefill == each.decode == "cpu" for each in chosen if each.memory == "host")


@pytest.mark.parametrize("options", [{"npu_layers": "blk.9.*"}, {"schemes": {"blk.9.*": "w16a16"}}])
def test_patterns_that_match_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has 'blk\.9\.\*', but no layer of the model is called so; its layers are"):
        placed(Policy(**options))


def test_layers_of_numpy_are_on_no_npu() -> None:
    layers = [dataclasses.replace(each, scheme="float32") if each.name == "head" else each for each in model()]
    assert "head" not in on_npu(placed(Policy(), layers))
    assert "head" not in on_npu(placed(Policy(npu_layers="all"), layers))


# ---- phases --------------------------------------------------------------------------------------------------------


def test_who_computes_what_is_what_was_asked_for() -> None:
    for prefill in ("npu", "cpu"):
        for decode in ("npu", "cpu"):
            for each in placed(Policy(npu_layers="all", prefill=prefill, decode=decode)):
                assert each.place(1) == each.place(DECODE_ROWS) == decode
                assert each.place(DECODE_ROWS + 1) == each.place(512) == (prefill if each.memory == "npu" else "cpu")
                computes = {decode} if each.name == "head" else {prefill, decode}  # it meets single rows alone
                assert each.memory == ("npu" if "npu" in computes else "host")


def test_auto_chooses_whoever_the_model_says_is_faster() -> None:
    for soc in ("rk3588", "rk3576", "rk3562"):
        for each in placed(Policy(npu_layers="all"), on=chip(soc)):
            plan = plan_weight(each.k, each.n, INT8, chip(soc), chip(soc).runtime)
            cpu_wins = {}
            for rows in (1, 2, 3, 4, 6, 8, 12, 16, 128):
                npu, cpu = product_seconds(plan, rows, chip(soc)) or (0.0, 0.0)
                cpu_wins[rows] = cpu < npu
            first = next(rows for rows in cpu_wins if not cpu_wins[rows])  # from there on the NPU computes
            assert [rows for rows in cpu_wins if each.place(rows) == "cpu"] == [n for n in cpu_wins if n < first]


def test_where_the_cpu_gets_all_tokens_the_output_matrix_takes_no_npu_memory() -> None:
    assert "head" not in on_npu(placed(Policy(decode="cpu")))  # it meets one row of a prompt, too
    assert "head" in on_npu(placed(Policy(decode="npu")))


def test_without_a_model_of_time_all_is_the_npus() -> None:
    unknown = dataclasses.replace(RK3588, timings={})
    assert {(each.memory, each.place(1), each.place(64)) for each in placed(Policy(), on=unknown)} == {
        ("npu", "npu", "npu")
    }


def test_fewer_cores_make_the_cpu_win_more_often() -> None:
    three, one = placed(Policy(npu_layers="all")), placed(Policy(npu_layers="all", cores=1))
    assert all(few.crossover >= many.crossover for few, many in zip(one, three, strict=True))
    assert sum(few.crossover > many.crossover for few, many in zip(one, three, strict=True))
    with pytest.raises(ValueError, match=r"cores has 3; rk3588 has cores 0 to 2"):
        placed(Policy(cores=[0, 3]))
    with pytest.raises(ValueError, match=r"cores has 1; rk3562 has one core, 0"):
        placed(Policy(cores=1), on=chip("rk3562"))


# ---- memory --------------------------------------------------------------------------------------------------------


@given(st.integers(8_000_000, 300_000_000), st.sampled_from(["w8a8", "w4a4", "w16a16"]))
@settings(max_examples=25, deadline=None)
def test_auto_fills_memory_up_to_the_limit(limit: int, scheme: str) -> None:
    layers = model(scheme=scheme)
    policy = Policy(memory_limit=limit, decode="npu")
    got = placed(policy, layers)
    assert got.npu_bytes <= limit
    left = [each for each in got if each.memory == "host"]
    smallest = min((each.nbytes for each in left), default=0)
    # nothing would have had room beside A and C, of its own or of the others, and what arenas may lose
    assert not left or got.npu_bytes + smallest + 2 * got.workspace > 0.95 * limit - 100_000
    assert len(on_npu(got)) + len(left) == len(layers)


def test_a_larger_limit_never_has_fewer_bytes() -> None:
    sizes = [placed(Policy(memory_limit=limit * 10**7, decode="npu")).npu_bytes for limit in range(1, 30)]
    assert sizes == sorted(sizes)


def test_a_limit_that_is_too_small_says_what_the_least_is() -> None:
    with pytest.raises(ValueError, match=r"Give at least (\d+)") as caught:
        placed(Policy(memory_limit=1000))
    least = int(str(caught.value).partition("at least ")[2].partition(",")[0])
    assert len(on_npu(placed(Policy(memory_limit=least)))) >= 1
    with pytest.raises(ValueError, match="has no room for any layer"):
        placed(Policy(memory_limit=least - 100))


def test_layers_that_are_asked_for_and_do_not_fit_say_what_would() -> None:
    with pytest.raises(NpuMemoryError, match=r"17 layers are asked for on the NPU and need \d+ bytes") as caught:
        placed(Policy(npu_layers="all", memory_limit="50MB"))
    least = int(str(caught.value).partition("memory_limit=")[2].split()[0])
    assert len(on_npu(placed(Policy(npu_layers="all", memory_limit=least)))) == 17
    with pytest.raises(NpuMemoryError, match="What would fit: npu_layers='auto', fewer layers, fewer bits a weight"):
        placed(Policy(npu_layers="all"), domains=1, domain_bytes=50_000_000)


def test_domains_are_filled_in_order_and_no_weight_is_in_two() -> None:
    got = placed(Policy(npu_layers="all"), domains=4, domain_bytes=80_000_000)
    found: dict[int, int] = {}
    for each in got:
        assert each.domain is not None
        found[each.domain] = found.get(each.domain, 0) + each.nbytes
    assert sorted(found) == [0, 1, 2, 3]
    assert max(found.values()) <= 80_000_000
    with pytest.raises(ValueError, match=r"domains is 99; here there are 16 of 2\.1 GB"):
        placed(Policy(domains=99))


def test_what_is_held_already_counts() -> None:
    free, half = placed(Policy(memory_limit="200MB")), placed(Policy(memory_limit="200MB"), held=100_000_000)
    assert half.npu_bytes <= 100_000_000 < free.npu_bytes


def test_experts_that_are_chosen_seldom_come_last() -> None:
    experts = [LayerShape(f"blk.0.expert.{i}.down", 1536, 1536, "w8a8", 1 / 16) for i in range(16)]
    layers = [*experts, *model(1)]
    some = placed(Policy(memory_limit="40MB"), layers)
    assert {"blk.0.qkv", "blk.0.attn_out", "blk.0.gate_up"} & set(on_npu(some))
    assert not any("expert" in name for name in on_npu(placed(Policy(memory_limit="34MB"), layers)))


# ---- what is told --------------------------------------------------------------------------------------------------


def test_a_table_has_a_line_for_layers_that_are_alike() -> None:
    got = placed(Policy(npu_layers=["*down", "*gate_up"], decode="cpu"))
    lines = str(got).splitlines()
    assert lines[1].split() == ["blk.0.qkv", "to", "blk.3.qkv", "(4)", "w8a8", "host", "12.6", "cpu", "cpu"]
    assert [line.split()[0] for line in lines[1:6]] == [f"blk.0.{part}" for part in PARTS] + ["head"]
    assert "cpu up to 8 rows" in lines[3]
    assert lines[-1] == repr(got)[1:-1]
    assert got.named("head").memory == "host"
    with pytest.raises(KeyError, match=r"no layer 'tail'"):
        got.named("tail")
    assert got[:2] == tuple(got)[:2]
    assert sum(each["nbytes"] for each in got.content()) == got.npu_bytes + got.host_bytes
