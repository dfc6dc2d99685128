"""A server that runs: in the thread that asks for it, or in one of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType

import uvicorn

from npumatmul.files.uncopied import Uncopied
from npumatmul.llm import Model
from npumatmul.server.app import App
from npumatmul.server.connection import connection_class
from npumatmul.server.service import Service
from npumatmul.server.settings import Settings

__all__ = ["Server"]


class Server(Uncopied):
    """An HTTP server for models, with the APIs of OpenAI and Ollama.

    Parameters
    ----------
    models : Model or mapping of str to Model
        One model, or several by the names that they are asked by. They stay the caller's, who closes them later.
    settings : Settings, optional
        Where it listens, and its limits.

    Attributes
    ----------
    settings : Settings
        As given.
    url : str
        Where it is reached.

    Raises
    ------
    OSError
        If it cannot listen there.
    ValueError
        If there is no model.

    Examples
    --------
    >>> import json, urllib.request
    >>> import npumatmul.llm
    >>> from npumatmul.server import Server, Settings
    >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
    >>> with Server({"smol": model}, Settings(port=0)) as server:
    ...     body = {"prompt": "One, two, three,", "max_tokens": 3, "temperature": 0}
    ...     request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode())
    ...     with urllib.request.urlopen(request) as response:
    ...         print(json.load(response)["choices"][0]["text"])
     four, five
    """

    def __init__(self, models: Model | Mapping[str, Model], settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        given = {models.name: models} if isinstance(models, Model) else dict(models)
        self._service = Service(given, self.settings)
        self._socket = _listening(self.settings.host, self.settings.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        config = uvicorn.Config(
            App(self._service),
            http=connection_class(self.settings),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, round(self.settings.read_timeout)),
            timeout_graceful_shutdown=max(1, round(self.settings.shutdown_timeout)),
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Serve in this thread until SIGINT or SIGTERM, or until another thread calls `close`."""
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self._service.desk.close()
            self._socket.close()

    def start(self) -> None:
        """Serve in a thread of its own; it can be asked when this returns."""
        if self._thread is not None:
            raise RuntimeError("the server was started already")
        self._thread = threading.Thread(target=self.serve, name="npumatmul-server", daemon=True)
        self._thread.start()  # connections wait in the socket until they are taken

    def close(self) -> None:
        """Take no more requests, let answers end as long as `Settings.shutdown_timeout` says, and stop."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
        else:
            self._service.desk.close()
            self._socket.close()

    def __enter__(self) -> Server:
        """Start it in a thread of its own."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _listening(host: str, port: int) -> socket.socket:
    family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, number)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(128)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"the server cannot listen on {host}, port {port}: {error.strerror}") from None
    return made
