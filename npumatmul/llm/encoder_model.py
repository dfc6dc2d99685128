"""An encoder that is loaded and ready: texts in, embeddings or scores out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, ModelError
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.language_model import Model
from npumatmul.llm.models.encoder import Encoder, Texts
from npumatmul.llm.models.encoders import Progress, load_encoder
from npumatmul.llm.models.sentence import SentenceConfig, sentence_config_of
from npumatmul.llm.placing import Placing
from npumatmul.llm.run.embedding import BATCH_SIZE, batches, checked_texts, embedded, fitted, normalized, prepared
from npumatmul.llm.run.embedding import Progress as TextProgress
from npumatmul.llm.run.turns import Turns
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer
from npumatmul.llm.tokenizers.opening import tokenizer_of
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.pooling import pool
from npumatmul.nn.product import Pack

__all__ = ["EncoderModel", "load_encoder_model"]

logger = logging.getLogger(__name__)


class EncoderModel(Model):
    """An encoder; `load` makes it of a folder that holds one.

    It has the attributes of `Model`, `embed` and, with a head that gives scores, `rerank`. It continues no texts: what
    is asked for logits or answers raises. Several threads may use it at once; they are served batch by batch.

    Examples
    --------
    >>> import npumatmul.llm
    >>> with npumatmul.llm.load(npumatmul.llm.fetch_demo_encoder(), "float32") as model:
    ...     rows = model.embed(["A cat sits on the mat.", "A kitten rests on a rug.", "Shares fell on Monday."])
    >>> rows.shape, bool(rows[0] @ rows[1] > rows[0] @ rows[2])
    ((3, 384), True)
    """

    def __init__(
        self,
        source: ModelSource,
        encoder: Encoder,
        tokenizer: Tokenizer,
        sentence: SentenceConfig,
        *,
        scheme: str,
        device: Device | None,
        context: int,
        load_seconds: float,
        placing: Placing | None = None,
    ) -> None:
        self.name, self.path = source.name, source.path
        self.scheme, self.device = scheme, device
        self.tokenizer, self.context = tokenizer, context
        self.vocab_size = encoder.config.vocab_size
        self.load_seconds = load_seconds
        self._placing = placing
        self._encoder, self._sentence = encoder, sentence
        self._turns = Turns(f"the model {self.name}")

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
        """As `Model.embed`."""
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
        tokens = [fitted(self.tokenizer, each, self.context) for each in given]

        def compute(ids: list[list[int]]) -> NDArray[np.float32]:
            batch = Texts(ids)
            return pool(batch.filled(self._encoder.run(batch)), batch.seen, how)

        width = self._encoder.config.hidden_size
        made = embedded(tokens, compute, width, batch_size, self._turns.turn, progress)
        return normalized(made) if (said.normalize if normalize is None else normalize) else made

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        progress: TextProgress | None = None,
    ) -> NDArray[np.float32]:
        """As `Model.rerank`."""
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")
        config = self._encoder.config
        if config.head is None:
            raise ModelError(f"the model {self.name} has no head that gives scores; compare what embed gives")
        if config.head.labels != 1:
            raise ModelError(f"the model {self.name} gives {config.head.labels} scores for a text; rerank needs one")
        (asked,), given = checked_texts([query], "rerank: the query"), checked_texts(texts, "rerank")
        count_from_one(batch_size, "batch_size", "rerank")
        check_progress("rerank", progress)
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, JSONTokenizer):
            raise ModelError(f"the model {self.name} has a tokenizer that knows no pairs of texts")
        pairs = [tokenizer.encode_pair(asked, each, self.context) for each in given]
        made = np.empty(len(pairs), np.float32)
        done = 0
        for batch in batches([len(ids) for ids, _ in pairs], batch_size):
            types = [pairs[i][1] for i in batch] if config.pair_types else None
            with self._turns.turn():
                made[batch] = self._encoder.scores(Texts([pairs[i][0] for i in batch], types))[:, 0]
            done += len(batch)
            if progress is not None:
                progress(done, len(pairs))
        if config.head.scores == "sigmoid":
            with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf the 0 that is wanted
                np.divide(1, 1 + np.exp(-made), out=made)
        return made

    def generate(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder continues no texts."""
        raise self._no("continues")

    def generate_batch(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder continues no texts."""
        raise self._no("continues")

    def chat(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder answers nothing."""
        raise self._no("answers")

    def session(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder has no conversations."""
        raise self._no("answers")

    def load_session(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder has no conversations."""
        raise self._no("answers")

    def encode_chat(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder has no conversations."""
        raise self._no("answers")

    def logits(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: an encoder has no next token."""
        raise self._no("continues")

    def sequence(self, capacity: int | None = None) -> NoReturn:
        """Raise `ModelError`: an encoder reads texts as a whole."""
        raise self._no("continues")

    def weight_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates with weights that reading some tokens takes."""
        return tokens * sum(k * n for k, n in (each.shape for each in self._encoder.linears.values()))

    def _products(self) -> list[object]:
        return list(self._encoder.linears.values())

    def _forget(self) -> None:
        """Nothing is kept between texts."""

    def _no(self, what: str) -> ModelError:
        head = self._encoder.config.head
        use = "embed" if head is None else "embed and rerank"
        return ModelError(
            f"the model {self.name} is an encoder ({self._encoder.config.architecture}), which {what} no texts; "
            f"it has {use}"
        )


def load_encoder_model(
    source: ModelSource,
    pack: Pack,
    *,
    scheme: str,
    device: Device | None,
    context: int | None,
    progress: Progress | None,
    placing: Placing | None = None,
) -> EncoderModel:
    """Load the encoder in an open folder, with its tokenizer and what sentence-transformers says of it.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is damaged or something in it is not supported.
    ValueError
        If `context` is not positive.
    """
    started = time.perf_counter()
    if context is not None:
        count_from_one(context, "context", "load")
    sentence = sentence_config_of(source)
    encoder = load_encoder(source, pack, progress=progress)
    config = encoder.config
    tokenizer = _tokenizer(source, config.vocab_size)
    limits = (config.context_length, sentence.longest, context)
    seconds = time.perf_counter() - started
    logger.info("loaded %s (%s) in %.1f s", source.path, source.name, seconds)
    return EncoderModel(
        source,
        encoder,
        tokenizer,
        sentence,
        scheme=scheme,
        device=device,
        context=min(each for each in limits if each is not None),
        load_seconds=seconds,
        placing=placing,
    )


def _tokenizer(source: ModelSource, vocab_size: int) -> Tokenizer:
    if source.kind == "gguf":
        return tokenizer_of(source, vocab_size)
    return JSONTokenizer(source.tokenizer_files, vocab_size=vocab_size, error=source.error, answers=False)
