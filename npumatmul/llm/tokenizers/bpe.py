"""Text to token numbers and back, from the vocabulary stored in a GGUF file.

Byte-level BPE (``tokenizer.ggml.model == "gpt2"``) is supported: it is what Llama 3, SmolLM, Qwen 2, Mistral Nemo and
most newer models use. The BPE itself is done by the ``tokenizers`` package; this module tells it how the vocabulary
wants text to be cut into words first (`PRE_TOKENIZERS`), and which tokens are special.
"""

from __future__ import annotations

import codecs
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from npumatmul.llm.files.gguf import GGUFFile

logger = logging.getLogger(__name__)

SUPPORTED_MODELS = ("gpt2",)

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

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

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before BPE.

    Attributes
    ----------
    pattern : str or None
        Regular expression of a word; None is GPT-2's.
    digits : bool
        Whether every digit is cut off first.
    whole_words : bool
        Whether a word that is in the vocabulary is taken as it is, without merging.
    add_bos : bool
        Whether a beginning-of-sequence token is put in front if the metadata does not say.
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """Make the pre-tokenizer of the ``tokenizers`` package."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)


_GPT2_WORDS = PreTokenizer()
_DIGITS_AND_GPT2_WORDS = PreTokenizer(digits=True)
_LLAMA3_WORDS = PreTokenizer(_LLAMA3, whole_words=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2_WORDS,
    "gpt-2": _GPT2_WORDS,
    "mpt": _GPT2_WORDS,
    "olmo": _GPT2_WORDS,
    "phi-2": _GPT2_WORDS,
    "codeshell": _DIGITS_AND_GPT2_WORDS,
    "command-r": _DIGITS_AND_GPT2_WORDS,
    "exaone": _DIGITS_AND_GPT2_WORDS,
    "refact": _DIGITS_AND_GPT2_WORDS,
    "smollm": _DIGITS_AND_GPT2_WORDS,
    "starcoder": _DIGITS_AND_GPT2_WORDS,
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "falcon3": _LLAMA3_WORDS,
    "dbrx": PreTokenizer(_LLAMA3),
    "smaug-bpe": PreTokenizer(_LLAMA3),
    "qwen2": PreTokenizer(_QWEN2),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2),
    "stablelm2": PreTokenizer(_QWEN2),
    "tekken": PreTokenizer(_TEKKEN, whole_words=True, add_bos=True),
}
"""Pre-tokenizers by ``tokenizer.ggml.pre``."""


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for (the table of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class GGUFTokenizer:
    """The tokenizer of a language model.

    Parameters
    ----------
    file : GGUFFile
        An open file with ``tokenizer.ggml.*`` metadata.

    Attributes
    ----------
    vocab_size : int
        Number of tokens.
    bos_id, eos_id, unk_id, pad_id : int or None
        Special tokens named by the metadata; None too where it names a number that no token has.
    add_bos, add_eos : bool
        Whether `encode` adds the first two.
    stop_ids : frozenset of int
        Tokens that end an answer: end of sequence, end of turn, and the well-known names in `STOP_TOKENS`.
    control_ids : frozenset of int
        Control tokens; they have no text of their own.

    Raises
    ------
    npumatmul.errors.ModelError
        If the vocabulary is damaged or of a kind that is not supported; the message lists those that are.

    Notes
    -----
    Some vocabularies lack a few bytes (SmolLM2's lacks 0xF1 and most control characters). Such bytes have no token and
    are left out, as the reference implementations do.

    Examples
    --------
    >>> from npumatmul.llm import GGUFFile, GGUFTokenizer, fetch_demo_model
    >>> with GGUFFile(fetch_demo_model()) as file:
    ...     tokenizer = GGUFTokenizer(file)
    >>> tokenizer.encode("Hello world")
    [19556, 905]
    """

    def __init__(self, file: GGUFFile) -> None:
        model = file.require("tokenizer.ggml.model", str)
        if model not in SUPPORTED_MODELS:
            raise file.error(
                f"its tokenizer is of kind {model!r}; supported: {', '.join(SUPPORTED_MODELS)} (byte-level BPE, as "
                "SmolLM2 and Llama 3 have it)"
            )
        pre = _pre_tokenizer(file)
        tokens = _strings(file, "tokenizer.ggml.tokens")
        kinds = _token_types(file, tokens)
        self.vocab_size = len(tokens)
        self._tokens = tokens
        self.control_ids = frozenset(i for i, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN))
        self.bos_id = _special_id(file, "bos", len(tokens))
        self.eos_id = _special_id(file, "eos", len(tokens))
        self.unk_id = _special_id(file, "unknown", len(tokens))
        self.pad_id = _special_id(file, "padding", len(tokens))
        self.add_bos = file.get("tokenizer.ggml.add_bos_token", bool, pre.add_bos)
        self.add_eos = file.get("tokenizer.ggml.add_eos_token", bool, False)
        for name, wanted, found in (("a begin", self.add_bos, self.bos_id), ("an end", self.add_eos, self.eos_id)):
            if wanted and found is None:
                raise file.error(f"its tokenizer adds {name} token to texts, but names none that it has")
        named = (self.eos_id, _special_id(file, "eot", len(tokens)), _special_id(file, "eom", len(tokens)))
        known = (i for i in self.control_ids if tokens[i] in STOP_TOKENS)
        self.stop_ids = frozenset({i for i in named if i is not None} | set(known))
        if not self.stop_ids:
            logger.warning("%s names no token that ends an answer: answers go on to their greatest length", file.path)
        self._bytes = _token_bytes(tokens, kinds)
        self._backend = _backend(file, pre, tokens, kinds)
        self._lock = threading.Lock()  # encode() switches a setting of the backend

    def __repr__(self) -> str:
        """Return the size of the vocabulary."""
        return f"<GGUFTokenizer: {self.vocab_size} tokens>"

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
        ValueError
            If the text holds half a surrogate pair, which is not a character: text that Python could not decode.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: a text is a str, not {type(text).__name__}")
        problem = not_characters(text)
        if problem:
            raise ValueError(f"the text {problem}")
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

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
            The text; bytes that are not UTF-8 become U+FFFD.

        Raises
        ------
        ValueError
            If a number is not in the vocabulary.
        """
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids).decode("utf-8", "replace")

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
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        if skip_special and token_id in self.control_ids:
            return b""
        return self._bytes[token_id]

    def token(self, token_id: int | None) -> str | None:
        """Return how the vocabulary spells a token, such as ``<|im_end|>``; None for None.

        Parameters
        ----------
        token_id : int or None
            Token number.

        Returns
        -------
        str or None
            The entry of the vocabulary, in byte-level spelling.
        """
        return None if token_id is None else self._tokens[token_id]


class StreamDecoder:
    """Turns tokens into text as they come, never splitting a character.

    A character may be spread over several tokens; its bytes are held back until it is complete. Each token is looked
    at once, so the time for a text is proportional to its length. The pieces put together are exactly
    ``tokenizer.decode(ids)``.

    Parameters
    ----------
    tokenizer : GGUFTokenizer
        The tokenizer.
    skip_special : bool, default True
        Whether control tokens are left out.
    """

    def __init__(self, tokenizer: GGUFTokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is complete with it.

        Parameters
        ----------
        token_id : int
            Token number.

        Returns
        -------
        str
            Zero or more whole characters.

        Raises
        ------
        ValueError
            If the number is not in the vocabulary.
        """
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))

    def finish(self) -> str:
        """Return what has been held back: U+FFFD if a character was cut off, else nothing.

        Returns
        -------
        str
            The end of the text. The decoder can be used again for another one.
        """
        rest = self._utf8.decode(b"", True)
        self._utf8.reset()
        return rest


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


def _pre_tokenizer(file: GGUFFile) -> PreTokenizer:
    name = file.get("tokenizer.ggml.pre", str)
    if name is None:
        logger.warning("%s does not name its pre-tokenizer; GPT-2's is used", file.path)
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise file.error(f"its pre-tokenizer is {name!r}; supported: {', '.join(sorted(PRE_TOKENIZERS))}")
    return PRE_TOKENIZERS[name]


def _strings(file: GGUFFile, key: str) -> list[str]:
    values = file.require(key, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise file.error(f"metadata {key!r} must be a list of strings, and not an empty one")
    return values


def _token_types(file: GGUFFile, tokens: Sequence[str]) -> list[int]:
    kinds = file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(kinds) != len(tokens) or not all(isinstance(kind, int) for kind in kinds):
        raise file.error(
            f"metadata 'tokenizer.ggml.token_type' must hold one number for each of the {len(tokens)} tokens"
        )
    return [CONTROL if token in STOP_TOKENS else kind for token, kind in zip(tokens, kinds, strict=True)]


def _special_id(file: GGUFFile, name: str, count: int) -> int | None:
    """The number of a special token; one that no token has is how some converters say that there is none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.get(key, int)
    if value is not None and not 0 <= value < count:
        logger.warning("%s: metadata %r is %d, but there are %d tokens; it is ignored", file.path, key, value, count)
        return None
    return value


def _token_bytes(tokens: Sequence[str], kinds: Sequence[int]) -> list[bytes]:
    """Return what each token adds to the text."""
    alphabet = _byte_alphabet()
    pieces = []
    for token, kind in zip(tokens, kinds, strict=True):
        spelled = kind not in (CONTROL, USER_DEFINED) and all(char in alphabet for char in token)
        pieces.append(bytes(alphabet[char] for char in token) if spelled else token.encode("utf-8"))
    return pieces


def _backend(file: GGUFFile, pre: PreTokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token:  # fills a gap between numbers: no text becomes this token, and it adds none
            continue
        if vocab.setdefault(token, i) != i:
            raise file.error(f"tokens {vocab[token]} and {i} of its vocabulary are the same, {token!r}")
    merges = []
    for merge in _strings(file, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise file.error(f"merge {merge!r} of its tokenizer uses a token that is not in the vocabulary")
        merges.append((left, right))
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=pre.whole_words))
        backend.pre_tokenizer = pre.build()
        backend.decoder = decoders.ByteLevel()
        for special, wanted in ((True, CONTROL), (False, USER_DEFINED)):
            added = [
                AddedToken(token, normalized=False, special=special)
                for token, kind in zip(tokens, kinds, strict=True)
                if kind == wanted and token
            ]
            (backend.add_special_tokens if special else backend.add_tokens)(added)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise file.error(f"its tokenizer is damaged: {error}") from error
    return backend
