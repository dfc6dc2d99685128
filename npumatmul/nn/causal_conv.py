"""`CausalConv`: each channel of a row is a sum over the last few tokens' values of that channel."""

from __future__ import annotations

import numpy as np

from npumatmul.nn.module import Module, Take, check_size, initial
from npumatmul.nn.product import Float32, Pack

__all__ = ["CausalConv"]


class CausalConv(Module):
    """A convolution over time, of each channel for itself, that looks back and never ahead.

    Parameters
    ----------
    channels : int
    kernel : int
        Tokens that a result is made of, itself among them; 2 or more.
    bias : bool
        Whether there is a bias.

    Notes
    -----
    Parameters are named and shaped as of `torch.nn.Conv1d` with as many groups as channels: ``weight``,
    ``(channels, 1, kernel)``, and ``bias``.
    """

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        check_size("CausalConv", channels=channels, kernel=kernel)
        if kernel < 2:
            raise ValueError("CausalConv: a kernel of 1 looks at no other token; it has to be 2 or more")
        self.weight: Float32 = initial(0.0, channels, 1, kernel)
        self.bias: Float32 | None = initial(0.0, channels) if bias else None
        self._taps: Float32 = initial(0.0, kernel, channels)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Shape of what is kept of a sequence: values of the tokens that the next one looks back at."""
        kernel, channels = self._taps.shape
        return kernel - 1, channels

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load the weight and the bias."""
        super().load_own(names, take, pack, path)
        self._taps = np.ascontiguousarray(self.weight[:, 0].T)

    def __call__(self, x: Float32, before: Float32 | None = None) -> tuple[Float32, Float32]:
        """Convolve.

        Parameters
        ----------
        x : ndarray of float32, shape (B, T, channels)
        before : ndarray of float32, shape (B, kernel - 1, channels), optional
            Values of the tokens before; zeros by default.

        Returns
        -------
        y : ndarray of float32, shape (B, T, channels)
            A new array.
        last : ndarray of float32, shape (B, kernel - 1, channels)
            What is `before` for the tokens after these, a new array.
        """
        count, kept = x.shape[1], len(self._taps) - 1
        if before is None:
            before = np.zeros((len(x), kept, x.shape[2]), np.float32)
        padded = np.concatenate([before, x], axis=1)
        y: Float32 = padded[:, :count] * self._taps[0]
        for i in range(1, kept + 1):
            y += padded[:, i : i + count] * self._taps[i]
        if self.bias is not None:
            y += self.bias
        return y, padded[:, count:].copy()
