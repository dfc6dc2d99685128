"""What the NPU computes in the place of nodes: one class for each kind, with arrays in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.epilogue import Activation, Epilogue
from npumatmul.host.onnx_bridge import Allocate
from npumatmul.nn.product import Float32, PackedProduct
from npumatmul.ops import matmul

__all__ = ["Computed", "Convolution", "Finish", "Given", "Product", "Recurrent", "needed"]

Given = list["NDArray[Any] | None"]


@dataclass
class Finish:
    """What is done to results in the pass that stores them.

    Attributes
    ----------
    bias : ndarray of float32, shape (N,), or None
    activation : str or None
    clip : (float, float) or None
    dims : int
        The most dimensions of its constants: a result has as many at least, as ONNX broadcasts.
    """

    bias: Float32 | None = None
    activation: Activation | None = None
    clip: tuple[float, float] | None = None
    dims: int = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a result, from that of the product."""
        return (1,) * (self.dims - len(shape)) + shape if self.dims > len(shape) else shape

    def epilogue(self, dtype: Any) -> Epilogue | None:
        """As an `Epilogue`; None where nothing is to be done."""
        if self.bias is None and self.activation is None and self.clip is None and dtype == np.float32:
            return None
        return Epilogue(bias=self.bias, activation=self.activation, clip=self.clip, dtype=dtype)


@dataclass
class Computed:
    """Base of all.

    Attributes
    ----------
    name : str
        Of the node.
    rows : int
        Rows that were multiplied by now.
    """

    name: str
    rows: int = field(default=0, init=False)

    def compute(self, given: Given, outputs: int, allocate: Allocate) -> None:
        """Compute a node."""
        raise NotImplementedError

    @property
    def products(self) -> list[Any]:
        """What the NPU multiplies with."""
        raise NotImplementedError


@dataclass
class Product(Computed):
    """``finish(x @ weight)``, of MatMul, Gemm and Einsum.

    Attributes
    ----------
    product : Product
    finish : Finish
    summed, made : tuple of int
        Dimensions that K and N stand for, where an Einsum has several.
    """

    product: Any
    finish: Finish
    summed: tuple[int, ...] = ()
    made: tuple[int, ...] = ()
    _epilogues: dict[Any, Epilogue | None] = field(default_factory=dict, init=False)

    @property
    def products(self) -> list[Any]:
        """One."""
        return [self.product]

    def compute(self, given: Given, outputs: int, allocate: Allocate) -> None:
        """Multiply ``(..., K)`` to ``(..., N)``."""
        (x,) = given
        assert x is not None
        k, n = self.product.shape
        tail = self.made or (n,)
        if self.summed and x.shape[-len(self.summed) :] == self.summed:
            x = x.reshape(*x.shape[: -len(self.summed)], k)
        if x.ndim < 1 or x.shape[-1] != k:
            raise ValueError(f"node {self.name!r}: its input has shape {x.shape}, and its weight takes {k} values")
        shape = (*x.shape[:-1], n)
        y = needed(allocate(0, self.finish.shape((*x.shape[:-1], *tail)), x.dtype)).reshape(shape)
        self.rows += x.size // k
        if y.dtype not in self._epilogues:
            self._epilogues[y.dtype] = self.finish.epilogue(y.dtype)
        epilogue = self._epilogues[y.dtype]
        if type(self.product) is PackedProduct:
            matmul(x, self.product.weight, y, epilogue=epilogue, dtype=None if epilogue else y.dtype)
            return
        made = self.product(np.ascontiguousarray(x.reshape(-1, k), np.float32))
        into = y.reshape(-1, n)
        if epilogue is None:
            into[...] = made
        else:
            epilogue.apply(np.ascontiguousarray(made, np.float32), into)


@dataclass
class Convolution(Computed):
    """Conv and ConvTranspose."""

    layer: Any
    before: tuple[tuple[int, int], ...] | None
    after: tuple[tuple[int, int], ...] | None
    finish: Finish

    @property
    def products(self) -> list[Any]:
        """Those of all groups."""
        found: list[Any] = list(self.layer.products)
        return found

    def compute(self, given: Given, outputs: int, allocate: Allocate) -> None:
        """Convolve ``(B, C, *spatial)``."""
        (x,) = given
        assert x is not None
        dims = x.ndim - 2
        if self.before is not None:
            x = np.pad(x, ((0, 0), (0, 0), *self.before))
        made = np.asarray(self.layer(x), np.float32)
        if self.after is not None:  # what a transposed convolution has too much of
            cut = tuple(slice(low, size - high) for (low, high), size in zip(self.after, made.shape[2:], strict=True))
            made = made[(slice(None), slice(None)) + cut]  # noqa: RUF005
        y = needed(allocate(0, self.finish.shape(made.shape), x.dtype)).reshape(made.shape)
        self.rows += made.size // max(1, made.shape[1])
        if self.finish.bias is not None:
            made = made + self.finish.bias.reshape(-1, *(1,) * dims)
        epilogue = Finish(None, self.finish.activation, self.finish.clip).epilogue(y.dtype)
        if epilogue is None or not made.size:
            y[...] = made
        else:
            epilogue.apply(np.ascontiguousarray(made).reshape(-1, made.shape[-1]), y.reshape(-1, made.shape[-1]))


@dataclass
class Recurrent(Computed):
    """LSTM, GRU and RNN: products with inputs on the NPU, all steps at once; the recurrence on the CPU in float32."""

    gates: int
    product: Any
    bias: Float32
    recurrent: Sequence[Float32]
    recurrent_bias: Sequence[Float32]
    directions: tuple[int, ...]
    hidden: int
    is_reset_after: bool

    @property
    def products(self) -> list[Any]:
        """One, of both directions."""
        return [self.product]

    def compute(self, given: Given, outputs: int, allocate: Allocate) -> None:
        """Run ``(T, B, features)`` through all steps."""
        x = given[0]
        assert x is not None
        states = [given[i] if len(given) > i else None for i in (1, 2)]
        k, _ = self.product.shape
        if x.ndim != 3 or x.shape[2] != k:
            raise ValueError(f"node {self.name!r}: its input has shape {x.shape}; it takes (steps, batch, {k})")
        steps, batch, _ = x.shape
        self.rows += steps * batch
        rows = np.ascontiguousarray(x.reshape(-1, k))
        if type(self.product) is PackedProduct:
            seen = matmul(rows, self.product.weight, bias=self.bias)
        else:
            seen = self.product(rows) + self.bias
        gates = np.asarray(seen).reshape(steps, batch, len(self.directions), len(self.bias) // len(self.directions))
        shape = (len(self.directions), batch, self.hidden)
        y = np.empty((steps, *shape), np.float32)
        h = np.zeros(shape, np.float32) if states[0] is None else states[0].copy()
        c = np.zeros(shape, np.float32) if states[1] is None else states[1].copy()
        step = {4: self._lstm, 3: self._gru, 1: self._rnn}[self.gates]
        for d, direction in enumerate(self.directions):
            order = range(steps)[::direction]
            for t in order:
                h[d], c[d] = step(d, gates[t, :, d], h[d], c[d])
                y[t, d] = h[d]
        for i, values in enumerate((y, h, c)[:outputs]):
            into = allocate(i, values.shape, np.float32)
            if into is not None:
                into[...] = values

    def _lstm(self, d: int, seen: Float32, h: Float32, c: Float32) -> tuple[Float32, Float32]:
        n = self.hidden
        all_gates = seen + h @ self.recurrent[d]
        i, o, f = (_sigmoid(all_gates[:, j * n : (j + 1) * n]) for j in range(3))
        c = f * c + i * np.tanh(all_gates[:, 3 * n :])
        return o * np.tanh(c), c

    def _gru(self, d: int, seen: Float32, h: Float32, c: Float32) -> tuple[Float32, Float32]:
        n, r, b = self.hidden, self.recurrent[d], self.recurrent_bias[d]
        z, reset = (_sigmoid(seen[:, j * n : (j + 1) * n] + h @ r[:, j * n : (j + 1) * n]) for j in range(2))
        last = r[:, 2 * n :]
        if self.is_reset_after:
            new = np.tanh(seen[:, 2 * n :] + reset * (h @ last + b[2 * n :]))
        else:
            new = np.tanh(seen[:, 2 * n :] + (reset * h) @ last)
        return (1 - z) * new + z * h, c

    def _rnn(self, d: int, seen: Float32, h: Float32, c: Float32) -> tuple[Float32, Float32]:
        return np.tanh(seen + h @ self.recurrent[d]), c


def needed(output: NDArray[Any] | None) -> NDArray[Any]:
    """An output that the operator cannot leave out."""
    assert output is not None, "ONNX Runtime has left out an output that the operator needs"
    return output


def _sigmoid(x: Float32) -> Float32:
    made: Float32 = np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)
    return made
