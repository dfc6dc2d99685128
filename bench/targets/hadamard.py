"""The Hadamard transform of rows ahead of packing, beside the product with the dense matrix that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from npumatmul.quant import Hadamard, hadamard_matrix
from targets.lines import Turns, line


@line(
    "Hadamard transform of {0}x{1}",
    "numpy float32 @ dense matrix, its threads",
    over=product((1, 128), (576, 1536, 2048, 4096, 5632, 11008)),
)
def hadamard_rows(rows: int, k: int) -> Iterator[Turns]:
    """As `matmul` does it for weights with a Hadamard transform."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    transform = Hadamard(k)
    rotation = (transform.signs[:, np.newaxis] * hadamard_matrix(k).T / np.sqrt(k)).astype(np.float32)
    np.testing.assert_allclose(transform.activation(x), x @ rotation, atol=1e-4)
    yield Turns(lambda: transform.activation(x), lambda: x @ rotation)
