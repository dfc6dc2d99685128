"""What each chip can do: types, alignments, native tiles, limits, with the source of every figure.

This is the only place where a tile size, an alignment or a limit of the hardware stands. A new chip is a new row.
Where sources disagree, the choice is the one that satisfies all of them (facts 3.5); the D and Q numbers name the
disagreement or the open question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from npumatmul.errors import DeviceError
from npumatmul.mmtype import ElementType, MatmulType
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["CHIPS", "NEWEST_RUNTIME", "Chip", "MemoryLimits", "NativeTiles", "TypeLimits", "chip"]

#: The newest runtime whose header is known (facts 0).
NEWEST_RUNTIME = RuntimeVersion(2, 3, 2)


@dataclass(frozen=True)
class NativeTiles:
    """Native layout of a chip, by element type (facts 4.2), in elements.

    Attributes
    ----------
    a : mapping of ElementType to int
        Columns (along K) per group of A: ``[K/g, M, g]``.
    b : mapping of ElementType to (int, int)
        Rows (along N) and columns (along K) of a tile of B: ``[N/n, K/k, n, k]``.
    c : mapping of ElementType to int
        Columns (along N) per group of C: ``[N/g, M, g]``. Types that no source documents are absent (Q6).
    row_multiple : int
        With native A and C, M is 1 or a multiple of this: other M were recorded to go wrong on runtime 1.6.0, and
        this satisfies every reading (golden/calls_v1.6.0.md, "A trap with native A and C").
    """

    a: Mapping[ElementType, int]
    b: Mapping[ElementType, tuple[int, int]]
    c: Mapping[ElementType, int]
    row_multiple: int = 4


@dataclass(frozen=True)
class TypeLimits:
    """Limits of one matmul type on one chip, in elements.

    Attributes
    ----------
    k_multiple, n_multiple : int
        K and N have to be multiples of these.
    k_max, n_max : int
        Largest K and N that are given to one context. K above it is summed on the host, N is split.
    native_mk_max : int or None
        Largest M·K with native A and C, where there is one.
    m_max : int
        Largest M that is given to one context. No source states a limit (Q10): this is the library's choice, which
        bounds the buffers for A and C.
    provenance : str
        Where the figures come from.
    """

    k_multiple: int
    n_multiple: int
    k_max: int
    n_max: int
    native_mk_max: int | None = None
    provenance: str = ""
    m_max: int = 256


@dataclass(frozen=True)
class MemoryLimits:
    """Limits on contexts and memory of one process.

    Attributes
    ----------
    contexts : int
        Contexts that one process can have.
    domain_bytes : int
        Usable bytes of one IOMMU domain.
    provenance : str
        Where the figures come from.
    """

    contexts: int = 150
    domain_bytes: int = 2 * 1024**3 - 64 * 1024
    provenance: str = "observed in the field: contexts end at about 150, a domain at 2 GiB - 64 KiB (facts 7.4)"


@dataclass(frozen=True)
class Chip:
    """One row of the table.

    Attributes
    ----------
    soc : str
        Name, such as ``"rk3588"``.
    cores : int
        NPU cores (facts 8).
    native : NativeTiles
        Native layout.
    limits : mapping of MatmulType to TypeLimits
        The supported types (facts 3.2) under the newest runtime.
    memory : MemoryLimits
        Limits per process.
    """

    soc: str
    cores: int
    native: NativeTiles
    limits: Mapping[MatmulType, TypeLimits]
    memory: MemoryLimits = field(default_factory=MemoryLimits)

    @property
    def has_core_mask(self) -> bool:
        """Whether a context can be bound to a core; the call fails on single-core chips (facts 8)."""
        return self.cores > 1

    def type_limits(self, mm_type: MatmulType, runtime: RuntimeVersion = NEWEST_RUNTIME) -> TypeLimits:
        """Limits of a matmul type under a runtime version.

        Raises
        ------
        DeviceError
            If the chip or the runtime does not have that type.

        Examples
        --------
        >>> chip("rk3588").type_limits(MatmulType.INT8_INT8_INT32).k_max
        8192
        """
        limits = self.limits.get(mm_type)
        if limits is None:
            raise DeviceError(
                f"{self.soc} has no matmul type {mm_type.name}; it has {', '.join(t.name for t in self.limits)}"
            )
        since = _TYPES_SINCE.get(mm_type)
        if since is not None and runtime < since:
            raise DeviceError(f"matmul type {mm_type.name} needs runtime {since} or later, this is {runtime}")
        if runtime < RuntimeVersion(1, 6, 0):
            # 1.5.2 refuses K above 2048 (fp16) and 4096 (int8): facts 3.3, golden/calls_v1.6.0.md
            k_max = min(limits.k_max, 2048 if mm_type.a is ElementType.FLOAT16 else 4096)
            return replace(limits, k_max=k_max, provenance=limits.provenance + "; K of runtime 1.5.2")
        return limits


_F32, _F16 = ElementType.FLOAT32, ElementType.FLOAT16
_I32, _I16, _I8, _I4 = ElementType.INT32, ElementType.INT16, ElementType.INT8, ElementType.INT4
_T = MatmulType

#: First runtime version of each type (facts 1.4); those absent were always there.
_TYPES_SINCE: Mapping[MatmulType, RuntimeVersion] = {
    _T.INT4_INT4_INT16: RuntimeVersion(1, 6, 0),
    _T.INT8_INT8_INT8: RuntimeVersion(2, 0, 0),
    _T.FLOAT16_FLOAT16_FLOAT16: RuntimeVersion(2, 0, 0),
    _T.FLOAT16_INT8_FLOAT32: RuntimeVersion(2, 0, 0),
    _T.FLOAT16_INT4_FLOAT32: RuntimeVersion(2, 0, 0),
    _T.FLOAT16_INT4_FLOAT16: RuntimeVersion(2, 0, 0),
    _T.INT8_INT4_INT32: RuntimeVersion(2, 0, 0),
    _T.INT8_INT8_FLOAT32: RuntimeVersion(2, 1, 0),
}

_NATIVE_16_BYTES = NativeTiles(
    a={_I4: 32, _I8: 16, _F16: 8},
    b={_I4: (64, 32), _I8: (32, 32), _F16: (16, 32)},
    c={_I16: 8, _I32: 4, _F32: 4},
)
_NATIVE_RK3566 = NativeTiles(a={_I8: 8, _F16: 4}, b={_I8: (16, 32), _F16: (8, 16)}, c={_I32: 4, _F32: 4})
_NATIVE_RK3562 = NativeTiles(a={_I8: 16, _F16: 8}, b={_I8: (16, 32), _F16: (8, 32)}, c={_I32: 4, _F32: 4})

# N of fp16: 32 satisfies the guide, the header says 16 (D6, Q11). N <= 4096 (int4: 8192) satisfies the guide; field use
# goes beyond it (D7, Q8). K of fp16: slices above 2048 read B again and again (measured in the field, facts 9);
# K of int8: no segments up to 8192 (facts 4.4).
_RK3588_LIMITS = {
    _T.FLOAT16_FLOAT16_FLOAT32: TypeLimits(32, 32, 2048, 4096, None, "guide 3-14; K: field, D4; N: D6, D7"),
    _T.FLOAT16_FLOAT16_FLOAT16: TypeLimits(32, 32, 2048, 4096, None, "guide 3-14; K: field, D4; N: D6, D7"),
    _T.INT8_INT8_INT32: TypeLimits(32, 32, 8192, 4096, None, "guide 3-14; K: facts 4.4; N: D7"),
    _T.INT8_INT8_INT8: TypeLimits(32, 32, 8192, 4096, None, "guide 3-14; K: facts 4.4; N: D7"),
    _T.INT8_INT8_FLOAT32: TypeLimits(32, 32, 8192, 4096, None, "guide 3-14; K: facts 4.4; N: D7"),
    # M*K: many larger shapes died inside create of runtime 1.6.0 (golden/calls_v1.6.0.md)
    _T.INT4_INT4_INT16: TypeLimits(32, 64, 8192, 8192, 262144, "guide 3-14; M*K: recorded on runtime 1.6.0"),
}
# K <= 4096 avoids segments (facts 4.4).
_RK3576_FP16 = TypeLimits(32, 32, 4096, 4096, None, "guide 3-14; K: facts 4.4; N: D6, D7")
_RK3576_LIMITS = {
    _T.FLOAT16_FLOAT16_FLOAT32: _RK3576_FP16,
    _T.FLOAT16_FLOAT16_FLOAT16: _RK3576_FP16,
    _T.INT8_INT8_INT32: TypeLimits(32, 32, 4096, 4096, None, "guide 3-14; K: facts 4.4; N: D7"),
    # Mixed types follow the limits of A's type (guide 3-14 note); int4 B asks for N of 64 in the header.
    _T.FLOAT16_INT8_FLOAT32: _RK3576_FP16,
    _T.FLOAT16_INT4_FLOAT32: TypeLimits(32, 64, 4096, 4096, None, "guide 3-14 note; N: header, facts 3.4"),
    _T.FLOAT16_INT4_FLOAT16: TypeLimits(32, 64, 4096, 4096, None, "guide 3-14 note; N: header, facts 3.4"),
    _T.INT8_INT4_INT32: TypeLimits(32, 64, 4096, 4096, None, "guide 3-14 note; N: header, facts 3.4"),
}
# K mod 32 and N mod 16 satisfy guide and header (D5, D6).
_RK356X_LIMITS = {
    _T.FLOAT16_FLOAT16_FLOAT32: TypeLimits(32, 16, 10240, 4096, None, "guide 3-14; D5, D6, D7"),
    _T.INT8_INT8_INT32: TypeLimits(32, 16, 10240, 4096, None, "guide 3-14; D7"),
}

#: Every chip with the matmul API (facts 3.1), by name.
CHIPS: Mapping[str, Chip] = {
    row.soc: row
    for row in (
        Chip("rk3588", 3, _NATIVE_16_BYTES, _RK3588_LIMITS),
        Chip("rk3576", 2, _NATIVE_16_BYTES, _RK3576_LIMITS),
        Chip("rk3568", 1, _NATIVE_RK3566, _RK356X_LIMITS),
        Chip("rk3566", 1, _NATIVE_RK3566, _RK356X_LIMITS),
        Chip("rk3562", 1, _NATIVE_RK3562, _RK356X_LIMITS),
    )
}


def chip(soc: str) -> Chip:
    """Row of a chip.

    Raises
    ------
    DeviceError
        If the chip is not in the table.

    Examples
    --------
    >>> chip("rk3588").cores
    3
    """
    if soc not in CHIPS:
        raise DeviceError(f"chip {soc!r} is not known; known are {', '.join(CHIPS)}")
    return CHIPS[soc]
