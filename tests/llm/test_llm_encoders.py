"""Every encoder against transformers, on small random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_zoo import VARIANTS, VOCAB, Variant, edit, torch_model, write_folder
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm import npu_pack, numpy_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.encoder import Encoder, Texts
from npumatmul.llm.models.encoders import ENCODERS, load_encoder

LENGTHS = (20, 1, 7, 20, 13)
RNG = np.random.default_rng(0)
IDS = [RNG.integers(4, VOCAB, length).tolist() for length in LENGTHS]
RELATIVE = 2e-5  # of the largest value: some hundred sums in float32, in another order
COSINE = 0.9999


def types_of(model: Any) -> list[list[int]]:
    count = getattr(model.config, "type_vocab_size", 1)
    return [[i * count // len(ids) for i in range(len(ids))] for ids in IDS]


def reference(model: Any) -> tuple[list[NDArray[np.float32]], NDArray[np.float32] | None]:
    """States of each text alone, and scores of all where there are any."""
    states, scores = [], []
    for ids, types in zip(IDS, types_of(model), strict=True):
        given: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if hasattr(model.config, "type_vocab_size"):
            given["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            states.append(model.base_model(**given).last_hidden_state[0].numpy())
            if "Classification" in type(model).__name__:
                scores.append(model(**given).logits[0].numpy())
    return states, np.stack(scores) if scores else None


Made = tuple[Path, Any, list[NDArray[np.float32]], NDArray[np.float32] | None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Made]:
    done: dict[str, Made] = {}

    def make(variant: Variant) -> Made:
        if variant.name not in done:
            model = torch_model(variant)
            path = write_folder(tmp_path_factory.mktemp("model"), variant, model)
            done[variant.name] = (path, model, *reference(model))
        return done[variant.name]

    return make


def load(path: Path, pack: Any = numpy_pack) -> Encoder:
    with open_source(path) as source:
        return load_encoder(source, pack)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.name)
def test_float32_equals_transformers(made: Callable[[Variant], Made], variant: Variant) -> None:
    path, theirs, states, scores = made(variant)
    model = load(path)
    got = model.states(IDS, types_of(theirs))
    for each, wanted in zip(got, states, strict=True):
        np.testing.assert_allclose(each, wanted, rtol=0, atol=RELATIVE * float(np.abs(wanted).max()))
    assert (model.head is None) == (scores is None)
    if scores is not None:
        found = model.scores(Texts(IDS, types_of(theirs)))
        np.testing.assert_allclose(found, scores, rtol=0, atol=5 * RELATIVE * max(1, float(np.abs(scores).max())))


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each.kind == "Model"], ids=lambda each: each.name)
def test_float16_products_on_the_npu_keep_the_direction_of_states(
    made: Callable[[Variant], Made], variant: Variant
) -> None:
    path, theirs, states, _ = made(variant)
    got = load(path, npu_pack("w16a16", "sim:rk3588")).states(IDS, types_of(theirs))
    for each, wanted in zip(got, states, strict=True):
        products = (each.astype(np.float64) * wanted).sum(-1)
        assert (products / np.linalg.norm(each, axis=-1) / np.linalg.norm(wanted, axis=-1)).min() >= COSINE


def test_products_have_a_row_for_each_token_and_no_more(made: Callable[[Variant], Made]) -> None:
    rows = []

    class Counted:
        def __init__(self, weight: NDArray[np.float32]) -> None:
            self.product = numpy_pack(weight)
            self.shape = self.product.shape

        def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            rows.append(len(x))
            return self.product(x)

    model = load(made(VARIANTS[0])[0], lambda weight, name: Counted(weight))
    model.states(IDS)
    assert rows == [sum(LENGTHS)] * 4 * model.config.n_layers


def test_every_architecture_is_tried() -> None:
    tried = {each.model_type for each in VARIANTS}
    assert tried == {name for each in ENCODERS for name in each.model_types}
    for each in ENCODERS:
        scored = [other for other in VARIANTS if other.model_type in each.model_types and "scores" in other.what]
        assert scored, each.name


def test_positions_stand_still_at_padding_tokens(made: Callable[[Variant], Made]) -> None:
    variant = next(each for each in VARIANTS if each.name == "roberta-plain")
    path, theirs, _, _ = made(variant)
    ids = [5, 1, 6, 1, 1, 7]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids]), attention_mask=torch.ones(1, 6)).last_hidden_state[0].numpy()
    got = load(path).states([[8, 9], ids])[1]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=RELATIVE * float(np.abs(wanted).max()))


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("bert-plain", {"position_embedding_type": "relative_key"}, "'position_embedding_type' is 'relative_key'"),
        ("bert-plain", {"hidden_act": "mish"}, "'hidden_act' is 'mish'; supported"),
        ("bert-plain", {"is_decoder": True}, "'is_decoder' is True; supported: False"),
        ("bert-plain", {"is_causal": True}, "'is_causal' is True; supported: False"),
        ("bert-plain", {"surprise": False}, "'surprise' is False, and what that means is not known"),
        ("bert-plain", {"architectures": ["BertForTokenClassification"]}, "names 'BertForTokenClassification'"),
        ("bert-plain", {"architectures": ["LlamaForCausalLM"]}, "names 'LlamaForCausalLM', which is not computed for"),
        ("bert-plain", {"architectures": ["BertLMHeadModel"]}, "names 'BertLMHeadModel'"),
        (
            "modernbert-plain",
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e-30}}},
            "configuration makes no model: RoPE: values turn by",
        ),
        ("bert-plain", {"surprise": 2}, "'surprise' is 2, and what that means is not known"),
        ("bert-plain", {"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ("bert-plain", {"num_attention_heads": 5}, "32, which cannot be divided among 5 heads"),
        ("bert-plain", {"type_vocab_size": 5}, "has shape .*, its metadata asks for"),
        ("bert-plain", {"num_hidden_layers": 4}, "tensor 'encoder.layer.3.* is missing"),
        (
            "bert-plain",
            {"num_hidden_layers": 2},
            "16 tensors of a kind that is not supported, such as 'encoder.layer.2",
        ),
        ("bert-scores", {"architectures": ["BertModel"]}, "not supported, such as 'classifier"),
        ("bert-scores", {"id2label": {}}, "there are 0 labels"),
        ("bert-scores", {"sentence_transformers": {"activation_fn": "os.system"}}, "scores are made by 'os.system'"),
        ("bert-scores", {"sentence_transformers": {"more": 1}}, "'sentence_transformers.more' is 1"),
        ("roberta-plain", {"pad_token_id": 70}, "context_length is -7"),
        ("bert-plain", {"layer_norm_eps": 1e30}, "norm_eps is 1e\\+30; it must be between 0 and 1"),
        ("modernbert-plain", {"local_attention": -2}, "'local_attention' is -2; it must be 0 or more"),
        ("modernbert-plain", {"rope_scaling": {"rope_type": "yarn"}}, "scaled \\('rope_scaling'\\)"),
        ("modernbert-plain", {"layer_types": ["full_attention"]}, "'layer_types' names 1 layers; there are 4"),
        (
            "modernbert-scores",
            {"classifier_pooling": "max"},
            "'classifier_pooling' is 'max'; supported: 'cls' or 'mean'",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    made: Callable[[Variant], Made], tmp_path: Path, name: str, changed: dict[str, Any], problem: str
) -> None:
    path = made(next(each for each in VARIANTS if each.name == name))[0]
    for each in path.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    edit(tmp_path / "config.json", lambda config: config.update(changed))
    with pytest.raises(ModelError, match=problem):
        load(tmp_path)


@pytest.mark.parametrize(
    ("ids", "types", "problem"),
    [
        ([], None, "there is one or more of them"),
        ([[5], []], None, "one token or more each"),
        ([[5] * 65], None, "a text has 65 tokens; the model reads at most 64"),
        ([[VOCAB]], None, f"there is no row {VOCAB}"),
        ([[5, 6]], [[0]], "each token of a text has one type"),
        ([[5, 6]], [[0, 2]], "there is no row 2"),
    ],
)
def test_mistakes_with_texts_are_explained(made: Callable[[Variant], Made], ids: Any, types: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load(made(VARIANTS[0])[0]).states(ids, types)
