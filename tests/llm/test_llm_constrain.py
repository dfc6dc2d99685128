"""Answers that keep to JSON and to schemas: every text that can come satisfies them, by another validator."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from npumatmul.errors import ModelError
from npumatmul.llm.constrain import expressions
from npumatmul.llm.constrain.automaton import AmbiguousError, Automaton
from npumatmul.llm.constrain.constraint import FormatConstraint
from npumatmul.llm.constrain.expressions import Sequence
from npumatmul.llm.constrain.forms import json_format
from npumatmul.llm.constrain.integers import integers
from npumatmul.llm.constrain.json_values import JSONValues
from npumatmul.llm.constrain.schema import json_grammar
from npumatmul.llm.constrain.strings import FORMATS, pattern
from npumatmul.llm.tokenizers.protocol import BaseTokenizer, SpecialTokens
from npumatmul.server.tools import FORMS


class _Engine:
    leading_space = False

    def __init__(self, texts: list[bytes]) -> None:
        self._texts = texts

    def encode(self, text: str, parse_special: bool) -> list[int]:
        return [self._texts.index(bytes([byte])) for byte in text.encode()]

    def piece(self, token_id: int) -> bytes:
        return self._texts[token_id]


def tokenizer_of(texts: list[bytes]) -> BaseTokenizer:
    """All bytes, some longer tokens, a control token that is none, and one that ends answers."""
    every = [*(bytes([byte]) for byte in range(256)), *texts, b"<ctl>", b"<end>"]
    n = len(every)
    special = SpecialTokens(eos_id=n - 1, stop_ids=frozenset({n - 1}), control_ids=frozenset({n - 2, n - 1}))
    return BaseTokenizer(_Engine(every), [repr(each) for each in every], special)


PIECES = [
    b'{"',
    b'":',
    b'", "',
    b'"}',
    b'":"',
    b"[[",
    b"]]",
    b"},{",
    b" true",
    b"null,",
    b"-1",
    b"0.5",
    b"\xc3\xa9",
    b"\xe2\x82",
]
PIECES += [b'"name', b"name", b"kind", b"\\u00", b"\\ud8", b"\\n", b"  ", b"\n ", b"abc", b"\xf0\x9f\x98", b"2024-"]
TOKENIZER = tokenizer_of(PIECES)


def accepts(grammar: Any, text: str | bytes) -> bool:
    automaton = Automaton(grammar)
    return None in automaton.after(automaton.start, text.encode() if isinstance(text, str) else text)


def written(constraint: FormatConstraint, seed: int, most: int = 400) -> str | None:
    """What a model that chooses blindly writes; it likes to end things, so that it comes to an end."""
    chance = np.random.default_rng(seed)
    wanted = [TOKENIZER.vocab_size - 1, *(b'"}]' if seed % 2 else b'"'), *range(0x30, 0x3A)]
    data = b""
    for step in range(most):
        logits = chance.normal(size=TOKENIZER.vocab_size + 3).astype(np.float32)
        logits[wanted] += 0.1 * step
        constraint.allowed(logits)
        assert np.all(logits[TOKENIZER.vocab_size :] == -np.inf), "there are no such tokens"
        token = int(logits.argmax())
        constraint.accept(token)
        data += TOKENIZER.token_bytes(token)
        if constraint.finished:
            return data.decode()
    return None


SCHEMAS: dict[str, Any] = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "more members": {
        "properties": {"n": {"type": "null"}, "na": {"type": "boolean"}, "é": {"type": "null"}},
        "additionalProperties": {"type": "integer"},
        "required": ["na"],
    },
    "required without a property": {"type": "object", "required": ["a b"], "additionalProperties": {"type": "boolean"}},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "lists": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"const": "a"}, {"type": "boolean"}], "items": False, "minItems": 1},
    "tuple and more": {"prefixItems": [{"const": "a"}, {"type": "null"}], "items": {"type": "integer"}, "maxItems": 4},
    "values": {"enum": ["a", 1, None, {"b": [True]}, "\"\\"], "type": ["string", "null", "object"]},
    "kinds": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": k}, "v": {"type": t}}, "required": ["kind", "v"]}
            for k, t in (("i", "integer"), ("s", "string"))
        ]
    },
    "small": {"type": "integer", "exclusiveMinimum": -13, "maximum": 120.5},
    "positive": {"type": "number", "minimum": 0},
    "several types": {"type": ["integer", "array"], "items": {"type": "boolean"}, "maxItems": 2, "minimum": 7},
    "length": {"type": "string", "minLength": 3, "maxLength": 4},
    "date": {"type": "string", "format": "date"},
    "code": {"type": "string", "pattern": "^[A-C]{2}-\\d+(x|é)?$"},
    "anything": True,
    "an impossible member": {"type": "object", "properties": {"a": False, "b": {"type": "null"}}, "required": ["b"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_satisfies_its_schema(name: str) -> None:
    form = json_format(TOKENIZER, SCHEMAS[name])
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    texts = [text for seed in range(25) if (text := written(form.constraint(), seed)) is not None]
    assert len(set(texts)) >= 2, texts
    for text in texts:
        validator.validate(json.loads(text))


def test_any_object_is_json() -> None:
    form = json_format(TOKENIZER)
    texts = [text for seed in range(40) if (text := written(form.constraint(), seed)) is not None]
    assert len(set(texts)) > 10
    assert all(isinstance(json.loads(text), dict) for text in texts)


VALID = [
    '{"a": [1, -2.5e+3, true, false, null, "x\\n\\u00e9 é \U0001f600 \\ud83d\\ude00"], "b": {}}',
    "{}",
    " {\n  \"a\": 1,\n  \"b\": [\n    2\n  ]\n}",
    '{"a":{"b":{"c":[[],[{}]]}}}',
]  # fmt: skip
INVALID = [
    "", "{", "[1]", "{} ", "x{}", "{'a': 1}", '{"a": 01}', '{"a": 1.}', '{"a": .5}', '{"a": +1}', '{"a" 1}',
    '{"a": 1,}', "{,}",
    '{"a": tru}', '{"a": "\n"}', '{"a": "\\x"}', '{"a": "\\ud800"}', '{"a": "\\ude00"}', '{"a": NaN}',
    "{}{}", '{"a": [1 2]}',
]  # fmt: skip


@pytest.mark.parametrize("text", VALID)
def test_json_is_accepted(text: str) -> None:
    json.loads(text)
    assert accepts(json_grammar(), text)


@pytest.mark.parametrize("text", INVALID)
def test_what_is_no_object_is_not(text: str) -> None:
    assert not accepts(json_grammar(), text)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe0\x80\x80", b"\xf5\x80\x80\x80", b"\x80", b"\xc3"]
)
def test_bytes_that_are_no_utf8_are_not(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    assert not accepts(json_grammar(), b'{"a": "' + data + b'"}')


def test_all_characters_are_accepted() -> None:
    grammar = json_grammar({"type": "string"})
    for code in [0x20, 0x7E, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]:
        assert accepts(grammar, json.dumps(chr(code), ensure_ascii=False)), hex(code)


def test_whole_numbers_between_others() -> None:
    chance = random.Random(1)
    for _ in range(60):
        low, high = sorted(chance.randint(-(10 ** chance.randint(0, 4)), 10 ** chance.randint(0, 4)) for _ in "ab")
        automaton = Automaton(integers(low, high))
        tried = {
            low - 1,
            low,
            low + 1,
            high - 1,
            high,
            high + 1,
            0,
            *(chance.randint(low - 50, high + 50) for _ in range(50)),
        }
        for value in tried:
            assert (None in automaton.after(automaton.start, str(value).encode())) == (low <= value <= high), (
                low,
                high,
                value,
            )
    assert accepts(integers(5, None), "999999999999999")
    assert not accepts(integers(None, None), "01")


PATTERNS = {
    "^a+b*$": ["a", "aab", "b", ""],
    "b": ["abc", "b", "ac", "\\", '"b"'],
    "^(foo|bar)[^a-c\"]{2,3}$": ["fooxy", "barxyz", "fooab", 'foo""', "foo\\é", "bar"],
    "^.$": ["x", "é", "\U0001f600", "\n", '"', "xy"],
    "^\\d{3}-\\w\\s\\.$": ["123-a .", "123-_\t.", "12-a .", "123-aa ."],
    "^a|b$": ["axx", "xxb", "xax", "b"],
    "^[\\u00e0-\\u00ff€-\U0001f600]+$": ["é€\U0001f600", "\U0001f601", "a", "\u20ab\uffff"],
    "^(?:ab?)+?$": ["aab", "abab", "ba", ""],
    "^\\S\\D\\W$": ["aa-", "1a-", "a1-", "aa_", "  -"],
}  # fmt: skip


@pytest.mark.parametrize("text", PATTERNS)
def test_patterns_are_those_of_re(text: str) -> None:
    values = JSONValues()
    grammar = values.quoted(pattern(text, values))
    for each in PATTERNS[text]:
        assert accepts(grammar, json.dumps(each, ensure_ascii=False)) == bool(re.search(text, each)), each


@pytest.mark.parametrize(
    "text",
    ["(?=a)", "(?!a)", "\\bx", "(a)\\1", "a**", "[z-a]", "[]", "a{3,1}", "(a", "a)", "\\p{L}", "a{1000000}", "[a", "\\",
     "\\01", "[\\00]", "x^", "a$b", "(?i)a", "(?P<n>a)", "*", "\\u12", "(" * 100 + ")" * 100, "a" * 5000],
)  # fmt: skip
def test_patterns_that_are_not_supported_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the schema at # has a pattern that"):
        json_grammar({"type": "string", "pattern": text})


def test_formats_are_what_their_names_say() -> None:
    good = {
        "date": "2024-12-31",
        "time": "23:59:59.5Z",
        "date-time": "2024-02-28T00:00:00+01:00",
        "uuid": "123e4567-e89b-12d3-a456-426614174000",
        "ipv4": "255.0.19.240",
        "email": "a.b+c@mail.example.org",
    }
    bad = {
        "date": "2024-02-30",
        "time": "24:00:00Z",
        "date-time": "2024-02-28 00:00:00Z",
        "uuid": "123e4567",
        "ipv4": "256.0.0.1",
        "email": "a@b",
    }
    assert set(good) == set(bad) == set(FORMATS)
    for name in FORMATS:
        grammar = json_grammar({"type": "string", "format": name})
        assert accepts(grammar, json.dumps(good[name]))
        assert not accepts(grammar, json.dumps(bad[name]))


REFUSED = [
    ({"multipleOf": 3}, "multipleOf"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "object", "patternProperties": {}}, "patternProperties"),
    ({"type": "object", "minProperties": 1}, "minProperties"),
    ({"not": {}}, "'not'"),
    ({"if": {}}, "'if'"),
    ({"type": "number", "maximum": 3}, "maximum"),
    ({"type": "string", "format": "uri"}, "uri"),
    ({"type": "string", "format": ["date"]}, "format"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "both together"),
    ({"anyOf": [{"type": "null"}], "minLength": 1}, "both together"),
    ({"allOf": [{}, {}]}, "allOf"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"oneOf": [{"type": 3}, {"type": 3}]}, "oneOf"),
    ({"type": "strin"}, "strin"),
    ({"type": [{}]}, "type"),
    ({"type": []}, "type"),
    ({"enum": "abc"}, "enum"),
    ({"enum": [float("nan")]}, "cannot be written"),
    ({"enum": ["\ud800"]}, "cannot be written"),
    ({"properties": {"\ud800": True}}, "no text"),
    ({"properties": []}, "properties"),
    ({"properties": {"a" * 5000: True}, "additionalProperties": True}, "more than 200 characters"),
    ({"required": "a"}, "requires"),
    ({"items": [{}]}, "prefixItems"),
    ({"minItems": -1}, "no count"),
    ({"minItems": True}, "no count"),
    ({"minItems": 2, "maxItems": 1}, "nothing satisfies"),
    ({"maxLength": 10**9}, "100000"),
    ({"minimum": "3"}, "no number"),
    ({"type": "integer", "minimum": float("inf")}, "no number"),
    ({"properties": {"a": {"$id": "http://a.b/c", "items": {"$ref": "#/x"}}}}, "an '$id' of its own"),
    ({"$defs": {"a": {"$id": "u:v", "$defs": {"b": True}}}, "$ref": "#/$defs/a/$defs/b"}, "an '$id' of its own"),
    ({"properties": {f"{i:0200}": True for i in range(501)}, "additionalProperties": True}, "100000 characters in all"),
    ({"$ref": "other.json"}, "refers to"),
    ({"$ref": "#/$defs/none"}, "does not have"),
    ({"$ref": 3}, "refers to"),
    ({"properties": {"a": {"properties": {"b": {"contains": 1}}}}}, "#/properties/a/properties/b has 'contains'"),
    ("text", "no schema"),
    ([], "no schema"),
]


@pytest.mark.parametrize(("schema", "said"), REFUSED)
def test_what_cannot_be_kept_to_is_refused_by_name(schema: object, said: str) -> None:
    with pytest.raises(ValueError, match="the schema at #") as error:
        json_grammar(schema)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [False, {"$ref": "#"}, {"enum": []}, {"anyOf": [{"$ref": "#"}]}, {"type": "integer", "minimum": 3, "maximum": 2},
     {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
     {"properties": {"a": False}, "required": ["a"]}, {"type": "array", "items": False, "minItems": 1}],
)  # fmt: skip
def test_schemas_that_nothing_satisfies_are_refused(schema: object) -> None:
    with pytest.raises(ValueError, match="no text satisfies"):
        json_format(TOKENIZER, schema)


def test_deep_and_large_schemas_are_refused() -> None:
    deep: Any = {"type": "null"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="too large"):
        json_grammar(deep)
    with pytest.raises(ValueError, match="too large"):
        json_grammar({"anyOf": [{"type": "null"}] * 30_000})


#: Short, but every part of them is made of many.
LARGE = {
    "sets": {"pattern": "".join(f"[^{chr(0x100 + 7 * i)}-{chr(0xE000 + i)}]" for i in range(600))},
    "names": {"properties": {f"{i * 7919:0190}"[::-1]: True for i in range(500)}, "additionalProperties": {}},
}


@pytest.mark.parametrize("name", LARGE)
def test_grammars_have_a_size_whatever_they_are_made_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MOST_PARTS", 20_000)
    made = 0
    begin = expressions.Expression.__init__

    def counted(self: Any, *places: int) -> None:
        nonlocal made
        made += 1 + sum(places)
        begin(self, *places)

    monkeypatch.setattr(expressions.Expression, "__init__", counted)
    with pytest.raises(ValueError, match="the schema is too large: the grammar has more than 20000 parts"):
        json_grammar(LARGE[name])
    assert 20_000 < made < 22_000
    tool = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^.[^a]{2}$"}}}
    with pytest.raises(ValueError, match="the tools are too large"):
        FORMS[0].grammar({f"t{i}": tool for i in range(200)})
    json_grammar(tool)  # the next one has a size of its own


def test_what_is_used_often_is_made_once() -> None:
    dots = {"type": "array", "prefixItems": [{"type": "string", "pattern": "^" + ".[^a]\\d" * 500}] * 20}
    assert accepts(json_grammar(dots), "[]")


def test_references_are_pointers_in_a_uri() -> None:
    schema = {"$defs": {"a%b": {"const": 1}, "a%25b": {"const": 2}, "c d/~": {"const": 3}}}
    assert accepts(json_grammar({**schema, "$ref": "#/$defs/a%25b"}), "1")
    assert accepts(json_grammar({**schema, "$ref": "#/$defs/a%2525b"}), "2")
    assert accepts(json_grammar({**schema, "$ref": "#/$defs/c%20d~1~0"}), "3")
    assert accepts(json_grammar({"properties": {"$id": {"const": 1}}, "$id": "urn:of-the-whole"}), '{"$id":1}')


@pytest.mark.parametrize(
    "schema", [{"properties": {f"p{i}": True for i in range(5000)}}, {"pattern": "^((a{0,60}){0,60}){0,60}$"}]
)
def test_what_would_take_long_to_follow_is_refused(schema: Any) -> None:
    with pytest.raises(AmbiguousError, match="too ambiguous"):
        written(json_format(TOKENIZER, schema).constraint(), 0)


def test_the_work_for_a_token_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    form = json_format(TOKENIZER, {"pattern": "^.*.*.*.*.*.*.*.*.*.*a.{0,500}$"})
    monkeypatch.setattr("npumatmul.llm.constrain.automaton.MOST_WORK", 2000)
    with pytest.raises(AmbiguousError, match="too ambiguous"):
        written(form.constraint(), 0)


def test_many_values_are_no_more_ambiguous_than_few() -> None:
    grammar = json_grammar({"enum": [f"k{i}" for i in range(20_000)] + [7, 70, "k"]})
    automaton = Automaton(grammar)
    state = automaton.after(automaton.start, b'"k1')
    assert len(state) < 20
    for text, is_one in (
        ('"k19999"', True),
        ('"k20000"', False),
        ("7", True),
        ("70", True),
        ('"k"', True),
        ("77", False),
    ):
        assert (None in automaton.after(automaton.start, text.encode())) == is_one


def test_tokens_that_must_not_follow_are_refused() -> None:
    constraint = json_format(TOKENIZER, {"const": "a"}).constraint()
    end, control = TOKENIZER.vocab_size - 1, TOKENIZER.vocab_size - 2
    for wrong in (ord("x"), end, control):
        with pytest.raises(ValueError, match="must not follow"):
            constraint.accept(wrong)
    for right in b'"a"':
        assert not constraint.complete
        constraint.accept(right)
    assert constraint.complete
    assert constraint.finished
    constraint.accept(end)
    with pytest.raises(ValueError, match="has ended"):
        constraint.accept(end)


def test_a_number_may_end_or_go_on() -> None:
    constraint = json_format(TOKENIZER, {"type": "integer"}).constraint()
    constraint.accept(ord("4"))
    logits = np.zeros(TOKENIZER.vocab_size, np.float32)
    constraint.allowed(logits)
    allowed = set(np.flatnonzero(logits == 0).tolist())
    assert allowed == {*range(0x30, 0x3A), TOKENIZER.vocab_size - 1}
    assert constraint.complete
    assert not constraint.finished


def test_a_vocabulary_that_cannot_go_on_is_told() -> None:
    few = BaseTokenizer(_Engine([b"{", b"<end>"]), ["{", "<end>"], SpecialTokens(eos_id=1, stop_ids=frozenset({1})))
    constraint = json_format(few).constraint()
    constraint.accept(0)
    with pytest.raises(ModelError, match="no token"):
        constraint.allowed(np.zeros(2, np.float32))
    endless = BaseTokenizer(_Engine([b"{", b"}"]), ["{", "}"], SpecialTokens())
    with pytest.raises(ModelError, match="no token that ends"):
        json_format(endless)


def test_masks_are_what_following_each_token_says() -> None:
    form = json_format(TOKENIZER, SCHEMAS["person"])
    for seed in range(5):
        constraint = form.constraint()
        chance = np.random.default_rng(seed)
        for _ in range(30):
            logits = chance.normal(size=TOKENIZER.vocab_size).astype(np.float32)
            constraint.allowed(logits)
            state = constraint._state
            for token in range(TOKENIZER.vocab_size - 1):
                assert bool(np.isfinite(logits[token])) == bool(form.after(state, token)), token
            constraint.accept(int(logits.argmax()))
            if constraint.finished:
                break


def test_states_are_forgotten_and_answers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npumatmul.llm.constrain.automaton.MOST_STATES", 8)
    monkeypatch.setattr("npumatmul.llm.constrain.constraint.MOST_MASKS", 2)
    form = json_format(TOKENIZER)
    for seed in range(5):
        text = written(form.constraint(), seed)
        assert text is None or json.loads(text) is not None


def test_a_mask_of_a_large_vocabulary_costs_a_few_rows_of_the_table() -> None:
    """150,000 tokens: what is worked out byte by byte in Python is counted, not the tokens."""
    chance = random.Random(0)
    letters = b'abcdefghijklmnopqrstuvwxyz ABC",:{}[]0123456789\n'
    texts = sorted({bytes(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(150_000)})
    tokenizer = tokenizer_of(texts)
    assert tokenizer.vocab_size > 140_000
    form = json_format(tokenizer)
    rows = 0
    automaton = form._automaton
    original = automaton._row

    def counted(state: Any) -> Any:
        nonlocal rows
        rows += 1
        return original(state)

    automaton._row = counted  # type: ignore[method-assign]
    began = time.perf_counter()
    constraint = form.constraint()
    for byte in b'{"some text':
        constraint.allowed(np.zeros(tokenizer.vocab_size, np.float32))
        constraint.accept(byte)
    print(f"{rows} rows, {time.perf_counter() - began:.3f} s for 11 tokens")
    first = rows
    assert first < 3000
    again = form.constraint()
    for byte in b'{"other text':
        again.allowed(np.zeros(tokenizer.vocab_size, np.float32))
        again.accept(byte)
    assert rows == first, "what is known is not worked out again"


def test_space_in_front_of_an_answer_is_allowed() -> None:
    assert accepts(json_grammar({"const": 1}), " 1")
    assert isinstance(json_grammar({"const": 1}), Sequence)
