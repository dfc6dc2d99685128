"""Typed binding of `native/include/npumatmul_profile.h`: what was done while a profile is on, and for how long."""

from __future__ import annotations

import ctypes as C
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host import kernels
from npumatmul.host.layers import Kind

__all__ = ["EVENT", "STEP", "Span", "start", "stop"]

#: `npumm_event`.
EVENT = np.dtype(
    [
        ("kind", np.int32),
        ("core", np.int32),
        ("thread", np.int64),
        ("product", np.int64),
        ("start", np.int64),
        ("nanoseconds", np.int64),
        ("bytes", np.int64),
        ("macs", np.int64),
    ]
)
STEP = 32


class Span(IntEnum):
    """`npumm_span_kind`: what an event tells of."""

    CALL = 0
    PROGRAM = 1
    MEASURE = 2
    PACK_A = 3
    SYNC_A = 4
    SELECT = 5
    BIND = 6
    RUN = 7
    MULTIPLY = 8
    SYNC_C = 9
    STORE = 10
    FUSE = 11
    APPEND = 12
    ATTEND = 13
    RMS_NORM = STEP + Kind.RMS_NORM
    LAYER_NORM = STEP + Kind.LAYER_NORM
    ROTATE = STEP + Kind.ROTATE
    GATE = STEP + Kind.GATE
    ADD = STEP + Kind.ADD
    SCALE = STEP + Kind.SCALE
    PYTHON = STEP + Kind.CALL


@lru_cache(maxsize=1)
def _library() -> Any:
    library = kernels.library()
    library.npumm_profile_start.restype = C.c_int
    library.npumm_profile_start.argtypes = (C.c_int64,)
    library.npumm_profile_stop.restype = C.c_int64
    library.npumm_profile_stop.argtypes = (C.POINTER(C.c_void_p), C.POINTER(C.c_int64))
    library.npumm_profile_free.restype = None
    library.npumm_profile_free.argtypes = (C.c_void_p,)
    return library


def start(most: int) -> bool:
    """Start; whether none was on already."""
    return bool(_library().npumm_profile_start(most) == 0)


def stop() -> tuple[NDArray[Any], int]:
    """Stop; events of dtype `EVENT`, and how many others were not kept."""
    library, address, lost = _library(), C.c_void_p(), C.c_int64()
    count = library.npumm_profile_stop(address, lost)
    try:
        if count <= 0 or not address.value:
            return np.zeros(0, EVENT), int(lost.value)
        nbytes = count * EVENT.itemsize
        return np.frombuffer(C.string_at(address.value, nbytes), EVENT), int(lost.value)
    finally:
        library.npumm_profile_free(address)
