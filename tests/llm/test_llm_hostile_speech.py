"""Folders of Whispers that are damaged or say something else: an error of ours, or a model that writes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from whisper_zoo import CONTEXT, LANGUAGES, NUMBERS, RATE, VOCAB, save_whisper, sound, torch_whisper

import npumatmul.llm
from npumatmul.errors import ModelError

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutations import changed_json

FILES = {"config.json": 60, "generation_config.json": 60, "preprocessor_config.json": 25}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(torch_whisper(0, encoder_layers=1, decoder_layers=1), tmp_path_factory.mktemp("speech"))


def write_down(path: Path) -> npumatmul.llm.Transcription:
    with npumatmul.llm.load(path, "float32") as model:
        return model.transcribe(sound(0.4), sampling_rate=RATE, max_tokens=2, temperature=0.0)


@pytest.mark.parametrize("file", FILES)
def test_changed_settings(folder: Path, tmp_path: Path, file: str) -> None:
    whole = json.loads((folder / file).read_text())
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    refused = 0
    for content in changed_json(whole, FILES[file], seed=len(file)):
        (changed / file).write_text(json.dumps(content))
        try:
            write_down(changed)
        except ModelError:
            refused += 1
    assert refused > FILES[file] // 5


def changed(folder: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    path = Path(shutil.copytree(folder, tmp_path / "changed"))
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("file", "values", "problem"),
    [
        ("config.json", {"encoder_layers": 0}, "between 1 and"),
        ("config.json", {"encoder_layers": 3000}, "3001 layers, but holds"),
        ("config.json", {"encoder_layers": 2}, "is missing"),
        ("config.json", {"d_model": 1 << 23}, "embed_positions.weight' has shape"),
        ("config.json", {"max_source_positions": 1 << 23}, "'n_samples' is 16000"),
        ("config.json", {"encoder_attention_heads": 5}, "5 heads of the encoder cannot share"),
        ("config.json", {"vocab_size": VOCAB - 1}, "its model 318 tokens"),
        ("config.json", {"num_mel_bins": 81}, "'feature_size' is 80; supported: 81"),
        ("config.json", {"use_weighted_layer_sum": True}, "'use_weighted_layer_sum' is True"),
        ("config.json", {"activation_function": "tanh"}, "'activation_function' is 'tanh'"),
        ("config.json", {"architectures": ["WhisperForAudioClassification"]}, "'architectures' names"),
        ("config.json", {"surprise": 1}, "'surprise' is 1"),
        ("config.json", {"quantization_config": {}}, "weights are quantized"),
        ("config.json", {"tie_word_embeddings": False}, "'proj_out.weight' is missing"),
        ("config.json", {"max_target_positions": 4}, "leaves no room for words"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "'sampling_rate' is 8000; supported: 16000"),
        ("preprocessor_config.json", {"chunk_length": 30}, "'chunk_length' in its preprocessor_config.json is 30"),
        ("preprocessor_config.json", {"dither": 0.5}, "'dither' is 0.5"),
        ("generation_config.json", {"suppress_tokens": [1 << 40]}, "a token of 'suppress_tokens'"),
        ("generation_config.json", {"suppress_tokens": "all"}, "a list of the right kind"),
        ("generation_config.json", {"no_timestamps_token_id": VOCAB - 1}, "none of times behind it"),
        ("generation_config.json", {"eos_token_id": -1}, "'eos_token_id' is -1"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": "x"}}, "'lang_to_id.<|en|>'"),
        ("generation_config.json", {"lang_to_id": {}}, "which languages it knows"),
        ("generation_config.json", {"max_initial_timestamp_index": -5}, "must be 0 or more"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, tmp_path: Path, file: str, values: dict[str, Any], problem: str) -> None:
    path = changed(folder, tmp_path, file, lambda content: content.update(values))
    with pytest.raises(ModelError, match=problem.replace("|", r"\|")):
        write_down(path)


def test_tensors_are_taken_all_and_none_too_many(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "changed"))
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, problem in (
        ("model.encoder.conv1.weight", "'model.encoder.conv1.weight' is missing"),
        ("model.decoder.layers.0.encoder_attn.k_proj.weight", "encoder_attn.k_proj.weight' is missing"),
    ):
        save_file({key: value for key, value in tensors.items() if key != name}, file)
        with pytest.raises(ModelError, match=problem):
            write_down(path)
    save_file({**tensors, "model.encoder.extra": np.zeros(3, np.float32)}, file)
    with pytest.raises(ModelError, match="1 tensors of a kind that is not supported"):
        write_down(path)
    save_file({**tensors, "model.encoder.conv1.weight": np.zeros((3, 3), np.float32)}, file)
    with pytest.raises(ModelError, match=r"config\.json asks for"):
        write_down(path)
    save_file({**tensors, "proj_out.weight": tensors["model.decoder.embed_tokens.weight"]}, file)  # as some have it
    assert write_down(path) == write_down(folder)


def test_what_settings_leave_out_the_vocabulary_tells(folder: Path, tmp_path: Path) -> None:
    left = ("no_timestamps_token_id", "prev_sot_token_id", "lang_to_id", "task_to_id", "eos_token_id")

    def strip(content: dict[str, Any]) -> None:
        for each in left:
            content.pop(each)

    path = changed(folder, tmp_path, "generation_config.json", strip)
    (path / "preprocessor_config.json").unlink()
    with npumatmul.llm.load(path, "float32") as model:
        assert set(model.languages) == set(LANGUAGES)  # type: ignore[attr-defined]
    assert write_down(path) == write_down(folder)
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text())
    config["suppress_tokens"], config["begin_suppress_tokens"] = [NUMBERS["<|nospeech|>"]], None
    (path / "config.json").write_text(json.dumps(config))
    with npumatmul.llm.load(path, "float32") as model:  # so small a vocabulary is one of English
        made = model.transcribe(sound(0.4), sampling_rate=RATE, max_tokens=2)
        assert made.language == "en"
        assert model.context == CONTEXT
    path.joinpath("tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        write_down(path)


def test_configurations_of_older_versions_are_understood(folder: Path, tmp_path: Path) -> None:
    def older(config: dict[str, Any]) -> None:
        for each in ("dtype", "tie_word_embeddings"):
            config.pop(each, None)
        config |= {
            "_name_or_path": "openai/whisper-tiny", "torch_dtype": "float32", "transformers_version": "4.27.0.dev0",
            "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]], "max_length": 448, "num_hidden_layers": 4,
            "begin_suppress_tokens": [220, 50257], "suppress_tokens": [1, 2, 7], "use_cache": True,
        }  # fmt: skip

    path = changed(folder, tmp_path, "config.json", older)
    generation = json.loads((path / "generation_config.json").read_text())
    generation |= {
        "alignment_heads": [[0, 0]],
        "return_timestamps": False,
        "eos_token_id": [generation["eos_token_id"]],
    }
    (path / "generation_config.json").write_text(json.dumps(generation))
    features = json.loads((path / "preprocessor_config.json").read_text())
    features["mel_filters"] = np.zeros((80, 201)).tolist()  # they are made anew
    (path / "preprocessor_config.json").write_text(json.dumps(features))
    assert write_down(path) == write_down(folder)
    both = {"feature_extractor": features, "processor_class": "WhisperProcessor"}
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").write_text(json.dumps(both))
    assert write_down(path) == write_down(folder)
    both["feature_extractor"]["hop_length"] = 80
    (path / "processor_config.json").write_text(json.dumps(both))
    with pytest.raises(ModelError, match="'hop_length' is 80"):
        write_down(path)


def test_other_ways_say_what_takes_it(folder: Path) -> None:
    with pytest.raises(ModelError, match="whisper, turns speech into text: load and npumatmul transcribe take it"):
        npumatmul.llm.load_model(folder, pack=npumatmul.llm.numpy_pack)
    with npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32") as model:
        for call in (model.transcribe, model.detect_language):
            with pytest.raises(ModelError, match="hears nothing"):
                call(sound(0.1), sampling_rate=RATE)
