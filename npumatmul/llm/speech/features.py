"""Log-mel features: what a model hears instead of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.settings import Settings
from npumatmul.llm.models.whisper_config import WhisperConfig

__all__ = ["Features", "features_of", "mel_filters"]

Float32 = NDArray[np.float32]

_RATE, _HOP, _WINDOW = 16000, 160, 400
#: The spectrum ends here: half the rate.
_HIGHEST = 8000.0
_LEAST = 1e-10
#: Decades below the loudest that stay.
_RANGE = 8.0
#: Frames that are transformed at once: 26 MB of them in float64.
_FRAMES = 8192


@dataclass(frozen=True)
class Features:
    """How samples become frames.

    Attributes
    ----------
    bins : int
        Bands of the spectrum.
    frames : int
        Frames of a window.
    rate : int
        Samples per second.
    hop : int
        Samples from one frame to the next.
    window : int
        Samples of a frame.

    Examples
    --------
    >>> import numpy as np
    >>> features = Features(80, 3000)
    >>> features.window_samples, features(np.zeros(48000, np.float32)).shape
    (480000, (300, 80))
    """

    bins: int
    frames: int
    rate: int = _RATE
    hop: int = _HOP
    window: int = _WINDOW

    @property
    def window_samples(self) -> int:
        """Samples of a window."""
        return self.frames * self.hop

    def __call__(self, samples: Float32) -> Float32:
        """Logarithms of the power in each band, ``(frames, bins)``: one frame for each full hop of samples.

        Parameters
        ----------
        samples : ndarray of float32, shape (n,)
            More than half a frame of them.
        """
        half = self.window // 2
        padded = np.pad(samples, half, mode="reflect")
        shape = 2 * math.pi * np.arange(self.window) / self.window
        weights = 0.5 - 0.5 * np.cos(shape)
        count = len(samples) // self.hop
        filters = mel_filters(self.bins, 1 + half, self.rate)
        seen = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        made: Float32 = np.empty((count, self.bins), np.float32)
        for first in range(0, count, _FRAMES):
            spectrum = np.fft.rfft(seen[first : min(first + _FRAMES, count)] * weights, axis=-1)
            power = (spectrum.real**2 + spectrum.imag**2) @ filters
            made[first : first + _FRAMES] = np.log10(np.maximum(power, _LEAST))
        np.maximum(made, made.max(initial=-np.inf) - np.float32(_RANGE), out=made)
        made += np.float32(4)
        made /= np.float32(4)
        return made


@lru_cache(maxsize=8)
def mel_filters(bins: int, frequencies: int, rate: int) -> NDArray[np.float64]:
    """Triangles of equal area over frequencies, ``(frequencies, bins)``, evenly spaced by Slaney's scale of pitch."""
    edges = _hertz(np.linspace(0.0, _pitch(_HIGHEST), bins + 2))
    at = np.linspace(0.0, rate / 2, frequencies)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


#: Slaney's scale: linear up to 1000 Hz, where it is 15, and logarithmic above, 27 steps for a factor of 6.4.
_KNEE_HERTZ, _KNEE, _STEP = 1000.0, 15.0, math.log(6.4) / 27.0


def _pitch(hertz: float) -> float:
    if hertz < _KNEE_HERTZ:
        return hertz * _KNEE / _KNEE_HERTZ
    return _KNEE + math.log(hertz / _KNEE_HERTZ) / _STEP


def _hertz(pitch: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = pitch * (_KNEE_HERTZ / _KNEE)
    return np.where(pitch < _KNEE, linear, _KNEE_HERTZ * np.exp(_STEP * (pitch - _KNEE)))


def features_of(source: ModelSource, config: WhisperConfig) -> Features:
    """Read how samples become frames, and hold it against what the model takes.

    Raises
    ------
    npumatmul.errors.ModelError
        If its files ask for something that is not computed, or contradict each other.
    """
    made = Features(config.mel_bins, config.frames)
    beside = getattr(source, "beside", None)
    name, given = "preprocessor_config.json", None if beside is None else beside("preprocessor_config.json")
    if given is None and beside is not None:
        name, whole = "processor_config.json", beside("processor_config.json")
        given = whole.get("feature_extractor") if isinstance(whole, dict) else None
    if given is None:
        return made
    if not isinstance(given, dict):
        raise source.error(f"its {name} holds no settings of features")
    settings = Settings(given, source.error)
    for each, wanted in (
        ("feature_size", made.bins),
        ("sampling_rate", made.rate),
        ("hop_length", made.hop),
        ("n_fft", made.window),
        ("n_samples", made.window_samples),
        ("nb_max_frames", made.frames),
        ("padding_value", 0),
        ("dither", 0),
        ("do_normalize", False),
    ):
        settings.must_be(each, wanted)
    seconds = settings.number("chunk_length", made.window_samples / made.rate)
    if round(seconds * made.rate) != made.window_samples:
        raise source.error(
            f"'chunk_length' in its {name} is {seconds:g} seconds, and a window of the model has {made.frames} frames"
        )
    return made
