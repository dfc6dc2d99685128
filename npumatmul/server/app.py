"""The paths of the server, and what every request passes on its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from npumatmul.server.errors import ApiError
from npumatmul.server.exchange import Exchange, Handler
from npumatmul.server.gate import Gate
from npumatmul.server.ollama import Ollama, ollama_error
from npumatmul.server.openai_chat import ChatCompletions
from npumatmul.server.openai_speech import Transcriptions
from npumatmul.server.openai_texts import Completions, Embeddings, Models, Rerank, openai_error
from npumatmul.server.service import Service

__all__ = ["App"]

logger = logging.getLogger(__name__)

ErrorForm = Callable[[ApiError], dict[str, Any]]
OPEN = ("/", "/health")


class App:
    """The server as an ASGI application.

    Parameters
    ----------
    service : Service
        What it serves.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._gate = Gate(service.settings)
        ollama = Ollama(service)
        routes = [
            self._route("/v1/chat/completions", "POST", ChatCompletions(service)),
            self._route("/v1/completions", "POST", Completions(service)),
            self._route("/v1/embeddings", "POST", Embeddings(service)),
            self._route("/v1/rerank", "POST", Rerank(service)),
            self._route("/v1/audio/transcriptions", "POST", Transcriptions(service, "transcribe")),
            self._route("/v1/audio/translations", "POST", Transcriptions(service, "translate")),
            self._route("/v1/models", "GET", Models(service)),
            self._route("/v1/models/{name:path}", "GET", Models(service)),
            self._route("/api/chat", "POST", ollama.chat),
            self._route("/api/generate", "POST", ollama.generate),
            self._route("/api/embed", "POST", ollama.embed),
            self._route("/api/embeddings", "POST", ollama.embeddings),
            self._route("/api/tags", "GET", ollama.tags),
            self._route("/api/ps", "GET", ollama.running),
            self._route("/api/show", "POST", ollama.show),
            self._route("/api/version", "GET", ollama.version),
            *(self._route(f"/api/{name}", "POST", ollama.not_here) for name in ("pull", "push", "create", "copy")),
            self._route("/api/delete", "DELETE", ollama.not_here),
            self._route("/health", "GET", self._health),
            self._route("/metrics", "GET", self._metrics),
            self._route("/", "GET", self._root),
        ]
        self._paths = {route.path for route in routes}
        self._routes = Starlette(
            routes=routes,
            exception_handlers={404: self._unknown, 405: self._unknown},
        )
        self._routes.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        path, form = scope["path"], _form(scope["path"])
        status = 0
        began = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *self._sharing(headers)]}
            await send(message)

        exchange = Exchange(scope, receive, counted, self._service.settings, form)
        scope["npumatmul.exchange"] = exchange
        try:
            try:
                preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
                if b"content-length" in headers and b"transfer-encoding" in headers:
                    raise ApiError(400, "a request has a length or comes in chunks, not both")
                self._gate.check(headers, open_to_all=path in OPEN or preflight)
            except ApiError as error:
                await exchange.refuse(error)
                return
            if preflight:
                await exchange.reply_bytes(b"", b"text/plain", 204)
                return
            await self._routes(scope, receive, counted)
        finally:
            known = path if path in self._paths else "other"
            self._service.metrics.requests[known, status] += 1
            self._service.metrics.gone += exchange.abandoned
            ended = "abandoned" if exchange.abandoned else status
            logger.info("%s %s: %s after %.3f s", scope["method"], path[:200], ended, time.monotonic() - began)

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        return Route(path, _Endpoint(handler), methods=[method])

    def _sharing(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """What browsers need to hear before scripts of other pages get an answer."""
        origin = headers.get(b"origin", b"")
        if not origin or not self._gate.shares_with(origin.decode("latin-1")):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-max-age", b"600"),
            (b"vary", b"origin"),
        ]

    async def _unknown(self, request: Any, _: Exception) -> Any:
        """A path that there is not, or a method that it does not have."""
        known = request.scope["path"] in self._paths
        message = "has not the method" if known else "there is no such path for"
        error = ApiError(405 if known else 404, f"{request.scope['path'][:200]}: {message} {request.scope['method']}")
        exchange: Exchange = request.scope["npumatmul.exchange"]

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await exchange.refuse(error)

        return answer

    async def _health(self, exchange: Exchange) -> None:
        service = self._service
        closed = [name for name, each in service.models.items() if each.model.closed]
        wrong = service.desk.lost or (f"the model {closed[0]!r} is closed" if closed else None)
        if wrong is not None:
            raise ApiError(503, wrong, code="unavailable")
        told = {"status": "ok", "running": len(service.desk.jobs), "waiting": service.desk.waiting}
        await exchange.reply(told)

    async def _metrics(self, exchange: Exchange) -> None:
        text = self._service.metrics.text(self._service.desk)
        await exchange.reply_bytes(text.encode(), b"text/plain; version=0.0.4")

    async def _root(self, exchange: Exchange) -> None:
        await exchange.reply_bytes(b"npumatmul is running", b"text/plain")


class _Endpoint:
    """A handler as the router wants it."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["npumatmul.exchange"].run(self._handler)


def _form(path: str) -> ErrorForm:
    return ollama_error if path.startswith("/api/") else openai_error
