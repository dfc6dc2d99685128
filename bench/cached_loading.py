"""Loading a model with and without what the cache on disk has of it: ``python bench/cached_loading.py MODEL...``.

Each load is a process of its own, with a cache of its own: without a cache, with an empty one, with a full one. A load
ends when the model could answer. Peaks of memory are those of the process (VmHWM), less what it had with the library
imported and the device open; memory of the simulated NPU is in them. Times are those of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from npumatmul.llm import fetch_demo_model

#: What a process does: prints seconds, megabytes of the peak and of NPU memory, and how many weights were built.
CHILD = """
import json, sys, time
path, scheme, cached = sys.argv[1:]
def status(key):
    with open("/proc/self/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith(key))) * 1024
import npumatmul.llm
from npumatmul.device.current import current_device
from npumatmul.llm.packing import Packing
device = current_device("sim:rk3588")
built, pack = [], Packing.__call__
def counted(self, weight, name):
    built.append(weight.nbytes)
    return pack(self, weight, name)
Packing.__call__ = counted
before, start, started = status("VmRSS"), time.perf_counter(), time.process_time()
model = npumatmul.llm.load(path, scheme, device=device, cache=cached == "1")
print(json.dumps({
    "seconds": time.perf_counter() - start, "processor": time.process_time() - started, "built": len(built),
    "peak": status("VmHWM") - before, "packed": device.stats().npu_bytes, "largest": max(built, default=0),
}))
"""


def measured(path: Path, scheme: str, cached: bool, folder: str) -> dict[str, Any]:
    """One load in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(path), scheme, str(int(cached))]
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def main() -> None:
    """Load each model in each way, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*", help="the demo's by default")
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--turns", type=int, default=1, help="of the load from a full cache; the median counts")
    options = parser.parse_args()
    print(f"{options.scheme}\n")
    print(
        "| model | load | s | of the first | processor s | of the first | weights packed | NPU MB | peak MB "
        "| less the largest weight, of NPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in options.models or [fetch_demo_model()]:
        with tempfile.TemporaryDirectory() as folder:
            loads = {
                "without a cache": measured(path, options.scheme, False, folder),
                "first": measured(path, options.scheme, True, folder),
            }
            later = [measured(path, options.scheme, True, folder) for _ in range(options.turns)]
            loads["later"] = sorted(later, key=lambda each: float(each["seconds"]))[len(later) // 2]
        first = loads["first"]
        for name, found in loads.items():
            ratio = (found["peak"] - found["largest"]) / found["packed"]
            shares = [found[key] / first[key] for key in ("seconds", "processor")]
            print(
                f"| {path.name} | {name} | {found['seconds']:.2f} | {shares[0]:.3f} | {found['processor']:.2f} "
                f"| {shares[1]:.3f} | {found['built']} | {found['packed'] / 1e6:.0f} | {found['peak'] / 1e6:.0f} "
                f"| {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
