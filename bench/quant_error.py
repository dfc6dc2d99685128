"""Error of each scheme with each preparation of the weight, for random matrices like those of language models.

    python bench/quant_error.py                  the table of docs/quantization.md
    python bench/quant_error.py -k 576 --snr     one width, signal-to-noise ratios in dB instead of errors

Products are those of the simulated chip, through `npumatmul.pack` and `npumatmul.matmul`; the reference is float64.
Calibration activations and those that are measured are different samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import npumatmul as npu
from npumatmul.quant import Chain, Hadamard, Hessian, Scheme, gptq, round_weight, smooth
from npumatmul.quant.params import InputTransform, QuantizedWeight

WIDTHS = (576, 1536, 2048, 4096)
#: By chip, the schemes that are measured there.
SCHEMES = {
    "sim:rk3588": ("w16a16", "w8a8_layer", "w8a8", "w8a8_aasym", "w4a8", "w4a8_g128", "w4a8_g32", "w4a4", "w4a4_g128"),
    "sim:rk3576": ("w8a16", "w4a16", "w4a16_g128"),
}
OUTPUTS, ROWS = 256, 64


@dataclass(frozen=True)
class Layer:
    """A weight (N, K), and activations (rows, K) to calibrate with and to measure."""

    weight: np.ndarray
    calibration: np.ndarray
    measured: np.ndarray


def layer(k: int) -> Layer:
    """Correlated activations: 0.5 % of the features are 20 to 60 times as large, half of that a mean."""
    rng = np.random.default_rng(k)
    spread = np.exp(rng.normal(0, 0.5, k))
    mean = rng.normal(0, 0.3, k) * spread
    loud = rng.choice(k, max(1, k // 200), replace=False)
    factor = rng.uniform(20, 60, loud.size)
    mean[loud] += factor / 2 * rng.choice([-1, 1], loud.size)
    spread[loud] *= factor / 2
    directions = rng.normal(size=(k // 8, k)) / np.sqrt(k // 8)

    def activations(rows: int) -> np.ndarray:
        common = rng.normal(size=(rows, k // 8)) @ directions
        x = mean + spread * (0.7 * common + 0.7 * rng.normal(size=(rows, k)))
        return (x * np.exp(rng.normal(0, 0.2, (rows, 1)))).astype(np.float32)

    weight = rng.standard_t(6, (OUTPUTS, k)) * np.exp(rng.normal(0, 0.3, (OUTPUTS, 1))) / np.sqrt(k)
    return Layer(weight.astype(np.float32), activations(max(2 * k, 2048)), activations(ROWS))


Preparation = Callable[[Layer, Scheme], QuantizedWeight]


def rounded(transform: Callable[[Layer], InputTransform | None], clip: str = "absmax") -> Preparation:
    """Round to nearest after a transform."""

    def prepare(given: Layer, scheme: Scheme) -> QuantizedWeight:
        return round_weight(
            given.weight,
            bits=scheme.weight_bits,
            granularity=scheme.granularity,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            clip="mse" if clip == "mse" else "absmax",
            input_transform=transform(given),
        )

    return prepare


def with_gptq(transform: Callable[[Layer], InputTransform]) -> Preparation:
    """GPTQ after a transform."""

    def prepare(given: Layer, scheme: Scheme) -> QuantizedWeight:
        chosen = transform(given)
        hessian = Hessian(given.weight.shape[1], np.float32)
        hessian.add(chosen.activation(given.calibration))
        return gptq(
            given.weight,
            hessian,
            bits=scheme.weight_bits,
            group_size=scheme.group_size,
            act_order=True,
            input_transform=chosen,
        )

    return prepare


def nothing(_: Layer) -> None:
    """No transform."""


def smoothing(given: Layer) -> InputTransform:
    """SmoothQuant, alpha 0.5."""
    return smooth(np.abs(given.calibration).max(axis=0), [given.weight])


def hadamard(given: Layer) -> InputTransform:
    """Randomized Hadamard over all of K."""
    return Hadamard(given.weight.shape[1])


def both(given: Layer) -> InputTransform:
    """SmoothQuant, then Hadamard."""
    return Chain([smoothing(given), hadamard(given)])


PREPARATIONS: dict[str, Preparation] = {
    "nearest": rounded(nothing),
    "clip search": rounded(nothing, "mse"),
    "SmoothQuant": rounded(smoothing),
    "Hadamard": rounded(hadamard),
    "Hadamard, clip search": rounded(hadamard, "mse"),
    "SmoothQuant, Hadamard, clip search": rounded(both, "mse"),
    "SmoothQuant, Hadamard, GPTQ": with_gptq(both),
}


def error(given: Layer, scheme: str, preparation: Preparation) -> float:
    """Relative Frobenius error of the product; nan where the preparation is not for the scheme."""
    exact = given.measured.astype(np.float64) @ given.weight.T.astype(np.float64)
    parsed = Scheme.parse(scheme)
    if parsed.weight_bits == 16:
        if preparation is not PREPARATIONS["nearest"]:
            return float("nan")
        packed = npu.pack(given.weight, scheme, transposed=True)
    elif parsed.granularity == "layer" and preparation is PREPARATIONS["SmoothQuant, Hadamard, GPTQ"]:
        return float("nan")  # scales of GPTQ are per channel or group
    else:
        packed = npu.pack(preparation(given, parsed), scheme)
    with packed:
        return float(np.linalg.norm(npu.matmul(given.measured, packed) - exact) / np.linalg.norm(exact))


def main() -> None:
    """Print a table per width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", type=int, action="append", help=f"width; by default {WIDTHS}")
    parser.add_argument("--snr", action="store_true", help="signal-to-noise ratios in dB instead of errors in percent")
    options = parser.parse_args()
    for k in options.k or WIDTHS:
        given = layer(k)
        unit = "signal-to-noise ratio in dB" if options.snr else "relative Frobenius error in %"
        print(f"\nK = {k}, {unit}\n\n| scheme | {' | '.join(PREPARATIONS)} |\n|---|{'---|' * len(PREPARATIONS)}")
        for device, schemes in SCHEMES.items():
            with npu.Device(device) as opened, npu.use_device(opened):
                for scheme in schemes:
                    errors = [error(given, scheme, each) for each in PREPARATIONS.values()]
                    values = [-20 * np.log10(e) if options.snr else 100 * e for e in errors]
                    cells = ["" if np.isnan(v) else f"{v:.1f}" if options.snr else f"{v:.3g}" for v in values]
                    print(f"| {scheme} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
