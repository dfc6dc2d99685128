"""A part of a model: some of its blocks, for one of several boards."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npumatmul.llm.models.decoder_config import DecoderConfig

__all__ = ["Part", "part_of"]

_OF_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Part:
    """Blocks of a model, from one to the one before another.

    Attributes
    ----------
    first, last : int
        As of a slice.
    blocks : int
        How many the whole model has.
    """

    first: int
    last: int
    blocks: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.first < self.last <= self.blocks:
            raise ValueError(
                f"layers ({self.first}, {self.last}) are no part of the model, which has {self.blocks} blocks: "
                f"(0, {self.blocks}) is all of it"
            )

    def __str__(self) -> str:
        """Return it in words."""
        those = f"block {self.first}" if self.last - self.first == 1 else f"blocks {self.first} to {self.last - 1}"
        return f"{those} of {self.blocks}"

    @property
    def is_first(self) -> bool:
        """Whether it takes tokens; others take states of the part before."""
        return self.first == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives logits; others give states."""
        return self.last == self.blocks

    def parameter(self, name: str) -> str:
        """What a parameter of the part is called in the whole model.

        Examples
        --------
        >>> Part(12, 24, 24).parameter("model.layers.0.mlp.up_proj.weight")
        'model.layers.12.mlp.up_proj.weight'
        """
        return _OF_BLOCK.sub(lambda found: f"model.layers.{int(found[1]) + self.first}.", name, count=1)


def part_of(config: DecoderConfig, layers: tuple[int, int] | None) -> DecoderConfig:
    """The configuration of a part of a model; of the whole one by default.

    Raises
    ------
    ValueError
        If the model does not have these blocks, or blocks that take more than the states of the one before.
    """
    if layers is None:
        return config
    if config.whole_only is not None:
        raise ValueError(
            f"layers {tuple(layers)} of {config.architecture} cannot be computed alone: {config.whole_only}"
        )
    part = Part(*layers, config.n_layers)
    if config.layer_embedding or any(each.follows is not None for each in config.layers):
        raise ValueError(
            f"a model of the kind {config.architecture} cannot be cut into parts: its blocks take embeddings of the "
            "tokens, or keys of other blocks, beside the states of the block before"
        )
    return replace(config, n_layers=part.last - part.first, layers=config.layers[part.first : part.last], part=part)
