"""Compare the timing model with all that was published, and fail where a stated target is missed: `make model-check`.

    python tools/model_check.py

Needs an installed npumatmul and scipy. First single products on RK3588 (`fit_timing.py`); then whole language models,
whose prompts and tokens are predicted from our own plans of their true shapes (`tests/measurements/models.csv`). Rows
marked "fit" give the other chips two constants each, the bandwidth and one factor on the speed of the CPU; rows marked
"test" were used for nothing. Deterministic.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fit_timing
import numpy as np

from npumatmul.chips import Chip, chip
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.llm.modelled import SHAPES, modelled_pass
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme

FIGURES = Path(__file__).parent.parent / "tests" / "measurements" / "models.csv"
#: Targets: of single products, and of whole models.
IN_SAMPLE, LEFT_OUT, WORST_FACTOR, MEDIAN, EXPLAINED = 0.20, 0.35, 2.0, 0.25, 0.50
#: RKLLM's table generates 64 tokens after the prompt: the middle one sees half of them.
GENERATED = 64
#: Chips with rows to be fitted to.
FITTED = ("rk3576", "rk3562")


@dataclass(frozen=True)
class Figure:
    """A published figure of a language model: seconds of a prompt, or of a token."""

    source: str
    soc: str
    scheme: str
    model: str
    prompt: int
    token: bool
    seconds: float
    use: str
    why: str

    @property
    def group(self) -> str:
        """What is judged together."""
        rkllm = "rknn-llm" in self.source
        what = "tokens" if self.token else "prompts"
        return f"{'RKLLM' if rkllm else 'rk-llama.cpp'}, {self.soc} {self.scheme if rkllm else 'all'}, {what}"


def figures(path: Path = FIGURES) -> list[Figure]:
    """Prompts and tokens of all rows."""
    found = []
    with path.open() as file:
        for row in csv.DictReader(file):
            prompt = int(row["prompt"] or 0)
            named = (row["source"], row["soc"], row["scheme"], row["model"], prompt)
            if row["ttft_ms"]:
                found.append(Figure(*named, False, float(row["ttft_ms"]) / 1e3, row["use"], row["why"]))
            if row["prompt_per_s"]:
                found.append(Figure(*named, False, prompt / float(row["prompt_per_s"]), row["use"], row["why"]))
            if row["tokens_per_s"]:
                found.append(Figure(*named, True, 1 / float(row["tokens_per_s"]), row["use"], row["why"]))
    return found


def predicted(figure: Figure, model: TimingModel | None = None) -> float:
    """Modelled seconds."""
    where: Chip = chip(figure.soc)
    if model is not None:
        where = replace(where, timings={figure.soc: model})
    route = route_for(Scheme.parse(figure.scheme), where)
    rows, keys = (1, figure.prompt + GENERATED // 2) if figure.token else (figure.prompt, figure.prompt)
    found = modelled_pass(SHAPES[figure.model], rows, keys, route.mm_type, where, row_images=route.row_images)
    assert found is not None
    return found.seconds


def fitted(soc: str, chosen: Sequence[Figure]) -> TimingModel:
    """The bandwidth and the speed of the CPU that explain figures best; all else as it is."""
    from scipy.optimize import least_squares

    rk3588, known = TIMINGS["rk3588"], TIMINGS[soc]

    def model(logs: Any) -> TimingModel:
        bandwidth, host = (float(each) for each in np.exp(logs))
        return replace(
            known,
            bandwidth_all_cores=bandwidth,
            bandwidth_one_core=min(bandwidth, rk3588.bandwidth_one_core),
            host_bandwidth=rk3588.host_bandwidth * host,
            host_flops=rk3588.host_flops * host,
            host_exp_seconds=rk3588.host_exp_seconds / host,
        )

    def residuals(logs: Any) -> Any:
        return np.array([math.log(predicted(each, model(logs)) / each.seconds) for each in chosen])

    solve: Callable[..., Any] = least_squares
    start = np.log([known.bandwidth_all_cores, known.host_bandwidth / rk3588.host_bandwidth])
    return model(solve(residuals, start, x_scale=0.1, diff_step=1e-2).x)


def check_products(say: Callable[[str], object]) -> list[str]:
    """Print single products; what misses its target."""
    chosen = fit_timing.points()
    errors = fit_timing.errors(TIMINGS["rk3588"], chosen)
    missed = []
    say("single products on RK3588, milliseconds: published, modelled, ratio")
    for point, error in zip(chosen, errors, strict=True):
        say(f"  {point!s:<58} {point.seconds * 1e3:9.3f} {point.seconds * math.exp(error) * 1e3:9.3f} "
            f"{math.exp(error):5.2f}")  # fmt: skip
        if abs(error) > math.log(WORST_FACTOR):
            missed.append(f"{point} is off by more than a factor of {WORST_FACTOR:g}")
    found = fit_timing.fit(chosen)
    results = [("in sample", fit_timing.rms(errors), len(chosen), IN_SAMPLE)]
    results += [
        (f"{name} left out", fit_timing.rms(left), len(left), LEFT_OUT) for name, left in found.left_out.items()
    ]
    for name, value, count, target in results:
        say(f"  root mean square of logarithms, {name}: {value:.3f} over {count} points; target {target:.2f}")
        if value > target:
            missed.append(f"{name}: {value:.3f} instead of at most {target:.2f}")
    missed += differences(TIMINGS["rk3588"], found.model, 0.01)
    return missed


def check_models(say: Callable[[str], object]) -> list[str]:
    """Print whole models; what misses its target."""
    every, missed = figures(), []
    for soc in FITTED:
        model = fitted(soc, [each for each in every if each.soc == soc and each.use == "fit"])
        share = model.host_bandwidth / TIMINGS["rk3588"].host_bandwidth
        say(f"{soc}, fitted: {model.bandwidth_all_cores / 1e9:.2f} GB/s, CPU at {share:.2f} of RK3588's")
        missed += differences(TIMINGS[soc], model, 0.02)
    tested = [each for each in every if each.use == "test"]
    ratios = {each: predicted(each) / each.seconds for each in tested}
    for group in dict.fromkeys(each.group for each in tested):
        say(f"{group}: published, modelled, ratio of times")
        mine = [each for each in tested if each.group == group]
        for each in mine:
            shown = [f"{1 / s:8.2f}/s" if each.token else f"{s * 1e3:8.1f} ms" for s in
                     (each.seconds, each.seconds * ratios[each])]  # fmt: skip
            say(f"  {each.model:<16} {each.scheme:<7} {shown[0]} {shown[1]} {ratios[each]:6.2f}  {each.why}")
            if abs(ratios[each] - 1) > EXPLAINED and not each.why:
                missed.append(f"{each.model} in {group} is off by more than {EXPLAINED:.0%} and nobody said why")
        median = statistics.median(abs(ratios[each] - 1) for each in mine)
        say(f"  median error {median:.1%}; target {MEDIAN:.0%}")
        if median >= MEDIAN:
            missed.append(f"{group}: median error {median:.1%}")
    for soc in dict.fromkeys(each.soc for each in tested):
        within = nine_tenths(ratio for each, ratio in ratios.items() if each.soc == soc)
        say(f"{soc}: nine tenths of what was tested lie within a factor of {within:.2f}")
        if within > TIMINGS[soc].models_within:
            missed.append(f"{soc}: {within:.2f} is more than the band of {TIMINGS[soc].models_within:g}")
    for each in every:
        if each.use == "none" and not each.token:
            say(f"not predicted: {each.model} in {each.source}: {each.why}")
    return missed


def nine_tenths(ratios: Iterable[float]) -> float:
    """The factor that nine tenths of ratios are within."""
    return math.exp(float(np.quantile([abs(math.log(ratio)) for ratio in ratios], 0.9)))


def differences(known: TimingModel, found: TimingModel, tolerance: float) -> list[str]:
    """Constants that are not what the figures give."""
    names = ("start_seconds", "join_seconds", "bandwidth_one_core", "bandwidth_all_cores", "normal_c_seconds",
             "host_bandwidth", "host_flops", "host_exp_seconds")  # fmt: skip
    pairs = [(name, getattr(known, name), getattr(found, name)) for name in names]
    pairs += [(f"peak of {element.label}", rate, found.peak[element]) for element, rate in known.peak.items()]
    return [
        f"{known.soc}: {name} is {value:.4g} in constants.py, the figures give {fits:.4g}"
        for name, value, fits in pairs
        if abs(value / fits - 1) > tolerance
    ]


def main() -> int:
    """Print everything."""
    missed = check_products(print) + check_models(print)
    for each in missed:
        print(f"MISSED: {each}")
    print("targets missed" if missed else "all targets are met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
