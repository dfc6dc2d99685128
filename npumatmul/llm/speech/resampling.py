"""`resampled`: samples at another rate, by a polyphase filter of a windowed sinc."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["resampled"]

Float32 = NDArray[np.float32]

#: Crossings of zero on each side of the sinc, and the shape of its Kaiser window: what is beyond the lower rate's band
#: is 80 dB quieter from 0.52 of that rate on, and what is below 0.46 of it keeps its level.
_CROSSINGS, _BETA = 64, 8.0
#: So much of the band is kept; the slope takes the rest.
_BAND = 0.98
#: Values of windows that are in memory at once.
_MOST = 1 << 21
_LOWEST, _HIGHEST = 1000, 1_000_000


def resampled(samples: Float32, rate: int, wanted: int) -> Float32:
    """Samples of the same sound at another rate.

    Parameters
    ----------
    samples : ndarray of float32, shape (n,)
    rate, wanted : int
        Samples per second that there are and that are wanted.

    Returns
    -------
    ndarray of float32, shape (ceil(n * wanted / rate),)
        What is above half the lower rate is filtered out.

    Raises
    ------
    ValueError
        If a rate is no integer between 1000 and a million.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.speech.resampling import resampled
    >>> tone = np.sin(np.arange(44100) * (2 * np.pi * 440 / 44100)).astype(np.float32)
    >>> y = resampled(tone, 44100, 16000)
    >>> error = y - np.sin(np.arange(16000) * (2 * np.pi * 440 / 16000))
    >>> y.shape, bool(np.abs(error[200:-200]).max() < 1e-3)
    ((16000,), True)
    """
    for name, value in (("rate", rate), ("wanted", wanted)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not _LOWEST <= value <= _HIGHEST:
            raise ValueError(f"resampled: {name} is {value!r}; it has to be an integer from {_LOWEST} to {_HIGHEST}")
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    band = _BAND * min(1.0, up / down)
    half = math.ceil(_CROSSINGS / band)
    count = -(-len(samples) * up // down)
    padded = np.concatenate([np.zeros(half - 1, np.float32), samples, np.zeros(2 * half, np.float32)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    made: Float32 = np.empty(count, np.float32)
    step = max(1, _MOST // (2 * half))
    for phase in range(min(up, count)):  # each up-th result is made by the same weights, down samples further on
        first, behind = divmod(phase * down, up)
        weights = _weights(np.arange(1 - half, half + 1) - behind / up, band, half)
        mine = made[phase::up]
        for start in range(0, len(mine), step):
            stop = min(start + step, len(mine))
            rows = seen[first + start * down : first + (stop - 1) * down + 1 : down]
            mine[start:stop] = rows @ weights
    return made


def _weights(at: NDArray[Any], band: float, half: int) -> Float32:
    """What samples so far from a result count; together 1, so that silence and constants stay what they are."""
    inside = np.clip(1 - (at / half) ** 2, 0, None)
    weights = np.sinc(band * at) * np.i0(_BETA * np.sqrt(inside))
    weights /= weights.sum()
    made: Float32 = weights.astype(np.float32)
    return made
