"""Waveforms of sentences of any length: the decoder of VITS, with nothing listed, converted or compiled.

    python examples/vits_decoder/decode.py                        sentences through a random decoder of the usual size
    python examples/vits_decoder/decode.py --small                the same with few channels, within seconds
    python examples/vits_decoder/decode.py --model FOLDER --latents FILE.npz --wav FILE.wav
    python examples/vits_decoder/decode.py --table                what padding costs and how long it takes, modelled

FOLDER is a VITS model as Hugging Face has it (config.json, model.safetensors). FILE.npz holds `z` (1, 192, T) and, if
the model has them, `g` (1, width, 1) and `y_mask` (1, 1, T), as the first half of the model makes them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from npumatmul import nn
from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.planning.product import padding_report, plan_weight

RATE = 16000  # values of a waveform in a second; a frame is 256 of them
SPEAKER = 512
SMALL = {
    "flow_size": 24, "upsample_initial_channel": 64, "resblock_kernel_sizes": (3, 5),
    "resblock_dilation_sizes": ((1, 3), (1, 3)),
}  # fmt: skip

#: Shapes that a decoder was converted with elsewhere, and what a list may be that covers any sentence.
LISTED = (20, 24, 50, 55)
DOUBLING = (32, 64, 128, 256, 512, 1024, 2048)
SCHEMES = {"w16a16": MatmulType.FLOAT16_FLOAT16_FLOAT32, "w8a8": MatmulType.INT8_INT8_INT32}


def sentences(count: int) -> list[int]:
    """Frames of so many sentences: half of them are shorter than 4 seconds, two thirds between 2.2 and 7.3.

    Quantiles of a logarithmic normal distribution, so that they are the same each time.
    """
    normal = statistics.NormalDist(math.log(4.0), 0.6)
    seconds = (math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count))
    return [max(1, round(each * RATE / 256)) for each in seconds]


# ---- decoding --------------------------------------------------------------------------------------------------------


def random_decoder(scheme: str, small: bool) -> nn.HifiGan:
    """A decoder that nobody trained: what it says means nothing, but takes as long."""
    decoder = nn.HifiGan(**(SMALL if small else {}), speaker_embedding_size=SPEAKER, scheme=scheme)
    rng = np.random.default_rng(1)
    shapes = decoder.parameter_shapes()
    decoder.load_state_dict(
        {name: rng.normal(0, (shape[0] * shape[-1]) ** -0.5, shape) for name, shape in shapes.items()}
    )
    return decoder


def read_decoder(folder: Path, scheme: str) -> nn.HifiGan:
    """The decoder of a model of transformers."""
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "numpy") as file:
        state = {name: file.get_tensor(name) for name in file.keys() if name.startswith("decoder.")}  # noqa: SIM118
    decoder = nn.HifiGan.from_config(config, scheme=scheme)
    decoder.load_state_dict(state, prefix="decoder.")
    return decoder


def write_wav(path: Path, parts: Iterator[np.ndarray]) -> None:
    """Write a waveform as its parts arrive: they could as well be played."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for part in parts:
            file.writeframes((part[0, 0] * 32767).astype("<i2").tobytes())


def decode(options: argparse.Namespace) -> None:
    """Decode sentences of different lengths in one process, and one of them in parts."""
    decoder = (
        read_decoder(options.model, options.scheme) if options.model else random_decoder(options.scheme, options.small)
    )
    rng = np.random.default_rng(2)
    channels = decoder.conv_pre.in_channels
    speaker = None if decoder.cond is None else rng.standard_normal((1, decoder.cond.in_channels, 1), np.float32)
    if options.latents:
        with np.load(options.latents) as given:
            inputs = [(given["z"], given.get("g"), given.get("y_mask"))]
    else:
        lengths = sentences(options.sentences)
        inputs = [
            (rng.standard_normal((1, channels, n), np.float32), speaker, np.ones((1, 1, n), np.float32))
            for n in lengths
        ]
    for z, g, mask in inputs:
        began = time.perf_counter()
        waveform = decoder(z, g, mask)
        seconds = waveform.shape[2] / RATE
        print(f"{z.shape[2]:5} frames: {seconds:6.2f} s of audio, decoded here in {time.perf_counter() - began:6.2f} s")
    z, g, mask = inputs[-1]
    joined = np.concatenate(list(decoder.stream(z, g, mask, chunk=options.chunk)), -1)
    same = (
        "the same to the bit" if np.array_equal(joined, waveform) else f"within {np.abs(joined - waveform).max():.1e}"
    )
    print(f"the last one in parts of {options.chunk} frames: {same}")
    if options.wav:
        write_wav(options.wav, decoder.stream(z, g, mask, chunk=options.chunk))


# ---- what padding costs, by the timing model -------------------------------------------------------------------------


class Modelled:
    """Modelled times of a decoder on a chip; nothing of it was measured."""

    def __init__(self, decoder: nn.HifiGan, scheme: str, soc: str) -> None:
        self._decoder, self._type, self._chip = decoder, SCHEMES[scheme], chip(soc)
        self.product = lru_cache(None)(self._product)
        self.exact = lru_cache(None)(self._exact)

    def _product(self, rows: int, k: int, n: int) -> tuple[float, float]:
        report = padding_report(plan_weight(k, n, self._type, self._chip), [rows])
        return report.seconds, report.exact_seconds

    def padded(self, frames: int, chunk: int | None = None) -> float:
        """Seconds with rows padded as they are."""
        return sum(self.product(*each)[0] for each in self._decoder.products(frames, chunk))

    def _exact(self, frames: int) -> float:
        """Seconds without any padding of rows, as of a model compiled for so many frames."""
        return sum(self.product(*each)[1] for each in self._decoder.products(frames))

    def listed(self, frames: int, shapes: tuple[int, ...], overlap: bool = True) -> float:
        """Seconds where only these numbers of frames were compiled; parts overlap by what a frame depends on."""
        before, behind = self._decoder.context if overlap else (0, 0)
        seconds = 0.0
        done = 0
        while True:
            start = max(0, done - before)
            fitting = [n for n in shapes if n >= frames - start]
            if fitting:
                return seconds + self.exact(fitting[0])
            seconds += self.exact(shapes[-1])
            done = start + shapes[-1] - behind

    def cpu(self, frames: int) -> float:
        """Seconds of copying windows and of activations, at the speed of a copy: a guess."""
        nbytes = sum(4 * rows * (k + 5 * n) for rows, k, n in self._decoder.products(frames))
        return nbytes / self._chip.timings[self._chip.soc].host_bandwidth


def lost(times: Callable[[int], float], exact: Callable[[int], float], lengths: Counter[int]) -> float:
    """Share of the time of all sentences that is spent on padding, and on what parts compute twice."""
    return 1 - sum(exact(n) * often for n, often in lengths.items()) / sum(
        times(n) * often for n, often in lengths.items()
    )


def table(options: argparse.Namespace) -> None:
    """Print what padding costs over sentences, and how long a second of audio takes."""
    decoder = nn.HifiGan(**(SMALL if options.small else {}), speaker_embedding_size=SPEAKER)
    lengths = Counter(sentences(options.sentences))
    print(
        f"Modelled for {options.chip.upper()}, not measured: {lengths.total()} sentences of {min(lengths)} to "
        f"{max(lengths)} frames"
    )
    print()
    print("| share of modelled time lost | to set up | " + " | ".join(SCHEMES) + " |")
    print("|---|---|" + "---|" * len(SCHEMES))
    models = {scheme: Modelled(decoder, scheme, options.chip) for scheme in SCHEMES}
    rows: list[tuple[str, str, Callable[[Modelled], float]]] = [
        ("any T: rows of products are padded (this library)", "nothing", lambda m: lost(m.padded, m.exact, lengths)),
        *(
            (f"T to the next of {', '.join(map(str, shapes))}", f"{len(shapes)} shapes",
             lambda m, shapes=shapes: lost(lambda n: m.listed(n, shapes), m.exact, lengths))
            for shapes in (LISTED, DOUBLING)
        ),
        ("the first list, in parts that do not overlap: wrong around joints", f"{len(LISTED)} shapes",
         lambda m: lost(lambda n: m.listed(n, LISTED, overlap=False), m.exact, lengths)),
    ]  # fmt: skip
    for name, setup, share in rows:
        print(f"| {name} | {setup} | " + " | ".join(f"{share(each):.1%}" for each in models.values()) + " |")
    print()
    print("| seconds for a second of audio, modelled | " + " | ".join(SCHEMES) + " |")
    print("|---|" + "---|" * len(SCHEMES))
    frames = sum(n * often for n, often in lengths.items())
    audio = frames * decoder.hop / RATE

    def second(of: Callable[[int], float]) -> str:
        return f"{sum(of(n) * often for n, often in lengths.items()) / audio:.3f}"

    print("| products, with packing and storing | " + " | ".join(second(m.padded) for m in models.values()) + " |")
    inside = [second(lambda n, m=m: m.padded(n, options.chunk)) for m in models.values()]
    print(f"| the same, streamed in parts of {options.chunk} frames | " + " | ".join(inside) + " |")
    print(
        "| windows and activations of the CPU (a guess) | " + " | ".join(second(m.cpu) for m in models.values()) + " |"
    )


def main() -> None:
    """Read the arguments, and do what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a VITS model")
    parser.add_argument("--latents", type=Path, help=".npz with z, and g and y_mask if the model has them")
    parser.add_argument("--wav", type=Path, help="where the last sentence goes")
    parser.add_argument("--scheme", choices=SCHEMES, default="w16a16")
    parser.add_argument("--chunk", type=int, default=64, help="frames of a part (%(default)s)")
    parser.add_argument("--sentences", type=int, help="how many (5; 100 for the table)")
    parser.add_argument("--chip", default="rk3588", help="which the table is of (%(default)s)")
    parser.add_argument("--small", action="store_true", help="a decoder with few channels")
    parser.add_argument("--table", action="store_true", help="print what padding costs instead")
    options = parser.parse_args()
    if options.sentences is None:
        options.sentences = 100 if options.table else 5
    if options.table:
        table(options)
    else:
        decode(options)


if __name__ == "__main__":
    main()
