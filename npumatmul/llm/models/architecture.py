"""What the file of an architecture says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["Architecture"]


@dataclass(frozen=True)
class Architecture:
    """A way to read the configuration of some models.

    Attributes
    ----------
    name : str
        What we call it.
    model_types : tuple of str
        ``model_type`` of the config.json that it reads.
    from_config : callable
        From those values to a `DecoderConfig`.
    gguf : tuple of str
        ``general.architecture`` of the GGUF files that it reads; none if llama.cpp does not know the architecture.
    from_gguf : callable, optional
        From their values to a `DecoderConfig`.
    classes : tuple of str
        Classes of transformers whose checkpoints it reads, as ``architectures`` of the config.json names them.
    names : mapping of str to str
        Parts by the names that their parameters have in `Decoder`, where checkpoints have others; one after the other.
    models : str
        Models that people run, for lists.
    left_out : tuple of str
        What names of tensors begin with that are no part of the language model, such as those of a vision encoder.
    """

    name: str
    model_types: tuple[str, ...]
    from_config: Callable[[Settings], DecoderConfig]
    gguf: tuple[str, ...] = ()
    from_gguf: Callable[[GGUFSettings], DecoderConfig] | None = None
    classes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    models: str = ""
    left_out: tuple[str, ...] = ()

    def in_checkpoint(self, name: str) -> str:
        """What checkpoints call a parameter of a `Decoder`."""
        dotted = f".{name}"
        for ours, theirs in self.names.items():
            dotted = dotted.replace(f".{ours}.", f".{theirs}.")
        return dotted[1:]
