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
#: Multiply-accumulates in a cycle of a core, of one row and of many, by the types of A and B.
_Rates = Mapping[tuple[ElementType, ElementType], tuple[float, float]]


@dataclass(frozen=True)
class CpuTiming:
    """Constants of the CPU of a chip.

    Attributes
    ----------
    soc : str
    threads : int
        Cores of the fast kind.
    hertz : float
        Their clock.
    bandwidth : float
        Bytes per second that they read together.
    start_seconds : float
        Fixed cost of a product: waking the threads, and waiting for the last one.
    macs : mapping of (ElementType, ElementType) to (float, float)
        Multiply-accumulates in a cycle of a core, by the types of A and B: of one row, where each vector of B is
        loaded for a single product, and of many.
    sources : mapping of str to str
        Where each constant comes from.
    """

    soc: str
    threads: int
    hertz: float
    bandwidth: float
    start_seconds: float
    macs: _Rates = field(hash=False)
    sources: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def seconds(self, m: int, k: int, n: int, a: ElementType, b: ElementType) -> float:
        """Modelled time of a product of padded extents, packing and storing not included.

        Examples
        --------
        >>> one, many = (CPUS["rk3588"].seconds(m, 4096, 4096, _I8, _I8) for m in (1, 128))
        >>> many > 10 * one
        True
        """
        rate = self.macs[a, b][m > 1] * self.threads * self.hertz
        return self.start_seconds + max(b.nbytes(k * n) / self.bandwidth, m * k * n / rate)


# What llvm-mca says of the inner loops as GCC 12 compiles them, for operands in the first cache. Of Cortex-A76 and A72
# it knows no more than of their forerunner A57.
_A76: _Rates = {
    (_I8, _I8): (15.0, 20.4), (_I8, _I4): (9.3, 18.9), (_I4, _I4): (9.3, 18.9),
    (_F16, _F16): (1.56, 2.28), (_F16, _I8): (1.56, 2.44), (_F16, _I4): (1.40, 2.28),
}  # fmt: skip
_A72: _Rates = {**_A76, (_I8, _I8): (3.2, 6.4), (_I8, _I4): (5.2, 6.4), (_I4, _I4): (5.2, 6.4)}
_A55: _Rates = {
    (_I8, _I8): (3.1, 6.1), (_I8, _I4): (3.1, 7.1), (_I4, _I4): (3.1, 7.1),
    (_F16, _F16): (1.21, 1.78), (_F16, _I8): (1.14, 1.52), (_F16, _I4): (0.85, 1.51),
}  # fmt: skip
_A53: _Rates = {
    (_I8, _I8): (1.15, 2.7), (_I8, _I4): (1.67, 2.36), (_I4, _I4): (1.67, 2.36),
    (_F16, _F16): (0.74, 1.45), (_F16, _I8): (0.62, 1.12), (_F16, _I4): (0.47, 0.76),
}  # fmt: skip
_CLOCK = "documented: the highest clock that the chip's datasheet names, which a board may not reach"


def _sources(core: str, bandwidth: str) -> dict[str, str]:
    return {
        "threads": f"documented: four {core}",
        "hertz": _CLOCK,
        "bandwidth": bandwidth,
        "start_seconds": "guess: some ten microseconds to wake threads that sleep",
        "macs": f"modelled: llvm-mca's {core}, inner loops as GCC compiles them, nothing waiting for memory",
    }


_AS_NPU = "guess: three quarters of what the NPU of RK3562 is fitted to read"

#: The chips whose CPU something is known of, or taken.
CPUS: Mapping[str, CpuTiming] = {
    "rk3588": CpuTiming(
        "rk3588", 4, 2.3e9, 22.94e9, 15e-6, _A76,
        _sources("Cortex-A76", "published: four Cortex-A76, Mojo24x7/rk-llama.cpp (peers B3)"),
    ),
    "rk3576": CpuTiming(
        "rk3576", 4, 2.2e9, 12.4e9, 15e-6, _A72,
        _sources("Cortex-A72", "guess: four fifths of what the NPU is fitted to read, as on RK3588"),
    ),
    "rk3568": CpuTiming("rk3568", 4, 2.0e9, 6.3e9, 25e-6, _A55, _sources("Cortex-A55", _AS_NPU)),
    "rk3566": CpuTiming("rk3566", 4, 1.8e9, 6.3e9, 25e-6, _A55, _sources("Cortex-A55", _AS_NPU)),
    "rk3562": CpuTiming("rk3562", 4, 2.0e9, 6.3e9, 25e-6, _A53, _sources("Cortex-A53", _AS_NPU)),
}  # fmt: skip
