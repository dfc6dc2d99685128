"""Cutting a text at the tokens that are spelled in it, before what is between them becomes tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken, Tokenizer, models

from npumatmul.llm.tokenizers.lock import Lock

_TEXT = ""  # no token is spelled so


class Fragments:
    """Finds added tokens in texts: leftmost first, of several the longest.

    Parameters
    ----------
    special, words : mapping of str to int
        Control tokens, which are found where that is asked for, and tokens that always are; numbers by spelling.
    strip_right : collection of str
        Those of them after which white space is left out.
    """

    def __init__(
        self, special: Mapping[str, int], words: Mapping[str, int], strip_right: frozenset[str] = frozenset()
    ) -> None:
        self._finder = Tokenizer(models.WordLevel({_TEXT: 0}, unk_token=_TEXT))  # all between them is one token
        for tokens, add in ((special, self._finder.add_special_tokens), (words, self._finder.add_tokens)):
            add(
                [
                    AddedToken(text, normalized=False, special=tokens is special, rstrip=text in strip_right)
                    for text in tokens
                ]
            )
        both = {**words, **special}
        self._ids = {self._finder.token_to_id(text): number for text, number in both.items()}
        self._lock = Lock()  # each() switches a setting of the finder

    def each(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Texts between added tokens, and the numbers of these, in order."""
        if not text:
            return
        with self._lock:
            self._finder.encode_special_tokens = not parse_special
            found = self._finder.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            yield text[start:end] if number == 0 else self._ids[number]
