"""The dimensions of a decoder language model, and a table of models by name."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

__all__ = ["SHAPES", "LinearShape", "ModelShape"]

#: No dimension of a real model comes near: keeps a damaged file from asking for years of planning.
_LARGEST = 1 << 24
_MOST_LAYERS = 1 << 12


class LinearShape(NamedTuple):
    """Linear layers that are alike.

    Attributes
    ----------
    name : str
    k, n : int
        Inputs and outputs.
    times : int
        How many the model has.
    """

    name: str
    k: int
    n: int
    times: int


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder whose feed-forward network has a gate.

    Attributes
    ----------
    name : str
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab : int
        `ffn` is the width of gate and up each.
    tied : bool
        Whether the output matrix is the embedding table.
    norms : int
        Of the hidden state, per layer.
    qk_norm : bool
        Whether queries and keys are normalised, too.
    q_rank, kv_rank, rope_dim, value_dim : int or None
        Of latent attention: ranks of queries and of keys with values, the part of each head that is rotated, and the
        width of a head's values; None elsewhere.

    Raises
    ------
    ValueError
        If the numbers do not fit together.

    Examples
    --------
    >>> [tuple(each) for each in SHAPES["SmolLM2-135M"].linears]
    [('qkv', 576, 960, 30), ('attn_out', 576, 576, 30), ('gate_up', 576, 3072, 30), ('down', 1536, 576, 30)]
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    norms: int = 2
    qk_norm: bool = False
    q_rank: int | None = None
    kv_rank: int | None = None
    rope_dim: int | None = None
    value_dim: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and not 1 <= value <= (_MOST_LAYERS if field.name == "layers" else _LARGEST):
                raise ValueError(f"{self.name}: {field.name} is {value}; that is no size of a model")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.name}: {self.heads} heads are no multiple of {self.kv_heads} key heads")
        latent = [self.q_rank, self.kv_rank, self.rope_dim, self.value_dim]
        if any(each is None for each in latent) != all(each is None for each in latent):
            raise ValueError(f"{self.name}: latent attention has two ranks, a rotated part and a width of values")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def values(self) -> int:
        """Width of what attention gives, all heads together."""
        return self.heads * (self.head_dim if self.value_dim is None else self.value_dim)

    @property
    def cached(self) -> int:
        """Values that are kept per layer and position: keys and values, or what both are made of."""
        if self.kv_rank is not None and self.rope_dim is not None:
            return self.kv_rank + self.rope_dim
        return 2 * self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """Linear layers of all blocks; matrices with one input are one product."""
        attention: tuple[tuple[str, int, int], ...]
        if self.q_rank is None or self.kv_rank is None or self.rope_dim is None or self.value_dim is None:
            attention = (("qkv", self.hidden, self.q_size + 2 * self.kv_heads * self.head_dim),)
        else:
            kv = self.heads * (self.head_dim - self.rope_dim + self.value_dim)
            attention = (
                ("q_kv_down", self.hidden, self.q_rank + self.kv_rank + self.rope_dim),
                ("q_up", self.q_rank, self.q_size),
                ("kv_up", self.kv_rank, kv),
            )
        every = (
            *attention,
            ("attn_out", self.values, self.hidden),
            ("gate_up", self.hidden, 2 * self.ffn),
            ("down", self.ffn, self.hidden),
        )
        return tuple(LinearShape(name, k, n, self.layers) for name, k, n in every)

    @property
    def head(self) -> LinearShape:
        """The output matrix."""
        return LinearShape("head", self.hidden, self.vocab, 1)

    @property
    def parameters(self) -> int:
        """Weights of linear layers and tables of embeddings."""
        tables = self.hidden * self.vocab * (1 if self.tied else 2)
        return tables + sum(each.k * each.n * each.times for each in self.linears)


def _table() -> dict[str, ModelShape]:
    found = {}
    with (Path(__file__).parent / "shapes.csv").open() as file:
        for row in csv.DictReader(file):
            name = row.pop("name")
            flags = {key: row.pop(key) == "yes" for key in ("tied", "qk_norm")}
            sizes = {key: int(value) for key, value in row.items() if value}
            found[name] = ModelShape(name=name, **sizes, **flags)  # type: ignore[arg-type]
    return found


#: Models by name, from their published configurations as remembered: check against a config.json where one is at hand.
SHAPES: Mapping[str, ModelShape] = _table()
