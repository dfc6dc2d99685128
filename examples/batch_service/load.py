"""A load for the service of embeddings: requests that come as people do, whether or not earlier ones were answered.

    python examples/batch_service/load.py http://127.0.0.1:8000 --rate 50 --seconds 10

Gaps between requests are distributed exponentially (Poisson arrivals). Latency counts from the moment at which a
request was to be sent, so what a slow service holds up is not left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

SUBJECTS = ("A cat", "The old engineer", "My neighbour", "Nobody", "The ship's cook", "A tired violinist")
VERBS = ("sits on", "repairs", "forgets", "paints", "looks for", "sells")
OBJECTS = ("the mat", "a broken clock in the hall", "the bridge over the river", "two letters", "a garden full of snow")


@dataclass(frozen=True)
class Load:
    """What became of the requests of a while.

    Attributes
    ----------
    rate : float
        Requests a second that were offered.
    sent, answered, refused, failed, lost : int
        How many were sent; got an embedding; 503; another status; no answer at all.
    seconds : float
        From the first request to the last answer.
    latencies : tuple of float
        Seconds of those with an embedding, in order.
    """

    rate: float
    sent: int
    answered: int
    refused: int
    failed: int
    lost: int
    seconds: float
    latencies: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """Embeddings a second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """The latency below which a share of the answers is, in seconds."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def __str__(self) -> str:
        return (
            f"offered {self.rate:7.1f}/s  answered {self.throughput:7.1f}/s  p50 {self.percentile(0.5) * 1e3:8.1f} ms  "
            f"p99 {self.percentile(0.99) * 1e3:8.1f} ms  refused {self.refused}  failed {self.failed}  lost {self.lost}"
        )


def texts(seed: int) -> Iterator[str]:
    """Short sentences without end, the same ones for a seed."""
    chosen = random.Random(seed)
    while True:
        subject, verb, what = (chosen.choice(words) for words in (SUBJECTS, VERBS, OBJECTS))
        yield f"{subject} {verb} {what}, for the {chosen.randrange(99)}th time."


class Clients:
    """Connections to a service that stay open for further requests."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, text: str) -> int | None:
        """The status of the answer; None where there was none."""
        body = json.dumps({"text": text}).encode()
        head = f"POST /embed HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        try:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
            writer.write(head + body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return None
        self._idle.append((reader, writer))
        return int(lines[0].split()[1])

    def close(self) -> None:
        """Give the connections up."""
        for _, writer in self._idle:
            writer.close()


async def offer(url: str, rate: float, seconds: float, seed: int = 0) -> Load:
    """Offer so many requests a second, and wait for all answers."""
    clients, gaps, words = Clients(url), random.Random(seed), texts(seed)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    latencies: list[float] = []

    async def one(due: float) -> None:
        status = await clients.ask(next(words))
        counts["lost" if status is None else {200: "answered", 503: "refused"}.get(status, "failed")] += 1
        if status == 200:
            latencies.append(time.perf_counter() - began - due)

    due, tasks = 0.0, []
    while (due := due + gaps.expovariate(rate)) < seconds or not tasks:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    clients.close()
    found = (counts[name] for name in ("answered", "refused", "failed", "lost"))
    return Load(rate, len(tasks), *found, took, tuple(sorted(latencies)))


def combined(loads: Sequence[Load]) -> Load:
    """Several whiles with the same load as one."""
    sums = [sum(getattr(each, name) for each in loads) for name in ("sent", "answered", "refused", "failed", "lost")]
    latencies = tuple(sorted(value for each in loads for value in each.latencies))
    return Load(statistics.mean(each.rate for each in loads), *sums, sum(each.seconds for each in loads), latencies)


def main() -> None:
    """Offer one load and tell what became of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("url")
    options.add_argument("--rate", type=float, default=20.0, help="requests a second (default: 20)")
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    print(asyncio.run(offer(given.url, given.rate, given.seconds, given.seed)))


if __name__ == "__main__":
    main()
