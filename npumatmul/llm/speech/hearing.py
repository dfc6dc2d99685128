"""What every model is asked for that speech is given to; only a `SpeechModel` answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.llm.speech.transcript import Segment, Transcription

__all__ = ["Hearing", "Progress"]

Progress = Callable[[float, float], object]
"""Called with seconds done and seconds in all."""


class Hearing:
    """The methods of models that are about speech."""

    name: str

    def transcribe(
        self,
        samples: Any,
        *,
        sampling_rate: int,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = True,
        prompt: str | None = None,
        temperature: float | Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        compression_ratio_threshold: float | None = 2.4,
        logprob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        max_tokens: int | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
        heard: Callable[[Segment], object] | None = None,
    ) -> Transcription:
        """Write down what is said, with a model that hears.

        Long recordings are heard in windows of 30 seconds, one after another: the next one begins behind the last words
        whose end was heard.

        Parameters
        ----------
        samples : array_like, shape (n,)
            One channel: floats between -1 and 1, or int16 or int32, which are divided by their range. Floats beyond 128
            are refused: nobody divided them.
        sampling_rate : int
            Samples per second; other rates than the model's are filtered to it.
        language : str, optional
            A code or an English name; by default what the first window sounds like.
        task : {"transcribe", "translate"}
            ``"translate"``: write English, whatever is said.
        timestamps : bool, default True
            Whether the model writes times. Without them a segment is a window, and words at its ends may be cut.
        prompt : str, optional
            What was said before, or names that may be said: it is as if it had been heard before the first window.
        temperature : float or sequence of float
            0 takes the likeliest tokens; those that follow are tried where the result is not believed.
        compression_ratio_threshold : float or None
            A text that zlib makes shorter than this is not believed: it repeats itself.
        logprob_threshold : float or None
            Tokens whose mean logarithm of probability is below it are not believed.
        no_speech_threshold : float or None
            A window that is likelier than this to hold no speech, and whose tokens are not believed, is left out.
        condition_on_previous_text : bool, default True
            Whether the model is told what it wrote about the windows before; not after a temperature above 0.5.
        max_tokens : int, optional
            Tokens about a window at most.
        seed : int, optional
            Makes the choices of a temperature above 0 repeatable.
        progress : callable, optional
            Called with (seconds done, seconds in all) after each window.
        heard : callable, optional
            Called with each `Segment` as soon as its window was written about.

        Returns
        -------
        Transcription
            Text, segments and language.

        Raises
        ------
        npumatmul.errors.ModelError
            If the model hears nothing.
        npumatmul.errors.ClosedError
            If the model is closed.
        TypeError, ValueError
            If an argument cannot be used.
        """
        raise ModelError(f"the model {self.name} reads texts and hears nothing; transcribe needs one such as Whisper")

    def detect_language(self, samples: Any, *, sampling_rate: int) -> tuple[str, float]:
        """Find out which language is spoken in the first 30 seconds.

        Parameters
        ----------
        samples, sampling_rate
            As for `transcribe`.

        Returns
        -------
        language : str
            Its code.
        probability : float
            Among all languages that the model knows.

        Raises
        ------
        npumatmul.errors.ModelError
            If the model hears nothing, or knows English only.
        npumatmul.errors.ClosedError, TypeError, ValueError
            As for `transcribe`.
        """
        raise ModelError(f"the model {self.name} reads texts and hears nothing; detect_language needs a Whisper")
