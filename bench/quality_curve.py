"""The curve of what quantization costs: ``python bench/quality_curve.py`` measures scheme x transform x group size.

The text is one for choosing (`jargon-text` from Debian), never the one that `bench/quality.py` reports; the arithmetic
is that of the device (`npumatmul.llm.quantize.emulate`). Statistics, layers and points that are done stay in the folder
of ``--keep``: an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from quality import CACHE, WINDOW, Calibration, Workshop, cpu, modelled, progress, spread, standard_errors, texts

from npumatmul.files.writing import write_text
from npumatmul.llm import GGUFFile, GGUFTokenizer, fetch_demo_model, load_model, numpy_pack
from npumatmul.llm.measure.evaluation import evaluate_models
from npumatmul.llm.quantize import LayerRecipe, Recipe, best_recipe

GROUPS = (None, 192, 128, 64, 32)
TRANSFORMS: dict[str, dict[str, Any]] = {
    "none": {"transform": "none", "centre": False},
    "Hadamard": {"transform": "hadamard", "centre": False},
    "centre, balance, Hadamard": {"transform": "balance+hadamard", "centre": True},
}
ROUNDINGS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "nearest"},
    "GPTQ": {"rounding": "gptq"},
}
#: Of the whole model, beside GPTQ: on activations of the quantized model so far, and made up for its errors.
SEQUENCES = {"in sequence": 0.0, "in sequence, corrected": 1.0}
TOGETHER = 4  # models that are evaluated side by side, beside one reference


@dataclass(frozen=True)
class Point:
    """A point of the curve."""

    scheme: str
    transform: str
    rounding: str
    groups: int | None
    head: str | None = None
    sequence: str | None = None

    @property
    def name(self) -> str:
        """What ``--only`` is matched with."""
        head = self.head and f"head {self.head}"
        parts = (self.scheme, self.transform, self.rounding, f"g{self.groups or 0}", head, self.sequence)
        return "; ".join(part for part in parts if part)

    @property
    def recipe(self) -> Recipe:
        """What is done to the layers: zero points at 4 bits, of the weight and (clipped to 0.8) of each token."""
        recipe = best_recipe(self.scheme, head=self.head)
        changed = {**TRANSFORMS[self.transform], **ROUNDINGS[self.rounding]}
        changed["correction"] = SEQUENCES.get(self.sequence or "", 0.0)
        layers = {name: {**fields, **changed} for name, fields in recipe.layers.items()}
        scheme = f"{self.scheme}_g{self.groups}" if self.groups else self.scheme
        return Recipe(replace(recipe.default, scheme=scheme, **changed), layers, recipe.seed, self.sequence is not None)


def points() -> list[Point]:
    """All points, those of one weight after one another."""
    grid = []
    best = (list(TRANSFORMS)[-1], list(ROUNDINGS)[-1])
    for transform in TRANSFORMS:
        for rounding in ROUNDINGS:
            grid.append(Point("w8a8", transform, rounding, None))
            for size in GROUPS if (transform, rounding) == best else (None, 128, 32):
                grid += [Point(scheme, transform, rounding, size) for scheme in ("w4a8", "w4a4")]
    grid += [Point(scheme, *best, size, "w8a8") for size in GROUPS for scheme in ("w4a8", "w4a4")]
    grid += [Point(scheme, *best, None, sequence=each) for scheme in ("w4a8", "w4a4") for each in SEQUENCES]
    return grid


def main() -> None:
    """Measure what is missing and print the table."""
    options = _options()
    chosen = [p for p in points() if not options.only or any(fnmatchcase(p.name, each) for each in options.only)]
    path = Path(options.model) if options.model else fetch_demo_model()
    tokenizer = GGUFTokenizer(GGUFFile(path))
    text, source = texts(options.text, ["jargon"], options.cache)
    pieces = spread(tokenizer, text, options.windows)
    calibration = Calibration(path, tokenizer, options)
    print(f"model: {path.name}; text: {source}, {len(pieces)} windows of {WINDOW} tokens; {cpu()}", flush=True)
    conditions = json.dumps([path.name, source, len(pieces), calibration.source, calibration.count])
    files = {p: _file(options.keep, f"{conditions} {_essence(p.recipe)}") for p in chosen}
    missing = [] if options.show else [p for p in chosen if not files[p].exists()]
    reference = load_model(path, pack=numpy_pack).model if missing else None
    for start in range(0, len(missing), TOGETHER):
        batch = missing[start : start + TOGETHER]
        progress(start, len(missing), "points")
        began = time.perf_counter()
        workshop = Workshop(path, calibration, options.keep)
        models = {p.name: workshop.model(p.recipe) for p in batch}
        del workshop
        made = time.perf_counter() - began
        loaded = {name: model.load().model for name, model in models.items()}
        found = evaluate_models(loaded, reference, pieces)
        del loaded
        for p in batch:
            model, result = models[p.name], found[p.name]
            assert result.mean_kl is not None
            assert result.top1 is not None
            errors = standard_errors(result, len(pieces))
            figures = {
                "point": p.name,
                "kl": [result.mean_kl.value, errors[0]],
                "top1": [result.top1.value, errors[1]],
                "bits": model.bits_per_weight,
                "runs": modelled(model, 1)[0],
            }
            write_text(files[p], json.dumps(figures, indent=1))
            print(f"{p.name}: {figures}", flush=True)
        print(f"{len(batch)} points: made in {made:.0f} s, all in {time.perf_counter() - began:.0f} s", flush=True)
    _table({p: json.loads(file.read_text()) for p, file in files.items() if file.exists()})


def _file(folder: Path, key: str) -> Path:
    return folder / f"point-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _essence(recipe: Recipe) -> str:
    """What a recipe says that is not said by default: new fields leave results valid."""
    usual = {**asdict(LayerRecipe()), "seed": 0, "sequential": False}
    own = {key: value for key, value in recipe.as_dict().items() if key not in usual or value != usual[key]}
    own["layers"] = {
        name: {key: value for key, value in fields.items() if value != usual[key]}
        for name, fields in recipe.layers.items()
    }
    return json.dumps(own, sort_keys=True)


def _table(found: dict[Point, dict[str, Any]]) -> None:
    """Rows of schemes and recipes, a column for each size of groups."""
    sizes = [size for size in GROUPS if any(p.groups == size for p in found)]
    print("| scheme | transform | rounding |" + "".join(f" {f'groups of {s}' if s else 'no groups'} |" for s in sizes))
    print("|---|---|---|" + "---|" * len(sizes))
    for row in dict.fromkeys(replace(p, groups=None) for p in sorted(found, key=_order)):
        cells: Iterable[str] = (_cell(found.get(replace(row, groups=s))) for s in sizes)
        shown = "; ".join(filter(None, (row.rounding, row.sequence, row.head and f"head {row.head}")))
        print(f"| {row.scheme} | {row.transform} | {shown} | " + " | ".join(cells) + " |")


def _order(point: Point) -> tuple[int, int, int, bool, str]:
    schemes = ("w8a8", "w4a8", "w4a4")
    return (
        schemes.index(point.scheme),
        list(TRANSFORMS).index(point.transform),
        list(ROUNDINGS).index(point.rounding),
        point.head is not None,
        point.sequence or "",
    )


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return ""
    (kl, kl_error), (top, top_error) = figures["kl"], figures["top1"]
    return f"{kl:#.3g} ± {kl_error:.1g}, {100 * top:.1f} ± {100 * top_error:.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="points by name, such as 'w4a8; *; GPTQ; g128'")
    parser.add_argument("--model", help="a GGUF file; SmolLM2-135M-Instruct by default")
    parser.add_argument("--text", metavar="FILE", help="a text instead of Debian's package jargon-text")
    parser.add_argument(
        "--calibration", metavar="FILE", help="a text instead of r-cran-janeaustenr and debian-handbook"
    )
    parser.add_argument("--own-text", action="store_true", help="calibrate on what the model writes by itself")
    parser.add_argument("--windows", type=int, default=3, help=f"windows of {WINDOW} tokens to score")
    parser.add_argument("--calibration-tokens", type=int, default=20480)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", default=CACHE / "curve", help="where results are kept")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the table of what is there")
    parser.add_argument("--list", action="store_true", help="print the names of the points")
    options = parser.parse_args()
    if options.list:
        print("\n".join(p.name for p in points()))
        raise SystemExit
    options.keep.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
