"""What ``architectures`` of a config.json says: the classes of transformers that a checkpoint was saved from."""

from __future__ import annotations

from collections.abc import Collection

from npumatmul.files.reading import shown
from npumatmul.llm.models.settings import Settings

__all__ = ["check_classes"]


def check_classes(settings: Settings, classes: Collection[str]) -> None:
    """Refuse a model that was saved from another class than those that are computed.

    It has a head that nobody would compute, such as one for the kinds of words, or it belongs to another family and
    ``model_type`` is wrong.

    Parameters
    ----------
    settings : Settings
        The configuration; one that names no classes passes.
    classes : collection of str
        Those that are computed. Case does not matter: the first Llamas were saved from ``LLaMAForCausalLM``.

    Raises
    ------
    npumatmul.errors.ModelError
        If one is named that is none of them.
    """
    known = {each.lower() for each in classes}
    for name in settings.sequence("architectures", str) or []:
        if name.lower() not in known:
            kind = settings.text("model_type", None)
            raise settings.error(
                f"'architectures' names {shown(name)}, which is not computed for model_type {shown(kind)}; supported: "
                f"{', '.join(classes)}"
            )
