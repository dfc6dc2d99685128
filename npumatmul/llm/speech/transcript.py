"""What is made of speech: a `Transcription`, and its `Segment`s."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Segment", "Transcription"]


@dataclass(frozen=True)
class Segment:
    """Words that belong together, with their time.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the samples.
    text : str
    tokens : tuple of int
        As the model wrote them, times included.
    temperature : float
        At which they were chosen.
    average_logprob : float
        Mean logarithm of the probability of the tokens of their window.
    compression_ratio : float
        How much shorter zlib makes the text of their window: much of what is repeated over and over.
    no_speech_probability : float
        That there is none in their window, as the model has it.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    average_logprob: float
    compression_ratio: float
    no_speech_probability: float


@dataclass(frozen=True)
class Transcription:
    """What was said.

    Attributes
    ----------
    text : str
        All of it.
    segments : tuple of Segment
    language : str or None
        Its code, such as ``"en"``; of a model that knows English only, that.
    language_probability : float or None
        Of a language that was found out.
    duration : float
        Seconds of the samples.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float | None
    duration: float
