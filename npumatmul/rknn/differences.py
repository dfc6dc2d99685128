"""How runtimes 1.5.2 to 2.3.2 differ behind the same C functions, as data (facts 1.2, 1.4, 1.6, 1.7, 4.6).

Nothing above `npumatmul.rknn` needs to know: callers speak the language of 2.3.2, and what an older runtime cannot say
raises `UnsupportedByRuntime`.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable

from npumatmul.errors import UnsupportedByRuntime
from npumatmul.rknn.constants import MatmulLayout, MatmulTypeCode, MemAllocFlags, QuantType
from npumatmul.rknn.structs import MatmulInfo
from npumatmul.rknn.version import RuntimeVersion

V1_5_0 = RuntimeVersion(1, 5, 0)
V1_5_2 = RuntimeVersion(1, 5, 2)
V1_6_0 = RuntimeVersion(1, 6, 0)
V2_0_0 = RuntimeVersion(2, 0, 0)
V2_1_0 = RuntimeVersion(2, 1, 0)
_LAST = 9999  # stands for any number
_BEYOND = RuntimeVersion(_LAST, 0, 0)

#: First runtime whose header has a matmul type (facts 1.4). 1.5.2 has tensor types in the field, of which the values
#: 1 and 2 mean the same inputs.
TYPE_SINCE: dict[MatmulTypeCode, str] = {
    MatmulTypeCode.FLOAT16_MM_FLOAT16_TO_FLOAT32: "1.5.0",
    MatmulTypeCode.INT8_MM_INT8_TO_INT32: "1.5.0",
    MatmulTypeCode.INT4_MM_INT4_TO_INT16: "1.6.0",
    MatmulTypeCode.INT8_MM_INT8_TO_INT8: "2.0.0b0",
    MatmulTypeCode.FLOAT16_MM_FLOAT16_TO_FLOAT16: "2.0.0b0",
    MatmulTypeCode.FLOAT16_MM_INT8_TO_FLOAT32: "2.0.0b0",
    MatmulTypeCode.FLOAT16_MM_INT8_TO_FLOAT16: "2.0.0b0",
    MatmulTypeCode.FLOAT16_MM_INT4_TO_FLOAT32: "2.0.0b0",
    MatmulTypeCode.FLOAT16_MM_INT4_TO_FLOAT16: "2.0.0b0",
    MatmulTypeCode.INT8_MM_INT4_TO_INT32: "2.0.0b0",
    MatmulTypeCode.INT8_MM_INT8_TO_FLOAT32: "2.1.0",
    MatmulTypeCode.FLOAT16_MM_INT4_TO_BFLOAT16: "2.3.0",
    MatmulTypeCode.INT8_MM_INT4_TO_FLOAT16: "2.3.2",
}

#: `rknn_matmul_quant_type` -> the number of 2.0.0b0, which knows 0 (per layer) and 1 (per channel) and no way to say
#: that zero points count (facts 1.4, D1). The same 1 means per layer, asymmetric, from 2.1.0 on.
QUANT_NUMBERS_OF_2_0_0: dict[QuantType, int] = {QuantType.PER_LAYER_SYM: 0, QuantType.PER_CHANNEL_SYM: 1}


def version_since(text: str) -> RuntimeVersion:
    """A version of the tables; what no published version has lies beyond all."""
    return RuntimeVersion.parse(text) or _BEYOND


def type_since(mm_type: MatmulTypeCode) -> RuntimeVersion:
    """The first runtime version that has a matmul type.

    Examples
    --------
    >>> print(type_since(MatmulTypeCode.INT8_MM_INT8_TO_FLOAT32))
    2.1.0
    """
    return version_since(TYPE_SINCE[mm_type])


def version_window(exports: Callable[[str], bool]) -> tuple[RuntimeVersion, RuntimeVersion]:
    """The first and the last version that a library can be by the functions that it exports (facts 1.8).

    Examples
    --------
    >>> low, high = version_window({"rknn_mem_sync"}.__contains__)
    >>> low == RuntimeVersion(1, 6, 0), low <= RuntimeVersion(1, 9, 9) <= high < RuntimeVersion(2, 0, 0)
    (True, True)
    """
    if exports("rknn_matmul_create_dynamic_shape"):
        return V2_1_0, _BEYOND
    if exports("rknn_matmul_set_quant_params"):
        return V2_0_0, RuntimeVersion(2, 0, _LAST)
    if exports("rknn_mem_sync"):
        return V1_6_0, RuntimeVersion(1, _LAST, _LAST)
    return V1_5_2, RuntimeVersion(1, 5, _LAST)


def judge_version(told: RuntimeVersion | None, low: RuntimeVersion, high: RuntimeVersion) -> RuntimeVersion:
    """The version to go by: what the library tells, where its exports allow that, else the oldest that they allow.

    Examples
    --------
    >>> print(judge_version(None, V2_1_0, RuntimeVersion(3, 0, 0)))
    2.1.0
    >>> print(judge_version(RuntimeVersion(1, 5, 2), V2_1_0, RuntimeVersion(3, 0, 0)))
    2.1.0
    """
    oldest = V1_5_0 if low == V1_5_2 else low  # 1.5.0 exports the same
    return told if told is not None and oldest <= told <= high else low


def unsupported(what: str, since: str, library: object, version: RuntimeVersion) -> UnsupportedByRuntime:
    """The exception for what a runtime is too old for."""
    return UnsupportedByRuntime(
        f"{what} needs runtime {since} or later, and {library} is {version}; update librknnrt.so"
    )


def translated_info(info: MatmulInfo, oldest: RuntimeVersion, newest: RuntimeVersion, library: object) -> MatmulInfo:
    """A `rknn_matmul_info` in the language of an older runtime.

    Parameters
    ----------
    info : MatmulInfo
        As 2.3.2 defines it.
    oldest, newest : RuntimeVersion
        Between which the runtime is known to lie; both the same where it told its version.
    library : object
        For messages.

    Returns
    -------
    MatmulInfo
        A copy: 64 bytes, of which 1.5.2 and 1.6.0 read the first 24. They read two int32 where later runtimes have
        pairs of int16, so the halves that mean quantization have to be zero (facts 1.7).

    Raises
    ------
    UnsupportedByRuntime
        If the runtime cannot be told that; nothing was called.
    ValueError
        If a field has a value that no runtime knows.
    """
    try:
        mm_type = MatmulTypeCode(info.type)
        layouts = MatmulLayout(info.B_layout), MatmulLayout(info.AC_layout)
        quant_types = QuantType(info.B_quant_type), QuantType(info.AC_quant_type)
    except ValueError as error:
        raise ValueError(f"rknn_matmul_info: {error}") from None
    since = TYPE_SINCE[mm_type]
    if newest < type_since(mm_type):
        raise unsupported(f"matmul type {mm_type.name} ({int(mm_type)})", since, library, oldest)
    if newest < V2_1_0 and MatmulLayout.TP_NORM in layouts:
        # a changelog dates it to 2.0.0b19, headers have it since 2.1.0 (facts 0, 1.4)
        raise unsupported("layout TP_NORM", "2.1.0", library, oldest)
    if newest < V2_0_0:
        for field in ("B_quant_type", "AC_quant_type", "iommu_domain_id", "group_size"):
            if getattr(info, field):
                # group_size too is of no use without the quantization that 2.1.0 brought
                needed = "2.1.0" if field == "group_size" else "2.0.0b0"
                raise unsupported(f"{field} {getattr(info, field)}", needed, library, oldest)
    copy = MatmulInfo.from_buffer_copy(info)
    C.memset(C.byref(copy, MatmulInfo.reserved.offset), 0, MatmulInfo.reserved.size)
    if oldest >= V2_0_0 and newest < V2_1_0:
        for quant_type in quant_types:
            if quant_type not in QUANT_NUMBERS_OF_2_0_0:
                raise unsupported(f"quantization {quant_type.name}", "2.1.0", library, oldest)
        if info.group_size:
            raise unsupported(f"group_size {info.group_size}", "2.1.0", library, oldest)
        copy.B_quant_type, copy.AC_quant_type = (QUANT_NUMBERS_OF_2_0_0[each] for each in quant_types)
    return copy


def check_alloc_flags(flags: int, no_context: int, newest: RuntimeVersion, library: object) -> None:
    """Refuse flags of `rknn_create_mem2` that came later (facts 1.4, Q27).

    Raises
    ------
    UnsupportedByRuntime
        If the runtime is too old for one of them.
    """
    if flags & no_context and newest < V2_1_0:
        raise unsupported("memory without a context", "2.1.0", library, newest)
    if flags & MemAllocFlags.TRY_ALLOC_SRAM and newest < RuntimeVersion(2, 3, 2):
        raise unsupported("TRY_ALLOC_SRAM", "2.3.2", library, newest)
