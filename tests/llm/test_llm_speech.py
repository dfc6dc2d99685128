"""The parts of speech: features, other rates, wave files, rules of times, segments, languages, the command."""

from __future__ import annotations

import json
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)
from typer.testing import CliRunner
from whisper_zoo import LANGUAGES, NUMBERS, RATE, save_whisper, sound, torch_whisper

from npumatmul.cli.app import app
from npumatmul.cli.transcribing import FORMATS
from npumatmul.llm import Segment, Transcription, load, read_wave
from npumatmul.llm.speech import wave_file
from npumatmul.llm.speech.features import Features, mel_filters
from npumatmul.llm.speech.languages import language_code, language_name
from npumatmul.llm.speech.resampling import resampled
from npumatmul.llm.speech.rules import Rules
from npumatmul.llm.speech.segments import segments_of
from npumatmul.llm.speech.tokens import SpeechTokens
from npumatmul.llm.speech.window import compression_ratio

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_transformers(bins: int) -> None:
    theirs = transformers.WhisperFeatureExtractor(feature_size=bins)
    ours = Features(bins, 3000)
    np.testing.assert_allclose(mel_filters(bins, 201, RATE), theirs.mel_filters, atol=1e-12)
    for samples in (sound(3.21, 1), np.zeros(RATE, np.float32), np.ones(777, np.float32)):
        whole = np.pad(samples, (0, ours.window_samples - len(samples)))
        wanted = theirs(samples, sampling_rate=RATE, return_tensors="np").input_features[0].T
        np.testing.assert_allclose(ours(whole), wanted, atol=2e-5)  # theirs are in float32 throughout
    longer = sound(31.4, 2)
    wanted = theirs(longer, sampling_rate=RATE, return_tensors="np", truncation=False, padding="longest")
    made = ours(longer)
    assert made.shape == (3140, bins)
    np.testing.assert_allclose(made, wanted.input_features[0].T, atol=2e-5)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000, 16001])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int) -> None:
    pitch = 0.45 * min(rate, RATE)  # close to where the band ends
    x = np.sin(2 * np.pi * pitch * np.arange(rate // 2) / rate).astype(np.float32)
    y = resampled(x, rate, RATE)
    assert y.dtype == np.float32
    assert len(y) == -(-len(x) * RATE // rate)
    wanted = np.sin(2 * np.pi * pitch * np.arange(len(y)) / RATE)
    inside = slice(400, -400)
    assert np.abs(y - wanted)[inside].max() < 2e-3
    if rate > 2 * 8800:  # what the new rate has no room for is gone
        high = np.sin(2 * np.pi * 8800 * np.arange(rate // 2) / rate).astype(np.float32)
        assert np.abs(resampled(high, rate, RATE)[inside]).max() < 1e-3


@given(n=st.integers(0, 50), rates=st.tuples(st.sampled_from([8000, 16000, 44100]), st.sampled_from([8000, 16000])))
def test_few_samples_and_constants_at_other_rates(n: int, rates: tuple[int, int]) -> None:
    y = resampled(np.ones(n, np.float32), *rates)
    assert len(y) == -(-n * rates[1] // rates[0])
    assert np.isfinite(y).all()
    constant = resampled(np.full(4000, 0.25, np.float32), *rates)
    np.testing.assert_allclose(constant[400:-400], 0.25, atol=1e-6)


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 3)])
def test_wave_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, channels: int) -> None:
    values = np.random.default_rng(width).uniform(-1, 1, (50, channels))
    scale = 2.0 ** (8 * width - 1)
    codes = np.clip(np.round(values * scale), -scale, scale - 1).astype(np.int64)
    stored = codes + 128 if width == 1 else codes
    data = b"".join(int(each).to_bytes(width, "little", signed=width > 1) for each in stored.ravel())
    path = write_wave(tmp_path / "a.wav", data, width, channels, 22050)
    monkeypatch.setattr(wave_file, "_BYTES", 7 * width * channels)
    samples, rate = read_wave(path)
    assert rate == 22050
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, (codes / scale).mean(axis=1), atol=1e-6)


def write_wave(path: Path, data: bytes, width: int = 2, channels: int = 1, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def test_what_is_no_wave_file_is_told_so(tmp_path: Path) -> None:
    whole = write_wave(tmp_path / "a.wav", bytes(200)).read_bytes()
    floats = bytearray(whole)
    floats[20] = 3  # the format's number: floats
    for name, data in {"empty": b"", "text": b"not a wave file", "cut": whole[:30], "floats": bytes(floats)}.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"\([a-z].*ffmpeg -i"):
            read_wave(path)
    with pytest.raises(FileNotFoundError):
        read_wave(tmp_path / "nothing.wav")
    cut = tmp_path / "shorter.wav"
    cut.write_bytes(whole[:-51])  # what is there is read, whole samples of it
    assert len(read_wave(cut)[0]) == 74


def test_headers_of_wave_files_that_lie_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    whole = write_wave(path, bytes(range(200)) * 5).read_bytes()
    rng, sizes = np.random.default_rng(0), (0, 1, 2, 15, 16, 40, 0x7FFFFFFF, 0xFFFFFFFF)
    lying = bytearray(whole)
    lying[22:24], lying[34:36], lying[40:44] = b"\xff\xff", b"\x20\x00", b"\xf0\xff\xff\xff"
    changed = [bytes(lying)]  # 65535 channels of 32 bits, and 4 GB of samples
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(4, 44, 2):
            data[at : at + 4] = int(rng.choice(sizes)).to_bytes(4, "little")
        changed.append(bytes(data))
    read = 0
    for data in changed:
        path.write_bytes(data)
        tracemalloc.start()
        try:
            samples, _ = read_wave(path)
            read += 1
            assert np.abs(samples).max(initial=0) <= 1
        except ValueError as error:
            assert "ffmpeg" in str(error)  # noqa: PT017
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 20e6
    assert 0 < read < len(changed)


TOKENS = SpeechTokens(
    60, start=33, end=32, no_timestamps=36, suppressed=(3, 35), suppressed_first=(32, 5), first_within=4
)


@given(
    written=st.lists(st.one_of(st.integers(0, 31), st.integers(37, 59)), max_size=6),
    seed=st.integers(0, 200),
    bias=st.sampled_from([-3.0, 0.0, 3.0]),
)
def test_rules_of_times_are_those_of_transformers(written: list[int], seed: int, bias: float) -> None:
    config = transformers.GenerationConfig(eos_token_id=32)
    config.no_timestamps_token_id, config.max_initial_timestamp_index = 36, 4
    logits = np.random.default_rng(seed).standard_normal(60).astype(np.float32) * 2
    logits[37:] += bias
    ids = torch.tensor([[33, *written]])
    theirs = torch.from_numpy(logits[None].copy())
    for process in (
        SuppressTokensAtBeginLogitsProcessor([32, 5], begin_index=1),
        SuppressTokensLogitsProcessor([3, 35]),
        WhisperTimeStampLogitsProcessor(config, begin_index=1),
    ):
        theirs = process(ids, theirs)
    wanted = theirs[0].numpy()
    Rules(TOKENS, True).hide(logits, written)
    np.testing.assert_array_equal(logits, wanted)


def test_without_times_only_lists_count() -> None:
    logits = np.zeros(60, np.float32)
    Rules(TOKENS, False).hide(logits, [])
    assert np.flatnonzero(logits == -np.inf).tolist() == [3, 5, 32, 35]
    assert Rules(TOKENS, True)  # makes none of its own
    assert TOKENS.prompt(None, "transcribe", False) == [33, 36]


@pytest.mark.parametrize(
    ("tokens", "cuts", "step"),
    [
        ([], [(0, 100, [])], 200),
        ([1, 2], [(0, 100, [1, 2])], 200),
        ([50, 1, 2], [(0, 100, [50, 1, 2])], 200),  # a beginning without an end
        ([50, 1, 80], [(0, 30, [50, 1, 80])], 200),
        ([55, 1, 60, 60, 2, 70], [(5, 10, [55, 1, 60]), (10, 20, [60, 2, 70])], 200),  # no speech behind it
        ([55, 1, 60, 60, 2], [(5, 10, [55, 1, 60])], 20),  # cut off: heard again
        ([55, 1, 60, 62, 2, 70, 70], [(5, 10, [55, 1, 60]), (12, 20, [62, 2, 70])], 40),
    ],
)
def test_segments_end_at_pairs_of_times(tokens: list[int], cuts: list[Any], step: int) -> None:
    assert segments_of(tokens, 50, 200) == (cuts, step)


@given(tokens=st.lists(st.integers(45, 60), max_size=12))
def test_a_window_always_moves_on(tokens: list[int]) -> None:
    cuts, step = segments_of(tokens, 50, 200)
    assert step >= 1
    whole = [each for cut in cuts for each in cut.tokens]
    assert whole == tokens[: len(whole)]


def test_languages() -> None:
    assert language_code(" German", LANGUAGES) == language_code("<|DE|>", LANGUAGES) == "de"
    assert language_code("cantonese", LANGUAGES) == "yue"
    assert language_name("de") == "german"
    assert language_name("xx") == "xx"
    theirs = transformers.models.whisper.tokenization_whisper.TO_LANGUAGE_CODE
    assert {name: language_code(name, theirs.values()) for name in theirs} == theirs
    with pytest.raises(ValueError, match="it knows de, en, fr, yue"):
        language_code("latin", LANGUAGES)
    assert compression_ratio("") == 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(torch_whisper(0), tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = sound(1.7, 21, 22050)
    return write_wave(tmp_path_factory.mktemp("audio") / "a.wav", (samples * 2**14).astype("<i2").tobytes(), rate=22050)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["transcribe", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_writes_what_the_model_does(folder: Path, audio: Path, tmp_path: Path) -> None:
    options = ("--scheme", "float32", "--language", "de", "--seed", 1)
    found = json.loads(run(folder, audio, *options, "--format", "json"))
    samples, rate = read_wave(audio)
    with load(folder, "float32") as model:
        made = model.transcribe(samples, sampling_rate=rate, language="de", seed=1)
    assert found["text"] == made.text
    assert [each["start"] for each in found["segments"]] == [each.start for each in made.segments]
    assert found["language"] == "de"
    run(folder, audio, *options, "-o", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").splitlines() == [
        line for each in made.segments for line in each.text.strip().splitlines()
    ]


def test_subtitles() -> None:
    figures = (0.0, -0.1, 1.0, 0.0)
    made = Transcription(
        "One. Two --> three.",
        (Segment(0.0, 2.5, " One.", (), *figures), Segment(3661.02, 3662.0, " Two --> three.", (), *figures)),
        "en",
        None,
        3700.0,
    )
    assert FORMATS["srt"](made) == (
        "1\n00:00:00,000 --> 00:00:02,500\nOne.\n\n2\n01:01:01,020 --> 01:01:02,000\nTwo -> three.\n"
    )
    assert FORMATS["vtt"](made).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nOne.\n\n01:01:01.020")
    assert FORMATS["text"](made) == "One.\nTwo --> three.\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--format", "pdf"], "it can be text, json, srt, vtt"),
        (["--scheme", "w3a3"], "--scheme"),
        (["--language", "latin", "--scheme", "float32"], "does not know"),
        (["-o", "/nowhere/a.txt"], "/nowhere"),
    ],
)
def test_mistakes_of_the_command(folder: Path, audio: Path, options: list[str], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        run(folder, audio, *options)
    assert NUMBERS["<|endoftext|>"] == 256
