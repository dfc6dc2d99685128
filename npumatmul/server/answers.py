"""Answers of a model, computed in a thread and handed over piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from npumatmul.llm import Format, Generation, GenerationStats, Model, Piece, Prompt, StopReason, control_texts
from npumatmul.server.desk import Job
from npumatmul.server.errors import ApiError, of_answer, of_request
from npumatmul.server.rules import Penalties, rules
from npumatmul.server.settings import Settings

__all__ = ["Ask", "Part", "answering", "check_length", "ended_by"]

CHARACTERS, LEAST_CHARACTERS = 64, 1 << 18
"""Of a text, for each token of a context and in all; no text has so many in each of its tokens."""

MARKS = frozenset({"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"})
MARKS |= {"<think>", "</think>"}
"""Control tokens that mean something to who reads an answer."""


class Part(NamedTuple):
    """A piece of one of the answers to a request.

    Attributes
    ----------
    number : int
        Which answer.
    text : str
        What it adds.
    piece : Piece
        The token.
    stats : GenerationStats or None
        With the last piece of an answer.
    """

    number: int
    text: str
    piece: Piece
    stats: GenerationStats | None


@dataclass(frozen=True)
class Ask:
    """What is asked of a model.

    Attributes
    ----------
    model : Model
        The model.
    prompt : str or sequence
        A text, token numbers, or the messages of a conversation.
    tools, variables
        For the chat template.
    max_tokens : int or None
        Tokens at most; None is as many as the context has room for.
    options : mapping
        How tokens are chosen, as `Model.generate` takes it.
    seed : int or None
        For the first answer; the next has the next.
    penalties, bias, form
        What is done to scores; the form is made in the thread.
    """

    model: Model
    prompt: Prompt
    max_tokens: int | None
    options: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    seed: int | None = None
    penalties: Penalties = field(default_factory=Penalties)
    bias: Mapping[int, float] = field(default_factory=dict)
    form: Callable[[], Format] | None = None

    def begin(self, choice: int, settings: Settings) -> Generation:
        """The generation of one of several answers."""
        model = self.model
        limits = [each for each in (self.max_tokens, settings.max_tokens) if each is not None]
        constraint = rules(self.penalties, self.bias, None if self.form is None else self.form().constraint())
        given: dict[str, Any] = {
            **self.options,
            "max_tokens": min(limits, default=model.context),
            "seed": None if self.seed is None else (self.seed + choice) % (1 << 63),
            "constraint": constraint,
            "speculation": settings.speculation,
        }
        wrong = next((token for token in self.bias if token >= model.vocab_size), None)
        if wrong is not None:
            raise ApiError(400, f"logit_bias has token {wrong}; there are {model.vocab_size}", param="logit_bias")
        messages = self._messages()
        if messages is None:
            if isinstance(self.prompt, str):
                check_length(self.prompt, model, "the prompt")
            made = model.generate(self.prompt, **given)
        else:
            for i, message in enumerate(messages):
                check_length(str(message.get("content")), model, f"message {i}")
            if settings.control_texts == "refuse":
                _refuse_control_texts(messages, model)
            made = model.chat(messages, tools=self.tools, variables=self.variables, **given)
        if constraint is not None and self.penalties.repetition != 1:
            constraint.read(self._ids())
        most = settings.max_prompt_tokens
        if most is not None and made.stats.prompt_tokens > most:
            raise ApiError(
                400,
                f"the prompt has {made.stats.prompt_tokens} tokens; this server takes at most {most}",
                code="context_length_exceeded",
            )
        return made

    def _messages(self) -> Sequence[Mapping[str, Any]] | None:
        """The conversation, where the prompt is one."""
        if isinstance(self.prompt, str) or not len(self.prompt) or not isinstance(self.prompt[0], Mapping):
            return None
        return self.prompt  # type: ignore[return-value]

    def _ids(self) -> Sequence[int]:
        """The tokens of the prompt."""
        messages = self._messages()
        if messages is not None:
            return self.model.encode_chat(messages, tools=self.tools, variables=self.variables)
        return self.model.tokenizer.encode(self.prompt) if isinstance(self.prompt, str) else self.prompt  # type: ignore[return-value]


def check_length(text: str, model: Model, what: str) -> None:
    """Refuse a text that no context is long enough for, before it is turned into tokens, which takes long.

    Raises
    ------
    ApiError
        If it has more characters than `CHARACTERS` for each token of the context.
    """
    most = max(CHARACTERS * model.context, LEAST_CHARACTERS)
    if len(text) > most:
        raise ApiError(
            400,
            f"{what} has {len(text)} characters; a context of {model.context} tokens has room for no more than {most}",
            code="context_length_exceeded",
        )


def _refuse_control_texts(messages: Sequence[Mapping[str, Any]], model: Model) -> None:
    for i, message in enumerate(messages):
        content = message.get("content")
        found = control_texts(content, model.tokenizer) if isinstance(content, str) and content else []
        if found:
            raise ApiError(
                400,
                f"message {i} spells {found[0]!r}, which would become a control token of the conversation: write it "
                "differently, or start the server with --control-texts allow",
                param="messages",
            )


def answering(asks: Sequence[Ask], choices: int, settings: Settings) -> Callable[[Job], None]:
    """Work that gives a `Part` for each piece of so many answers to each of some prompts, one after another."""

    def work(job: Job) -> None:
        for index in range(len(asks) * choices):
            ask = asks[index // choices]
            try:
                generation = ask.begin(index % choices, settings)
            except Exception as error:
                raise of_request(error) from error
            job.cancelled_by(generation.cancel)
            try:
                for piece in generation:
                    job.give(Part(index, _text(piece, ask.model), piece, piece.stats))
            except Exception as error:
                job.check()  # who went away is told nothing
                raise of_answer(error) from error
            finally:
                generation.close()
            job.check()

    return work


def _text(piece: Piece, model: Model) -> str:
    """What a piece adds, with control tokens that mean something."""
    if piece.token in model.tokenizer.control_ids:
        mark = model.tokenizer.token(piece.token)
        if mark in MARKS:
            return mark + piece.text
    return piece.text


def ended_by(stats: GenerationStats) -> str:
    """OpenAI's and Ollama's word for why an answer ended."""
    return "stop" if stats.stop_reason in (StopReason.STOP_TOKEN, StopReason.STOP_TEXT) else "length"
