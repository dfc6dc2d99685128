"""Linear layers on the NPU: the `Pack` that puts a model's weights there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npumatmul.device import Device, current_device
from npumatmul.ops import PackedWeight, matmul, pack
from npumatmul.quant.schemes import scheme_for

from .model import Float32, Linear, Pack

__all__ = ["NpuLinear", "npu_pack"]


class NpuLinear:
    """A `Linear` whose weight stays on the NPU.

    Parameters
    ----------
    weight : PackedWeight
        The packed weight.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.weight.shape

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)`` through `rknn_matmul_run`."""
        y: Float32 = matmul(x, self.weight)
        return y


def npu_pack(scheme: str = "w16a16", device: Device | str | None = None) -> Pack:
    """Make the function that packs each weight of a model and uploads it to a device.

    Parameters
    ----------
    scheme : str
        Name of any scheme that takes floats. ``"w16a16"``: float16, sums in float32. ``"w8a8"``: int8 weights with a
        scale per output channel and int8 activations with a scale per token. ``"w4a8_g32"``: int4 weights with a scale
        per 32 values. `npumatmul.quant.schemes` says how names are made.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    callable
        From a float32 weight ``(N, K)`` and the name of its layer to a `Linear`.

    Raises
    ------
    ValueError
        If there is no such scheme.
    TypeError
        If the scheme does not take float32 weights.

    Examples
    --------
    >>> import numpy as np
    >>> linear = npu_pack("w8a8", "sim:rk3588")(np.eye(32, dtype=np.float32))
    >>> linear.shape
    (32, 32)
    """
    scheme_for(np.dtype(np.float32), scheme, "npu_pack")  # a wrong name is told before a model is opened
    target = current_device(device)

    def pack_weight(weight: NDArray[np.float32], name: str = "") -> Linear:
        return NpuLinear(pack(weight, scheme, transposed=True, device=target))

    return pack_weight
