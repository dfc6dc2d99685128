"""``/v1/chat/completions``."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import npumatmul
from npumatmul.files.reading import shown
from npumatmul.llm import Format, GenerationStats, Piece, Tokenizer
from npumatmul.server.answers import Ask, Part, answering, ended_by
from npumatmul.server.exchange import Exchange
from npumatmul.server.fields import Fields
from npumatmul.server.messages import checked_tools, messages_of
from npumatmul.server.sampling import sampling_of
from npumatmul.server.service import Served, Service
from npumatmul.server.tools import ToolCall, ToolForm, ToolReader, described, form_of

__all__ = ["ChatCompletions", "tokens_used"]

MOST_LOGPROBS = 20
MOST_TOOLS = 128


@dataclass(frozen=True)
class _Request:
    served: Served
    ask: Ask
    choices: int
    stream: bool
    usage: bool
    logprobs: bool
    tools: ToolForm | None
    parallel_calls: bool


@dataclass
class _Choice:
    """What one answer is so far."""

    reader: ToolReader | None
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    reason: str | None = None


class ChatCompletions:
    """Answers conversations.

    Parameters
    ----------
    service : Service
        Models and the desk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        request = self._request(Fields(exchange.json()))
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(time.time()),
            "model": request.served.name,
            "system_fingerprint": f"npumatmul-{npumatmul.__version__}",
        }
        choices = [_Choice(ToolReader(request.tools) if request.tools else None) for _ in range(request.choices)]
        ended: list[GenerationStats] = []
        begun: set[int] = set()
        work = answering([request.ask], request.choices, self._service.settings)
        async with self._service.desk.job(work) as job:
            async for part in job:
                choice = choices[part.number]
                text, calls = self._take(request, choice, part)
                if part.stats is not None:
                    ended.append(part.stats)
                    self._service.count(part.stats)
                if request.stream:
                    if not begun:
                        await exchange.stream_events()
                    if part.number not in begun:
                        await exchange.part(_chunk(request, head, part.number, {"role": "assistant", "content": ""}))
                    begun.add(part.number)
                    told = choice.logprobs[-1:] if request.logprobs and _counts(part, request) else []
                    for delta in _deltas(choice, text, calls) or ([{"content": ""}] if told else []):
                        await exchange.part(_chunk(request, head, part.number, delta, told))
                        told = []
                    if choice.reason is not None:
                        await exchange.part(_chunk(request, head, part.number, {}, reason=choice.reason))
        if not request.stream:
            made = [_message(i, each, request) for i, each in enumerate(choices)]
            await exchange.reply({**head, "choices": made, "usage": tokens_used(ended)})
            return
        if request.usage:
            await exchange.part({**head, "choices": [], "usage": tokens_used(ended)})
        await exchange.end(b"data: [DONE]\n\n")

    def _take(self, request: _Request, choice: _Choice, part: Part) -> tuple[str, list[ToolCall]]:
        """Add a part to its answer; what is new in it."""
        text, calls = part.text, list[ToolCall]()
        if choice.reader is not None:
            text, calls = choice.reader.push(text)
            if part.stats is not None:
                rest, more = choice.reader.finish()
                text, calls = text + rest, calls + more
        if not request.parallel_calls:
            calls = calls[: max(0, 1 - len(choice.calls))]
        if part.stats is not None:
            choice.reason = "tool_calls" if choice.calls or calls else ended_by(part.stats)
        choice.text += text
        choice.calls += calls
        if request.logprobs and _counts(part, request):
            choice.logprobs.append(_logprob(part.piece, request.served.model.tokenizer))
        return text, calls

    def _request(self, fields: Fields) -> _Request:
        settings = self._service.settings
        served = self._service.writer(fields.text("model"))
        stream = fields.flag("stream", False)
        options = fields.mapping("stream_options")
        usage = False
        if options is not None:
            if not stream:
                raise fields.wrong("stream_options", "goes with stream")
            inner = Fields(options, "stream_options")
            usage = inner.flag("include_usage", False)
            inner.pass_over("include_obfuscation")
            inner.finish()
        wanted = fields.flag("logprobs", False)
        top = fields.count("top_logprobs", None, 0, MOST_LOGPROBS)
        if top is not None and not wanted:
            raise fields.wrong("top_logprobs", "goes with logprobs")
        sampling = sampling_of(fields, settings, (top or 0) if wanted else None)
        most = fields.count("max_completion_tokens", None, 1, 1 << 31)
        older = fields.count("max_tokens", None, 1, 1 << 31)
        variables = dict(fields.mapping("chat_template_kwargs") or {})
        effort = fields.text("reasoning_effort")
        if effort is not None:
            variables["reasoning_effort"] = effort
        messages = messages_of(fields.entries("messages", settings.max_messages))
        form, tools, calls = self._format(fields, served)
        parallel = fields.flag("parallel_tool_calls", True)
        fields.refuse("modalities", "is not taken: answers are texts", unless=(["text"],))
        for name in ("functions", "function_call"):
            fields.refuse(name, "is what tools and tool_choice were called before: use those")
        for name in ("audio", "prediction", "web_search_options"):
            fields.refuse(name, "is not supported")
        fields.refuse("verbosity", "is not supported", unless=("medium",))
        fields.finish()
        ask = Ask(
            served.model,
            messages,
            older if most is None else most,
            sampling.options,
            tools=tools,
            variables=variables or None,
            seed=sampling.seed,
            penalties=sampling.penalties,
            bias=sampling.bias,
            form=form,
        )
        return _Request(served, ask, sampling.choices, stream, usage, wanted, calls, parallel)

    def _format(
        self, fields: Fields, served: Served
    ) -> tuple[Callable[[], Format] | None, list[dict[str, Any]] | None, ToolForm | None]:
        """The form that the answer has to have, and tools with how calls are written."""
        service = self._service
        form = response_format(fields, service, served)
        tools = checked_tools(fields.entries("tools", MOST_TOOLS))
        choice = fields.any("tool_choice", "auto")
        if choice == "none" or not tools:
            if choice not in ("none", "auto"):
                raise fields.wrong("tool_choice", "goes with tools")
            return form, None, None
        calls = form_of(served.template)
        if calls is None:
            raise fields.wrong("tools", f"is not taken: the chat template of {served.name!r} knows no tools")
        if choice == "auto":
            return form, tools, calls
        schemas = described(tools)
        if choice != "required":
            function = choice.get("function") if isinstance(choice, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if name not in schemas:
                raise fields.wrong(
                    "tool_choice", f"is {shown(choice)}; it must be none, auto, required or a function among the tools"
                )
            schemas = {name: schemas[name]}
        if form is not None:
            raise fields.wrong("tool_choice", "asks for a call, and response_format for something else: leave one out")
        key = f"{calls.name} {json.dumps(schemas)}"
        return lambda: service.format_by(served, key, lambda: calls.grammar(schemas)), tools, calls


def response_format(fields: Fields, service: Service, served: Served) -> Callable[[], Format] | None:
    """What makes the format that a request asks for; None if it asks for texts."""
    given = fields.mapping("response_format")
    if given is None:
        return None
    inner = Fields(given, "response_format")
    kind = inner.text("type")
    schema: object = None
    if kind == "json_schema":
        described = inner.mapping("json_schema")
        if described is None or not isinstance(described.get("schema"), dict):
            raise inner.wrong("json_schema", "is missing, or has no schema")
        schema = described["schema"]
    elif kind == "json_object":
        schema = inner.mapping("schema")  # as llama.cpp's server takes one
    elif kind != "text":
        raise inner.wrong("type", f"is {shown(kind)}; it must be text, json_object or json_schema")
    inner.finish()
    return None if kind == "text" else lambda: service.format_of(served, schema)


def _counts(part: Part, request: _Request) -> bool:
    """Whether a token is one of the answer, and none that ends it."""
    return part.piece.token not in request.served.model.tokenizer.stop_ids


def _chunk(
    request: _Request,
    head: dict[str, Any],
    index: int,
    delta: dict[str, Any],
    logprobs: list[dict[str, Any]] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    told = {"content": logprobs, "refusal": None} if logprobs else None
    choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
    return {**head, "choices": [choice], **({"usage": None} if request.usage else {})}


def _deltas(choice: _Choice, text: str, calls: list[ToolCall]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"content": text}] if text else []
    before = len(choice.calls) - len(calls)
    deltas += [{"tool_calls": [{"index": before + i, **_call(each)}]} for i, each in enumerate(calls)]
    return deltas


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _message(index: int, choice: _Choice, request: _Request) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message |= {"content": choice.text.strip() or None, "tool_calls": [_call(each) for each in choice.calls]}
    logprobs = {"content": choice.logprobs, "refusal": None} if request.logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}


def _logprob(piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
    def told(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token, skip_special=False)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}

    assert piece.logprob is not None
    return {**told(piece.token, piece.logprob), "top_logprobs": [told(*each) for each in piece.top_logprobs]}


def tokens_used(ended: list[GenerationStats], prompts: int = 1) -> dict[str, Any]:
    """OpenAI's counts: a prompt counts once, however many answers it has."""
    each = len(ended) // prompts if prompts else 1
    read = sum(stats.prompt_tokens for stats in ended[:: max(each, 1)])
    cached = sum(stats.cached_tokens for stats in ended[:: max(each, 1)])
    written = sum(stats.generated_tokens for stats in ended)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
