"""What takes the place of attention in some blocks, as configurations say it."""

from __future__ import annotations

from dataclasses import dataclass

from npumatmul.llm.models.settings import MAX_HEAD

__all__ = ["DeltaNet", "Mixer", "ShortConv"]

MAX_KERNEL = 1 << 10
MAX_STATE = 1 << 26
"""Values that a cache keeps of a sequence in one layer: a hundred times as many as in any model."""


@dataclass(frozen=True)
class DeltaNet:
    """A `npumatmul.nn.GatedDeltaNet`.

    Attributes
    ----------
    key_heads, value_heads, key_dim, value_dim, kernel, fused, tiled
        As its parameters.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    fused: tuple[str, ...] = ()
    tiled: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("key_heads", "value_heads", "key_dim", "value_dim"):
            if not 1 <= getattr(self, name) <= MAX_HEAD:
                raise ValueError(f"{name} of linear attention is {getattr(self, name)}; it must be 1 to {MAX_HEAD}")
        _check_kernel(self.kernel)
        if self.value_heads * self.key_dim * self.value_dim > MAX_STATE:
            raise ValueError(
                f"linear attention has {self.value_heads} heads with states of {self.key_dim} x {self.value_dim}; "
                f"together these may be {MAX_STATE} values"
            )
        if self.value_heads % self.key_heads:
            raise ValueError(
                f"linear attention has {self.value_heads} heads of values, no multiple of its {self.key_heads} of keys"
            )

    def state_shapes(self, hidden_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a cache keeps of each sequence."""
        channels = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return (self.kernel - 1, channels), (self.value_heads, self.key_dim, self.value_dim)

    def products(self, hidden_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """``(K, N)`` of its linear layers."""
        values = self.value_heads * self.value_dim
        wide = 2 * self.key_heads * self.key_dim + 2 * values + 2 * self.value_heads
        return (hidden_size, wide), (values, hidden_size)


@dataclass(frozen=True)
class ShortConv:
    """A `npumatmul.nn.ShortConv`.

    Attributes
    ----------
    kernel, bias
        As its parameters.
    """

    kernel: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        _check_kernel(self.kernel)

    def state_shapes(self, hidden_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a cache keeps of each sequence."""
        return ((self.kernel - 1, hidden_size),)

    def products(self, hidden_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """``(K, N)`` of its linear layers."""
        return (hidden_size, 3 * hidden_size), (hidden_size, hidden_size)


Mixer = DeltaNet | ShortConv


def _check_kernel(kernel: int) -> None:
    if not 2 <= kernel <= MAX_KERNEL:
        raise ValueError(f"a convolution over time looks at {kernel} tokens; it must be 2 to {MAX_KERNEL}")
