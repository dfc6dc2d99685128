"""The vocabulary of a GGUF file: tokens, their kinds, and which of them are special."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.protocol import STOP_TOKENS, SpecialTokens

logger = logging.getLogger(__name__)

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a GGUF file.

    Attributes
    ----------
    tokens : list of str
        How each is spelled.
    kinds : list of int
        ``tokenizer.ggml.token_type`` of each.
    unk_id : int or None
        The token for what no other token spells.
    cls_id, sep_id : int or None
        The token in front of a text, and the one between two texts, for encoders, where they are begin and end.
    """

    tokens: list[str]
    kinds: list[int]
    unk_id: int | None
    cls_id: int | None
    sep_id: int | None

    @classmethod
    def of(cls, file: GGUFFile) -> Vocabulary:
        """Read the vocabulary of an open file."""
        tokens = _strings(file, "tokenizer.ggml.tokens")
        kinds = _token_types(file, tokens)
        stops = [i for i, token in enumerate(tokens) if token in STOP_TOKENS]
        # what merging comes to is a word: Qwen's vocabulary has the end of a crossed-out text, </s>, among others
        words = {tokens[i] for i in stops if kinds[i] == NORMAL}
        if words:
            words &= {str(merge).replace(" ", "", 1) for merge in file.get("tokenizer.ggml.merges", list, [])}
        kinds = list(kinds)
        for i in stops:
            if kinds[i] != NORMAL or tokens[i] not in words:
                kinds[i] = CONTROL
        unk, cls_, sep = (_special_id(file, name, len(tokens)) for name in ("unknown", "cls", "seperator"))
        return cls(tokens, kinds, unk, cls_, sep)

    def of_kind(self, *kinds: int) -> list[int]:
        """Numbers of the tokens of some kinds; tokens without a spelling only fill gaps and are left out."""
        wanted = set(kinds)
        return [i for i, kind in enumerate(self.kinds) if kind in wanted and self.tokens[i]]

    def special(self, file: GGUFFile, *, add_bos: bool, add_eos: bool = False, encoder: bool = False) -> SpecialTokens:
        """Read which tokens are special; `add_bos` and `add_eos` hold where the metadata does not say."""
        tokens, count = self.tokens, len(self.tokens)
        control = frozenset(i for i, kind in enumerate(self.kinds) if kind in (CONTROL, UNKNOWN))
        bos, eos = _special_id(file, "bos", count), _special_id(file, "eos", count)
        if encoder:
            bos, eos = self.cls_id if bos is None else bos, self.sep_id if eos is None else eos
        add_bos = file.get("tokenizer.ggml.add_bos_token", bool, add_bos)
        add_eos = file.get("tokenizer.ggml.add_eos_token", bool, add_eos)
        for name, wanted, found in (("a begin", add_bos, bos), ("an end", add_eos, eos)):
            if wanted and found is None:
                raise file.error(f"its tokenizer adds {name} token to texts, but names none that it has")
        named = (eos, _special_id(file, "eot", count), _special_id(file, "eom", count))
        known = (i for i in control if tokens[i] in STOP_TOKENS)
        stop_ids = frozenset({i for i in named if i is not None} | set(known))
        if not stop_ids:
            logger.warning("%s names no token that ends an answer: answers go on to their greatest length", file.path)
        return SpecialTokens(
            bos_id=bos,
            eos_id=eos,
            unk_id=self.unk_id,
            pad_id=_special_id(file, "padding", count),
            add_bos=add_bos,
            add_eos=add_eos,
            stop_ids=stop_ids,
            control_ids=control,
        )

    def scores(self, file: GGUFFile) -> list[float]:
        """Read how good each token is, for vocabularies that choose by it."""
        values = file.require("tokenizer.ggml.scores", list)
        if len(values) != len(self.tokens) or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            raise file.error(
                f"metadata 'tokenizer.ggml.scores' must hold one finite number for each of the "
                f"{len(self.tokens)} tokens"
            )
        return values

    def numbers(self, file: GGUFFile, ids: Sequence[int]) -> dict[str, int]:
        """Numbers by spelling, of some tokens, no two of which may be spelled alike."""
        numbers: dict[str, int] = {}
        for i in ids:
            if numbers.setdefault(self.tokens[i], i) != i:
                raise file.error(
                    f"tokens {numbers[self.tokens[i]]} and {i} of its vocabulary are the same, {self.tokens[i]!r}"
                )
        return numbers


def _strings(file: GGUFFile, key: str) -> list[str]:
    values = file.require(key, list)
    if set(map(type, values)) != {str}:
        raise file.error(f"metadata {key!r} must be a list of strings, and not an empty one")
    return values


def _token_types(file: GGUFFile, tokens: Sequence[str]) -> list[int]:
    kinds = file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(kinds) != len(tokens) or not set(map(type, kinds)) <= {int}:
        raise file.error(
            f"metadata 'tokenizer.ggml.token_type' must hold one number for each of the {len(tokens)} tokens"
        )
    return kinds


def _special_id(file: GGUFFile, name: str, count: int) -> int | None:
    """The number of a special token; one that no token has is how some converters say that there is none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.get(key, int)
    if value is not None and not 0 <= value < count:
        logger.warning("%s: metadata %r is %d, but there are %d tokens; it is ignored", file.path, key, value, count)
        return None
    return value
