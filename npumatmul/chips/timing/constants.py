"""What is known or taken of how fast each chip is, constant by constant with its source.

Nothing here was measured by us. Those of RK3588 are what `tools/fit_timing.py` prints: a fit to figures that others
published for boards with different clocks, drivers and runtimes (`tests/measurements/rk3588.csv`). No run of another
chip was ever published: theirs are documented, guessed, or fitted to whole language models by `tools/model_check.py`
(`tests/measurements/models.csv`, rows marked "fit").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from npumatmul.chips.timing.model import TimingModel
from npumatmul.chips.types import ElementType

__all__ = ["TIMINGS"]

_F16, _I8, _I4 = ElementType.FLOAT16, ElementType.INT8, ElementType.INT4
#: A bank of a core's buffer.
_BANK = 32 << 10
_FIT = "fitted: tools/fit_timing.py"
_ONE_ROW = "fitted: tools/model_check.py, one language model of RKLLM's table (peers B5)"
_MODELS = "fitted: tools/model_check.py, half of the language models of RKLLM's table (peers B5)"
_AS_RK3588 = "guess: as RK3588"
#: Share of the documented peak that RK3588 reaches.
_SHARE = 0.916

_RK3588 = TimingModel(
    soc="rk3588",
    cores=3,
    start_seconds=30.0e-6,
    join_seconds=24.3e-6,
    buffer_bytes=12 * _BANK,
    bandwidth_one_core=11.1e9,
    bandwidth_all_cores=28.6e9,
    bind_seconds=4.9e-6,
    host_bandwidth=10.14e9,
    host_flops=30e9,
    host_exp_seconds=1e-9,
    normal_c_seconds=2.48e-9,
    peak={_F16: 0.938e12, _I8: 1.876e12, _I4: 3.752e12},
    normal_peak={_I4: 40e9},
    within=1.55,
    models_within=1.4,
    provenance="fit to published figures of third parties, tests/measurements/rk3588.csv",
    sources={
        "start_seconds": _FIT,
        "join_seconds": _FIT,
        "buffer_bytes": "documented: 12 banks of 32 KiB (facts 9.1)",
        "bandwidth_one_core": _FIT,
        "bandwidth_all_cores": _FIT,
        "bind_seconds": "published: pty819/rk-llama.cpp, docs/opi5/README.md (peers B2)",
        "host_bandwidth": "published: memcpy in one thread, Orange Pi 5, ggml-org/whisper.cpp#89 (peers B3)",
        "host_flops": "guess: four fifths of 16 operations a cycle at 2.35 GHz, a Cortex-A76",
        "host_exp_seconds": "guess: some two cycles an element, a polynomial in vectors of four",
        "normal_c_seconds": _FIT,
        "peak": "fitted: tools/fit_timing.py, one share of the documented peak (facts 9.1) for all three types",
        "normal_peak": "published: 40 GOPS on each of three cores from 16 to 1024 rows, Mojo24x7/rk-llama.cpp, "
        "BENCHMARKS.md (peers B1); 44 on one elsewhere",
        "within": "tools/fit_timing.py: nine tenths of the points of sources that were left out",
        "models_within": "tools/model_check.py: nine tenths of the figures that nothing was fitted to",
    },
)


def _chip(soc: str, cores: int, host: float, sources: Mapping[str, str], **others: Any) -> TimingModel:
    """Constants of another chip: those that nothing is known of as RK3588's, the CPU at a share of its speed."""
    as_rk3588 = dict.fromkeys(("start_seconds", "join_seconds", "bind_seconds", "normal_c_seconds"), _AS_RK3588)
    return replace(
        _RK3588, soc=soc, cores=cores, normal_peak={}, buffer_bytes=8 * _BANK,
        host_bandwidth=_RK3588.host_bandwidth * host, host_flops=_RK3588.host_flops * host,
        host_exp_seconds=_RK3588.host_exp_seconds / host, sources={**as_rk3588, **sources}, **others,
    )  # fmt: skip


def _of_host(source: str) -> dict[str, str]:
    return dict.fromkeys(("host_bandwidth", "host_flops", "host_exp_seconds"), source)


def _untested(soc: str) -> TimingModel:
    """RK3568 and RK3566: no figure of a matmul or of a language model was found."""
    return _chip(
        soc, 1, 0.212,
        {
            **_of_host("guess: as RK3562"),
            "buffer_bytes": "derived: K is at most 7 banks of 16 columns (facts 14), and one is left for A",
            "bandwidth_one_core": "guess: as RK3562, whose memory is alike",
            "bandwidth_all_cores": "guess: as RK3562, whose memory is alike",
            "peak": "documented: up to 1 TOPS, 512 int8 multiply-accumulates a cycle at 0.9 GHz (facts 9.1); float16 "
            "half of it, and the share that RK3588 reaches: guesses",
            "within": "guess: untested",
            "models_within": "guess: untested",
        },
        bandwidth_one_core=8.43e9, bandwidth_all_cores=8.43e9, peak={_F16: 0.46e12 * _SHARE, _I8: 0.92e12 * _SHARE},
        within=3.0, models_within=3.0, provenance="untested: documented peak, all else guessed",
    )  # fmt: skip


#: The chips that something is known of.
TIMINGS: Mapping[str, TimingModel] = {
    "rk3588": _RK3588,
    "rk3576": _chip(
        "rk3576", 2, 0.443,
        {
            **_of_host(f"{_MODELS}; one factor on all constants of RK3588's CPU"),
            "buffer_bytes": "guess: 8 banks of 32 KiB; segments of K are half as deep as RK3588's (facts 4.4)",
            "bandwidth_one_core": "guess: as RK3588",
            "bandwidth_all_cores": _MODELS,
            "peak": "documented: 6 TOPS of int8 on two cores (facts 9.1); float16 half of it, int4 twice, and the "
            "share that RK3588 reaches: guesses",
            "within": "guess: no run was ever timed",
            "models_within": "guess: twice the error of what was tested (tools/model_check.py), which is few models",
        },
        bandwidth_one_core=11.1e9, bandwidth_all_cores=15.5e9,
        peak={_F16: 1.5e12 * _SHARE, _I8: 3e12 * _SHARE, _I4: 6e12 * _SHARE}, within=2.0, models_within=1.4,
        provenance="documented peak; bandwidth and speed of the CPU fitted to half of RKLLM's table",
    ),
    "rk3568": _untested("rk3568"),
    "rk3566": _untested("rk3566"),
    "rk3562": _chip(
        "rk3562", 1, 0.212,
        {
            **_of_host(f"{_ONE_ROW}; one factor on all constants of RK3588's CPU"),
            "buffer_bytes": "guess: as RK3566; K is at most 6 banks of 16 columns and a little (facts 14)",
            "bandwidth_one_core": _ONE_ROW,
            "bandwidth_all_cores": _ONE_ROW,
            "peak": "documented: about 1 TOPS, by third parties (facts 9.1); float16 half of it, and the share that "
            "RK3588 reaches: guesses",
            "within": "guess: no run was ever timed",
            "models_within": "guess: one model was tested",
        },
        bandwidth_one_core=8.43e9, bandwidth_all_cores=8.43e9, peak={_F16: 0.5e12 * _SHARE, _I8: 1e12 * _SHARE},
        within=2.5, models_within=2.0, provenance="one language model of RKLLM's table; documented peak",
    ),
}  # fmt: skip
