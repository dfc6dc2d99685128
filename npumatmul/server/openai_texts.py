"""``/v1/completions``, ``/v1/embeddings``, ``/v1/rerank`` and ``/v1/models``."""

from __future__ import annotations

import base64
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.reading import shown
from npumatmul.llm import GenerationStats, Piece, Prompt, Tokenizer
from npumatmul.llm.tokenizers.protocol import not_characters
from npumatmul.server.answers import Ask, answering, check_length, ended_by
from npumatmul.server.desk import Gone, Job
from npumatmul.server.errors import ApiError, of_request
from npumatmul.server.exchange import Exchange
from npumatmul.server.fields import Fields
from npumatmul.server.openai_chat import response_format, tokens_used
from npumatmul.server.sampling import sampling_of
from npumatmul.server.service import Served, Service

__all__ = ["Completions", "Embeddings", "Models", "Rerank", "embedding_work", "openai_error"]

MOST_LOGPROBS = 5
MOST_PROMPTS = 64


@dataclass
class _Choice:
    """What one continuation is so far."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[str, float]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: str | None = None

    def add(self, piece: Piece, tokenizer: Tokenizer) -> None:
        """A token with its probability, at the text so far."""
        assert piece.logprob is not None
        self.tokens.append(_spelled(piece.token, tokenizer))
        self.logprobs.append(max(piece.logprob, -9999.0))
        self.top.append({_spelled(token, tokenizer): max(logprob, -9999.0) for token, logprob in piece.top_logprobs})
        self.offsets.append(len(self.text))

    def told(self, start: int = 0) -> dict[str, Any]:
        return {
            "tokens": self.tokens[start:],
            "token_logprobs": self.logprobs[start:],
            "top_logprobs": self.top[start:],
            "text_offset": self.offsets[start:],
        }


class Completions:
    """Continues texts.

    Parameters
    ----------
    service : Service
        Models and the desk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served = self._service.writer(fields.text("model"))
        stream = fields.flag("stream", False)
        options = Fields(fields.mapping("stream_options") or {}, "stream_options")
        usage = options.flag("include_usage", False)
        options.pass_over("include_obfuscation")
        options.finish()
        logprobs = fields.count("logprobs", None, 0, MOST_LOGPROBS)
        sampling = sampling_of(fields, self._service.settings, logprobs)
        most = fields.count("max_tokens", 16, 1, 1 << 31)
        echo = fields.flag("echo", False)
        if echo and logprobs is not None:
            raise fields.wrong("echo", "does not go with logprobs: those of the prompt are not computed")
        fields.refuse("suffix", "is not supported", unless=("",))
        best = fields.count("best_of", sampling.choices, 1, 1 << 31)
        if best != sampling.choices:
            raise fields.wrong("best_of", f"is {best}, and n is {sampling.choices}; they must be the same")
        form = response_format(fields, self._service, served)
        prompts = _prompts(fields)
        fields.finish()
        asks = [
            Ask(
                served.model,
                prompt,
                most,
                sampling.options,
                seed=sampling.seed,
                penalties=sampling.penalties,
                bias=sampling.bias,
                form=form,
            )
            for prompt in prompts
        ]
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        tokenizer = served.model.tokenizer
        choices = [_Choice() for _ in range(len(asks) * sampling.choices)]
        begun: set[int] = set()
        ended: list[GenerationStats] = []
        async with self._service.desk.job(answering(asks, sampling.choices, self._service.settings)) as job:
            async for part in job:
                choice, text, before = choices[part.number], part.text, len(choices[part.number].tokens)
                if logprobs is not None and part.piece.token not in tokenizer.stop_ids:
                    choice.add(part.piece, tokenizer)
                if echo and part.number not in begun:
                    text = _text(prompts[part.number // sampling.choices], tokenizer) + text
                choice.text += text
                if part.stats is not None:
                    choice.reason = ended_by(part.stats)
                    ended.append(part.stats)
                    self._service.count(part.stats)
                if stream:
                    if not begun:
                        await exchange.stream_events()
                    told = None if logprobs is None else choice.told(before)
                    chunk = {"index": part.number, "text": text, "logprobs": told, "finish_reason": choice.reason}
                    await exchange.part({**head, "choices": [chunk], **({"usage": None} if usage else {})})
                begun.add(part.number)
        used = tokens_used(ended, len(asks))
        if stream:
            if usage:
                await exchange.part({**head, "choices": [], "usage": used})
            await exchange.end(b"data: [DONE]\n\n")
            return
        made = [
            {
                "index": i,
                "text": each.text,
                "logprobs": None if logprobs is None else each.told(),
                "finish_reason": each.reason,
            }
            for i, each in enumerate(choices)
        ]
        await exchange.reply({**head, "choices": made, "usage": used})


class Embeddings:
    """Makes embeddings of texts.

    Parameters
    ----------
    service : Service
        Models and the desk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served = self._service.served(fields.text("model"))
        given = fields.any("input")
        if isinstance(given, list) and any(not isinstance(each, str) for each in given):
            raise fields.wrong("input", "must be a text or a list of texts; numbers of tokens are not taken")
        texts = fields.texts("input", self._service.settings.max_texts)
        if not texts or not all(texts):
            raise fields.wrong("input", "is empty, or has an empty text")
        encoding = fields.text("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise fields.wrong("encoding_format", f"is {shown(encoding)}; it must be float or base64")
        dimensions = fields.count("dimensions", None, 1, 1 << 20)
        fields.pass_over("user")
        fields.finish()
        async with self._service.desk.job(embedding_work(served, texts, self._service.settings.pooling)) as job:
            rows, tokens = [item async for item in job][-1]
        if dimensions is not None and dimensions != rows.shape[1]:
            raise fields.wrong("dimensions", f"is {dimensions}; embeddings of this model have {rows.shape[1]}")
        data = [
            {"object": "embedding", "index": i, "embedding": _row(row, encoding == "base64")}
            for i, row in enumerate(rows)
        ]
        used = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._service.metrics.prompt_tokens += tokens
        await exchange.reply({"object": "list", "data": data, "model": served.name, "usage": used})


class Rerank:
    """Scores how well documents fit a query, with a cross-encoder; as Jina's, Cohere's and llama.cpp's paths do.

    Parameters
    ----------
    service : Service
        Models and the desk.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        fields = Fields(exchange.json())
        served = self._service.served(fields.text("model"))
        query, documents = fields.text("query"), fields.texts("documents", self._service.settings.max_texts)
        if not query or not documents:
            raise fields.wrong("documents" if query else "query", "is empty")
        most = fields.count("top_n", len(documents), 1, 1 << 31) or 0
        back = fields.flag("return_documents", False)
        fields.pass_over("user")
        fields.finish()

        def work(job: Job) -> None:
            try:
                for i, text in enumerate([query, *documents]):
                    check_length(text, served.model, f"document {i - 1}" if i else "the query")
                job.give(served.model.rerank(query, documents, progress=job.check))
            except Gone:
                raise
            except Exception as error:
                raise of_request(error) from error

        async with self._service.desk.job(work) as job:
            (scores,) = [item async for item in job]
        best = np.argsort(-scores, kind="stable")[:most].tolist()
        results = [
            {"index": i, "relevance_score": float(scores[i]), **({"document": {"text": documents[i]}} if back else {})}
            for i in best
        ]
        await exchange.reply({"object": "list", "model": served.name, "results": results})


class Models:
    """Lists the models.

    Parameters
    ----------
    service : Service
        The models.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange) -> None:
        name = exchange.scope.get("path_params", {}).get("name")
        if name is not None:
            await exchange.reply(_entry(self._service.served(name)))
            return
        await exchange.reply({"object": "list", "data": [_entry(each) for each in self._service.models.values()]})


def embedding_work(served: Served, texts: list[str], pooling: str | None) -> Any:
    """Work that gives the rows of texts, and how many tokens they have."""

    def work(job: Job) -> None:
        try:
            for i, text in enumerate(texts):
                check_length(text, served.model, f"text {i}")
            rows = served.model.embed(texts, pooling=pooling, progress=job.check)
            tokens = sum(len(served.model.tokenizer.encode(text)) for text in texts)
        except Gone:
            raise
        except Exception as error:
            raise of_request(error) from error
        job.give((rows, tokens))

    return work


def _row(row: NDArray[np.float32], as_base64: bool) -> str | list[float]:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist()


def _entry(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": int(served.since), "owned_by": "npumatmul"}


def _prompts(fields: Fields) -> list[Prompt]:
    given = fields.any("prompt")
    listed = given if isinstance(given, list) and given and isinstance(given[0], (str, list)) else [given]
    if len(listed) > MOST_PROMPTS:
        raise fields.wrong("prompt", f"has {len(listed)} texts; at most {MOST_PROMPTS} are taken")
    for each in listed:
        numbers = isinstance(each, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in each)
        if not each or not (numbers or isinstance(each, str)):
            raise fields.wrong("prompt", f"is {shown(each)}; it must be a text, numbers of tokens, or a list of those")
        problem = not_characters(each) if isinstance(each, str) else None
        if problem:
            raise fields.wrong("prompt", problem)
    return listed


def _text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)  # type: ignore[arg-type]


def _spelled(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token, skip_special=False).decode("utf-8", "replace")


def openai_error(error: ApiError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
