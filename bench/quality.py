"""Quality of a quantized language model, scheme by scheme: ``python bench/quality.py`` prints the table.

Reference are the float32 logits of the same dequantized weights. Activations are quantized as the kernels do it and
integer products are exact (`npumatmul.llm.quantize.emulate`). Times of the chip are modelled, never measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import pickle
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

import npumatmul
from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.files.writing import write_bytes, write_text
from npumatmul.llm import GGUFFile, GGUFTokenizer, fetch_demo_model, load_model, numpy_pack
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.measure.evaluation import Evaluation, Window, evaluate_models
from npumatmul.llm.models.weights import layer_tensors
from npumatmul.llm.quantize import (
    LayerRecipe,
    LayerStatistics,
    QuantizedLayer,
    QuantizedModel,
    Recipe,
    auto_quantize,
    best_recipe,
    collect_statistics,
    own_text,
    quantize_model,
)
from npumatmul.llm.quantize.quantized_model import Source, layer_of_recipe
from npumatmul.planning.product import plan_matmul, plan_weight
from npumatmul.quant.params import QuantizedWeight

sys.path.insert(0, str(Path(__file__).parent))
from prose import prose

WINDOW = 512
CACHE = Path.home() / ".cache" / "npumatmul" / "quality"

#: Windows of the third text, of whose first tokens `auto_quantize` takes some.
SENSITIVITY_WINDOWS = 11

#: More runs than this for one token, and the start of runs alone takes longer than the CPU does for the whole model.
SLOW_RUNS = 1000


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    scheme: str
    what: str
    recipe: Recipe | Budget


@dataclass(frozen=True)
class Budget:
    """What `auto_quantize` is asked for, each scheme with its best recipe."""

    schemes: tuple[str, ...]
    max_bits: float


def entries() -> dict[str, Entry]:
    """The rows by name."""
    plain, rotated = LayerRecipe("w8a8"), LayerRecipe("w8a8", "hadamard")
    rounded = LayerRecipe("w4a8", "hadamard", rounding="gptq", symmetric=False, clip_search=True, act_order=True)
    rows = {
        "w16a16": Entry("w16a16", "float16", best_recipe("w16a16")),
        "w8a8-plain": Entry("w8a8", "plain rounding", Recipe(plain)),
        "w8a8-hadamard": Entry("w8a8", "Hadamard", Recipe(rotated)),
        "w8a8": Entry("w8a8", "best", best_recipe("w8a8")),
        "w4a8-hadamard": Entry(
            "w4a8", "Hadamard, clip search", Recipe(LayerRecipe("w4a8", "hadamard", clip_search=True))
        ),
        "w4a8-gptq": Entry("w4a8", "Hadamard, GPTQ", Recipe(rounded)),
        "w4a8": Entry("w4a8", "best", best_recipe("w4a8")),
        "w4a8-head8": Entry("w4a8", "best, head w8a8", best_recipe("w4a8", head="w8a8")),
        "w4a8-g32": Entry("w4a8_g32", "best", best_recipe("w4a8_g32")),
        "w4a8-g32-head8": Entry("w4a8_g32", "best, head w8a8", best_recipe("w4a8_g32", head="w8a8")),
        "gguf": Entry("gguf", "blocks of the file; head int8 in groups of 32", best_recipe("gguf")),
        "gguf-head8": Entry("gguf", "blocks of the file, head w8a8", best_recipe("gguf", head="w8a8")),
        "gguf-head4": Entry("gguf", "blocks of the file, head w4a8_g32", best_recipe("gguf", head="w4a8_g32")),
        "auto": Entry("auto", "gguf, w4a8 or w8a8, at most 5.5 bits", Budget(("gguf", "w4a8", "w8a8"), 5.5)),
        "w4a4-hadamard": Entry(
            "w4a4", "Hadamard, clip search", Recipe(LayerRecipe("w4a4", "hadamard", clip_search=True))
        ),
        "w4a4": Entry("w4a4", "best", best_recipe("w4a4")),
        "w4a4-head8": Entry("w4a4", "best, head w8a8", best_recipe("w4a4", head="w8a8")),
    }
    return rows


def main() -> None:
    """Print the table."""
    options = _options()
    rows = entries()
    chosen = options.rows or list(rows)
    path = Path(options.model) if options.model else fetch_demo_model()
    evaluation_text, evaluation_source = texts(options.evaluation, ["anarchism"], options.cache)
    tokenizer = GGUFTokenizer(GGUFFile(path))
    pieces = spread(tokenizer, evaluation_text, math.ceil(options.tokens / (WINDOW - 1)))
    scored = sum(piece.scored for piece in pieces)
    print(f"npumatmul {npumatmul.__version__}, numpy {np.__version__}, Python {platform.python_version()}, {cpu()}")
    print(f"model: {path.name}")
    print(f"evaluation: {evaluation_source}, {len(pieces)} windows of {WINDOW} tokens, {scored} positions scored")
    calibration = Calibration(path, tokenizer, options)
    print(f"calibration: {calibration.source}, {options.calibration_tokens} tokens")

    def third_text() -> list[Window]:
        return spread(tokenizer, texts(None, ["jargon"], options.cache)[0], SENSITIVITY_WINDOWS)

    workshop = Workshop(path, calibration, options.keep, third_text)
    made: dict[str, Any] = {}
    models = {}
    for name in chosen:
        started = time.perf_counter()
        models[name] = workshop.model(rows[name].recipe)
        made[name] = time.perf_counter() - started
        print(f"{name}: quantized in {made[name]:.0f} s on this machine", flush=True)
        for note in models[name].notes:
            print(f"{name}: {note}", flush=True)
    del workshop
    reference = load_model(path, pack=numpy_pack).model
    loaded = {name: model.load().model for name, model in models.items()}

    written: list[Mapping[str, Evaluation]] = []

    def report(done: int, total: int, so_far: Mapping[str, Evaluation]) -> None:
        progress(done, total, "tokens")
        if options.json and so_far and not any(so_far is each for each in written):  # another window is done
            written[:] = [so_far]
            interim = {name: each.as_dict() for name, each in so_far.items()}
            write_text(options.json, json.dumps({"tokens": done, "of": total, "so far": interim}, indent=1))

    found = evaluate_models(loaded, reference, pieces, report)
    print(HEADER)
    results = []
    for name, model in models.items():
        results.append({"row": name, **_figures(rows[name], model, found[name], len(pieces))})
        print(_line(rows[name], results[-1]), flush=True)
        if options.json:
            write_text(options.json, json.dumps(results, indent=1))


class Calibration:
    """The text that models are calibrated on: what it is, and its windows once they are needed."""

    def __init__(self, path: Path, tokenizer: GGUFTokenizer, options: argparse.Namespace) -> None:
        self._path, self._tokenizer, self._options = path, tokenizer, options
        self.count = options.calibration_tokens // WINDOW
        self.source = "written by the model itself"
        if not options.own_text:
            self._text, self.source = texts(options.calibration, ["austen", "handbook"], options.cache)

    @cached_property
    def windows(self) -> list[Window]:
        """The text."""
        if not self._options.own_text:
            return spread(self._tokenizer, self._text, self.count)
        started = time.perf_counter()
        written: list[Window] = own_text(self._path, self.count, WINDOW, progress=progress)
        print(f"text written: {time.perf_counter() - started:.0f} s on this machine", flush=True)
        return written


class Workshop:
    """Makes models by recipe; layers that differ in how activations are quantized only are made once."""

    def __init__(
        self,
        path: Path,
        calibration: Calibration,
        keep: Path | None,
        third_text: Callable[[], list[Window]] | None = None,
    ) -> None:
        self.path = path
        self.source = GGUFSource(path)
        self.tensors = layer_tensors(self.source)
        self._calibration, self._third_text = calibration, third_text
        self._keep: Path | None = None
        self._made: dict[str, QuantizedLayer] = {}
        if keep is not None:  # of each model and calibration text by itself
            what = f"{path.name} {calibration.source} {calibration.count}"
            self._keep = keep / hashlib.sha256(what.encode()).hexdigest()[:12]
            self._keep.mkdir(parents=True, exist_ok=True)

    @cached_property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Of the calibration text."""
        found: dict[str, LayerStatistics] = self._kept("statistics", self._collect)
        return found

    def model(self, recipe: Recipe | Budget) -> QuantizedModel:
        """Quantize by a recipe, or within a budget by what layers do to the third text."""
        if isinstance(recipe, Budget):
            assert self._third_text is not None
            candidates = [best_recipe(scheme).default for scheme in recipe.schemes]
            return auto_quantize(
                self.path, candidates, self._third_text(), max_bits=recipe.max_bits, make=self.layer, progress=progress
            )
        if recipe.sequential:
            key = hashlib.sha256(recipe.to_json().encode()).hexdigest()[:24]
            layers = self._kept(key, lambda: quantize_model(self.path, recipe, self._calibration.windows).layers)
        else:
            layers = {name: self.layer(name, recipe.for_layer(name), recipe.seed) for name in self.tensors}
        return QuantizedModel(self.path, self.source.file, recipe, Source.of(self.source.file), layers)

    def layer(self, name: str, wanted: LayerRecipe, seed: int = 0) -> QuantizedLayer:
        """One layer, made if it is not there yet."""
        values = {**dataclasses.asdict(wanted), "symmetric_activations": True, "activation_clip": 1.0}
        if wanted.scheme != "gguf":
            values["scheme"] = re.sub(r"a\d+|_agroup", "", wanted.scheme)
        usual = dataclasses.asdict(LayerRecipe())
        key = f"{name} {seed} {json.dumps({k: v for k, v in values.items() if v != usual[k]})}"
        if key not in self._made:
            make = partial(self._layer, name, wanted, seed)
            self._made[key] = self._kept(hashlib.sha256(key.encode()).hexdigest()[:24], make)
        made = self._made[key]  # blocks that cannot be taken over have a recipe of their own
        return made if wanted.scheme == "gguf" else dataclasses.replace(made, recipe=wanted)

    def _collect(self) -> dict[str, LayerStatistics]:
        started = time.perf_counter()
        found = collect_statistics(self.path, self._calibration.windows)
        print(f"statistics of the calibration text: {time.perf_counter() - started:.0f} s on this machine", flush=True)
        return found

    def _layer(self, name: str, recipe: LayerRecipe, seed: int) -> QuantizedLayer:
        progress(0, 1, name)
        statistics = self.statistics[name] if recipe.needs_calibration else None
        return layer_of_recipe(self.source, self.tensors[name], recipe, statistics, seed=seed)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        if self._keep is None:
            return make()
        file = self._keep / f"{name}.pickle"
        if file.exists():
            return pickle.loads(file.read_bytes())
        made = make()
        write_bytes(file, pickle.dumps(made))
        return made


HEADER = (
    "| scheme | recipe | mean KL | top-1 % | bits per weight | MB | host ms per token "
    "| runs per token | decode ms | prefill of 128 ms |\n|---|---|---|---|---|---|---|---|---|---|"
)


def _line(entry: Entry, r: dict[str, Any]) -> str:
    slow = " (slow on every board)" if r["runs"] > SLOW_RUNS else ""
    times = [f"{1e3 * r[key]:.1f}" if r[key] is not None else "unknown" for key in ("decode", "prefill")]
    return (
        f"| {entry.scheme} | {entry.what}{slow} | {r['kl'][0]:#.3g} ± {r['kl'][1]:.1g} "
        f"| {100 * r['top1'][0]:.2f} ± {100 * r['top1'][1]:.2f} | {r['bits']:.2f} | {r['bytes'] / 1e6:.0f} "
        f"| {1e3 * r['host_seconds']:.2f} | {r['runs']} | {times[0]} | {times[1]} |"
    )


def _figures(entry: Entry, model: QuantizedModel, result: Evaluation, count: int) -> dict[str, Any]:
    assert result.mean_kl is not None
    assert result.top1 is not None
    error = standard_errors(result, count)
    runs, decode = modelled(model, 1)
    return {
        "scheme": entry.scheme,
        "recipe": model.recipe.as_dict(),
        "kl": [result.mean_kl.value, error[0]],
        "top1": [result.top1.value, error[1]],
        "positions": result.tokens,
        "bits": model.bits_per_weight,
        "bytes": model.nbytes,
        "host_seconds": _host_seconds(model),
        "runs": runs,
        "decode": decode,
        "prefill": modelled(model, 128)[1],
    }


def standard_errors(result: Evaluation, count: int) -> list[float]:
    """Of KL divergence and agreement: those of the means of `count` windows, for neighbours are not independent."""
    kl, top = (
        np.array([part.mean() for part in np.array_split(values, count)])
        for values in (result.kl, result.same_top)
        if values is not None
    )
    return [float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan for each in (kl, top)]


def modelled(model: QuantizedModel, rows: int) -> tuple[int, float | None]:
    """Runs and modelled seconds of all linear layers on an RK3588; attention and norms are not in it."""
    runs, total = 0, 0.0
    known = True
    for layer in model.layers.values():
        n, k = layer.shape
        mm_type, images = _type(layer)
        size = layer.group_size
        plan = plan_matmul(
            rows,
            plan_weight(
                k, n, mm_type, chip("rk3588"), k_parts=_k_parts(layer), k_group=size if size < k else None,
                row_images=images,
            ),
        )  # fmt: skip
        runs += plan.runs
        if plan.modelled_seconds is None:
            known = False
        else:
            total += plan.modelled_seconds
    return runs, total if known else None


def _type(layer: QuantizedLayer) -> tuple[MatmulType, int]:
    """Matmul type on an RK3588, and rows of A per row of activations."""
    if not isinstance(layer.weight, QuantizedWeight):
        return MatmulType.FLOAT16_FLOAT16_FLOAT32, 1
    if layer.weight.params.bits > 4:
        return MatmulType.INT8_INT8_INT32, 1
    return MatmulType.INT4_INT4_INT16, 2 if layer.recipe.parts.activation_bits == 8 else 1


def _k_parts(layer: QuantizedLayer) -> int:
    """Slices of K that keep the int16 sums of int4 products in range."""
    if not isinstance(layer.weight, QuantizedWeight) or layer.weight.params.bits > 4:
        return 1
    largest = int(np.abs(layer.weight.codes.astype(np.int16)).sum(axis=1, dtype=np.int64).max())
    return math.ceil(8 * largest / np.iinfo(np.int16).max)


def _host_seconds(model: QuantizedModel, rows: int = 128) -> float:
    """Seconds per token that transforms of activations take here, in numpy and in batches: an upper bound."""
    total = 0.0
    for layer in model.layers.values():
        transform = layer.weight.input_transform if isinstance(layer.weight, QuantizedWeight) else None
        if transform is None and layer.centre is None:
            continue
        x = np.ones((rows, layer.shape[1]), np.float32)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            y = x if layer.centre is None else x - layer.centre
            if transform is not None:
                transform.activation(y)
            times.append(time.perf_counter() - started)
        total += min(times) / rows
    return total


def spread(tokenizer: GGUFTokenizer, texts: list[str], count: int) -> list[Window]:
    """Windows that begin at equal distances in the texts, taken from each in turn; all positions are scored."""
    found: list[list[Window]] = []
    for i, text in enumerate(texts):
        wanted = len(range(i, count, len(texts)))
        step = len(text) // max(wanted, 1)
        found.append([])
        for start in range(0, wanted * step, step):
            piece = text[start : start + 8 * WINDOW]
            begin = piece.find("\n\n") + 2 if "\n\n" in piece[: 2 * WINDOW] else 0
            ids = tokenizer.encode(piece[begin:])[:WINDOW]
            if len(ids) == WINDOW:
                found[-1].append(Window(np.array(ids, np.int64), 0))
    result = [
        found[i % len(texts)][i // len(texts)] for i in range(count) if i // len(texts) < len(found[i % len(texts)])
    ]
    if not result:
        raise SystemExit(f"the texts are too short for windows of {WINDOW} tokens")
    return result


def texts(file: str | None, names: list[str], cache: Path) -> tuple[list[str], str]:
    """Read a file, or packages of `prose`; and what they are."""
    if file:
        return [Path(file).read_text("utf-8")], Path(file).name
    found = [prose(name, cache) for name in names]
    return [text for text, _ in found], " and ".join(source for _, source in found)


def progress(done: int, total: int, what: str) -> None:
    """Show how far things are, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {total} \033[K", end="\r", file=sys.stderr, flush=True)


def cpu() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(entries())}; all by default")
    parser.add_argument("--model", help="a GGUF file; SmolLM2-135M-Instruct by default")
    parser.add_argument("--tokens", type=int, default=8192, help="positions to score, at least")
    parser.add_argument("--calibration-tokens", type=int, default=20480)
    parser.add_argument("--evaluation", metavar="FILE", help="a text instead of Debian's package anarchism")
    parser.add_argument(
        "--calibration", metavar="FILE", help="a text instead of r-cran-janeaustenr and debian-handbook"
    )
    parser.add_argument("--own-text", action="store_true", help="calibrate on a text that the model writes itself")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep statistics and layers there, and use them")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in entries()]
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}")
    return options


if __name__ == "__main__":
    main()
