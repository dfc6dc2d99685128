"""Messages of a conversation as chat templates take them, out of what clients send."""

from __future__ import annotations

import json
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.llm.tokenizers.protocol import not_characters
from npumatmul.server.errors import ApiError
from npumatmul.server.fields import Fields

__all__ = ["checked_tools", "messages_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_TOOLS = 128


def messages_of(given: list[Any] | None, *, ollama: bool = False) -> list[dict[str, Any]]:
    """Messages of a request, checked.

    Raises
    ------
    ApiError
        If there are none, or one is malformed or has something that is not supported.
    """
    if not given:
        raise ApiError(400, "messages is empty: a conversation has a message that is to be answered", param="messages")
    made = []
    for i, each in enumerate(given):
        where = f"messages[{i}]"
        if not isinstance(each, dict):
            raise ApiError(400, f"{where} is {shown(each)}; it must be an object", param=where)
        made.append(_message(Fields(each, where), ollama))
    return made


def _message(fields: Fields, ollama: bool) -> dict[str, Any]:
    role = fields.text("role")
    if role not in ROLES:
        raise fields.wrong("role", f"is {shown(role)}; it must be one of {', '.join(ROLES)}")
    fields.pass_over("refusal", "annotations", "reasoning_content", "thinking")  # of answers that are sent back
    fields.refuse("images", "is not taken: the models served here read texts", unless=([],))
    fields.refuse("audio", "is not taken: the models served here read texts")
    content = _content(fields)
    made: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content or ""}
    calls = fields.entries("tool_calls", MOST_TOOLS) if role == "assistant" else None
    if calls:
        made["tool_calls"] = [_call(each, f"messages.tool_calls[{n}]", ollama) for n, each in enumerate(calls)]
    elif content is None:
        raise fields.wrong("content", "is missing")
    for name in ("name", "tool_call_id", "tool_name"):
        value = fields.text(name)
        if value is not None:
            made["name" if name == "tool_name" else name] = value
    fields.finish()
    return made


def _content(fields: Fields) -> str | None:
    content = fields.any("content")
    if not isinstance(content, list):
        return fields.text("content")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
            raise fields.wrong("content", f"has a part of the kind {shown(kind)}; texts are taken, and nothing else")
        problem = not_characters(part["text"])
        if problem:
            raise fields.wrong("content", problem)
        texts.append(part["text"])
    return "\n".join(texts)


def _call(given: object, where: str, ollama: bool) -> dict[str, Any]:
    """A call that an answer had, with arguments as an object, which templates write as they need."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where} is {shown(given)}; it must have a function with a name", param="messages")
    arguments = function.get("arguments", {} if ollama else "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise ApiError(400, f"{where} has arguments that are not JSON", param="messages") from None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where} has arguments that are no object", param="messages")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(given.get("id"), str):
        made["id"] = given["id"]
    return made


def checked_tools(given: list[Any] | None) -> list[dict[str, Any]]:
    """Tools of a request.

    Raises
    ------
    ApiError
        If one is malformed, or two have one name.
    """
    made = []
    names = set()
    for i, tool in enumerate(given or []):
        where = f"tools[{i}]"
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or tool.get("type", "function") != "function" or not isinstance(function, dict):
            raise ApiError(400, f"{where} is {shown(tool)}; tools are functions: type and function", param="tools")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name or not_characters(name) or name in names:
            raise ApiError(400, f"{where} is called {shown(name)}; tools have names, each its own", param="tools")
        if parameters is not None and not isinstance(parameters, dict):
            raise ApiError(400, f"{where} has parameters {shown(parameters)}; they are a JSON schema", param="tools")
        names.add(name)
        made.append({"type": "function", "function": function})
    return made
