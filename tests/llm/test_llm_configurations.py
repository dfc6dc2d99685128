"""What configurations of architectures mean: the same from both formats, and nothing that is not understood."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from model_zoo import SIZES, VARIANTS, Variant, torch_model, write_folder, write_gguf
from published_configs import PUBLISHED
from transformers.models.auto import modeling_auto

from npumatmul.errors import ModelError
from npumatmul.llm.files.gguf_names import ARCHITECTURES as GGUF_LAYOUTS
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.encoders import ENCODER_TYPES, ENCODERS
from npumatmul.llm.models.registry import ARCHITECTURES, GGUF_ARCHITECTURES, MODEL_TYPES, config_from, config_of
from npumatmul.llm.models.weights import _decoder

TYPES = sorted(MODEL_TYPES)
#: Whose configurations have one of the language model in them.
NESTED = ("gemma4", "qwen3_vl")
SEEING = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def settings(model_type: str, **changes: Any) -> dict[str, Any]:
    eps = {"starcoder2": "norm_epsilon", "lfm2": "norm_eps", "lfm2_moe": "norm_eps"}.get(model_type, "rms_norm_eps")
    wide = {"hidden_size": 512} if model_type.startswith(("qwen2_vl", "qwen2_5_vl")) else {}  # for its usual sections
    values = {**SIZES, **wide, "model_type": model_type, eps: 1e-6}
    if model_type not in NESTED:
        return {**values, **changes}
    outer = {"model_type": model_type, "tie_word_embeddings": changes.pop("tie_word_embeddings", False)}
    outer |= {name: changes.pop(name) for name in ("architectures",) if name in changes}
    return {**outer, "text_config": {**values, "model_type": f"{model_type}_text", **changes}}


def comparable(config: DecoderConfig) -> dict[str, Any]:
    """A configuration without what formats say in ways of their own: the rotation as frequencies, which names are
    used, and where the 1 of gemma's norms is.
    """
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    for name in ("architecture", "norm_offset", "layers", "placeholders"):
        del values[name]
    values["query_scale"] = round(config.query_scale or config.head_dim**-0.5, 6)
    values["windows"] = [each.window for each in config.layers]
    values["turned"] = [each.rotation and (each.rotation.dim, each.rotation.theta) for each in config.layers]
    return values


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each.gguf], ids=lambda each: each.name)
def test_both_formats_say_the_same(variant: Variant, tmp_path: Path) -> None:
    model = torch_model(variant)
    with open_source(write_folder(tmp_path / "folder", variant, model)) as folder:
        by_folder = config_of(folder)
    with open_source(write_gguf(tmp_path / "model.gguf", variant, model)) as file:
        by_file = config_of(file)
    told = comparable(by_folder)
    assert _close(comparable(by_file), told), (by_file, by_folder)


def _close(left: Any, right: Any) -> bool:
    """Equal but for float32 that GGUF metadata are."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return bool(np.isclose(left, right, rtol=1e-6))
    if isinstance(left, (list, tuple)) and left is not None:
        return len(left) == len(right) and all(_close(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def test_the_formats_of_a_registry_are_those_that_files_are_read_in() -> None:
    assert {*GGUF_ARCHITECTURES, *(name for each in ENCODERS for name in each.gguf)} == set(GGUF_LAYOUTS)
    assert len({each.name for each in ARCHITECTURES}) == len(ARCHITECTURES)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}, "'mystery'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 3}}, "rope_scaling.twist"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"hidden_act": "quick_gelu", "hidden_activation": "quick_gelu"}, "'quick_gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"n_routed_experts": 8}, "n_routed_experts"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 1 << 30}, "n_layers"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_scaling": [1]}, "rope_scaling"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_not_understood_is_named(model_type: str, changes: dict[str, Any], named: str) -> None:
    values = {key: value for key, value in settings(model_type, **changes).items() if value is not None}
    with pytest.raises(ModelError, match=named.replace(".", r"\.")):
        config_from(values)


@pytest.mark.parametrize("model_type", TYPES)
def test_values_that_change_nothing_are_passed_over(model_type: str) -> None:
    plain = config_from(settings(model_type, tie_word_embeddings=True))
    more = {
        "architectures": [],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "quantization_config": None,
        "rope_scaling": None,
        "output_attentions": False,
    }
    assert config_from(settings(model_type, tie_word_embeddings=True, **more)) == plain


@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_false_may_change_the_arithmetic(model_type: str) -> None:
    for name in ("is_causal", "residual_gate", "scale_attn_weights"):
        with pytest.raises(ModelError, match=f"{name}' is False"):
            config_from(settings(model_type, **{name: False}))
    assert config_from(settings(model_type, is_causal=True)) == config_from(settings(model_type))


@pytest.mark.parametrize("kind", sorted({*MODEL_TYPES, *ENCODER_TYPES}))
def test_architectures_that_are_computed_are_those_of_transformers(kind: str) -> None:
    """The model alone, and with the head that guesses tokens; its decoder where it is one, else its encoder."""
    of = {**MODEL_TYPES, **ENCODER_TYPES}[kind].classes
    heads = {**SEEING, **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} if kind in MODEL_TYPES else MASKED
    usual = {modeling_auto.MODEL_MAPPING_NAMES[kind]}
    if not kind.endswith("_vl_text"):  # the part of a model that sees has no head of its own
        usual.add(heads[kind])
    assert usual <= set(of)


@pytest.mark.parametrize("model_type", TYPES)
def test_architectures_that_contradict_the_type_of_a_model_are_refused(model_type: str) -> None:
    plain, classes = config_from(settings(model_type)), MODEL_TYPES[model_type].classes
    for name in (*classes, classes[0].upper()):
        assert config_from(settings(model_type, architectures=[name])) == plain
    stem = classes[0].removesuffix("ForCausalLM")
    other = "GemmaForCausalLM" if model_type == "llama" else "LlamaForCausalLM"
    tasks = [stem + each for each in ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel")]
    for name in ("BertModel", other, *tasks, "", "x" * 10000):
        with pytest.raises(ModelError, match=f"'architectures' names '{name[:20]}.*supported: {classes[0]}") as caught:
            config_from(settings(model_type, architectures=[classes[0], name]))
        assert len(str(caught.value)) < 1000
    for value in ("LlamaForCausalLM", [1], {"a": 1}):
        with pytest.raises(ModelError, match="'architectures' is "):
            config_from(settings(model_type, architectures=value))


ABSURD = [
    ({"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}, "rope_scaling.factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, "rope_scaling.factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 1e-30}}, "radians per position"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e300}}, "attention_factor"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e30}}, "attention_factor"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1e30, "mscale_all_dim": 1.0}}, "attention_factor"),
    ({"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ({"rope_theta": 10**400}, "rope_theta"),
    ({"rope_theta": 1e-30}, "radians per position"),
    (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [10**400] * 8, "long_factor": [1.0] * 8}},
        "short_factor",
    ),
    (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [True] * 8, "long_factor": [1.0] * 8}},
        "short_factor",
    ),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"hidden_size": 10**400}, "hidden_size"),
]


@pytest.mark.parametrize(("changes", "named"), ABSURD, ids=str)
def test_absurd_numbers_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    """None of them gives a warning of numpy's, here or when layers are made."""
    source: Any = SimpleNamespace(
        kind="folder", architecture="llama", config=settings("llama", **changes), error=ModelError, weights={}
    )
    with pytest.raises(ModelError, match=named):
        _decoder(source, config_of(source))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_value_of_an_unknown_name_is_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match=r"residual_gate' is 0\.5, and what that means is not known"):
        config_from(settings(model_type, residual_gate=0.5))


@pytest.mark.parametrize("model_type", NESTED)
def test_what_a_whole_model_says_beside_its_language_model_is_understood_or_named(model_type: str) -> None:
    whole = settings(model_type)
    beside = {"vision_config": {"depth": 2}, "image_token_id": 3, "transformers_version": "5", "audio_config": None}
    assert config_from({**whole, **beside}) == config_from(whole)
    for changes, named in (
        ({"residual_gate": 0.5}, "'residual_gate' is 0.5"),
        ({"text_config": None}, "'text_config' is missing"),
        ({"text_config": [1]}, "'text_config' is"),
        ({"vision_config": 3}, "'vision_config' is 3"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'quantization_config' is"),
    ):
        with pytest.raises(ModelError, match=named.replace(".", r"\.")):
            config_from({**whole, **changes})


def test_no_other_architecture_of_transformers_is_read() -> None:
    others = set(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES) - set(MODEL_TYPES)
    assert len(others) > 300
    for name in others:
        with pytest.raises(ModelError) as caught:
            config_from(settings(name))
        assert repr(name) in str(caught.value) or name[:20] in str(caught.value)
    for value in (None, 3, ["llama"], ""):
        with pytest.raises(ModelError, match="is not known"):
            config_from({**SIZES, "model_type": value})


def test_no_other_architecture_of_gguf_is_read(tmp_path: Path) -> None:
    others = set(gguf.MODEL_ARCH_NAMES.values()) - set(GGUF_ARCHITECTURES)
    assert len(others) > 80
    for name in others:
        path = tmp_path / "other.gguf"
        writer = gguf.GGUFWriter(str(path), name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match="architecture"), open_source(path) as source:
            config_of(source)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.factor"),
        ({"llama.rope.scaling.type": "longrope"}, "rope_factors_short"),
        ({"llama.rope.scaling.type": "spiral"}, "'spiral'"),
        ({"llama.rope.scaling.attn_factor": 1.2}, "attn_factor"),
        ({"llama.expert_count": 8}, "8 experts"),
        ({"llama.attention.clamp_kqv": 3.0}, "llama.attention.clamp_kqv"),
        ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window"),
        ({"llama.attention.value_length": 8}, "8 and its keys 16"),
        ({"llama.rope.dimension_count": 7}, "even"),
        ({"llama.attention.causal": False}, "attention.causal"),
        ({"llama.some_gate": False}, "some_gate"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_metadata_that_is_not_understood_is_named(tmp_path: Path, metadata: dict[str, Any], named: str) -> None:
    variant = VARIANTS[0]
    path = write_gguf(tmp_path / "model.gguf", variant, torch_model(variant))
    with open_source(path) as source:
        config_of(source)
        source.file.metadata.update(metadata)  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=named.replace(".", r"\.")) as caught:
            config_of(source)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_configurations_of_published_models_are_read_as_by_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    reference = transformers.AutoConfig.from_pretrained(tmp_path)
    config = config_from(PUBLISHED[name])
    read_alike(config, reference)
    reference.save_pretrained(tmp_path)  # as versions of today write them
    again = config_from(json.loads((tmp_path / "config.json").read_text()))
    assert again == config


@pytest.mark.parametrize("every", [0, -1])
def test_a_pattern_of_no_layers_is_refused(every: int) -> None:
    with pytest.raises(ModelError, match="sliding_window_pattern"):
        config_from(settings("gemma3_text", sliding_window_pattern=every))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"head_dim": 0}, "head_dim is 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"residual_scale": float("inf")}, "residual_scale is inf"),
        ({"layers": (LayerConfig(), LayerConfig())}, "2 layers are described"),
        ({"layers": (LayerConfig(Rotation(32)),)}, "32 values of a head are to be rotated"),
    ],
)
def test_configurations_that_do_not_fit_together(values: dict[str, Any], problem: str) -> None:
    sizes = {"n_layers": 3, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_size": 96}
    with pytest.raises(ValueError, match=problem):
        DecoderConfig(**{**sizes, "vocab_size": 264, "context_length": 128, **values})


def test_a_configuration_without_layers_rotates_all_of_them() -> None:
    config = DecoderConfig(3, 64, 4, 2, 16, 96, 264, 128)
    assert config.layers == (LayerConfig(Rotation(16)),) * 3


def test_what_a_folder_says_is_what_transformers_reads(tmp_path: Path) -> None:
    """Files without values that have defaults mean what transformers takes them for."""
    for variant in VARIANTS:
        (tmp_path / "config.json").write_text(json.dumps(settings(variant.model_type)))
        reference = transformers.AutoConfig.from_pretrained(tmp_path)
        config = config_from(settings(variant.model_type))
        read_alike(config, reference)


def read_alike(config: DecoderConfig, reference: Any) -> None:
    """Compare what is read with what transformers reads."""
    tied, reference = reference.tie_word_embeddings, reference.get_text_config()
    if reference.model_type == "gemma4_text":
        reference.allow_global_per_layer_attribute_access = True
    reference_dim = getattr(reference, "head_dim", None) or reference.hidden_size // reference.num_attention_heads
    assert config.head_dim == reference_dim
    own = getattr(reference, "per_layer_config", {})
    for i, layer in enumerate(config.layers if reference.model_type == "gemma4_text" else ()):
        assert (layer.head_dim or config.head_dim) == own[i].head_dim
        assert (layer.n_kv_heads or config.n_kv_heads) == own[i].num_key_value_heads
    assert config.tied == tied
    kinds = getattr(reference, "layer_types", None)
    window = getattr(reference, "sliding_window", None)
    slides = [kind == "sliding_attention" for kind in kinds] if kinds else [window is not None] * config.n_layers
    assert [each.window for each in config.layers] == [window if each else None for each in slides]
    rope = reference.rope_parameters
    for layer, slid in zip(config.layers, slides, strict=True):
        own = rope.get("sliding_attention" if slid else "full_attention", rope)
        if layer.rotation is not None:
            assert layer.rotation.theta == own["rope_theta"]


HOSTILE: list[Any] = [
    0, -1, 7, 1 << 40, 1 << 5000, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", "x" * 10000, True, [], [1],
    [[]], {}, {"rope_type": "yarn"}, {"rope_type": "longrope", "short_factor": [0.0], "long_factor": [1]}, {"type": 3},
    {"rope_type": "llama3", "factor": 0.0, "low_freq_factor": 0, "high_freq_factor": 0}, {"full_attention": {"x": 1}},
    {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1},
]  # fmt: skip
MORE = (
    "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "sliding_window",
    "layer_types", "original_max_position_embeddings",
    "query_pre_attn_scalar", "attention_bias", "hidden_act", "hidden_activation",
    "tie_word_embeddings", "no_rope_layers", "no_rope_layer_interval", "use_sliding_window", "max_window_layers",
    "sliding_window_pattern", "rope_local_base_freq", "attn_logit_softcapping", "final_logit_softcapping",
    "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "use_bias", "norm_type",
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    "decoder_sparse_step", "mlp_only_layers", "vision_config", "text_config", "image_token_id", "video_token_id",
    "swiglu_limit", "swiglu_alpha", "experts_per_token",
)  # fmt: skip


@pytest.mark.parametrize("model_type", TYPES)
def test_hostile_values_give_a_configuration_or_a_model_error(model_type: str) -> None:
    usual, messages = settings(model_type, use_sliding_window=True), []
    for name in (*usual, *MORE):
        for value in HOSTILE:
            try:
                changed = {**usual, name: value}
                if "text_config" in usual and name != "text_config":
                    changed["text_config"] = {**usual["text_config"], name: value}
                    changed = changed if name in ("model_type", "architectures") else {**changed, name: None}
                config = config_from(changed)
            except ModelError as error:
                messages.append(str(error))
            else:
                assert len(config.layers) == config.n_layers
    assert messages
    assert max(map(len, messages)) < 1000


GGUF_KEYS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "vocab_size",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", "attention.scale", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.temperature_scale", "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scale_linear",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_attn_factor", "attn_logit_softcapping", "logit_scale",
    "final_logit_softcapping", "embedding_scale", "residual_scale", "expert_count",
    "expert_used_count", "expert_feed_forward_length", "expert_gating_func", "expert_weights_scale",
    "rope.dimension_sections", "n_deepstack_layers",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(GGUF_ARCHITECTURES))
def test_hostile_metadata_give_a_configuration_or_a_model_error(name: str) -> None:
    usual = {
        "block_count": 46,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "vocab_size": 264,
        "attention.layer_norm_epsilon" if name == "starcoder2" else "attention.layer_norm_rms_epsilon": 1e-6,
        "logit_scale" if name in ("granite", "granitemoe") else "rope.scaling.factor": 2.0,
    }
    if "moe" in name:
        usual.update(expert_count=8, expert_used_count=2, expert_feed_forward_length=32)
    messages = []
    for kind in (None, "linear", "yarn", "longrope"):
        for key in GGUF_KEYS:
            for value in HOSTILE:
                values = {**usual, **({} if kind is None else {"rope.scaling.type": kind}), key: value}
                source: Any = SimpleNamespace(
                    kind="gguf",
                    architecture=name,
                    config={f"{name}.{each}": given for each, given in values.items()},
                    weights=(),
                    rope_factors={"long": np.ones(8), "short": np.full(8, value if value == 0 else 1.0)},
                    interleaved_rope=False,
                    norms_include_one=True,
                    error=ModelError,
                )
                try:
                    config = config_of(source)
                except ModelError as error:
                    messages.append(str(error))
                else:
                    assert len(config.layers) == config.n_layers
    assert messages
    assert max(map(len, messages)) < 1000
