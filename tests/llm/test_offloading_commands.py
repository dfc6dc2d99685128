"""The options of policies on the command line, and plans under them."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npumatmul.chips import CHIPS, chip
from npumatmul.cli import app, offloading
from npumatmul.cli.offloading import policy_of
from npumatmul.errors import DeviceError
from npumatmul.llm import Policy
from npumatmul.llm.modelled import SHAPES, plan_model
from npumatmul.llm.modelled.offload import plan_offload, shapes_of

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import offload_plans

RK3588 = chip("rk3588")


class Done:
    """What a command printed, in this process."""

    def __init__(self, code: object, stdout: str, stderr: str) -> None:
        self.ok = code in (None, 0)
        self.stdout = stdout
        self.stderr = stderr if self.ok or not isinstance(code, str) else f"{stderr}{code}\n"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: str, ok: bool = True) -> Done:
        monkeypatch.setattr(sys, "argv", ["npumatmul", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NPUMATMUL_DEVICE", "sim:rk3588")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.run()
        printed = capsys.readouterr()
        done = Done(caught.value.code, printed.out, printed.err)
        assert done.ok is ok, done.stderr
        return done

    return run


# ---- options -------------------------------------------------------------------------------------------------------


def test_options_make_a_policy_and_win_over_the_text() -> None:
    assert policy_of() is None
    assert policy_of("") == Policy()
    assert policy_of("decode=npu,domains=2", decode="cpu", cores="0,2", memory_limit="1.5GB") == Policy(
        decode="cpu", domains=2, cores=[0, 2], memory_limit="1.5GB"
    )
    assert policy_of(npu_layers="blk.*.down,head", layers="0:12") == Policy(["blk.*.down", "head"], layers=(0, 12))
    assert policy_of(npu_layers="20") == Policy(20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "decode"}, "--policy: 'decode' is not understood"),
        ({"decode": "gpu"}, "--decode: decode is 'gpu'; it can be"),
        ({"memory_limit": "lots"}, "--npu-memory: memory_limit: 'lots' is no size"),
        ({"cores": "0,x"}, "--cores: cores is 'x', and not a number"),
        ({"layers": "4:4"}, "--layers: layers is (4, 4), which holds no block"),
        ({"npu_layers": "a b"}, "--npu-layers: npu_layers has 'a b', which is no pattern"),
        ({"npu_layers": "-1"}, "--npu-layers: npu_layers is '-1'; it must be 0 or more, and 'all' means every layer"),
        ({"text": "npu_layers=-1+head"}, "--policy: npu_layers has the pattern '-1'"),
    ],
)
def test_mistakes_name_the_option(options: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=r"^--") as caught:
        policy_of(**options)
    assert str(caught.value).startswith(said)


# ---- plans ---------------------------------------------------------------------------------------------------------


def test_layers_have_the_names_and_sizes_of_loaded_ones() -> None:
    shape = SHAPES["Qwen3-30B-A3B"]
    every = shapes_of(shape, "w8a8")
    assert len(every) == 48 * (2 + 2 * 128) + 1
    assert sum(each.k * each.n for each in every) == sum(each.k * each.n * each.times for each in shape.every_linear)
    assert {"blk.47.expert.127.down", "blk.0.qkv", "head"} <= {each.name for each in every}
    expert = next(each for each in every if each.name == "blk.0.expert.3.gate_up")
    assert (expert.share, expert.rows(1), expert.rows(128)) == (8 / 128, 1, 8)
    some = shapes_of(SHAPES["Llama-3.1-8B"], "w8a8", (0, 16)) + shapes_of(SHAPES["Llama-3.1-8B"], "w8a8", (16, 32))
    assert some == shapes_of(SHAPES["Llama-3.1-8B"], "w8a8")
    with pytest.raises(ValueError, match="no part of the model, which has 32 blocks"):
        shapes_of(SHAPES["Llama-3.1-8B"], "w8a8", (0, 33))


@pytest.mark.parametrize("soc", ["rk3588", "rk3576", "rk3562"])
@pytest.mark.parametrize("name", ["Qwen2.5-1.5B", "Llama-3.1-8B"])
def test_with_all_on_the_npu_it_is_the_plan_without_a_policy(soc: str, name: str) -> None:
    plan = plan_offload(SHAPES[name], chip(soc), "w8a8", Policy("all", prefill="npu", decode="npu"))
    (usual,) = plan_model(SHAPES[name], chip(soc), ["w8a8"]).schemes
    assert plan.placement is not None
    assert plan.under == plan.npu
    assert plan.under is not None
    assert plan.under.token is not None
    assert usual.token is not None
    assert plan.under.token.seconds == pytest.approx(usual.token.seconds)
    for rows, seconds in usual.prompts.items():
        got = plan.under.prompts[rows]
        assert seconds is not None
        assert got is not None
        assert got.seconds == pytest.approx(seconds.seconds)
    # tiles of an arena begin at multiples of a page's part, so a little more
    assert usual.nbytes <= plan.placement.npu_bytes <= usual.nbytes * 1.001
    domains = plan.domains or {}
    assert len(domains) == -(-plan.placement.npu_bytes // chip(soc).memory.domain_bytes)
    assert plan.contexts == usual.contexts or len(domains) > 1
    assert plan.descriptors > 4 * plan.contexts


def test_a_policy_is_never_modelled_to_be_slower_than_the_slower_of_both() -> None:
    for soc in CHIPS:
        for policy in (Policy(), Policy(decode="cpu"), Policy(memory_limit="1GB"), Policy(10)):
            plan = plan_offload(SHAPES["Qwen3-4B"], chip(soc), "w8a8", policy)
            if plan.under is None or plan.under.token is None:
                continue
            assert plan.npu is not None
            assert plan.cpu is not None
            assert plan.npu.token is not None
            assert plan.cpu.token is not None
            both = [plan.npu.token.seconds, plan.cpu.token.seconds]
            assert plan.under.token.seconds <= max(both) * 1.0001
            if policy == Policy():
                assert plan.under.token.seconds <= min(both) * 1.0001


def test_parts_of_a_model_take_together_what_the_whole_does() -> None:
    shape = SHAPES["Qwen3-4B"]
    whole, *halves = (
        plan_offload(shape, RK3588, "w8a8", Policy("all", layers=layers)) for layers in (None, (0, 18), (18, 36))
    )
    placements = [each.placement for each in (whole, *halves)]
    assert all(placements)
    sizes = [0 if each is None else each.npu_bytes + each.host_bytes for each in placements]
    assert sizes[0] == sizes[1] + sizes[2]
    times = [each.under.token.seconds for each in (whole, *halves) if each.under and each.under.token]
    assert times[0] == pytest.approx(times[1] + times[2])


def test_other_schemes_for_some_layers_are_planned() -> None:
    policy = Policy("all", prefill="npu", decode="npu", schemes={"*.down": "w16a16"})
    plan = plan_offload(SHAPES["Qwen2.5-1.5B"], RK3588, "w8a8", policy)
    plain = plan_offload(SHAPES["Qwen2.5-1.5B"], RK3588, "w8a8", Policy("all", prefill="npu", decode="npu"))
    assert plan.placement is not None
    assert plain.placement is not None
    wide, narrow = (each.named("blk.0.down").nbytes for each in (plan.placement, plain.placement))
    assert wide == pytest.approx(2 * narrow, rel=0.01)
    assert plan.placement.named("blk.0.qkv") == plain.placement.named("blk.0.qkv")
    with pytest.raises(DeviceError):
        plan_offload(SHAPES["Qwen2.5-1.5B"], chip("rk3562"), "w4a4", Policy())


def test_plan_prints_what_fits_and_what_does_not(command: Callable[..., Done]) -> None:
    done = command("plan", "Qwen2.5-1.5B", "--soc", "rk3588", "--decode", "cpu", "--npu-memory", "1GB")
    assert "modelled, not measured" in done.stdout
    assert "blk.0.gate_up to blk.2.gate_up (3)" in done.stdout
    assert "a domain of rk3588 holds 2.1 GB, and there are 16" in done.stderr
    schemes = [line[:-1] for line in done.stdout.splitlines() if re.fullmatch(r"w\d+a\d+:", line)]
    assert schemes == ["w16a16", "w8a8", "w4a8", "w4a4"], "layers of each scheme, as the table has them"
    assert done.stdout.count("layers in NPU memory") == 4
    done = command(
        "plan", "Llama-3.1-8B", "--soc", "rk3588", "--npu-layers", "all", "--npu-memory", "6GB", "--scheme", "w8a8,w4a8"
    )
    assert "w8a8 does not fit: 129 layers are asked for" in done.stderr
    (least,) = re.findall(r"memory_limit=(\d+) has room for all", done.stderr)
    done = command(
        "plan", "Llama-3.1-8B", "--soc", "rk3588", "--npu-layers", "all", "--npu-memory", least, "--scheme", "w8a8"
    )
    assert "129 of 129 layers in NPU memory" in done.stdout
    done = command(
        "plan", "Llama-3.1-8B", "--soc", "rk3588", "--npu-layers", "all", "--npu-memory", "1GB", "--scheme", "w8a8",
        ok=False,
    )  # fmt: skip
    assert done.stderr.startswith("npumatmul: Llama-3.1-8B on rk3588: 129 layers are asked for on the NPU and need")
    assert "What would fit: npu_layers='auto'" in done.stderr


def test_plan_says_what_a_process_may_not_have_as_many_of(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["plan", "Llama-3.1-8B", "--soc", "rk3588", "--npu-layers", "all", "--decode", "npu", "--scheme", "w8a8"]
    assert "descriptors are wanted" not in command(*asked).stderr
    monkeypatch.setattr("npumatmul.cli.offloading.descriptors_within_reach", lambda: 100)
    assert "and a process may have 100 here: raise the hard limit (ulimit -Hn)" in command(*asked).stderr
    memory = dataclasses.replace(RK3588.memory, contexts=10)
    assert offloading._beyond(dataclasses.replace(RK3588, memory=memory), 27, 50)[0].startswith(
        "27 contexts are wanted, and a process can have 10"
    )


def test_plan_as_json_has_every_layer(command: Callable[..., Done]) -> None:
    done = command("plan", "Qwen2.5-1.5B", "--soc", "rk3576", "--npu-layers", "5", "--scheme", "w8a8", "--json")
    content = json.loads(done.stdout)
    (scheme,) = content["schemes"]
    assert (content["policy"], scheme["fits"], len(scheme["layers"])) == ("npu_layers=5", True, 113)
    places = {each["name"]: each["memory"] for each in scheme["layers"]}
    assert sum(memory == "npu" for memory in places.values()) == 20
    assert scheme["npu_bytes"] == sum(each["nbytes"] for each in scheme["layers"] if each["memory"] == "npu")
    assert scheme["under"]["tokens_per_second"]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cores", "7"], "npumatmul: Policy: cores has 7; rk3588 has cores 0 to 2"),
        (["--npu-layers", "blk.99.*"], "npumatmul: load: npu_layers has 'blk.99.*', but no layer"),
        (["--layers", "0:99"], "npumatmul: layers (0, 99) are no part of the model"),
        (["--policy", "npu_layer=3"], "npumatmul: --policy: 'npu_layer=3' is not understood"),
        (["--npu-memory", "1kB", "--decode", "npu"], "npumatmul: Policy: memory_limit of 1000 bytes has no room"),
    ],
)
def test_plans_of_nonsense(command: Callable[..., Done], arguments: list[str], said: str) -> None:
    done = command("plan", "Qwen2.5-1.5B", "--soc", "rk3588", "--scheme", "w8a8", *arguments, ok=False)
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_generate_and_embed_take_the_options(command: Callable[..., Done], tiny: Any, tmp_path: Path) -> None:
    options = ["--npu-layers", "1", "--policy", "prefill=npu,decode=npu", "--npu-memory", "64MB", "--cores", "0"]
    asked = ["-m", str(tiny.path), "-p", "hello", "--raw", "-n", "3", "--no-cache"]
    plain = json.loads(command("generate", *asked, "--json").stdout)
    done = json.loads(command("generate", *asked, "--json", *options).stdout)
    assert done["text"] == plain["text"]
    assert plain["placement"] is None
    assert [each["memory"] for each in done["placement"]["layers"]] == ["host"] * 4 + ["npu"] * 4 + ["host"]
    assert 0 < done["share_of_weight_macs"] < plain["share_of_weight_macs"] == 1
    told = command("generate", *asked, *options).stderr
    assert "layers in NPU memory" in told
    outputs = [
        command("embed", "-m", str(tiny.path), "hello", "--pooling", "mean", "--no-cache", *more).stdout
        for more in ([], options)
    ]
    assert outputs[0] == outputs[1]


def test_generate_says_how_guesses_went(command: Callable[..., Done], tiny: Any) -> None:
    asked = ["generate", "-m", str(tiny.path), "-p", "aaaaaaaa", "--raw", "-n", "24", "--no-cache"]
    plain = json.loads(command(*asked, "--json").stdout)
    done = json.loads(command(*asked, "--json", "--speculation", "lookup").stdout)
    assert (plain["drafted_tokens"], plain["accepted_tokens"]) == (0, 0)
    assert done["text"] == plain["text"]
    assert done["drafted_tokens"] >= done["accepted_tokens"]
    assert done["drafted_tokens"] > 0
    assert done["share_of_weight_macs"] == 1, "wrong guesses are computed, too"
    told = command(*asked, "--speculation", "lookup").stderr
    assert f"{done['accepted_tokens']} of {done['drafted_tokens']}" in told
    assert "--speculation is none, auto or lookup" in command(*asked, "--speculation", "maybe", ok=False).stderr


@pytest.mark.parametrize("table", offload_plans.TABLES, ids=lambda table: table.__name__)
def test_the_document_shows_what_is_planned(table: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "offloading.md").read_text()
    assert "\n".join(table()) in text, "print the plans anew: python tools/offload_plans.py"
