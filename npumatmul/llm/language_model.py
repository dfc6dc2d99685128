"""A language model that is loaded and ready: text in, text out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, ModelError
from npumatmul.llm.answering import Answering, Embeddings, Prompt
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.loading import LoadedModel
from npumatmul.llm.model_digest import model_digest
from npumatmul.llm.modelled.built import decoder_shape
from npumatmul.llm.models.cache import ContextFullError
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder
from npumatmul.llm.models.embedded import FilledPrompt
from npumatmul.llm.placement import ModelPlacement
from npumatmul.llm.placing import Placing
from npumatmul.llm.run.embedding import BATCH_SIZE, embedded, fitted, normalized, prepared
from npumatmul.llm.run.embedding import Progress as TextProgress
from npumatmul.llm.run.generation import checked_ids
from npumatmul.llm.run.modelled_steps import modelled_seconds, modelled_steps
from npumatmul.llm.run.prefixes import KeptCaches
from npumatmul.llm.run.sequence import TokenSequence
from npumatmul.llm.run.sharing import Shared
from npumatmul.llm.run.speculation import Costs
from npumatmul.llm.run.turns import Turns
from npumatmul.llm.speech.hearing import Hearing
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.pooling import pool
from npumatmul.nn.residency import Residency
from npumatmul.ops import PackedWeight

__all__ = ["Model", "Prompt"]

PREFIX_MEMORY = 1 << 29
"""Bytes of caches that a model keeps between calls, unless something else is said."""


class Model(Answering, Hearing):
    """A language model; `load` makes it.

    Several threads may use it at once. Their generations share the steps of the model: each weight is read once for the
    next tokens of all of them. Prompts are read in turns, block by block, and between blocks others have tokens. Each
    generation has a cache of its own. Caches of those that ended are kept: a prompt that begins like one of them is not
    read again so far.

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
    placement : ModelPlacement or None
        Where its layers are, where it was loaded with a `Policy`; printed, it is a table.
    part : Part or None
        Which blocks of the model these are, where only a part of it was loaded.
    tokenizer : Tokenizer
        Its tokenizer: ``encode`` and ``decode``.
    chat_template : ChatTemplate
        What makes a prompt of messages; encoders have none.
    prefixes : KeptCaches
        Caches that are kept: ``limit`` in bytes, ``nbytes``, ``tokens``, ``len``.
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
    _placing: Placing | None = None

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        scheme: str,
        device: Device | None,
        experts: Residency | None = None,
        placing: Placing | None = None,
        prefix_memory: int = PREFIX_MEMORY,
    ) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self.name = loaded.name
        self.path: Path = loaded.path
        self.scheme = scheme
        self.device = device
        self.experts = experts
        self.part = loaded.config.part
        self._placing = placing
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.chat_template = loaded.chat_template
        self.context = loaded.config.context_length
        self.vocab_size = loaded.config.vocab_size
        self.load_seconds = loaded.load_seconds
        self._sentence = loaded.sentence
        self._digest: str | None = None
        self._turns = Turns(f"the model {self.name}")
        self.prefixes = KeptCaches(prefix_memory)
        self._shared = Shared(self._model, self._turns, self.prefixes)
        self._costs = Costs(modelled_steps(self._model, device))

    def __repr__(self) -> str:
        """Return name, scheme and where it computes."""
        where = "numpy" if self.device is None else self.device.name
        part = "" if self.part is None else f", {self.part}"
        state = ", closed" if self.closed else ""
        return f"<{type(self).__name__} {self.name!r}{part}: {self.scheme} on {where}{state}>"

    @property
    def placement(self) -> ModelPlacement | None:
        """Where its layers are, where it was loaded with a `Policy`."""
        return None if self._placing is None else self._placing.placement

    @property
    def digest(self) -> str:
        """SHA-256 of what is in the model's files; it is read when it is asked for first."""
        if self._digest is None:
            self._digest = model_digest(self.path)
        return self._digest

    @property
    def schemes_digest(self) -> str:
        """Of how each layer's weights are stored: models of the same files that compute differently differ in it."""
        found = []
        for name, product in self._model.linears.items():
            weight = getattr(product, "weight", None)
            found.append((name, weight.scheme.name if isinstance(weight, PackedWeight) else type(product).__name__))
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._turns.closed

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
        self._check_whole("logits")
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
        self._check_whole("embed")
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

    def sequence(self, capacity: int | None = None) -> TokenSequence:
        """Begin a sequence whose states go from one part of a model to the next (``Policy(layers=...)``).

        Parameters
        ----------
        capacity : int, optional
            Tokens that it may have at most; by default as many as the model reads.

        Returns
        -------
        TokenSequence
            Its ``run`` takes tokens, or states of the part before, and gives states, or logits.

        Raises
        ------
        npumatmul.errors.ClosedError
            If the model is closed.
        TypeError, ValueError
            If `capacity` is no number of tokens.
        """
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")
        limit = self.context if capacity is None else count_from_one(capacity, "capacity", "sequence")
        return TokenSequence(self._model, self.name, min(limit, self.context), self._turns.turn)

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

    @property
    def parameters(self) -> int | None:
        """Values of weights and of tables of embeddings; None of what is no decoder."""
        if not isinstance(self._model, Decoder):
            return None
        return decoder_shape(self.name, self._model.config).parameters

    def modelled_seconds(self, tokens: int, after: int = 0) -> float | None:
        """Modelled time of reading some tokens on the device's chip, with its CPU; never measured.

        Parameters
        ----------
        tokens : int
            How many are read, in blocks as prompts are.
        after : int, default 0
            How many were read before.

        Returns
        -------
        float or None
            Seconds, Python's own not included; None of what is no decoder, without a device, and where nothing is known
            of the chip.
        """
        model, device = self._model, self.device
        if device is None or not isinstance(model, Decoder):
            return None
        total = 0.0
        for start in range(0, tokens, PREFILL_CHUNK):
            rows = min(PREFILL_CHUNK, tokens - start)
            seconds = modelled_seconds(model, device, rows, after + start + rows, logit_rows=1)
            if seconds is None:
                return None
            total += seconds
        return total

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
        if self._placing is not None:
            self._placing.undo()

    def __enter__(self) -> Model:
        """Return the model itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _forget(self) -> None:
        self.prefixes.clear()

    def _products(self) -> list[object]:
        return list(self._model.linears.values())
