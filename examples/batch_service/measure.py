"""Throughput and latency of the service over offered load, with batches and without, as a table and a plot.

    python examples/batch_service/measure.py --rates 5,10,20,40,60 --seconds 20 --plot curve.png --csv curve.csv
    python examples/batch_service/measure.py --quick          two loads of half a second each, two ways

Three services run at once, of which one computes text by text, one gathers for a while, and one takes what waits. They
get each load in turns, so that what else the machine does meets all of them. Each computes on one core of the simulated
NPU, which is one thread of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from load import Load, combined, offer

SERVICE = Path(__file__).with_name("serve.py")
#: Texts at once, and milliseconds that one may wait for others.
WAYS = {"one by one": (1, 0.0), "gathered for 10 ms": (32, 10.0), "what waits": (32, 0.0)}
QUICK = "one by one", "what waits"
COLORS = "tab:red", "tab:blue", "tab:green"
MEASURED = "all-MiniLM-L6-v2, w8a8: a simulated RK3588, computed by this machine's CPU, not the chip"


@contextlib.contextmanager
def running(size: int, max_wait: float, model: str | None) -> Iterator[str]:
    """The address of a service in a process of its own; it is ended as a system would end it, and has to end well."""
    command = [sys.executable, str(SERVICE), "--port", "0", "--size", str(size), "--max-wait", str(max_wait)]
    command += ["--cores", "0"]
    command += ["--model", model] if model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the service did not begin: it ended with {process.wait()}")
        try:
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(120) not in (0, -signal.SIGTERM):
                raise SystemExit(f"the service ended with {process.returncode}")


def measure(
    ways: Sequence[str], rates: Sequence[float], seconds: float, rounds: int, model: str | None
) -> dict[str, list[Load]]:
    """Each load in rounds, by all ways in turns."""
    found: dict[str, list[Load]] = {way: [] for way in ways}
    with contextlib.ExitStack() as stack:
        urls = {way: stack.enter_context(running(*WAYS[way], model)) for way in ways}
        for url in urls.values():
            asyncio.run(offer(url, 20.0, min(1.0, seconds)))  # contexts and buffers are made
        for rate in rates:
            loads: dict[str, list[Load]] = {way: [] for way in ways}
            for number in range(rounds):
                for way, url in urls.items():
                    loads[way].append(asyncio.run(offer(url, rate, seconds / rounds, number)))
            for way in ways:
                found[way].append(combined(loads[way]))
                print(f"{way:18}  {found[way][-1]}", flush=True)
    return found


def write(found: Mapping[str, Sequence[Load]], path: Path) -> None:
    """The table as CSV."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["way", "offered", "answered", "p50_ms", "p99_ms", "sent", "refused", "failed", "lost"])
        for way, loads in found.items():
            for each in loads:
                times = (f"{each.percentile(share) * 1e3:.1f}" for share in (0.5, 0.99))
                counts = each.sent, each.refused, each.failed, each.lost
                rows.writerow([way, each.rate, f"{each.throughput:.1f}", *times, *counts])


def plot(found: Mapping[str, Sequence[Load]], path: Path, title: str) -> None:
    """Throughput, and latencies, over offered load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for (way, loads), color in zip(found.items(), COLORS, strict=False):
        rates = [each.rate for each in loads]
        left.plot(rates, [each.throughput for each in loads], "o-", color=color, label=way)
        for share, style in ((0.5, "o-"), (0.99, "^--")):
            times = [each.percentile(share) * 1e3 for each in loads]
            right.plot(rates, times, style, color=color, label=f"{way}, p{share * 100:.0f}")
    left.plot(rates, rates, ":", color="gray", label="all that is offered")
    left.set(xlabel="requests offered a second", ylabel="embeddings a second", ylim=(0, None))
    right.set(xlabel="requests offered a second", ylabel="milliseconds", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rates", default="5,10,20,30,40,60,80", help="requests a second, separated by commas")
    options.add_argument("--seconds", type=float, default=20.0, help="for each load and way (default: 20)")
    options.add_argument("--rounds", type=int, default=2, help="turns in which that is done (default: 2)")
    options.add_argument("--model", help="folder of an encoder (default: all-MiniLM-L6-v2)")
    options.add_argument("--quick", action="store_true", help="two loads of half a second each, two ways")
    options.add_argument("--plot", type=Path)
    options.add_argument("--csv", type=Path)
    given = options.parse_args()
    rates = [float(each) for each in ("20,60" if given.quick else given.rates).split(",")]
    seconds, rounds = (0.5, 1) if given.quick else (given.seconds, given.rounds)
    found = measure(QUICK if given.quick else tuple(WAYS), rates, seconds, rounds, given.model)
    if given.csv:
        write(found, given.csv)
    if given.plot:
        plot(found, given.plot, MEASURED)


if __name__ == "__main__":
    main()
