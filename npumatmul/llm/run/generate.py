"""`generate`: one sequence through a `Decoder` that nobody else uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.models.decoder import Decoder, PromptProgress
from npumatmul.llm.models.embedded import Embedded, filled
from npumatmul.llm.run.generation import Generation, checked_ids
from npumatmul.llm.run.pieces import Constraint
from npumatmul.llm.run.sampling import SamplingOptions
from npumatmul.llm.run.steps import Alone
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["generate"]


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int = 256,
    sampling: SamplingOptions | None = None,
    stop_ids: Collection[int] | None = None,
    stop: str | Sequence[str] = (),
    logprobs: int | None = None,
    cache: KVCache | None = None,
    progress: PromptProgress | None = None,
    constraint: Constraint | None = None,
    embeddings: Mapping[int, Embedded] | Sequence[Embedded] | None = None,
) -> Generation:
    """Continue a prompt.

    Nothing is computed until the first token is asked for. The last token may be a stop token (its text is empty), as
    in transformers.

    Parameters
    ----------
    model : Decoder
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    prompt_ids : sequence of int
        The whole prompt; in a conversation, all of it so far.
    max_new_tokens : int, default 256
        Tokens to generate at most.
    sampling : SamplingOptions, optional
        How to choose tokens; greedy by default.
    stop_ids : collection of int, optional
        Tokens that end the answer; by default the tokenizer's. Empty means none.
    stop : str or sequence of str, optional
        Texts that end the answer and are no part of it, wherever tokens begin and end in them.
    logprobs : int, optional
        Tells the logarithm of each token's probability, and those of as many of the most probable tokens.
    cache : KVCache, optional
        A cache from an earlier call. The tokens at the start of the prompt that it holds already are not computed
        again; the rest of it is forgotten. By default a new one with just enough room.
    progress : callable, optional
        Called with (tokens read, tokens to read) now and then while the prompt is read, before the first token.
    constraint : Constraint, optional
        What the answer has to obey; it serves one generation.
    embeddings : mapping of int to Embedded, or sequence of Embedded, optional
        Rows for places of the prompt, as for `Model.generate`.

    Returns
    -------
    Generation
        An iterator over `Piece`, with ``stats`` about counts, times and the reason it stopped.

    Raises
    ------
    ContextFullError
        If the prompt alone does not fit.
    TypeError
        If the prompt is a text, or an argument something else than it should be.
    ValueError
        If the prompt is empty or has a number that no token has, or an argument is out of range.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, generate, load_model, numpy_pack
    >>> loaded = load_model(fetch_demo_model(), pack=numpy_pack)
    >>> ids = loaded.encode_chat([{"role": "user", "content": "Name the capital of Japan."}])
    >>> "".join(piece.text for piece in generate(loaded.model, loaded.tokenizer, ids))
    'The capital of Japan is Tokyo.'
    """
    if embeddings is not None:
        prompt_ids = filled(checked_ids(prompt_ids, model.config.vocab_size, "the prompt"), embeddings, model.config)
    return Generation(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        stop=stop,
        logprobs=logprobs,
        continues=False,
        host=Alone(model, cache),
        context=model.config.context_length if cache is None else cache.capacity,
        progress=progress,
        constraint=constraint,
    )
