"""Print the tables of docs/performance.md: all of them modelled.

    python tools/performance_tables.py

Needs an installed npumatmul. A test compares what is printed with the document.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Container, Iterator

import model_check

from npumatmul.chips import CHIPS, chip
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.llm.modelled import SHAPES, ModelShape, modelled_pass, modelled_texts
from npumatmul.llm.modelled.published import published_config
from npumatmul.llm.models.encoders import ENCODER_TYPES
from npumatmul.llm.models.registry import MODEL_TYPES
from npumatmul.llm.models.whisper_config import SPEECH_TYPES
from npumatmul.planning.product import plan_matmul, plan_weight

INT8, FP16, INT4 = MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT4_INT4_INT16
RK3588 = TIMINGS["rk3588"]
#: Chips whose models are shown.
SHOWN = ("rk3588", "rk3576")
#: K and N of a layer.
LAYER = 2048, 6144


def chips() -> list[str]:
    """Roof and ridge of each chip."""
    lines = ["| chip | int8 peak, TOPS | memory, GB/s | ridge, operations per byte | a run is right to | a model is |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for soc, model in TIMINGS.items():
        peak, bandwidth = model.cores * model.peak[ElementType.INT8], model.bandwidth(model.cores)
        lines.append(
            f"| {soc} | {peak / 1e12:.2f} | {bandwidth / 1e9:.1f} | {peak / bandwidth:.0f} | x{model.within:g} | "
            f"x{model.models_within:g} |"
        )
    return lines


def rows() -> list[str]:
    """One layer with more and more rows, on one core and on three."""
    k, n = LAYER
    lines = [
        "| rows | operations per byte | one core, ms | GOPS | three cores, ms | gain |",
        "|---|---|---|---|---|---|",
    ]
    for m in (1, 8, 32, 64, 128, 256, 512):
        operations, nbytes = 2 * m * k * n, k * n + m * k + 4 * m * n
        one, three = (RK3588.run_seconds(INT8, m, k, n, cores) for cores in (1, 3))
        lines.append(
            f"| {m} | {operations / nbytes:.0f} | {one * 1e3:.2f} | {operations / one / 1e9:.0f} | {three * 1e3:.2f} | "
            f"{one / three:.2f} |"
        )
    return lines


def slices() -> list[str]:
    """float16 with K of 8192 in more and more slices."""
    m, k, n = 128, 8 * 1024, 4 * 1024
    lines = ["| slices | rows of A that stay | times that B is read | ms | GFLOPS |", "|---|---|---|---|---|"]
    for count in (1, 2, 4, 8):
        stay = RK3588.resident_rows(FP16, k // count)
        seconds = count * RK3588.run_seconds(FP16, m, k // count, n)
        rate = 2 * m * k * n / seconds / 1e9
        lines.append(f"| {count} | {stay} | {-(-m // stay)} | {seconds * 1e3:.2f} | {rate:.0f} |")
    return lines


def layouts() -> list[str]:
    """int4 in both layouts."""
    lines = ["| rows | native A and C, ms | normal A and C, ms |", "|---|---|---|"]
    for m in (1, 16, 128):
        native, normal = (RK3588.run_seconds(INT4, m, 2048, 2048, 1, each) for each in (True, False))
        lines.append(f"| {m} | {native * 1e3:.2f} | {normal * 1e3:.2f} |")
    return lines


def cores() -> list[str]:
    """What one, two and three cores give."""
    lines = ["| weight, rows | one core, ms | two | three |", "|---|---|---|---|"]
    for k, n in ((576, 576), (2048, 2048), (2048, 6144)):
        for m in (1, 128):
            times = []
            for count in (1, 2, 3):
                weight = plan_weight(k, n, INT8, CHIPS["rk3588"], cores=count, k_slices=1, n_tiles=count)
                modelled = plan_matmul(m, weight, cores=count, share="tiles").modelled
                assert modelled is not None
                times.append(f"{modelled.device * 1e3:.3f}")
            lines.append(f"| {k} x {n}, {m} | {' | '.join(times)} |")
    return lines


def models() -> list[str]:
    """Groups of published figures of whole models."""
    tested = [each for each in model_check.figures() if each.use == "test"]
    lines = ["| figures | how many | median error | worst, modelled over published time |", "|---|---|---|---|"]
    for group in dict.fromkeys(each.group for each in tested):
        ratios = {each: model_check.predicted(each) / each.seconds for each in tested if each.group == group}
        worst = max(ratios, key=lambda each: abs(ratios[each] - 1))
        median = statistics.median(abs(ratio - 1) for ratio in ratios.values())
        lines.append(f"| {group} | {len(ratios)} | {median:.0%} | {worst.model} {worst.scheme}: {ratios[worst]:.2f} |")
    return lines


def decoders() -> list[str]:
    """Language models of every architecture that is loaded, in w8a8."""
    lines = [
        "| model | `model_type` | parameters | config.json of | "
        + " | ".join(f"{soc.upper()}: tokens/s | prompt of 128, s" for soc in SHOWN)
        + " |",
        "|---|---|---|---|" + "---|---|" * len(SHOWN),
    ]
    for name, of, kind in _published(MODEL_TYPES):
        shape = SHAPES[name]
        cells = []
        for soc in SHOWN:
            token, prompt = (modelled_pass(shape, rows, 128, INT8, chip(soc)) for rows in (1, 128))
            assert token is not None
            assert prompt is not None
            cells += [f"{1 / token.seconds:.1f}", f"{prompt.seconds:.2f}"]
        lines.append(f"| {name} | {kind} | {_billions(shape)} | {of} | {' | '.join(cells)} |")
    return lines


def encoders() -> list[str]:
    """Encoders of every architecture that is loaded, in w8a8: milliseconds for each text."""
    lines = [
        "| model | `model_type` | parameters | config.json of | "
        + " | ".join(f"{soc.upper()}: one text of 16, ms | of eight of 128, ms each" for soc in SHOWN)
        + " |",
        "|---|---|---|---|" + "---|---|" * len(SHOWN),
    ]
    for name, of, kind in _published(ENCODER_TYPES):
        cells = []
        for soc in SHOWN:
            for lengths in ([16], [128] * 8):
                found = modelled_texts(SHAPES[name], lengths, INT8, chip(soc))
                assert found is not None
                cells.append(f"{1e3 * found.seconds / len(lengths):.3g}")
        lines.append(f"| {name} | {kind} | {_billions(SHAPES[name])} | {of} | {' | '.join(cells)} |")
    return lines


def speech() -> list[str]:
    """Models of speech, in w8a8: a window of 30 s, and tokens of text."""
    lines = [
        "| model | `model_type` | parameters | config.json of | "
        + " | ".join(f"{soc.upper()}: hearing 30 s, s | tokens/s" for soc in SHOWN)
        + " |",
        "|---|---|---|---|" + "---|---|" * len(SHOWN),
    ]
    for name, of, kind in _published(SPEECH_TYPES):
        shape, cells = SHAPES[name], []
        for soc in SHOWN:
            assert shape.hearing is not None
            heard = modelled_pass(shape.hearing, shape.states, shape.states, INT8, chip(soc))
            token = modelled_pass(shape, 1, 128, INT8, chip(soc))
            assert heard is not None
            assert token is not None
            cells += [f"{heard.seconds:.2f}", f"{1 / token.seconds:.1f}"]
        lines.append(f"| {name} | {kind} | {_billions(shape)} | {of} | {' | '.join(cells)} |")
    return lines


def _published(kinds: Container[str]) -> Iterator[tuple[str, str, str]]:
    for name in SHAPES:
        of, config = published_config(name)
        if config["model_type"] in kinds:
            yield name, of, config["model_type"]


def _billions(shape: ModelShape) -> str:
    everything, active = (f"{each / 1e9:.3g} B" for each in (shape.parameters, shape.active_parameters))
    return everything if everything == active else f"{everything}, {active} active"


TABLES = (chips, rows, slices, layouts, cores, models, decoders, encoders, speech)


def main() -> int:
    """Print all tables."""
    for table in TABLES:
        print("\n".join(table()), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
