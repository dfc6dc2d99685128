"""The hardware's figures as data: what each chip can do under the newest runtime, and what every chip has in common.

This is the only place where a tile size, an alignment or a limit of the hardware stands. A new chip is a new row.
Where sources disagree, the choice is the one that satisfies all of them (facts 3.5); D and Q numbers name the
disagreement or the open question of docs/hardware.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npumatmul.chips.cells import Cell, broken, documented, observed, unsettled
from npumatmul.chips.native_rows import RECORDED, NativeRows
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.rknn.socs import SOCS
from npumatmul.rknn.version import RuntimeVersion

__all__ = [
    "ABSENT",
    "CONTEXTS",
    "DOMAINS",
    "DOMAIN_BYTES",
    "K_LIMIT_1_5_2",
    "M_MAX",
    "NEWEST_RUNTIME",
    "N_OF_INT4",
    "OLDEST_RUNTIME",
    "OPEN_TYPES",
    "PROBLEMS",
    "ROWS",
    "SLICE_ALIGNMENT",
    "ChipRow",
    "NativeTiles",
    "Problem",
    "Sizes",
    "int4_log_level",
    "native_rows",
]

#: The oldest and the newest runtime whose header is known (facts 0).
OLDEST_RUNTIME, NEWEST_RUNTIME = RuntimeVersion(1, 5, 2), RuntimeVersion(2, 3, 2)

_F32, _F16, _BF16 = ElementType.FLOAT32, ElementType.FLOAT16, ElementType.BFLOAT16
_I32, _I16, _I8, _I4 = ElementType.INT32, ElementType.INT16, ElementType.INT8, ElementType.INT4
_T = MatmulType


@dataclass(frozen=True)
class NativeTiles:
    """Native layout of a chip, by element type (facts 4.2), in elements.

    Attributes
    ----------
    a : mapping of ElementType to int
        Columns (along K) per group of A: ``[K/g, M, g]``.
    b : mapping of ElementType to (int, int)
        Rows (along N) and columns (along K) of a tile of B where A has the same type: ``[N/n, K/k, n, k]``.
        `Chip.b_tile` has that of mixed types too (facts 4.5).
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
class Sizes:
    """Sizes that one type of elements of A asks for, in elements.

    Attributes
    ----------
    k_multiple, n_multiple : Cell of int
        K and N are multiples of these.
    k_max, n_max : Cell of int
        Largest K and N that are given to one context. K above it is summed on the host, N is split.
    """

    k_multiple: Cell[int]
    n_multiple: Cell[int]
    k_max: Cell[int]
    n_max: Cell[int]


@dataclass(frozen=True)
class ChipRow:
    """One chip under the newest runtime.

    Attributes
    ----------
    soc : str
    cores : int
        NPU cores (facts 8).
    since : RuntimeVersion
        First runtime that knows the chip.
    native : NativeTiles
    sizes : mapping of ElementType to Sizes
        By the element type of A: mixed types follow it (guide 3-14 note).
    types : mapping of MatmulType to Cell of bool
        Supported or not; those that are absent are those of `OPEN_TYPES`, else `ABSENT`.
    per_channel, per_group : mapping of MatmulType to Cell of bool
        Scales of B; absent: no source offers them for the type.
    k_limit : Cell of int or None
        Largest K that create accepts under runtimes from 2.0.0 on; None: not known.
    k_limit_1_6_0 : Cell of int or None
        The same under 1.6.0.
    k_segment : int or None
        A native B that is deeper is stored in segments of this depth (facts 4.4).
    transposed_b : bool
        Whether B is taken as [N, K] (D19).
    """

    soc: str
    cores: int
    since: RuntimeVersion
    native: NativeTiles
    sizes: Mapping[ElementType, Sizes]
    types: Mapping[MatmulType, Cell[bool]]
    per_channel: Mapping[MatmulType, Cell[bool]]
    per_group: Mapping[MatmulType, Cell[bool]]
    k_limit: Cell[int | None]
    k_limit_1_6_0: Cell[int | None]
    k_segment: int | None
    transposed_b: bool


_NATIVE_16_BYTES = NativeTiles(
    a={_I4: 32, _I8: 16, _F16: 8},
    b={_I4: (64, 32), _I8: (32, 32), _F16: (16, 32)},
    c={_I16: 8, _I32: 4, _F32: 4},
)
_NATIVE_RK3566 = NativeTiles(a={_I8: 8, _F16: 4}, b={_I8: (16, 32), _F16: (8, 16)}, c={_I32: 4, _F32: 4})
_NATIVE_RK3562 = NativeTiles(a={_I8: 16, _F16: 8}, b={_I8: (16, 32), _F16: (8, 32)}, c={_I32: 4, _F32: 4})

#: What a mixed type with an int4 B asks of N.
N_OF_INT4 = 64

_K32 = documented(32, "guide 3-14")
_N4096 = documented(4096, "guide 3-14; field use goes beyond it: D7, Q8")

# N of fp16: 32 satisfies the guide, the header says 16. K of fp16: slices above 2048 read B again and again, as
# measured in the field; K of int8: no segments up to 8192.
_SIZES_RK3588 = {
    _F16: Sizes(
        _K32,
        documented(32, "guide 3-14; the header says 16, which works in the field: D6, Q11"),
        observed(2048, "deeper is slower than slices summed on the host: facts 9; D4"),
        _N4096,
    ),
    _I8: Sizes(_K32, _K32, documented(8192, "no segments up to it: facts 4.4"), _N4096),
    _I4: Sizes(
        _K32,
        documented(64, "guide 3-14"),
        documented(8192, "no segments up to it: facts 4.4"),
        documented(8192, "guide 3-14; D7, Q8"),
    ),
}
_K_RK3576 = documented(4096, "no segments up to it: facts 4.4")
_SIZES_RK3576 = {
    _F16: Sizes(_K32, documented(32, "guide 3-14; the header says 16: D6, Q11"), _K_RK3576, _N4096),
    _I8: Sizes(_K32, _K32, _K_RK3576, _N4096),
    _I4: Sizes(_K32, documented(64, "header, facts 3.4"), _K_RK3576, unsettled(4096, "D7, D18")),
}
_K_RK356X = documented(10240, "guide 3-14")
_SIZES_RK356X = {
    _F16: Sizes(
        documented(32, "guide 3-14; the header says 16 on rk3566 and rk3568: D5"),
        documented(16, "guide 3-14; the header says 8: D6, Q11"),
        _K_RK356X,
        _N4096,
    ),
    _I8: Sizes(_K32, documented(16, "guide 3-14"), _K_RK356X, _N4096),
}

_YES = documented(True, "guide 3-13")
#: A type that the guide's table gives to other chips only.
ABSENT = documented(False, "guide 3-13 has no entry")
_NOWHERE = unsettled(False, "in no column of the guide: Q12")
_NEITHER = unsettled(False, "in the header only, for no named chip: Q12")

#: What the guide leaves open on every chip; everything else that a chip's row lacks is absent from the guide's table.
OPEN_TYPES: Mapping[MatmulType, Cell[bool]] = {
    _T.FLOAT16_INT8_FLOAT16: _NOWHERE,
    _T.FLOAT16_INT4_BFLOAT16: _NEITHER,
    _T.INT8_INT4_FLOAT16: _NEITHER,
}

_TYPES_RK3588 = {
    **dict.fromkeys(
        (
            _T.FLOAT16_FLOAT16_FLOAT32, _T.FLOAT16_FLOAT16_FLOAT16, _T.INT8_INT8_INT32, _T.INT8_INT8_INT8,
            _T.INT8_INT8_FLOAT32, _T.INT4_INT4_INT16,
        ),
        _YES,
    ),
    **dict.fromkeys(
        (_T.FLOAT16_INT8_FLOAT32, _T.FLOAT16_INT4_FLOAT32, _T.FLOAT16_INT4_FLOAT16, _T.INT8_INT4_INT32),
        observed(False, "guide 3-13 has no entry, and create refuses it: unimatrix099/rk-llama.cpp"),
    ),
}  # fmt: skip
_TYPES_RK3576 = {
    **dict.fromkeys(
        (
            _T.FLOAT16_FLOAT16_FLOAT32, _T.FLOAT16_FLOAT16_FLOAT16, _T.INT8_INT8_INT32, _T.FLOAT16_INT8_FLOAT32,
            _T.FLOAT16_INT4_FLOAT32, _T.FLOAT16_INT4_FLOAT16, _T.INT8_INT4_INT32,
        ),
        _YES,
    ),
    _T.INT4_INT4_INT16: unsettled(False, "guide's shapes and header say yes, guide 3-13 does not: D18, Q12"),
}  # fmt: skip
_TYPES_RK356X = dict.fromkeys((_T.FLOAT16_FLOAT16_FLOAT32, _T.INT8_INT8_INT32), _YES)

_HEADER_CHANNELS = documented(True, "header: set_quant_params is for types 2 and 3; D13")
_DEMO_CHANNELS = documented(True, "demos: facts 10.2; the header says types 2 and 3 only: D13")
_DEMO_GROUPS = documented(True, "demos: facts 10.2; D15, Q1, Q2")

_CHANNELS_RK3588 = {
    _T.INT8_INT8_INT32: broken(False, "all calls succeed, C is all zeros: rknn-toolkit2#550, facts 11.4"),
    _T.INT8_INT8_INT8: _HEADER_CHANNELS,
    _T.INT8_INT8_FLOAT32: observed(False, "create returns -5: rknn-toolkit2#550, D13"),
}
_GROUPS_RK3588 = {
    _T.INT8_INT8_FLOAT32: broken(False, "C is all zeros, the demo says wrong: rknn-toolkit2#550, facts 11.4"),
}
_CHANNELS_RK3576 = {
    _T.INT8_INT8_INT32: _HEADER_CHANNELS,
    **dict.fromkeys(
        (_T.FLOAT16_INT8_FLOAT32, _T.FLOAT16_INT4_FLOAT32, _T.FLOAT16_INT4_FLOAT16, _T.INT8_INT4_INT32),
        _DEMO_CHANNELS,
    ),
}
_GROUPS_RK3576 = dict.fromkeys((_T.FLOAT16_INT4_FLOAT32, _T.FLOAT16_INT4_FLOAT16), _DEMO_GROUPS)
_CHANNELS_RK356X = {_T.INT8_INT8_INT32: _HEADER_CHANNELS}

_NO_K_LIMIT = unsettled(None, "header 10240 and segments beyond it, guide none: D4, Q9")
_GUIDE_K_LIMIT = documented(10240, "guide 3-14, header: D4")
_ALWAYS, _STILL = OLDEST_RUNTIME, RuntimeVersion(999, 0, 0)

_ROWS = {
    row.soc: row
    for row in (
        ChipRow(
            "rk3588", 3, _ALWAYS, _NATIVE_16_BYTES, _SIZES_RK3588, _TYPES_RK3588, _CHANNELS_RK3588, _GROUPS_RK3588,
            k_limit=_NO_K_LIMIT, k_limit_1_6_0=observed(10304, "recorded: facts 14"), k_segment=8192, transposed_b=True,
        ),
        ChipRow(
            "rk3576", 2, RuntimeVersion(2, 0, 0), _NATIVE_16_BYTES, _SIZES_RK3576, _TYPES_RK3576, _CHANNELS_RK3576,
            _GROUPS_RK3576, k_limit=_NO_K_LIMIT, k_limit_1_6_0=_NO_K_LIMIT, k_segment=4096, transposed_b=True,
        ),
        ChipRow(
            "rk3568", 1, _ALWAYS, _NATIVE_RK3566, _SIZES_RK356X, _TYPES_RK356X, _CHANNELS_RK356X, {},
            k_limit=_GUIDE_K_LIMIT, k_limit_1_6_0=_GUIDE_K_LIMIT, k_segment=None, transposed_b=False,
        ),
        ChipRow(
            "rk3566", 1, _ALWAYS, _NATIVE_RK3566, _SIZES_RK356X, _TYPES_RK356X, _CHANNELS_RK356X, {},
            k_limit=_GUIDE_K_LIMIT, k_limit_1_6_0=observed(14336, "recorded: facts 14"), k_segment=None,
            transposed_b=False,
        ),
        ChipRow(
            "rk3562", 1, _ALWAYS, _NATIVE_RK3562, _SIZES_RK356X, _TYPES_RK356X, _CHANNELS_RK356X, {},
            k_limit=_GUIDE_K_LIMIT, k_limit_1_6_0=observed(12352, "recorded: facts 14"), k_segment=None,
            transposed_b=True,
        ),
    )
}  # fmt: skip

#: The row of every chip with the matmul API (facts 3.1), by name.
ROWS: Mapping[str, ChipRow] = {soc: _ROWS[soc] for soc in SOCS}

#: Largest K of runtime 1.5.2 by element type of A (facts 3.3, golden/calls_v1.6.0.md).
K_LIMIT_1_5_2: Mapping[ElementType, Cell[int | None]] = {
    _F16: observed(2048, "recorded on runtime 1.5.2: facts 14"),
    _I8: observed(4096, "recorded on runtime 1.5.2: facts 14"),
}


def native_rows(soc: str, mm_type: MatmulType, runtime: RuntimeVersion) -> Cell[NativeRows | None]:
    """The most rows with native A and C, by K and N, where more of them kill the process.

    Recorded on rk3588 under runtime 1.6.0, the only chip and the only version at hand with int4 times int4. It is taken
    for other versions, and for other chips should a probe find the type there, until a probe there says otherwise.
    Types whose B alone is int4 have A and C of fp16 and int8, of which no creation died (facts 14).
    """
    if mm_type is not _T.INT4_INT4_INT16:
        return unsettled(None, "no limit is known")
    if soc == "rk3588" and runtime == RuntimeVersion(1, 6, 0):
        return observed(RECORDED, "recorded; with more, create dies of SIGFPE: facts 15")
    return unsettled(RECORDED, "recorded on rk3588 under 1.6.0, where more die of SIGFPE: taken for all, facts 15")


def int4_log_level(soc: str, runtime: RuntimeVersion) -> Cell[int]:
    """The highest RKNN_LOG_LEVEL that creating int4 survives: at 3 and more all that were tried died (facts 15)."""
    if soc == "rk3588" and runtime == RuntimeVersion(1, 6, 0):
        return observed(2, "at 3 and more every create of int4 dies of SIGFPE: facts 15")
    return unsettled(2, "at 3 and more rk3588 under 1.6.0 dies of SIGFPE: taken for all, facts 15")


#: No source states a limit of M: this bounds the buffers of A and C.
M_MAX = unsettled(512, "the library's choice: Q10")
#: Of one process; None: as many as there are descriptors and memory for.
CONTEXTS: Cell[int | None] = observed(None, "clients hold up to 1876, create itself met no limit on 1.6.0: facts 15")
CONTEXT_DESCRIPTORS = observed(4, "recorded on runtime 1.6.0: facts 15")
DOMAIN_BYTES = observed(2 * 1024**3 - 64 * 1024, "usable of a domain in the field; documents say 4 GiB: facts 7.4")
SLICE_ALIGNMENT = unsettled(4096, "whole pages: Q16")
N_LIMIT: Cell[int | None] = unsettled(None, "guide 4096 or 8192, header none: D7, Q8")
DOMAINS = observed(16, "a backend uses 0 to 15: facts 7.4, Q23")


@dataclass(frozen=True)
class Problem:
    """A path or a shape that is known to go wrong.

    Attributes
    ----------
    what : str
    source : str
    socs : tuple of str
        Chips that it is known from; empty: any.
    types : tuple of MatmulType
        Types that it concerns; empty: any.
    first, last : RuntimeVersion
        Runtimes that it is known from.
    extents : tuple of int
        N or K that are to be avoided, where the problem is one of single shapes.
    """

    what: str
    source: str
    socs: tuple[str, ...] = ()
    types: tuple[MatmulType, ...] = ()
    first: RuntimeVersion = _ALWAYS
    last: RuntimeVersion = _STILL
    extents: tuple[int, ...] = ()

    def concerns(self, soc: str, runtime: RuntimeVersion) -> bool:
        """Whether it is known from this chip and runtime."""
        return (not self.socs or soc in self.socs) and self.first <= runtime <= self.last


_V160, _V210, _V220, _V232 = (RuntimeVersion(*v) for v in ((1, 6, 0), (2, 1, 0), (2, 2, 0), (2, 3, 2)))
_RK3588 = ("rk3588",)
_FP16 = (_T.FLOAT16_FLOAT16_FLOAT32, _T.FLOAT16_FLOAT16_FLOAT16)

#: Reported problems (facts 11.4, 14), in the order of the types that they concern.
PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "some fp16 shapes abort the process inside the library: N (or K) of 16640, 16896 and 17408",
        "unimatrix099/rk-llama.cpp, RKNPU2-decode-research.md",
        _RK3588, _FP16, RuntimeVersion(2, 3, 0), extents=(16640, 16896, 17408),
    ),
    Problem(
        "results all zero with normal layouts", "rknn-toolkit2#154", _RK3588, _FP16, _V220, RuntimeVersion(2, 2, 999)
    ),
    Problem(
        "with per-channel scales of B all calls succeed and C is all zeros",
        "rknn-toolkit2#550", _RK3588, (_T.INT8_INT8_INT32,), _V232,
    ),
    Problem(
        "with per-group scales of B C is all zeros; the vendor's demo says wrong; a probe program saw it abort",
        "rknn-toolkit2#550", _RK3588, (_T.INT8_INT8_FLOAT32,), _V210,
    ),
    Problem(
        "the vendor's demo with native B says wrong: what its packing helper takes as int4 is in dispute (Q3)",
        "rknn-toolkit2#412", _RK3588, (_T.INT4_INT4_INT16,), RuntimeVersion(2, 0, 0),
    ),
    Problem(
        "create dies of SIGFPE with native A and C and more rows than by K and N are recorded as good",
        "recorded: facts 15", _RK3588, (_T.INT4_INT4_INT16,), _V160,
    ),
    Problem(
        "create dies of SIGFPE with RKNN_LOG_LEVEL of 3 or more, in every layout; at 2 it does not",
        "recorded: facts 15", _RK3588, (_T.INT4_INT4_INT16,), _V160,
    ),
    Problem(
        "the packing helper reads one int4 per byte: packed input is read beyond its end (Q3)",
        "unimatrix099/rk-llama.cpp, RKNPU2-native-layout-plan.md; disputed", types=(_T.INT4_INT4_INT16,), first=_V210,
    ),
    Problem(
        "with native A and C, M above 1 that is no multiple of 4 gives wrong products",
        "recorded: facts 14", first=_V160, last=_V160,
    ),
    Problem(
        "int8 with K above 8192 in one context is 14 to 35 times slower", "marfrit/rk-llama.cpp, bench", _RK3588,
        (_T.INT8_INT8_INT32,), _V210,
    ),
    Problem(
        "combined core masks are refused with -1", "rknn-toolkit2#7, #253; D12", _RK3588, first=_V160,
        last=RuntimeVersion(2, 3, 1),
    ),
    Problem("allocation fails after about 2 GB: no IOMMU domains", "useful-transformers#40", last=_V160),
    Problem(
        "synchronising a slice made by rknn_create_mem_from_fd flushes nothing",
        "unimatrix099/rk-llama.cpp, RKNPU2-decode-research.md; Q15", _RK3588,
    ),
    Problem(
        "two processes that use IOMMU domains at the same time can panic the kernel", "facts 7.4",
        first=RuntimeVersion(2, 0, 0),
    ),
)  # fmt: skip
