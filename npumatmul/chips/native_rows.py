"""How many rows a native A and C may have where creating more of them kills the process: int4 times int4.

`rknn_matmul_create` of runtime 1.6.0 divides by zero, and dies of SIGFPE, above a number of rows that falls with K and,
for deep K, with N (facts 15). No formula was found that gives them all, so what was recorded decides.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ASKED", "FEW_ASKED", "RECORDED", "NativeRows"]

#: Below this K the product M*K decides, as recorded; above it the rows that were tried.
_FIRST_K = 512


@dataclass(frozen=True, repr=False)
class NativeRows:
    """Rows that are known to be safe, by K and N.

    Attributes
    ----------
    ks, ns : tuple of int
        K and N that were tried, ascending.
    rows : tuple of tuple of int
        The largest M that was good, by `ks` and `ns`; 0: none.
    mk_max : int
        Below the first of `ks`, which is at most 512, M*K decides.

    Examples
    --------
    >>> RECORDED.most(608, 64), RECORDED.most(7264, 8192), RECORDED.most(256, 64)
    (408, 24, 1024)
    """

    ks: tuple[int, ...]
    ns: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    mk_max: int = 262144
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # computed once: limits are looked up on every plan
        object.__setattr__(self, "_hash", hash((self.ks, self.ns, self.rows, self.mk_max)))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"NativeRows({self})"

    def __str__(self) -> str:
        first, last = self.rows[0], self.rows[-1]
        return f"{first[0]} (K {self.ks[0]}) to {last[-1]} (K {self.ks[-1]})"

    def most(self, k: int, n: int) -> int:
        """The most rows that are known to be safe; 0: not even one is.

        A K or N between two that were tried takes the least of its neighbours. Beyond the largest K there is nothing
        (the recorded rows run out there: 20 at 8224, 12 at 9248, 4 at 10304), outside of the N a single row, which
        is all that was accepted there.
        """
        if k < self.ks[0]:
            return self.mk_max // k
        if k > self.ks[-1]:
            return 0
        if not self.ns[0] <= n <= self.ns[-1]:
            return min(1, *(min(self.rows[i]) for i in _around(self.ks, k)))
        return min(self.rows[i][j] for i, j in itertools.product(_around(self.ks, k), _around(self.ns, n)))

    def to_dict(self) -> dict[str, Any]:
        return {"k": list(self.ks), "n": list(self.ns), "rows": [list(each) for each in self.rows]}

    @classmethod
    def of(cls, content: object) -> NativeRows:
        """Rows that `to_dict` wrote.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        if not isinstance(content, Mapping) or set(content) != {"k", "n", "rows"}:
            raise ValueError("rows of native A and C are an object of k, n and rows")
        ks, ns = _ascending(content["k"]), _ascending(content["n"])
        if ks[0] > _FIRST_K:
            raise ValueError(f"the first k is {ks[0]}; from {_FIRST_K} on M*K does not tell what is safe (facts 15)")
        rows = content["rows"]
        if not isinstance(rows, list) or len(rows) != len(ks):
            raise ValueError(f"rows are {len(ks)} lists, one for each k")
        found = tuple(_counts(each) for each in rows)
        if any(len(each) != len(ns) for each in found):
            raise ValueError(f"rows are lists of {len(ns)} numbers, one for each n")
        return cls(ks, ns, found)


def _around(tried: Sequence[int], value: int) -> tuple[int, ...]:
    """Indices of the value, or of its neighbours where it was not tried."""
    above = bisect.bisect_left(tried, value)
    return (above,) if tried[above] == value else (above - 1, above)


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(v) is not int or not 0 <= v < 2**31 for v in values):
        raise ValueError(f"{str(values)[:40]!r} is no list of numbers")
    return tuple(values)


def _ascending(values: object) -> tuple[int, ...]:
    found = _counts(values)
    if not 0 < len(found) <= 1024 or found[0] < 1 or list(found) != sorted(set(found)):
        raise ValueError("k and n are lists of up to 1024 ascending numbers")
    return found


# ---- recorded on rk3588 under runtime 1.6.0: facts 15, golden/int4_native_rows_v1.6.0.csv ----------------------------

_N = (64, 128, 192, 256, 512, 1024, 2048, 4096, 8192)

_K = (
    512, 544, 576, 608, 640, 672, 704, 736, 768, 800, 864, 896, 928, 960, 1184, 1216, 1344, 1376, 1408, 1568, 1600,
    1664, 1760, 1792, 1824, 1888, 1952, 2016, 2112, 2144, 2208, 2240, 2272, 2304, 2336, 2368, 2400, 2464, 2560, 2592,
    2624, 2656, 2752, 2784, 2816, 2880, 2912, 3008, 3040, 3104, 3136, 3168, 3200, 3232, 3264, 3328, 3392, 3424, 3488,
    3520, 3552, 3616, 3648, 3680, 3712, 3744, 3776, 3808, 3840, 3904, 3968, 4032, 4064, 4096, 4192, 4256, 4288, 4320,
    4352, 4416, 4480, 4608, 4640, 4672, 4736, 4768, 4832, 4864, 4896, 4928, 4960, 4992, 5024, 5088, 5120, 5152, 5280,
    5312, 5344, 5440, 5504, 5568, 5600, 5664, 5696, 5728, 5760, 5824, 5856, 5888, 5920, 6016, 6048, 6080, 6112, 6144,
    6240, 6272, 6304, 6336, 6368, 6400, 6528, 6560, 6624, 6656, 6720, 6784, 6816, 6848, 6912, 6944, 7072, 7104, 7136,
    7168, 7232, 7264, 7296, 7328, 7392, 7424, 7520, 7552, 7584, 7648, 7712, 7744, 7776, 7808, 7840, 7872, 7904, 7968,
    8032, 8064, 8160, 8192, 8224, 8256, 8288, 8320, 8384, 8416, 8448, 8480, 8512, 8544, 8576, 8608, 8672, 8736, 8768,
    8832, 8864, 8896, 8960, 9024, 9056, 9088, 9120, 9152, 9216, 9248, 9312, 9376, 9440, 9472, 9504, 9600, 9664, 9696,
    9728, 9760, 9792, 9856, 9888, 9952, 9984, 10016, 10112, 10176, 10208, 10272, 10304,
)  # fmt: skip

#: Where fewer rows are good than M*K <= 262144 allows: for all N, or by N, from 1024 on alike.
_FEWER: Mapping[int, tuple[int, ...]] = {
    608: (408,), 736: (340,), 864: (292,), 1376: (184,), 1760: (144,), 2400: (104,), 3424: (72,),
    7264: (32, 32, 32, 32, 32, 24), 7328: (32, 32, 32, 32, 24, 24), 7392: (32, 32, 32, 32, 24, 24),
    7520: (32, 32, 24, 24, 24, 24), 7552: (32, 32, 24, 24, 24, 24), 7584: (32, 32, 24, 24, 24, 24),
    7648: (32, 32, 24, 24, 24, 24), 7712: (32, 24, 24, 24, 24, 24), 7744: (32, 24, 24, 24, 24, 24),
    7776: (32, 24, 24, 24, 24, 24), 7808: (32, 24, 24, 24, 24, 24), 7840: (32, 24, 24, 24, 24, 24),
    7872: (32, 24, 24, 24, 24, 24), 7904: (32, 24, 24, 24, 24, 24), 7968: (32, 24, 24, 24, 24, 24),
    8032: (32, 24, 24, 24, 24, 24), 8064: (32, 24, 24, 24, 24, 24), 8160: (32, 24, 24, 24, 24, 24), 8224: (20,),
    8256: (20,), 8288: (20, 20, 20, 20, 20, 12), 8320: (20,), 8384: (20, 20, 20, 20, 12, 12),
    8416: (20, 20, 20, 20, 12, 12), 8448: (20,), 8480: (20, 20, 20, 12, 12, 12), 8512: (20, 20, 20, 12, 12, 12),
    8544: (20, 20, 12, 12, 12, 12), 8576: (20, 20, 12, 12, 12, 12), 8608: (20, 20, 12, 12, 12, 12),
    8672: (20, 20, 12, 12, 12, 12), 8736: (20, 12, 12, 12, 12, 12), 8768: (20, 12, 12, 12, 12, 12),
    8832: (20, 12, 12, 12, 12, 12), 8864: (20, 12, 12, 12, 12, 12), 8896: (20, 12, 12, 12, 12, 12),
    8960: (20, 12, 12, 12, 12, 12), 9024: (20, 12, 12, 12, 12, 12), 9056: (20, 12, 12, 12, 12, 12),
    9088: (20, 12, 12, 12, 12, 12), 9120: (20, 12, 12, 12, 12, 12), 9152: (20, 12, 12, 12, 12, 12), 9216: (20,),
    9248: (12,), 9312: (12, 12, 12, 12, 12, 4), 9376: (12, 12, 12, 12, 4, 4), 9440: (12, 12, 12, 12, 4, 4),
    9472: (12,), 9504: (12, 12, 12, 4, 4, 4), 9600: (12, 12, 4, 4, 4, 4), 9664: (12, 12, 4, 4, 4, 4),
    9696: (12, 12, 4, 4, 4, 4), 9728: (12,), 9760: (12, 4, 4, 4, 4, 4), 9792: (12, 4, 4, 4, 4, 4),
    9856: (12, 4, 4, 4, 4, 4), 9888: (12, 4, 4, 4, 4, 4), 9952: (12, 4, 4, 4, 4, 4), 9984: (12, 4, 4, 4, 4, 4),
    10016: (12, 4, 4, 4, 4, 4), 10112: (12, 4, 4, 4, 4, 4), 10176: (12, 4, 4, 4, 4, 4), 10208: (12, 4, 4, 4, 4, 4),
    10272: (4,), 10304: (4,),
}  # fmt: skip


def _recorded() -> NativeRows:
    rows = []
    for k in _K:
        by_n = _FEWER.get(k) or (min(512, 262144 // k // 4 * 4),)
        rows.append(by_n * len(_N) if len(by_n) == 1 else by_n + by_n[-1:] * (len(_N) - len(by_n)))
    return NativeRows(_K, _N, tuple(rows))


RECORDED = _recorded()

#: K and N that a board is asked about: deep and shallow ones, and those that M*K alone would be wrong about.
ASKED = (512, 608, 2400, 4096, 7264, 8160, 8224, 10304), (64, 1024, 8192)
FEW_ASKED = (512, 608, 8160, 10304), (64, 8192)
