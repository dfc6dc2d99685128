# ruff: noqa: RUF001 (foreign and look-alike characters are what is tested)
"""Tokenizers of Hugging Face folders, against transformers and the tokenizers package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from npumatmul.errors import ModelError
from npumatmul.llm import JSONTokenizer, StreamDecoder
from npumatmul.llm.tokenizers.words import PRE_TOKENIZERS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

TEXTS = [
    "",
    "Hello world",
    " leading and trailing ",
    "It's what they'd've said; we'LL see THEY'RE here.",
    "def f(x):\n\treturn x**2  # comment\n\n\nclass A:\n    pass\r\n",
    "人工智能正在改变世界。你好，世界！ 日本語テキスト 한국어 текст عربى हिन्दी ไทย",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 done",
    "spaces          and\t\ttabs   \n   \n end",
    "numbers 1 22 333 4444 55555 3.14159 2,000,000 x½ y² ٣٤",
    "naïve café e\u0301 ﬁ \u00a0nbsp \u200bzero CamelCaseWords HTTPServer",
    "<s>a</s> <|turn|> b<think>c</think>",
    "▁▁ x▁y <0x41>",
]
CORPUS = [text for text in TEXTS for _ in range(3)]
SPECIAL = ["<unk>", "<s>", "</s>", "<|turn|>"]


def byte_level(pattern: str | None = None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    words = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return with_think(backend)


def like_llama(legacy: bool) -> Tokenizer:
    """As Llama 2's (legacy) and newer SentencePiece vocabularies are converted."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    inside = json.loads(trained.to_str())["model"]
    spellings = [*SPECIAL, *bytes_, *(t for t in inside["vocab"] if t not in SPECIAL)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(spellings))}
    merges = [tuple(merge) for merge in inside["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return with_think(backend)


def like_gemma() -> Tokenizer:
    backend = like_llama(True)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return with_think(backend)


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    return with_think(backend)


def with_think(backend: Tokenizer) -> Tokenizer:
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": byte_level,
    "llama 2": lambda: like_llama(True),
    "llama 2, not legacy": lambda: like_llama(False),
    "gemma": like_gemma,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def files(backend: Tokenizer, **config: Any) -> dict[str, bytes]:
    settings = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "unk_token": "<unk>",
        **config,
    }
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


class Both:
    """The same folder as we read it and as transformers does."""

    def __init__(self, backend: Tokenizer, folder: Path, **config: Any) -> None:
        contents = files(backend, **config)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        self.tokenizer = JSONTokenizer(contents)
        self.reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def check(self, text: str) -> None:
        tokenizer = self.tokenizer
        assert tokenizer.encode(text, parse_special=True) == self.reference(text).input_ids
        ids = tokenizer.encode(text, parse_special=True, add_special=False)
        assert ids == self.reference(text, add_special_tokens=False).input_ids
        for skip in (True, False):
            expected = self.reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special=skip) == expected
        decoder = StreamDecoder(tokenizer)
        assert "".join([decoder.push(i) for i in ids]) + decoder.finish() == tokenizer.decode(ids)
        outside = tokenizer.encode(text, add_special=False)
        assert (tokenizer.control_ids - {tokenizer.unk_id}).isdisjoint(outside)
        if tokenizer.unk_id not in [*ids, *outside]:
            texts = [tokenizer.decode(outside), tokenizer.decode(ids, skip_special=False)]
            assert texts[0].replace(" ", "") == texts[1].replace(" ", "")  # spaces go in front of fragments


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(KINDS[request.param](), tmp_path_factory.mktemp("folder"))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_equal_transformers(both: Both, text: str) -> None:
    both.check(text)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from([*TEXTS, *SPECIAL, " "]), max_size=4).map("".join)))
def test_random_texts_equal_transformers(both: Both, text: str) -> None:
    both.check(text)


def test_special_tokens(both: Both) -> None:
    tokenizer = both.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert tokenizer.control_ids == {0, 1, 2, 3}
    assert tokenizer.stop_ids == {2}
    assert tokenizer.vocab_size == len(both.reference)


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_begin_and_end_as_the_post_processor_says(tmp_path: Path, begin: bool, end: bool) -> None:
    backend = like_llama(True)
    form = f"{'<s> ' * begin}$A{' </s>' * end}"
    backend.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    both = Both(backend, tmp_path, add_bos_token=not begin, add_eos_token=not end)  # which transformers ignores
    both.check("Hello world")
    assert (both.tokenizer.add_bos, both.tokenizer.add_eos) == (begin, end)


def test_tokens_that_only_the_configuration_has(tmp_path: Path) -> None:
    backend = byte_level()
    more = {str(backend.get_vocab_size()): {"content": "<|new|>", "special": True, "normalized": False}}
    both = Both(backend, tmp_path, added_tokens_decoder=more)
    both.check("a<|new|>b")
    assert both.tokenizer.encode("a<|new|>b", parse_special=True)[1] == backend.get_vocab_size()
    more = {"7": {"content": "<|new|>", "special": True}}
    with pytest.raises(ModelError, match=r"'<\|new\|>' is token 7, its tokenizer.json makes it"):
        JSONTokenizer(files(backend, added_tokens_decoder=more))


def test_the_models_own_ends_of_answers_and_numbers_without_a_token() -> None:
    tokenizer = JSONTokenizer(files(byte_level()), vocab_size=600, stop_ids=[3, 599, 10**9])
    assert tokenizer.stop_ids == {2, 3, 599}
    assert tokenizer.vocab_size == 600
    assert tokenizer.decode([599, 598]) == ""
    with pytest.raises(ValueError, match="token 600 is not in the vocabulary"):
        tokenizer.decode([600])


def test_padding_truncation_and_dropout_are_for_training() -> None:
    backend = byte_level()
    plain = JSONTokenizer(files(backend)).encode("Hello world")
    backend.enable_padding(length=512)
    backend.enable_truncation(2)
    backend.model.dropout = 0.9
    assert [JSONTokenizer(files(backend)).encode("Hello world") for _ in range(3)] == [plain] * 3


# As they stand in the tokenizer.json files of these models.
PUBLISHED = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from(TEXTS), max_size=3).map("".join)))
def test_words_equal_the_published_expressions(name: str, text: str) -> None:
    expected = pre_tokenizers.Split(Regex(PUBLISHED[name]), "isolated").pre_tokenize_str(text)
    got = PRE_TOKENIZERS[name].build().pre_tokenize_str(text)
    assert [span for _, span in got] == [span for _, span in expected]


def changed(**parts: Any) -> dict[str, bytes]:
    content = json.loads(byte_level().to_str())
    content.update(parts)
    return {"tokenizer.json": json.dumps(content).encode()}


BOMB = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def growing(count: int, content: str = "aa") -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * count}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "it has no tokenizer.json: fetch the model's tokenizer.json, or make it with transformers"),
        ({"tokenizer.model": b"x"}, "it has no tokenizer.json but tokenizer.model"),
        ({"tokenizer.json": b"{"}, "its tokenizer.json is damaged"),
        ({"tokenizer.json": b"[]"}, "its tokenizer.json is damaged"),
        ({"tokenizer.json": b"\xff"}, "its tokenizer.json is damaged"),
        ({"tokenizer.json": b"[" * 10**6}, "is damaged"),
        ({"tokenizer.json": b'{"model":' * 10**6}, "is damaged"),
        ({"tokenizer.json": b"{}"}, "its tokenizer.json is damaged"),
        (changed(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]), "has no tokens"),
        (changed(model={"type": "WordLevel", "vocab": {"a": 4 * 10**9}, "unk_token": "a"}), "number 4000000000"),
        (changed(normalizer=growing(60)), "normalizer in its tokenizer.json makes a text more than 64 times as long"),
        (changed(normalizer=growing(1, "a" * 10**5)), "more than 64 times as long"),
        (changed(normalizer=growing(65, "a")), "normalizer in its tokenizer.json has more than 64 steps"),
        (changed(decoder={"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True}), "is CTC"),
        (
            changed(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
            ),
            "is damaged",
        ),
        ({**changed(), "tokenizer_config.json": b"[1]"}, "tokenizer_config.json is .*an object is needed"),
        (
            {**changed(), "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {"content": "a"}}}'},
            "token 'x' in its tokenizer_config.json",
        ),
        ({**changed(), "tokenizer_config.json": b'{"added_tokens_decoder": 3}'}, "added_tokens_decoder"),
    ],
)
def test_what_cannot_be_used(contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        JSONTokenizer(contents)


def test_a_vocabulary_larger_than_the_model() -> None:
    with pytest.raises(ModelError, match="its model 100 tokens"):
        JSONTokenizer(changed(), vocab_size=100)


def test_an_expression_that_tries_for_ever_is_given_up() -> None:

    tokenizer = JSONTokenizer(changed(pre_tokenizer=BOMB))
    with pytest.raises(ModelError, match=r"its tokenizer\.json fails on this text: .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")
