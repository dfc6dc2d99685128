"""RoBERTa and XLM-RoBERTa: BERT, with positions that begin behind the number of the padding token."""

from __future__ import annotations

from npumatmul.llm.models import from_folder
from npumatmul.llm.models.bert import NAMES
from npumatmul.llm.models.decoder_config import LayerConfig
from npumatmul.llm.models.encoder_config import EncoderArchitecture, EncoderConfig
from npumatmul.llm.models.encoder_settings import encoder_config, head_of, is_classifier
from npumatmul.llm.models.settings import Settings

__all__ = ["ROBERTA"]


def _from_config(settings: Settings) -> EncoderConfig:
    n_layers = settings.layers("num_hidden_layers")
    settings.must_be("position_embedding_type", "absolute")
    positions = settings.integer("max_position_embeddings")
    pad_id = settings.integer("pad_token_id", 1)
    return encoder_config(
        settings,
        architecture="roberta",
        n_layers=n_layers,
        hidden_size=settings.integer("hidden_size"),
        n_heads=settings.integer("num_attention_heads"),
        ffn_size=settings.integer("intermediate_size"),
        vocab_size=settings.integer("vocab_size"),
        context_length=positions - pad_id - 1,
        layers=(LayerConfig(),) * n_layers,
        norm_eps=settings.number("layer_norm_eps", 1e-12),
        activation=from_folder.activation(settings, default="gelu"),
        positions=positions,
        pad_id=pad_id,
        types=settings.integer("type_vocab_size", 2),
        head=head_of(settings) if is_classifier(settings) else None,
    )


ROBERTA = EncoderArchitecture(
    "roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    classes=(
        "RobertaModel",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "XLMRobertaModel",
        "XLMRobertaForMaskedLM",
        "XLMRobertaForSequenceClassification",
        "CamembertModel",
        "CamembertForMaskedLM",
        "CamembertForSequenceClassification",
    ),
    from_config=_from_config,
    prefix="roberta.",
    names=NAMES,
    head_names=(("head.dense.", "classifier.dense."), ("head.out.", "classifier.out_proj.")),
    others=("embeddings.position_ids", "pooler.", "lm_head."),
    models="multilingual E5, BGE-M3 (dense), BGE rerankers, all-distilroberta",
)
