"""SentencePiece's byte-pair encoding (``tokenizer.ggml.model`` is ``llama``), with bytes for what it cannot spell.

Pieces are merged by the score of what comes out, the leftmost of equal ones first. The ``tokenizers`` package ranks
pairs instead, so that two ways to the same piece never tie; hence this module does the merging itself.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.fragments import Fragments
from npumatmul.llm.tokenizers.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

SPACE = "\u2581"
_WORDS_KEPT, _LONGEST_KEPT = 1 << 14, 64
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Merger:
    """Merges characters to pieces.

    Parameters
    ----------
    pieces : mapping of str to int
        Number of each piece.
    scores : sequence of float
        By number.
    unused : collection of int
        Pieces that only lead to others: where one remains it is taken apart again.
    """

    def __init__(self, pieces: Mapping[str, int], scores: Sequence[float], unused: Iterable[int] = ()) -> None:
        self._pieces = pieces
        self._scores = scores
        self._unused = frozenset(unused)
        self._neighbours = {a + b for piece in pieces for a, b in itertools.pairwise(piece)}
        self._merged = lru_cache(_WORDS_KEPT)(self._merge)

    def parts(self, text: str) -> list[str]:
        """Cut a text into pieces, and characters that none spells."""
        parts: list[str] = []
        start = 0
        neighbours = self._neighbours
        for i in range(1, len(text)):  # no piece reaches over two characters that stand together in none
            if text[i - 1 : i + 1] not in neighbours:
                parts += self._word(text[start:i])
                start = i
        if text:
            parts += self._word(text[start:])
        return parts

    def _word(self, text: str) -> tuple[str, ...]:
        return self._merged(text) if len(text) <= _LONGEST_KEPT else self._merge(text)

    def _merge(self, text: str) -> tuple[str, ...]:
        """Merge the best pair until there is none: a chain of symbols, and a queue of pairs of neighbours."""
        symbols: list[str] = list(text)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, str]] = []
        made_of: dict[str, tuple[str, str]] = {}

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            piece = symbols[left] + symbols[right]
            number = self._pieces.get(piece)
            if number is not None:
                heapq.heappush(queue, (-self._scores[number], left, right, piece))
                if number in self._unused:
                    made_of[piece] = symbols[left], symbols[right]

        for i in range(1, len(symbols)):
            offer(i - 1, i)
        while queue:
            _, left, right, piece = heapq.heappop(queue)
            if not symbols[left] or symbols[left] + symbols[right] != piece or after[left] != right:
                continue  # one of the two has been merged since
            symbols[left], symbols[right] = piece, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return tuple(part for symbol in symbols if symbol for part in self._used(symbol, made_of))

    def _used(self, symbol: str, made_of: Mapping[str, tuple[str, str]]) -> list[str]:
        used, rest = [], [symbol]
        while rest:
            piece = rest.pop()
            if piece in made_of:
                left, right = made_of[piece]
                rest += [right, left]
            else:
                used.append(piece)
        return used


class SentencePieceBPE:
    """The engine of a GGUF file's tokenizer of kind ``llama``."""

    def __init__(self, file: GGUFFile, vocabulary: Vocabulary) -> None:
        tokens, kinds = vocabulary.tokens, vocabulary.kinds
        self._bytes = byte_tokens(vocabulary)
        pieces = vocabulary.numbers(
            file, [i for i in vocabulary.of_kind(NORMAL, UNUSED, USER_DEFINED) if i not in self._bytes.values()]
        )
        self._pieces = pieces
        self._unk_id = vocabulary.unk_id
        self._merger = Merger(pieces, vocabulary.scores(file), vocabulary.of_kind(UNUSED))
        self._fragments = gguf_fragments(file, vocabulary)
        self.leading_space = file.get("tokenizer.ggml.add_space_prefix", bool, True)
        self._squeeze = file.get("tokenizer.ggml.remove_extra_whitespaces", bool, False)
        self._texts = piece_texts(tokens, kinds, self._bytes)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """As `Engine.encode`."""
        ids: list[int] = []
        begins = True  # a text, or what follows a token that is spelled in it
        for fragment in self._fragments.each(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids += self._encode_text(fragment, begins)
            begins = isinstance(fragment, int)
        return ids

    def piece(self, token_id: int) -> bytes:
        """As `Engine.piece`."""
        return self._texts[token_id]

    def _encode_text(self, text: str, begins: bool) -> list[int]:
        if self._squeeze:
            text = squeezed(text)
        text = text.replace(" ", SPACE)
        if begins and self.leading_space and text:
            text = SPACE + text
        ids: list[int] = []
        for part in self._merger.parts(text):
            number = self._pieces.get(part)
            if number is None:
                add_unknown(ids, part, self._bytes, self._unk_id)
            else:
                ids.append(number)
        return ids


def byte_tokens(vocabulary: Vocabulary) -> dict[int, int]:
    """The numbers of the tokens that stand for single bytes, by byte; empty where not all bytes have one."""
    found: dict[int, int] = {}
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in (BYTE, NORMAL) and (match := _BYTE_NAME.fullmatch(token)):
            found.setdefault(int(match[1], 16), i)
    return found if len(found) == 256 else {}


def add_unknown(ids: list[int], text: str, byte_tokens: Mapping[int, int], unk_id: int | None) -> None:
    """Append what stands for text that no piece spells: its bytes, or else one unknown token for all of it."""
    if byte_tokens:
        ids += [byte_tokens[byte] for byte in text.encode()]
    elif unk_id is not None and ids[-1:] != [unk_id]:
        ids.append(unk_id)


def squeezed(text: str) -> str:
    """A text without spaces at its ends, nor more than one anywhere."""
    return re.sub(" {2,}", " ", text.lstrip(" ").rstrip(f" {SPACE}"))


def piece_texts(tokens: Sequence[str], kinds: Sequence[int], byte_tokens: Mapping[int, int]) -> list[bytes]:
    """What each token adds to a text: control and user-defined tokens as they are spelled, the byte of byte tokens."""
    texts = [
        (token if kind in (CONTROL, UNKNOWN) else token.replace(SPACE, " ")).encode()
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    for byte, number in byte_tokens.items():
        texts[number] = bytes([byte])
    return texts


def gguf_fragments(file: GGUFFile, vocabulary: Vocabulary) -> Fragments:
    """What finds the control tokens and the user's words of a GGUF file in texts."""
    special = {vocabulary.tokens[i]: i for i in vocabulary.of_kind(CONTROL, UNKNOWN)}
    words = {vocabulary.tokens[i]: i for i in vocabulary.of_kind(USER_DEFINED)}
    # GGUF files cannot say that white space after a token is dropped: llama.cpp, too, knows it of this model by name
    name = file.get("general.name", str, "").lower()
    stripped = frozenset(special | words) if "phi-3" in name or "phi3" in name else frozenset[str]()
    return Fragments(special, words, stripped - {"<unk>", "<s>", "<|endoftext|>"})
