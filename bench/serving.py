"""How many tokens a server gives to 1 to 16 clients, and how long the first one and each answer take.

    python bench/serving.py --clients 1,2,4,8,16

Each client asks again as soon as it has its answer, for streams of a fixed number of tokens, over HTTP in the same
process. Prompts begin differently, so that none is found in a cache. On a simulated NPU the times are those of the CPU
that simulates: what they show is how the server shares the model, and nothing of a board.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

import npumatmul as npu
import npumatmul.llm
from npumatmul.server import Server, Settings

QUESTION = "{}. Explain in a few sentences what a neural processing unit is, and what it is good for."


@dataclass(frozen=True)
class Timed:
    """One answer: seconds until its first token and until its end, and how many tokens it had."""

    first: float
    whole: float
    tokens: int


def ask(url: str, number: int, tokens: int, stops: Sequence[int]) -> Timed:
    """Have an answer, which does not end by itself, and time it as its reader sees it."""
    body: dict[str, object] = {
        "prompt": QUESTION.format(number),
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "logprobs": 0,
    }
    body["logit_bias"] = {str(stop): -100 for stop in stops}
    began, first, count = time.perf_counter(), 0.0, 0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
                count += 1
    return Timed(first, time.perf_counter() - began, count)


def measured(
    url: str, clients: int, requests: int, tokens: int, seed: int, stops: Sequence[int]
) -> tuple[float, list[Timed]]:
    """Seconds that all took together, and the answers."""
    made: list[Timed] = []

    def client(index: int) -> None:
        for i in range(requests):
            made.append(ask(url, seed + index * requests + i, tokens, stops))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, made


def row(clients: int, seconds: float, made: Sequence[Timed]) -> str:
    """A line of the table."""
    first, whole = np.array([each.first for each in made]), np.array([each.whole for each in made])
    cells = [
        f"{clients}",
        f"{sum(each.tokens for each in made) / seconds:.1f}",
        *(f"{np.percentile(first, p):.2f}" for p in (50, 99)),
        *(f"{np.percentile(whole, p):.2f}" for p in (50, 99)),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-m", "--model", type=Path, help="a model; by default the demo's")
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--device")
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=16, help="answers that are computed at a time")
    options = parser.parse_args()
    path = options.model or npumatmul.llm.fetch_demo_model()
    counts = [int(count) for count in options.clients.split(",")]
    with npumatmul.llm.load(path, options.scheme, device=options.device) as model:
        where = "numpy" if model.device is None else model.device.name
        if model.device is not None and model.device.simulated:
            where = f"CPU simulation of {model.device.chip.soc}"
        stops = sorted(model.tokenizer.stop_ids)
        prompt = len(model.tokenizer.encode(QUESTION.format(1)))
        print(f"{model.name}, {model.scheme}, {where}; prompts of {prompt} tokens, answers of {options.tokens}\n")
        print("| clients | tokens/s | first token, s: p50 | p99 | answer, s: p50 | p99 |")
        print("|---|---|---|---|---|---|")
        with Server({"model": model}, Settings(port=0, parallel=options.parallel)) as server:
            ask(server.url, 0, 2, stops)  # contexts are made at first use
            for clients in [*counts, counts[0]]:  # the first one again at the end, for the drift
                seconds, made = measured(server.url, clients, options.requests, options.tokens, 1000 * clients, stops)
                print(row(clients, seconds, made), flush=True)
    print(f"\nnpumatmul {npu.__version__}; the last row repeats the first")


if __name__ == "__main__":
    main()
