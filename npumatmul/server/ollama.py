"""Ollama's API: chats, continuations and embeddings in lines of JSON, and what its clients ask of models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import npumatmul
from npumatmul.files.reading import shown
from npumatmul.llm import Format, GenerationStats
from npumatmul.llm.run.embedding import normalized
from npumatmul.server.answers import Ask, answering, ended_by
from npumatmul.server.errors import ApiError
from npumatmul.server.exchange import Exchange
from npumatmul.server.fields import Fields
from npumatmul.server.messages import checked_tools, messages_of
from npumatmul.server.openai_texts import embedding_work
from npumatmul.server.rules import Penalties
from npumatmul.server.sampling import MOST_SEED, MOST_STOPS
from npumatmul.server.service import Served, Service
from npumatmul.server.thinking import ThoughtReader
from npumatmul.server.tools import ToolCall, ToolReader, form_of

__all__ = ["Ollama", "ollama_error"]

MOST_TOOLS = 128
#: Options of Ollama's runner: how it computes, and nothing of what.
OF_THE_RUNNER = (
    "f16_kv", "low_vram", "main_gpu", "num_batch", "num_gpu", "num_keep", "num_thread", "numa", "use_mlock", "use_mmap",
    "vocab_only", "penalize_newline",
)  # fmt: skip


@dataclass(frozen=True)
class _Options:
    """What `options` says."""

    options: dict[str, Any]
    seed: int | None
    max_tokens: int | None
    penalties: Penalties


class Ollama:
    """Ollama's paths; each is a method.

    Parameters
    ----------
    service : Service
        Models and the desk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def version(self, exchange: Exchange) -> None:
        await exchange.reply({"version": npumatmul.__version__})

    async def tags(self, exchange: Exchange) -> None:
        await exchange.reply({"models": [_entry(each) for each in self._service.models.values()]})

    async def running(self, exchange: Exchange) -> None:
        forever = "9999-12-31T23:59:59Z"
        made = [
            {**_entry(each), "expires_at": forever, "size_vram": each.npu_bytes}
            for each in self._service.models.values()
        ]
        await exchange.reply({"models": made})

    async def show(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        name = fields.text("model") or fields.text("name")
        fields.pass_over("model", "name", "verbose", "system", "template", "options")
        fields.finish()
        served = self._service.served(name)
        model = served.model
        able = {"writer": ["completion"], "encoder": ["embedding"], "hearer": ["transcription"]}[served.kind]
        if form_of(served.template) is not None:
            able.append("tools")
        await exchange.reply(
            {
                "modelfile": f"# {model.path.name}, served by npumatmul",
                "parameters": "",
                "template": served.template or "",
                "details": _details(served),
                "model_info": {
                    "general.name": model.name,
                    "general.architecture": "npumatmul",
                    "npumatmul.context_length": model.context,
                    "npumatmul.vocab_size": model.vocab_size,
                    "npumatmul.scheme": model.scheme,
                },
                "capabilities": able,
                "modified_at": _time(served.since),
            }
        )

    async def chat(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served = self._service.writer(fields.text("model"))
        stream = fields.flag("stream", True)
        options = self._options(fields, served)
        form = self._format(fields, served)
        tools = checked_tools(fields.entries("tools", MOST_TOOLS))
        calls = form_of(served.template) if tools else None
        if tools and calls is None:
            raise fields.wrong("tools", f"is not taken: the chat template of {served.name!r} knows no tools")
        think = _think(fields)
        given = fields.entries("messages", self._service.settings.max_messages)
        fields.pass_over("keep_alive")
        fields.finish()
        if not given:
            await self._only_loaded(exchange, served, {"message": {"role": "assistant", "content": ""}})
            return
        messages = messages_of(given, ollama=True)
        ask = self._ask(served, messages, options, form, think, tools or None)
        reader = ToolReader(calls) if calls is not None else None

        def made(text: str, thoughts: str, found: list[ToolCall]) -> dict[str, Any]:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if thoughts:
                message["thinking"] = thoughts
            if found:
                message["tool_calls"] = [
                    {"function": {"name": call.name, "arguments": call.arguments}} for call in found
                ]
            return {"message": message}

        await self._answer(exchange, served, ask, stream, made, reader, think is not None)

    async def generate(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served = self._service.writer(fields.text("model"))
        stream = fields.flag("stream", True)
        options = self._options(fields, served)
        form = self._format(fields, served)
        think = _think(fields)
        prompt, system, raw = fields.text("prompt", ""), fields.text("system"), fields.flag("raw", False)
        fields.refuse("suffix", "is not supported", unless=("",))
        fields.refuse("images", "is not taken: the models served here read texts", unless=([],))
        fields.refuse("template", "is not taken: the model's own is used; raw does without", unless=("",))
        fields.refuse("context", "is not taken: send the conversation to /api/chat", unless=([],))
        fields.pass_over("keep_alive")
        fields.finish()
        if not prompt:
            await self._only_loaded(exchange, served, {"response": ""})
            return
        asked: Any = prompt
        if not raw:
            asked = [{"role": "system", "content": system}] if system else []
            asked.append({"role": "user", "content": prompt})
        elif system:
            raise fields.wrong("system", "does not go with raw")
        ask = self._ask(served, asked, options, form, think, None)

        def made(text: str, thoughts: str, _: list[ToolCall]) -> dict[str, Any]:
            return {"response": text, **({"thinking": thoughts} if thoughts else {})}

        await self._answer(exchange, served, ask, stream, made, None, think is not None)

    async def embed(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served, texts = self._texts(fields, "input")
        cut = fields.flag("truncate", True)
        dimensions = fields.count("dimensions", None, 1, 1 << 20)
        fields.finish()
        if not cut:
            longest = served.model.context
            if any(len(served.model.tokenizer.encode(text)) > longest for text in texts):
                raise ApiError(400, f"a text has more than {longest} tokens, and truncate is false")
        began = time.monotonic_ns()
        async with self._service.desk.job(embedding_work(served, texts, self._service.settings.pooling)) as job:
            rows, tokens = [item async for item in job][-1]
        if dimensions is not None and dimensions != rows.shape[1]:
            raise fields.wrong("dimensions", f"is {dimensions}; embeddings of this model have {rows.shape[1]}")
        await exchange.reply(
            {
                "model": served.name,
                "embeddings": normalized(rows).tolist(),
                "total_duration": time.monotonic_ns() - began,
                "load_duration": 0,
                "prompt_eval_count": tokens,
            }
        )

    async def embeddings(self, exchange: Exchange) -> None:
        """The older form: one text, and its embedding as the model gives it."""
        fields = Fields(exchange.json())
        served, texts = self._texts(fields, "prompt")
        fields.finish()
        if len(texts) != 1:
            raise fields.wrong("prompt", "is one text")
        async with self._service.desk.job(embedding_work(served, texts, self._service.settings.pooling)) as job:
            rows, _ = [item async for item in job][-1]
        await exchange.reply({"embedding": rows[0].tolist()})

    async def not_here(self, exchange: Exchange) -> None:
        """What changes models: those are given when the server is started."""
        raise ApiError(501, "this server serves the models that it was started with; it fetches and changes none")

    def _texts(self, fields: Fields, name: str) -> tuple[Served, list[str]]:
        served = self._service.served(fields.text("model"))
        texts = fields.texts(name, self._service.settings.max_texts)
        if not texts or not all(texts):
            raise fields.wrong(name, "is empty, or has an empty text")
        fields.pass_over("options", "keep_alive")
        return served, texts

    def _options(self, fields: Fields, served: Served) -> _Options:
        """Options by Ollama's names, with its defaults."""
        given = Fields(fields.mapping("options") or {}, "options")
        window = given.count("repeat_last_n", 64, -1, 1 << 31)
        repetition = given.number("repeat_penalty", 1.1, 0.01, 100.0)
        options: dict[str, Any] = {
            "temperature": given.number("temperature", 0.8, 0.0, 100.0),
            "top_k": given.count("top_k", 40, 0, 1 << 31),
            "top_p": given.number("top_p", 0.9, 0.0, 1.0) or 1e-6,
            "min_p": given.number("min_p", 0.0, 0.0, 1.0),
            "stop": given.texts("stop", MOST_STOPS),
        }
        most = given.count("num_predict", None, -2, 1 << 31)
        context = given.count("num_ctx", None, 1, 1 << 31)
        if context is not None and context > served.model.context:
            raise given.wrong(
                "num_ctx", f"is {context}; {served.name!r} was loaded with a context of {served.model.context}"
            )
        penalties = Penalties(
            given.number("presence_penalty", 0.0, -2.0, 2.0),
            given.number("frequency_penalty", 0.0, -2.0, 2.0),
            1.0 if window == 0 else repetition,
            None if window == -1 else window,
        )
        given.refuse("mirostat", "is not supported", unless=(0,))
        given.refuse("tfs_z", "is not supported", unless=(1, 1.0))
        given.refuse("typical_p", "is not supported", unless=(1, 1.0))
        given.pass_over("mirostat_tau", "mirostat_eta", *OF_THE_RUNNER)
        seed = given.count("seed", None, -MOST_SEED, MOST_SEED)
        given.finish()
        return _Options(options, seed, most if most is not None and most > 0 else None, penalties)

    def _format(self, fields: Fields, served: Served) -> Callable[[], Format] | None:
        given = fields.any("format")
        if given is None or given == "":
            return None
        if given != "json" and not isinstance(given, dict):
            raise fields.wrong("format", f"is {shown(given)}; it must be json or a JSON schema")
        return lambda: self._service.format_of(served, None if given == "json" else given)

    def _ask(
        self,
        served: Served,
        prompt: Any,
        options: _Options,
        form: Callable[[], Format] | None,
        think: bool | str | None,
        tools: list[dict[str, Any]] | None,
    ) -> Ask:
        variables: dict[str, object] | None = None if think is None else {"enable_thinking": think is not False}
        if isinstance(think, str):
            variables = {"enable_thinking": True, "reasoning_effort": think}
        return Ask(
            served.model,
            prompt,
            options.max_tokens,
            options.options,
            tools=tools,
            variables=variables,
            seed=options.seed,
            penalties=options.penalties,
            form=form,
        )

    async def _only_loaded(self, exchange: Exchange, served: Served, empty: dict[str, Any]) -> None:
        """What asks for nothing asks whether the model is loaded."""
        head = {"model": served.name, "created_at": _time(time.time())}
        await exchange.reply({**head, **empty, "done": True, "done_reason": "load"})

    async def _answer(
        self,
        exchange: Exchange,
        served: Served,
        ask: Ask,
        stream: bool,
        made: Callable[[str, str, list[ToolCall]], dict[str, Any]],
        reader: ToolReader | None,
        thinks: bool,
    ) -> None:
        began = time.monotonic_ns()
        thoughts = ThoughtReader() if thinks else None
        everything: tuple[list[str], list[str], list[ToolCall]] = ([], [], [])
        stats: GenerationStats | None = None
        started = False

        def head() -> dict[str, Any]:
            return {"model": served.name, "created_at": _time(time.time())}

        async with self._service.desk.job(answering([ask], 1, self._service.settings)) as job:
            async for part in job:
                thought, text = ("", part.text) if thoughts is None else thoughts.push(part.text)
                calls: list[ToolCall] = []
                if part.stats is not None:
                    stats = part.stats
                    self._service.count(stats)
                    if thoughts is not None:
                        more, rest = thoughts.finish()
                        thought, text = thought + more, text + rest
                if reader is not None:
                    text, calls = reader.push(text)
                    if part.stats is not None:
                        rest, found = reader.finish()
                        text, calls = text + rest, calls + found
                everything[0].append(text)
                everything[1].append(thought)
                everything[2].extend(calls)
                if stream:
                    if not started:
                        await exchange.stream_lines()
                        started = True
                    if text or thought or calls:
                        await exchange.part({**head(), **made(text, thought, calls), "done": False})
        assert stats is not None
        prompt_time, answer_time = int(stats.prompt_seconds * 1e9), int(stats.generate_seconds * 1e9)
        done = {
            "done": True,
            "done_reason": ended_by(stats),
            "total_duration": time.monotonic_ns() - began,
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": prompt_time,
            "eval_count": stats.generated_tokens,
            "eval_duration": answer_time,
        }
        if stream:
            await exchange.part({**head(), **made("", "", []), **done})
            await exchange.end()
        else:
            text, thought = "".join(everything[0]), "".join(everything[1])
            await exchange.reply({**head(), **made(text, thought, everything[2]), **done})


def ollama_error(error: ApiError) -> dict[str, Any]:
    """An error in Ollama's form."""
    return {"error": error.message}


def _think(fields: Fields) -> bool | str | None:
    given = fields.any("think")
    if given is not None and not isinstance(given, bool) and given not in ("low", "medium", "high"):
        raise fields.wrong("think", f"is {shown(given)}; it must be true, false, low, medium or high")
    return given  # type: ignore[no-any-return]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _entry(served: Served) -> dict[str, Any]:
    name = served.name if ":" in served.name else f"{served.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(served.since),
        "size": served.size,
        "digest": served.digest,
        "details": _details(served),
    }


def _details(served: Served) -> dict[str, Any]:
    path = served.model.path
    return {
        "parent_model": "",
        "format": "gguf" if path.suffix == ".gguf" else path.suffix.removeprefix(".") or "folder",
        "family": served.architecture,
        "families": [served.architecture],
        "parameter_size": "",
        "quantization_level": served.model.scheme,
    }
