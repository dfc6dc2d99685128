"""Small random models of every architecture: made by transformers, saved as folders, written as GGUF files.

GGUF files are written as llama.cpp's converter writes them: rows of q and k permuted in the llama family, 1 added to
weights of gemma's norms, factors of rotary frequencies as tensors, multipliers as metadata.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import hybrid_zoo
import numpy as np
import torch
from llm_models import tokenizer_metadata
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

VOCAB = 264
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 262,
    "eos_token_id": 261,
    "pad_token_id": 263,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 3.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}


MROPE = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [2, 3, 3]}
VISION = {
    "qwen2_vl": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4, "intermediate_size": 48,
        "fullatt_block_indexes": [1], "window_size": 16, "tokens_per_second": 4,
    },
    "qwen3_vl": {
        "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4, "intermediate_size": 48,
        "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16,
    },
}  # fmt: skip
"""Of models that see: what their vision encoders are made of."""
TOKENS = {"image_token_id": 255, "video_token_id": 256, "vision_start_token_id": 257, "vision_end_token_id": 258}


PERMUTED = ("llama", "mistral3", "smollm3", "granite", "granitemoe")
EXPERT_COUNTS = {
    "qwen3moe": "num_experts",
    "olmoe": "num_experts",
    "granitemoe": "num_local_experts",
    **dict.fromkeys(("qwen35moe", "qwen3next", "lfm2moe"), "num_experts"),
    "gpt-oss": "num_local_experts",
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}


def longrope(pairs: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1 + 0.1 * i for i in range(pairs)],
        "long_factor": [1 + i for i in range(pairs)],
        "original_max_position_embeddings": 24,
    }


@dataclass(frozen=True)
class Variant:
    """One configuration of an architecture.

    Attributes
    ----------
    model_type : str
        Hugging Face's name of the architecture.
    what : str
        What the configuration is about.
    options : dict
        Values of its configuration, over `SIZES`.
    gguf : str or None
        Architecture of its GGUF file; None where llama.cpp's format cannot say this.
    llama_cpp : bool
        Whether llama.cpp computes what the checkpoint means.
    older : callable, optional
        Rewrites config.json as older versions of transformers wrote it.
    """

    model_type: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gguf: str | None = None
    llama_cpp: bool = True
    older: Callable[[dict[str, Any]], None] | None = None

    @property
    def name(self) -> str:
        return f"{self.model_type}-{self.what}"


def _older_scaling(config: dict[str, Any]) -> None:
    """rope_theta and rope_scaling, with the kind of it called "type"."""
    given = config.pop("rope_parameters")
    config["rope_theta"] = given.pop("rope_theta")
    if "partial_rotary_factor" in given:
        config["partial_rotary_factor"] = given.pop("partial_rotary_factor")
    given["type"] = given.pop("rope_type")
    config["rope_scaling"] = None if given["type"] == "default" else given


def _older_gemma3(config: dict[str, Any]) -> None:
    given = config.pop("rope_parameters")
    config["rope_theta"] = given["full_attention"].pop("rope_theta")
    config["rope_local_base_freq"] = given["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = given["full_attention"]
    config["sliding_window_pattern"] = 2
    del config["layer_types"]


def _without_lists(config: dict[str, Any]) -> None:
    """Which layers slide a window or tell positions by the rule of the architecture."""
    for name in ("layer_types", "no_rope_layers"):
        config.pop(name, None)


def _published_gemma4(config: dict[str, Any]) -> None:
    """Sizes of layers by names of their own."""
    own = config.pop("per_layer_config")
    config["global_head_dim"] = next(iter(own.values()))["head_dim"]


VARIANTS = [
    Variant("llama", "plain", gguf="llama"),
    Variant("llama", "mha-tied", {"num_key_value_heads": 4, "tie_word_embeddings": True}, "llama"),
    Variant("llama", "biases", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}, "llama"),
    Variant("llama", "head_dim", {"head_dim": 8}, "llama"),
    Variant("llama", "linear", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "llama"),
    Variant("llama", "llama3", {"rope_parameters": LLAMA3}, "llama"),
    Variant("llama", "llama3-older", {"rope_parameters": LLAMA3}, older=_older_scaling),
    Variant("mistral", "plain", {"sliding_window": None, "head_dim": 32}, "llama"),
    Variant("mistral", "window", {"sliding_window": 8}),
    Variant(
        "ministral",
        "layer_types",
        {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    Variant(
        "ministral3",
        "yarn",
        {
            "head_dim": 32,
            "rope_parameters": {
                **YARN,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
            },
        },
        "mistral3",
    ),
    Variant("smollm3", "plain", {"num_hidden_layers": 4}, "smollm3"),
    Variant(
        "smollm3",
        "window",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8, "tie_word_embeddings": False},
        older=_without_lists,
    ),
    Variant("qwen2", "plain", gguf="qwen2"),
    Variant("qwen2", "yarn-tied", {"rope_parameters": YARN, "tie_word_embeddings": True}, "qwen2"),
    Variant("qwen2", "yarn-older", {"rope_parameters": YARN}, older=_older_scaling),
    Variant(
        "qwen2",
        "window",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        older=_without_lists,
    ),
    Variant("qwen3", "plain", {"head_dim": 32}, "qwen3"),
    Variant("qwen3", "tied-mqa", {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 1}, "qwen3"),
    Variant("qwen3", "biases", {"head_dim": 16, "attention_bias": True}),
    Variant("gemma2", "softcaps", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, "gemma2"),
    Variant(
        "gemma2",
        "query-scale",
        {**GEMMA, "query_pre_attn_scalar": 40, "attn_logit_softcapping": None},
        older=_without_lists,
    ),
    Variant("gemma3_text", "plain", {**GEMMA, "num_hidden_layers": 6}, "gemma3"),
    Variant(
        "gemma3_text",
        "linear",
        {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "gemma3",
    ),
    Variant("gemma3_text", "older", {**GEMMA, "sliding_window_pattern": 2}, older=_older_gemma3),
    Variant("phi3", "plain", {"original_max_position_embeddings": 128}, "phi3"),
    Variant("phi3", "window", {"sliding_window": 8, "original_max_position_embeddings": 128}, "phi3", llama_cpp=False),
    Variant(
        "phi3",
        "longrope",
        {"rope_parameters": longrope(8), "original_max_position_embeddings": 24, "tie_word_embeddings": True},
        "phi3",
    ),
    Variant(
        "phi3",
        "longrope-partial-older",
        {
            "rope_parameters": {**longrope(6), "partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 24,
        },
        older=_older_scaling,
    ),
    Variant(
        "granite",
        "multipliers",
        {
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.1,
            "tie_word_embeddings": True,
        },
        "granite",
    ),
    Variant("granite", "biases", {"attention_bias": True, "mlp_bias": True}, "granite"),
    Variant("starcoder2", "plain", gguf="starcoder2"),
    Variant("starcoder2", "window", {"sliding_window": 8, "use_bias": False, "tie_word_embeddings": False}),
    Variant(
        "qwen3_moe",
        "plain",
        {**EXPERTS, "head_dim": 32, "moe_intermediate_size": 48, "norm_topk_prob": True},
        "qwen3moe",
    ),
    Variant(
        "qwen3_moe",
        "dense-layers",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "use_sliding_window": True,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    ),
    Variant("olmoe", "plain", {**EXPERTS, "num_key_value_heads": 4}, "olmoe"),
    Variant("olmoe", "normalized-grouped", {**EXPERTS, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    Variant(
        "granitemoe",
        "multipliers",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.1,
            "tie_word_embeddings": True,
        },
        "granitemoe",
    ),
    Variant(
        "gpt_oss",
        "plain",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "swiglu_limit": 1.5,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    Variant(
        "gpt_oss",
        "usual",
        {"num_local_experts": 4, "num_experts_per_tok": 3, "head_dim": 32, "sliding_window": 8},
        "gpt-oss",
        llama_cpp=False,
    ),
    *(Variant(*each) for each in hybrid_zoo.VARIANTS),
    Variant("qwen2_vl", "text", {"rope_parameters": MROPE}, "qwen2vl"),
    Variant(
        "qwen2_5_vl",
        "text-tied",
        {"rope_parameters": {**YARN, **MROPE, "rope_type": "yarn", "rope_theta": 1e6}, "tie_word_embeddings": True},
    ),
    Variant("qwen3_vl", "text", {"head_dim": 16, "rope_parameters": MROPE}, "qwen3vl"),
    Variant("gemma4_text", "small", GEMMA4, "gemma4"),
    Variant(
        "gemma4_text",
        "large",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 8,
            "num_hidden_layers": 6,
        },
        "gemma4",
    ),
    Variant("gemma4_text", "published", GEMMA4, older=_published_gemma4),
]


def torch_model(variant: Variant, seed: int = 0) -> Any:
    """The model as transformers has it, every parameter random and large enough to matter."""
    kind = transformers.AutoConfig.for_model(variant.model_type).__class__
    options = json.loads(json.dumps(dict(variant.options)))  # configurations change what they are given
    made: Any = transformers.AutoModelForCausalLM
    if variant.model_type in VISION:
        made = transformers.AutoModelForImageTextToText
        tied = options.pop("tie_word_embeddings", False)
        vision = dict(VISION[variant.model_type])
        config = kind(text_config={**SIZES, **options}, vision_config=vision, tie_word_embeddings=tied, **TOKENS)
    else:
        config = kind(**{**SIZES, **options})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made.from_config(config, dtype=torch.float32, attn_implementation="eager")
        parameters = [*model.named_parameters(), *_preferences(model)]
        for name, value in parameters:
            with torch.no_grad():
                if value.ndim >= 2:
                    value.normal_(0, 1 if "embed" in name else value.shape[-1] ** -0.5)
                elif name.endswith("A_log"):  # so that states outlast a few tokens
                    value.normal_(-2, 0.5)
                elif "gemma" in variant.model_type or name.endswith("bias"):
                    value.normal_(0, 0.2)
                else:
                    value.normal_(1, 0.2)
        for name, value in model.named_buffers():
            if name.endswith("layer_scalar"):
                value.uniform_(0.5, 1.5)
    return model.eval()


def _preferences(model: Any) -> list[tuple[str, Any]]:
    """Biases of the choice of experts, which are buffers."""
    return [(name, value) for name, value in model.named_buffers() if name.endswith("expert_bias")]


def language_config(model: Any) -> Any:
    """The configuration of its language model."""
    return model.config.get_text_config()


def language_state(model: Any) -> dict[str, Any]:
    """Parameters of its language model, as they are called where there is nothing else."""
    state = {name.replace("model.language_model.", "model."): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not name.startswith("model.visual.")}


def write_folder(path: Path, variant: Variant, model: Any) -> Path:
    """Save it as Hugging Face does."""
    model.save_pretrained(path)
    if variant.older is not None:
        config = json.loads((path / "config.json").read_text())
        variant.older(config)
        (path / "config.json").write_text(json.dumps(config))
    return path


def prefill_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


# ---- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, variant: Variant, model: Any, more: Callable[[Any], None] | None = None) -> Path:
    """Write it as llama.cpp's converter does, and what `more` adds."""
    assert variant.gguf is not None
    writer = gguf.GGUFWriter(str(path), variant.gguf)
    write_metadata(writer, variant.gguf, language_config(model))
    if model.config.model_type == "qwen3_vl":
        writer.add_num_deepstack_layers(len(model.config.vision_config.deepstack_visual_indexes))
    tokenizer_metadata(writer, VOCAB)
    for name, value in gguf_tensors(variant.gguf, model):
        writer.add_tensor(name, value)
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_metadata(writer: gguf.GGUFWriter, arch: str, config: Any) -> None:
    c = copy.deepcopy(config)
    if arch == "gemma4":  # of layers that slide a window
        c.allow_global_per_layer_attribute_access = True
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(hybrid_zoo.feed_forward_length(arch, c))
    writer.add_head_count(c.num_attention_heads)
    if arch in hybrid_zoo.ARCHES:
        hybrid_zoo.write_hybrid_metadata(writer, arch, c)
    else:
        writer.add_head_count_kv(c.num_key_value_heads)
    if arch == "starcoder2":
        writer.add_layer_norm_eps(c.norm_epsilon)
    elif arch not in hybrid_zoo.ARCHES:
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if getattr(c, "head_dim", None) and arch not in ("phi3", "gemma4"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    if arch != "gemma2":
        writer.add_rope_freq_base(rope["rope_theta"])
    if arch in PERMUTED:
        writer.add_vocab_size(c.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if arch == "mistral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if arch == "gemma3" and "sliding_attention" in c.rope_parameters:
        writer.add_rope_freq_base_swa(c.rope_parameters["sliding_attention"]["rope_theta"])
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(c.sliding_window)
        if c.attn_logit_softcapping:
            writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        if c.final_logit_softcapping:
            writer.add_final_logit_softcapping(c.final_logit_softcapping)
    if arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_sliding_window(c.sliding_window or 0)
        if rope["rope_type"] == "longrope":
            ratio = c.max_position_embeddings / c.original_max_position_embeddings
            writer.add_rope_scaling_attn_factors(
                math.sqrt(1 + math.log(ratio) / math.log(c.original_max_position_embeddings))
            )
    if arch == "gemma4":
        write_gemma4(writer, c)
    if arch in ("qwen2vl", "qwen3vl"):
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    if arch in EXPERT_COUNTS:
        writer.add_expert_count(getattr(c, EXPERT_COUNTS[arch]))
        writer.add_expert_used_count(c.num_experts_per_tok)
    if arch == "qwen3moe":
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    if arch == "gpt-oss":
        writer.add_expert_feed_forward_length(c.intermediate_size)
        writer.add_sliding_window(c.sliding_window)
    if arch in ("granite", "granitemoe"):
        writer.add_attention_scale(c.attention_multiplier)
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_logit_scale(c.logits_scaling)


def write_gemma4(writer: gguf.GGUFWriter, c: Any) -> None:
    slides = [each == "sliding_attention" for each in c.layer_types]
    full = c.per_layer_config[slides.index(False)]
    shared = [each == "reuse" for each in c.kv_sharing_modes]
    writer.add_shared_kv_layers(sum(shared))
    writer.add_embedding_length_per_layer_input(c.hidden_size_per_layer_input)
    writer.add_sliding_window(c.sliding_window)
    writer.add_sliding_window_pattern(slides)
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(c.head_dim)
    writer.add_value_length_swa(c.head_dim)
    if c.use_double_wide_mlp:
        writer.add_feed_forward_length([c.intermediate_size * (1 + each) for each in shared])
    if full.num_key_value_heads != c.num_key_value_heads:
        writer.add_head_count_kv([c.num_key_value_heads if each else full.num_key_value_heads for each in slides])
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_dimension_count_swa(c.head_dim)
    writer.add_rope_freq_base_swa(c.rope_parameters["sliding_attention"]["rope_theta"])
    if c.final_logit_softcapping:
        writer.add_final_logit_softcapping(c.final_logit_softcapping)


def gguf_tensors(arch: str, model: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    config = language_config(model)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(model, rope)
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)
    if rope["rope_type"] == "proportional":
        half = config.per_layer_config[config.num_hidden_layers - 1].head_dim // 2
        turned = int(half * rope["partial_rotary_factor"])
        yield "rope_freqs.weight", np.array([1.0] * turned + [1e30] * (half - turned), np.float32)
    tied = model.config.tie_word_embeddings
    for name, tensor in language_state(model).items():
        if tied and name == "lm_head.weight":
            continue
        value = tensor.numpy()
        if arch in PERMUTED and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            value = interleaved(value, heads)
        if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            value = value + np.float32(1)
        if name.endswith(("sinks", "layer_scalar")):
            name += ".weight"
        if arch == "gpt-oss" and ".experts." in name:
            yield from gpt_oss_stacks(name, value)
            continue
        if arch in hybrid_zoo.ARCHES and ".experts." not in name:
            for called, each in hybrid_zoo.hybrid_tensors(arch, config, name, value):
                own = names.get_name(called, try_suffixes=(".weight", ".bias"))
                assert own is not None, called
                yield own, np.ascontiguousarray(each)
            continue
        if ".experts." in name:
            yield from stacks(name.split(".")[2], name, np.ascontiguousarray(value))
            continue
        name = name.replace("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight")
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(value)


def stacks(layer: str, name: str, value: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Experts of a layer, gate and up apart, as llama.cpp's converter has them."""
    if name.endswith("down_proj"):
        yield f"blk.{layer}.ffn_down_exps.weight", value
        return
    half = value.shape[1] // 2
    yield f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(value[:, :half])
    yield f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(value[:, half:])


def gpt_oss_stacks(name: str, value: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Experts of a layer of gpt-oss: matrices the other way round, and gate and up taken in turns."""
    ending = "bias" if name.endswith("_bias") else "weight"
    value = value if ending == "bias" else value.swapaxes(1, 2)
    parts = {"down": value} if "down_proj" in name else {"gate": value[:, 0::2], "up": value[:, 1::2]}
    for part, each in parts.items():
        yield f"blk.{name.split('.')[2]}.ffn_{part}_exps.{ending}", np.ascontiguousarray(each)


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows of q or k: halves of a head become neighbouring pairs."""
    per_head = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2).reshape(weight.shape))


def llama3_factors(model: Any, rope: Mapping[str, Any]) -> NDArray[np.float32]:
    """Divisors of the frequencies as Llama 3.1 defines them."""
    head_dim = model.config.head_dim
    low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
    values = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        if wavelength < high:
            values.append(1.0)
        elif wavelength > low:
            values.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            values.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(values, np.float32)
