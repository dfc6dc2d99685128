"""Whisper against transformers, with small random weights: states, logits, tokens, times, languages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whisper_zoo import LANGUAGES, NUMBERS, RATE, extractor, save_whisper, sound, torch_whisper

import npumatmul as npu
from npumatmul.errors import ClosedError, ModelError, NotFiniteError
from npumatmul.llm import Policy, SpeechModel, load
from npumatmul.llm.models.whisper import WhisperConfig, speech_layer_names
from npumatmul.nn import PackedProduct

sys.path.insert(0, str(Path(__file__).parents[1]))
from interrupts import interrupted_at

FIRST_TIME = NUMBERS["<|0.00|>"]
#: What makes one window after another as transformers does by default: no thresholds, nothing said of before.
PLAIN: dict[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "condition_on_previous_text": False,
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Models of transformers with their folders."""
    made = {
        "plain": torch_whisper(0),
        "other": torch_whisper(3),
        "wide": torch_whisper(1, num_mel_bins=128, scale_embedding=True, encoder_layers=3, decoder_layers=1),
        "english": torch_whisper(2, multilingual=False, activation_function="silu"),
    }
    return {name: (model, save_whisper(model, tmp_path_factory.mktemp(name))) for name, model in made.items()}


@pytest.fixture(scope="module")
def plain(folders: dict[str, tuple[Any, Path]]) -> Iterator[SpeechModel]:
    with load(folders["plain"][1], "float32") as model:
        assert isinstance(model, SpeechModel)
        yield model


def frames_of(model: Any, samples: np.ndarray) -> torch.Tensor:
    """What transformers makes of a recording."""
    how = {"truncation": False, "padding": "longest"} if len(samples) > RATE else {}
    return extractor(model)(samples, sampling_rate=RATE, return_tensors="pt", **how).input_features


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("scheme", ["float32", "w16a16", "w8a8"])
@pytest.mark.parametrize("name", ["plain", "wide", "english"])
def test_logits_are_those_of_transformers(folders: dict[str, tuple[Any, Path]], name: str, scheme: str) -> None:
    theirs, folder = folders[name]
    frames = frames_of(theirs, sound(0.9, 5))
    ids = [NUMBERS["<|startoftranscript|>"], NUMBERS["<|de|>"], *range(40, 50)]
    with torch.no_grad():
        states = theirs.model.encoder(frames).last_hidden_state[0].numpy()
        wanted = theirs(frames, decoder_input_ids=torch.tensor([ids])).logits[0].numpy()
    with load(folder, scheme, device=None if scheme == "float32" else "sim:rk3588", cache=False) as model:
        whisper = model._whisper  # type: ignore[attr-defined]
        window = np.ascontiguousarray(frames[0].numpy().T)
        heard_states, heard = whisper.states(window), whisper.hear(window)
        together = whisper.logits(ids, heard, whisper.new_cache())
        cache = whisper.new_cache()
        steps = np.concatenate([whisper.logits([each], heard, cache) for each in ids])
    if scheme == "float32":
        np.testing.assert_allclose(heard_states, states, atol=2e-4)
        np.testing.assert_allclose(together, wanted, atol=1e-3)
        np.testing.assert_allclose(steps, wanted, atol=1e-3)
    least = 0.98 if scheme == "w8a8" else 0.9999
    for made, true in ((heard_states, states), (together, wanted), (steps, wanted)):
        assert cosines(made, true).min() >= least


def generated(model: Any, samples: np.ndarray, **options: Any) -> list[dict[str, Any]]:
    """Segments that transformers makes of a recording."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = model.generate(frames_of(model, samples), return_timestamps=True, return_segments=True, **options)
    return made["segments"][0]


def same_segments(ours: Any, theirs: list[dict[str, Any]], model: SpeechModel) -> None:
    """Tokens and times; those without words or a length are left out, and of two times at the end the second one."""
    kept = []
    for each in theirs:
        tokens = each["tokens"].tolist()
        if len(tokens) > 2 and min(tokens[-2:]) >= FIRST_TIME:
            tokens = tokens[:-1]
        text = model.tokenizer.decode(i for i in tokens if i < FIRST_TIME)
        if text.strip() and each["end"] > each["start"]:
            kept.append((float(each["start"]), float(each["end"]), tokens, text))
    assert [list(each.tokens) for each in ours] == [tokens for _, _, tokens, _ in kept]
    assert [each.text for each in ours] == [text for *_, text in kept]
    np.testing.assert_allclose([[s.start, s.end] for s in ours], [each[:2] for each in kept], atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "other", "wide"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_long_recordings_are_cut_where_transformers_cuts_them(
    folders: dict[str, tuple[Any, Path]], name: str, task: str
) -> None:
    theirs, folder = folders[name]
    samples = sound(4.73, 11)
    with load(folder, "float32") as model:
        assert isinstance(model, SpeechModel)
        made = model.transcribe(samples, sampling_rate=RATE, task=task, **PLAIN)
        same_segments(made.segments, generated(theirs, samples, task=task), model)
        found = theirs.detect_language(frames_of(theirs, samples), num_segment_frames=100)
        assert made.language == LANGUAGES[int(found[0]) - NUMBERS["<|en|>"]]
        assert made.duration == pytest.approx(4.73)
        assert model.detect_language(samples[:RATE], sampling_rate=RATE)[0] in LANGUAGES


@pytest.mark.parametrize("name", ["plain", "other"])
def test_what_was_said_before_is_told_as_transformers_tells_it(folders: dict[str, tuple[Any, Path]], name: str) -> None:
    theirs, folder = folders[name]
    samples = sound(5.2, 12)
    options = {**PLAIN, "condition_on_previous_text": True}
    with load(folder, "float32") as model:
        made = model.transcribe(samples, sampling_rate=RATE, language="German", **options)
        wanted = generated(theirs, samples, language="de", condition_on_prev_tokens=True)
        same_segments(made.segments, wanted, model)  # type: ignore[arg-type]
        alone = model.transcribe(samples, sampling_rate=RATE, language="de", **PLAIN)
    assert made.language == "de"
    assert made.segments != alone.segments


def test_a_prompt_is_told_as_what_was_said_before(folders: dict[str, tuple[Any, Path]], plain: SpeechModel) -> None:
    theirs, _ = folders["plain"]
    samples = sound(1.0, 13)
    ids = torch.tensor([NUMBERS["<|startofprev|>"], *plain.tokenizer.encode(" Ada")])
    wanted = generated(theirs, samples, language="en", prompt_ids=ids, condition_on_prev_tokens=True)
    options = {**PLAIN, "condition_on_previous_text": True}
    made = plain.transcribe(samples, sampling_rate=RATE, language="en", prompt="Ada", **options)
    same_segments(made.segments, wanted, plain)
    other = plain.transcribe(samples, sampling_rate=RATE, language="en", **options)
    assert made.segments != other.segments


def test_english_models_are_told_no_language(folders: dict[str, tuple[Any, Path]]) -> None:
    theirs, folder = folders["english"]
    samples = sound(2.6, 14)
    with load(folder, "float32") as model:
        made = model.transcribe(samples, sampling_rate=RATE, **PLAIN)
        same_segments(made.segments, generated(theirs, samples), model)  # type: ignore[arg-type]
        assert made.language == "en"
        with pytest.raises(ModelError, match="knows English only"):
            model.detect_language(samples, sampling_rate=RATE)
        with pytest.raises(ValueError, match="knows 'transcribe'"):
            model.transcribe(samples, sampling_rate=RATE, task="translate")
        with pytest.raises(ValueError, match="it knows en"):
            model.transcribe(samples, sampling_rate=RATE, language="de")


def test_without_times_a_window_is_a_segment(folders: dict[str, tuple[Any, Path]], plain: SpeechModel) -> None:
    theirs, _ = folders["plain"]
    samples = sound(0.7, 15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.generate(frames_of(theirs, samples), language="fr", return_timestamps=False)[0].tolist()
    made = plain.transcribe(samples, sampling_rate=RATE, language="fr", timestamps=False, **PLAIN)
    (only,) = made.segments
    assert list(only.tokens) == [each for each in wanted if each != NUMBERS["<|endoftext|>"]]
    assert (only.start, only.end) == (0.0, 0.7)
    assert made.text == only.text.strip()
    longer = plain.transcribe(sound(2.2, 15), sampling_rate=RATE, language="fr", timestamps=False, **PLAIN)
    assert [each.start for each in longer.segments] == [0.0, 1.0, 2.0]


def test_short_recordings_end_where_their_samples_do(folders: dict[str, tuple[Any, Path]], plain: SpeechModel) -> None:
    theirs, _ = folders["plain"]
    samples = sound(0.5, 16)
    wanted = generated(theirs, samples, language="en")
    made = plain.transcribe(samples, sampling_rate=RATE, language="en", **PLAIN)
    assert 0 < len(made.segments) <= len(wanted)  # which goes on to write about the silence behind them
    same_segments(made.segments, wanted[: len(made.segments)], plain)


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_products_run_in_the_scheme(
    folders: dict[str, tuple[Any, Path]], scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NPUMATMUL_CACHE", str(tmp_path))
    samples = sound(1.3, 17)
    runs = []
    for _ in range(2):  # the second time packed weights are read from the cache
        with load(folders["plain"][1], scheme, device="sim:rk3588", policy={"head": "w16a16"}) as model:
            products = model._products()
            assert len(products) == 2 + 2 * 4 + 2 * 7 + 1
            schemes = {each.weight.scheme.name for each in products[:-1]}  # type: ignore[attr-defined]
            assert schemes == {scheme}
            assert isinstance(products[-1], PackedProduct)
            runs.append(model.transcribe(samples, sampling_rate=RATE, **PLAIN))
    assert runs[0] == runs[1]
    if scheme == "w16a16":
        with load(folders["plain"][1], "float32") as model:
            exact = model.transcribe(samples, sampling_rate=RATE, **PLAIN)
        assert [each.tokens for each in runs[0].segments] == [each.tokens for each in exact.segments]


def test_a_policy_places_layers(folders: dict[str, tuple[Any, Path]]) -> None:
    samples = sound(0.8, 17)
    made = {}
    for name, policy in {
        "npu": None,
        "cpu": Policy(npu_layers=0),
        "both": Policy(npu_layers=["encoder.*"], schemes={"head": "w16a16"}, prefill="npu", decode="npu"),
    }.items():
        with load(folders["plain"][1], "w8a8", device="sim:rk3588", policy=policy, cache=False) as model:
            made[name] = model.transcribe(samples, sampling_rate=RATE, **PLAIN)
            if policy is not None:
                assert model.placement is not None
                memory = {each.name: each.memory for each in model.placement}
                assert list(memory) == speech_layer_names(model._whisper.config)  # type: ignore[attr-defined]
                assert set(memory.values()) == ({"host"} if name == "cpu" else {"host", "npu"})
                assert memory["encoder.conv1"] == ("host" if name == "cpu" else "npu")
                assert memory["head"] == "host"
    assert made["cpu"] == made["npu"]  # the same tiles, whoever multiplies
    names = speech_layer_names(WhisperConfig(80, 8, 2, 2, 8, 2, 2, 8, 8, context_length=8))
    assert Policy(npu_layers=1).wanted(names) == [each for each in names if each.startswith("decoder.blk.1.")]
    assert Policy(npu_layers=5).wanted(names) == names
    for scheme in ("float32", "w8a8"):
        with pytest.raises(ValueError, match="layers are a part of a decoder"):
            load(folders["plain"][1], scheme, device="sim:rk3588", policy=Policy(layers=(0, 1)))


def test_what_is_not_believed_is_written_again(plain: SpeechModel) -> None:
    samples = sound(1.0, 18)

    def segments(**options: Any) -> Any:
        return plain.transcribe(
            samples,
            sampling_rate=RATE,
            language="en",
            **{**PLAIN, "temperature": (0.0, 0.4, 0.8), "seed": 1, **options},
        ).segments

    sure = segments()
    assert {each.temperature for each in sure} == {0.0}
    logprob, ratio = sure[0].average_logprob, sure[0].compression_ratio
    assert segments(logprob_threshold=logprob - 0.01)[0].temperature == 0.0
    assert {each.temperature for each in segments(logprob_threshold=0.0)} == {0.8}  # never believed: the last is taken
    first = segments(temperature=(0.0, 0.4), compression_ratio_threshold=ratio - 0.01)
    assert first[0].temperature == 0.4 or first[0].compression_ratio <= ratio
    assert segments(logprob_threshold=0.0) == segments(logprob_threshold=0.0)  # by the seed
    silence = sure[0].no_speech_probability
    assert 0 < silence < 1
    left_out = segments(no_speech_threshold=silence / 2, logprob_threshold=0.0)
    assert sum(each.start < 0.5 for each in left_out) == 0
    assert segments(no_speech_threshold=silence / 2, logprob_threshold=-100.0) == sure  # tokens that are believed stay


def test_threads_take_turns(plain: SpeechModel) -> None:
    recordings = [sound(1.4, seed) for seed in (31, 32, 33)]
    alone = [plain.transcribe(each, sampling_rate=RATE, **PLAIN) for each in recordings]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda each: plain.transcribe(each, sampling_rate=RATE, **PLAIN), recordings))
    assert together == alone


def test_progress_segments_and_limits(plain: SpeechModel) -> None:
    samples = sound(2.5, 19)
    done: list[tuple[float, float]] = []
    found: list[Any] = []
    made = plain.transcribe(
        samples, sampling_rate=RATE, progress=lambda a, b: done.append((a, b)), heard=found.append, **PLAIN
    )
    assert tuple(found) == made.segments
    assert done == sorted(done)
    assert done[-1] == (2.5, 2.5)
    few = plain.transcribe(samples, sampling_rate=RATE, max_tokens=3, **PLAIN)
    assert max(len(each.tokens) for each in few.segments) <= 3
    halves = (samples * 2**15).astype(np.int16)
    whole = plain.transcribe(halves.astype(np.float32) / 2**15, sampling_rate=RATE, **PLAIN)
    assert plain.transcribe(halves, sampling_rate=RATE, **PLAIN) == whole


def test_mistakes_are_explained(plain: SpeechModel, folders: dict[str, tuple[Any, Path]]) -> None:
    x = sound(0.3)
    for match, kind, options in (
        ("sampling_rate is a whole number", TypeError, {"sampling_rate": 16000.0}),
        ("from 1000 to", ValueError, {"sampling_rate": 16}),
        ("perhaps 'german' is meant", ValueError, {"language": "germann"}),
        ("language is a code or a name", TypeError, {"language": 3}),
        ("task is 'sing'", ValueError, {"task": "sing"}),
        ("timestamps is True or False", TypeError, {"timestamps": "word"}),
        ("temperature is -1", ValueError, {"temperature": -1.0}),
        ("temperature is empty", ValueError, {"temperature": ()}),
        ("no_speech_threshold is 'x'", ValueError, {"no_speech_threshold": "x"}),
        ("max_tokens", ValueError, {"max_tokens": 0}),
        ("seed is -1", ValueError, {"seed": -1}),
        ("seed is 'a'", ValueError, {"seed": "a"}),
        ("prompt is what was said before as a string", TypeError, {"prompt": 3}),
        ("heard is called", TypeError, {"heard": 3}),
        ("progress is called", TypeError, {"progress": 3}),
    ):
        with pytest.raises(kind, match=match):
            plain.transcribe(x, **{"sampling_rate": RATE, **options})
    for match, kind, samples in (
        ("one channel", ValueError, np.zeros((2, 9), np.float32)),
        ("no samples", ValueError, np.zeros(0, np.float32)),
        ("not complex", TypeError, np.zeros(9, complex)),
        ("not int64", TypeError, np.zeros(9, np.int64)),
        ("masked", TypeError, np.ma.masked_array(np.zeros(9, np.float32), mask=True)),
        ("sample 1 is not finite", ValueError, np.array([0, np.nan])),
        ("sample 0 is not finite", ValueError, np.array([1e300])),
        ("32767 in size: divide", ValueError, np.array([0, 32767], np.float32)),
        ("1e\\+30 in size", ValueError, np.array([-1e30, 1])),
    ):
        with pytest.raises(kind, match=match):
            plain.transcribe(samples, sampling_rate=RATE)
    names = "generate generate_batch chat encode_chat session load_session sequence logits embed rerank"
    for call in (getattr(plain, name) for name in names.split()):
        with pytest.raises(ModelError, match="it has transcribe"):
            call("text")
    with pytest.raises(ValueError, match="context is for models of texts"):
        load(folders["plain"][1], "float32", context=8)
    with pytest.raises(ValueError, match=r"no layer of the model is called so; .* encoder\.conv1"):
        load(folders["plain"][1], "float32", policy={"blk.9.qkv": "w8a8"}, device="sim:rk3588")
    assert plain.weight_macs(2) == 2 * plain.weight_macs(1) > 0


def test_logits_that_are_no_numbers_end_no_text_in_silence(
    folders: dict[str, tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(folders["plain"][1], "float32") as model:
        assert isinstance(model, SpeechModel)
        head = model._whisper.head
        for value in (np.nan, np.inf):
            monkeypatch.setattr(model._whisper, "head", lambda x, value=value: np.where(head(x) > 0, value, head(x)))
            with pytest.raises(NotFiniteError, match="logits of a window"):
                model.transcribe(sound(0.3), sampling_rate=RATE, language="en", temperature=0)


def test_a_recording_that_was_interrupted_can_be_heard_again(plain: SpeechModel) -> None:
    x = sound(0.3)
    options: dict[str, Any] = {"sampling_rate": RATE, "language": "en", "temperature": 0.0, "max_tokens": 3}
    whole = plain.transcribe(x, **options)
    assert not interrupted_at(1 << 40, lambda: plain.transcribe(x, **options))
    for position in (0, 20, 90, 300, 700, 1200):
        interrupted_at(position, lambda: plain.transcribe(x, **options))
        assert plain.transcribe(x, **options) == whole


def test_a_closed_model_says_so(folders: dict[str, tuple[Any, Path]]) -> None:
    with load(folders["plain"][1], device="sim:rk3588", cache=False) as model:
        pass
    with pytest.raises(ClosedError):
        model.transcribe(sound(0.2), sampling_rate=RATE)
    assert npu.Device is not None
