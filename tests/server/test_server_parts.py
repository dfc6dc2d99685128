"""Parts of the server alone: what is read of answers, of fields, and of headers."""

from __future__ import annotations

from typing import Any

import jsonschema
import numpy as np
import pytest

from npumatmul.llm.constrain.automaton import Automaton
from npumatmul.server import Settings
from npumatmul.server.errors import ApiError
from npumatmul.server.fields import Fields
from npumatmul.server.gate import Gate
from npumatmul.server.messages import checked_tools, messages_of
from npumatmul.server.rules import Penalties, Rules
from npumatmul.server.thinking import ThoughtReader
from npumatmul.server.tools import FORMS, ToolReader, form_of

HERMES, MISTRAL, LLAMA = FORMS
CALLS = [
    (HERMES, 'Hi <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> and', "Hi and", [("f", {"a": 1})]),
    (HERMES, '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', "", [("f", {"a": 1})]),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, "<tool_call>no call</tool_call>!", "<tool_call>no call</tool_call>!", []),
    (HERMES, '<tool_call>{"name": "f"', '<tool_call>{"name": "f"', []),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}', "", [("f", {})]),
    (HERMES, '<tool_call>[{"name": 3}]</tool_call>', '<tool_call>[{"name": 3}]</tool_call>', []),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g"}]', "", [("f", {}), ("g", {})]),
    (MISTRAL, 'x[TOOL_CALLS]f[ARGS]{"a": {"b": 2}}[TOOL_CALLS]g{}', "x", [("f", {"a": {"b": 2}}), ("g", {})]),
    (MISTRAL, "[TOOL", "[TOOL", []),
    (LLAMA, ' {"name": "f", "parameters": {"a": [1]}}', "", [("f", {"a": [1]})]),
    (LLAMA, '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", {}), ("g", {})]),
    (LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
    (LLAMA, '{"x": 1}', '{"x": 1}', []),
    (LLAMA, 'It is {"name": "f"}', 'It is {"name": "f"}', []),
    (LLAMA, "  ", "  ", []),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("form", "text", "content", "calls"), CALLS)
def test_calls_are_found_however_a_text_is_cut(form: Any, text: str, content: str, calls: Any, size: int) -> None:
    reader = ToolReader(form)
    said, found = "", []
    for i in range(0, len(text), size):
        more, new = reader.push(text[i : i + size])
        said, found = said + more, found + new
    more, new = reader.finish()
    said, found = said + more, found + new
    assert said.replace("  ", " ") == content.replace("  ", " ")
    assert [(call.name, call.arguments) for call in found] == calls
    assert all(len(call.id) == 9 and call.id.isalnum() for call in found)


def test_deep_calls_are_text() -> None:
    text = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    reader = ToolReader(HERMES)
    assert reader.push(text) == (text, [])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, None),
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}', LLAMA),
        ("{% if tools %}{{ tools }}{% endif %}", HERMES),
    ],
)
def test_forms_are_known_by_templates(template: str | None, form: Any) -> None:
    assert form_of(template) is form


@pytest.mark.parametrize("form", FORMS)
def test_what_a_grammar_of_calls_allows_is_read_as_a_call(form: Any) -> None:
    schema = {"properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": False}
    automaton = Automaton(form.grammar({"f": schema, "g": {}}))
    data, state = b"", automaton.start
    while None not in state:
        for byte in b'[]}f7"' + bytes(range(256)):  # the first that is allowed, rather one that ends something
            after = automaton.after(state, bytes([byte]))
            if after:
                data, state = data + bytes([byte]), after
                break
    reader = ToolReader(form)
    before, first = reader.push(data.decode())
    after_it, second = reader.finish()
    (call,) = first + second
    assert (before + after_it).strip() == ""
    assert (call.name, call.arguments) == ("f", {"a": 7})
    jsonschema.validate(call.arguments, schema)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nhm, 2\n</think>\n\nTwo.", "hm, 2", "Two."),
        ("\n<think></think>Two", "", "Two"),
        ("<think>\n\n</think>\n\nTwo", "", "Two"),
        ("<think>a < b </thin", "a < b </thin", ""),
        ("<thing> Two", "", "<thing> Two"),
        ("Two <think>", "", "Two <think>"),
        ("<thi", "", "<thi"),
        ("  Two ", "", "  Two "),
        ("<think>", "", ""),
    ],
)
def test_thoughts_are_found_however_a_text_is_cut(text: str, thoughts: str, answer: str, size: int) -> None:
    reader = ThoughtReader()
    parts = [reader.push(text[i : i + size]) for i in range(0, len(text), size)] + [reader.finish()]
    assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (thoughts, answer)


def test_penalties_are_those_of_their_formulas() -> None:
    logits = np.array([2.0, -1.0, 0.5, 3.0, 1.0], np.float32)
    rules = Rules(Penalties(presence=0.5, frequency=0.25), {4: 10.0}, None)
    rules.read([1, 1])
    for token in (0, 2, 0):
        rules.accept(token)
    scores = logits.copy()
    rules.allowed(scores)
    assert scores.tolist() == [2.0 - 0.5 - 2 * 0.25, -1.0, 0.5 - 0.5 - 0.25, 3.0, 11.0]
    rules = Rules(Penalties(repetition=2.0, window=3), {}, None)
    rules.read([3, 1, 0])
    rules.accept(2)  # 3 is out of the window by now
    scores = logits.copy()
    rules.allowed(scores)
    assert scores.tolist() == [1.0, -2.0, 0.25, 3.0, 1.0]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda f: f.text("x"), "x is 3; it must be a text"),
        (lambda f: f.flag("x", False), "x is 3; it must be true or false"),
        (lambda f: f.count("x", None, 4, 9), "x is 3; it must be from 4 to 9"),
        (lambda f: f.number("x", 1.0, 0, 2), "x is 3; it must be from 0 to 2"),
        (lambda f: f.count("y", None, 0, 9), "y is True; it must be a whole number"),
        (lambda f: f.count("z", None, 0, 9), "z is 1.5; it must be a whole number"),
        (lambda f: f.number("y", 1.0, 0, 2), "y is True; it must be a number"),
        (lambda f: f.entries("x", 3), "x is 3; it must be a list"),
        (lambda f: f.entries("l", 1), "l has 2 entries; at most 1 are taken"),
        (lambda f: f.mapping("x"), "x is 3; it must be an object"),
        (lambda f: f.texts("l", 9), "l is \\[1, 2\\]; it must be a text or a list of texts"),
        (lambda f: f.texts("s", 9), "s has a text that holds half a surrogate pair"),
        (lambda f: f.refuse("x", "is not supported", unless=(1,)), "x is not supported"),
        (lambda f: f.finish(), "x is not known here"),
    ],
)
def test_fields_are_read_by_their_types(read: Any, said: str) -> None:
    with pytest.raises(ApiError, match=said) as error:
        read(Fields({"x": 3, "y": True, "z": 1.5, "l": [1, 2], "s": ["\ud800"]}))
    assert error.value.status == 400
    with pytest.raises(ApiError, match=r"inner\.x"):
        Fields({"x": 3}, "inner").text("x")


def test_null_is_what_was_left_out() -> None:
    fields = Fields({"a": None, "b": 2.0})
    assert fields.text("a", "default") == "default"
    assert fields.count("b", None, 0, 9) == 2
    fields.finish()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("text", "it must be an object"),
        ({"role": "robot", "content": "x"}, "role is 'robot'"),
        ({"content": "x"}, "role is None"),
        ({"role": "user"}, "content is missing"),
        ({"role": "user", "content": 3}, "content is 3"),
        ({"role": "user", "content": "\udc80"}, "not UTF-8"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "user", "content": "x", "images": ["aaaa"]}, "images is not taken"),
        ({"role": "user", "content": "x", "extra": 1}, "extra is not known"),
        ({"role": "user", "content": "x", "tool_calls": []}, "tool_calls is not known"),
        ({"role": "assistant", "tool_calls": [3]}, "function with a name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "no object"),
    ],
)
def test_messages_that_are_malformed_are_named(message: Any, said: str) -> None:
    with pytest.raises(ApiError, match=r"messages.*") as error:
        messages_of([message])
    assert said in error.value.message
    with pytest.raises(ApiError, match="empty"):
        messages_of([])


def test_tools_that_are_malformed_are_named() -> None:
    good = {"type": "function", "function": {"name": "f"}}
    assert checked_tools([good]) == [good]
    for wrong in ([3], [{"type": "x", "function": {}}], [{"function": {}}], [good, good]):
        with pytest.raises(ApiError, match=r"tools\["):
            checked_tools(wrong)
    with pytest.raises(ApiError, match="JSON schema"):
        checked_tools([{"function": {"name": "f", "parameters": 3}}])


@pytest.mark.parametrize(
    ("host", "settings", "headers", "status"),
    [
        ("127.0.0.1", {}, {"host": "localhost:80"}, None),
        ("127.0.0.1", {}, {"host": "127.0.0.1:80"}, None),
        ("::1", {}, {"host": "[::1]:80"}, None),
        ("127.0.0.1", {}, {"host": "evil.example:80"}, 403),
        ("127.0.0.1", {"hosts": ("my.box",)}, {"host": "My.Box"}, None),
        ("127.0.0.1", {}, {"host": "[::1"}, 403),
        ("0.0.0.0", {}, {"host": "board.lan"}, None),
        ("127.0.0.1", {}, {"host": "localhost:80", "origin": "http://localhost:80"}, None),
        ("127.0.0.1", {}, {"host": "localhost:80", "origin": "https://evil.example"}, 403),
        ("127.0.0.1", {}, {"host": "localhost:80", "origin": "null"}, 403),
        ("127.0.0.1", {"origins": ("https://a.example",)}, {"host": "localhost", "origin": "https://a.example"}, None),
        ("127.0.0.1", {"origins": ("*",)}, {"host": "localhost", "origin": "https://b.example"}, None),
        ("127.0.0.1", {"api_key": "k"}, {"host": "localhost"}, 401),
        ("127.0.0.1", {"api_key": "k"}, {"host": "localhost", "authorization": "Bearer k"}, None),
        ("127.0.0.1", {"api_key": "k"}, {"host": "localhost", "authorization": "k"}, 401),
    ],
)  # fmt: skip
def test_who_may_ask(host: str, settings: Any, headers: dict[str, str], status: int | None) -> None:
    gate = Gate(Settings(host=host, **settings))
    given = {name.encode(): value.encode() for name, value in headers.items()}
    if status is None:
        gate.check(given)
    else:
        with pytest.raises(ApiError) as error:
            gate.check(given)
        assert error.value.status == status


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"api_key": ""},
        {"api_key": " x"},
        {"api_key": "é"},
        {"parallel": 0},
        {"queue": -1},
        {"max_tokens": 0},
        {"read_timeout": 0},
        {"shutdown_timeout": -1},
        {"control_texts": "no"},
        {"pooling": "most"},
        {"speculation": "always"},
        {"max_body": 1},
    ],
)
def test_settings_are_checked(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
