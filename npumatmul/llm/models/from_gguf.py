"""What the metadata of GGUF files have in common, whatever the architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, Rotation
from npumatmul.llm.models.from_folder import yarn_factor
from npumatmul.llm.models.settings import REQUIRED, Settings

__all__ = ["GGUFSettings", "biases", "decoder_config", "experts", "rotation", "settings_of", "sizes"]

T = TypeVar("T")

IGNORED = frozenset(
    ["rope.scaling.finetuned", "tensor_data_layout", "use_parallel_residual"]
)  # "finetuned" only says how a scaling came to be
GUESSING = "nextn_predict_layers"
GATES: Mapping[str | None, tuple[int, ...]] = {"all": (1,), "chosen": (1, 3), None: (2,)}
"""Numbers of what makes weights of the scores of experts: a softmax, of all or of the chosen ones, or sigmoids."""
FROM_TOKENS = "tokenizer.ggml.tokens"


class GGUFSettings(Settings):
    """The metadata of a GGUF file that describe its model, with what else tells how it is to be read.

    Attributes
    ----------
    parameters : collection of str
        Names of its tensors, by Hugging Face's names of parameters.
    rope_factors : mapping of str to ndarray
        Divisors of frequencies, by the kinds ``"freqs"``, ``"long"`` and ``"short"``.
    interleaved_rope : bool
        Whether rows of q and k are stored so that neighbours make a pair: llama.cpp does so for the llama family.
    norms_include_one : bool
        Whether the 1 that some architectures add to weights of norms is in them.
    tokens : sequence of str
        Its vocabulary.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        error: Callable[[str], ModelError],
        *,
        prefix: str = "",
        parameters: Collection[str] = (),
        rope_factors: Mapping[str, NDArray[np.float32]] | None = None,
        interleaved_rope: bool = False,
        norms_include_one: bool = False,
        tokens: Sequence[str] = (),
    ) -> None:
        super().__init__(values, error, prefix=prefix)
        self.parameters = parameters
        self.rope_factors: Mapping[str, NDArray[np.float32]] = rope_factors or {}
        self.interleaved_rope = interleaved_rope
        self.norms_include_one = norms_include_one
        self.tokens = tokens

    def guessing_layers(self) -> int:
        """Look up how many of the last layers guess tokens after the next one; these are left out."""
        count: int = self.integer(GUESSING, 0)
        if not 0 <= count < self.layers("block_count"):
            raise self._wrong(GUESSING, count, "fewer layers than there are")
        return count

    def replaced(self, values: Mapping[str, Any]) -> GGUFSettings:
        """The same settings with other values of some names, which were looked at before."""
        made = copy.copy(self)
        made._values = {**self._values, **values}
        return made


def settings_of(
    metadata: Mapping[str, Any], arch: str, error: Callable[[str], ModelError], **tensors: Any
) -> GGUFSettings:
    """The values of a file that describe its model, by their names without the architecture's.

    Parameters
    ----------
    metadata : mapping
        All metadata of the file.
    arch : str
        ``general.architecture``.
    error : callable
        Makes the exception for a problem with the model.
    **tensors
        Attributes of `GGUFSettings`.
    """
    prefix = f"{arch}."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    tokens = metadata.get(FROM_TOKENS)
    if isinstance(tokens, list):
        values.setdefault("vocab_size", len(tokens))
        tensors["tokens"] = tokens
    return GGUFSettings(values, error, prefix=prefix, **tensors)


def sizes(
    settings: Settings,
    eps: str = "attention.layer_norm_rms_epsilon",
    *,
    has_experts: bool = False,
    n_kv_heads: int | None = None,
    ffn_size: int | None = None,
) -> dict[str, Any]:
    """Read the sizes that all of them call the same, as arguments of `DecoderConfig`.

    Parameters
    ----------
    settings : Settings
        The metadata.
    eps : str
        What they call the constant of norms.
    has_experts : bool
        Whether the architecture is a mixture of experts, which `experts` reads.
    n_kv_heads : int, optional
        Heads of keys and values, where they were read already.
    ffn_size : int, optional
        What a missing width inside the feed-forward network means.
    """
    if not has_experts:
        count = settings.integer("expert_count", 0)
        if count:
            raise settings.error(f"it is a mixture of {shown(count)} experts, and its architecture has none")
        settings.ignore(("expert_used_count",))
    hidden = settings.size("embedding_length")
    heads = settings.size("attention.head_count")
    head_dim = settings.size("attention.key_length", None)
    if head_dim is None:
        if hidden % heads:
            raise settings.error(f"its width {hidden} cannot be divided among {heads} heads")
        head_dim = hidden // heads
    value_dim = settings.size("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise settings.error(f"its values have {value_dim} and its keys {head_dim} dimensions; they must be equal")
    return {
        "n_layers": settings.layers("block_count"),
        "hidden_size": hidden,
        "n_heads": heads,
        "n_kv_heads": n_kv_heads or settings.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "ffn_size": settings.size("feed_forward_length", REQUIRED if ffn_size is None else ffn_size),
        "vocab_size": settings.size("vocab_size"),
        "context_length": settings.size("context_length"),
        "norm_eps": settings.number(eps),
    }


def experts(
    settings: GGUFSettings,
    *,
    size: str,
    softmax: Literal["all", "chosen"] | None = "all",
    normalize: bool = False,
    **more: Any,
) -> Experts:
    """Read how many experts there are.

    Parameters
    ----------
    settings : GGUFSettings
        The metadata.
    size : str
        What the width inside an expert is called.
    softmax, normalize, **more
        As of `Experts`: what llama.cpp does for the architecture.
    """
    settings.must_be("expert_gating_func", *GATES[softmax])
    settings.must_be("expert_weights_norm", normalize or softmax == "chosen")
    settings.must_be("expert_weights_scale", 1.0, 0.0)
    settings.must_be("expert_shared_count", 0)
    settings.must_be("expert_group_count", 0, 1)
    settings.ignore(("expert_group_used_count",))
    count, chosen = settings.size("expert_count"), settings.size("expert_used_count")
    width = settings.size(size)
    return _checked(settings, lambda: Experts(count, chosen, width, softmax, normalize, **more))


def biases(settings: GGUFSettings) -> dict[str, Any]:
    """Which biases there are and whether the head is the embedding table, as arguments of `DecoderConfig`."""
    first, weights = "model.layers.0", settings.parameters
    return {
        "qkv_bias": f"{first}.self_attn.q_proj.bias" in weights,
        "out_bias": f"{first}.self_attn.o_proj.bias" in weights,
        "mlp_bias": f"{first}.mlp.down_proj.bias" in weights,
        "tied": "lm_head.weight" not in weights,
    }


def decoder_config(settings: Settings, **values: Any) -> DecoderConfig:
    """Make the configuration, after refusing what nobody asked for.

    Raises
    ------
    npumatmul.errors.ModelError
        If there are values whose meaning is not known, or values do not fit together.
    """
    settings.must_be("attention.causal", True)
    settings.finish(ignored=IGNORED)
    return _checked(settings, lambda: DecoderConfig(**values))


def rotation(settings: GGUFSettings, head_dim: int, context_length: int) -> Rotation:
    """Read how positions are told.

    Parameters
    ----------
    settings : GGUFSettings
        The metadata.
    head_dim, context_length : int
        Values per head, and the longest sequence.
    """
    dim = settings.size("rope.dimension_count", head_dim)
    theta = settings.number("rope.freq_base", 10000.0)
    scaling = _scaling(settings, context_length)
    factors = settings.rope_factors.get("freqs")
    if factors is not None and scaling is not None:
        raise settings.error("it has both a scaling of rotary positions and the tensor 'rope_freqs.weight'")
    flat = None if factors is None else tuple(np.ravel(factors).tolist())
    return _checked(settings, lambda: Rotation(dim, theta, scaling, settings.interleaved_rope, flat))


def _scaling(settings: GGUFSettings, context_length: int) -> dict[str, Any] | None:
    kind = settings.text("rope.scaling.type", None)
    older = settings.number("rope.scale_linear", 0.0)
    ratio = settings.number("rope.scaling.factor", 0.0) or older
    before = settings.size("rope.scaling.original_context_length", context_length)
    factor = settings.number("rope.scaling.attn_factor", 1.0)
    if kind == "longrope" or "long" in settings.rope_factors or "short" in settings.rope_factors:
        return _longrope(settings, before, factor)
    if factor != 1.0:
        raise settings.error(f"'rope.scaling.attn_factor' is {factor}; it is known for 'longrope' alone")
    if kind == "none" or (kind in (None, "linear") and ratio in (0.0, 1.0)):
        return None
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": ratio}
    if kind != "yarn":
        raise settings.error(
            f"its rotary positions are scaled with {kind!r}, which is not known; known: none, linear, yarn, longrope, "
            f"and the tensor rope_freqs.weight"
        )
    settings.must_be("rope.scaling.yarn_ext_factor", 1.0)
    if not ratio:
        raise settings.error("its rotary positions are scaled with 'yarn', and 'rope.scaling.factor' is missing")
    factor = settings.number("rope.scaling.yarn_attn_factor", None)
    log_mul = settings.number("rope.scaling.yarn_log_multiplier", 0.0)
    if log_mul:
        factor = yarn_factor(ratio) / yarn_factor(ratio, log_mul)
    return {
        "rope_type": "yarn",
        "factor": ratio,
        "original_max_position_embeddings": before,
        "attention_factor": factor or yarn_factor(ratio),
        "beta_fast": settings.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": settings.number("rope.scaling.yarn_beta_slow", 1.0),
        "truncate": True,
    }


def _longrope(settings: GGUFSettings, before: int, factor: float) -> dict[str, Any]:
    lists = {}
    for name in ("short", "long"):
        if name not in settings.rope_factors:
            raise settings.error(
                f"its rotary positions are scaled with 'longrope', and tensor 'rope_factors_{name}.weight' is missing"
            )
        lists[f"{name}_factor"] = np.ravel(settings.rope_factors[name]).tolist()
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": before,
        "attention_factor": factor,
        **lists,
    }


def _checked(settings: Settings, make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise settings.error(str(error)) from error
