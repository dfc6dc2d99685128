r"""SmolLM2 through the simulator beside llama.cpp, in one process and in turns: ``python bench/beside_llama_cpp.py``.

w8a8 of this library beside Q8_0 of llama.cpp, made of the same file: a prompt of 512 tokens, and 128 tokens after it,
one by one. All products go through the simulator, and then, in turns of their own, where the model of time puts them.
The simulator is a program on this CPU, so this says how long one waits without a board, and nothing of a chip.

llama.cpp comes with the package ``llama-cpp-python``, which pip builds on this machine. It may be in an environment of
its own, whose folder of packages is given here::

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_CPU_REPACK=ON" \
        pip install --no-binary llama-cpp-python llama-cpp-python
    python bench/beside_llama_cpp.py --packages ENVIRONMENT/lib/python3.11/site-packages

With ``--transformers`` the float32 model of transformers is a third, of the same weights.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import npumatmul as npu
from npumatmul import llm

#: Takes what llama.cpp logs; it has to be there as long as the library is.
QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
#: One test: reads or generates tokens, after it was made ready, and is timed.
Test = tuple[Callable[[], object], Callable[[], object]]


def in_turns(tests: Mapping[str, Test], rounds: int) -> dict[str, list[float]]:
    """Seconds of each test in each round; a round before them does not count."""
    times: dict[str, list[float]] = {name: [] for name in tests}
    for number in range(rounds + 1):
        for name, (ready, run) in tests.items():
            ready()
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


class LlamaCpp:
    """A model in llama.cpp's own C API."""

    def __init__(self, api: Any, path: Path, capacity: int, threads: int) -> None:
        self._api = api
        loading = api.llama_model_default_params()
        loading.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), loading)
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = capacity, capacity, 512
        context.n_threads = context.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, context)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")

    def forget(self) -> None:
        """Begin anew."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        """Go on with tokens, all at once."""
        own = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(own, len(tokens))):
            raise SystemExit("llama.cpp cannot read these tokens")
        self._api.llama_synchronize(self._context)

    def close(self) -> None:
        """Give everything back."""
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def llama_cpp(packages: str | None) -> Any:
    """llama.cpp's C API, quiet."""
    if packages is not None:
        sys.path.append(packages)
    try:
        api = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise SystemExit(f"llama-cpp-python is not there ({error}); `--help` says how it is installed") from error

    api.llama_log_set(QUIET, ctypes.c_void_p(0))
    api.llama_backend_init()
    return api


def quantized(api: Any, source: Path, target: Path, threads: int) -> Path:
    """The model as Q8_0."""
    how = api.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.nthread = api.LLAMA_FTYPE_MOSTLY_Q8_0, True, threads
    if api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(how)):
        raise SystemExit(f"llama.cpp cannot quantize {source}")
    return target


def tests_of(
    forget: Callable[[], object], read: Callable[[Any], object], prompt: Any, generated: Any
) -> tuple[Test, Test]:
    """A prompt, and tokens one by one after it."""

    def after_prompt() -> None:
        forget()
        read(prompt)

    def generate() -> None:
        for i in range(len(generated)):
            read(generated[i : i + 1])

    return (forget, partial(read, prompt)), (after_prompt, generate)


@contextmanager
def transformers_model(path: Path, threads: int) -> Iterator[tuple[Callable[[], object], Callable[[Any], object]]]:
    """Float32 by transformers: how to begin anew, and how to read."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
    except ImportError as error:
        raise SystemExit(f"--transformers: {error}") from error
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    states = [DynamicCache()]

    def forget() -> None:
        states[0] = DynamicCache()

    def read(tokens: Any) -> None:
        with torch.inference_mode():
            ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
            model(ids, past_key_values=states[0], use_cache=True, logits_to_keep=1)

    yield forget, read


def main() -> None:
    """Load both, time both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file; the demo's by default")
    parser.add_argument("--packages", help="the folder of packages that has llama-cpp-python")
    parser.add_argument("--prompt", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--generate", type=int, default=128, help="tokens (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each (%(default)s)")
    parser.add_argument("--transformers", action="store_true", help="float32 by transformers, too")
    asked = parser.parse_args()
    path, threads, capacity = asked.model or llm.fetch_demo_model(), asked.threads, asked.prompt + asked.generate
    api = llama_cpp(asked.packages)
    with tempfile.TemporaryDirectory() as folder:
        theirs = LlamaCpp(api, quantized(api, path, Path(folder, "q8_0.gguf"), threads), capacity + 8, threads)
        with npu.config(cores=tuple(range(threads))), llm.load(path, "w8a8") as ours:
            rng = np.random.default_rng(0)
            prompt = rng.integers(0, ours.vocab_size, asked.prompt).astype(np.int32)
            generated = rng.integers(0, ours.vocab_size, asked.generate).astype(np.int32)
            sequence = ours.sequence(capacity)

            def read(processor: str, tokens: Any) -> None:
                with npu.config(processor=processor):  # type: ignore[arg-type]
                    sequence.run([int(token) for token in tokens])

            ways: dict[str, tuple[Callable[[], object], Callable[[Any], object]]] = {
                "llama.cpp Q8_0": (theirs.forget, theirs.read),
                "w8a8, all through the simulator": (partial(sequence.truncate, 0), partial(read, "npu")),
                "w8a8, NPU or CPU as modelled": (partial(sequence.truncate, 0), partial(read, "auto")),
            }
            with transformers_model(path, threads) if asked.transformers else nullcontext() as float32:
                if float32 is not None:
                    ways["transformers float32"] = float32
                tests = {name: tests_of(*way, prompt, generated) for name, way in ways.items()}
                reading = in_turns({name: both[0] for name, both in tests.items()}, asked.rounds)
                going_on = in_turns({name: both[1] for name, both in tests.items()}, asked.rounds)
        theirs.close()
    print(f"{path.name}, {threads} threads, medians of {asked.rounds} turns; ratios to the first, of each turn")
    print(
        f"| | prompt of {asked.prompt}, tokens/s | over | {asked.generate} tokens, tokens/s | over |\n"
        "|---|---|---|---|---|"
    )
    first = next(iter(ways))
    for name in ways:
        cells = []
        for times, count in ((reading, asked.prompt), (going_on, asked.generate)):
            over = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
            cells += [f"{count / statistics.median(times[name]):.1f}", f"{over:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
