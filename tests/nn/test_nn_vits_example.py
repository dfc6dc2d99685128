"""The example of VITS's decoder, run as its users run it, and what its document says of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import VitsConfig

from npumatmul import nn

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vits_decoder" / "decode.py"


def run(*arguments: object, program: Path = EXAMPLE) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_sentences_of_several_lengths_in_one_process(tmp_path: Path) -> None:
    *sentences, parts = run("--small", "--sentences", 3, "--wav", tmp_path / "speech.wav")
    frames = [int(line.split()[0]) for line in sentences]
    assert len(set(frames)) == 3
    assert parts == "the last one in parts of 64 frames: the same to the bit"
    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert (file.getnframes(), file.getframerate()) == (frames[-1] * 256, 16000)


def test_a_model_from_a_folder(tmp_path: Path) -> None:
    config = VitsConfig(flow_size=16, upsample_initial_channel=32)
    config.save_pretrained(tmp_path)
    shapes = nn.HifiGan.from_config(config).parameter_shapes()
    rng = np.random.default_rng(0)
    state = {f"decoder.{name}": rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(state | {"flow.conv": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    np.savez(
        tmp_path / "latents.npz", z=rng.standard_normal((1, 16, 7), np.float32), y_mask=np.ones((1, 1, 7), np.float32)
    )
    first, _ = run("--model", tmp_path, "--latents", tmp_path / "latents.npz", "--wav", tmp_path / "speech.wav")
    assert first.split()[0] == "7"
    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert file.getnframes() == 7 * 256


def test_any_length_in_one_session_of_an_onnx_model() -> None:
    lines = run(program=EXAMPLE.with_name("decode_onnx.py"))
    found = re.findall(r"(\d+) frames: +(\d+) values, off by (\S+) of", "\n".join(lines))
    assert [(int(frames), int(values)) for frames, values, _ in found] == [
        (n, 256 * n) for n in (1, 17, 20, 24, 50, 55, 56, 130)
    ]
    assert all(float(error) < 2e-3 for *_, error in found)
    assert lines[len(found)] == "on the NPU: 20 nodes with products"
    assert [line.split(": ")[1] for line in lines[len(found) + 1 :]] == ["/generator/conv_post/Conv"]


@pytest.mark.long
def test_the_document_has_the_table_and_less_than_a_tenth_is_lost() -> None:
    lines = run("--table")
    document = (ROOT / "docs" / "vits.md").read_text().splitlines()
    for line in lines:
        assert line in document
    (ours,) = (line for line in lines if "(this library)" in line)
    assert all(float(share) < 10 for share in re.findall(r"([\d.]+)%", ours))
