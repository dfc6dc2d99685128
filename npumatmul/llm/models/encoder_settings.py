"""What the config.json of encoders have in common."""

from __future__ import annotations

from typing import Any, Literal

from npumatmul.files.reading import shown
from npumatmul.llm.models.encoder_config import EncoderConfig, HeadConfig
from npumatmul.llm.models.from_folder import IGNORED, TRAINED_WITH
from npumatmul.llm.models.settings import Settings

__all__ = ["encoder_config", "head_of", "is_classifier"]

_IGNORED = IGNORED | {
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "is_decoder",  # false, or it is refused before
    "tie_word_embeddings",  # of a head that guesses tokens, which is not used
}
_SCORES: dict[str, Literal["sigmoid", "identity"]] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}


def encoder_config(settings: Settings, **values: Any) -> EncoderConfig:
    """Make the configuration, after refusing what nobody asked for.

    Raises
    ------
    npumatmul.errors.ModelError
        If there are values whose meaning is not known, or values do not fit together.
    """
    if TRAINED_WITH in settings:
        raise settings.error(
            f"its weights are quantized ({TRAINED_WITH!r}); use the folder of the model before it was quantized"
        )
    settings.must_be("is_decoder", False)
    settings.must_be("is_causal", False)
    settings.finish(ignored=_IGNORED)
    try:
        return EncoderConfig(**values)
    except ValueError as error:
        raise settings.error(str(error)) from error


def is_classifier(settings: Settings) -> bool:
    """Whether a head follows that gives scores of texts."""
    names = settings.sequence("architectures", str) or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def head_of(settings: Settings) -> HeadConfig:
    """Read how many scores a head gives, and what sentence-transformers does to a single one."""
    labels = settings.group("id2label")
    count = settings.integer("num_labels", 2 if labels is None else len(labels.names))
    if labels is not None and count != len(labels.names):
        raise settings.error(f"'num_labels' is {count}, and 'id2label' names {len(labels.names)}")
    name = settings.text("sbert_ce_default_activation_function", None)
    more = settings.group("sentence_transformers")
    if more is not None:
        more.ignore(["version"])
        name = more.text("activation_fn", name)
        more.finish()
    if name is not None and name not in _SCORES:
        raise settings.error(f"scores are made by {shown(name)}; supported: {' or '.join(_SCORES)}")
    try:
        return HeadConfig(count, scores="sigmoid" if name is None else _SCORES[name])
    except ValueError as error:
        raise settings.error(str(error)) from error
