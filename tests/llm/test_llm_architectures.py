"""Every architecture against transformers, on small random models: folders, GGUF files, prompts and single tokens."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_zoo import VARIANTS, VOCAB, Variant, language_state, prefill_logits, torch_model, write_folder, write_gguf
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from npumatmul import nn
from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.llm import KVCache, npu_pack, numpy_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.registry import ARCHITECTURES, MODEL_TYPES, config_from
from npumatmul.llm.models.taps import TappedLinear
from npumatmul.llm.models.weights import load_decoder

IDS = [int(i) for i in np.random.default_rng(0).integers(0, VOCAB, 40)]
PROMPT = 20
RELATIVE = 5e-6  # of the largest logit; sums of a hundred products in float32 in two orders are some 1e-6 apart
STATES = 4 * RELATIVE  # where a norm divides what a state gives by its size, differences grow with it
COSINE = 0.9999

Case = tuple[Variant, str]
CASES: list[Any] = [
    pytest.param((variant, kind), id=f"{variant.name}-{kind}")
    for variant in VARIANTS
    for kind in ("folder", "gguf")
    if kind == "folder" or variant.gguf is not None
]


@dataclass
class Made:
    """A variant on disk, and what transformers computes."""

    path: Path
    whole: NDArray[np.float32]
    steps: NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    references: dict[str, tuple[Any, NDArray[np.float32], NDArray[np.float32]]] = {}
    done: dict[tuple[str, str], Made] = {}

    def make(case: Case) -> Made:
        variant, kind = case
        if variant.name not in references:
            model = torch_model(variant)
            references[variant.name] = model, prefill_logits(model, IDS), stepwise_logits(model)
        if (variant.name, kind) not in done:
            model, whole, steps = references[variant.name]
            folder = tmp_path_factory.mktemp("model")
            if kind == "folder":
                path = write_folder(folder, variant, model)
            else:
                path = write_gguf(folder / "model.gguf", variant, model)
            done[variant.name, kind] = Made(path, whole, steps)
        return done[variant.name, kind]

    return make


def stepwise_logits(model: Any) -> NDArray[np.float32]:
    """Logits after each token of `IDS` behind the prompt, by the way in which transformers generates."""
    ids = torch.tensor([IDS])
    rows, cache, seen = [], None, 0
    longest_short = getattr(model.config, "original_max_position_embeddings", None)
    with torch.no_grad():
        for count in range(PROMPT, len(IDS) + 1):
            if count - 1 == longest_short:  # where its generation begins anew, because all rotations change
                cache, seen = None, 0
            out = model(ids[:, seen:count], cache=cache, use_cache=True)
            cache, seen = out.cache, count
            rows.append(out.logits[0, -1].numpy())
    return np.stack(rows)


def load(path: Path, pack: Any) -> Decoder:
    with open_source(path) as source:
        return load_decoder(source, lambda layer: pack(layer.weight(source), layer.name))


def cosines(got: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    products = (got.astype(np.float64) * expected).sum(axis=-1)
    found: NDArray[np.float64] = products / np.linalg.norm(got, axis=-1) / np.linalg.norm(expected, axis=-1)
    return found


def decoded(model: Decoder) -> NDArray[np.float32]:
    """As `stepwise_logits`."""
    cache = model.new_cache()
    rows = [model.forward(IDS[:PROMPT], cache)]
    rows += [model.forward([token], cache) for token in IDS[PROMPT:]]
    return np.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_transformers(made: Callable[[Case], Made], case: Case) -> None:
    reference = made(case)
    model = load(reference.path, numpy_pack)
    relative = STATES if any(model.config.states) else RELATIVE
    bound = relative * float(np.abs(reference.whole).max())
    whole = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(whole, reference.whole, rtol=0, atol=bound)
    np.testing.assert_allclose(decoded(model), reference.steps, rtol=0, atol=bound)


@pytest.mark.parametrize("case", CASES)
def test_float16_products_on_the_npu_keep_the_direction_of_logits(made: Callable[[Case], Made], case: Case) -> None:
    reference = made(case)
    model = load(reference.path, npu_pack("w16a16", "sim:rk3588"))
    whole = model.forward(IDS, model.new_cache(), all_logits=True)
    assert cosines(whole, reference.whole).min() >= COSINE
    assert cosines(decoded(model), reference.steps).min() >= COSINE


FIRST = {each.model_type: each for each in reversed(VARIANTS)}


@pytest.mark.parametrize("model_type", sorted(FIRST))
def test_tensors_are_taken_all_and_none_too_many(tmp_path: Path, model_type: str) -> None:
    variant = FIRST[model_type]
    path = write_folder(tmp_path, variant, torch_model(variant))
    state = load_file(path / "model.safetensors")
    body = "model.language_model" if any(name.startswith("model.language_model.") for name in state) else "model"
    encoders = MODEL_TYPES[model_type].left_out
    for name in state:
        if name.startswith(encoders):
            continue  # tensors of an encoder are not read
        others = {each: value for each, value in state.items() if each != name}
        save_file(others, path / "model.safetensors")
        lacking = set(nn.unstacked(state)) - set(nn.unstacked(others))  # of a stack, as many as it has matrices
        packed: list[str] = []
        with pytest.raises(ModelError, match="|".join(re.escape(each.replace(body, "model")) for each in lacking)):
            load(path, lambda weight, layer, packed=packed: packed.append(layer) or numpy_pack(weight))
        assert not packed, "names are looked at before weights are read"
    added = f"{body}.layers.0.self_attn.mystery.weight"
    save_file({**state, added: np.ones(4, np.float32)}, path / "model.safetensors")
    with pytest.raises(ModelError, match=f"1 tensors of a kind that is not supported, such as '{re.escape(added)}'"):
        load(path, numpy_pack)
    name = MODEL_TYPES[model_type].in_checkpoint(f"{body}.layers.1.input_layernorm.weight")
    save_file({**state, name: np.ones(3, np.float32)}, path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{re.escape(name)}' .*has shape \(3,\), its metadata asks for \(64,\)"):
        load(path, numpy_pack)


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each.gguf], ids=lambda each: each.name)
def test_layers_of_every_architecture_have_names_and_can_be_exchanged(tmp_path: Path, variant: Variant) -> None:
    model = load(write_gguf(tmp_path / "model.gguf", variant, torch_model(variant)), numpy_pack)
    assert list(model.linears) == model.config.layer_names
    seen: list[str] = []
    tapped = {
        name: TappedLinear(linear, name, lambda name, x, y: seen.append(name)) for name, linear in model.linears.items()
    }
    expected = model.forward(IDS, model.new_cache())
    np.testing.assert_array_equal(model.with_linears(tapped).forward(IDS, model.new_cache()), expected)
    if model.config.whole_only is not None:
        assert seen == list(model.linears)
        for one in (model.run_block, lambda *given: next(model.block_steps(*given))):
            with pytest.raises(ModelError, match="cannot be computed one by one: each of its layers"):
                one(0, model.embed(IDS), model.new_cache())
        return
    assert seen == [name for name in model.linears if name in seen or ".expert." not in name]
    cache = model.new_cache()
    x = model.embed(IDS)
    for layer in range(model.config.n_layers):
        by_steps = model.block_steps(layer, x, model.new_cache())
        part, given = next(by_steps)
        for _ in model.config.layers[layer].parts:
            try:
                part, given = by_steps.send(model.linears[f"blk.{layer}.{part}"](np.ascontiguousarray(given)))
            except StopIteration as end:
                stepped = end.value
        x = model.run_block(layer, x, cache)
        np.testing.assert_array_equal(stepped, x)
    assert cache.length == cache.offset == 0


def test_a_cache_of_windows_starts_anew_where_it_has_given_up_what_is_needed(tmp_path: Path) -> None:
    variant = next(each for each in VARIANTS if each.name == "mistral-window")
    variant = dataclasses.replace(variant, options={**variant.options, "max_position_embeddings": 512})
    model = load(write_folder(tmp_path, variant, torch_model(variant)), numpy_pack)
    ids = IDS * 10
    cache = model.new_cache()
    model.forward(ids, cache)
    assert cache.truncate(399) == cache.length == 399
    expected = model.forward(ids, model.new_cache())
    np.testing.assert_allclose(model.forward(ids[399:], cache), expected, rtol=0, atol=1e-4)
    assert cache.truncate(30) == cache.length == cache.offset == 0
    np.testing.assert_allclose(model.forward(ids, cache), expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="holds 400 tokens and cannot be cut to 401"):
        cache.truncate(401)


def test_a_cache_follows_rotations_that_depend_on_the_length(tmp_path: Path) -> None:
    """Beyond the length and back again, whatever is cut."""
    variant = next(each for each in VARIANTS if each.name == "phi3-longrope")
    reference = torch_model(variant)
    model = load(write_folder(tmp_path, variant, reference), numpy_pack)
    shapes = model.parameter_shapes()
    cache = model.new_cache()
    for start, stop in ((0, 10), (10, 24), (24, 25), (25, 40)):
        got = model.forward(IDS[start:stop], cache, all_logits=True)
        assert len(got) == stop - start
        np.testing.assert_allclose(got, prefill_logits(reference, IDS[:stop])[start:], rtol=0, atol=1e-4)
    cache.truncate(12)
    got = model.forward(IDS[12:20], cache, all_logits=True)
    np.testing.assert_allclose(got, prefill_logits(reference, IDS[:20])[12:], rtol=0, atol=1e-4)
    assert cache.tokens == IDS[:20]
    assert model.parameter_shapes() == shapes


@pytest.mark.parametrize("name", ["llama-plain", "mistral-window", "phi3-longrope", "gemma4_text-small"])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1 - 1e-6), ("float16", 0.99999), ("int8", 0.999)])
def test_caches_are_forked_saved_and_kept_in_few_bits(tmp_path: Path, name: str, dtype: str, least: float) -> None:
    variant = next(each for each in VARIANTS if each.name == name)
    model = load(write_folder(tmp_path, variant, torch_model(variant)), numpy_pack)
    expected = model.forward(IDS, model.new_cache(), all_logits=True)[30:]
    cache = model.new_cache(60, dtype=dtype)
    model.forward(IDS[:30], cache)
    cache.save(tmp_path / "cache.safetensors")
    loaded = KVCache.load(tmp_path / "cache.safetensors")
    assert (loaded.tokens, loaded.capacity, loaded.is_long) == (IDS[:30], 60, name == "phi3-longrope")
    for each in (cache.fork(), loaded, cache):
        assert cosines(model.forward(IDS[30:], each, all_logits=True), expected).min() >= least
        assert each.tokens == IDS
        left = each.truncate(5)  # nothing where windows have given up what is needed
        assert cosines(model.forward(IDS[left:], each), expected[-1]) >= least


def test_files_of_other_caches_are_refused(tmp_path: Path) -> None:
    nn.KVCache(1, 1, 4).save(tmp_path / "cache.safetensors")
    with pytest.raises(UnusableFileError, match="has no tokens"):
        KVCache.load(tmp_path / "cache.safetensors")
    other = nn.KVCache(1, 1, 4, limit=9)
    other.notes = {"tokens": "[1, 2]", "is_long": "false"}
    other.save(tmp_path / "cache.safetensors")
    with pytest.raises(UnusableFileError, match="not those of its keys"):
        KVCache.load(tmp_path / "cache.safetensors")


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.older], ids=lambda each: each.name)
def test_a_state_dict_of_transformers_loads_by_name(variant: Variant) -> None:
    reference = torch_model(variant)
    config = config_from(json.loads(reference.config.to_json_string(use_diff=False)))
    model = Decoder(config, scheme="float32")
    names = MODEL_TYPES[variant.model_type].names
    state = {name: value.numpy() for name, value in language_state(reference).items()}
    if names:
        state = nn.unstacked(state)
        state = {ours: state[MODEL_TYPES[variant.model_type].in_checkpoint(ours)] for ours in model.parameter_shapes()}
    elif config.tied:
        del state["lm_head.weight"]
    model.load_state_dict(state)
    whole = prefill_logits(reference, IDS)
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    relative = STATES if any(config.states) else RELATIVE
    np.testing.assert_allclose(got, whole, rtol=0, atol=relative * float(np.abs(whole).max()))


def test_every_architecture_is_tried_in_every_format_that_it_has() -> None:
    for architecture in ARCHITECTURES:
        tried = [each for each in VARIANTS if each.model_type in architecture.model_types]
        assert tried, architecture.name
        for name in architecture.gguf:
            assert any(each.gguf == name for each in VARIANTS), name


def test_the_document_lists_what_is_read_and_how_it_is_tried() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row for row in rows if len(row) == 9 and row[0] != "architecture"}
    for architecture in ARCHITECTURES:
        row = table.pop(", ".join(architecture.model_types))
        tried = [each for each in VARIANTS if each.model_type in architecture.model_types]
        assert row[1] == architecture.models
        assert row[5] == str(len(tried))
        assert all(each.gguf in row[3] for each in tried if each.gguf)
    assert not table
    checked = {row[0] for row in rows if len(row) == 3}
    assert {each.name for each in VARIANTS if each.gguf and each.llama_cpp} <= checked


WITHOUT_HEAD = ("llama-plain", "llama-mha-tied", "qwen3-tied-mqa", "gemma3_text-plain", "granitemoe-multipliers")


@pytest.mark.parametrize(
    "variant", [each for each in VARIANTS if each.name in WITHOUT_HEAD], ids=lambda each: each.name
)
def test_a_checkpoint_of_the_class_without_a_head(tmp_path: Path, variant: Variant) -> None:
    """Its names do not begin with "model."; where the embedding table is the output matrix nothing is missing."""
    model = torch_model(variant)
    model.model.save_pretrained(tmp_path)
    if not model.config.tie_word_embeddings:
        with pytest.raises(ModelError, match=r"it has no output matrix \(lm_head\.weight\).*ends with ForCausalLM"):
            load(tmp_path, numpy_pack)
        return
    ours, expected = load(tmp_path, numpy_pack), prefill_logits(model, IDS)
    found = ours.forward(IDS, ours.new_cache(), all_logits=True)
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()
