"""Tokens into text as they come."""

from __future__ import annotations

import codecs

from npumatmul.llm.tokenizers.protocol import Tokenizer


class StreamDecoder:
    """Turns tokens into text as they come, never splitting a character.

    A character may be spread over several tokens; its bytes are held back until it is complete. Each token is looked
    at once, so the time for a text is proportional to its length. The pieces put together are exactly
    ``tokenizer.decode(ids)``.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer.
    skip_special : bool, default True
        Whether control tokens are left out.
    continues : bool, default False
        Whether the tokens go on with a text, so that a space in front of them belongs to it; False where they begin
        one, and the space that some vocabularies write there does not.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._drop_space = self._drops = tokenizer.leading_space and not continues
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
        data = self._tokenizer.token_bytes(token_id, skip_special=self._skip_special)
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what has been held back: U+FFFD if a character was cut off, else nothing.

        Returns
        -------
        str
            The end of the text. The decoder can be used again for another one.
        """
        rest = self._utf8.decode(b"", True)
        self._utf8.reset()
        self._drop_space = self._drops
        return rest
