"""What is known or taken of how fast each chip is, constant by constant with its source.

Nothing here was measured by us. Those of RK3588 are what `tools/fit_timing.py` prints: a fit to figures that others
published for boards with different clocks, drivers and runtimes (`tests/measurements/rk3588.csv`).
"""

from __future__ import annotations

from collections.abc import Mapping

from npumatmul.chips.timing.model import TimingModel
from npumatmul.chips.types import ElementType

__all__ = ["TIMINGS"]

_F16, _I8, _I4 = ElementType.FLOAT16, ElementType.INT8, ElementType.INT4
_BANK = 32 << 10
_FIT = "fitted: tools/fit_timing.py"

#: The chips that something is known of.
TIMINGS: Mapping[str, TimingModel] = {
    "rk3588": TimingModel(
        soc="rk3588",
        cores=3,
        start_seconds=30.0e-6,
        join_seconds=24.3e-6,
        buffer_bytes=12 * _BANK,
        bandwidth_one_core=11.1e9,
        bandwidth_all_cores=28.6e9,
        bind_seconds=4.9e-6,
        host_bandwidth=10.14e9,
        normal_c_seconds=2.48e-9,
        peak={_F16: 0.938e12, _I8: 1.876e12, _I4: 3.752e12},
        normal_peak={_I4: 40e9},
        within=1.55,
        provenance="fit to published figures of third parties, tests/measurements/rk3588.csv",
        sources={
            "start_seconds": _FIT,
            "join_seconds": _FIT,
            "buffer_bytes": "documented: 12 banks of 32 KiB (facts 9.1)",
            "bandwidth_one_core": _FIT,
            "bandwidth_all_cores": _FIT,
            "bind_seconds": "published: pty819/rk-llama.cpp, docs/opi5/README.md (peers B2)",
            "host_bandwidth": "published: memcpy in one thread, Orange Pi 5, ggml-org/whisper.cpp#89 (peers B3)",
            "normal_c_seconds": _FIT,
            "peak": "fitted: tools/fit_timing.py, one share of the documented peak (facts 9.1) for all three types",
            "normal_peak": "published: 40 GOPS on each of three cores from 16 to 1024 rows, Mojo24x7/rk-llama.cpp, "
            "BENCHMARKS.md (peers B1); 44 on one elsewhere",
            "within": "tools/fit_timing.py: nine tenths of the points of sources that were left out",
        },
    ),
}
