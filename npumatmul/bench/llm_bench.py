"""`bench llm`: prompts and generation of language models, as llama-bench measures and prints them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from npumatmul.bench.benchmark import Benchmark, Names, Numbers, Progress, names_of
from npumatmul.bench.record import Row, Value
from npumatmul.bench.shapes import parse_numbers
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.device.device import Device

if TYPE_CHECKING:
    from npumatmul.llm.language_model import Model
    from npumatmul.llm.run.sequence import TokenSequence

__all__ = ["LlmBenchmark", "llama_bench_table"]


@dataclass(frozen=True, kw_only=True)
class LlmBenchmark(Benchmark):
    """Tokens per second of prompts and of generation, after nothing and after what was read before.

    Tokens are random, and no token is chosen: each of those that are generated is computed, and the next one is another
    random one. So speculation and sampling are not in it.

    Attributes
    ----------
    models : str or sequence of str
        Files or folders; the demo's model by default.
    schemes : str or sequence of str
        How weights are stored, each beside the others.
    prompts, generated : str, int or sequence of int
        Tokens of prompts, and to generate; 0 leaves that out.
    depths : str, int or sequence of int
        Tokens that were read before.
    repetitions : int
        Of each test, after those that warm up.
    cache : bool
        Whether packed weights are kept on disk.
    """

    name: ClassVar[str] = "llm"
    unused: ClassVar[tuple[str, ...]] = ("precision", "min_time", "time_limit", "warmup")
    _private: ClassVar[tuple[str, ...]] = ("root", "models", "clock")

    models: Names = ()
    schemes: Names = "w8a8"
    prompts: Numbers = "128,512"
    generated: Numbers = "128"
    depths: Numbers = "0,2048"
    repetitions: int | None = 5
    cache: bool = True
    clock: Callable[[], float] = time.perf_counter

    def prepare(self, device: Device) -> list[str]:
        from npumatmul.extras import check_installed

        check_installed("jinja2", "language models")
        if self._runs < 1:
            raise ValueError(f"repetitions is {self.repetitions}; it is 1 or more")
        _counts(self.depths, "depths")
        if not self._tests():
            raise ValueError("nothing is left to measure: neither prompts nor generated tokens are asked for")
        for model in self._models():
            if not Path(model).exists():
                raise FileNotFoundError(
                    f"there is no model {model!r}: give a GGUF file, a folder of Hugging Face, or a quantized file"
                )
        for scheme in names_of(self.schemes, "schemes"):
            _check_scheme(scheme)
        return []

    @property
    def _runs(self) -> int:
        return 5 if self.repetitions is None else self.repetitions

    def _models(self) -> list[str]:
        return names_of(self.models, "models") if self.models else []

    def _tests(self) -> list[tuple[str, int]]:
        """Kind and tokens of each."""
        prompts, generated = (_counts(getattr(self, name), name) for name in ("prompts", "generated"))
        return [("pp", count) for count in prompts if count] + [("tg", count) for count in generated if count]

    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        from npumatmul.llm import EncoderModel, fetch_demo_model, load

        paths = self._models() or [str(fetch_demo_model())]
        schemes, depths, tests = names_of(self.schemes, "schemes"), _counts(self.depths, "depths"), self._tests()
        watch = SlowdownWatch(self.root, self.throttle)
        reads = {test: (_warm_up(*test) + self._runs) * test[1] for test in tests}
        per_model = sum(depth + read for depth in depths for read in reads.values())
        done, total = 0, per_model * len(paths) * len(schemes)
        for path in paths:
            for scheme in schemes:
                progress(done, total, f"loading {Path(path).name}, {scheme}")
                held = device.memory_stats().weights_used
                with load(path, scheme, device=device, cache=self.cache) as model:
                    if isinstance(model, EncoderModel) or model.parameters is None:
                        raise ValueError(
                            f"{model.name} generates no text; prompts and generation are not measured of it"
                        )
                    size = device.memory_stats().weights_used - held
                    for depth in depths:
                        for kind, count in tests:
                            progress(done, total, f"{model.name}, {scheme}: {_test_name(kind, count, depth)}")
                            yield self._test(model, size, kind, count, depth, watch)
                            done += depth + reads[kind, count]
        progress(total, total, "done")

    def _test(self, model: Model, size: int, kind: str, count: int, depth: int, watch: SlowdownWatch) -> Row:
        if depth + count > model.context:
            raise ValueError(
                f"{_test_name(kind, count, depth)}: {model.name} reads at most {model.context} tokens; ask for fewer "
                "(-p, -n, -d)"
            )
        rng = np.random.default_rng(self.seed)
        before = rng.integers(0, model.vocab_size, depth)
        tokens = rng.integers(0, model.vocab_size, count)
        sequence = model.sequence(depth + count)
        seconds = []
        warm = _warm_up(kind, count)
        for index in range(warm + self._runs):
            _read_up_to(sequence, before)
            began = self.clock()
            if kind == "pp":
                sequence.run(tokens)
            else:
                for token in tokens:
                    sequence.run([int(token)])
            if index >= warm:
                seconds.append(self.clock() - began)
        rates = [count / each for each in seconds]
        modelled = _modelled(model, kind, count, depth)
        figures: dict[str, Value] = {
            "tokens_per_second": statistics.mean(rates),
            "plus_minus": statistics.stdev(rates) if len(rates) > 1 else 0.0,
            "modelled_tokens_per_second": None if modelled is None else count / modelled,
            "weight_bytes": size,
            "parameters": model.parameters,
        }
        fields: dict[str, Value] = {
            "model": model.name[:200], "type": model.scheme, "test": f"{kind}{count}", "depth": depth,
        }  # fmt: skip
        times = {"test": seconds}
        return Row(self.name, fields, times, figures, {} if modelled is None else {"test": modelled}, watch.reasons())


def llama_bench_table(rows: Sequence[Row], backend: str) -> list[str]:
    r"""Lines of Markdown as llama-bench prints them, with the modelled speed of the chip beside.

    Parameters
    ----------
    rows : sequence of Row
        Of `LlmBenchmark`.
    backend : str
        What computed.

    Examples
    --------
    >>> figures = {"tokens_per_second": 101.5, "plus_minus": 2.25, "weight_bytes": 1 << 30, "parameters": 1_543_000_000}
    >>> case = {"model": "qwen", "type": "w8a8", "test": "pp512", "depth": 2048}
    >>> print(*llama_bench_table([Row("llm", case, {"test": [5.0]}, figures)], "RK3588"), sep="\n")
    | model     |     size | params | backend |          test |           t/s | modelled t/s |
    | --------- | -------: | -----: | ------- | ------------: | ------------: | -----------: |
    | qwen w8a8 | 1.00 GiB | 1.54 B | RK3588  | pp512 @ d2048 | 101.50 ± 2.25 |            - |
    """
    heads = ("model", "size", "params", "backend", "test", "t/s", "modelled t/s")
    lines = [heads]
    for row in rows:
        figures, case = row.figures, row.case
        modelled = figures.get("modelled_tokens_per_second")
        depth = f" @ d{case['depth']}" if case["depth"] else ""
        lines.append((
            f"{case['model']} {case['type']}",
            _in_words(figures.get("weight_bytes"), ((1 << 30, "GiB"), (1 << 20, "MiB"), (1, "B"))),
            _in_words(figures.get("parameters"), ((10**9, "B"), (10**6, "M"), (1, ""))),
            backend,
            f"{case['test']}{depth}",
            f"{figures['tokens_per_second']:.2f} ± {figures['plus_minus']:.2f}",
            "-" if modelled is None else f"{modelled:.2f}",
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    left = [heads.index("model"), heads.index("backend")]

    def line_of(cells: Sequence[str]) -> str:
        shown = (
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(shown)} |"

    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return [line_of(lines[0]), line_of(rule), *map(line_of, lines[1:])]


def _warm_up(kind: str, count: int) -> int:
    """Rounds until a model computes as it does from then on.

    Python computes a number of rows when it comes first, what it does is recorded when it comes again, and what was
    recorded is compared with it the third time; only then it is used.
    """
    calls = 1 if kind == "pp" else count
    return -(-3 // calls)


def _read_up_to(sequence: TokenSequence, before: Sequence[int] | np.ndarray) -> None:
    """Have the sequence hold just these tokens; what it keeps of them already is not read again."""
    left = sequence.truncate(min(len(before), sequence.length))
    if left < len(before):
        sequence.run(before[left:])


def _modelled(model: Model, kind: str, count: int, depth: int) -> float | None:
    if kind == "pp":
        return model.modelled_seconds(count, depth)
    # attention grows with each token, and the rest stays: so all of them take as long as the middle one
    each = model.modelled_seconds(1, depth + count // 2)
    return None if each is None else each * count


def _counts(given: Numbers, option: str) -> list[int]:
    """Numbers of tokens, of which 0 is one."""
    text = given if isinstance(given, str) else str(given) if isinstance(given, int) else ",".join(map(str, given))
    counts: dict[int, None] = {}
    for part in text.split(","):
        counts |= dict.fromkeys([0] if part.strip() == "0" else parse_numbers(part, option))
    return list(counts)


def _check_scheme(name: str) -> None:
    from npumatmul.llm.loader import FLOAT32
    from npumatmul.llm.quantize import parse_scheme

    if name != FLOAT32:
        try:
            parse_scheme(name)
        except ValueError as error:
            raise ValueError(f"schemes: {error}") from error


def _test_name(kind: str, count: int, depth: int) -> str:
    return f"{kind}{count}" + (f" @ d{depth}" if depth else "")


def _in_words(value: Value, units: Sequence[tuple[int, str]]) -> str:
    if not value:
        return "-"
    size, unit = next((size, unit) for size, unit in units if float(value) >= size)
    return f"{float(value) / size:.2f} {unit}".strip()
