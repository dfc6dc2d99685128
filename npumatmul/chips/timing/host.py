"""A model of how long the CPU takes for a product with tiles that stand in memory: what the NPU is compared with.

A roofline of two figures: the weight is read once, at the speed at which all threads read memory together, and each of
its values is multiplied with every row. Activations are small beside both. The figures are those of a CPU program whose
weights are laid out for it ("repacked"), for a comparison with one that is not says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npumatmul.chips.timing.constants import TIMINGS
from npumatmul.chips.types import ElementType, MatmulType

__all__ = ["HOST_TIMINGS", "HostTiming"]

_GUESS = "guess: RK3588's share of what the chip's memory gives, and the factor of its CPU that TIMINGS has"


@dataclass(frozen=True)
class HostTiming:
    """What a chip's CPU does with all threads that are of use.

    Attributes
    ----------
    start_seconds : float
        Until all threads are at work and have ended.
    read_bandwidth : float
        Bytes of weights per second.
    macs : float
        Multiply-accumulates of int8 per second; float16 are half as many.
    source : str
        Where the figures come from.

    Examples
    --------
    >>> token = HOST_TIMINGS["rk3588"].seconds(MatmulType.INT8_INT8_INT32, 1, 1536, 8960)
    >>> 5e-4 < token < 8e-4
    True
    """

    start_seconds: float
    read_bandwidth: float
    macs: float
    source: str

    def seconds(self, mm_type: MatmulType, m: int, k: int, n: int) -> float:
        """Modelled time of ``(m, k) @ (k, n)``."""
        halved = mm_type.a is ElementType.FLOAT16
        computed = m * k * n / (self.macs / (2 if halved else 1))
        return self.start_seconds + max(mm_type.b.nbytes(k * n) / self.read_bandwidth, computed)


_RK3588 = HostTiming(
    start_seconds=10e-6,
    read_bandwidth=22.1e9,
    macs=80e9,
    source="derived: 13.5 tokens/s of Qwen2.5-1.5B as Q8_0, 1.64 GB, on the CPU (rk-llama.cpp, deployment guide); "
    "16.67 / 3.06 tokens/s of prompts of Phi-4-14B on a repacked CPU (rockchip-npu-notes); the start is a guess",
)


def _other(soc: str) -> HostTiming:
    ours, other = TIMINGS["rk3588"], TIMINGS[soc]
    speed = other.host_flops / ours.host_flops
    return HostTiming(
        _RK3588.start_seconds / speed,
        _RK3588.read_bandwidth * other.bandwidth_all_cores / ours.bandwidth_all_cores,
        _RK3588.macs * speed,
        _GUESS,
    )


#: By chip; nothing of them was measured by us.
HOST_TIMINGS: Mapping[str, HostTiming] = {"rk3588": _RK3588, **{soc: _other(soc) for soc in TIMINGS if soc != "rk3588"}}
