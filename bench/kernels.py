"""What the host does around the NPU, each beside something known, measured in the same process.

Run with ``make bench``. Every figure is the median of many runs, interleaved with its reference; the ratio is the one
to look at, since the machine's speed cancels in it. The products are those of the simulator on this CPU: they say
nothing about the speed of a chip.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

import npumatmul as npu
from npumatmul import _kernels, layout
from npumatmul.mmtype import ElementType

Work = Callable[[], object]


def interleaved(work: Work, reference: Work, seconds: float = 1.0) -> tuple[float, float]:
    """Median seconds of both, run in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    work(), reference()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for each, kept in zip((work, reference), times, strict=True):
            start = time.perf_counter()
            each()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Measure, and print one table."""
    rng = np.random.default_rng(0)
    k, n = 2048, 2048
    table = Table(title="host kernels and simulated products", title_justify="left")
    for column in ("what", "time", "beside", "its time", "speed ratio"):
        table.add_column(column, justify="left" if column in ("what", "beside") else "right")

    def row(what: str, work: Work, beside: str, reference: Work) -> None:
        mine, theirs = interleaved(work, reference)
        table.add_row(what, f"{mine * 1e6:.0f} us", beside, f"{theirs * 1e6:.0f} us", f"{theirs / mine:.2f}")

    weights = rng.standard_normal((k, n)).astype(np.float32)
    halves, bytes_ = weights.astype(np.float16), rng.integers(-99, 99, (k, n), dtype=np.int8)
    for name, b in (("float16", halves), ("int8", bytes_)):
        copy = np.empty_like(b)
        row(f"pack B {name} {k}x{n} from (K, N)", lambda b=b: layout.pack_b(b, "rk3588"),
            "memcpy of it", lambda b=b, copy=copy: np.copyto(copy, b))  # fmt: skip
        turned = np.ascontiguousarray(b.T)
        row(f"pack B {name} {k}x{n} from (N, K)", lambda t=turned: layout.pack_b(t.T, "rk3588"),
            "memcpy of it", lambda b=b, copy=copy: np.copyto(copy, b))  # fmt: skip
        tile_n, tile_k = npu.current_device().chip.native.b[ElementType.of(b.dtype)]
        row(f"pack B {name} {k}x{n} from (K, N)", lambda b=b: layout.pack_b(b, "rk3588"), "numpy transposition",
            lambda b=b, tk=tile_k, tn=tile_n: np.ascontiguousarray(
                b.reshape(k // tk, tk, n // tn, tn).transpose(2, 0, 3, 1)))  # fmt: skip

    out = np.empty((1, 32), np.float32)
    tiny = rng.standard_normal((1, 32)).astype(np.float32)
    square = rng.standard_normal((32, 32)).astype(np.float32)
    packed_tiny = npu.pack(square)
    row("dispatch: 1x32 @ 32x32, w16a16", lambda: npu.matmul(tiny, packed_tiny), "numpy float32 @",
        lambda: np.matmul(tiny, square, out=out))  # fmt: skip
    for scheme in ("w16a16", "w8a8"):
        packed = npu.pack(weights, scheme)
        for m in (1, 32, 256):
            x = rng.standard_normal((m, k)).astype(np.float32)
            row(f"simulated {m}x{k} @ {k}x{n}, {scheme}, 1 thread", lambda x=x, p=packed: npu.matmul(x, p),
                "numpy float32 @, its threads", lambda x=x: x @ weights)  # fmt: skip

    console = Console(width=120)
    console.print(table)
    device = npu.current_device()
    console.print(
        f"{platform.machine()}, kernels: {_kernels.instruction_set()}, {device.name} (CPU simulation), "
        f"Python {sys.version.split()[0]}, numpy {np.__version__}, npumatmul {npu.__version__}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
