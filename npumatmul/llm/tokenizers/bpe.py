"""Byte-level byte-pair encoding (``tokenizer.ggml.model`` is ``gpt2``).

It is what Llama 3, SmolLM, Qwen, Mistral Nemo and most newer models use. The merging itself is done by the
``tokenizers`` package; `words.PRE_TOKENIZERS` says how the vocabulary wants text to be cut into words first.
"""

from __future__ import annotations

import logging

from tokenizers import AddedToken, Tokenizer, decoders, models

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.lock import Lock
from npumatmul.llm.tokenizers.package import failures_as
from npumatmul.llm.tokenizers.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary
from npumatmul.llm.tokenizers.words import PRE_TOKENIZERS, PreTokenizer

logger = logging.getLogger(__name__)


class ByteLevelBPE:
    """The engine of a GGUF file's tokenizer of kind ``gpt2``."""

    leading_space = False

    def __init__(self, file: GGUFFile, vocabulary: Vocabulary) -> None:
        self._tokens, self._kinds = vocabulary.tokens, vocabulary.kinds
        self._backend = _backend(file, pre_tokenizer(file), vocabulary)
        self._lock = Lock()  # encode() switches a setting of the backend

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """As `Engine.encode`."""
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            with failures_as(lambda told: ValueError(f"the text cannot be cut into words: {told}")):
                return list(self._backend.encode(text, add_special_tokens=False).ids)

    def piece(self, token_id: int) -> bytes:
        """As `Engine.piece`."""
        token = self._tokens[token_id]
        try:
            spelled = self._kinds[token_id] not in (CONTROL, USER_DEFINED)
            return token.translate(_SPELLED).encode("latin-1") if spelled else token.encode("utf-8")
        except UnicodeEncodeError:
            return token.encode("utf-8")


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for (the table of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


#: To the characters that Latin-1 encodes as the bytes; what stands for no byte becomes one that it has not.
_SPELLED = {code: "\u0100" for code in range(256) if chr(code) not in byte_alphabet()}
_SPELLED.update({ord(char): chr(byte) for char, byte in byte_alphabet().items()})


def pre_tokenizer(file: GGUFFile) -> PreTokenizer:
    """How a file wants text to be cut into words.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is not known; the message lists those that are.
    """
    name = file.get("tokenizer.ggml.pre", str)
    if name is None:
        logger.warning("%s does not name its pre-tokenizer; GPT-2's is used", file.path)
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise file.error(f"its pre-tokenizer is {name!r}; supported: {', '.join(sorted(PRE_TOKENIZERS))}")
    return PRE_TOKENIZERS[name]


def _backend(file: GGUFFile, pre: PreTokenizer, vocabulary: Vocabulary) -> Tokenizer:
    # a token without a spelling fills a gap between numbers: no text becomes it, and it adds none
    vocab = vocabulary.numbers(file, [i for i, token in enumerate(vocabulary.tokens) if token])
    given = file.require("tokenizer.ggml.merges", list)
    merges = [str(merge).partition(" ")[::2] for merge in given]
    for merge, (left, right) in zip(given, merges, strict=True):
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise file.error(f"merge {merge!r} of its tokenizer uses a token that is not in the vocabulary")
    with failures_as(lambda told: file.error(f"its tokenizer is damaged: {told}")):
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=pre.whole_words))
        backend.pre_tokenizer = pre.build()
        backend.decoder = decoders.ByteLevel()
        for special, kinds in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
            added = [
                AddedToken(vocabulary.tokens[i], normalized=False, special=special) for i in vocabulary.of_kind(*kinds)
            ]
            (backend.add_special_tokens if special else backend.add_tokens)(added)
    return backend
