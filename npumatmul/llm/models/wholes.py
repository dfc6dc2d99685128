"""Models that see, whose language model is of an architecture that there is by itself: which one, and where it stands.

Their config.json has the language model's values in ``text_config``; what is beside it is about pictures. Tensors of
encoders are left out (`Architecture.left_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.models import from_folder
from npumatmul.llm.models.class_names import check_classes
from npumatmul.llm.models.settings import Settings

__all__ = ["WHOLES", "Whole", "language_config"]

LEFT_OUT = tuple(
    f"{stem}{part}." for stem in ("", "model.") for part in ("visual", "vision_tower", "multi_modal_projector")
)
TIED = "tie_word_embeddings"
OF_PICTURES = frozenset(
    {
        "boi_token_id",
        "boi_token_index",
        "do_image_splitting",
        "downsample_factor",
        "encoder_patch_size",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_token_index",
        "max_image_tokens",
        "max_num_patches",
        "max_pixels_tolerance",
        "max_tiles",
        "min_image_tokens",
        "min_tiles",
        "mm_tokens_per_image",
        "multimodal_projector_bias",
        "projector_bias",
        "projector_hidden_act",
        "projector_hidden_size",
        "projector_use_layernorm",
        "spatial_merge_size",
        "tile_size",
        "use_image_special_tokens",
        "use_thumbnail",
        "video_token_id",
        "vision_config",
        "vision_end_token_id",
        "vision_feature_layer",
        "vision_start_token_id",
    }
)
"""Values that change nothing where a text is all that is read."""


@dataclass(frozen=True)
class Whole:
    """A model that sees.

    Attributes
    ----------
    classes : tuple of str
        Classes of transformers whose checkpoints it is.
    text_types : tuple of str
        ``model_type`` of language models that it may have; the first where it says none.
    models : str
        Models that people run, for lists.
    left_out : tuple of str
        What names of tensors begin with that are not of the language model.
    """

    classes: tuple[str, ...]
    text_types: tuple[str, ...]
    models: str
    left_out: tuple[str, ...] = LEFT_OUT


WHOLES: Mapping[str, Whole] = {
    "gemma3": Whole(("Gemma3ForConditionalGeneration", "Gemma3Model"), ("gemma3_text",), "Gemma 3 (4B, 12B, 27B)"),
    "mistral3": Whole(
        ("Mistral3ForConditionalGeneration", "Mistral3Model"),
        ("mistral", "ministral3"),
        "Mistral Small 3.1, Ministral 3",
    ),
    "qwen3_5": Whole(("Qwen3_5ForConditionalGeneration", "Qwen3_5Model"), ("qwen3_5_text",), "Qwen 3.5 (dense)"),
    "qwen3_5_moe": Whole(
        ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeModel"), ("qwen3_5_moe_text",), "Qwen 3.5 (experts)"
    ),
    "lfm2_vl": Whole(("Lfm2VlForConditionalGeneration", "Lfm2VlModel"), ("lfm2",), "LFM2-VL, LFM2.5-VL"),
}


def language_config(
    config: Mapping[str, Any], error: Callable[[str], ModelError], *, has_head: bool | None = None
) -> Mapping[str, Any]:
    """The values of the language model of a model that sees, as its own config.json would have them.

    Parameters
    ----------
    config : mapping
        The values of the whole.
    error : callable
        Makes the exception of a message.
    has_head : bool, optional
        Whether there is an output matrix beside the embeddings; then they are not tied, whatever the values say.

    Raises
    ------
    npumatmul.errors.ModelError
        If there are none, the language model is another than these models have, or a value beside is not known.
    """
    name = config["model_type"]
    whole = WHOLES[name]
    settings = Settings(config, error)
    check_classes(settings, whole.classes)
    tied = settings.flag("tie_embedding", settings.flag(TIED, False)) if _says_tied(config) else None
    text = config.get("text_config")
    if not isinstance(text, Mapping) or not text:
        raise error(f"its model_type is {name!r}, and 'text_config', which has its language model, is {shown(text)}")
    kind = text.get("model_type", whole.text_types[0])
    if kind not in whole.text_types:
        raise error(
            f"'text_config.model_type' is {shown(kind)}; language models of {name!r} are {', '.join(whole.text_types)}"
        )
    settings.ignore(("text_config", from_folder.TRAINED_WITH))
    settings.finish(ignored=from_folder.IGNORED | OF_PICTURES)
    made = {key: value for key, value in text.items() if key != "architectures"}
    made["model_type"] = kind
    if config.get(from_folder.TRAINED_WITH) is not None:
        made[from_folder.TRAINED_WITH] = config[from_folder.TRAINED_WITH]
    if has_head:
        tied = False
    elif tied is None and has_head is False and not _says_tied(text):
        tied = True
    if tied is not None:
        made = {key: value for key, value in made.items() if key != "tie_embedding"} | {TIED: tied}
    return made


def _says_tied(config: Mapping[str, Any]) -> bool:
    return config.get(TIED) is not None or config.get("tie_embedding") is not None
