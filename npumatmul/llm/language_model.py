"""A language model that is loaded and ready: text in, text out."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, ModelError
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.loading import LoadedModel
from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder import PromptProgress
from npumatmul.llm.models.embedded import Embedded, FilledPrompt, filled
from npumatmul.llm.run.embedding import BATCH_SIZE, embedded, fitted, normalized, prepared
from npumatmul.llm.run.embedding import Progress as TextProgress
from npumatmul.llm.run.generate import Constraint, Generation, checked_ids, shared_length
from npumatmul.llm.run.sampling import SamplingOptions
from npumatmul.llm.run.turns import Turn, Turns
from npumatmul.llm.speech.hearing import Hearing
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.pooling import pool
from npumatmul.nn.residency import Residency
from npumatmul.ops import PackedWeight

__all__ = ["Model", "Prompt"]

Messages = Sequence[Mapping[str, object]]
Prompt = str | Sequence[int] | NDArray[np.integer] | Messages
"""A text to go on with, the messages of a conversation, or token numbers."""
Embeddings = Mapping[int, Embedded] | Sequence[Embedded]
"""Rows from outside, by their first place or in the order of placeholders."""


class Model(Hearing, Uncopied):
    """A language model; `load` makes it.

    Several threads may use it at once. They are served in turns, token by token and, of a prompt, block by block, in
    the order in which they came; each generation has a cache of its own. The cache of the last one that ended is kept:
    a prompt that begins as that conversation went on is not read again so far.

    Attributes
    ----------
    name : str
        What the model is called.
    path : pathlib.Path
        Where it was loaded from.
    scheme : str
        How its weights are stored.
    device : Device or None
        What computes its products; None where numpy does.
    experts : Residency or None
        Which experts are on the device, and how often one was brought in, where ``expert_memory`` limits them.
    tokenizer : Tokenizer
        Its tokenizer: ``encode`` and ``decode``.
    context : int
        Longest sequence, in tokens.
    vocab_size : int
        How many tokens it chooses among.
    load_seconds : float
        How long loading took.
    closed : bool
        Whether `close` was called.

    Examples
    --------
    >>> import npumatmul.llm
    >>> with npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32") as model:
    ...     print("".join(piece.text for piece in model.generate("The capital of France is", max_tokens=1)))
     Paris
    """

    experts: Residency | None = None

    def __init__(
        self, loaded: LoadedModel, *, scheme: str, device: Device | None, experts: Residency | None = None
    ) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self.name = loaded.name
        self.path: Path = loaded.path
        self.scheme = scheme
        self.device = device
        self.experts = experts
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.context = loaded.config.context_length
        self.vocab_size = loaded.config.vocab_size
        self.load_seconds = loaded.load_seconds
        self._sentence = loaded.sentence
        self._turns = Turns(f"the model {self.name}")
        self._kept: KVCache | None = None
        self._keeping = threading.RLock()  # the collector may end a dropped generation inside it

    def __repr__(self) -> str:
        """Return name, scheme and where it computes."""
        where = "numpy" if self.device is None else self.device.name
        return f"<{type(self).__name__} {self.name!r}: {self.scheme} on {where}{', closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._turns.closed

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Collection[int] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        progress: PromptProgress | None = None,
        constraint: Constraint | None = None,
        embeddings: Embeddings | None = None,
    ) -> Generation:
        """Go on with a prompt.

        Nothing is computed until the first piece is asked for.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of mappings
            A text that is gone on with as it stands; token numbers; or messages, as for `chat`.
        max_tokens : int, default 256
            Tokens to generate at most.
        temperature : float, default 0
            Logits are divided by it; 0 always takes the most probable token.
        top_k : int, default 0
            Only this many of the most probable tokens stay; 0 keeps all.
        top_p : float, default 1
            Only the most probable tokens stay that together reach this probability.
        min_p : float, default 0
            Only tokens stay that have at least this share of the probability of the most probable one.
        repetition_penalty : float, default 1
            Positive logits of tokens seen before are divided by it, negative ones multiplied.
        stop : str or sequence of str, optional
            Texts that end the answer; neither they nor parts of them belong to it.
        stop_ids : collection of int, optional
            Tokens that end the answer; by default the model's own. Empty means none.
        seed : int, optional
            Makes the choices repeatable.
        logprobs : int, optional
            Tells the logarithm of each token's probability, and those of as many of the most probable tokens.
        progress : callable, optional
            Called with (tokens read, tokens to read) while the prompt is read.
        embeddings : mapping of int to Embedded, or sequence of Embedded, optional
            Rows for places of the prompt, such as what an encoder made of pictures (docs/embedded.md): by where the
            first row of each goes, one token being replaced by each row; or in the order of the prompt's placeholders.
        constraint : Constraint, optional
            What the answer has to obey: an object with ``allowed(logits)``, which sets scores to ``-inf``, and
            ``accept(token)``. It serves one generation.

        Returns
        -------
        Generation
            An iterator over `Piece`; the last one has counts and the reason. Its ``cancel`` ends it from any thread.

        Raises
        ------
        npumatmul.llm.ContextFullError
            If the prompt leaves no room for an answer.
        npumatmul.errors.ClosedError
            If the model is closed; from the iterator, if it is closed while a generation waits for its turn.
        TypeError, ValueError
            If an argument cannot be used.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> pieces = list(model.generate("One, two, three,", max_tokens=3, logprobs=1))
        >>> "".join(piece.text for piece in pieces)
        ' four, five'
        >>> pieces[-1].reason.value, pieces[-1].stats.generated_tokens, pieces[0].logprob > -1
        ('max_tokens', 3, True)
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        ids, continues = self._ids(prompt)
        ids = self._filled(ids, embeddings)
        return self._generation(
            ids,
            max_tokens,
            options,
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
            progress=progress,
            constraint=constraint,
            continues=continues,
        )

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        stop_ids: Collection[int] | None = None,
        seed: int | None = None,
        logprobs: int | None = None,
        progress: PromptProgress | None = None,
        constraint: Constraint | None = None,
        embeddings: Embeddings | None = None,
    ) -> Generation:
        """Answer the last message of a conversation.

        Messages go through the model's chat template, and control tokens that they spell become those tokens;
        `control_texts` finds them in texts from outside.

        Parameters
        ----------
        messages : sequence of mappings
            Each with a ``role``, such as ``"user"``, and a ``content``.
        tools : sequence of mappings, optional
            Descriptions of tools, for templates that know them.
        variables : mapping, optional
            Further variables of the template, such as ``{"enable_thinking": False}``.
        max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, stop_ids, seed, logprobs
            As for `generate`.
        progress, constraint, embeddings
            As for `generate`.

        Returns
        -------
        Generation
            As `generate` does.

        Raises
        ------
        ValueError
            If messages are malformed, or the template refuses them; and as `generate`.
        npumatmul.errors.ModelError
            If the template fails, or would take too long or too much memory.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> answer = model.chat([{"role": "user", "content": "What is the capital of France?"}])
        >>> "".join(piece.text for piece in answer)
        'The capital of France is Paris.'
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return self._generation(
            self._filled(self.encode_chat(messages, tools=tools, variables=variables), embeddings),
            max_tokens,
            options,
            stop=stop,
            stop_ids=stop_ids,
            logprobs=logprobs,
            progress=progress,
            constraint=constraint,
            continues=False,
        )

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Turn a conversation into the tokens of a prompt, which `chat` goes on with.

        Parameters
        ----------
        messages, tools, variables
            As for `chat`.

        Returns
        -------
        list of int
            Token numbers.

        Raises
        ------
        ValueError, npumatmul.errors.ModelError
            As `chat`.
        """
        return self._loaded.encode_chat(messages, tools=tools, variables=variables)

    def logits(
        self, ids: Sequence[int] | NDArray[np.integer], embeddings: Embeddings | None = None
    ) -> NDArray[np.float32]:
        """Compute the scores of the next token after every one of a sequence.

        Parameters
        ----------
        ids : sequence of int, length T
            Token numbers.
        embeddings : mapping of int to Embedded, or sequence of Embedded, optional
            As for `generate`; where placeholders become several rows, T is the number of all rows.

        Returns
        -------
        ndarray of float32, shape (T, vocab)
            Logits; row t is what follows after ``ids[: t + 1]``.

        Raises
        ------
        npumatmul.llm.ContextFullError
            If there are more than the model's context holds.
        npumatmul.errors.ClosedError
            If the model is closed.
        TypeError, ValueError
            If there are no tokens, or one is not in the vocabulary.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> logits = model.logits(model.tokenizer.encode("The capital of France is"))
        >>> logits.shape, model.tokenizer.decode([int(logits[-1].argmax())])
        ((5, 49152), ' Paris')
        """
        numbers = self._filled(checked_ids(ids, self.vocab_size, "ids"), embeddings)
        rows = numbers.rows if isinstance(numbers, FilledPrompt) else None
        if len(numbers) > self.context:
            raise ContextFullError(f"there are {len(numbers)} tokens; the model reads at most {self.context} at once")
        with self._turns.turn():
            return self._model.forward(numbers, self._model.new_cache(len(numbers)), all_logits=True, embeddings=rows)

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        normalize: bool | None = None,
        prompt: str | None = None,
        pooling: str | None = None,
        progress: TextProgress | None = None,
    ) -> NDArray[np.float32]:
        """Compute embeddings of texts.

        What belongs to it is read from the files of sentence-transformers that a model's folder has: pooling,
        normalization, prompts, and how many tokens of a text are read (the end of longer ones is left out). Encoders
        compute texts of like length together; a decoder, such as Qwen3-Embedding, one after another.

        Parameters
        ----------
        texts : sequence of str
            n texts. Names of control tokens in them are ordinary text.
        batch_size : int, default 32
            Texts that are computed together at most.
        normalize : bool, optional
            Whether embeddings are divided by their length; by default as the model says, and not if it says nothing.
        prompt : str, optional
            Name of what precedes each text, such as ``"query"``; by default as the model says.
        pooling : str, optional
            As for `npumatmul.nn.pool`; by default as the model says.
        progress : callable, optional
            Called with (texts done, texts in all).

        Returns
        -------
        ndarray of float32, shape (n, dim)
            In the order of the texts.

        Raises
        ------
        npumatmul.errors.ModelError
            If neither the model nor `pooling` says how to pool.
        npumatmul.errors.ClosedError
            If the model is closed.
        TypeError, ValueError
            If an argument cannot be used.

        Examples
        --------
        >>> import npumatmul.llm
        >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
        >>> rows = model.embed(["a cat", "a kitten"], pooling="mean", normalize=True)
        >>> rows.shape
        (2, 576)
        """
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")
        said = self._sentence
        given, how = prepared(
            texts,
            said,
            prompt=prompt,
            pooling=pooling,
            batch_size=batch_size,
            normalize=normalize,
            progress=progress,
            name=self.name,
        )
        longest = self.context if said.longest is None else min(self.context, said.longest)
        tokens = [fitted(self.tokenizer, each, longest) for each in given]

        def compute(ids: list[list[int]]) -> NDArray[np.float32]:
            return np.concatenate([pool(self._model.states(each)[None], how=how) for each in ids])

        width = self._loaded.config.hidden_size
        made = embedded(tokens, compute, width, 1, self._turns.turn, progress)
        return normalized(made) if (said.normalize if normalize is None else normalize) else made

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        progress: TextProgress | None = None,
    ) -> NDArray[np.float32]:
        """Score how well texts fit a query, with a model whose head was trained to: a cross-encoder.

        Scores are between 0 and 1, by the sigmoid that sentence-transformers applies, unless the model's config.json
        asks for none. Of pairs that are too long the end of the longer text is left out.

        Parameters
        ----------
        query : str
            What is looked for.
        texts : sequence of str
            n texts.
        batch_size : int, default 32
            Texts that are computed together at most.
        progress : callable, optional
            Called with (texts done, texts in all).

        Returns
        -------
        ndarray of float32, shape (n,)
            In the order of the texts; larger fits better.

        Raises
        ------
        npumatmul.errors.ModelError
            If the model has no such head.
        npumatmul.errors.ClosedError
            If the model is closed.
        TypeError, ValueError
            If an argument cannot be used.
        """
        raise ModelError(
            f"the model {self.name} continues texts and has no head that scores pairs of them; rerank needs a "
            "cross-encoder, such as BertForSequenceClassification"
        )

    def weight_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates with weights that reading some tokens takes, and choosing one after them.

        Parameters
        ----------
        tokens : int
            How many are read.

        Returns
        -------
        int
            Multiply-accumulates of all layers.
        """
        return self._model.weight_macs(tokens)

    def close(self) -> None:
        """Free the weights.

        Whoever waits for a turn gets a `ClosedError`; a token that is being computed is waited for.
        """
        self._turns.close()
        if self._turns.inherited:  # what there is belongs to the parent
            return
        self._forget()
        for product in self._products():
            weight = getattr(product, "weight", None)
            if isinstance(weight, PackedWeight):
                weight.close()
        if self.experts is not None:
            self.experts.close()

    def __enter__(self) -> Model:
        """Return the model itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _forget(self) -> None:
        with self._keeping:
            self._kept = None

    def _products(self) -> list[object]:
        return list(self._model.linears.values())

    def _ids(self, prompt: Prompt) -> tuple[Sequence[int], bool]:
        """Token numbers of a prompt, and whether the answer goes on with its text."""
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("the prompt is empty; a model needs something to go on with")
            return self.tokenizer.encode(prompt), True
        if isinstance(prompt, np.ndarray):
            if prompt.ndim != 1 or prompt.dtype.kind not in "iu":
                raise TypeError(
                    f"a prompt of token numbers is one row of whole numbers, not {prompt.dtype} of shape {prompt.shape}"
                )
            return prompt.tolist(), True
        if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
            raise TypeError(f"a prompt is a text, a list of messages or of token numbers, not {type(prompt).__name__}")
        if prompt and all(isinstance(each, Mapping) for each in prompt):
            return self.encode_chat(prompt), False  # type: ignore[arg-type]
        return prompt, True  # type: ignore[return-value]

    def _filled(self, ids: Sequence[int], embeddings: Embeddings | None) -> Sequence[int]:
        """A prompt with rows from outside, if there are any."""
        if embeddings is None:
            return ids
        return filled(checked_ids(ids, self.vocab_size, "the prompt"), embeddings, self._loaded.config)

    def _generation(
        self,
        ids: Sequence[int],
        max_tokens: int,
        options: SamplingOptions,
        *,
        stop: str | Sequence[str],
        stop_ids: Collection[int] | None,
        logprobs: int | None,
        progress: PromptProgress | None,
        constraint: Constraint | None,
        continues: bool,
    ) -> Generation:
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")
        if len(ids) >= self.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens; the context of {self.context} leaves no room for an answer: "
                f"shorten it, or load the model with a larger context"
            )
        return Generation(
            self._model,
            self.tokenizer,
            ids,
            max_new_tokens=count_from_one(max_tokens, "max_tokens", "generate"),
            sampling=options,
            stop_ids=stop_ids,
            stop=stop,
            logprobs=logprobs,
            continues=continues,
            host=_Shared(self),
            context=self.context,
            progress=progress,
            constraint=constraint,
        )


class _Shared:
    """What a generation of a model that others use, too, gets from it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """The cache that was kept, if the prompt begins like it; else a new one. Memory is taken as tokens come."""
        model = self._model
        if model._turns.inherited:  # by a forked child, where the lock may be held for ever
            return model._model.new_cache()
        with model._keeping:
            kept = model._kept
            if kept is not None and shared_length(kept.tokens, prompt):
                model._kept = None
                return kept
        return model._model.new_cache()

    def give(self, cache: KVCache) -> None:
        """Keep the cache of the generation that ended last."""
        if self._model._turns.inherited:
            return
        with self._model._keeping:
            self._model._kept = None if self._model.closed else cache

    def turn(self, generation: Generation) -> Turn:
        """As `Host.turn`."""
        return self._model._turns.turn(lambda: generation.cancelled)
