"""`read_wave`: samples of a wave file, by the standard library."""

from __future__ import annotations

import os
import wave

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_wave"]

#: Bytes of a sample that are read, and bytes that are read at once, whatever a header says of channels and lengths.
_WIDTHS, _BYTES = (1, 2, 3, 4), 1 << 22
_CONVERT = "ffmpeg -i IN -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav makes a file that can be read"


def read_wave(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """Read a wave file of PCM samples, of 8, 16, 24 or 32 bits; of several channels, their mean.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    samples : ndarray of float32, shape (n,)
        Between -1 and 1.
    rate : int
        Samples per second.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is no such file; the message says how to make one.

    Examples
    --------
    >>> import tempfile, wave
    >>> from pathlib import Path
    >>> from npumatmul.llm import read_wave
    >>> path = Path(tempfile.mkdtemp()) / "two.wav"
    >>> with wave.open(str(path), "wb") as file:
    ...     file.setparams((1, 2, 16000, 0, "NONE", ""))
    ...     file.writeframes(bytes([0, 0, 0, 64]))
    >>> read_wave(path)
    (array([0. , 0.5], dtype=float32), 16000)
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if width not in _WIDTHS:
                raise ValueError(f"{path} has samples of {8 * width} bits: {_CONVERT}")
            parts, step = [np.zeros(0, np.float32)], width * channels
            frames = max(1, _BYTES // step)
            while len(data := file.readframes(frames)) >= step:  # of a file that ends too early, what is there
                floats = _floats(data[: len(data) // step * step], width)
                parts.append(floats.reshape(-1, channels).mean(axis=1, dtype=np.float32))
    except (wave.Error, EOFError, RuntimeError) as error:  # the last one of chunks that lie within others
        told = str(error) or "it ends too early"
        raise ValueError(f"{path} is no wave file of PCM samples ({told}): {_CONVERT}") from None
    return np.concatenate(parts), rate


def _floats(data: bytes, width: int) -> NDArray[np.float32]:
    """Samples between -1 and 1; those of one byte are unsigned."""
    made: NDArray[np.float32]
    if width == 1:
        made = np.frombuffer(data, np.uint8).astype(np.float32)
        made -= 128
        made /= 128
        return made
    if width == 3:  # as the upper bytes of four
        whole = np.zeros((len(data) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = whole.tobytes(), 4
    made = np.frombuffer(data, f"<i{width}").astype(np.float32)
    made /= np.float32(2.0 ** (8 * width - 1))
    return made
