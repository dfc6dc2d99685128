"""`npumatmul serve`: load models and answer requests until somebody ends it."""

from __future__ import annotations

import ipaddress
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from npumatmul.cli.files import path as given_path
from npumatmul.cli.files import read_text
from npumatmul.cli.models import check_model, check_scheme
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import say
from npumatmul.llm import Model, load
from npumatmul.llm.loader import DEFAULT_SCHEME
from npumatmul.llm.policy import Policy
from npumatmul.llm.quantize import is_quantized
from npumatmul.server import Server, Settings

KEY_VARIABLE = "NPUMATMUL_API_KEY"


@dataclass(frozen=True)
class Request:
    """What is to be served; the fields are the options of the command."""

    models: tuple[str, ...]
    settings: Settings
    scheme: str | None = None
    device: str | None = None
    context: int | None = None
    cache: bool = True
    policy: Policy | None = None


def serve(request: Request) -> None:
    """Load the models, and serve them until SIGINT or SIGTERM."""
    check_scheme(request.scheme)
    paths = _named(request.models)
    for path in paths.values():
        check_model(path)
    before = signal.signal(signal.SIGTERM, _interrupt)  # the models are closed then, too
    try:
        with ExitStack() as stack:
            models: dict[str, Model] = {}
            for name, path in paths.items():
                models[name] = stack.enter_context(_loaded(path, request))
            server = Server(models, request.settings)
            _say_where(server, models)
            server.serve()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)


def _loaded(path: Path, request: Request) -> Model:
    if is_quantized(path) and request.scheme is not None:
        raise ValueError(f"{path} is quantized already and takes no scheme, but {request.scheme!r} was given")
    with working() as progress:
        return load(
            path,
            request.scheme or DEFAULT_SCHEME,
            policy=request.policy,
            device=request.device,
            context=request.context,
            cache=request.cache,
            progress=progress,
        )


def _named(models: tuple[str, ...]) -> dict[str, Path]:
    """Paths by the names that models are asked by: what stands before ``=``, or the name of the file."""
    found: dict[str, Path] = {}
    for each in models:
        name, sign, rest = each.partition("=")
        if not sign or Path(each).exists():
            name, rest = "", each
        path = given_path(rest)
        name = name or (path.stem if path.suffix in (".gguf", ".safetensors") else path.resolve().name)
        if name in found:
            raise ValueError(f"two models are called {name!r}: write name=path for one of them")
        found[name] = path
    return found


def _say_where(server: Server, models: dict[str, Model]) -> None:
    settings = server.settings
    say(f"serving {', '.join(models)} at {server.url} (OpenAI: {server.url}/v1, Ollama: {server.url})")
    if settings.api_key is None and not _loopback(settings.host):
        say(f"note: everybody who reaches {settings.host} may ask; --api-key-file or {KEY_VARIABLE} asks for a key")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def api_key(given: str | None, file: Path | None) -> str | None:
    """The key that clients have to send: of the command line, a file, or the environment.

    Raises
    ------
    ValueError
        If it is given twice.
    """
    if given is not None and file is not None:
        raise ValueError("give either --api-key or --api-key-file")
    if file is not None:
        return read_text(file).strip()
    return given if given is not None else os.environ.get(KEY_VARIABLE) or None
