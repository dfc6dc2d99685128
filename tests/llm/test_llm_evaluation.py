"""Perplexity, KL divergence and agreement: against torch and transformers, and by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npumatmul.llm import Evaluation, Window, evaluate, evaluate_models, load_model, numpy_pack, text_tokens, windows
from npumatmul.llm.models.decoder import Decoder
from npumatmul.nn.product import Product

TOKENS = np.random.default_rng(0).integers(0, 256, 200)


def truncated(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Floats with 4 bits of mantissa."""
    return (weight.view(np.uint32) & 0xFFF80000).view(np.float32)


def coarse_pack(weight: NDArray[np.float32], name: str) -> Product:
    """A model that is somewhat off."""
    return numpy_pack(truncated(weight))


@pytest.fixture(scope="module")
def exact(tiny: Any) -> Decoder:
    return load_model(tiny.path, pack=numpy_pack).model


@pytest.fixture(scope="module")
def coarse(tiny: Any) -> Decoder:
    return load_model(tiny.path, pack=coarse_pack).model


def test_against_transformers_and_torch(tiny: Any, exact: Decoder, coarse: Decoder) -> None:
    pieces = windows(TOKENS, 40, bos_id=262)
    assert len(pieces) == 5
    got = evaluate(coarse, exact, pieces)

    torch_coarse = copy.deepcopy(tiny.torch_model)
    for module in torch_coarse.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = torch.from_numpy(truncated(module.weight.detach().numpy()))
    nll, reference_nll, kl, same = [], [], [], []
    for i in range(5):
        ids = [262, *TOKENS[40 * i + 1 : 40 * (i + 1)].tolist()]
        expected = torch.from_numpy(tiny.torch_logits(ids)).double()[20:-1]
        with torch.no_grad():
            logits = torch_coarse(torch.tensor([ids])).logits[0].double()[20:-1]
        targets = torch.tensor(ids[21:])
        nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        reference_nll.append(torch.nn.functional.cross_entropy(expected, targets, reduction="none"))
        p, r = logits.log_softmax(-1), expected.log_softmax(-1)
        kl.append(torch.nn.functional.kl_div(p, r, log_target=True, reduction="none").sum(-1))
        same.append(logits.argmax(-1) == expected.argmax(-1))
    # both sides are float32 forward passes with sums in other orders
    np.testing.assert_allclose(got.nll, torch.cat(nll), atol=1e-4)
    np.testing.assert_allclose(got.reference_nll, torch.cat(reference_nll), atol=1e-4)
    np.testing.assert_allclose(got.kl, torch.cat(kl), atol=1e-4)
    assert got.kl.mean() > 5e-3  # or there would have been nothing to measure
    np.testing.assert_array_equal(got.same_top, torch.cat(same))
    assert got.tokens == 5 * 19
    assert got.perplexity.value == pytest.approx(math.exp(torch.cat(nll).mean()), rel=1e-5)


def test_a_model_does_not_diverge_from_itself(exact: Decoder) -> None:
    got = evaluate(exact, exact, windows(TOKENS, 40))
    assert got.mean_kl == (0, 0)
    assert got.top1 == (1, 0)
    assert got.log_perplexity_ratio == (0, 0)
    assert got.perplexity == got.reference_perplexity


def test_without_a_reference(exact: Decoder) -> None:
    alone = evaluate(exact, None, windows(TOKENS, 40))
    assert alone.mean_kl is None
    assert alone.top1 is None
    assert alone.kl_quantile(0.5) is None
    assert set(alone.as_dict()) == {"tokens", "perplexity"}
    assert alone.perplexity == evaluate(exact, exact, windows(TOKENS, 40)).perplexity


def test_several_models_give_what_each_gives_alone(exact: Decoder, coarse: Decoder) -> None:
    pieces = windows(TOKENS, 64)
    calls: list[tuple[int, int, int]] = []
    both = evaluate_models(
        {"exact": exact, "coarse": coarse},
        exact,
        pieces,
        lambda done, total, found: calls.append((done, total, found["coarse"].tokens if found else 0)),
    )
    alone = evaluate(coarse, exact, pieces)
    np.testing.assert_array_equal(both["coarse"].kl, alone.kl)
    assert both["exact"].mean_kl == (0, 0)
    # three models (the reference counts, too) read 63 tokens of each window; what was scored comes with whole windows
    assert {total for _, total, _ in calls} == {3 * 3 * 63}
    assert {scored: max(done for done, _, known in calls if known == scored) for _, _, scored in calls} == {
        0: 3 * 63, 31: 2 * 3 * 63, 62: 3 * 3 * 63, 93: 3 * 3 * 63,
    }  # fmt: skip


def test_windows_longer_than_a_piece_of_logits(tiny: Any, exact: Decoder) -> None:
    """Half of 400 tokens is more than the rows that are scored together."""
    tokens = np.random.default_rng(1).integers(0, 256, 800)
    got = evaluate(exact, None, windows(tokens, 400, limit=1))
    logits = torch.from_numpy(tiny.torch_logits(tokens[:400].tolist()))[200:-1]
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(tokens[201:400]), reduction="none")
    np.testing.assert_allclose(got.nll, expected, atol=5e-3)


def test_means_and_standard_errors_by_hand() -> None:
    """Four values 1, 1, 2, 4: mean 2, standard deviation sqrt(1.5), standard error sqrt(1.5 / 3)."""
    values = np.array([1.0, 1, 2, 4])
    found = Evaluation(values, np.array([1.0, 1, 1, 1]), values / 10, np.array([True, True, True, False]))
    assert found.perplexity.value == pytest.approx(math.exp(2))
    assert found.perplexity.error == pytest.approx(math.exp(2) * math.sqrt(0.5))
    assert found.reference_perplexity == pytest.approx((math.e, 0))
    assert found.log_perplexity_ratio == pytest.approx((1, math.sqrt(0.5)))
    assert found.mean_kl == pytest.approx((0.2, math.sqrt(0.5) / 10))
    assert found.top1 == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 3)))
    assert found.kl_quantile(0.5) == pytest.approx(0.15)
    assert f"{found.mean_kl:.2f}" == "0.20 ± 0.07"


def llama_cpp_windows(tokens: list[int], n_ctx: int, stride: int, bos: int | None) -> list[tuple[list[int], list[int]]]:
    """What llama.cpp's tool reads, and which tokens it scores: the loops of `perplexity` and `perplexity_v2`."""
    found = []
    if stride == 0:
        for i in range(len(tokens) // n_ctx):
            chunk = tokens[i * n_ctx : (i + 1) * n_ctx]
            if bos is not None:
                chunk[0] = bos
            found.append((chunk, [chunk[j + 1] for j in range(n_ctx // 2, n_ctx - 1)]))
        return found
    n_ctx += stride // 2
    for i in range((len(tokens) - n_ctx + stride - 1) // stride):
        start = i * stride
        scored = [tokens[start + j + 1] for j in range(n_ctx - stride - 1, n_ctx - 1)]
        found.append((tokens[start : start + n_ctx], scored))
    return found


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(4, 20), st.integers(0, 60), st.sampled_from([None, 99]))
def test_windows_are_those_of_llama_cpp(data: st.DataObject, length: int, extra: int, bos: int | None) -> None:
    stride = data.draw(st.integers(0, length - 1))
    tokens = list(range(1000, 1000 + 2 * (length + stride // 2) + extra))
    got = [
        (w.tokens.tolist(), w.tokens[w.first + 1 :].tolist())
        for w in windows(tokens, length, stride=stride, bos_id=bos)
    ]
    assert got == llama_cpp_windows(tokens, length, stride, bos)
    assert windows(tokens, length, stride=stride, limit=1)[0].scored == len(got[0][1])


def test_the_text_is_not_changed_by_start_tokens() -> None:
    tokens = np.arange(20)
    windows(tokens, 5, bos_id=99)
    np.testing.assert_array_equal(tokens, np.arange(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": range(15), "length": 8}, "the text has 15 tokens; windows of 8 need 16"),
        ({"tokens": range(100), "length": 3}, "too short"),
        ({"tokens": range(100), "length": 8, "stride": 8}, "stride is 8"),
        ({"tokens": range(100), "length": 8, "stride": -1}, "stride is -1"),
        ({"tokens": range(100), "length": 8, "limit": 0}, "0 windows"),
    ],
)
def test_impossible_windows(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windows(**arguments)


def test_impossible_evaluations(exact: Decoder, demo: Any) -> None:
    with pytest.raises(ValueError, match="no windows"):
        evaluate(exact, None, [])
    with pytest.raises(ValueError, match="vocabularies of 264 and 49152"):
        evaluate(exact, demo.model, windows(TOKENS, 40))
    with pytest.raises(ValueError, match=r"windows of 600 tokens do not fit the context of model, 512"):
        evaluate(exact, None, [Window(np.zeros(600, np.int64), 300)])


def test_text_as_llama_cpp_reads_it(demo: Any) -> None:
    """One newline at the end goes; control tokens in a text are only text."""
    tokenizer = demo.tokenizer
    assert text_tokens(tokenizer, "one\n\n").tolist() == tokenizer.encode("one\n")
    assert tokenizer.decode(text_tokens(tokenizer, "<|im_start|>")) == "<|im_start|>"
    assert len(text_tokens(tokenizer, "<|im_start|>")) > 1
