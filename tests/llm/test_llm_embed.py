"""Embeddings and scores of texts against transformers, and what sentence-transformers writes beside models."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_zoo import VARIANTS, Variant, edit, sentence_folder, torch_model, word_tokenizer, write_folder, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from model_zoo import VARIANTS as DECODERS
from model_zoo import torch_model as torch_decoder
from model_zoo import write_folder as write_decoder
from numpy.typing import NDArray

import npumatmul.llm
from npumatmul.errors import ClosedError, ModelError
from npumatmul.llm.encoder_model import EncoderModel
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.encoders import load_encoder
from npumatmul.llm.run import embedding
from npumatmul.llm.run.embedding import batches
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer

TEXTS = ["The cat sat on the mat.", "rain", "", "A fast chip, a fast dog? " * 5, "dogs sitting", "the mat"]
NAMED = {each.name: each for each in VARIANTS}


def folder(tmp_path: Path, name: str, **sentence: Any) -> tuple[Path, Any]:
    model = torch_model(NAMED[name])
    path = write_folder(tmp_path, NAMED[name], model)
    return (sentence_folder(path, **sentence) if sentence else path), model


def theirs(
    model: Any, texts: list[str], pooling: str, longest: int = 64, pad_first: bool = True
) -> NDArray[np.float32]:
    """Embeddings by tokenizers and transformers, in one batch that is filled up."""
    tokenizer = word_tokenizer(pad_first)
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=0 if pad_first else 1)
    found = tokenizer.encode_batch(texts)
    mask = torch.tensor([each.attention_mask for each in found])
    with torch.no_grad():
        out = model.base_model(input_ids=torch.tensor([each.ids for each in found]), attention_mask=mask)
    states = out.last_hidden_state
    if pooling == "cls":
        return states[:, 0].numpy()
    if pooling == "last":
        return states[torch.arange(len(texts)), mask.sum(1) - 1].numpy()
    if pooling == "max":
        return states.masked_fill(mask[..., None] == 0, -torch.inf).max(1).values.numpy()
    return ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
@pytest.mark.parametrize("name", ["bert-plain", "xlm-roberta-plain", "modernbert-plain"])
def test_embeddings_are_those_of_transformers(tmp_path: Path, name: str, pooling: str) -> None:
    path, reference = folder(tmp_path, name, pooling=pooling, longest=12)
    wanted = theirs(reference, TEXTS, pooling, 12, "roberta" not in name)
    with npumatmul.llm.load(path, "float32") as model:
        assert isinstance(model, EncoderModel)
        got = model.embed(TEXTS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()))
        for size in (1, 2):  # what else is in a batch changes nothing but the order of sums
            np.testing.assert_allclose(model.embed(TEXTS, batch_size=size), got, rtol=0, atol=1e-5)
        units = model.embed(TEXTS, normalize=True)
        np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-6)
        assert model.embed([]).shape == (0, 32)


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16"])
def test_embeddings_on_the_npu_point_the_same_way(tmp_path: Path, scheme: str) -> None:
    path, reference = folder(tmp_path, "bert-plain", pooling="mean", normalize=True)
    wanted = theirs(reference, TEXTS, "mean")
    with npumatmul.llm.load(path, scheme, device="sim:rk3588", cache=False) as model:
        got = model.embed(TEXTS)
    cosines = (got * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= {"w8a8": 0.995, "w16a16": 0.99999}[scheme]


def test_the_packed_model_is_kept_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = folder(tmp_path / "model", "bert-plain", pooling="cls")
    rows = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO), npumatmul.llm.load(path, device="sim:rk3588") as model:
            rows.append(model.embed(TEXTS))
    np.testing.assert_array_equal(rows[0], rows[1])
    assert any("the packed model is in the cache" in each.message for each in caplog.records)


@pytest.mark.parametrize(
    ("name", "identity"),
    [("bert-scores", True), ("bert-scores", False), ("xlm-roberta-scores", False), ("modernbert-scores", True)],
)
def test_scores_of_pairs_are_those_of_transformers(tmp_path: Path, name: str, identity: bool) -> None:
    path, reference = folder(tmp_path, name)
    if identity:
        key = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}}
        edit(path / "config.json", lambda config: config.update(key))
    edit_length = {"model_max_length": 15}
    (path / "tokenizer_config.json").write_text(json.dumps(edit_length))
    tokenizer = word_tokenizer("roberta" not in name)
    tokenizer.enable_truncation(15)
    query, wanted = "the fast cat?", []
    for text in TEXTS:
        pair = tokenizer.encode(query, text)
        given_ids: dict[str, Any] = {"input_ids": torch.tensor([pair.ids])}
        if name.startswith("bert"):
            given_ids["token_type_ids"] = torch.tensor([pair.type_ids])
            assert set(pair.type_ids) == {0, 1}
        with torch.no_grad():
            logit = reference(**given_ids).logits[0, 0]
        wanted.append(float(logit if identity else torch.sigmoid(logit)))
    with npumatmul.llm.load(path, "float32") as model:
        got = model.rerank(query, TEXTS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, atol=2e-4)
        np.testing.assert_allclose(model.rerank(query, TEXTS, batch_size=1), got, atol=1e-5)
        assert model.rerank(query, []).shape == (0,)
    with npumatmul.llm.load(path, "w16a16", device="sim:rk3588", cache=False) as model:
        np.testing.assert_allclose(model.rerank(query, TEXTS), wanted, atol=0.05)


@given(first=st.integers(0, 30), second=st.integers(0, 30), longest=st.integers(5, 40), pad_first=st.booleans())
def test_pairs_are_cut_as_tokenizers_cuts_them(first: int, second: int, longest: int, pad_first: bool) -> None:
    plain = word_tokenizer(pad_first)
    ours = JSONTokenizer({"tokenizer.json": plain.to_str().encode()}, answers=False)
    plain.enable_truncation(longest if pad_first else max(longest, 6))
    texts = "cat " * first, "dog " * second
    wanted = plain.encode(*texts)
    ids, types = ours.encode_pair(*texts, longest=longest if pad_first else max(longest, 6))
    assert ids == wanted.ids
    assert types == wanted.type_ids


def test_pairs_do_not_let_texts_spell_control_tokens() -> None:
    tokenizer = JSONTokenizer({"tokenizer.json": word_tokenizer().to_str().encode()}, answers=False)
    ids, _ = tokenizer.encode_pair("cat [SEP] cat", "[CLS]")
    assert [ids.count(2), ids.count(3)] == [1, 2]
    with pytest.raises(ModelError, match="4 tokens have no room for two texts"):
        tokenizer.encode_pair("a", "b", longest=4)


def test_who_names_no_end_of_answers_is_not_warned_of_encoders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = folder(tmp_path, "bert-plain", pooling="mean")
    with caplog.at_level(logging.WARNING):
        npumatmul.llm.load(path, "float32").close()
    assert not caplog.records


@given(lengths=st.lists(st.integers(1, 600), max_size=80), size=st.integers(1, 40))
def test_batches_take_texts_of_like_length_and_bound_the_tokens(lengths: list[int], size: int) -> None:
    made = list(batches(lengths, size, 1000))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in made for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in made:
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= 1000


def test_prompts_and_lower_case_are_those_of_the_folder(tmp_path: Path) -> None:
    path, reference = folder(tmp_path, "bert-plain", pooling="mean", longest=32)
    described = {"__version__": {}, "prompts": {"query": "the dog ", "passage": ""}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(described))
    edit(path / "sentence_bert_config.json", lambda each: each.update(do_lower_case=True))
    edit(path / "tokenizer.json", lambda each: each["normalizer"].update(lowercase=False))
    with npumatmul.llm.load(path, "float32") as model:
        before = theirs(reference, ["the dog " + each for each in TEXTS], "mean", 32)
        np.testing.assert_allclose(model.embed(TEXTS), before, atol=1e-4)
        np.testing.assert_allclose(
            model.embed(TEXTS, prompt="passage"), theirs(reference, TEXTS, "mean", 32), atol=1e-4
        )
        with pytest.raises(ValueError, match="the model has no prompt 'other'; it has 'query', 'passage'"):
            model.embed(TEXTS, prompt="other")


def _changed(name: str, **values: Any) -> Any:
    return lambda path: edit(path / name, lambda each: each.update(values))


def _modules(*kinds: str) -> Any:
    prefix = "sentence_transformers.models."
    made = [
        {"type": kind if "." in kind else prefix + kind, "path": kind if kind == "Pooling" else ""} for kind in kinds
    ]
    return lambda path: (path / "modules.json").write_text(json.dumps(made))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_modules("Transformer", "Pooling", "Dense"), "module 'sentence_transformers.models.Dense', which is not supp"),
        (_modules("Transformer", "os.system"), "module 'os.system', which is not supported"),
        (_modules("Transformer"), "has Transformer; supported: Transformer, Pooling, and perhaps Normalize"),
        (_modules("Transformer", "Pooling"), "it has no Pooling/config.json, which its modules.json names"),
        (lambda path: (path / "modules.json").write_text("[3]"), "has 3, which is no module"),
        (lambda path: (path / "modules.json").write_text("[}"), "its modules.json cannot be read"),
        (_changed("1_Pooling/config.json", pooling_mode_cls_token=True), "its ways to pool are cls and mean; one is"),
        (_changed("1_Pooling/config.json", pooling_mode_mean_tokens=False), "its ways to pool are none; one is needed"),
        (_changed("1_Pooling/config.json", pooling_mode_weightedmean_tokens=True), "weightedmean_tokens' is True"),
        (_changed("1_Pooling/config.json", pooling_mode="median"), "'pooling_mode' is 'median'; supported: cls"),
        (_changed("sentence_bert_config.json", max_seq_length=0), "its texts have at most 0 tokens"),
        (_changed("sentence_bert_config.json", surprise=1), "'surprise' is 1"),
        (lambda path: (path / "1_Pooling" / "config.json").write_text("[]"), "is \\[\\]; an object is needed"),
        (lambda path: (path / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    ],
)  # fmt: skip
def test_what_is_not_known_of_sentences_is_refused(tmp_path: Path, change: Any, problem: str) -> None:
    path, _ = folder(tmp_path, "bert-plain", pooling="mean", longest=32)
    change(path)
    with pytest.raises(ModelError, match=problem):
        npumatmul.llm.load(path, "float32")


def test_modules_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "model", "bert-plain", pooling="mean")
    (tmp_path / "config.json").write_text("{}")
    edit_path = json.loads((path / "modules.json").read_text())
    edit_path[1]["path"] = ".."
    (path / "modules.json").write_text(json.dumps(edit_path))
    with pytest.raises(ModelError, match="outside the folder"):
        npumatmul.llm.load(path, "float32")


def test_mistakes_are_explained(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "bert-plain")
    with pytest.raises(
        ValueError, match=r"policy has 'head', but no layer of the model is called so; its layers are .*down$"
    ):
        npumatmul.llm.load(path, "float32", policy={"head": "float32"})
    with pytest.raises(ValueError, match="load: context is 0"):
        npumatmul.llm.load(path, "float32", context=0)
    model = npumatmul.llm.load(path, "float32", context=10)
    assert model.context == 10
    with pytest.raises(ModelError, match=r"does not say how the states .* choose with pooling='mean' or .* --pooling"):
        model.embed(TEXTS)
    assert model.embed(TEXTS, pooling="mean").shape == (len(TEXTS), 32)
    for texts, problem in (
        ("a", r"a list of str, not str: write \[text\]"),
        ([b"a"], "text 0 is bytes"),
        (3, "not int"),
    ):
        with pytest.raises(TypeError, match=problem):
            model.embed(texts, pooling="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pooling is called 'median'"):
        model.embed(TEXTS, pooling="median")
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.embed(TEXTS, pooling="mean", batch_size=0)
    with pytest.raises(ModelError, match="has no head that gives scores"):
        model.rerank("a", TEXTS)
    for call in (
        lambda: model.generate("a"),
        lambda: model.chat([]),
        lambda: model.encode_chat([]),
        lambda: model.logits([1]),
    ):
        with pytest.raises(
            ModelError, match=r"is an encoder \(bert\), which (continues|answers) no texts; it has embed"
        ):
            call()
    model.close()
    with pytest.raises(ClosedError):
        model.embed(TEXTS, pooling="mean")
    with pytest.raises(ClosedError):
        model.rerank("a", TEXTS)


def test_who_wants_a_text_of_an_encoder_is_told_what_takes_it(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "bert-plain")
    with pytest.raises(
        ModelError, match=r"its architecture is an encoder, bert, which continues no texts: load and npumatmul embed"
    ):
        npumatmul.llm.load_model(path, pack=npumatmul.llm.numpy_pack)
    edit(path / "config.json", lambda config: config.update(model_type="mpnet"))
    with pytest.raises(
        ModelError, match=r"is 'mpnet', which is not known; known: llama, .*; and for embeddings bert, rob"
    ):
        npumatmul.llm.load(path, "float32")


def test_a_head_of_several_labels_does_not_rank(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "bert-labels")
    with (
        npumatmul.llm.load(path, "float32") as model,
        pytest.raises(ModelError, match="gives 3 scores for a text; rerank needs one"),
    ):
        model.rerank("a", TEXTS)


def test_threads_share_an_encoder(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, "bert-plain", pooling="mean")
    with npumatmul.llm.load(path, device="sim:rk3588", cache=False) as model:
        wanted, got = model.embed(TEXTS), {}
        threads = [
            threading.Thread(target=lambda i=i: got.update({i: model.embed(TEXTS, batch_size=2)})) for i in range(3)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert len(got) == 3
    for each in got.values():
        np.testing.assert_allclose(each, wanted, rtol=0, atol=1e-4)


# ---- decoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_alone", [False, True])
def test_a_decoder_gives_the_state_of_the_last_token(tmp_path: Path, body_alone: bool) -> None:
    variant = next(each for each in DECODERS if each.name == "qwen3-tied-mqa")
    reference = torch_decoder(variant)
    path = write_decoder(tmp_path, variant, reference)
    if body_alone:  # as Qwen3-Embedding is stored: names without "model."
        reference.model.save_pretrained(path)
        assert "Qwen3Model" in (path / "config.json").read_text()
    tokenizer = word_tokenizer()
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[SEP]"}))
    sentence_folder(path, pooling="last", normalize=True, longest=9)
    tokenizer.enable_truncation(9)
    wanted = []
    for text in TEXTS:
        with torch.no_grad():
            row = reference.model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0, -1]
        wanted.append((row / row.norm()).numpy())
    with npumatmul.llm.load(path, "float32") as model:
        np.testing.assert_allclose(model.embed(TEXTS), np.stack(wanted), atol=1e-5)
        mean = model.embed(TEXTS, pooling="mean", normalize=False)
        with torch.no_grad():
            states = reference.model(torch.tensor([tokenizer.encode(TEXTS[0]).ids])).last_hidden_state[0]
        np.testing.assert_allclose(mean[0], states.mean(0).numpy(), atol=1e-4)
        with pytest.raises(ModelError, match="rerank needs a cross-encoder"):
            model.rerank("a", TEXTS)
        assert "".join(piece.text for piece in model.generate("the cat", max_tokens=2)) is not None


def test_a_batch_has_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder(tmp_path, "bert-plain", pooling="mean")
    monkeypatch.setattr(embedding, "MOST_TOKENS", 40)
    seen = []
    with npumatmul.llm.load(path, "float32") as model:
        model.embed(TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen[-1] == (len(TEXTS), len(TEXTS))


# ---- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("cls", 2), ("last", 3)])
def test_gguf_files_of_bert_give_the_same_embeddings(tmp_path: Path, pooling: str, number: int) -> None:
    reference = torch_model(NAMED["bert-plain"])
    path = write_gguf(tmp_path / "model.gguf", reference, pooling=number)
    wanted = theirs(reference, TEXTS, pooling)
    with npumatmul.llm.load(path, "float32") as model:
        assert isinstance(model, EncoderModel)
        np.testing.assert_allclose(model.embed(TEXTS), wanted, rtol=0, atol=1e-4 * float(np.abs(wanted).max()))
        with pytest.raises(ModelError, match="has no head that gives scores"):
            model.rerank("a", TEXTS)


def test_gguf_files_of_xlm_roberta_begin_positions_with_the_first_that_is_used(tmp_path: Path) -> None:
    reference = torch_model(Variant("xlm-roberta", "gelu", {"pad_token_id": 1, "type_vocab_size": 1}))
    path = write_gguf(tmp_path / "model.gguf", reference, pooling=2)
    ids = [2, *range(5, 50), 3]
    with open_source(path) as source:
        model = load_encoder(source, npumatmul.llm.numpy_pack)
    assert model.config.context_length == 62
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(model.states([ids])[0], wanted, rtol=0, atol=2e-5 * float(np.abs(wanted).max()))


def test_gguf_files_with_what_is_not_known_are_refused(tmp_path: Path) -> None:
    reference = torch_model(NAMED["bert-plain"])
    path = write_gguf(tmp_path / "model.gguf", reference, surprise=3)
    with pytest.raises(ModelError, match=r"'bert\.surprise' is 3"):
        npumatmul.llm.load(path, "float32")
    path = write_gguf(tmp_path / "none.gguf", reference, pooling=0)
    with npumatmul.llm.load(path, "float32") as model, pytest.raises(ModelError, match="does not say how"):
        model.embed(TEXTS)
