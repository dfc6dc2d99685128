"""Chains of products of NpuArrays beside the same of ndarrays: one pass between two products instead of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise, product
from typing import Any

import numpy as np

import npumatmul as npu
from targets.lines import Turns, line


@line(
    "{0} rows through {2}, {1}, NpuArrays",
    "{3}",
    over=product(
        (1, 8, 64, 512),
        ("w8a8", "w16a16"),
        ("1024-1024-1024-1024", "64-4096-64-64"),
        ("ndarrays", "NpuArrays, each read"),
    ),
)
def chain_of_three(rows: int, scheme: str, widths: str, reference: str) -> Iterator[Turns]:
    """The last result is read in all cases. Narrow products leave most of the time to the passes over the wide result.

    A result that is read before it goes on is stored in NPU memory of its own and packed from there: two passes.
    """
    rng = np.random.default_rng(0)
    sizes = [int(width) for width in widths.split("-")]
    a = rng.standard_normal((rows, sizes[0])).astype(np.float32)
    with ExitStack() as stack:
        packed = [
            stack.enter_context(npu.pack(rng.standard_normal((k, n)).astype(np.float32), scheme))
            for k, n in pairwise(sizes)
        ]
        x = npu.asarray(a)

        def chain(start: Any, between: Callable[[Any], object] = id) -> Any:
            for weight in packed:
                start = npu.matmul(start, weight)
                between(start)
            return start

        others = {"ndarrays": lambda: chain(a), "NpuArrays, each read": lambda: chain(x, np.asarray)}
        yield Turns(lambda: np.asarray(chain(x)), others[reference])
