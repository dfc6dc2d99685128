# ruff: noqa: RUF001 (foreign and look-alike characters are what is tested)
"""Tokens against transformers on the demo model's real vocabulary, and small vocabularies for what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_USER_DEFINED, byte_alphabet, tokenizer_metadata
from tokenizers import pre_tokenizers

from npumatmul.errors import ModelError
from npumatmul.llm import GGUFFile, GGUFTokenizer, LoadedModel, StreamDecoder
from npumatmul.llm.tokenizers.protocol import STOP_TOKENS
from npumatmul.llm.tokenizers.words import PRE_TOKENIZERS

MIXED = [
    "",
    "Hello world",
    " leading and trailing ",
    "It's what they'd've said; we'LL see.",
    "def f(x):\n\treturn x**2  # comment\n\n\nclass A:\n    pass\r\n",
    "if (a != b && c[0] >= 0x1F) { return -1.5e-3; }",
    "人工智能正在改变世界。你好，世界！",
    "日本語テキスト 한국어 текст عربى",
    "emoji 🙂👩‍👩‍👧‍👦🇩🇪 done",
    "spaces          and\t\ttabs   \n   \n end",
    "numbers 1 22 333 4444 3.14159 2,000,000 x½ y²",
    "naïve café e\u0301 ﬁ \u00a0nbsp \u200bzero",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>x <|im_end|> y<file_sep>",
    "<|im_start <|im_end| >",
]


@pytest.mark.parametrize("text", MIXED)
def test_ids_equal_transformers(demo: LoadedModel, reference_tokenizer: Any, text: str) -> None:
    assert demo.tokenizer.encode(text, parse_special=True) == reference_tokenizer(text).input_ids


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_random_text_equals_transformers(demo: LoadedModel, reference_tokenizer: Any, text: str) -> None:
    backend = reference_tokenizer.backend_tokenizer
    # transformers forgets, for GGUF files, that SmolLM2 splits digits off before words; see the test below
    backend.pre_tokenizer, kept = smollm_words(), backend.pre_tokenizer
    try:
        assert demo.tokenizer.encode(text, parse_special=True) == backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.pre_tokenizer = kept


def smollm_words() -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer in the tokenizer.json that SmolLM2 was published with."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def test_digits_are_split_off_before_words(demo: LoadedModel) -> None:
    """As SmolLM2 was trained: three spaces are one token, and not two and one as in front of a letter."""
    tokens = [demo.tokenizer.token(i) for i in demo.tokenizer.encode("a   12")]
    assert tokens == ["a", "ĠĠĠ", "1", "2"]
    for text in (" ٣", " ½"):
        ids = demo.tokenizer.encode(text)
        assert demo.tokenizer.token(ids[0]) == "Ġ"
        assert demo.tokenizer.decode(ids) == text


def test_control_tokens_in_text_are_text_unless_asked_for(demo: LoadedModel) -> None:
    text = "a<|im_end|>b"
    safe = demo.tokenizer.encode(text)
    assert not demo.tokenizer.control_ids & set(safe)
    assert demo.tokenizer.decode(safe) == text
    parsed = demo.tokenizer.encode(text, parse_special=True)
    assert parsed.count(2) == 1
    assert demo.tokenizer.decode(parsed) == "ab"
    assert demo.tokenizer.decode(parsed, skip_special=False) == text


def test_user_defined_tokens_always_match(make_gguf: Callable[..., Path]) -> None:
    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(tokenizer_metadata)))
    assert tokenizer.encode("<think>the<|im_end|>", parse_special=True) == [259, 257, 261]
    safe = tokenizer.encode("<think><|im_end|>")
    assert safe[0] == 259
    assert tokenizer.decode(safe) == "<think><|im_end|>"


def test_stop_ids(demo: LoadedModel, make_gguf: Callable[..., Path]) -> None:
    assert demo.tokenizer.stop_ids == {0, 2}  # <|endoftext|> and <|im_end|>

    def fill(w: gguf.GGUFWriter) -> None:
        tokenizer_metadata(w)
        w.add_eot_token_id(263)

    assert GGUFTokenizer(GGUFFile(make_gguf(fill))).stop_ids == {261, 263}


@pytest.mark.parametrize("kind", [TOKEN_NORMAL, TOKEN_USER_DEFINED, TOKEN_CONTROL])
@pytest.mark.parametrize("name", sorted(STOP_TOKENS))
def test_end_of_turn_tokens_are_known_by_name(make_gguf: Callable[..., Path], name: str, kind: int) -> None:
    """Whatever type the converter gave them: they end answers, have no text, and templates can spell them."""

    def fill(w: gguf.GGUFWriter) -> None:
        vocabulary(w, [(name, kind)])

    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(fill)))
    assert tokenizer.stop_ids == {257}
    assert tokenizer.encode(f"a{name}b", parse_special=True) == [97, 257, 98]
    assert tokenizer.decode([97, 257, 98]) == "ab"
    assert 257 not in tokenizer.encode(f"a{name}b")


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 264])
@pytest.mark.parametrize("which", ["bos", "eos", "eot", "eom", "unknown", "padding"])
def test_special_tokens_that_no_token_is(
    make_gguf: Callable[..., Path], caplog: pytest.LogCaptureFixture, which: str, value: int
) -> None:
    """Some converters say -1, in either sign, for none. What needs no such token works without."""

    def fill(w: gguf.GGUFWriter) -> None:
        tokenizer_metadata(w)
        w.kv_data[0].pop(f"tokenizer.ggml.{which}_token_id", None)
        (w.add_int32 if value < 0 else w.add_uint32)(f"tokenizer.ggml.{which}_token_id", value)

    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(fill)))
    assert tokenizer.encode("the") == [257]
    assert 261 in tokenizer.stop_ids  # by its name, where the metadata does not say
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        f"metadata 'tokenizer.ggml.{which}_token_id' is {value}, but there are 264 tokens; it is ignored"
    ]


@pytest.mark.parametrize("which", ["bos", "eos"])
def test_a_special_token_that_is_needed(make_gguf: Callable[..., Path], which: str) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        changed(f"tokenizer.ggml.{which}_token_id", 264)(w)
        w.kv_data[0].pop("tokenizer.ggml.add_bos_token")
        (w.add_add_bos_token if which == "bos" else w.add_add_eos_token)(True)

    with pytest.raises(ModelError, match="token to texts, but names none that it has"):
        GGUFTokenizer(GGUFFile(make_gguf(fill)))


def test_without_a_token_that_ends_answers_that_is_told(
    make_gguf: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert GGUFTokenizer(GGUFFile(make_gguf(lambda w: vocabulary(w, [])))).stop_ids == set()
    assert "answers go on to their greatest length" in caplog.text


def test_several_empty_tokens(make_gguf: Callable[..., Path]) -> None:
    """Converters fill gaps of a vocabulary with them."""

    def fill(w: gguf.GGUFWriter) -> None:
        gaps = [("", kind) for kind in (TOKEN_NORMAL, TOKEN_NORMAL, TOKEN_USER_DEFINED, TOKEN_CONTROL, TOKEN_CONTROL)]
        vocabulary(w, [*gaps, ("<|im_end|>", TOKEN_CONTROL)])

    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(fill)))
    assert tokenizer.vocab_size == 263
    assert tokenizer.encode("ab<|im_end|>", parse_special=True) == [97, 98, 262]
    assert tokenizer.decode([97, 257, 258, 259, 260, 261, 98], skip_special=False) == "ab"


def test_begin_and_end_tokens(make_gguf: Callable[..., Path]) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        tokenizer_metadata(w)
        w.kv_data[0].pop("tokenizer.ggml.add_bos_token")
        w.add_add_bos_token(True)
        w.add_add_eos_token(True)

    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(fill)))
    assert tokenizer.encode("the") == [262, 257, 261]
    assert tokenizer.encode("the", add_special=False) == [257]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=30), st.booleans())
def test_decode_equals_transformers(
    demo: LoadedModel, reference_tokenizer: Any, ids: list[int], skip_special: bool
) -> None:
    expected = reference_tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=skip_special)
    assert demo.tokenizer.decode(ids, skip_special=skip_special) == expected


def test_decode_of_unknown_token(demo: LoadedModel) -> None:
    for bad in (49152, -1):
        with pytest.raises(ValueError, match=f"token {bad} is not in the vocabulary of 49152"):
            demo.tokenizer.decode([bad])


def test_half_surrogate_is_an_error(demo: LoadedModel) -> None:
    with pytest.raises(ValueError, match="the text holds half a surrogate pair at position 2"):
        demo.tokenizer.encode("ab\ud800")
    with pytest.raises(ValueError, match="the text is not UTF-8: the byte 0xe9 at position 3"):
        demo.tokenizer.encode(b"caf\xe9".decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("text", ["你好世界 🙂👩‍👩‍👧 ok", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "plain"])
def test_stream_never_splits_a_character(demo: LoadedModel, text: str) -> None:
    ids = demo.tokenizer.encode(text)
    decoder = StreamDecoder(demo.tokenizer)
    pieces = [decoder.push(i) for i in ids]
    assert decoder.finish() == ""
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    if text != "plain":
        assert "" in pieces  # there was a character to hold back


def test_stream_of_bytes_by_hand(make_gguf: Callable[..., Path]) -> None:
    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(tokenizer_metadata)))  # token n is byte n
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(byte) for byte in "é🙂!".encode()] == ["", "é", "", "", "", "🙂", "!"]
    assert [decoder.push(byte) for byte in b"\xf0\x9fA"] == ["", "", "\ufffdA"]
    assert [decoder.push(0xE4), decoder.finish(), decoder.push(ord("x"))] == ["", "\ufffd", "x"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_stream_equals_decoding_at_once(tiny: Any, data: bytes) -> None:
    decoder = StreamDecoder(GGUFTokenizer(GGUFFile(tiny.path)))
    streamed = "".join([decoder.push(byte) for byte in data]) + decoder.finish()
    assert streamed == data.decode("utf-8", "replace")


PIECES = {
    "gpt-2": ["It", "'s", " 1234", " x", "   ", " y", "\n", "\n", "Ab"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", " x", "   ", " y", "\n", "\n", "Ab"],
    "llama-bpe": ["It", "'s", " ", "123", "4", " x", "   ", " y", "\n\n", "Ab"],
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", " x", "   ", " y", "\n\n", "Ab"],
    "tekken": ["It", "'s", " ", "1", "2", "3", "4", " x", "   ", " y", "\n\n", "Ab"],
}


@pytest.mark.parametrize("name", PIECES)
def test_pre_tokenizers_cut_words(name: str) -> None:
    text = "It's 1234 x    y\n\nAb"
    got = [text[a:b] for _, (a, b) in PRE_TOKENIZERS[name].build().pre_tokenize_str(text)]
    assert got == PIECES[name]


def test_llama3_takes_known_words_whole(make_gguf: Callable[..., Path]) -> None:
    """Llama 3's vocabulary has words that its merges never make (ignore_merges in its tokenizer.json)."""

    def fill(pre: str) -> Callable[[gguf.GGUFWriter], None]:
        def add(w: gguf.GGUFWriter) -> None:
            w.add_tokenizer_model("gpt2")
            w.add_tokenizer_pre(pre)
            w.add_token_list(["a", "b", "c", "ab", "abc", "<s>"])
            w.add_token_types([1, 1, 1, 1, 1, 3])
            w.add_token_merges(["a b"])
            w.add_bos_token_id(5)

        return add

    assert GGUFTokenizer(GGUFFile(make_gguf(fill("llama-bpe")))).encode("abc") == [5, 4]
    assert GGUFTokenizer(GGUFFile(make_gguf(fill("qwen2")))).encode("abc") == [3, 2]


def vocabulary(w: gguf.GGUFWriter, tokens: list[tuple[str, int]]) -> None:
    """All bytes, token n being byte n, a merge, and further tokens from 257 on."""
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([*byte_alphabet(), "th", *(text for text, _ in tokens)])
    w.add_token_types([TOKEN_NORMAL] * 257 + [kind for _, kind in tokens])
    w.add_token_merges(["t h"])


def changed(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    def fill(w: gguf.GGUFWriter) -> None:
        tokenizer_metadata(w)
        w.kv_data[0].pop(key, None)
        if isinstance(value, str):
            w.add_string(key, value)
        elif isinstance(value, list):
            w.add_array(key, value)
        elif value is not None:
            w.add_uint32(key, value)

    return fill


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "rwkv", "of kind 'rwkv'; supported: gpt2 .*; llama .*; t5 .*; bert"),
        ("model", None, r"'tokenizer\.ggml\.model' is missing"),
        ("pre", "martian", r"pre-tokenizer is 'martian'; supported: .*llama-bpe.*smollm"),
        ("tokens", None, r"'tokenizer\.ggml\.tokens' is missing"),
        ("tokens", [1, 2], "must be a list of strings"),
        ("tokens", ["a", "b", "a"], "token_type' must hold one number for each of the 3 tokens"),
        ("token_type", [1] * 5, "must hold one number for each of the 264 tokens"),
        ("merges", None, r"'tokenizer\.ggml\.merges' is missing"),
        ("merges", ["t h", "nospace"], "merge 'nospace'"),
        ("merges", ["x y"], "merge 'x y' of its tokenizer uses a token that is not in the vocabulary"),
    ],
)
def test_damaged_vocabularies(make_gguf: Callable[..., Path], key: str, value: Any, message: str) -> None:
    path = make_gguf(changed(f"tokenizer.ggml.{key}", value))
    with pytest.raises(ModelError, match=message):
        GGUFTokenizer(GGUFFile(path))


def test_repeated_token_is_damage(make_gguf: Callable[..., Path]) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        changed("tokenizer.ggml.tokens", ["a", "b", "a"])(w)
        for key in ("token_type", "bos_token_id", "eos_token_id"):
            w.kv_data[0].pop(f"tokenizer.ggml.{key}")

    with pytest.raises(ModelError, match="tokens 0 and 2 of its vocabulary are the same, 'a'"):
        GGUFTokenizer(GGUFFile(make_gguf(fill)))


def test_a_text_that_tries_the_expressions_too_long_is_an_error(make_gguf: Callable[..., Path]) -> None:
    """What panics in the tokenizers package is no Exception; ours is."""

    def fill(w: gguf.GGUFWriter) -> None:
        tokenizer_metadata(w)
        w.kv_data[0].pop("tokenizer.ggml.pre")
        w.add_tokenizer_pre("gpt-4o")

    tokenizer = GGUFTokenizer(GGUFFile(make_gguf(fill)))
    assert len(tokenizer.encode("A" * 10_000, add_special=False)) == 10_000
    with pytest.raises(ValueError, match=r"the text cannot be cut into words: .*retry-limit"):
        tokenizer.encode("A" * 10_100_000)
