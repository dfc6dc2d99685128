"""Chat templates: from a list of messages to the prompt a model was trained on.

A template is a Jinja program that comes with the model, so it runs in Jinja's sandbox, with limits of time and memory,
and with the same settings and helper functions as in Hugging Face transformers, for which templates are written.

The result is one string in which control tokens are spelled out, and it must be encoded with ``parse_special=True``.
A message that spells a control token therefore also becomes that token, as in transformers and llama.cpp. Whoever
passes on messages from people they do not trust should refuse or change such text first; `control_texts` finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.run.template_budget import current_budget
from npumatmul.llm.run.template_sandbox import BoundedTemplate, Refused
from npumatmul.llm.tokenizers.protocol import Tokenizer

Message = Mapping[str, Any]


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source : str or None
        Jinja source. None makes a plain template for models without one: the contents of the messages, one per line.
    special_tokens : mapping of str to str, optional
        Names that the template may use, such as ``bos_token``.
    origin : str, optional
        Where the template comes from, for error messages.

    Raises
    ------
    npumatmul.errors.ModelError
        If the template has a syntax error, or is longer than any that is in use.

    Examples
    --------
    >>> from npumatmul.llm import ChatTemplate
    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "Hi"}])
    '<user>Hi'
    """

    def __init__(
        self,
        source: str | None,
        special_tokens: Mapping[str, str] | None = None,
        *,
        origin: str = "chat template",
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._origin = origin
        self._template = None if source is None else self._compile(source)

    @classmethod
    def of(cls, source: ModelSource, tokenizer: Tokenizer) -> ChatTemplate:
        """Read the template of a model.

        Parameters
        ----------
        source : ModelSource
            An open model.
        tokenizer : Tokenizer
            Its tokenizer, which knows how the special tokens are spelled.

        Returns
        -------
        ChatTemplate
            The template, or a plain one if the model has none.

        Raises
        ------
        npumatmul.errors.ModelError
            If the template has a syntax error.
        """
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "unk_token": tokenizer.unk_id,
            "pad_token": tokenizer.pad_id,
        }
        special = {name: text for name, i in ids.items() if (text := tokenizer.token(i)) is not None}
        return cls(source.chat_template, special, origin=f"chat template of {source.path}")

    def __repr__(self) -> str:
        """Return the length of the source."""
        return "<ChatTemplate: plain>" if self.source is None else f"<ChatTemplate: {len(self.source)} characters>"

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Make the prompt for a conversation.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role``, such as ``"user"``, and usually a ``content``; plain data as in JSON.
        add_generation_prompt : bool, default True
            Whether to end with the start of an answer.
        tools : sequence of mappings, optional
            Descriptions of tools, for templates that know them.
        **variables
            Further variables of the template; plain data as in JSON.

        Returns
        -------
        str
            The prompt, control tokens spelled out.

        Raises
        ------
        ValueError
            If the messages are malformed, or the template refuses them.
        npumatmul.errors.ModelError
            If the template fails, or would take too long or too much memory.
        """
        plain, size = _plain(_checked(messages), "messages")
        if tools is not None and (isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence)):
            raise ValueError(f"tools are a list of mappings that describe one each, not {type(tools).__name__}")
        if self._template is None:
            return "\n".join(str(message.get("content") or "") for message in plain)
        data, more = _plain({"tools": tools, **variables}, "tools and template variables")
        context = {**self._special_tokens, "documents": None, **data}
        context |= {"messages": plain, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(size + more, context)
        except Refused as error:
            raise ValueError(f"the {self._origin} refuses these messages: {error}") from error
        except Exception as error:  # a template is a program of someone else's: it can fail in any way
            for i, message in enumerate(plain):
                content = message.get("content")
                if not isinstance(content, str):  # some templates know parts and answers without a text, most do not
                    raise ValueError(
                        f"the {self._origin} fails with {_told(error)}; the content of message {i} is "
                        f"{_kind(content)}: give a text, which every template takes"
                    ) from error
            raise ModelError(f"the {self._origin} fails with {_told(error)}") from error

    def _compile(self, source: str) -> BoundedTemplate:
        try:
            return BoundedTemplate(source, _tojson)
        except Exception as error:  # nor can Jinja and Python compile whatever they are given
            raise ModelError(f"the {self._origin} cannot be compiled: {_told(error)}") from error


def control_texts(text: str, tokenizer: Tokenizer) -> list[str]:
    """Find the control tokens that a text spells.

    Parameters
    ----------
    text : str
        Text from outside, such as the content of a message.
    tokenizer : Tokenizer
        The tokenizer of the model.

    Returns
    -------
    list of str
        The control tokens in it, in order; empty if the text is harmless.
    """
    ids = tokenizer.encode(text, parse_special=True, add_special=False)
    return [token for i in ids if i in tokenizer.control_ids and (token := tokenizer.token(i)) is not None]


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError('messages must be a list of mappings such as {"role": "user", "content": "Hello"}')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f'message {i} must be a mapping with a "role", such as "user", and a "content"')
        if message["role"] in ("user", "system") and "content" not in message:  # answers may have tool calls instead
            keys = ", ".join(map(repr, message))
            raise ValueError(f'message {i} has no "content", which would leave its text out; it has {keys}')
    if not messages:
        raise ValueError("messages is empty: a conversation has a message that is to be answered")
    return [dict(message) for message in messages]


def _kind(content: object) -> str:
    return "missing or None" if content is None else f"a {type(content).__name__}"


def _plain(value: Any, what: str) -> tuple[Any, int]:
    """A value rebuilt out of plain data, so that a template never meets a live object, and its length as JSON."""
    try:
        text = json.dumps(value)
        return json.loads(text), len(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be plain data, as in JSON: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialise as JSON; Jinja's own filter escapes HTML."""
    budget = current_budget()
    size = budget.weigh(value)
    margin = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    between = sum(map(len, separators)) if separators is not None else 2
    budget.fits(size * (between + 1) + (margin * _margins(value) if margin > 0 else 0))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    made: str = budget.result(text)
    return made


def _margins(value: Any) -> int:
    """How often lines of the value as indented JSON are indented, all together."""
    total, rest = 0, [(value, 1)]
    while rest:
        each, depth = rest.pop()
        if isinstance(each, (dict, list, tuple)):
            total += (len(each) + 1) * depth
            rest.extend((inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each))
    return total


def _told(error: Exception) -> str:
    """Kind and text of an error, which may hold whatever a template made."""
    text = str(error)
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
