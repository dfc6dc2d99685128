"""SentencePiece's unigram model (``tokenizer.ggml.model`` is ``t5``)."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.package import failures_as
from npumatmul.llm.tokenizers.sentencepiece import (
    SPACE,
    add_unknown,
    byte_tokens,
    gguf_fragments,
    piece_texts,
    squeezed,
)
from npumatmul.llm.tokenizers.vocabulary import NORMAL, Vocabulary


class Unigram:
    """The engine of a GGUF file's tokenizer of kind ``t5``."""

    def __init__(self, file: GGUFFile, vocabulary: Vocabulary) -> None:
        scores = vocabulary.scores(file)
        self._bytes = byte_tokens(vocabulary)
        self._unk_id = vocabulary.unk_id
        # only what texts may become: control and byte tokens spelled in a text must not be found by the model
        bytes_of_all = frozenset(self._bytes.values())
        self._numbers = [i for i in vocabulary.of_kind(NORMAL) if i not in bytes_of_all]
        vocabulary.numbers(file, self._numbers)
        if not self._numbers:
            raise file.error("its vocabulary has no pieces of text")
        pieces = [(vocabulary.tokens[i], float(scores[i])) for i in self._numbers]
        self._unknown = len(pieces)
        self._model = Tokenizer(
            models.Unigram([*pieces, ("", min(score for _, score in pieces))], unk_id=self._unknown)
        )
        self._fragments = gguf_fragments(file, vocabulary)
        self.leading_space = file.get("tokenizer.ggml.add_space_prefix", bool, True)
        self._squeeze = file.get("tokenizer.ggml.remove_extra_whitespaces", bool, True)
        self._normalizer = _normalizer(file)
        self._error = lambda told: file.error(f"its table of replaced characters fails on this text: {told}")
        self._texts = piece_texts(vocabulary.tokens, vocabulary.kinds, self._bytes)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """As `Engine.encode`."""
        ids: list[int] = []
        for fragment in self._fragments.each(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._encode_text(fragment)
        return ids

    def piece(self, token_id: int) -> bytes:
        """As `Engine.piece`."""
        return self._texts[token_id]

    def _encode_text(self, text: str) -> list[int]:
        if self._normalizer is not None:
            with failures_as(self._error):
                text = self._normalizer.normalize_str(text)
        if self._squeeze:
            text = squeezed(text)
        if self.leading_space and text:
            text = " " + text
        text = text.replace(" ", SPACE)
        ids: list[int] = []
        found = self._model.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            if number == self._unknown:
                add_unknown(ids, text[start:end], self._bytes, self._unk_id)
            else:
                ids.append(self._numbers[number])
        return ids


def _normalizer(file: GGUFFile) -> normalizers.Normalizer | None:
    """The table of characters that are replaced, which SentencePiece compiles."""
    table = file.get("tokenizer.ggml.precompiled_charsmap", list, [])
    if not table:
        return None
    with failures_as(lambda told: file.error(f"metadata 'tokenizer.ggml.precompiled_charsmap' is damaged: {told}")):
        return normalizers.Precompiled(bytes(number % 256 for number in table))
