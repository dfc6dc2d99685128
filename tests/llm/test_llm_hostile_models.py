"""Folders of models with states, experts and rows from outside whose settings were changed, and rows that are none."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import VARIANTS, torch_model, write_folder

from npumatmul.errors import ModelError
from npumatmul.llm import Embedded
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.registry import config_of
from npumatmul.llm.models.weights import load_decoder
from npumatmul.nn.product import FloatProduct

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutations import changed_json

NAMES = ("qwen3_next-dense-layers", "lfm2_moe-scaled", "gpt_oss-usual", "gemma4_text-small")
#: One that heads of a model could nearly have, and one that asks for gigabytes wherever it stands.
SIZES = (1 << 16, 1 << 24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in NAMES:
        variant = next(each for each in VARIANTS if each.name == name)
        made[name] = write_folder(tmp_path_factory.mktemp(name), variant, torch_model(variant))
    return made


def load(path: Path) -> Decoder:
    with open_source(path) as source:
        config_of(source)
        return load_decoder(source, lambda layer: FloatProduct(layer.weight(source)), context_length=16)


def try_out(path: Path, config: dict[str, Any]) -> str | None:
    """Load a folder with another configuration: what is said of it, or None where it computes."""
    whole = (path / "config.json").read_text()
    (path / "config.json").write_text(json.dumps(config))
    try:
        model = load(path)
        ids = [1, 2, 3][: model.config.context_length]
        with np.errstate(all="ignore"):
            assert model.forward(ids, model.new_cache(len(ids))).shape == (model.config.vocab_size,)
    except ModelError as error:
        return str(error)
    finally:
        (path / "config.json").write_text(whole)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_held_against_the_file_before_memory_is_taken(folders: dict[str, Path], name: str) -> None:
    whole = json.loads((folders[name] / "config.json").read_text())
    for key, value in [(key, value) for key, value in whole.items() if type(value) is int]:
        for size in SIZES:
            tracemalloc.start()
            try:
                try_out(folders[name], {**whole, key: size})
                assert tracemalloc.get_traced_memory()[1] < 60e6, (key, value, size)
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize("name", NAMES)
def test_changed_settings(folders: dict[str, Path], name: str) -> None:
    whole = json.loads((folders[name] / "config.json").read_text())
    said = [try_out(folders[name], changed) for changed in changed_json(whole, 20, seed=len(name))]
    refusals = [each for each in said if each is not None]
    assert len(refusals) > 4
    assert all(str(folders[name]) in each and len(each) < 1500 for each in refusals)


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        (np.zeros((2, 4), complex), {}, "rows"),
        (np.ma.masked_array(np.zeros((2, 4)), mask=True), {}, "masked"),
        ([[object()]], {}, "rows"),
        ([["a"]], {}, "rows"),
        ([[1.0], [1.0, 2.0]], {}, "rows"),
        (np.full((2, 4), 1e300), {}, "infinity"),
        (np.full((2, 4), -1e20, np.float32), {}, "beyond"),
        (np.zeros((1, 4)), {"grid": (True, True, True)}, "grid"),
        (np.zeros((1, 4)), {"grid": 1}, "grid"),
        (np.zeros((1, 4)), {"deep": None}, "deep"),
    ],
)
def test_rows_that_would_become_others_are_refused(rows: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Embedded: .*{problem}"):
        Embedded(rows, **options)


def test_copies_cannot_be_written_to_behind_their_numbers() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    given = Embedded(rows, (1, 2, 3), deep=[-rows], interval=0.5)
    for other in (copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert other.numbers == given.numbers
        assert other.grid == given.grid
        for array in (other.rows, *other.deep):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 5
        np.testing.assert_array_equal(other.rows, rows)
