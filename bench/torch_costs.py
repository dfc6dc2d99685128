"""What a call of an offloaded layer costs beside its product: ``python bench/torch_costs.py``.

Medians of calls that take turns in one process, and Python functions entered; the simulator is in the place of an NPU,
so times of products are its own. "plain" is what a module does where nobody watches, "operator" what compiled and
traced programs call.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from calls import calls_of
from torch import nn

import npumatmul as npu
from npumatmul.torch import offload

ROUNDS = 501
CASES = ((1, 64, 64, "w16a16"), (1, 576, 576, "w16a16"), (1, 576, 576, "w8a8"), (128, 576, 576, "w8a8"))


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, numpy {np.__version__}; microseconds, medians of {ROUNDS} that take turns\n")
    print(f"{'layer':<26}{'nn.Linear':>10}{'product':>9}{'plain':>8}{'operator':>10}{'Python calls':>22}")
    for rows, k, n, scheme in CASES:
        model = nn.Sequential(nn.Linear(k, n)).eval()
        layer = copy.deepcopy(model)[0]
        offload(model, scheme)
        made: Any = model[0]
        x = torch.randn(rows, k)
        array, weight, bias = x.numpy(), made.products()[0].weight, made.bias.numpy()
        functions: list[Callable[[], object]] = [
            partial(layer, x),
            partial(npu.matmul, array, weight, bias=bias),
            partial(made, x),
            partial(torch.ops.npumatmul.linear, x, made._number, n),
        ]
        times: list[list[float]] = [[] for _ in functions]
        with torch.inference_mode():
            for _ in range(ROUNDS):
                for each, found in zip(functions, times, strict=True):
                    start = time.perf_counter()
                    each()
                    found.append(time.perf_counter() - start)
            counts = " / ".join(str(calls_of(each)) for each in functions)
        a, b, c, d = (1e6 * statistics.median(found) for found in times)
        print(f"{f'{rows} x {k} x {n} {scheme}':<26}{a:>10.1f}{b:>9.1f}{c:>8.1f}{d:>10.1f}{counts:>22}")


if __name__ == "__main__":
    main()
