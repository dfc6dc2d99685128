"""What a model is as far as its size and speed go: its linear layers, and what the CPU does between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["BlockShape", "HostWork", "LinearShape", "ModelShape"]

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
        How many there are.
    experts, chosen : int
        Where they are parts of experts: how many of these a block has, and how many of them a token passes; else 0.
    each : int
        Rows for each token.

    Examples
    --------
    >>> expert = LinearShape("expert.down", 768, 2048, 128, experts=128, chosen=8)
    >>> expert.touched(1), round(expert.touched(128), 2), round(expert.rows(128), 2)
    (8.0, 127.97, 8.0)
    """

    name: str
    k: int
    n: int
    times: int
    experts: int = 0
    chosen: int = 0
    each: int = 1

    def touched(self, rows: int) -> float:
        """Of how many of them a product is computed for so many tokens.

        All of them, but of experts those that at least one token is expected to choose. Tokens are taken to choose
        independently of one another and all experts alike: real ones have favourites, so they touch fewer.
        """
        if not self.experts:
            return float(self.times)
        return self.times * (1 - (1 - self.chosen / self.experts) ** rows)

    def rows(self, tokens: int) -> float:
        """How many rows each of those products has, on average."""
        if not self.experts:
            return float(tokens * self.each)
        return tokens * self.chosen * (self.times / self.experts) / self.touched(tokens)

    def whole_rows(self, tokens: int) -> int:
        """As `rows`, rounded up: what a product is planned for."""
        return math.ceil(self.rows(tokens) - 1e-9)


@dataclass(frozen=True)
class HostWork:
    """What one thread of the CPU does in a block, beside products with weights.

    Attributes
    ----------
    copied : float
        Values per row that go through memory, each read and written once as by a copy.
    exponentials : float
        Per row.
    operations : float
        Of float32 products per row.
    heads, key_size, value_size : int
        Of attention: query heads, and the widths of a key and of a value of one head.
    window : int or None
        Positions that are seen at most.
    cached : int
        Values that are kept for each position.
    state, chunk : int
        Without attention: values that are kept for a sequence, whatever its length, and how many rows are worked on at
        once. These see one another, and the state is read and written once for all of them.
    always : int
        Positions that each row sees, whatever came before: of what was heard.
    """

    copied: float
    exponentials: float
    operations: float
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    window: int | None = None
    cached: int = 0
    state: int = 0
    chunk: int = 0
    always: int = 0

    def seen(self, rows: int, keys: int) -> int:
        """How many of so many positions each row sees, itself included."""
        if self.always:
            return self.always
        if self.chunk:
            return min(rows, self.chunk)
        return keys if self.window is None else min(keys, self.window)

    def kept(self, rows: int, keys: int) -> float:
        """Copies of what is kept: keys and values are read once, a state is read and written by each chunk."""
        states = self.state * math.ceil(rows / self.chunk) if self.chunk else 0
        return self.seen(rows, keys) * self.cached / 2 + states


@dataclass(frozen=True)
class BlockShape:
    """Blocks that are alike.

    Attributes
    ----------
    times : int
        How many of them the model has.
    linears : tuple of LinearShape
        Of one block; matrices with one input are one product.
    work : HostWork
        Of one block.
    further : bool
        Whether this is another part of blocks that are counted already, or of none.
    """

    times: int
    linears: tuple[LinearShape, ...]
    work: HostWork
    further: bool = False


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a model.

    Attributes
    ----------
    name : str
    kind : {"decoder", "encoder", "speech"}
    hidden, vocab : int
    blocks : tuple of BlockShape
    head : LinearShape or None
        The output matrix; None where there is none.
    tables : int
        Values of tables of embeddings that no product is computed with.
    hearing : ModelShape, optional
        Of a model of speech, the half that hears; all else is of the half that writes.
    states : int
        States of a window of sound.

    Raises
    ------
    ValueError
        If a number is no size of a model.

    Examples
    --------
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> for each in SHAPES["SmolLM2-135M"].linears:
    ...     print(each.name, each.k, each.n, each.times)
    qkv 576 960 30
    attn_out 576 576 30
    gate_up 576 3072 30
    down 1536 576 30
    """

    name: str
    kind: Literal["decoder", "encoder", "speech"]
    hidden: int
    vocab: int
    blocks: tuple[BlockShape, ...]
    head: LinearShape | None
    tables: int
    hearing: ModelShape | None = None
    states: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.layers <= _MOST_LAYERS:
            raise ValueError(f"{self.name}: it has {self.layers} layers; that is no size of a model")
        for each in (*self.linears, *self._heads):
            if not (1 <= each.k <= _LARGEST and 1 <= each.n <= _LARGEST):
                raise ValueError(f"{self.name}: {each.name} is {each.k} x {each.n}; that is no size of a model")

    @property
    def layers(self) -> int:
        """How many blocks."""
        own = sum(block.times for block in self.blocks if not block.further)
        return own if self.hearing is None else own + self.hearing.layers

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """Linear layers of all blocks, those that are alike together."""
        found: dict[LinearShape, int] = {}
        for block in self.blocks:
            for each in block.linears:
                like = each._replace(times=0)
                found[like] = found.get(like, 0) + block.times * each.times
        return tuple(like._replace(times=times) for like, times in found.items())

    @property
    def _heads(self) -> Iterable[LinearShape]:
        return () if self.head is None else (self.head,)

    @property
    def every_linear(self) -> tuple[LinearShape, ...]:
        """`linears`, and the output matrix at the end."""
        return (*self.linears, *self._heads)

    @property
    def whole(self) -> tuple[LinearShape, ...]:
        """`every_linear`, behind those of the half that hears."""
        return (*(() if self.hearing is None else self.hearing.every_linear), *self.every_linear)

    @property
    def cached(self) -> int:
        """Values that all blocks together keep for each position."""
        return sum(block.times * block.work.cached for block in self.blocks if not block.work.always)

    @property
    def parameters(self) -> int:
        """Weights of linear layers and tables of embeddings."""
        return self.tables + sum(each.k * each.n * each.times for each in self.whole)

    @property
    def active_parameters(self) -> int:
        """Of these, what a token passes."""
        return self.tables + sum(round(each.k * each.n * each.touched(1)) for each in self.whole)
