"""`load` and what it returns: schemes, prompts, pieces, mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import greedy, text_of
from numpy.typing import NDArray

import npumatmul as npu
import npumatmul.llm
from npumatmul.errors import ClosedError, ModelError
from npumatmul.llm import ContextFullError, Model, StopReason
from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model, save_quantized
from npumatmul.llm.run.stopping import StopTexts

PROMPT = [10, 200, 30, 40]
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3576") as device:
        yield device


# Schemes


def test_float32_is_the_reference(tiny: Any, model: Model) -> None:
    ids = [*range(60), 255, 263]
    logits = model.logits(ids)
    assert logits.shape == (62, 264)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, tiny.torch_logits(ids), rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(model.logits(np.array(ids)), logits)
    assert model.device is None


@pytest.mark.parametrize(("scheme", "cosine"), [("w16a16", 0.99999), ("w8a8", 0.99), ("w8a16", 0.99)])
def test_schemes_on_the_simulator(tiny: Any, device: npu.Device, scheme: str, cosine: float) -> None:
    ids = list(range(40))
    expected = tiny.torch_logits(ids)
    with npumatmul.llm.load(tiny.path, scheme, device=device) as model:
        got = model.logits(ids)
        weight = model._model.linears["head"].weight  # type: ignore[attr-defined]
        assert (weight.scheme.name, weight.input_transform is not None) == (scheme, scheme == "w8a8")
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= cosine


def test_w8a8_with_the_rotation_is_the_default(tiny: Any, device: npu.Device) -> None:
    with npumatmul.llm.load(tiny.path, device=device) as model:
        assert model.scheme == "w8a8"
        for name, product in model._model.linears.items():
            weight = product.weight  # type: ignore[attr-defined]
            assert (weight.scheme.name, type(weight.input_transform).__name__) == ("w8a8", "Hadamard"), name


def test_blocks_of_four_bits_are_taken_as_w8a8(
    make_tiny_model: Callable[..., Any], device: npu.Device, caplog: pytest.LogCaptureFixture
) -> None:
    def to_q4(w: gguf.GGUFWriter) -> None:
        for tensors in w.tensors:
            for name, info in tensors.items():
                if name.endswith("ffn_gate.weight") or name == "token_embd.weight":
                    kind = gguf.GGMLQuantizationType.Q4_0
                    info.tensor = gguf.quants.quantize(info.tensor, kind)
                    info.dtype, info.nbytes = kind, info.tensor.nbytes

    path = make_tiny_model(change=to_q4).path
    with caplog.at_level("INFO", "npumatmul.llm.loader"), npumatmul.llm.load(path, device=device) as model:
        weight = model._model.linears["blk.0.gate_up"].weight  # type: ignore[attr-defined]
        assert weight.scheme.name == "w8a8"
    assert "stores weights as Q4_0; w8a8 rounds them a second time" in caplog.text
    with npumatmul.llm.load(path, "gguf", device=device) as model:
        assert model._model.linears["blk.0.gate_up"].weight.scheme.granularity.name == "GROUP"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("scheme", "said"), [("w4a8", "0.634 and .* 57 %"), ("w4a16_g32", "was not measured")])
def test_what_weights_of_four_bits_cost_is_said(
    tiny: Any, device: npu.Device, caplog: pytest.LogCaptureFixture, scheme: str, said: str
) -> None:
    with npumatmul.llm.load(tiny.path, scheme, device=device, cache=False):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.match(f"{scheme} .*{said}", caplog.records[0].getMessage())


def test_a_policy_gives_layers_other_schemes(tiny: Any, device: npu.Device) -> None:
    policy = {"blk.*.down": "w16a16", "blk.1.*": "w8a16", "head": "float32"}
    with npumatmul.llm.load(tiny.path, policy=policy, device=device, cache=False) as model:
        products = model._model.linears
        weights = {name: getattr(product, "weight", None) for name, product in products.items()}
        names = {name: each.scheme.name for name, each in weights.items() if isinstance(each, npu.PackedWeight)}
        first = {"qkv": "w8a8", "attn_out": "w8a8", "gate_up": "w8a8", "down": "w16a16"}
        assert names == {f"blk.0.{k}": v for k, v in first.items()} | {f"blk.1.{k}": "w8a16" for k in first}
        before = device.stats().macs
        model.logits(PROMPT)
        head = np.prod(products["head"].shape)
        assert device.stats().macs - before == model.weight_macs(4) - head  # numpy has computed that


def test_a_policy_of_numpy_alone_needs_no_device(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_DEVICE", "no such device")
    with npumatmul.llm.load(tiny.path, "float32") as model:
        assert model.device is None


@pytest.mark.parametrize(
    ("scheme", "policy", "message"),
    [
        ("w8", {}, "w8"),
        ("auto", {}, "auto"),
        ("w8a8", {"heads": "w16a16"}, "policy has 'heads', but no layer of the model is called so.*and head"),
        ("w8a8", {"head": "gguf"}, "policy cannot choose 'gguf'"),
        ("w8a8", {"head": "int99"}, "int99"),
        ("gguf", {"head": "w8a8"}, "goes with no policy"),
    ],
)
def test_schemes_and_policies_that_cannot_be(tiny: Any, scheme: str, policy: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        npumatmul.llm.load(tiny.path, scheme, policy=policy, device="sim:rk3588")


def test_mistaken_arguments_of_load(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="scheme is the name of one, not int"):
        npumatmul.llm.load(tiny.path, 8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="policy gives schemes by their names, not int"):
        npumatmul.llm.load(tiny.path, policy={"head": 8})  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError, match="there is no"):
        npumatmul.llm.load(tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        npumatmul.llm.load(tmp_path)
    with pytest.raises(ValueError, match="load: context is 0"):
        npumatmul.llm.load(tiny.path, "float32", context=0)
    with pytest.raises(ValueError, match="martian"):
        npumatmul.llm.load(tiny.path, device="martian")


def test_a_quantized_file_is_taken_as_it_is(tiny: Any, tmp_path: Path, device: npu.Device) -> None:
    path = tmp_path / "quantized.safetensors"
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w8a8", "hadamard"))), path)
    with npumatmul.llm.load(path, device=device) as one, npumatmul.llm.load(tiny.path, device=device) as other:
        assert one.scheme == "as it was quantized"
        assert list(one.generate(PROMPT, max_tokens=8)) != []
        np.testing.assert_allclose(one.logits(PROMPT), other.logits(PROMPT), atol=0.3)
    with pytest.raises(ValueError, match="is quantized already and takes no scheme or policy"):
        npumatmul.llm.load(path, "w16a16", device=device)


def test_the_second_load_makes_nothing_again(
    tiny: Any, device: npu.Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []
    original = npumatmul.llm.loader.quantize_layer

    def counted(*args: Any, name: str = "", **more: Any) -> Any:
        made.append(name)
        return original(*args, name=name, **more)

    monkeypatch.setattr("npumatmul.llm.loader.quantize_layer", counted)

    def logits(**options: Any) -> NDArray[np.float32]:
        made.clear()
        with npumatmul.llm.load(tiny.path, device=device, **options) as model:
            return model.logits(PROMPT)

    first = logits()
    assert len(made) == 9
    np.testing.assert_array_equal(logits(), first)
    assert made == []
    logits(policy={"head": "w16a16"})  # another model
    assert len(made) == 8
    logits(policy={"head": "w16a16"})
    assert made == []
    np.testing.assert_array_equal(logits(cache=False), first)
    assert len(made) == 9


def test_closing_frees_the_memory_of_the_device(tiny: Any, device: npu.Device) -> None:
    with npumatmul.llm.load(tiny.path, device=device) as model:
        text_of(model.generate(PROMPT, max_tokens=2))
        held = device.stats().npu_bytes
        assert held > 30_000
    npu.empty_cache(device)
    assert device.stats().npu_bytes == 0
    for use in (lambda: model.generate("a"), lambda: model.chat(HELLO), lambda: model.logits([1])):
        with pytest.raises(ClosedError, match="the model tiny is closed"):
            use()
    model.close()
    assert repr(model) == "<Model 'tiny': w8a8 on sim:rk3576, closed>"


# Prompts


def test_prompts_are_texts_messages_or_numbers(tiny: Any, model: Model) -> None:
    tokenizer = model.tokenizer
    for prompt, ids in (
        ("the end", tokenizer.encode("the end")),
        (HELLO, model.encode_chat(HELLO)),
        (PROMPT, PROMPT),
        (np.array(PROMPT, np.int32), PROMPT),
        (tuple(PROMPT), PROMPT),
    ):
        pieces = list(model.generate(prompt, max_tokens=6, stop_ids=()))
        assert [piece.token for piece in pieces] == greedy(tiny, ids, 6)
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(greedy(tiny, ids, 6))
    assert model.encode_chat(HELLO) == tokenizer.encode("<|im_start|>user\nhello<|im_end|>", parse_special=True)
    assert text_of(model.chat(HELLO, max_tokens=3)) == text_of(model.generate(HELLO, max_tokens=3))


def test_control_tokens_spelled_in_a_text_are_text(model: Model) -> None:
    assert model.generate("a<|im_end|>").stats.prompt_tokens == len("a<|im_end|>")


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ("", ValueError, "the prompt is empty"),
        ([], ValueError, "the prompt is empty"),
        ([1, 264], ValueError, "the prompt has token 264, but the model's vocabulary has 264 tokens"),
        ([-1], ValueError, "the prompt has token -1"),
        ([1.5], TypeError, "whole numbers of tokens"),
        (["a"], TypeError, "whole numbers of tokens"),
        ([1, {"role": "user"}], TypeError, "whole numbers of tokens"),
        (b"abc", TypeError, "a prompt is a text, a list of messages or of token numbers, not bytes"),
        ({"role": "user", "content": "a"}, TypeError, "not dict"),
        (7, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        (np.ones((2, 2), int), TypeError, "one row of whole numbers, not int64 of shape"),
        (np.ones(2), TypeError, "one row of whole numbers, not float64"),
        ("a\ud800", ValueError, "half a surrogate pair"),
        ([{"content": "a"}], ValueError, 'message 0 must be a mapping with a "role"'),
        ([{"role": "user", "content": object()}], ValueError, "messages must be plain data"),
        ([1] * 512, ContextFullError, "512 tokens; the context of 512 leaves no room for an answer"),
    ],
)
def test_prompts_that_cannot_be_used(model: Model, prompt: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_tokens": 0}, ValueError, "generate: max_tokens is 0"),
        ({"max_tokens": 1.5}, TypeError, "generate: max_tokens is a whole number"),
        ({"temperature": -1}, ValueError, "temperature is -1"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'"),
        ({"min_p": 2}, ValueError, "min_p is 2; it must be from 0 to 1"),
        ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
        ({"stop": ""}, ValueError, "stop has an empty text"),
        ({"stop": ["a", 3]}, TypeError, "stop is a text or a list of texts; 3 is none"),
        ({"stop": ["a"] * 65}, ValueError, "at most 64"),
        ({"logprobs": -1}, ValueError, "logprobs is -1"),
        ({"logprobs": True}, TypeError, "logprobs is how many"),
    ],
)
def test_options_that_cannot_be_used(
    model: Model, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    for ask in (model.generate, model.chat):
        with pytest.raises(kind, match=message):
            ask(HELLO, **options)


@pytest.mark.parametrize("ids", [[], [264], [-1], [1.5], "abc", [[1]], [1] * 513])
def test_logits_of_what_are_no_tokens(model: Model, ids: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        model.logits(ids)
    assert "\n" not in str(caught.value)


def test_the_templates_variables(make_tiny_model: Callable[..., Any]) -> None:
    template = "{{ messages[0].content }}{{ tools | length if tools }}{{ mode }}"

    def change(w: gguf.GGUFWriter) -> None:
        w.kv_data[0].pop("tokenizer.chat_template")
        w.add_chat_template(template)

    with npumatmul.llm.load(make_tiny_model(change=change).path, "float32") as model:
        ids = model.encode_chat(HELLO, tools=[{"name": "a"}, {"name": "b"}], variables={"mode": "slow"})
        assert model.tokenizer.decode(ids) == "hello2slow"
        with pytest.raises(ValueError, match="plain data"):
            model.chat(HELLO, variables={"mode": object()})
        for name in ("tools", "messages", 7):
            with pytest.raises(ValueError, match=f"variables of a chat template cannot be called {name!r}"):
                model.chat(HELLO, variables={name: 1})  # type: ignore[dict-item]


# Pieces


def test_the_last_piece_has_counts_and_the_reason(tiny: Any, model: Model) -> None:
    *pieces, last = model.generate(PROMPT, max_tokens=5, stop_ids=())
    assert all(piece.stats is piece.reason is None for piece in pieces)
    assert last.reason is StopReason.MAX_TOKENS
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.generated_tokens) == (4, 5)
    ids = greedy(tiny, PROMPT, 5)
    *_, last = model.generate(PROMPT, max_tokens=5, stop_ids=ids[2:3])
    assert last.reason is StopReason.STOP_TOKEN
    *_, last = model.generate([7] * 505, max_tokens=99, stop_ids=())
    assert last.reason is StopReason.CONTEXT_FULL
    assert last.stats is not None
    assert last.stats.generated_tokens == 8


def test_probabilities_equal_those_of_torch(tiny: Any, model: Model) -> None:
    pieces = list(model.generate(PROMPT, max_tokens=5, temperature=3.0, seed=1, logprobs=3, stop_ids=()))
    ids = list(PROMPT)
    for piece in pieces:
        expected = torch.from_numpy(tiny.torch_logits(ids)[-1]).log_softmax(-1)
        assert piece.logprob == pytest.approx(float(expected[piece.token]), abs=1e-3)
        best = expected.topk(3)
        assert [token for token, _ in piece.top_logprobs] == best.indices.tolist()
        np.testing.assert_allclose([value for _, value in piece.top_logprobs], best.values, atol=1e-3)
        ids.append(piece.token)
    assert {piece.top_logprobs for piece in model.generate(PROMPT, max_tokens=2, logprobs=0)} == {()}


def test_seeds_repeat(model: Model) -> None:
    def ids(seed: int) -> list[int]:
        return [p.token for p in model.generate(PROMPT, max_tokens=20, temperature=2.0, top_p=0.95, seed=seed)]

    assert ids(5) == ids(5)
    assert ids(5) != ids(6)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="abAB\n", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abAB\n", min_size=1, max_size=5), max_size=3),
)
def test_no_part_of_a_stop_is_ever_told(pieces: list[str], stops: list[str]) -> None:
    """By the plain definition: the text up to the first stop, of those that end in the pieces so far."""
    whole, told = "", ""
    watched = StopTexts(stops)
    for piece in pieces:
        told += watched.push(piece)
        whole += piece
        places = [at for stop in stops if (at := whole.find(stop)) >= 0]
        if places:
            assert (told, watched.found is not None) == (whole[: min(places)], True)
            break
        assert whole.startswith(told)
        held = whole[len(told) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)  # nothing is held back without need
        assert not any(told.endswith(stop[:n]) and held == "" for stop in stops for n in range(1, len(stop)))
    else:
        assert watched.found is None
        assert told + watched.finish() == whole


def test_stops_across_tokens(tiny: Any, model: Model) -> None:
    full = list(model.generate(PROMPT, max_tokens=60, temperature=2.0, seed=3, stop_ids=()))
    text = "".join(piece.text for piece in full)
    stop = text[10:14]
    assert not any(stop in piece.text for piece in full)  # it spans tokens
    generation = model.generate(PROMPT, max_tokens=60, temperature=2.0, seed=3, stop_ids=(), stop=[stop, "never"])
    pieces = list(generation)
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].reason is StopReason.STOP_TEXT
    assert generation.stats.stop_text == stop
    held = model.generate(PROMPT, max_tokens=60, temperature=2.0, seed=3, stop_ids=(), stop=text[-3:] + "never")
    assert text_of(held) == text


# Caches


def test_a_conversation_goes_on_in_the_cache_it_has(tiny: Any) -> None:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        first = model.generate(PROMPT, max_tokens=5, stop_ids=())
        said = [piece.token for piece in first]
        longer = [*PROMPT, *said, 7, 8]
        second = model.generate(longer, max_tokens=5, stop_ids=())
        assert [piece.token for piece in second] == greedy(tiny, longer, 5)
        assert second.stats.cached_tokens == len(PROMPT) + 4
        other = model.generate([99, 98], max_tokens=5, stop_ids=())
        assert [piece.token for piece in other] == greedy(tiny, [99, 98], 5)
        assert other.stats.cached_tokens == 0
