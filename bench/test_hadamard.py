"""The Hadamard transform of rows ahead of packing, beside the product with the dense matrix that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import Beside
from npumatmul.quant import Hadamard, hadamard_matrix


@pytest.mark.parametrize("k", [576, 1536, 2048, 4096, 5632, 11008])
@pytest.mark.parametrize("rows", [1, 128])
def test_hadamard_rows(beside: Beside, k: int, rows: int) -> None:
    """As `matmul` does it for weights with a Hadamard transform."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    transform = Hadamard(k)
    rotation = (transform.signs[:, np.newaxis] * hadamard_matrix(k).T / np.sqrt(k)).astype(np.float32)
    np.testing.assert_allclose(transform.activation(x), x @ rotation, atol=1e-4)
    what = f"Hadamard transform of {rows}x{k}"
    beside(what, lambda: transform.activation(x), "numpy float32 @ dense matrix, its threads", lambda: x @ rotation)
