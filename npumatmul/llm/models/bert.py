"""BERT: learned positions and types of tokens, norms after attention and network, biases everywhere.

So are MiniLM, BGE, E5, GTE and most other models of embeddings that are called by these names.
"""

from __future__ import annotations

from collections.abc import Callable

from npumatmul.llm.models import from_folder
from npumatmul.llm.models.decoder_config import LayerConfig
from npumatmul.llm.models.encoder_config import EncoderArchitecture, EncoderConfig
from npumatmul.llm.models.encoder_settings import encoder_config, head_of, is_classifier
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import MAX_SIZE, Settings

__all__ = ["BERT", "NAMES"]

NAMES = (
    ("word.", "embeddings.word_embeddings."),
    ("position.", "embeddings.position_embeddings."),
    ("type.", "embeddings.token_type_embeddings."),
    ("embedding_norm.", "embeddings.LayerNorm."),
    ("layers.", "encoder.layer."),
    ("self_attn.q_proj.", "attention.self.query."),
    ("self_attn.k_proj.", "attention.self.key."),
    ("self_attn.v_proj.", "attention.self.value."),
    ("self_attn.o_proj.", "attention.output.dense."),
    ("attn_norm.", "attention.output.LayerNorm."),
    ("mlp.up_proj.", "intermediate.dense."),
    ("mlp.down_proj.", "output.dense."),
    ("mlp_norm.", "output.LayerNorm."),
)


def _from_config(settings: Settings) -> EncoderConfig:
    n_layers = settings.layers("num_hidden_layers")
    settings.must_be("position_embedding_type", "absolute")
    positions, types = settings.integer("max_position_embeddings"), settings.integer("type_vocab_size", 2)
    return encoder_config(
        settings,
        architecture="bert",
        n_layers=n_layers,
        hidden_size=settings.integer("hidden_size"),
        n_heads=settings.integer("num_attention_heads"),
        ffn_size=settings.integer("intermediate_size"),
        vocab_size=settings.integer("vocab_size"),
        context_length=positions,
        layers=(LayerConfig(),) * n_layers,
        norm_eps=settings.number("layer_norm_eps", 1e-12),
        activation=from_folder.activation(settings, default="gelu"),
        positions=positions,
        types=types,
        pair_types=types > 1,
        head=head_of(settings) if is_classifier(settings) else None,
    )


def _from_gguf(settings: GGUFSettings, rows: Callable[[str], int]) -> EncoderConfig:
    """Of llama.cpp's ``bert``: XLM-RoBERTa too, from whose positions its converter takes the first, unused ones."""
    n_layers = settings.layers("block_count")
    settings.ignore(("attention.causal", "pooling_type", "classifier.output_labels"))
    if settings.flag("attention.causal", False):
        raise settings.error("'bert.attention.causal' is True; encoders see what follows a token")
    hidden, types = settings.integer("embedding_length"), rows("embeddings.token_type_embeddings.weight")
    settings.must_be("attention.head_count_kv", settings.integer("attention.head_count"))
    return encoder_config(
        settings,
        architecture="bert",
        n_layers=n_layers,
        hidden_size=hidden,
        n_heads=settings.integer("attention.head_count"),
        ffn_size=settings.integer("feed_forward_length"),
        vocab_size=settings.integer("vocab_size"),
        context_length=min(
            settings.integer("context_length"), rows("embeddings.position_embeddings.weight") or MAX_SIZE
        ),
        layers=(LayerConfig(),) * n_layers,
        norm_eps=settings.number("attention.layer_norm_epsilon"),
        positions=rows("embeddings.position_embeddings.weight"),
        types=types,
        pair_types=types > 1,
    )


BERT = EncoderArchitecture(
    "bert",
    model_types=("bert",),
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"),
    from_config=_from_config,
    prefix="bert.",
    names=NAMES,
    head_names=(("head.dense.", "bert.pooler.dense."), ("head.out.", "classifier.")),
    others=("embeddings.position_ids", "pooler.", "cls."),
    gguf=("bert",),
    from_gguf=_from_gguf,
    models="MiniLM, BGE, E5, GTE, ms-marco cross-encoders",
)
