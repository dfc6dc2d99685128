"""What a Whisper model is made of: sizes of its two halves, read from config.json."""

from __future__ import annotations

from dataclasses import dataclass

from npumatmul.files.reading import shown
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.class_names import check_classes
from npumatmul.llm.models.from_folder import ACTIVATIONS, IGNORED, TRAINED_WITH
from npumatmul.llm.models.settings import MAX_LAYERS, MAX_SIZE, Settings

__all__ = ["SPEECH_TYPES", "WhisperConfig", "is_speech", "whisper_config_from", "whisper_config_of"]

SPEECH_TYPES = ("whisper",)

#: Of training, of heads that are not used, or about tokens, which `SpeechTokens` reads.
_IGNORED = IGNORED | {
    "activation_dropout",
    "apply_spec_augment",
    "begin_suppress_tokens",
    "classifier_proj_size",
    "decoder_layerdrop",
    "dropout",
    "encoder_layerdrop",
    "forced_decoder_ids",
    "init_std",
    "is_encoder_decoder",
    "mask_feature_length",
    "mask_feature_min_masks",
    "mask_feature_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_time_prob",
    "max_length",
    "median_filter_width",
    "num_hidden_layers",
    "scale_embedding",  # which neither transformers nor any other program applies
    "suppress_tokens",
    "use_cache",
}


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of a Whisper model.

    Attributes
    ----------
    mel_bins : int
        Bands of the spectrum.
    hidden_size : int
        Width of states in both halves.
    encoder_layers, encoder_heads, encoder_ffn : int
        Blocks of the half that hears, its heads, and the width inside its networks.
    decoder_layers, decoder_heads, decoder_ffn : int
        Those of the half that writes.
    vocab_size : int
        Tokens.
    positions : int
        States of a window: two frames of the spectrum become one.
    context_length : int
        Longest sequence of tokens of a window.
    activation : str
        Function of the networks.
    tied : bool
        Whether that table is the output matrix, too.

    Raises
    ------
    ValueError
        If values do not fit together.
    """

    mel_bins: int
    hidden_size: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocab_size: int
    positions: int = 1500
    context_length: int = 448
    activation: str = "gelu"
    tied: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool):
                most = MAX_LAYERS if name.endswith("_layers") else MAX_SIZE
                if not 1 <= value <= most:
                    raise ValueError(f"{name} is {value}; it must be between 1 and {most}")
        for name, heads in (("encoder", self.encoder_heads), ("decoder", self.decoder_heads)):
            if self.hidden_size % heads:
                raise ValueError(f"d_model is {self.hidden_size}, which {heads} heads of the {name} cannot share")
        if self.context_length < 8:
            raise ValueError(f"max_target_positions is {self.context_length}, which leaves no room for words")

    @property
    def frames(self) -> int:
        """Frames of the spectrum in a window."""
        return 2 * self.positions


def is_speech(source: ModelSource) -> bool:
    """Whether a model turns speech into text."""
    return source.kind == "folder" and source.architecture in SPEECH_TYPES


def whisper_config_of(source: ModelSource) -> WhisperConfig:
    """Read what a model is made of.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is no Whisper, or a value that may change the arithmetic is not known.
    """
    if not is_speech(source):
        raise source.error(f"{shown(source.architecture)} turns no speech into text; known: {', '.join(SPEECH_TYPES)}")
    return whisper_config_from(Settings(source.config, source.error))


def whisper_config_from(settings: Settings) -> WhisperConfig:
    """As `whisper_config_of`, from the values of a config.json."""
    if TRAINED_WITH in settings:
        raise settings.error(
            f"its weights are quantized ({TRAINED_WITH!r}); use the folder of the model before it was quantized"
        )
    check_classes(settings, ("WhisperForConditionalGeneration",))
    settings.must_be("use_weighted_layer_sum", False)
    settings.must_be("activation_function", "gelu", *(each for each in ACTIVATIONS if each != "gelu"))
    values = {
        "mel_bins": settings.size("num_mel_bins", 80),
        "hidden_size": settings.size("d_model"),
        "encoder_layers": settings.layers("encoder_layers"),
        "encoder_heads": settings.size("encoder_attention_heads"),
        "encoder_ffn": settings.size("encoder_ffn_dim"),
        "decoder_layers": settings.layers("decoder_layers"),
        "decoder_heads": settings.size("decoder_attention_heads"),
        "decoder_ffn": settings.size("decoder_ffn_dim"),
        "vocab_size": settings.size("vocab_size"),
        "positions": settings.size("max_source_positions", 1500),
        "context_length": settings.size("max_target_positions", 448),
        "activation": ACTIVATIONS[settings.text("activation_function", "gelu")],
        "tied": settings.flag("tie_word_embeddings", True),
    }
    settings.finish(ignored=_IGNORED)
    try:
        return WhisperConfig(**values)
    except ValueError as error:
        raise settings.error(str(error)) from error
