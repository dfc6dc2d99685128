"""ModernBERT: rotary positions, a gated network, norms before, and most layers looking at a window only."""

from __future__ import annotations

import dataclasses

from npumatmul.llm.models import from_folder
from npumatmul.llm.models.decoder_config import LayerConfig
from npumatmul.llm.models.encoder_config import EncoderArchitecture, EncoderConfig
from npumatmul.llm.models.encoder_settings import encoder_config, head_of, is_classifier
from npumatmul.llm.models.settings import Settings

__all__ = ["MODERNBERT"]

_WITHOUT_MEANING = (
    "classifier_bias",  # of other heads than those that give scores of texts, which have their own in either case
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "initializer_cutoff_factor",
    "layer_norm_eps",
    "mlp_dropout",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
)


def _from_config(settings: Settings) -> EncoderConfig:
    n_layers = settings.layers("num_hidden_layers")
    hidden, heads = settings.integer("hidden_size", 768), settings.integer("num_attention_heads", 12)
    if heads < 1 or hidden % heads:
        raise settings.error(f"hidden_size is {hidden}, which cannot be divided among {heads} heads")
    if "rope_scaling" in settings:
        raise settings.error("its rotary positions are scaled ('rope_scaling'), which is not known of ModernBERT")
    context = settings.integer("max_position_embeddings", 8192)
    rotations = {
        kind: from_folder.rotation_of_kind(settings, hidden // heads, context, settings.number(key, theta), kind)
        for kind, key, theta in (
            ("full_attention", "global_rope_theta", 160000.0),
            ("sliding_attention", "local_rope_theta", 10000.0),
        )
    }
    every = settings.integer("global_attn_every_n_layers", 3)
    if every < 1:
        raise settings.error(f"'global_attn_every_n_layers' is {every}; it must be 1 or more")
    local = settings.integer("local_attention", 128)
    if local < 0:
        raise settings.error(f"'local_attention' is {local}; it must be 0 or more")
    window = local // 2 + 1  # so many before a token, itself among them
    rule = [bool(i % every) for i in range(n_layers)]
    windows = from_folder.layer_windows(settings, n_layers, rule, window)
    bias, norm_bias = settings.flag("attention_bias", False), settings.flag("norm_bias", False)
    pooling = settings.text("classifier_pooling", "cls")
    settings.must_be("classifier_pooling", "cls", "mean")
    of_head = from_folder.activation(settings, "classifier_activation", "gelu")
    settings.ignore(_WITHOUT_MEANING)
    head = None
    if is_classifier(settings):
        has_bias = settings.flag("classifier_bias", False)
        head = dataclasses.replace(
            head_of(settings), pooling=pooling, activation=of_head, norm=True, dense_bias=has_bias
        )
    return encoder_config(
        settings,
        architecture="modernbert",
        n_layers=n_layers,
        hidden_size=hidden,
        n_heads=heads,
        ffn_size=settings.integer("intermediate_size", 1152),
        vocab_size=settings.integer("vocab_size"),
        context_length=context,
        layers=tuple(
            LayerConfig(rotations["full_attention" if each is None else "sliding_attention"], each) for each in windows
        ),
        norm_eps=settings.number("norm_eps", 1e-5),
        norm_bias=norm_bias,
        norms="before",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        activation=from_folder.activation(settings, "hidden_activation", "gelu"),
        gated=True,
        fused=True,
        head=head,
    )


MODERNBERT = EncoderArchitecture(
    "modernbert",
    model_types=("modernbert",),
    classes=("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
    from_config=_from_config,
    prefix="model.",
    names=(
        ("word.", "embeddings.tok_embeddings."),
        ("embedding_norm.", "embeddings.norm."),
        ("self_attn.qkv.", "attn.Wqkv."),
        ("self_attn.o_proj.", "attn.Wo."),
        ("mlp.gate_up.", "mlp.Wi."),
        ("mlp.down_proj.", "mlp.Wo."),
    ),
    head_names=(("head.dense.", "head.dense."), ("head.norm.", "head.norm."), ("head.out.", "classifier.")),
    others=("head.", "decoder."),
    models="ModernBERT, GTE ModernBERT",
)
