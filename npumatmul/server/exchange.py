"""A request and its answer: reading, replying at once or piece by piece, and seeing that a client went away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from npumatmul.files.reading import shown
from npumatmul.server.errors import ApiError, of_answer
from npumatmul.server.fields import json_numbers
from npumatmul.server.settings import Settings

__all__ = ["Exchange", "Handler"]

logger = logging.getLogger(__name__)

Handler = Callable[["Exchange"], Awaitable[None]]
ErrorForm = Callable[[ApiError], dict[str, Any]]

MOST_DIGITS = 400  # of a whole number


class Exchange:
    """One request and its answer.

    Parameters
    ----------
    scope, receive, send
        As ASGI has them.
    settings : Settings
        Limits.
    error_form : callable
        How an error is written.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, error_form: ErrorForm) -> None:
        self.scope, self.settings = scope, settings
        self._receive, self._send, self._error_form = receive, send, error_form
        self._started = False
        self._whole = False
        self._event: Callable[[object], bytes] = _line
        self.status = 0
        self.abandoned = False

    async def run(self, handler: Handler) -> None:
        """Let a handler answer, until it has, the client goes away, or time is up."""
        try:
            await self._read()
        except ApiError as error:
            await self._fail(error)
            return
        work = asyncio.ensure_future(handler(self))
        watch = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait({work, watch}, timeout=self.settings.answer_timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                failed = work.exception()
                if failed is not None:
                    await self._fail(of_answer(failed))
            elif watch.done():
                self.abandoned = True
            else:
                seconds = self.settings.answer_timeout
                await self._end(work)
                await self._fail(ApiError(504, f"the answer took longer than {seconds:g} s", code="timeout"))
        except asyncio.CancelledError:  # the server ends
            await self._end(work)
            await self._fail(ApiError(503, "the server is ending", code="unavailable"))
        finally:
            await self._end(work)
            await self._end(watch)

    @staticmethod
    async def _end(task: asyncio.Future[Any]) -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _read(self) -> None:
        """Read the body, as far as it is allowed to be."""
        length = dict(self.scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.settings.max_body:
            raise self._too_large()
        try:
            self.body = await asyncio.wait_for(self._whole_body(), self.settings.read_timeout)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request did not arrive within {self.settings.read_timeout:g} s") from None
        self._whole = True

    async def _whole_body(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.abandoned = True
                raise ApiError(400, "the client went away")
            body += message.get("body", b"")
            if len(body) > self.settings.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.settings.max_body} bytes", code="too_large")

    def json(self) -> dict[str, Any]:
        """The body as an object.

        Raises
        ------
        ApiError
            If it is none.
        """
        try:
            text = self.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ApiError(400, f"the request is not UTF-8: byte {error.start} belongs to no character") from None
        try:
            value = json.loads(text, parse_constant=_no_constant, parse_float=json_numbers, parse_int=_whole_number)
        except RecursionError:
            raise ApiError(400, "the request is nested too deeply") from None
        except ValueError as error:
            raise ApiError(400, f"the request is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ApiError(400, f"the request is {shown(value)}; it must be an object")
        return value

    async def reply(self, value: object, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Answer with JSON."""
        await self.reply_bytes(_json(value), b"application/json", status, headers)

    async def reply_bytes(
        self, data: bytes, kind: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        made = [(b"content-type", kind), (b"content-length", str(len(data)).encode()), *(headers or [])]
        if not self._whole:  # what is still to come of the request will not be read
            made.append((b"connection", b"close"))
        await self._start(status, made)
        await self._send({"type": "http.response.body", "body": data})

    async def stream_events(self) -> None:
        """Begin an answer of server-sent events."""
        self._event = _event
        await self._start(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])

    async def stream_lines(self) -> None:
        """Begin an answer of lines with an object each."""
        self._event = _line
        await self._start(200, [(b"content-type", b"application/x-ndjson")])

    async def part(self, value: object) -> None:
        """Send the next part of an answer."""
        await self._send({"type": "http.response.body", "body": self._event(value), "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        """End an answer that came in parts."""
        await self._send({"type": "http.response.body", "body": last})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, whatever the rest of the request is."""
        await self._fail(error)

    async def _fail(self, error: ApiError) -> None:
        """Tell the client, also in the midst of an answer."""
        if self.abandoned:
            return
        if self._started:
            with contextlib.suppress(Exception):
                await self.part(self._error_form(error))
                await self.end()
            return
        await self.reply(self._error_form(error), error.status, error.headers())


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _line(value: object) -> bytes:
    return _json(value) + b"\n"


def _event(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
