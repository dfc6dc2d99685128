"""A model of speech that is loaded and ready: samples in, text with times out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.arguments import check_flags, check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.language_model import Model
from npumatmul.llm.models.whisper import Progress as LoadProgress
from npumatmul.llm.models.whisper import Whisper, load_whisper
from npumatmul.llm.models.whisper_config import whisper_config_of
from npumatmul.llm.placing import Placing
from npumatmul.llm.run.turns import Turns
from npumatmul.llm.speech.features import Features, features_of
from npumatmul.llm.speech.hearing import Progress
from npumatmul.llm.speech.languages import language_code
from npumatmul.llm.speech.recording import Recording, transcribed
from npumatmul.llm.speech.samples import checked_samples
from npumatmul.llm.speech.tokens import TASKS, SpeechTokens, speech_tokens_of
from npumatmul.llm.speech.transcript import Segment, Transcription
from npumatmul.llm.speech.window import Thresholds, WindowWriter
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.cross_attention import KeysAndValues
from npumatmul.nn.product import FLOAT32, Pack

__all__ = ["SpeechModel", "load_speech_model"]

logger = logging.getLogger(__name__)

_ENGLISH = "en"


class SpeechModel(Model):
    """A model that turns speech into text; `load` makes it of a folder that holds a Whisper.

    It has the attributes of `Model`, `transcribe` and `detect_language`. It answers no texts: what is asked for
    answers, logits or embeddings raises. Several threads may use it at once; they are served token by token.

    Attributes
    ----------
    sampling_rate : int
        Samples per second that it hears.
    languages : tuple of str
        Codes of those that it knows.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import Transcription, load
    >>> def write_down(folder: str, samples: np.ndarray, rate: int) -> Transcription:
    ...     with load(folder, "w8a8") as model:
    ...         return model.transcribe(samples, sampling_rate=rate)
    """

    def __init__(
        self,
        source: ModelSource,
        model: Whisper,
        tokenizer: Tokenizer,
        features: Features,
        tokens: SpeechTokens,
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
        self.vocab_size = model.config.vocab_size
        self.load_seconds = load_seconds
        self.sampling_rate = features.rate
        self.languages = tuple(tokens.languages) or (_ENGLISH,)
        self._placing = placing
        self._whisper, self._features, self._tokens = model, features, tokens
        self._turns = Turns(f"the model {self.name}")
        self._cache_type = FLOAT32 if scheme == FLOAT32 else "float16"

    def transcribe(
        self,
        samples: Any,
        *,
        sampling_rate: int,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = True,
        prompt: str | None = None,
        temperature: float | Sequence[float] = Thresholds.temperatures,
        compression_ratio_threshold: float | None = Thresholds.compression_ratio,
        logprob_threshold: float | None = Thresholds.logprob,
        no_speech_threshold: float | None = Thresholds.no_speech,
        condition_on_previous_text: bool = True,
        max_tokens: int | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
        heard: Callable[[Segment], object] | None = None,
    ) -> Transcription:
        """As `Model.transcribe`."""
        self._check_open()
        tokens = self._tokens
        code = self._language(language)
        self._check_task(task)
        check_flags("transcribe", timestamps=timestamps, condition_on_previous_text=condition_on_previous_text)
        check_progress("transcribe", progress)
        if heard is not None and not callable(heard):
            raise TypeError(f"transcribe: heard is called with each segment; {shown(heard)} cannot be")
        if timestamps and tokens.no_timestamps is None:
            raise ModelError(f"the model {self.name} has no tokens for times; give timestamps=False")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
            raise ValueError(f"transcribe: seed is {shown(seed)}; it has to be a whole number of 0 or more, or None")
        if max_tokens is not None:
            max_tokens = count_from_one(max_tokens, "max_tokens", "transcribe")
        thresholds = Thresholds(
            _temperatures(temperature),
            _threshold(compression_ratio_threshold, "compression_ratio_threshold"),
            _threshold(logprob_threshold, "logprob_threshold"),
            _threshold(no_speech_threshold, "no_speech_threshold"),
        )
        context = self._context(prompt)
        given = checked_samples(samples, sampling_rate, self.sampling_rate, "transcribe")
        recording = Recording(given, self._features)
        found: list[tuple[str, float]] = []

        def start(window: Sequence[KeysAndValues]) -> list[int]:
            if code is None and tokens.multilingual:
                found.append(writer.language(window))
            return tokens.prompt(found[0][0] if found else code, task, timestamps)

        segments: list[Segment] = []
        seconds = self._features.hop / self._features.rate
        with self._turns.turn() as pause:
            writer = WindowWriter(
                self._whisper,
                self.tokenizer,
                tokens,
                timestamps=timestamps,
                thresholds=thresholds,
                max_tokens=max_tokens,
                seed=seed,
                cache_type=self._cache_type,
                pause=pause,
            )
            for done, new in transcribed(
                recording,
                writer,
                self._hear,
                start,
                first_time=tokens.first_time,
                previous=tokens.previous,
                context=context,
                room=self.context // 2 - 1,
                condition=condition_on_previous_text,
            ):
                segments += new
                for each in new:
                    if heard is not None:
                        heard(each)
                if progress is not None:
                    progress(done * seconds, recording.frames * seconds)
                pause()
        written, probability = found[0] if found else (code or _ENGLISH, None)
        text = "".join(each.text for each in segments).strip()
        return Transcription(text, tuple(segments), written, probability, len(given) / self.sampling_rate)

    def detect_language(self, samples: Any, *, sampling_rate: int) -> tuple[str, float]:
        """As `Model.detect_language`."""
        self._check_open()
        if not self._tokens.multilingual:
            raise ModelError(f"the model {self.name} knows English only")
        given = checked_samples(samples, sampling_rate, self.sampling_rate, "detect_language")
        rows, _ = Recording(given[: self._features.window_samples], self._features).window(0)
        with self._turns.turn():
            writer = WindowWriter(
                self._whisper,
                self.tokenizer,
                self._tokens,
                timestamps=False,
                thresholds=Thresholds(),
                cache_type=self._cache_type,
            )
            return writer.language(self._hear(rows))

    def _hear(self, rows: NDArray[np.float32]) -> list[KeysAndValues]:
        return self._whisper.hear(rows, self._cache_type)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"the model {self.name} is closed")

    def _language(self, language: str | None) -> str | None:
        if language is None:
            return None
        if not isinstance(language, str):
            raise TypeError(f"transcribe: language is a code or a name such as 'de', not {shown(language)}")
        return language_code(language, self.languages)

    def _check_task(self, task: str) -> None:
        known = tuple(self._tokens.tasks) or TASKS[:1]
        if task not in known:
            raise ValueError(f"transcribe: task is {shown(task)}; this model knows {' and '.join(map(repr, known))}")

    def _context(self, prompt: str | None) -> list[int]:
        """The tokens of what was said before."""
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(f"transcribe: prompt is what was said before as a string, not {shown(prompt)}")
        if prompt is None or not prompt.strip():
            return []
        if self._tokens.previous is None:
            raise ModelError(f"the model {self.name} has no token for what was said before; give no prompt")
        return self.tokenizer.encode(f" {prompt.strip()}", add_special=False)

    def generate(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech continues no texts."""
        raise self._no()

    def generate_batch(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech continues no texts."""
        raise self._no()

    def sequence(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech reads no texts."""
        raise self._no()

    def session(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech has no conversations."""
        raise self._no()

    def load_session(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech has no conversations."""
        raise self._no()

    def chat(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech answers nothing."""
        raise self._no()

    def encode_chat(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech has no conversations."""
        raise self._no()

    def logits(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: without speech there is no next token."""
        raise self._no()

    def embed(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech makes no embeddings of texts."""
        raise self._no()

    def rerank(self, *args: Any, **options: Any) -> NoReturn:
        """Raise `ModelError`: a model of speech compares no texts."""
        raise self._no()

    def weight_macs(self, tokens: int) -> int:
        """Count the multiply-accumulates with weights that writing some tokens takes, without hearing the window."""
        linears = self._whisper.linears
        once = sum(
            k * n
            for name, (k, n) in ((name, each.shape) for name, each in linears.items())
            if not name.startswith("encoder.") and not name.endswith(".cross_kv")
        )
        return tokens * once

    def _products(self) -> list[object]:
        return list(self._whisper.linears.values())

    def _forget(self) -> None:
        """Nothing is kept between recordings."""

    def _no(self) -> ModelError:
        return ModelError(f"the model {self.name} turns speech into text, and takes no texts; it has transcribe")


def _temperatures(given: float | Sequence[float]) -> tuple[float, ...]:
    listed = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    for each in listed:
        if isinstance(each, bool) or not isinstance(each, int | float | np.number) or not 0 <= each < np.inf:
            raise ValueError(f"transcribe: temperature is {shown(each)}; it has to be 0 or a positive number")
    if not listed:
        raise ValueError("transcribe: temperature is empty; give 0 at least")
    return tuple(float(each) for each in listed)


def _threshold(value: float | None, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or np.isnan(value):
        raise ValueError(f"transcribe: {name} is {shown(value)}; it has to be a number or None")
    return float(value)


def load_speech_model(
    source: ModelSource,
    pack: Pack,
    *,
    scheme: str,
    device: Device | None,
    context: int | None,
    progress: LoadProgress | None,
    placing: Placing | None = None,
) -> SpeechModel:
    """Load the model of speech in an open folder, with its tokenizer, its features and what its tokens mean.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is damaged or something in it is not supported.
    ValueError
        If a context is asked for: windows have one length.
    """
    started = time.perf_counter()
    config = whisper_config_of(source)
    if context is not None:
        count_from_one(context, "context", "load")
        raise ValueError("load: context is for models of texts; the windows of a model of speech have one length")
    tokenizer = JSONTokenizer(source.tokenizer_files, vocab_size=config.vocab_size, error=source.error, answers=False)
    features = features_of(source, config)
    tokens = speech_tokens_of(source, tokenizer, config.vocab_size)
    model = load_whisper(source, pack, progress=progress)
    seconds = time.perf_counter() - started
    logger.info("loaded %s (%s) in %.1f s", source.path, source.name, seconds)
    return SpeechModel(
        source,
        model,
        tokenizer,
        features,
        tokens,
        scheme=scheme,
        device=device,
        context=config.context_length,
        load_seconds=seconds,
        placing=placing,
    )
