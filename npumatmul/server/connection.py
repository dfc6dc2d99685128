"""Connections that are given up when a client sends or takes nothing any more."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from npumatmul.server.settings import Settings

__all__ = ["connection_class"]


def connection_class(settings: Settings) -> type[H11Protocol]:
    """Uvicorn's connection with limits of time for what it waits for without one: headers and writing."""

    class Connection(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.connections:
                self.transport.abort()
                return
            self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_reading()
            self._stop_writing()
            self._unset_keepalive_if_required()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait_for_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_headers()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._wait_for_writing()  # a client that takes nothing would keep what is closing open

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for_writing()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._stop_writing()

        def _wait_for_headers(self) -> None:
            """Between the first byte of a request, or a new connection, and the end of its headers."""
            answering = self.cycle is not None and not self.cycle.response_complete
            idle = self.timeout_keep_alive_task is not None  # which uvicorn ends
            if answering or idle:
                self._stop_reading()
            elif self._reading is None:
                self._reading = self.loop.call_later(settings.read_timeout, self.transport.abort)

        def _stop_reading(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _stop_writing(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _wait_for_writing(self) -> None:
            if self._writing is None:
                self._writing = self.loop.call_later(settings.write_timeout, self.transport.abort)

    return Connection
