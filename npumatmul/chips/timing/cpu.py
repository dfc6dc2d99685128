"""How long the CPU beside an NPU is modelled to take for products with native tiles.

A roofline: the weight's bytes over what the memory gives the fast cores together, or multiply-accumulates over what
these cores make, whichever takes longer. Nothing here was measured by us on a board; sources say what each figure is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from npumatmul.chips.types import ElementType

__all__ = ["CPUS", "CpuTiming"]

_F16, _I8, _I4 = ElementType.FLOAT16, ElementType.INT8, ElementType.INT4


@dataclass(frozen=True)
class CpuTiming:
    """Constants of the CPU of a chip.

    Attributes
    ----------
    soc : str
    threads : int
        Cores of the fast kind.
    bandwidth : float
        Bytes per second that they read together.
    start_seconds : float
        Fixed cost of a product: waking the threads, and their last one's end.
    macs : mapping of (ElementType, ElementType) to float
        Multiply-accumulates per second and core with many rows, by the types of A and B.
    one_row : float
        The share of that at one row, where each element of B is loaded for a single product.
    sources : mapping of str to str
        Where each constant comes from.
    """

    soc: str
    threads: int
    bandwidth: float
    start_seconds: float
    macs: Mapping[tuple[ElementType, ElementType], float] = field(hash=False)
    one_row: float
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def seconds(self, m: int, k: int, n: int, a: ElementType, b: ElementType) -> float:
        """Modelled time of a product of padded extents, packing and storing not included.

        Examples
        --------
        >>> one, many = (CPUS["rk3588"].seconds(m, 4096, 4096, _I8, _I8) for m in (1, 128))
        >>> many > 10 * one
        True
        """
        rate = self.macs[a, b] * self.threads * (self.one_row if m < _FEW_ROWS else 1.0)
        return self.start_seconds + max(b.nbytes(k * n) / self.bandwidth, m * k * n / rate)


#: From so many rows on the kernels take four rows of A to each load of B.
_FEW_ROWS = 4


def _rates(clock: float, int8: float, float32: float) -> dict[tuple[ElementType, ElementType], float]:
    """Rates at a clock in Hz, of multiply-accumulates a cycle of integers and of float32; int4 pays for its halves."""
    ints, floats = clock * int8, clock * float32
    return {
        (_I8, _I8): ints, (_I8, _I4): ints * 0.8, (_I4, _I4): ints * 0.8,
        (_F16, _F16): floats, (_F16, _I8): floats * 0.8, (_F16, _I4): floats * 0.7,
    }  # fmt: skip


_PIPES = "guess: half of what the vector pipes can start each cycle, from the core's published optimization guide"
_START = "guess: some ten microseconds to wake threads that sleep"
_SHARE = "guess: loads of B take half of the slots"

#: The chips whose CPU something is known of, or taken.
CPUS: Mapping[str, CpuTiming] = {
    "rk3588": CpuTiming(
        "rk3588", 4, 22.94e9, 15e-6, _rates(2.3e9, 16, 4), 0.5,
        {
            "threads": "documented: four Cortex-A76 beside four Cortex-A55, which are left alone",
            "bandwidth": "published: four Cortex-A76, Mojo24x7/rk-llama.cpp (peers B3)",
            "start_seconds": _START,
            "macs": f"{_PIPES}: two dot products of 16 int8, two of four float32",
            "one_row": _SHARE,
        },
    ),
    "rk3576": CpuTiming(
        "rk3576", 4, 12e9, 15e-6, _rates(2.2e9, 4, 2), 0.7,
        {
            "threads": "documented: four Cortex-A72 beside four Cortex-A53",
            "bandwidth": "guess: RK3588's share of its memory, of half as wide a one",
            "start_seconds": _START,
            "macs": f"{_PIPES}: no dot products, one widening multiplication of 8 int8; one of four float32",
            "one_row": _SHARE,
        },
    ),
    **{
        soc: CpuTiming(
            soc, 4, 6e9, 25e-6, _rates(1.8e9, int8, 2), 0.6,
            {
                "threads": f"documented: four {core}",
                "bandwidth": "guess: three quarters of what the NPU of RK3562 is fitted to read",
                "start_seconds": _START,
                "macs": _PIPES,
                "one_row": _SHARE,
            },
        )
        for soc, core, int8 in (
            ("rk3568", "Cortex-A55", 8), ("rk3566", "Cortex-A55", 8), ("rk3562", "Cortex-A53", 3),
        )
    },
}  # fmt: skip
