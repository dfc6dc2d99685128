"""What the config.json of Hugging Face's architectures have in common."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from npumatmul.files.reading import shown
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, LayerConfig, Rotation
from npumatmul.llm.models.settings import REQUIRED, Settings

__all__ = [
    "activation",
    "alike",
    "decoder_config",
    "experts",
    "layer_kinds",
    "layer_windows",
    "no_windows",
    "number_or_none",
    "rotation",
    "rotation_of_kind",
    "sizes",
]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}

IGNORED = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "architectures",  # looked at by `check_classes`
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "default_theta",
        "dtype",
        "embd_pdrop",
        "embedding_dropout",
        "eos_token_id",
        "hidden_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "max_sequence_length",
        "max_window_layers",
        "model_max_length",
        "model_type",
        "output_past",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "residual_dropout",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_flash_attn",
    }
)  # none of these changes what a model computes when it continues a text
TRAINED_WITH = "quantization_config"

SCALINGS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"factor": REQUIRED},
    "llama3": {"factor": REQUIRED, "low_freq_factor": REQUIRED, "high_freq_factor": REQUIRED},
    "yarn": {"factor": None, "beta_fast": 32.0, "beta_slow": 1.0},
    "longrope": {},
}
"""Kinds of scaling, and the numbers that each takes, beside the length the model was trained with before."""


def sizes(settings: Settings, *, head_dim: int | None = None, n_kv_heads: int | None = None) -> dict[str, Any]:
    """Read the sizes that all of them call the same, as arguments of `DecoderConfig`.

    Parameters
    ----------
    settings : Settings
        The configuration.
    head_dim, n_kv_heads : int, optional
        What the architecture takes missing ones for; by default the width divided by the heads, and all heads.
    """
    hidden = settings.size("hidden_size")
    heads = settings.size("num_attention_heads")
    head_dim = settings.size("head_dim", head_dim)
    if head_dim is None:
        if hidden % heads:
            raise settings.error(f"hidden_size is {hidden}, which cannot be divided among {heads} heads")
        head_dim = hidden // heads
    return {
        "n_layers": settings.layers("num_hidden_layers"),
        "hidden_size": hidden,
        "n_heads": heads,
        "n_kv_heads": settings.size("num_key_value_heads", n_kv_heads or heads),
        "head_dim": head_dim,
        "ffn_size": settings.size("intermediate_size"),
        "vocab_size": settings.size("vocab_size"),
        "context_length": settings.size("max_position_embeddings"),
    }


def decoder_config(settings: Settings, *, quantized: str | None = None, **values: Any) -> DecoderConfig:
    """Make the configuration, after refusing what nobody asked for.

    Parameters
    ----------
    settings : Settings
        The configuration.
    quantized : str, optional
        ``quant_method`` of quantized weights that are read.
    **values
        Of the configuration.

    Raises
    ------
    npumatmul.errors.ModelError
        If there are values whose meaning is not known, or values do not fit together.
    """
    given = settings.group(TRAINED_WITH)
    if given is not None and (quantized is None or given.text("quant_method", None) != quantized):
        raise settings.error(
            f"its weights are quantized ({TRAINED_WITH!r}); use the folder of the model before it was quantized"
        )
    settings.must_be("is_causal", True)
    settings.finish(ignored=IGNORED)
    try:
        return DecoderConfig(**values)
    except ValueError as error:
        raise settings.error(str(error)) from error


def activation(settings: Settings, name: str = "hidden_act", default: str = "silu") -> Any:
    """Read the function of the feed-forward network."""
    settings.must_be(name, default, *(each for each in ACTIVATIONS if each != default))
    return ACTIVATIONS[settings.text(name, default)]


def experts(
    settings: Settings,
    count: int,
    chosen: int,
    size: tuple[str, int | None],
    *,
    softmax: Literal["all", "chosen"] | None = "all",
    **more: Any,
) -> Experts:
    """Read how many experts there are.

    Parameters
    ----------
    settings : Settings
        The configuration.
    count, chosen : int
        What the architecture takes missing numbers for.
    size : tuple of str and int
        What the width inside an expert is called, and what a missing one means; None where there has to be one.
    softmax, **more
        As of `Experts`.
    """
    names = [name for name in ("num_experts", "num_local_experts") if name in settings]
    counts = [settings.size(name) for name in names] or [count]
    if len(set(counts)) > 1:
        raise settings.error(f"'num_experts' is {counts[0]} and 'num_local_experts' {counts[1]}")
    chosen = settings.size("num_experts_per_tok", chosen)
    width = settings.size(size[0], REQUIRED if size[1] is None else size[1])
    try:
        return Experts(counts[0], chosen, width, softmax, **more)
    except ValueError as error:
        raise settings.error(str(error)) from error


def layer_windows(settings: Settings, n_layers: int, sliding: list[bool], window: int | None) -> list[int | None]:
    """Read which layers look back at a window, from ``layer_types`` or else by the architecture's own rule.

    Parameters
    ----------
    settings : Settings
        The configuration.
    n_layers : int
        Layers.
    sliding : list of bool
        The architecture's own rule.
    window : int or None
        The window; None if the model has none.
    """
    names = ("full_attention", "sliding_attention")
    sliding = [each == names[1] for each in layer_kinds(settings, n_layers, [names[each] for each in sliding], names)]
    if any(sliding) and window is None:
        raise settings.error("'sliding_window' is missing, and layers slide a window")
    return [window if each else None for each in sliding]


def layer_kinds(settings: Settings, n_layers: int, rule: list[str], known: Collection[str]) -> list[str]:
    """Read what kind each layer is of, from ``layer_types`` or else by the architecture's own rule.

    Parameters
    ----------
    settings : Settings
        The configuration.
    n_layers : int
        Layers.
    rule : list of str
        The architecture's own rule.
    known : collection of str
        Kinds that there are.
    """
    kinds = settings.sequence("layer_types", str)
    if kinds is None:
        return rule
    unknown = [each for each in kinds if each not in known]
    if unknown:
        raise settings.error(
            f"'layer_types' has a layer of the kind {shown(unknown[0])}; supported: {', '.join(known)}"
        )
    if len(kinds) != n_layers:
        raise settings.error(f"'layer_types' names {len(kinds)} layers; there are {n_layers}")
    return kinds


def no_windows(settings: Settings, n_layers: int) -> list[int | None]:
    """As `layer_windows`, where the architecture has none."""
    return layer_windows(settings, n_layers, [False] * n_layers, None)


def number_or_none(settings: Settings, name: str, default: float) -> float | None:
    """Look up a number that may be null, where a missing one means another than null."""
    value: float | None = settings.number(name, None if name in settings.names else default)
    return value


def rotation(
    settings: Settings,
    head_dim: int,
    context_length: int,
    theta: float = 10000.0,
    *,
    kind: str | None = None,
    aliases: Mapping[str, str] | None = None,
    beside: Collection[str] = (),
) -> Rotation:
    """Read how positions are told, from today's ``rope_parameters`` or from ``rope_theta`` and ``rope_scaling``.

    Parameters
    ----------
    settings : Settings
        The configuration.
    head_dim : int
        Values per head.
    context_length : int
        ``max_position_embeddings``.
    theta : float
        The architecture's own base.
    kind : str, optional
        Which of the groups of ``rope_parameters`` to read, where layers of several kinds have one each.
    aliases : mapping of str to str, optional
        Kinds of scaling that this architecture calls otherwise.
    beside : collection of str
        Values of the group that the architecture reads itself.
    """
    theta = settings.number("rope_theta", theta)
    partial = settings.positive("partial_rotary_factor", 1.0)
    before = settings.size("original_max_position_embeddings", None)
    given = _given(settings)
    if given is not None and kind is not None and kind in given:
        return rotation_of_kind(settings, head_dim, context_length, theta, kind)
    if given is None:
        return _made(settings, head_dim, partial, theta, None)
    return _read(settings, given, head_dim, context_length, partial, theta, before, aliases or {}, beside)


def rotation_of_kind(settings: Settings, head_dim: int, context_length: int, theta: float, kind: str) -> Rotation:
    """Read how positions are told to layers of one kind, from their own group of ``rope_parameters``.

    Where there is none, positions are told with the base `theta`, unscaled.
    """
    given = _given(settings)
    own = None if given is None else given.group(kind)
    if own is None:
        return _made(settings, head_dim, 1.0, theta, None)
    assert given is not None
    given.ignore(("full_attention", "sliding_attention"))
    given.finish()
    return _read(settings, own, head_dim, context_length, 1.0, theta, None, {}, ())


def _given(settings: Settings) -> Settings | None:
    if "rope_parameters" in settings and "rope_scaling" in settings:
        raise settings.error("it has both 'rope_parameters' and 'rope_scaling'; take one of them out")
    return settings.group("rope_scaling") or settings.group("rope_parameters")


def _read(
    settings: Settings,
    given: Settings,
    head_dim: int,
    context_length: int,
    partial: float,
    theta: float,
    before: int | None,
    aliases: Mapping[str, str],
    beside: Collection[str],
) -> Rotation:
    theta = given.number("rope_theta", theta)
    partial = given.positive("partial_rotary_factor", partial)
    name = given.text("rope_type", given.text("type", "default"))
    name = aliases.get(name, name)
    if name == "proportional":
        scaled = {"rope_type": name, "partial_rotary_factor": partial, "factor": given.positive("factor", 1.0)}
        given.finish(ignored=beside)
        return _made(settings, head_dim, 1.0, theta, scaled)
    given.size("original_max_position_embeddings", None)  # means nothing where nothing is scaled
    scaling = None if name == "default" else _scaling(given, name, context_length, before)
    given.finish(ignored=beside)
    return _made(settings, head_dim, partial, theta, scaling)


def _made(
    settings: Settings, head_dim: int, partial: float, theta: float, scaling: Mapping[str, Any] | None
) -> Rotation:
    try:
        return Rotation(int(head_dim * min(partial, 2.0)), theta, scaling)  # more than 1 is refused with the layers
    except ValueError as error:
        raise settings.error(str(error)) from error


def _scaling(given: Settings, name: str, context_length: int, before: int | None) -> dict[str, Any]:
    name = {"su": "longrope"}.get(name, name)
    if name not in SCALINGS:
        raise given.error(
            f"its rotary positions are scaled with {name!r}, which is not known; known: {', '.join(SCALINGS)}"
        )
    scaling: dict[str, Any] = {"rope_type": name}
    for key, default in SCALINGS[name].items():
        scaling[key] = given.number(key, default)
    if name == "linear":
        return scaling
    inside = given.size("original_max_position_embeddings", context_length if before is None else before)
    if before not in (None, inside):
        raise given.error(f"'original_max_position_embeddings' is {before} in one place and {inside} in another")
    before = inside
    if before < 2:
        raise given.error(
            f"it was trained with a context of {before} tokens before that was scaled; it must be 2 or more"
        )
    scaling["original_max_position_embeddings"] = before
    if name == "llama3":
        return scaling
    ratio = given.positive("factor", None) or context_length / before
    factor = given.number("attention_factor", None)
    if name == "yarn":
        scaling["factor"] = ratio
        scaling["truncate"] = given.flag("truncate", True)
        mscale, mscale_all = given.number("mscale", None), given.number("mscale_all_dim", None)
        if factor is None:
            both = bool(mscale and mscale_all)
            factor = yarn_factor(ratio, mscale) / yarn_factor(ratio, mscale_all) if both else yarn_factor(ratio)
    else:
        scaling["short_factor"] = given.sequence("short_factor", (int, float))
        scaling["long_factor"] = given.sequence("long_factor", (int, float))
        if factor is None:
            factor = longrope_factor(ratio, before)
    scaling["attention_factor"] = factor
    return scaling


def yarn_factor(ratio: float, mscale: float = 1.0) -> float:
    """By what YaRN multiplies rotated queries and keys where the context became `ratio` times longer."""
    return 1.0 if ratio <= 1 else 0.1 * mscale * math.log(ratio) + 1.0


def longrope_factor(ratio: float, before: int) -> float:
    """By what LongRoPE multiplies rotated queries and keys where `before` tokens became `ratio` times more."""
    return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(before))


def alike(rotation: Rotation | None, windows: list[int | None]) -> tuple[LayerConfig, ...]:
    """Layers that differ in their windows alone."""
    return tuple(LayerConfig(rotation, window) for window in windows)
