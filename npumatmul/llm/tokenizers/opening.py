"""The tokenizer of a model, whatever its format."""

from __future__ import annotations

from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.tokenizers.gguf_tokenizer import GGUFTokenizer
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["tokenizer_of"]


def tokenizer_of(source: ModelSource, vocab_size: int) -> Tokenizer:
    """Read the tokenizer of an open model.

    Parameters
    ----------
    source : ModelSource
        The model.
    vocab_size : int
        How many tokens the model reads.

    Returns
    -------
    Tokenizer
        The tokenizer.

    Raises
    ------
    npumatmul.errors.ModelError
        If there is none, it is damaged or of a kind that is not supported, or it has tokens that the model does not.
    """
    if isinstance(source, GGUFSource):
        tokenizer = GGUFTokenizer(source.file)
        if tokenizer.vocab_size != vocab_size:
            raise source.error(f"its tokenizer has {tokenizer.vocab_size} tokens, its model {vocab_size}")
        return tokenizer
    return JSONTokenizer(
        source.tokenizer_files,
        vocab_size=vocab_size,
        stop_ids=[*_ends(source.generation_config), *_ends(source.config)],
        error=source.error,
    )


def _ends(config: object) -> list[int]:
    """Tokens that end an answer, of a configuration: none, a number, or a list of numbers."""
    given = config.get("eos_token_id") if isinstance(config, dict) else None
    listed = given if isinstance(given, list) else [given]
    return [each for each in listed if isinstance(each, int) and not isinstance(each, bool)]
