"""Folders of encoders whose settings were changed at random: an error of ours, or a model that computes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from encoder_zoo import VARIANTS, sentence_folder, torch_model, write_folder

import npumatmul.llm
from npumatmul.errors import ModelError

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutations import changed_json

FILES = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json",
         "config_sentence_transformers.json")  # fmt: skip
TEXTS = ["the cat", "rain, rain"]


@pytest.mark.parametrize("name", ["bert-scores", "xlm-roberta-plain", "modernbert-scores"])
def test_changed_settings(tmp_path: Path, name: str) -> None:
    variant = next(each for each in VARIANTS if each.name == name)
    path = write_folder(tmp_path / "whole", variant, torch_model(variant))
    sentence_folder(path, pooling="mean", normalize=True, longest=20)
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 30, "unk_token": "[UNK]"}))
    prompts = {"prompts": {"query": "a "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with npumatmul.llm.load(path, "float32") as model:
        assert np.isfinite(model.embed(TEXTS)).all()
    refused = 0
    for file in FILES:
        changed = tmp_path / "changed"
        whole = json.loads((path / file).read_text())
        for content in changed_json(whole, 120 if file == "config.json" else 40, seed=len(file)):
            shutil.copytree(path, changed, dirs_exist_ok=True)
            (changed / file).write_text(json.dumps(content))
            try:
                with npumatmul.llm.load(changed, "float32") as model:
                    assert model.embed(TEXTS, pooling="mean").shape == (2, 32)
                    if variant.kind != "Model":
                        model.rerank("a", TEXTS)
            except ModelError:
                refused += 1
    assert refused > 60
