"""Checks that try something: whether the package's own libraries load, and whether a product is right."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul
from npumatmul.device.device import Device
from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine
from npumatmul.errors import NpuError
from npumatmul.host import kernels
from npumatmul.ops import matmul

__all__ = ["check_build", "check_products"]

_SIZES = ((1, 64, 64), (16, 256, 128))


def check_build(machine: Machine) -> Iterator[Finding]:
    """The package, and the kernels that it chose."""
    try:
        kernel = kernels.instruction_set()
    except (NpuError, OSError) as error:
        yield Finding(
            Level.ERROR, "npumatmul", f"its library does not load: {error}", "Nothing can be packed or multiplied.",
            "python -m pip install --force-reinstall npumatmul",
        )  # fmt: skip
        return
    python = platform.python_version()
    yield Finding(
        Level.OK, "npumatmul", f"{npumatmul.__version__}, kernels for {kernel}, Python {python}, numpy {np.__version__}"
    )
    if platform.machine() == "x86_64" and kernel == "scalar":
        yield Finding(
            Level.NOTE,
            "npumatmul",
            "this processor has no AVX2",
            "Kernels and simulator use plain code, which is slow.",
        )


def check_products(machine: Machine) -> Iterator[Finding]:
    """Products of a few sizes and types on the device that is used by default, held against numpy's."""
    try:
        with Device() as device:
            wrong = [name for name, a, b, bound in _cases() if not _is_right(device, a, b, bound)]
            where, runs = f"{device.name}, runtime {device.api_version}", device.simulated_runs
    except NpuError as error:
        yield Finding(
            Level.ERROR, "products", f"a product cannot be computed: {error}", "Nothing can be multiplied.",
            "npumatmul info says what was looked for where",
        )  # fmt: skip
        return
    if runs:
        yield Finding(
            Level.WARNING, "simulator", f"{runs}: NPUMATMUL_SIM_TIMING or NPUMATMUL_SIM_COMPUTE is set",
            "Times are those of no CPU and of no chip, and results are wrong where nothing is computed.",
            "unset NPUMATMUL_SIM_TIMING NPUMATMUL_SIM_COMPUTE, unless that is what you measure",
        )  # fmt: skip
    if wrong and "compute nothing" not in runs:
        yield Finding(
            Level.ERROR, "products", f"wrong results on {where}: {', '.join(wrong)}",
            "Results that change from run to run may be the driver's fault (facts 11.2).",
            "update driver and runtime; npumatmul probe says what this board does",
        )  # fmt: skip
    elif not wrong:
        yield Finding(Level.OK, "products", f"right on {where}")


def _cases() -> Iterator[tuple[str, NDArray[Any], NDArray[Any], float]]:
    rng = np.random.default_rng(0)
    for m, k, n in _SIZES:
        a, b = rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (k, n), np.int8)
        yield f"int8 {m}x{k}x{n}", a, b, 0.0
        yield f"float16 {m}x{k}x{n}", a.astype(np.float16) / 128, b.astype(np.float16) / 128, 1e-3


def _is_right(device: Device, a: NDArray[Any], b: NDArray[Any], bound: float) -> bool:
    right = a.astype(np.float64) @ b.astype(np.float64)
    return bool(np.abs(matmul(a, b, device=device) - right).max() <= bound * max(1.0, float(np.abs(right).max())))
