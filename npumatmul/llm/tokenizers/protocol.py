"""What every tokenizer offers, and what all of them share: special tokens, decoding, checks of text."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from npumatmul.files.reading import shown
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.arguments import check_flags

STOP_TOKENS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|call|>",
        "<|calls|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|flush|>",
        "<|im_end|>",
        "<|return|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[EOS]",
        "[EOT]",
        "[e~[",
        "_<EOT>",
    }
)
"""Tokens that end an answer, and are control tokens, whatever the metadata says of them: the names that llama.cpp
knows. Converters have written them as words, and then answers went on past their end."""


def token_numbers(ids: Iterable[int], what: str) -> list[int]:
    """Token numbers as plain ints.

    Raises
    ------
    TypeError
        If it is no sequence of whole numbers.
    """
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        raise TypeError(
            f"{what} is to be whole numbers of tokens, as tokenizer.encode makes them of a text, not {shown(ids)}"
        ) from None


class Tokenizer(Protocol):
    """Turns text into token numbers and back.

    `GGUFTokenizer` and `JSONTokenizer` are tokenizers; so is anything else that has these names.

    Attributes
    ----------
    vocab_size : int
        Number of tokens.
    bos_id, eos_id, unk_id, pad_id : int or None
        Special tokens that the model names.
    add_bos, add_eos : bool
        Whether `encode` adds the first two.
    stop_ids : frozenset of int
        Tokens that end an answer.
    control_ids : frozenset of int
        Control tokens; they have no text of their own.
    leading_space : bool
        Whether the vocabulary writes a space in front of every text, which is not part of it.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None
    add_bos: bool
    add_eos: bool
    stop_ids: frozenset[int]
    control_ids: frozenset[int]
    leading_space: bool

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        """Turn text into token numbers."""
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Turn token numbers into text."""
        ...

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return what one token adds to the text; not always whole characters."""
        ...

    def token(self, token_id: int | None) -> str | None:
        """Return how the vocabulary spells a token; None for None."""
        ...


@dataclass(frozen=True)
class SpecialTokens:
    """Which tokens of a vocabulary are special; the names are those of `Tokenizer`."""

    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    stop_ids: frozenset[int] = frozenset()
    control_ids: frozenset[int] = frozenset()


class Engine(Protocol):
    """What differs between kinds of vocabularies."""

    leading_space: bool
    """Whether it writes a space in front of every text."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Token numbers of a text, with no tokens added at its ends."""
        ...

    def piece(self, token_id: int) -> bytes:
        """What a token adds to the text, in the midst of it."""
        ...


class BaseTokenizer(Uncopied):
    """A `Tokenizer` made of an engine and special tokens."""

    def __init__(self, engine: Engine, tokens: list[str], special: SpecialTokens) -> None:
        self._engine = engine
        self._tokens = tokens
        self.vocab_size = len(tokens)
        self.bos_id = special.bos_id
        self.eos_id = special.eos_id
        self.unk_id = special.unk_id
        self.pad_id = special.pad_id
        self.add_bos = special.add_bos
        self.add_eos = special.add_eos
        self.stop_ids = special.stop_ids
        self.control_ids = special.control_ids
        self.leading_space = engine.leading_space
        self._before = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        self._after = [self.eos_id] if self.add_eos and self.eos_id is not None else []

    def __repr__(self) -> str:
        """Return the size of the vocabulary."""
        return f"<{type(self).__name__}: {self.vocab_size} tokens>"

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        """Turn text into token numbers.

        Parameters
        ----------
        text : str
            Any text.
        parse_special : bool, default False
            Whether the names of control tokens, such as ``<|im_end|>``, become those tokens. False treats them as
            ordinary text: use it for text from outside. Rendered chat templates need True, as they spell control
            tokens out. (Tokens of the user-defined kind are plain words of the model and always match.)
        add_special : bool, default True
            Whether to add the begin and end tokens, where the model asks for them. Rendered chat templates need
            False: they contain them.

        Returns
        -------
        list of int
            Token numbers.

        Raises
        ------
        TypeError
            If `text` is no str.
        ValueError
            If the text holds half a surrogate pair, which is not a character: text that Python could not decode.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: a text is a str, not {type(text).__name__}")
        check_flags("encode", parse_special=parse_special, add_special=add_special)
        problem = not_characters(text)
        if problem:
            raise ValueError(f"the text {problem}")
        ids = self._engine.encode(text, parse_special)
        return [*self._before, *ids, *self._after] if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Turn token numbers into text.

        Parameters
        ----------
        ids : iterable of int
            Token numbers.
        skip_special : bool, default True
            Whether control tokens are left out.

        Returns
        -------
        str
            The text, without the space that some vocabularies write in front of every text; bytes that are not UTF-8
            become U+FFFD.

        Raises
        ------
        ValueError
            If a number is not in the vocabulary.
        """
        check_flags("decode", skip_special=skip_special)
        data = b"".join(self.token_bytes(i, skip_special=skip_special) for i in token_numbers(ids, "decode: ids"))
        if self.leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return what one token adds to the text; not always whole characters.

        Parameters
        ----------
        token_id : int
            Token number.
        skip_special : bool, default True
            Whether control tokens are empty.

        Returns
        -------
        bytes
            Part of a UTF-8 text.

        Raises
        ------
        ValueError
            If the number is not in the vocabulary.
        """
        token_id = self._number(token_id, "token_bytes")
        check_flags("token_bytes", skip_special=skip_special)
        if skip_special and token_id in self.control_ids:
            return b""
        return self._engine.piece(token_id)

    def token(self, token_id: int | None) -> str | None:
        """Return how the vocabulary spells a token, such as ``<|im_end|>``; None for None.

        Parameters
        ----------
        token_id : int or None
            Token number.

        Returns
        -------
        str or None
            The entry of the vocabulary, in its own spelling.

        Raises
        ------
        ValueError
            If the number is not in the vocabulary.
        """
        return None if token_id is None else self._tokens[self._number(token_id, "token")]

    def _number(self, token_id: int, call: str) -> int:
        """A number of a token as a plain int."""
        try:
            number = operator.index(token_id)
        except TypeError:
            raise TypeError(f"{call}: token_id is the whole number of a token, not {shown(token_id)}") from None
        if not 0 <= number < self.vocab_size:
            raise ValueError(f"token {shown(number)} is not in the vocabulary of {self.vocab_size} tokens")
        return number


def not_characters(text: str) -> str | None:
    r"""What in a text is no character, in words to follow the name of the text; None where all of it is text.

    Python makes halves of surrogate pairs of bytes of the command line or of a file that it cannot decode.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str or None
        The end of a sentence.

    Examples
    --------
    >>> not_characters("caf\udce9")
    'is not UTF-8: the byte 0xe9 at position 3 belongs to no character'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # PEP 383: a byte that could not be decoded
            return f"is not UTF-8: the byte 0x{code - 0xDC00:02x} at position {error.start} belongs to no character"
        return f"holds half a surrogate pair at position {error.start}, which is not a character"
    return None
