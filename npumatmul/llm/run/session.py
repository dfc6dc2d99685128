"""Sessions: conversations that remember what was said and what was read, also in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json, shown
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.run.generation import Generation
from npumatmul.llm.run.pieces import GenerationStats, Piece
from npumatmul.llm.run.sharing import Shared
from npumatmul.llm.run.steps import Step, shared_length

if TYPE_CHECKING:
    from npumatmul.llm.answering import Answering

__all__ = ["SETTINGS", "Answer", "Session"]

#: What a session keeps for all of its answers, with the values that stand in files.
SETTINGS: dict[str, tuple[type, ...]] = {
    "max_tokens": (int,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
    "stop": (str, list),
    "stop_ids": (list, type(None)),
    "seed": (int, type(None)),
    "on_full": (str,),
    "keep": (int, type(None)),
    "speculation": (str, type(None)),
    "tools": (list, type(None)),
    "variables": (dict, type(None)),
}
_NOTE, _VERSION = "session", 1


class Session(Uncopied):
    """A conversation with a model; `Model.session` and `Model.load_session` make it.

    It is one thread's at a time; several sessions share the steps of their model.

    Attributes
    ----------
    messages : list of dict
        What was said. It may be changed between two answers; what is not as it was is read again.
    settings : dict
        Arguments of `Model.chat` for all answers.

    Examples
    --------
    >>> import npumatmul.llm
    >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
    >>> session = model.session(max_tokens=12)
    >>> answer = session.send("Name the capital of Japan.")
    >>> "".join(piece.text for piece in answer)
    'The capital of Japan is Tokyo.'
    >>> [message["role"] for message in session.messages]
    ['user', 'assistant']
    """

    def __init__(
        self,
        model: Answering,
        messages: Sequence[Mapping[str, object]] = (),
        *,
        system: str | None = None,
        **settings: Any,
    ) -> None:
        self._model = model
        if isinstance(messages, (str, Mapping)) or not all(isinstance(each, Mapping) for each in messages):
            raise TypeError("session: messages are a list of mappings with a role and a content")
        begun: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = [*begun, *(dict(each) for each in messages)]
        self.settings = checked_settings(settings)
        self._cache: KVCache | None = None
        self._answer: Answer | None = None

    def __repr__(self) -> str:
        """Return how much was said and read."""
        tokens = 0 if self._cache is None else self._cache.length
        return f"<Session with {self._model.name!r}: {len(self.messages)} messages, {tokens} tokens read>"

    @property
    def tokens(self) -> int:
        """Tokens that need not be read again."""
        return 0 if self._cache is None else self._cache.length

    def send(self, message: str | Mapping[str, object], **options: Any) -> Answer:
        """Say something, and get an answer.

        Nothing is computed until the first piece is asked for. An answer before that was not read to its end is ended
        first.

        Parameters
        ----------
        message : str or mapping
            What the user says; or a message with another role, such as the result of a tool.
        **options
            As for `Model.chat`; they count for this answer, before `settings`.

        Returns
        -------
        Answer
            An iterator over `Piece`. When it ends, what it said is the last of `messages`.

        Raises
        ------
        npumatmul.llm.ContextFullError
            If the conversation leaves no room for an answer; what was to be said is none of it then.
        TypeError, ValueError, npumatmul.errors.ClosedError
            As `Model.chat`.
        """
        if not isinstance(message, (str, Mapping)):
            raise TypeError(f"send: a message is a text or a mapping with a role, not {type(message).__name__}")
        if self._answer is not None:
            self._answer.close()
        said: dict[str, Any] = {"role": "user", "content": message} if isinstance(message, str) else dict(message)
        generation = self._model.chat([*self.messages, said], **{**self.settings, **options})
        generation.served_by(_Own(self, self._model._shared))
        self.messages.append(said)
        self._answer = Answer(self, generation)
        return self._answer

    def reset(self) -> None:
        """Forget what was said, but for what the system said first; memory of what was read is given back."""
        if self._answer is not None:
            self._answer.close()
        self.messages = self.messages[:1] if self.messages and self.messages[0].get("role") == "system" else []
        self._cache = None

    def close(self) -> None:
        """End the answer that is under way, and leave what was read to the model's other callers."""
        if self._answer is not None:
            self._answer.close()
        cache, self._cache = self._cache, None
        if cache is not None:
            self._model._shared.give(cache, id(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation into a file, with keys and values of what was read, and with checksums.

        Parameters
        ----------
        path : str or os.PathLike
            A file that exists is replaced once all is written.

        Raises
        ------
        OSError
            If the file cannot be written, or the model's own cannot be read: their digest is noted.
        TypeError
            If a message or a setting is no plain data, as in JSON.
        """
        if self._answer is not None:
            self._answer.close()
        content = {
            "version": _VERSION,
            "model": self._model.name,
            "digest": self._model.digest,
            "schemes": self._model.schemes_digest,
            "scheme": self._model.scheme,
            "messages": self.messages,
            "settings": self.settings,
        }
        try:
            text = json.dumps(content, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"a session is saved as JSON, and holds something else: {error}") from error
        cache = self._model._model.new_cache() if self._cache is None else self._cache
        with self._model._shared.unseen():
            cache.settle()
        cache.notes = {_NOTE: text}
        cache.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Answering) -> Session:
        """As `Model.load_session`."""
        cache = KVCache.load(path)
        content = _content(path, cache)
        if content["digest"] != model.digest:
            raise UnusableFileError(
                f"{os.fspath(path)} is a session with the model {shown(content['model'])}, whose files are others than "
                f"those of {model.name}: load that model"
            )
        if content["schemes"] != model.schemes_digest:
            raise UnusableFileError(
                f"{os.fspath(path)} is a session with weights as {shown(content['scheme'])}; the model is loaded as "
                f"{model.scheme}, or with other layers otherwise: load it as it was"
            )
        config = model._loaded.config
        wrong = cache.layout != model._model.new_cache(1).layout
        if wrong or max(cache.tokens, default=0) >= config.vocab_size:
            raise UnusableFileError(f"the keys and values in {os.fspath(path)} are not those of {model.name}")
        made = cls(model, content["messages"], **content["settings"])
        if cache.length <= model.context:
            cache.capacity = cache.limit = model.context
            made._cache = cache
        return made


class _Own:
    """A session's own cache, beside what its model gives to all."""

    def __init__(self, session: Session, shared: Shared) -> None:
        self._session, self._shared = session, shared

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """The session's, unless the model knows one that holds more of the prompt."""
        own, self._session._cache = self._session._cache, None
        if own is None:
            return self._shared.take(prompt, room)
        shared = shared_length(own.tokens, prompt[:-1])
        return own if shared == own.length or (own.trimmable and shared) else self._shared.take(prompt, room)

    def give(self, cache: KVCache, owner: int) -> None:
        """Keep it in the session."""
        self._session._cache = cache
        self._shared.ended(owner)

    def unseen(self) -> AbstractContextManager[object]:
        """As all others."""
        return self._shared.unseen()

    def ended(self, owner: int) -> None:
        """As all others."""
        self._shared.ended(owner)

    def compute(self, steps: Sequence[Step], unwanted: Callable[[], bool]) -> None:
        """As all others."""
        self._shared.compute(steps, unwanted)


class Answer(Uncopied, Iterator[Piece]):
    """An answer of a session: an iterator over pieces.

    Attributes
    ----------
    text : str
        What was said so far.
    """

    def __init__(self, session: Session, generation: Generation) -> None:
        self._session, self._generation = session, generation
        self.text = ""
        self._noted = False

    def __repr__(self) -> str:
        """Return how far it is."""
        return f"<Answer: {self._generation!r}>"

    def __iter__(self) -> Answer:
        """Return the answer itself."""
        return self

    def __next__(self) -> Piece:
        """Return the next piece."""
        try:
            piece = next(self._generation)
        except BaseException:
            self._note()
            raise
        self.text += piece.text
        if piece.stats is not None:
            self._note()
        return piece

    @property
    def stats(self) -> GenerationStats:
        """Counts and times, as of a `Generation`."""
        return self._generation.stats

    def cancel(self) -> None:
        """End the answer from any thread, as `Generation.cancel`."""
        self._generation.cancel()

    def close(self) -> None:
        """End the answer early, in the thread that iterates; what was said stays said."""
        self._generation.close()
        self._note()

    def _note(self) -> None:
        """What was said belongs to the conversation; where nothing was, neither does the question."""
        if self._noted:
            return
        self._noted = True
        session = self._session
        session._answer = None
        if self.text or self._generation.ids:
            session.messages.append({"role": "assistant", "content": self.text})
        elif session.messages:
            session.messages.pop()


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a session, as they may stand in a file.

    Raises
    ------
    TypeError
        If there is no such setting, or a value is none that stands in a file.
    """
    found = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise TypeError(f"session: there is no setting {name!r}; there are {', '.join(SETTINGS)}")
        if name in ("stop", "stop_ids", "tools") and isinstance(value, (tuple, set, frozenset)):
            value = list(value)
        if not isinstance(value, SETTINGS[name]) or isinstance(value, bool):
            wanted = " or ".join("None" if each is type(None) else each.__name__ for each in SETTINGS[name])
            raise TypeError(f"session: {name} is {shown(value)}; it has to be {wanted}")
        found[name] = value
    return found


def _content(path: str | os.PathLike[str], cache: KVCache) -> dict[str, Any]:
    """The description of a session in a file, with what it has to have."""
    text = cache.notes.pop(_NOTE, None)
    if text is None:
        raise UnusableFileError(f"{os.fspath(path)} is a cache without a conversation, no file of Session.save")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UnusableFileError(f"the session in {os.fspath(path)} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise UnusableFileError(
            f"the session in {os.fspath(path)} is of version {shown(version)}; this npumatmul reads {_VERSION}"
        )
    texts = all(isinstance(content.get(name), str) for name in ("model", "digest", "schemes", "scheme"))
    messages, settings = content.get("messages"), content.get("settings")
    right = isinstance(messages, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages
    )
    if not texts or not right or not isinstance(settings, dict):
        raise UnusableFileError(f"the session in {os.fspath(path)} lacks what belongs to one")
    try:
        checked_settings(settings)
    except TypeError as error:
        raise UnusableFileError(f"the settings in {os.fspath(path)} are none: {error}") from error
    return content
