"""Rows from outside in prompts: pictures of Qwen-VL against transformers' whole models, positions, caches, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llm_models import write_tokenizer
from model_zoo import TOKENS, VARIANTS, VOCAB, torch_model, write_folder, write_gguf
from numpy.typing import NDArray

from npumatmul import llm, nn
from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.embedded import Embedded, EmbeddedRows, filled
from npumatmul.llm.models.together import forward_together

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
VARIANT = {kind: next(each for each in VARIANTS if each.model_type == kind) for kind in KINDS}
PICTURE, VIDEO, START, END = TOKENS.values()
RNG = np.random.default_rng(11)
TEXT = [int(i) for i in RNG.integers(0, 250, 40)]
#: Patches of two pictures and of a video of two frames (of two pictures each), before 2 x 2 of them are merged.
GRIDS, FRAMES = [(1, 4, 6), (1, 8, 4)], (2, 4, 4)
MOST = 5e-6


@dataclass
class Case:
    """A whole model of transformers, its folder, and a prompt with pictures."""

    reference: Any
    folder: Path
    prompt: list[int]
    inputs: dict[str, Any]
    pictures: list[Embedded]
    logits: NDArray[np.float32]


def pads(token: int, *grids: tuple[int, int, int]) -> list[int]:
    found: list[int] = []
    for frames, height, width in grids:
        found += [START, *[token] * (frames * height * width // 4), END]
    return found


def pictures_of(kind: str, reference: Any, inputs: dict[str, Any]) -> list[Embedded]:
    """What transformers' own vision tower makes of pixels, with the grids after patches were merged."""
    found = []
    for what, values in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grids = inputs.get(f"{what}_grid_thw")
        if grids is None:
            continue
        with torch.no_grad():
            seen = getattr(reference.model, f"get_{what}_features")(inputs[values], grids)
        deep = [torch.cat(each).numpy() for each in getattr(seen, "deepstack_features", None) or []]
        first = 0
        for rows, (frames, height, width) in zip(seen.pooler_output, grids.tolist(), strict=True):
            parts = frames if kind == "qwen3_vl" and what == "video" else 1  # its frames stand apart in prompts
            for part in np.split(rows.numpy(), parts):
                own = [each[first : first + len(part)] for each in deep]
                grid = (frames // parts, height // 2, width // 2)
                interval = 4.0 if kind == "qwen2_5_vl" and what == "video" else 1.0
                found.append(Embedded(part, grid, deep=own, interval=interval))
                first += len(part)
    return found


def pixels(*grids: tuple[int, int, int]) -> torch.Tensor:
    count = sum(frames * height * width for frames, height, width in grids)
    return torch.from_numpy(RNG.standard_normal((count, 3 * 2 * 4 * 4), np.float32))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(kind: str) -> Case:
        if kind not in made:
            reference = torch_model(VARIANT[kind])
            folder = write_folder(tmp_path_factory.mktemp(kind), VARIANT[kind], reference)
            write_tokenizer(folder)
            frames = [(1, *FRAMES[1:])] * FRAMES[0] if kind == "qwen3_vl" else [FRAMES]
            prompt = TEXT[:7] + pads(PICTURE, GRIDS[0]) + TEXT[7:9] + pads(VIDEO, *frames) + pads(PICTURE, GRIDS[1])
            prompt += TEXT[9:20]
            inputs = {
                "input_ids": torch.tensor([prompt]),
                "mm_token_type_ids": torch.tensor([[{PICTURE: 1, VIDEO: 2}.get(each, 0) for each in prompt]]),
                "pixel_values": pixels(*GRIDS),
                "image_grid_thw": torch.tensor(GRIDS),
                "pixel_values_videos": pixels(FRAMES),
                "video_grid_thw": torch.tensor([FRAMES]),
            }
            first, *others = pictures_of(kind, reference, inputs)
            pictures = [first, *others[1:], others[0]]  # in the order of the prompt
            with torch.no_grad():
                logits = reference(**inputs).logits[0].numpy()
            made[kind] = Case(reference, folder, prompt, inputs, pictures, logits)
        return made[kind]

    return make


def shortened(prompt: list[int]) -> list[int]:
    """The prompt as templates write it: one token for each picture."""
    return [each for before, each in zip([-1, *prompt], prompt, strict=False) if each != before or each < 250]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model(case: Callable[[str], Case], kind: str, caplog: Any) -> None:
    given = case(kind)
    with caplog.at_level(logging.INFO), llm.load(given.folder, "float32") as model:
        assert "tensors are not read (visual): the language model alone is computed" in caplog.text
        bound = MOST * float(np.abs(given.logits).max())
        got = model.logits(given.prompt, given.pictures)
        np.testing.assert_allclose(got, given.logits, rtol=0, atol=bound)
        np.testing.assert_array_equal(model.logits(shortened(given.prompt), given.pictures), got)
        starts = [i for i, (a, b) in enumerate(zip([-1, *given.prompt], given.prompt, strict=False)) if b != a]
        starts = [i for i in starts if given.prompt[i] in (PICTURE, VIDEO)]
        at_places = dict(zip(starts, given.pictures, strict=True))
        np.testing.assert_array_equal(model.logits(given.prompt, at_places), got)
        other = model.logits(given.prompt, [Embedded(each.rows, deep=each.deep) for each in given.pictures])
        assert np.abs(other - got).max() > 1e3 * bound, "positions matter"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [(1,) * 9, (3, 20, 5), (13, 1, 30)])
def test_prompts_in_parts_are_the_same(case: Callable[[str], Case], kind: str, parts: tuple[int, ...]) -> None:
    """Cut anywhere, within pictures, too; and gone on with, token by token."""
    given = case(kind)
    with llm.load(given.folder, "float32") as loaded:
        model = loaded._model
        prompt = filled(given.prompt, given.pictures, model.config)
        cache = model.new_cache()
        rows = []
        first = 0
        for count in (*parts, len(prompt)):
            if first < len(prompt):
                part = prompt[first : first + count]
                rows.append(model.forward(part, cache, all_logits=True, embeddings=prompt.rows))
                first += len(part)
        bound = MOST * float(np.abs(given.logits).max())
        np.testing.assert_allclose(np.concatenate(rows), given.logits, rtol=0, atol=bound)
        for cut in (len(prompt) - 2, 20, 12, 8, 3):
            assert cache.truncate(cut) == cut
            again = model.forward(prompt[cut:], cache, all_logits=True, embeddings=prompt.rows)
            np.testing.assert_allclose(again, given.logits[cut:], rtol=0, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_generated_tokens_are_those_of_the_whole_model(case: Callable[[str], Case], kind: str) -> None:
    given = case(kind)
    with torch.no_grad():
        expected = given.reference.generate(**given.inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    with llm.load(given.folder, "float32") as model:
        for _ in range(2):  # the second time from the cache that was kept
            got = model.generate(given.prompt, embeddings=given.pictures, max_tokens=12, stop_ids=[])
            assert [piece.token for piece in got] == expected[0, len(given.prompt) :].tolist()
        assert got.stats.cached_tokens == len(given.prompt) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_of_get_rope_index(case: Callable[[str], Case], kind: str) -> None:
    given = case(kind)
    inputs = {name: value for name, value in given.inputs.items() if not name.startswith("pixel")}
    expected, delta = given.reference.model.get_rope_index(**inputs)
    with llm.load(given.folder, "float32") as loaded:
        prompt = filled(given.prompt, given.pictures, loaded._model.config)
        cache = loaded._model.new_cache()
        placing = prompt.rows.placing(np.array(prompt), cache)
        assert placing is not None
        assert placing.positions is not None
        np.testing.assert_array_equal(placing.positions, expected[:, 0].numpy())
        loaded._model.forward(prompt, cache, embeddings=prompt.rows)
        assert cache.shift == int(delta)


def test_products_on_the_npu_keep_the_direction_of_logits(case: Callable[[str], Case]) -> None:
    given = case("qwen3_vl")
    for scheme, least in (("w16a16", 0.9999), ("w8a8", 0.99)):
        with llm.load(given.folder, scheme, device="sim:rk3588", cache=False) as model:
            got = model.logits(given.prompt, given.pictures)
        lengths = np.linalg.norm(got, axis=-1) * np.linalg.norm(given.logits, axis=-1)
        assert ((got * given.logits).sum(axis=-1) / lengths).min() > least


def test_a_cache_knows_pictures_by_their_contents(case: Callable[[str], Case], tmp_path: Path) -> None:
    """Prompts with the same tokens and other pictures share what is before these, and nothing behind it."""
    given = case("qwen2_vl")
    changed = given.pictures[0].rows.copy()
    changed[-1, -1] += 1e-3
    others = [Embedded(changed, given.pictures[0].grid), *given.pictures[1:]]
    with llm.load(given.folder, "float32") as model:
        fresh = [piece.token for piece in model.generate(given.prompt, embeddings=others, max_tokens=3, stop_ids=[])]
        model.prefixes.clear()
        list(model.generate(given.prompt, embeddings=given.pictures, max_tokens=3, stop_ids=[]))
        again = model.generate(given.prompt, embeddings=others, max_tokens=3, stop_ids=[])
        assert [piece.token for piece in again] == fresh
        assert again.stats.cached_tokens == 8, "up to the picture"
        text = [5 if each in (PICTURE, VIDEO) else each for each in given.prompt]
        without = model.generate(text, max_tokens=1, stop_ids=[])
        list(without)
        assert without.stats.cached_tokens == 8
        prompt = filled(given.prompt, given.pictures, model._model.config)
        cache = model._model.new_cache()
        model._model.forward(prompt[:-4], cache, embeddings=prompt.rows)
        cache.save(tmp_path / "cache.safetensors")
        for each in (KVCache.load(tmp_path / "cache.safetensors"), cache.fork()):
            assert (each.shift, each.stretches, each.tokens) == (cache.shift, cache.stretches, prompt[:-4])
            got = model._model.forward(prompt[-4:], each, embeddings=prompt.rows)
            bound = MOST * float(np.abs(given.logits).max())
            np.testing.assert_allclose(got, given.logits[-1], rtol=0, atol=bound)
        for wrong in ("[[1]]", "[[3, true]]", "[[99, 0]]", "[[5, -9]]", "{}", "[[9, 0], [2, 0]]"):
            cache.notes = {}
            cache.stretches = []
            nn_cache = nn.KVCache(1, 1, 4, limit=9)
            nn_cache.update(0, np.zeros((1, 1, 2, 4), np.float32), np.zeros((1, 1, 2, 4), np.float32))
            nn_cache.notes = {"tokens": "[1, -2]", "is_long": "false", "stretches": wrong}
            nn_cache.save(tmp_path / "wrong.safetensors")
            with pytest.raises(UnusableFileError, match="not those of its keys"):
                KVCache.load(tmp_path / "wrong.safetensors")


def test_answers_behind_pictures_go_together(case: Callable[[str], Case]) -> None:
    """Each sequence has positions of its own, which its pictures shifted."""
    given = case("qwen3_vl")
    with llm.load(given.folder, "float32") as model:
        prompt = filled(given.prompt, given.pictures, model._model.config)
        caches = [model._model.new_cache() for _ in range(2)]
        for cache, ids in zip(caches, (prompt, TEXT[:9]), strict=True):
            model._model.forward(ids, cache, embeddings=prompt.rows)
        alone = [model._model.forward([5], cache.fork()) for cache in caches]  # type: ignore[arg-type]
        for got, expected in zip(forward_together(model._model, [[5], [5]], caches, [1, 1]), alone, strict=True):
            np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-4)
        answers = [
            model.generate(given.prompt, embeddings=given.pictures, max_tokens=4, stop_ids=[]),
            model.generate(TEXT[:9], max_tokens=4, stop_ids=[]),
        ]
        steps = [[next(each).token for each in answers] for _ in range(4)]
    with llm.load(given.folder, "float32") as model:
        one = model.generate(given.prompt, embeddings=given.pictures, max_tokens=4, stop_ids=[])
        assert [each.token for each in one] == [each[0] for each in steps]


def test_rows_that_differ_in_anything_have_other_numbers() -> None:
    rows = RNG.standard_normal((4, 8)).astype(np.float32)
    kinds = [
        Embedded(rows),
        Embedded(rows + np.float32(1e-6)),
        Embedded(rows[:2]),
        Embedded(rows, (1, 2, 2)),
        Embedded(rows, (2, 2, 1)),
        Embedded(rows, (2, 2, 1), interval=2.0),
        Embedded(rows, deep=[rows]),
        Embedded(rows, deep=[rows[::-1]]),
    ]
    numbers = [number for each in kinds for number in each.numbers]
    assert len(set(numbers)) == len(numbers) == 30
    assert -(1 << 62) <= min(numbers) <= max(numbers) < 0
    assert Embedded(rows.astype(np.float64)).numbers == kinds[0].numbers
    with pytest.raises(ValueError, match="read-only"):
        kinds[0].rows[0] = 0


def test_rows_of_other_models_have_positions_as_text(tmp_path: Path) -> None:
    """The embeddings of tokens, given from outside, are those tokens; as soft prompts are."""
    variant = VARIANTS[0]
    path = write_gguf(tmp_path / "model.gguf", variant, torch_model(variant))
    with llm.load(path, "float32") as model:
        ids = TEXT[:12]
        expected = model.logits(ids)
        rows = model._model.embed(ids[3:8])
        np.testing.assert_allclose(model.logits(ids, {3: Embedded(rows)}), expected, rtol=0, atol=1e-6)
        answer = model.generate(ids, embeddings={3: Embedded(rows)}, max_tokens=8, stop_ids=[], repetition_penalty=1.3)
        plain = model.generate(ids[:3] + ids[8:], max_tokens=1, stop_ids=[], repetition_penalty=1.3)
        assert len(list(answer)) == 8
        assert len(list(plain)) == 1
        for places, problem in (
            ([Embedded(rows)], "names no token that stands for a picture"),
            ({3: Embedded(rows, (1, 1, 5))}, "for models that tell positions on three axes; llama has one"),
            ({3: Embedded(rows, deep=[rows])}, "1 deep features are given; llama adds 0"),
            ({3: Embedded(rows[:, :-1])}, "rows have 63 values; the model's states have 64"),
            ({9: Embedded(rows)}, "5 rows at 9 are to replace as many tokens; the prompt has 12"),
            ({-1: Embedded(rows)}, "-1 is no place in a prompt of 12 tokens"),
            ({"a": Embedded(rows)}, "no place"),
            ({1: Embedded(rows), 4: Embedded(rows)}, "5 rows at 4 are .* the rows before them end at 6"),
        ):
            with pytest.raises(ValueError, match=problem):
                model.logits(ids, places)  # type: ignore[arg-type]
        for strange, kind in (({3: rows}, "an Embedded is needed"), (3, "not int"), ([None], "is a NoneType")):
            with pytest.raises(TypeError, match=kind):
                model.logits(ids, strange)  # type: ignore[arg-type]
        for token in (-1, VOCAB):
            with pytest.raises(ValueError, match=f"has token {token}"):
                model.logits([token, *ids], {3: Embedded(rows)})
        with pytest.raises(ValueError, match="outside 0 to"):
            model._model.forward([3, -7], model._model.new_cache())
        with pytest.raises(ValueError, match="outside 0 to"):
            model._model.forward([3, -7], model._model.new_cache(), embeddings=EmbeddedRows([], model._model.config))


def test_places_and_pictures_have_to_agree(case: Callable[[str], Case]) -> None:
    given = case("qwen3_vl")
    with llm.load(given.folder, "float32") as model:
        short = shortened(given.prompt)
        with pytest.raises(ValueError, match=r"1 places stand at .* and no picture is left, of 3 pictures"):
            model.logits(short, given.pictures[:-1])
        with pytest.raises(ValueError, match=r"5 are given, and the prompt has places for 4"):
            model.logits(short, [*given.pictures, given.pictures[0]])
        with pytest.raises(ValueError, match=r"6 places stand at 8 for a picture of 4 rows"):
            model.logits(given.prompt, [given.pictures[1], *given.pictures[1:]])
        pair = [PICTURE, PICTURE, 5]  # without anything between them
        both = [given.pictures[0], given.pictures[3]]
        expected = model.logits([PICTURE] * 14 + [5], both)
        np.testing.assert_array_equal(model.logits(pair, both), expected)
        with pytest.raises(ValueError, match="0 deep features are given; qwen3_vl adds 2"):
            model.logits(short, [Embedded(each.rows, each.grid) for each in given.pictures])
        with pytest.raises(llm.ContextFullError, match=r"the prompt has 1\d\d tokens"):
            model.generate(short + TEXT * 3, embeddings=given.pictures)


def test_places_without_rows_are_refused(case: Callable[[str], Case]) -> None:
    given = case("qwen2_vl")
    without = r"embeddings: {} of the prompt's tokens, the first at {}, stand for a picture or a video"
    with llm.load(given.folder, "float32") as model:
        for call in (model.logits, model.generate):
            with pytest.raises(ValueError, match=without.format(2, 1)):
                call([5, PICTURE, VIDEO, 7])
            with pytest.raises(ValueError, match=without.format(1, 0)):
                call([VIDEO, 5, 5], embeddings={1: Embedded(np.zeros((2, 64)))})
        assert model.logits([5, 7]).shape[0] == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((np.zeros(4),), "shape"),
        ((np.zeros((0, 4)),), "shape"),
        (([[float("nan")]],), "NaN"),
        ((np.zeros((4, 2)), (1, 2)), "grid"),
        ((np.zeros((4, 2)), (1, 2, 3)), "has not the 4 rows"),
        ((np.zeros((4, 2)), (0, 2, 2)), "grid"),
        ((np.zeros((4, 2)), (1, 2.0, 2)), "grid"),
    ],
)
def test_rows_that_are_none_are_refused(arguments: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Embedded(*arguments)
    with pytest.raises(ValueError, match=r"deep\[0\] has shape \(1, 2\)"):
        Embedded(np.zeros((2, 2)), deep=[np.zeros((1, 2))])
    for interval in (-1.0, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="interval"):
            Embedded(np.zeros((2, 2)), interval=interval)  # type: ignore[arg-type]


def test_an_interrupted_picture_leaves_the_cache_as_it_was(case: Callable[[str], Case]) -> None:
    given = case("qwen2_5_vl")
    with llm.load(given.folder, "float32") as loaded:
        model: Decoder = loaded._model
        prompt = filled(given.prompt, given.pictures, model.config)
        cache = model.new_cache()
        model.forward(prompt[:3], cache, embeddings=prompt.rows)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.forward(prompt[3:], cache, progress=stop, embeddings=prompt.rows)
        assert (cache.length, cache.shift, cache.stretches) == (3, 0, [])
        got = model.forward(prompt[3:], cache, embeddings=prompt.rows)
        bound = MOST * float(np.abs(given.logits).max())
        np.testing.assert_allclose(got, given.logits[-1], rtol=0, atol=bound)


def test_a_folder_with_parameters_twice_is_refused(case: Callable[[str], Case], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    given = case("qwen3_vl")
    state = load_file(given.folder / "model.safetensors")
    state["model.norm.weight"] = state["model.language_model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((given.folder / "config.json").read_text())
    with pytest.raises(ModelError, match="there twice"):
        llm.load(tmp_path, "float32")
