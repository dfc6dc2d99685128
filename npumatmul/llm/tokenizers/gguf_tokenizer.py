"""The tokenizer of a GGUF file."""

from __future__ import annotations

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.tokenizers.bpe import ByteLevelBPE, pre_tokenizer
from npumatmul.llm.tokenizers.protocol import BaseTokenizer, Engine
from npumatmul.llm.tokenizers.sentencepiece import SentencePieceBPE
from npumatmul.llm.tokenizers.unigram import Unigram
from npumatmul.llm.tokenizers.vocabulary import Vocabulary
from npumatmul.llm.tokenizers.wordpiece import WordPiece

KINDS = {
    "gpt2": "byte-level BPE, as SmolLM2, Llama 3 and Qwen have it",
    "llama": "SentencePiece BPE, as Llama 2, Gemma and Phi-3 have it",
    "t5": "SentencePiece unigram",
    "bert": "WordPiece",
}


class GGUFTokenizer(BaseTokenizer):
    """The tokenizer of a language model in a GGUF file.

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
    leading_space : bool
        Whether the vocabulary writes a space in front of every text, which is not part of it.

    Raises
    ------
    npumatmul.errors.ModelError
        If the vocabulary is damaged or of a kind that is not supported; the message lists those that are.

    Notes
    -----
    Some byte-level vocabularies lack a few bytes (SmolLM2's lacks 0xF1 and most control characters). Such bytes have
    no token and are left out, as the reference implementations do.

    Examples
    --------
    >>> from npumatmul.llm import GGUFFile, GGUFTokenizer, fetch_demo_model
    >>> with GGUFFile(fetch_demo_model()) as file:
    ...     tokenizer = GGUFTokenizer(file)
    >>> tokenizer.encode("Hello world")
    [19556, 905]
    """

    def __init__(self, file: GGUFFile) -> None:
        kind = file.require("tokenizer.ggml.model", str)
        if kind not in KINDS:
            known = "; ".join(f"{name} ({what})" for name, what in KINDS.items())
            raise file.error(f"its tokenizer is of kind {kind!r}; supported: {known}")
        vocabulary = Vocabulary.of(file)
        engine: Engine
        if kind == "gpt2":
            engine = ByteLevelBPE(file, vocabulary)
            special = vocabulary.special(file, add_bos=pre_tokenizer(file).add_bos)
        elif kind == "llama":
            engine = SentencePieceBPE(file, vocabulary)
            special = vocabulary.special(file, add_bos=True)
        elif kind == "t5":
            engine = Unigram(file, vocabulary)
            special = vocabulary.special(file, add_bos=False, add_eos=True)
        else:
            engine = WordPiece(file, vocabulary)
            special = vocabulary.special(file, add_bos=True, add_eos=True, encoder=True)
        super().__init__(engine, vocabulary.tokens, special)
