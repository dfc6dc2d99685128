"""From one logical matmul to tiles: pure functions of shapes, types and the capability table.

K is cut into slices whose partial sums the host adds, N into tiles, M into ranges that are padded to a few sizes
(buckets) so that few contexts serve every M. Same inputs, same plan; no library is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from npumatmul.capabilities import NEWEST_RUNTIME, Chip
from npumatmul.layout import round_up
from npumatmul.mmtype import MatmulType
from npumatmul.rknn.version import RuntimeVersion
from npumatmul.timing import TIMINGS

__all__ = ["MatmulPlan", "Span", "WeightPlan", "plan_matmul", "plan_weight", "row_buckets", "split"]


@dataclass(frozen=True)
class Span:
    """A range of one dimension.

    Attributes
    ----------
    start, length : int
        In the logical matrix.
    padded : int
        Length as the device sees it.
    """

    start: int
    length: int
    padded: int


def split(extent: int, multiple: int, longest: int) -> tuple[Span, ...]:
    """Cut an extent into as few spans as `longest` allows, as equal as `multiple` allows.

    Examples
    --------
    >>> split(100, 32, 64)
    (Span(start=0, length=64, padded=64), Span(start=64, length=36, padded=64))
    """
    units = round_up(extent, multiple) // multiple
    count = -(-units // (longest // multiple))
    spans = []
    start = 0
    for index in range(count):
        padded = (units // count + (index < units % count)) * multiple
        spans.append(Span(start, min(padded, extent - start), padded))
        start += padded
    return tuple(spans)


@dataclass(frozen=True)
class WeightPlan:
    """How a weight of shape (K, N) is cut; each (K span, N span) is one tile in the native layout of B.

    Attributes
    ----------
    soc : str
    mm_type : MatmulType
    k, n : int
    k_spans, n_spans : tuple of Span
    m_max : int
        Largest M of one run.
    row_multiple : int
        What M above 1 is a multiple of.
    ac_native : bool
        Whether A and C are in native layout.
    row_images : int
        Rows of A that a row of the left operand becomes: 2 where it is split into two halves, else 1.
    """

    soc: str
    mm_type: MatmulType
    k: int
    n: int
    k_spans: tuple[Span, ...]
    n_spans: tuple[Span, ...]
    m_max: int
    row_multiple: int
    ac_native: bool
    row_images: int = 1


def plan_weight(
    k: int,
    n: int,
    mm_type: MatmulType,
    chip: Chip,
    runtime: RuntimeVersion = NEWEST_RUNTIME,
    k_parts: int = 1,
) -> WeightPlan:
    """Cut a weight of shape (K, N), both at least 1.

    Parameters
    ----------
    k, n : int
    mm_type : MatmulType
    chip : Chip
    runtime : RuntimeVersion
    k_parts : int
        K is cut into at least so many slices, as far as the alignment allows: where partial sums must stay small.

    Raises
    ------
    DeviceError
        If chip or runtime lack the type.

    Examples
    --------
    >>> from npumatmul.capabilities import chip
    >>> plan = plan_weight(576, 49152, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> len(plan.k_spans), len(plan.n_spans)
    (1, 12)
    """
    if k < 1 or n < 1:
        raise ValueError(f"plan_weight: K and N must be at least 1, got K={k}, N={n}")
    limits = chip.type_limits(mm_type, runtime)
    units = round_up(k, limits.k_multiple) // limits.k_multiple
    longest = max(1, min(limits.k_max // limits.k_multiple, units // min(k_parts, units)))
    k_spans = split(k, limits.k_multiple, longest * limits.k_multiple)
    # Native A and C avoid a conversion inside the runtime (facts 9.3), but only where C's layout is documented (Q6).
    ac_native = mm_type.a in chip.native.a and mm_type.c in chip.native.c
    m_max = limits.m_max
    if ac_native and limits.native_mk_max is not None:
        m_max = min(m_max, limits.native_mk_max // max(span.padded for span in k_spans))
    return WeightPlan(
        chip.soc,
        mm_type,
        k,
        n,
        k_spans,
        split(n, limits.n_multiple, limits.n_max),
        m_max,
        chip.native.row_multiple,
        ac_native,
    )


def row_buckets(m_max: int, row_multiple: int) -> tuple[int, ...]:
    """Sizes that a range of rows is padded to: 1, then `row_multiple` times 1, 2, 3, 4, 6, 8, 12, ... up to `m_max`.

    Less than a third of a range is padding, with a logarithmic number of contexts.

    Examples
    --------
    >>> row_buckets(64, 4)
    (1, 4, 8, 12, 16, 24, 32, 48, 64)
    """
    sizes = {1}
    size = row_multiple
    while size <= m_max:
        sizes.add(size)
        if size > row_multiple and size * 3 // 2 <= m_max:
            sizes.add(size * 3 // 2)
        size *= 2
    return tuple(sorted(sizes))


@dataclass(frozen=True)
class MatmulPlan:
    """A logical matmul of M rows with a weight, cut into runs of the NPU.

    Attributes
    ----------
    m : int
    weight : WeightPlan
    m_spans : tuple of Span
        Padded lengths are rows of A, `row_images` for each row.
    cores : int
        How many NPU cores work on it.
    tile_cores : tuple of int
        The core of each span of N, below `cores`; empty: all on core 0.
    """

    m: int
    weight: WeightPlan
    m_spans: tuple[Span, ...]
    cores: int = 1
    tile_cores: tuple[int, ...] = ()

    @property
    def runs(self) -> int:
        """Calls of `rknn_matmul_run`."""
        return len(self.m_spans) * len(self.weight.k_spans) * len(self.weight.n_spans)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the logical matrices."""
        return self.m * self.weight.k * self.weight.n

    @property
    def padded_macs(self) -> int:
        """Multiply-accumulates that the device makes, padding included."""
        extents = [sum(s.padded for s in spans) for spans in (self.m_spans, self.weight.k_spans, self.weight.n_spans)]
        return extents[0] * extents[1] * extents[2]

    @property
    def modelled_seconds(self) -> float | None:
        """Modelled time of all runs on one core of the chip, or None where nothing is known of it; never measured."""
        model, w = TIMINGS.get(self.weight.soc), self.weight
        if model is None or w.mm_type.a not in model.peak:
            return None
        counts = Counter((m.padded, k.padded, n.padded) for m in self.m_spans for k in w.k_spans for n in w.n_spans)
        return sum(times * model.run_seconds(w.mm_type, *extents) for extents, times in counts.items())

    def to_json(self) -> str:
        """The plan as JSON."""
        content = asdict(self)
        content["weight"]["mm_type"] = self.weight.mm_type.name
        content["modelled_seconds"] = self.modelled_seconds
        return json.dumps(content, indent=1)

    def __str__(self) -> str:
        w = self.weight
        lines = [
            f"({self.m}, {w.k}) @ ({w.k}, {w.n})  {w.mm_type.name} on {w.soc}: {self.runs} runs, "
            f"A and C {'native' if w.ac_native else 'normal'}, {self.padded_macs / max(self.macs, 1):.3f}x the work"
        ]
        for name, spans in (("M", self.m_spans), ("K", w.k_spans), ("N", w.n_spans)):
            shown = ", ".join(f"{s.start}+{s.length}" + (f" (as {s.padded})" if s.padded != s.length else "")
                              for s in spans[:8])  # fmt: skip
            lines.append(f"  {name}: {shown}" + (f", ... {len(spans)} in all" if len(spans) > 8 else ""))
        if self.modelled_seconds is not None:
            lines.append(f"  modelled {self.modelled_seconds * 1e3:.2f} ms on the chip (not measured)")
        return "\n".join(lines)


def plan_matmul(m: int, weight: WeightPlan) -> MatmulPlan:
    """Cut `m` rows, at least 1, for a weight.

    Examples
    --------
    >>> from npumatmul.capabilities import chip
    >>> weight = plan_weight(64, 100, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> print(plan_matmul(5, weight))
    (5, 64) @ (64, 100)  INT8_INT8_INT32 on rk3588: 1 runs, A and C native, 2.048x the work
      M: 0+5 (as 8)
      K: 0+64
      N: 0+100 (as 128)
      modelled 0.03 ms on the chip (not measured)
    """
    if m < 1:
        raise ValueError(f"plan_matmul: M must be at least 1, got {m}")
    buckets = row_buckets(weight.m_max, weight.row_multiple)
    spans = []
    most = buckets[-1] // weight.row_images
    for start in range(0, m, most):
        length = min(most, m - start)
        padded = next(size for size in buckets if size >= length * weight.row_images)
        spans.append(Span(start, length, padded))
    return MatmulPlan(m, weight, tuple(spans))
