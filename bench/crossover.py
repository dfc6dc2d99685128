"""Print up to how many rows the CPU is modelled to multiply packed weights faster than the NPU, and what was measured.

    python bench/crossover.py                      everything
    python bench/crossover.py modelled kernels     some of: modelled, kernels, memory, decoding

Modelled: `npumatmul.chips.timing` of the NPU and of the CPU beside it; nobody timed either for this. Measured: on this
machine, in one process on one processor, in turns, medians of processor time: what the host's kernels take beside plain
C, numpy and the simulator, which says nothing of how fast a chip is; and SmolLM2 with one copy of its weights and two.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

import npumatmul as npu
from npumatmul import llm
from npumatmul.chips import CHIPS
from npumatmul.chips.timing import CPUS
from npumatmul.chips.types import MatmulType
from npumatmul.host.multiply import NativeB, Operands, instruction_sets, multiply
from npumatmul.planning.on_cpu import cpu_seconds
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import plan_weight
from npumatmul.quant.names import SchemeName
from npumatmul.running.stored import StoredWeight

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
SHAPES = ((576, 1536), (2048, 2048), (4096, 14336))
TYPES: Mapping[str, Mapping[str, MatmulType]] = {
    "rk3588": {
        "w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
        "w8a8": MatmulType.INT8_INT8_INT32,
        "w4a4": MatmulType.INT4_INT4_INT16,
    },
    "rk3576": {
        "w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
        "w8a8": MatmulType.INT8_INT8_INT32,
        "w4a8": MatmulType.INT8_INT4_INT32,
        "w4a16": MatmulType.FLOAT16_INT4_FLOAT32,
    },
    "rk3568": {"w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32, "w8a8": MatmulType.INT8_INT8_INT32},
    "rk3562": {"w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32, "w8a8": MatmulType.INT8_INT8_INT32},
}
PROMPT = "The sea is "
TOKENS = 24
MIB = 1 << 20


def modelled() -> list[str]:
    """Modelled time on the NPU over that on the CPU: above 1 the CPU is faster."""
    lines = [
        "Modelled: time on the NPU over time on the CPU, packing and storing included; above 1 the CPU is faster",
        "",
        f"| chip | scheme | K, N | {' | '.join(f'M = {m}' for m in ROWS)} | CPU up to M |",
        f"|---|---|---|{'---|' * (len(ROWS) + 1)}",
    ]
    for soc, types in TYPES.items():
        for scheme, mm_type in types.items():
            for k, n in SHAPES:
                ratios = [_ratio(soc, mm_type, m, k, n) for m in ROWS]
                most = 0
                while _ratio(soc, mm_type, most + 1, k, n) > 1 and most < 256:
                    most += 1
                cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                lines.append(f"| {soc} | {scheme} | {k}, {n} | {cells} | {most} |")
    lines += ["", "Constants of the CPU and where they come from:", ""]
    lines += [f"- {soc}, {name}: {source}" for soc in TYPES for name, source in CPUS[soc].sources.items()]
    return lines


def _ratio(soc: str, mm_type: MatmulType, m: int, k: int, n: int) -> float:
    plan = plan_matmul(m, plan_weight(k, n, mm_type, CHIPS[soc]))
    on_npu, on_cpu = plan.modelled_seconds, cpu_seconds(plan, CPUS[soc])
    assert on_npu is not None
    assert on_cpu is not None
    return on_npu / on_cpu


def in_turns(works: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Median time of each work; each is done once per round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        for _ in range(2):
            work()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def machine() -> str:
    """Name and number of the processors."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}"


def kernels() -> list[str]:
    """Products with a packed weight on this machine."""
    k, n = 2048, 2048
    lines = [
        f"Measured here ({machine()}; {', '.join(instruction_sets())}): K = N = {k}; times of "
        "numpy and the simulator over that of the CPU's product, of plain C over that of the kernel, one thread each",
        "",
        "| scheme | M | product on the CPU, us | kernel, GB/s of B | plain C | numpy float32 | simulator |",
        "|---|---|---|---|---|---|---|",
    ]
    rng = np.random.default_rng(0)
    operands: Mapping[SchemeName, tuple[Operands, int]] = {
        "w8a8": (Operands.I8_I8, 32),
        "w4a4": (Operands.I4_I4, 64),
        "w16a16": (Operands.F16_F16, 16),
    }
    with npu.Device("sim:rk3588") as device:
        for scheme, (of, tile_n) in operands.items():
            packed = npu.pack(rng.standard_normal((k, n)).astype(np.float32), scheme, device=device)
            on_cpu, plain = packed.on("cpu"), packed.unpack()
            a_bits, b_bits = of.bits
            native = NativeB(of, 0, k, n, tile_n, 32)
            b = np.zeros(k * n * b_bits // 8, np.uint8)
            for m in ROWS:
                x, a = rng.standard_normal((m, k)).astype(np.float32), np.zeros((m, k * a_bits // 8), np.uint8)
                works: dict[str, Callable[[], object]] = {
                    "cpu": partial(npu.matmul, x, on_cpu),
                    "simulator": partial(npu.matmul, x, packed),
                    "numpy": partial(np.matmul, x, plain),
                    "kernel": partial(multiply, native, a, b),
                }
                if m <= 4:
                    works["scalar"] = partial(multiply, native, a, b, "scalar")
                took = in_turns(works)
                over = {name: took[name] / took["cpu"] for name in ("numpy", "simulator")}
                scalar = f"{took['scalar'] / took['kernel']:.0f}" if "scalar" in took else ""
                lines.append(
                    f"| {scheme} | {m} | {took['cpu'] * 1e6:.0f} | {b.nbytes / took['kernel'] / 1e9:.1f} | {scalar} | "
                    f"{over['numpy']:.2f} | {over['simulator']:.2f} |"
                )
    return lines


def on_one_processor(arguments: list[str]) -> None:
    """Run once more in a process that may use one processor: libraries start no threads there that would wait."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        subprocess.run([sys.executable, __file__, *arguments], check=True)
    finally:
        os.sched_setaffinity(0, mine)


def decoding(model: str | None) -> list[str]:
    """SmolLM2's tokens with all products on the CPU and with all through the simulator."""
    loaded = llm.load(model or llm.fetch_demo_model(), scheme="w8a8")
    seconds: dict[str, list[float]] = {"npu": [], "cpu": []}
    texts = set()
    for _ in range(9):
        for processor, times in seconds.items():
            with npu.config(processor=processor):  # type: ignore[arg-type]
                start = time.process_time()
                texts.add("".join(piece.text for piece in loaded.generate(PROMPT, max_tokens=TOKENS)))
            times.append((time.process_time() - start) / TOKENS)
    assert len(texts) == 1, texts
    by_npu, by_cpu = (statistics.median(times) for times in seconds.values())
    return [
        f"Measured here: SmolLM2, w8a8, {TOKENS} tokens, the same ones both ways: {by_cpu * 1e3:.1f} ms of one "
        f"processor for a token with all products on the CPU, {by_npu * 1e3:.1f} through the simulator: "
        f"{by_npu / by_cpu:.2f} times as many",
    ]


def memory(model: str | None) -> list[str]:
    """What SmolLM2 takes with one copy of its weights and with two, each in a process of its own."""
    lines = [
        "Measured here: SmolLM2, w8a8, a prompt through the NPU (simulated) and tokens on the CPU",
        "",
        "| copies of the weights | NPU memory, MiB | second copy, MiB | peak resident memory, MiB |",
        "|---|---|---|---|",
    ]
    for copies in (1, 2):
        program = [sys.executable, __file__, f"--copies={copies}", *([] if model is None else [f"--model={model}"])]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        in_npu, beside, peak = map(int, done.stdout.split()[-3:])
        lines.append(f"| {copies} | {in_npu / MIB:.0f} | {beside / MIB:.0f} | {peak / MIB:.0f} |")
    return lines


def one_or_two(model: str | None, copies: int) -> None:
    """Generate, with a second copy of all weights for the CPU if there are to be two, and print bytes."""
    loaded = llm.load(model or llm.fetch_demo_model(), scheme="w8a8")
    second = []
    if copies == 2:  # what a CPU's own matrix-vector product would have to have beside the NPU's tiles
        for stored in {each for each in gc.get_objects() if type(each) is StoredWeight}:
            second += [tile.bytes().copy() for tile in stored.tiles]
    generation = loaded.generate(PROMPT * 8, max_tokens=1)
    text = "".join(piece.text for piece in generation)
    with npu.config(processor="cpu"):
        for _ in loaded.generate(PROMPT * 8 + text, max_tokens=TOKENS):
            pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(npu.current_device().stats().npu_bytes, sum(map(len, second)), peak)


def main() -> None:
    """Print what is asked for."""
    parts = ("modelled", "kernels", "memory", "decoding")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--model", default=None, help="a GGUF file; SmolLM2-135M-Instruct by default")
    parser.add_argument("--copies", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copies:
        one_or_two(arguments.model, arguments.copies)
        return
    for part in arguments.parts or parts:
        if part not in parts:
            parser.error(f"there is no part {part!r}")
        if part in ("kernels", "decoding") and not arguments.here:
            given = [] if arguments.model is None else [f"--model={arguments.model}"]
            on_one_processor(["--here", part, *given])
            continue
        made = {"modelled": modelled, "kernels": kernels}.get(part)
        lines = made() if made else {"memory": memory, "decoding": decoding}[part](arguments.model)
        print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
