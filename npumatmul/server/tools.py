"""Calls of tools in what a model writes, in the forms that models were trained to write."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npumatmul.llm.constrain.expressions import Choice, Expression, bounded, literal
from npumatmul.llm.constrain.expressions import Sequence as InOrder
from npumatmul.llm.constrain.json_values import spelled
from npumatmul.llm.constrain.schema import json_grammar

__all__ = ["FORMS", "ToolCall", "ToolForm", "ToolReader", "form_of"]

MOST_HELD = 1 << 20  # characters of a call


@dataclass(frozen=True)
class ToolCall:
    """A call.

    Attributes
    ----------
    name : str
        Of the tool.
    arguments : dict
        By name.
    id : str
        Of nine letters and digits, as the strictest of templates wants them.
    """

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class ToolForm:
    """How a model writes calls.

    Attributes
    ----------
    name : str
        Who wrote so first.
    begin, end : str
        What stands around a call; an empty end means that all that follows is calls.
    key : str
        What arguments are called.
    marks : tuple of str
        What chat templates have that ask for this form.
    bare : bool
        Whether an answer that begins with a brace is a call without what begins it.
    """

    name: str
    begin: str
    end: str
    key: str
    marks: tuple[str, ...]
    bare: bool = False

    def grammar(self, tools: Mapping[str, Mapping[str, Any]]) -> Expression:
        """One call of one of some tools, with arguments that satisfy their schemas."""
        ways = []
        with bounded("the tools are"):
            for name, schema in tools.items():
                head = InOrder(literal(b'{"name": '), spelled(name), literal(f', "{self.key}":'.encode()))
                ways.append(InOrder(head, json_grammar({"type": "object", **schema}), literal(b"}")))
        opened, closed = {"hermes": ("\n", "\n"), "mistral": ("[", "]")}.get(self.name, ("", ""))
        begin = "" if self.bare else self.begin
        return InOrder(literal((begin + opened).encode()), Choice(*ways), literal((closed + self.end).encode()))


FORMS = (
    ToolForm("hermes", "<tool_call>", "</tool_call>", "arguments", ("<tool_call>",)),
    ToolForm("mistral", "[TOOL_CALLS]", "", "arguments", ("[TOOL_CALLS]",)),
    ToolForm("llama", "<|python_tag|>", "", "parameters", ("<|python_tag|>", '"parameters"'), bare=True),
)


def form_of(template: str | None) -> ToolForm | None:
    """How a model writes calls, by its chat template; None if the template takes no tools."""
    if template is None or "tools" not in template:
        return None
    for form in FORMS:
        if any(mark in template for mark in form.marks):
            return form
    return FORMS[0]


class ToolReader:
    """Tells calls of tools from the rest of an answer, as it comes.

    Parameters
    ----------
    form : ToolForm
        How calls are written.
    """

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._held = ""
        self._inside = False
        self._begun = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; return what certainly is none of a call, and calls that are complete."""
        form, content = self._form, ""
        calls: list[ToolCall] = []
        self._held += text
        while True:
            if not self._inside:
                if form.bare and not self._begun:
                    begun = self._held.lstrip()
                    if not begun:
                        return content, calls
                    self._begun = True
                    if begun.startswith("{"):
                        self._inside = True
                        continue
                before, mark, after = self._held.partition(form.begin)
                if not mark:
                    kept = _overlap(self._held, form.begin)
                    content += self._held[: len(self._held) - kept]
                    self._held = self._held[len(self._held) - kept :]
                    return content, calls
                content, self._held, self._inside = content + before, after, True
            if not form.end or (at := self._held.find(form.end)) < 0:
                return content, calls
            inside, self._held = self._held[:at], self._held[at + len(form.end) :]
            self._inside = False
            found = self._calls(inside)
            if found is None:
                content += form.begin + inside + form.end
            else:
                calls += found
                self._held = self._held.lstrip()

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What is left when the answer has ended."""
        rest, self._held = self._held, ""
        if not self._inside:
            return rest, []
        calls = self._calls(rest)
        if calls is None:
            begin = "" if self._form.bare and rest.lstrip().startswith("{") else self._form.begin
            return begin + rest, []
        return "", calls

    def _calls(self, text: str) -> list[ToolCall] | None:
        """The calls in a text; None if it is something else."""
        found: list[ToolCall] = []
        decoder, at = json.JSONDecoder(), 0
        try:
            while at < len(text):
                if text[at] in " \t\r\n;,":
                    at += 1
                elif text[at] in "{[":
                    value, at = decoder.raw_decode(text, at)
                    for each in value if isinstance(value, list) else [value]:
                        found.append(_call(each, None))
                else:  # a name, and its arguments
                    brace = text.index("{", at)
                    name = text[at:brace].replace("[ARGS]", "").partition("[CALL_ID]")[0].strip()
                    value, at = decoder.raw_decode(text, brace)
                    found.append(_call(value, name))
                    if text.startswith(self._form.begin, at):
                        at += len(self._form.begin)
        except (ValueError, RecursionError):
            return None
        return found or None


def _call(value: object, name: str | None) -> ToolCall:
    if not isinstance(value, dict):
        raise ValueError("no object")
    arguments: object = value
    if name is None:
        name = value.get("name")
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("no call")
    given = value.get("id") if arguments is not value else None
    return ToolCall(name, arguments, given if isinstance(given, str) and given else new_id())


def new_id() -> str:
    """A name for a call."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text begin a mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def described(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Schemas of the parameters of tools, by their names."""
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
