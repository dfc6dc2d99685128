"""Samples that somebody gives, checked, as float32 of the rate that a model hears."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.reading import shown
from npumatmul.llm.speech.resampling import resampled

__all__ = ["checked_samples"]

#: Floats between -1 and 1 may overshoot; what is louder than this was not divided by its range.
_LOUDEST = 128.0
_RANGES = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def checked_samples(samples: Any, rate: Any, wanted: int, called: str) -> NDArray[np.float32]:
    """One channel of finite floats at the wanted rate.

    Raises
    ------
    TypeError
        If they are no numbers, or of a type whose range is not clear.
    ValueError
        If there are none, they are several channels, or not finite.
    """
    if isinstance(samples, np.ma.MaskedArray):
        raise TypeError(f"{called}: samples are a masked array, whose mask would be lost; write samples.filled(0)")
    given = np.asarray(samples)
    if isinstance(rate, bool) or not isinstance(rate, numbers.Integral):
        raise TypeError(f"{called}: sampling_rate is a whole number of samples per second, not {shown(rate)}")
    if given.ndim != 1:
        raise ValueError(
            f"{called}: samples are one channel, of shape (n,); these have shape {given.shape}: take one channel, or "
            "their mean"
        )
    if not len(given):
        raise ValueError(f"{called}: there are no samples")
    if given.dtype in _RANGES:
        floats = given.astype(np.float32) / np.float32(_RANGES[given.dtype])
    elif given.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large is told below
            floats = given.astype(np.float32, copy=False)
    else:
        raise TypeError(f"{called}: samples are floats, int16 or int32, not {given.dtype}")
    if not np.isfinite(floats).all():
        raise ValueError(f"{called}: sample {int(np.argmin(np.isfinite(floats)))} is not finite")
    loudest = float(max(floats.max(), -floats.min()))
    if loudest > _LOUDEST:
        raise ValueError(
            f"{called}: samples are floats between -1 and 1, and one of these is {loudest:g} in size: divide them by "
            "their range, which is 32768 for samples of 16 bits"
        )
    return resampled(floats, int(rate), wanted)
