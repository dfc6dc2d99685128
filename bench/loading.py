"""Loading a model three ways, in turns: ``python bench/loading.py`` prints sizes, times, memory.

From a GGUF file that is quantized first, from a portable file of codes, and from a file packed for the chip. Each load
is a process of its own, so that peaks of memory are its own, and ends with the first token after a prompt. Times are
those of this machine and its simulated chip, never of a board.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from npumatmul.llm import fetch_demo_model
from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model, save_quantized

#: What a process does: prints seconds for load and first token, megabytes of the peak meanwhile and of NPU memory.
CHILD = """
import json, sys, time
path, scheme, prompt = sys.argv[1:]
def status(key):
    with open("/proc/self/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith(key))) / 1e3
from pathlib import Path
from npumatmul.cli.models import open_model
from npumatmul.device.current import current_device
device = current_device("sim:rk3588")
before = status("VmRSS")
start = time.perf_counter()
quantized = path.endswith(".safetensors")
if quantized or scheme in ("w16a16", "w8a8", "w4a8"):
    loaded = open_model(Path(path), None if quantized else scheme, device, quiet=True)
else:
    from npumatmul.llm import npu_layers
    from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model
    loaded = quantize_model(path, Recipe(LayerRecipe(*scheme.split("+")))).load(npu_layers(device))
load = time.perf_counter() - start
peak = status("VmHWM") - before
npu = device.stats().npu_bytes / 1e6
ids = loaded.encode_chat([{"role": "user", "content": prompt}])
start = time.perf_counter()
loaded.model.forward(ids, loaded.model.new_cache(len(ids) + 1))
first = time.perf_counter() - start
print(json.dumps({"load": load, "first": first, "peak": peak, "npu": npu}))
"""


def main() -> None:
    """Make the files, load each in turn, print a table of medians and of ratios within turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", default="w8a8+hadamard", help="scheme, and a transform that needs no calibration")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--prompt", default="What is a lighthouse for?")
    options = parser.parse_args()
    gguf = fetch_demo_model()
    with tempfile.TemporaryDirectory() as folder:
        portable, packed = Path(folder) / "portable.safetensors", Path(folder) / "packed.safetensors"
        model = quantize_model(gguf, Recipe(LayerRecipe(*options.scheme.split("+"))))
        save_quantized(model, portable)
        save_quantized(model, packed, device="sim:rk3588")
        del model
        ways = {"GGUF, quantized": gguf, "portable": portable, "packed": packed}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
        for _ in range(options.turns):
            for name, path in ways.items():
                command = [sys.executable, "-c", CHILD, str(path), options.scheme, options.prompt]
                found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        print(f"{options.scheme}, {options.turns} turns, medians; times and memory of this machine, chip simulated\n")
        print("| from | file MB | load s | first token s | load and first token, of GGUF | peak MB | NPU memory MB |")
        print("|---|---|---|---|---|---|---|")
        for name, path in ways.items():
            turns = list(zip(found[name], found["GGUF, quantized"], strict=True))
            whole = statistics.median(
                (mine["load"] + mine["first"]) / (theirs["load"] + theirs["first"]) for mine, theirs in turns
            )
            middle = {key: statistics.median(each[key] for each in found[name]) for key in found[name][0]}
            print(
                f"| {name} | {path.stat().st_size / 1e6:.1f} | {middle['load']:.2f} | {middle['first']:.2f} "
                f"| {whole:.3f} | {middle['peak']:.0f} | {middle['npu']:.0f} |"
            )


if __name__ == "__main__":
    main()
