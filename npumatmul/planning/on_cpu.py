"""A product that the CPU makes of a packed weight: which thread multiplies which columns; pure.

Tiles of N are the outermost ones of the native layout of B (facts 4.3), so whatever columns of tiles a thread takes
stand in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from npumatmul.chips.timing import CPUS, CpuTiming
from npumatmul.chips.types import ElementType
from npumatmul.planning.product import MatmulPlan
from npumatmul.planning.spans import Span
from npumatmul.planning.weight import WeightPlan

__all__ = ["CpuPlan", "Piece", "cpu_seconds", "plan_on_cpu", "suits_cpu"]

#: Rows that are multiplied at once: A and C of so many stay in a CPU's caches.
ROWS_AT_ONCE = 64
#: Columns of C that are multiplied, and then stored, at once.
_WIDEST = 1024
#: What makes waking one thread more worth it: bytes of B, or multiply-accumulates. A guess: ten microseconds of either.
_THREAD_BYTES = 128 << 10
_THREAD_MACS = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Columns that are multiplied at once.

    Attributes
    ----------
    n_index : int
        The tile of N that they are of.
    tile_columns : int
        Columns of native tiles before them in it.
    span : Span
        `start` and `length` in columns of the weight, `padded` in columns of the device.
    thread : int
    """

    n_index: int
    tile_columns: int
    span: Span
    thread: int


@dataclass(frozen=True)
class CpuPlan:
    """How the CPU multiplies.

    Attributes
    ----------
    m_spans : tuple of Span
        Ranges of rows; nothing is padded.
    pieces : tuple of Piece
    threads : int
    """

    m_spans: tuple[Span, ...]
    pieces: tuple[Piece, ...]
    threads: int


def plan_on_cpu(m: int, plan: WeightPlan, tile_n: int, threads: int) -> CpuPlan:
    """Cut a product of `m` rows into ranges of rows and pieces of N.

    Parameters
    ----------
    m : int
        At least 1.
    plan : WeightPlan
    tile_n : int
        Columns of a native tile of B.
    threads : int
        At most so many; fewer where there is little to do.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.chips.types import MatmulType
    >>> from npumatmul.planning.weight import plan_weight
    >>> plan = plan_weight(4096, 4096, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> found = plan_on_cpu(1, plan, 32, 4)
    >>> found.threads, sum(piece.span.length for piece in found.pieces)
    (4, 4096)
    """
    columns = [span.padded // tile_n for span in plan.n_spans]
    macs = m * plan.k * plan.n
    worth = max(plan.mm_type.b.nbytes(plan.k * plan.n) // _THREAD_BYTES, macs // _THREAD_MACS, 1)
    threads = min(threads, worth, sum(columns))
    widest = max(_WIDEST // tile_n, 1)
    edges = [sum(columns) * thread // threads for thread in range(threads + 1)]
    pieces: list[Piece] = []
    before = 0
    for n_index, (span, own) in enumerate(zip(plan.n_spans, columns, strict=True)):
        for thread in range(threads):
            low, high = max(edges[thread], before), min(edges[thread + 1], before + own)
            for first in range(low, high, widest):
                start = first - before
                stop = min(first + widest, high) - before
                length = min(stop * tile_n, span.length) - start * tile_n
                if length > 0:  # else there is nothing but what pads the tile
                    place = Span(span.start + start * tile_n, length, (stop - start) * tile_n)
                    pieces.append(Piece(n_index, start, place, thread))
        before += own
    m_spans = tuple(Span(start, length := min(ROWS_AT_ONCE, m - start), length) for start in range(0, m, ROWS_AT_ONCE))
    used = sorted({piece.thread for piece in pieces})  # padding alone may have been somebody's share
    return CpuPlan(
        m_spans,
        tuple(Piece(each.n_index, each.tile_columns, each.span, used.index(each.thread)) for each in pieces),
        len(used),
    )


def cpu_seconds(plan: MatmulPlan, timing: CpuTiming) -> float | None:
    """Modelled time of a product on the CPU, with the host's work that it has on the NPU, too; None where unknown.

    Parameters
    ----------
    plan : MatmulPlan
        As it is on the NPU.
    timing : CpuTiming
    """
    if plan.modelled is None:
        return None
    w = plan.weight
    k, n = sum(span.padded for span in w.k_spans), sum(span.padded for span in w.n_spans)
    a = ElementType.INT8 if w.row_images == 2 else w.mm_type.a  # which the NPU takes as two halves
    return timing.seconds(plan.m, k, n, a, w.mm_type.b) + plan.modelled.host


def suits_cpu(plan: MatmulPlan) -> bool:
    """Whether a product is modelled to be faster on the CPU than on the NPU; False where nothing is known.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.chips.types import MatmulType
    >>> from npumatmul.planning.product import plan_matmul
    >>> from npumatmul.planning.weight import plan_weight
    >>> plan = plan_weight(576, 576, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> suits_cpu(plan_matmul(1, plan)), suits_cpu(plan_matmul(128, plan))
    (True, False)
    """
    timing = CPUS.get(plan.weight.soc)
    on_npu = plan.modelled_seconds
    on_cpu = None if timing is None else cpu_seconds(plan, timing)
    return on_npu is not None and on_cpu is not None and on_cpu < on_npu
