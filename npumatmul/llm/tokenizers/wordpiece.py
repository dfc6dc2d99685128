"""WordPiece (``tokenizer.ggml.model`` is ``bert``): the longest piece first, from the left of each word."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.package import failures_as
from npumatmul.llm.tokenizers.sentencepiece import SPACE, gguf_fragments
from npumatmul.llm.tokenizers.vocabulary import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_LONGEST_WORD = 100
_JOINED_TO_THE_LEFT = frozenset(".?!,")


class WordPiece:
    """The engine of a GGUF file's tokenizer of kind ``bert``.

    In such files a piece that begins a word has the mark of a space in front, and one that goes on with it has none.
    """

    leading_space = True

    def __init__(self, file: GGUFFile, vocabulary: Vocabulary) -> None:
        if vocabulary.unk_id is None:
            raise file.error("its tokenizer names no token for unknown words")
        unknown = vocabulary.tokens[vocabulary.unk_id]
        apart = (CONTROL, UNKNOWN, USER_DEFINED, UNUSED)
        vocab = {unknown: vocabulary.unk_id}
        for token, i in vocabulary.numbers(file, range(len(vocabulary.tokens))).items():
            if vocabulary.kinds[i] not in apart:
                vocab[token[1:] if token.startswith(SPACE) else f"##{token}"] = i
        lower = file.get("tokenizer.ggml.normalizer.lowercase", bool, True)
        accents = file.get("tokenizer.ggml.normalizer.strip_accents", bool, lower)
        with failures_as(lambda told: file.error(f"its tokenizer is damaged: {told}")):
            self._model = Tokenizer(
                models.WordPiece(vocab=vocab, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD)
            )
        self._model.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=accents)
        self._model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._fragments = gguf_fragments(file, vocabulary)
        self._texts = [
            (token if kind in apart else _in_a_text(token)).encode()
            for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        ]

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """As `Engine.encode`."""
        ids: list[int] = []
        for fragment in self._fragments.each(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._model.encode(fragment, add_special_tokens=False).ids
        return ids

    def piece(self, token_id: int) -> bytes:
        """As `Engine.piece`."""
        return self._texts[token_id]


def _in_a_text(token: str) -> str:
    if not token.startswith(SPACE):
        return token
    return token[1:] if token[1:] in _JOINED_TO_THE_LEFT else f" {token[1:]}"
