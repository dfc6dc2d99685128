"""`transcribed`: a recording of any length, window by window, each where the times of the last one say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.speech.features import Features
from npumatmul.llm.speech.segments import STEP, segments_of
from npumatmul.llm.speech.transcript import Segment
from npumatmul.llm.speech.window import WindowWriter
from npumatmul.nn.cross_attention import KeysAndValues

__all__ = ["Recording", "transcribed"]

Float32 = NDArray[np.float32]

#: From this temperature on, what was written is no help for what follows.
_UNSURE = 0.5


class Recording:
    """The frames of a recording.

    Parameters
    ----------
    samples : ndarray of float32, shape (n,)
        At the rate that `features` has.
    features : Features

    Attributes
    ----------
    frames : int
        Those that hold samples.
    """

    def __init__(self, samples: Float32, features: Features) -> None:
        self._window = features.frames
        self.frames = max(1, len(samples) // features.hop)
        if len(samples) <= features.window_samples:  # as models were trained: with silence behind it
            samples = np.pad(samples, (0, features.window_samples - len(samples)))
        self._rows = features(samples)

    def window(self, first: int) -> tuple[Float32, int]:
        """A window from a frame on, filled up with zeros, and how many of its frames hold samples."""
        rows = self._rows[first : first + self._window]
        if len(rows) < self._window:
            rows = np.concatenate([rows, np.zeros((self._window - len(rows), rows.shape[1]), np.float32)])
        return rows, min(self._window, self.frames - first)


def transcribed(
    recording: Recording,
    writer: WindowWriter,
    hear: Callable[[Float32], Sequence[KeysAndValues]],
    prompt: Callable[[Sequence[KeysAndValues]], list[int]],
    *,
    first_time: int,
    previous: int | None,
    context: Sequence[int],
    room: int,
    condition: bool,
) -> Iterator[tuple[int, list[Segment]]]:
    """Write about one window after another.

    Parameters
    ----------
    recording : Recording
    writer : WindowWriter
    hear : callable
        From a window to what the decoder attends to.
    prompt : callable
        From what the first window is to the tokens that stand before what is written about each.
    first_time, previous : int
        As of `SpeechTokens`.
    context : sequence of int
        Tokens that were said before the first window.
    room : int
        How many tokens of what was said before the model is told at most.
    condition : bool
        Whether it is told those of the windows before.

    Yields
    ------
    frames : int
        How many of the recording are done.
    segments : list of Segment
        Those of the window, with words and a length.
    """
    seek, said, start = 0, list(context), None
    while seek < recording.frames:
        rows, frames = recording.window(seek)
        heard = hear(rows)
        start = prompt(heard) if start is None else start
        before = [previous, *said[-room:]] if said and previous is not None else []
        made = writer.write(heard, before, start)
        if made.silent:
            seek += frames
            yield min(seek, recording.frames), []
            continue
        cuts, step = segments_of(made.tokens, first_time, frames)
        offset = seek * STEP / 2
        segments = []
        for cut in cuts:
            text = writer.text(cut.tokens)
            if text.strip() and cut.end > cut.start:
                values: dict[str, Any] = {
                    name: getattr(made, name)
                    for name in ("temperature", "average_logprob", "compression_ratio", "no_speech_probability")
                }
                segments.append(
                    Segment(
                        _rounded(offset + cut.start * STEP),
                        _rounded(offset + cut.end * STEP),
                        text,
                        tuple(cut.tokens),
                        **values,
                    )
                )
        said = [*said, *(each for cut in cuts for each in cut.tokens)]
        if not condition or made.temperature > _UNSURE:
            said = []
        seek += step
        yield min(seek, recording.frames), segments


def _rounded(seconds: float) -> float:
    """Times are multiples of 10 ms."""
    return round(seconds, 2)
