"""Chat templates: from a list of messages to the prompt a model was trained on.

A template is a Jinja program that comes with the model, so it runs in Jinja's sandbox, and with the same settings and
helper functions as in Hugging Face transformers, for which templates are written.

The result is one string in which control tokens are spelled out, and it must be encoded with ``parse_special=True``.
A message that spells a control token therefore also becomes that token, as in transformers and llama.cpp. Whoever
passes on messages from people they do not trust should refuse or change such text first; `control_texts` finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from npumatmul.errors import ModelError
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.bpe import GGUFTokenizer

Message = Mapping[str, Any]


class _Refused(jinja2.TemplateError):
    """Raised by a template through raise_exception()."""


class _Generation(jinja2.ext.Extension):
    """The ``{% generation %}`` block of transformers, which marks training data: rendered as its contents."""

    tags = {"generation"}  # noqa: RUF012 (declared so by the base class)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
        If the template has a syntax error.

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
    def from_gguf(cls, file: GGUFFile, tokenizer: GGUFTokenizer) -> ChatTemplate:
        """Read the template of a GGUF file.

        Parameters
        ----------
        file : GGUFFile
            An open file.
        tokenizer : GGUFTokenizer
            Its tokenizer, which knows how the special tokens are spelled.

        Returns
        -------
        ChatTemplate
            The template, or a plain one if the file has none.

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
        source = file.get("tokenizer.chat_template", str)
        return cls(source, special, origin=f"chat template of {file.path}")

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
            If the template fails.
        """
        plain = _plain_messages(messages)
        if self._template is None:
            return "\n".join(str(message.get("content") or "") for message in plain)
        try:
            data = json.loads(json.dumps({"tools": tools, **variables}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"tools and template variables must be plain data, as in JSON: {error}") from error
        context = {**self._special_tokens, "documents": None, **data}
        try:
            return self._template.render(messages=plain, add_generation_prompt=add_generation_prompt, **context)
        except _Refused as error:
            raise ValueError(f"the {self._origin} refuses these messages: {error}") from error
        except Exception as error:  # a template is a program of someone else's: it can fail in any way
            raise ModelError(f"the {self._origin} fails with {type(error).__name__}: {error}") from error

    def _compile(self, source: str) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            return environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the {self._origin} cannot be compiled: {error}") from error


def control_texts(text: str, tokenizer: GGUFTokenizer) -> list[str]:
    """Find the control tokens that a text spells.

    Parameters
    ----------
    text : str
        Text from outside, such as the content of a message.
    tokenizer : GGUFTokenizer
        The tokenizer of the model.

    Returns
    -------
    list of str
        The control tokens in it, in order; empty if the text is harmless.
    """
    ids = tokenizer.encode(text, parse_special=True, add_special=False)
    return [token for i in ids if i in tokenizer.control_ids and (token := tokenizer.token(i)) is not None]


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check messages and rebuild them out of plain data, so that a template never meets a live object."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError('messages must be a list of mappings such as {"role": "user", "content": "Hello"}')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f'message {i} must be a mapping with a "role", such as "user", and a "content"')
    try:
        plain: list[dict[str, Any]] = json.loads(json.dumps([dict(message) for message in messages]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"messages must be plain data, as in JSON: {error}") from error
    return plain


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialise as JSON; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
