"""`npumatmul chat`: messages and answers in turns, with commands between them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npumatmul.cli.models import check_model, check_scheme, say_what_to_know
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import in_words, say
from npumatmul.device.current import current_device
from npumatmul.errors import ClosedError, DeviceLostError, NpuError
from npumatmul.files.writing import check_target
from npumatmul.llm import Answer, GenerationStats, Model, SamplingOptions, Session, StopReason, load
from npumatmul.llm.loader import DEFAULT_SCHEME
from npumatmul.llm.policy import Policy
from npumatmul.llm.quantize import is_quantized
from npumatmul.llm.tokenizers.protocol import not_characters

__all__ = ["Chat", "Request", "chat"]

_BLOCK = '"""'
_PROMPT, _MORE = "> ", ". "
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_WORDS = {"on_full": ("window", "error"), "speculation": ("none", "auto", "lookup")}


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    model: Path
    settings: dict[str, Any]
    session: Path | None = None
    system: str | None = None
    scheme: str | None = None
    device: str | None = None
    context: int | None = None
    cache: bool = True
    expert_memory: int | None = None
    expert_folder: Path | None = None
    policy: Policy | None = None


def chat(request: Request) -> None:
    """Talk until the input ends; then save the conversation if a file was named."""
    check_model(request.model)
    check_scheme(request.scheme)
    _check_sampling(request.settings)
    problem = not_characters(request.system or "")
    if problem:
        raise ValueError(f"--system {problem}")
    if request.scheme is not None and is_quantized(request.model):
        raise ValueError(f"{request.model} is quantized already and takes no scheme, but {request.scheme!r} was given")
    if request.session is not None:
        check_target(request.session, [request.model] if request.model.is_file() else [])
    scheme = request.scheme or DEFAULT_SCHEME
    if request.scheme is not None:
        say_what_to_know(request.model, scheme)
    device = current_device(request.device)
    with working(lines=False) as progress:
        model = load(
            request.model,
            scheme,
            policy=request.policy,
            device=device,
            context=request.context,
            cache=request.cache,
            expert_memory=request.expert_memory,
            expert_folder=request.expert_folder,
            progress=progress,
        )
    with model:
        session = _session(request, model)
        talk = Chat(model, session)
        try:
            talk.run()
        finally:
            if request.session is not None:
                talk.session.save(request.session)
                say(f"saved to {request.session}")
    if talk.failed:
        sys.exit(1)


def _check_sampling(settings: dict[str, Any]) -> None:
    """Refuse options by the names that they are typed as."""
    try:
        SamplingOptions(**{name: settings[name] for name in _SAMPLING})
    except ValueError as error:
        name, space, rest = str(error).partition(" ")
        raise ValueError(f"--{name.replace('_', '-')}{space}{rest}") from error


def _session(request: Request, model: Model) -> Session:
    if request.session is None or not request.session.exists():
        return model.session(system=request.system, **request.settings)
    session = model.load_session(request.session)
    session.settings |= request.settings
    if request.system is not None:
        _tell(session, request.system)
    say(f"{len(session.messages)} messages from {request.session}")
    return session


def _tell(session: Session, text: str) -> None:
    """Have the system say something else first; nothing for an empty text."""
    before = session.messages
    rest = before[1:] if before and before[0]["role"] == "system" else before
    session.messages = [*([{"role": "system", "content": text}] if text else []), *rest]


class Chat:
    """A conversation at a terminal or through pipes.

    Parameters
    ----------
    model : Model
    session : Session

    Attributes
    ----------
    session : Session
        The one that is talked in; ``/load`` brings another.
    failed : bool
        Whether something that came through a pipe went wrong.
    """

    def __init__(self, model: Model, session: Session) -> None:
        self._model, self.session = model, session
        self._watched = sys.stdin is not None and sys.stdin.isatty()
        self._stats: GenerationStats | None = None
        self._over = False
        self.failed = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "help": (self._help, "list this"),
            "reset": (self._reset, "forget what was said, but for what the system says"),
            "system": (self._system, "[TEXT]: show or set what the system says; '-' for nothing"),
            "history": (self._history, "show what was said"),
            "retry": (self._retry, "answer the last message again"),
            "set": (self._set, "[NAME VALUE]: show or change a setting, such as temperature 0.7"),
            "stats": (self._show_stats, "figures of the last answer"),
            "save": (self._save, "FILE: write the conversation into a file"),
            "load": (self._load, "FILE: go on with a conversation from a file"),
            "exit": (self._exit, "leave, as the end of the input does (Ctrl-D)"),
        }

    def run(self) -> None:
        """Read and answer until the input ends."""
        if self._watched:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # lines can be edited, and earlier ones brought back
            what = f"{self._model.name}, {self._model.scheme}"
            say(f"{what}; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while not self._over:
            try:
                message = self._read()
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self._watched:
                    raise
                say("\n(Ctrl-D or /exit leaves)")
                continue
            try:
                self._take(message)
            except (DeviceLostError, ClosedError, BrokenPipeError):
                raise
            except (NpuError, OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:
                say(f"npumatmul: {in_words(error)}")
                self.failed = not self._watched  # a program hears of it at the end, a reader has
            except KeyboardInterrupt:  # a second one, or one between two pieces of work
                say("(stopped)")
        if self._watched:
            print(flush=True)

    def _read(self) -> str:
        """A message: a line, lines of which each but the last ends with a backslash, or a block in triple quotes."""
        line = self._line(_PROMPT)
        if line.lstrip().startswith(_BLOCK):
            return self._block(line.lstrip()[len(_BLOCK) :])
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self._line(_MORE)
            except EOFError:
                line = ""
        return "\n".join([*lines, line])

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(_BLOCK):
            lines.append(line)
            try:
                line = self._line(_MORE)
            except EOFError:
                return "\n".join(lines).strip("\n")
        return "\n".join([*lines, line.rstrip()[: -len(_BLOCK)]]).strip("\n")

    def _line(self, prompt: str) -> str:
        if self._watched:
            return input(prompt)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _take(self, message: str) -> None:
        """Do what a command says, or answer."""
        problem = not_characters(message)
        if problem:
            raise ValueError(f"the message {problem}")
        if not message.strip():
            return
        if message.startswith("//"):
            message = message[1:]
        elif message.startswith("/"):
            name, _, rest = message[1:].partition(" ")
            if name == "quit":
                name = "exit"
            if name not in self._commands:
                raise ValueError(f"there is no command /{name}; /help lists them, and a message may begin with //")
            self._commands[name][0](rest.strip())
            return
        self._answer(self.session.send(message))

    def _answer(self, answer: Answer) -> None:
        """Stream an answer; Ctrl-C ends it, and what was said stays."""
        try:
            for piece in answer:
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            answer.close()
        finally:
            self._stats = answer.stats
            print(flush=True)
        if answer.stats.stop_reason is StopReason.INTERRUPTED:
            say("(stopped)")
        elif answer.stats.stop_reason in (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL):
            say(f"(ended by {answer.stats.stop_reason.value.replace('_', ' ')})")
        if answer.stats.dropped_tokens:
            say(f"(the context is full: {answer.stats.dropped_tokens} tokens of older messages were left out)")

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _help(self, rest: str) -> None:
        for name, (_, text) in self._commands.items():
            say(f"/{name:8} {text}")
        say('A line that ends with \\ goes on, and so does what begins with """ until """ ends a line.')

    def _reset(self, rest: str) -> None:
        self.session.reset()

    def _system(self, rest: str) -> None:
        if rest:
            _tell(self.session, "" if rest == "-" else rest)
            return
        said = [each["content"] for each in self.session.messages[:1] if each["role"] == "system"]
        say(str(said[0]) if said else "(the system says nothing)")

    def _history(self, rest: str) -> None:
        for message in self.session.messages:
            say(f"{message['role']}: {message.get('content', '')}")

    def _retry(self, rest: str) -> None:
        messages = self.session.messages
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError("/retry: nothing was answered yet")
        self.session.messages = messages[:-2]
        try:
            answer = self.session.send(messages[-2])
        except BaseException:
            self.session.messages = messages
            raise
        self._answer(answer)

    def _set(self, rest: str) -> None:
        settings = self.session.settings
        if not rest:
            for known, now in settings.items():
                say(f"{known} {now}")
            return
        name, _, text = rest.partition(" ")
        if name in _WORDS:
            if text not in _WORDS[name]:
                raise ValueError(f"/set: {name} is {' or '.join(_WORDS[name])}, not {text!r}")
            settings[name] = None if text == "none" else text
            return
        if name not in ("max_tokens", *_SAMPLING):
            raise ValueError(f"/set: {name} is none of max_tokens, {', '.join((*_SAMPLING, *_WORDS))}")
        try:
            value: Any = None if text == "none" and name == "seed" else _number(text)
        except ValueError:
            raise ValueError(f"/set: {name} is a number, not {text!r}") from None
        changed = {**settings, name: value}
        SamplingOptions(**{each: changed[each] for each in _SAMPLING if each in changed})
        settings[name] = value

    def _show_stats(self, rest: str) -> None:
        stats = self._stats
        if stats is None:
            raise ValueError("/stats: nothing was answered yet")
        say(
            f"prompt {stats.prompt_tokens} tokens, {stats.cached_tokens} of them known, "
            f"{stats.prompt_tokens_per_second:.1f} tokens/s; answer {stats.generated_tokens} tokens, "
            f"{stats.tokens_per_second:.1f} tokens/s"
            + ("" if stats.acceptance is None else f"; {100 * stats.acceptance:.0f} % of guesses were right")
        )

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("/save: give the name of a file")
        path = Path(rest).expanduser()
        check_target(path, [self._model.path] if self._model.path.is_file() else [])
        self.session.save(path)
        say(f"saved to {rest}")

    def _load(self, rest: str) -> None:
        if not rest:
            raise ValueError("/load: give the name of a file")
        session = self._model.load_session(Path(rest).expanduser())
        self.session.close()
        self.session = session
        say(f"{len(session.messages)} messages from {rest}")

    def _exit(self, rest: str) -> None:
        self._over = True


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
