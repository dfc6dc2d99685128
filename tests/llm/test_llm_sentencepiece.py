# ruff: noqa: RUF001 (foreign and look-alike characters are what is tested)
"""SentencePiece vocabularies in GGUF files, against the sentencepiece package on vocabularies trained here."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer

from npumatmul.errors import ModelError
from npumatmul.llm import GGUFFile, GGUFTokenizer, StreamDecoder

spm = pytest.importorskip("sentencepiece", reason="the sentencepiece package is for development only")

CORPUS = [
    "the quick brown fox jumps over the lazy dog; the dog sleeps on and on",
    "it's what they would have said: we shall see, they said, and so it was",
    "def function(argument): return argument ** 2  # a comment, and more of it",
    "aaa aaaa aaaaa aaaaaa banana bananas bandana ananas",
    "numbers 1 22 333 4444 55555 3.14159 2,000,000 and 1999 or 2024",
    "größere Häuser stehen dort; où est la bibliothèque, naïve café?",
    "人工智能正在改变世界 你好世界 日本語テキスト",
    "    indented    by    spaces        and more        ",
] * 4
MIXED = [
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    "It's what they'd've said; we'LL see.",
    "def f(x):\n\treturn x**2  # comment\n\n\nclass A:\n    pass\r\n",
    "aaaaaaaaaaaa aaaaaaa bananananas",
    "人工智能正在改变世界。你好，世界！",
    "日本語テキスト 한국어 текст عربى हिन्दी",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 done",
    "spaces          and\t\ttabs   \n   \n end",
    "numbers 1 22 333 4444 3.14159 2,000,000 x½ y²",
    "naïve café e\u0301 ﬁ \u00a0nbsp \u200bzero",
    "▁▁ x▁y",
    "<s> <unk> </s> <0x41> <mask>",
]
USER_DEFINED = ["<mask>", "<|turn|>"]

texts = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="abns \u2581", max_size=40),
    st.lists(st.sampled_from([*CORPUS[:8], "  ", "\n", "🙂", "\u2581"]), max_size=4).map("".join),
)


class Trained:
    """A vocabulary twice: as the sentencepiece package runs it, and as a GGUF file."""

    def __init__(self, path: Path, kind: str, **options: Any) -> None:
        self.kind = kind
        model = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=model,
            model_type=kind,
            minloglevel=2,
            num_threads=1,
            character_coverage=0.98,
            hard_vocab_limit=False,
            **options,
        )
        self.reference = spm.SentencePieceProcessor(model_proto=model.getvalue())
        writer = gguf.GGUFWriter(str(path), "llama")
        write_vocabulary(writer, model.getvalue(), "llama" if kind == "bpe" else "t5")
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        with GGUFFile(path) as file:
            self.tokenizer = GGUFTokenizer(file)

    def score(self, ids: list[int]) -> float:
        return sum(self.reference.get_score(i) for i in ids)

    def check(self, text: str) -> None:
        ids = self.tokenizer.encode(text, add_special=False)
        expected = self.reference.encode(text)
        if ids != expected and self.kind == "unigram":  # ways that are equally good but for rounding
            assert self.score(ids) == pytest.approx(self.score(expected), rel=1e-6)
        else:
            assert ids == expected
        # sentencepiece writes a question mark for an unknown token, and may drop the sign that it uses for a space
        if self.tokenizer.unk_id not in ids and "\u2581" not in text:
            assert self.tokenizer.decode(ids) == self.reference.decode(ids)
        decoder = StreamDecoder(self.tokenizer)
        assert "".join([decoder.push(i) for i in ids]) + decoder.finish() == self.tokenizer.decode(ids)


def write_vocabulary(writer: gguf.GGUFWriter, proto: bytes, kind: str) -> None:
    """Write a model of the sentencepiece package as llama.cpp's converter does."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([piece.piece for piece in model.pieces])
    writer.add_token_scores([piece.score for piece in model.pieces])
    writer.add_token_types([piece.type for piece in model.pieces])
    writer.add_unk_token_id(model.trainer_spec.unk_id)
    writer.add_bos_token_id(model.trainer_spec.bos_id)
    writer.add_eos_token_id(model.trainer_spec.eos_id)
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(model.normalizer_spec.remove_extra_whitespaces)
    if model.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)


LIKE_LLAMA: dict[str, Any] = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bpe like llama": ("bpe", {"vocab_size": 560, **LIKE_LLAMA}),
    "bpe like gemma": ("bpe", {"vocab_size": 560, "add_dummy_prefix": False, **LIKE_LLAMA}),
    "bpe over words": ("bpe", {"vocab_size": 560, "split_by_whitespace": False, **LIKE_LLAMA}),
    "bpe with words of the user": ("bpe", {"vocab_size": 560, "user_defined_symbols": USER_DEFINED, **LIKE_LLAMA}),
    "bpe without bytes": ("bpe", {"vocab_size": 300, "normalization_rule_name": "identity"}),
    "unigram": ("unigram", {"vocab_size": 300, "normalization_rule_name": "identity"}),
    "unigram of normalized texts": ("unigram", {"vocab_size": 300}),
    "unigram with bytes": ("unigram", {"vocab_size": 560, **LIKE_LLAMA}),
}


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, options = OPTIONS[request.param]
    return Trained(tmp_path_factory.mktemp("spm") / "vocabulary.gguf", kind, **options)


@pytest.mark.parametrize("text", [*MIXED, *CORPUS[:8]], ids=range(len(MIXED) + 8))
def test_mixed_texts_equal_sentencepiece(trained: Trained, text: str) -> None:
    trained.check(text)


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_random_texts_equal_sentencepiece(trained: Trained, text: str) -> None:
    trained.check(text)


def gguf_tokenizer(
    make_gguf: Callable[..., Path],
    tokens: list[tuple[str, float, gguf.TokenType]],
    kind: str = "llama",
    more: Callable[[gguf.GGUFWriter], None] = lambda w: None,
) -> GGUFTokenizer:
    def fill(w: gguf.GGUFWriter) -> None:
        w.add_tokenizer_model(kind)
        w.add_token_list([text for text, _, _ in tokens])
        w.add_token_scores([score for _, score, _ in tokens])
        w.add_token_types([kind for _, _, kind in tokens])
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        more(w)

    with GGUFFile(make_gguf(fill)) as file:
        return GGUFTokenizer(file)


T = gguf.TokenType
SPECIAL = [("<unk>", 0.0, T.UNKNOWN), ("<s>", 0.0, T.CONTROL), ("</s>", 0.0, T.CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, T.BYTE) for byte in range(256)]


def test_bytes_of_what_no_piece_spells_and_their_decoding(make_gguf: Callable[..., Path]) -> None:
    """By hand: token 3 + n is byte n."""
    tokenizer = gguf_tokenizer(make_gguf, [*SPECIAL, *BYTES, ("\u2581", -1.0, T.NORMAL), ("a", -2.0, T.NORMAL)])
    assert tokenizer.encode("aé") == [1, 259, 260, 3 + 0xC3, 3 + 0xA9]  # begin, space, a, two bytes
    assert tokenizer.encode("<0x41>", add_special=False) == [259, *(3 + byte for byte in b"<0x41>")]
    assert tokenizer.decode([1, 259, 260, 3 + 0xC3, 3 + 0xA9, 2]) == "aé"
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(i) for i in (1, 259, 260, 3 + 0xC3, 3 + 0xA9, 259)] == ["", "", "a", "", "é", " "]
    decoder = StreamDecoder(tokenizer, continues=True)
    assert [decoder.push(i) for i in (259, 260)] == [" ", "a"]
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(3 + 0xE4), decoder.push(260), decoder.push(3 + 0xE4), decoder.finish()] == [
        "", "\ufffda", "", "\ufffd"
    ]  # fmt: skip


def test_of_equally_good_merges_the_leftmost_comes_first(make_gguf: Callable[..., Path]) -> None:
    pieces = [("a", -9.0, T.NORMAL), ("aa", -1.0, T.NORMAL), ("aaa", 0.0, T.NORMAL)]
    tokenizer = gguf_tokenizer(make_gguf, [*SPECIAL, *pieces], more=lambda w: w.add_add_space_prefix(False))
    assert [tokenizer.token(i) for i in tokenizer.encode("aaaaa", add_special=False)] == ["aaa", "aa"]


def test_pieces_that_are_not_used_are_taken_apart_again(make_gguf: Callable[..., Path]) -> None:
    pieces = [("a", -9.0, T.NORMAL), ("b", -9.0, T.NORMAL), ("ab", -1.0, T.UNUSED), ("aba", -2.0, T.NORMAL)]
    tokenizer = gguf_tokenizer(make_gguf, [*SPECIAL, *pieces], more=lambda w: w.add_add_space_prefix(False))
    assert [tokenizer.token(i) for i in tokenizer.encode("ab", add_special=False)] == ["a", "b"]
    assert [tokenizer.token(i) for i in tokenizer.encode("aba", add_special=False)] == ["aba"]


def test_a_space_goes_in_front_of_texts_after_control_tokens_too(make_gguf: Callable[..., Path]) -> None:
    """As llama.cpp has it. What is spelled in a text from outside is text."""
    tokens = [*SPECIAL, *BYTES, ("\u2581", -1.0, T.NORMAL), ("a", -2.0, T.NORMAL), ("<x>", 0.0, T.USER_DEFINED)]
    tokenizer = gguf_tokenizer(make_gguf, tokens)
    assert tokenizer.encode("a</s>a", parse_special=True, add_special=False) == [259, 260, 2, 259, 260]
    assert tokenizer.encode("a<x>a", add_special=False) == [259, 260, 261, 259, 260]
    assert 2 not in tokenizer.encode("a</s>a")
    assert tokenizer.decode(tokenizer.encode("a</s>a")) == "a</s>a"


def test_phi3_drops_white_space_after_its_control_tokens(make_gguf: Callable[..., Path]) -> None:
    tokens = [*SPECIAL, *BYTES, ("\u2581", -1.0, T.NORMAL), ("a", -2.0, T.NORMAL), ("<|user|>", 0.0, T.CONTROL)]
    ids = []
    for name in ("Phi-3 mini", "Llama 2"):
        tokenizer = gguf_tokenizer(make_gguf, tokens, more=lambda w, name=name: w.add_name(name))
        ids.append(tokenizer.encode("<|user|>\na", parse_special=True, add_special=False))
    assert ids == [[261, 259, 260], [261, 259, 13, 260]]


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    ("scores", "message"),
    [([0.0], "scores' must hold one finite number for each of the 5 tokens"), ([float("nan")] * 5, "finite number")],
)
def test_damaged_scores(make_gguf: Callable[..., Path], kind: str, scores: list[float], message: str) -> None:
    def damage(w: gguf.GGUFWriter) -> None:
        w.kv_data[0].pop("tokenizer.ggml.scores")
        w.add_token_scores(scores)

    with pytest.raises(ModelError, match=message):
        gguf_tokenizer(make_gguf, [*SPECIAL, ("a", 0.0, T.NORMAL), ("b", 0.0, T.NORMAL)], kind, damage)


def test_a_long_word_takes_time_in_proportion(make_gguf: Callable[..., Path]) -> None:
    """Merging looks at each pair of neighbours a few times at most."""
    pieces = [("a" * 2**n, float(n), T.NORMAL) for n in range(12)]
    tokenizer = gguf_tokenizer(make_gguf, [*SPECIAL, *pieces], more=lambda w: w.add_add_space_prefix(False))
    assert len(tokenizer.encode("a" * 2**15, add_special=False)) == 2**4


def test_wordpiece_equals_the_tokenizers_package(make_gguf: Callable[..., Path]) -> None:
    words = ["the", "quick", "bro", "##wn", "fox", "##es", "jump", "##s", ".", "!", "un", "##believ", "##able", "é"]
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocab = {word: i for i, word in enumerate([*special, *words, *"abcdefg", *(f"##{c}" for c in "abcdefg")])}
    reference = BertWordPieceTokenizer(vocab)
    spelled = [w if w in special else w[2:] if w.startswith("##") else f"\u2581{w}" for w in vocab]
    kinds = [T.CONTROL if word in special else T.NORMAL for word in vocab]

    def more(w: gguf.GGUFWriter) -> None:
        for name in ("bos", "eos", "unknown"):
            w.kv_data[0].pop(f"tokenizer.ggml.{name}_token_id")
        w.add_uint32("tokenizer.ggml.cls_token_id", 1)
        w.add_sep_token_id(2)
        w.add_unk_token_id(3)

    tokenizer = gguf_tokenizer(make_gguf, [(t, 0.0, k) for t, k in zip(spelled, kinds, strict=True)], "bert", more)
    for text in [*MIXED, "The quick brown foxes jumps.", "UNBELIEVABLE abcdefg é É!", "[SEP] the"]:
        expected = reference.encode(text, add_special_tokens=False)
        if not any(mark in text for mark in ("<s>", "[SEP]")):  # spelled special tokens: see below
            assert tokenizer.encode(text, add_special=False) == expected.ids, text
    assert tokenizer.encode("the fox") == [1, vocab["the"], vocab["fox"], 2]
    assert tokenizer.encode("[SEP] the", parse_special=True, add_special=False) == [2, vocab["the"]]
    assert 2 not in tokenizer.encode("[SEP] the", add_special=False)
    assert tokenizer.decode(tokenizer.encode("The unbelievable foxes jumps.")) == "the unbelievable foxes jumps."


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_vocabularies_that_do_not_go_together(make_gguf: Callable[..., Path], kind: str) -> None:
    """Whatever is changed in one: it is refused as a model that cannot be used, or texts survive it."""
    pieces = [("\u2581", -1.0), ("a", -2.0), ("b", -3.0), ("ab", -4.0), ("\u2581ab", -5.0), ("abab", -6.0)]
    tokens = [*SPECIAL, *BYTES, *((text, score, T.NORMAL) for text, score in pieces)]
    rng, told = random.Random(kind), list[str]()
    for _ in range(60):

        def change(w: gguf.GGUFWriter) -> None:
            values = w.kv_data[0]
            for key in rng.sample(["tokens", "scores", "token_type"], rng.choice((1, 2))):
                held = values[f"tokenizer.ggml.{key}"]
                if rng.random() < 0.2:
                    held.value = held.value[: rng.randrange(len(held.value) + 1)]
                    continue
                for _ in range(rng.choice((1, 3, 30))):
                    wild: list[Any] = {
                        "tokens": ["", "a", "\u2581", "<0x41>", "<0xZZ>", "a" * 5000, "\U0001f642", "##", "</s>", " "],
                        "scores": [0.0, -1e38, 1e38, float("inf"), float("nan"), -5.0],
                        "token_type": [0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1],
                    }[key]
                    if held.value:
                        held.value[rng.randrange(len(held.value))] = rng.choice(wild)
            if rng.random() < 0.3:
                name = rng.choice(["bos", "eos", "unknown"])
                values[f"tokenizer.ggml.{name}_token_id"].value = rng.choice([0, 5, 264, 10**6])

        try:
            tokenizer = gguf_tokenizer(make_gguf, tokens, kind, change)
        except ModelError as error:
            told.append(str(error))
            continue
        for text in ("", "ab abab \U0001f642 </s> \u2581\u2581", "a" * 300):
            ids = tokenizer.encode(text, parse_special=True)
            assert all(0 <= i < tokenizer.vocab_size for i in ids)
            tokenizer.decode(ids)
            assert tokenizer.control_ids <= set(range(tokenizer.vocab_size))
    assert 5 < len(told) < 55
    assert not any("\n" in each for each in told)


@pytest.mark.parametrize("table", [b"x", b"\xff" * 4, b"\x08\0\0\0" + b"\xff" * 8, bytes(range(200)), b"\0" * 64])
def test_damaged_tables_of_replaced_characters(make_gguf: Callable[..., Path], table: bytes) -> None:
    tokens = [*SPECIAL, ("\u2581", -1.0, T.NORMAL), ("a", -2.0, T.NORMAL)]
    try:
        tokenizer = gguf_tokenizer(make_gguf, tokens, "t5", lambda w: w.add_precompiled_charsmap(table))
        ids = tokenizer.encode("a a é ﬁ 人 🙂")
    except ModelError:
        return
    assert all(0 <= i < 5 for i in ids)
