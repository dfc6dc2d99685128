"""Kernels of layers beside numpy, over any shapes and strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npumatmul import nn
from npumatmul.host import layers
from npumatmul.host.executor import Function

Float32 = NDArray[np.float32]


@given(st.data())
def test_the_kth_largest_is_that_of_a_sort(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 1500))
    k = data.draw(st.integers(1, count))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    values = rng.integers(-20, 20, count).astype(np.float32) if data.draw(st.booleans()) else rng.standard_normal(count)
    values = values.astype(np.float32)
    values[rng.random(count) < 0.1] = -np.inf
    assert layers.kth_largest(values, k) == np.sort(values)[::-1][k - 1]


@st.composite
def arrays(draw: st.DrawFn) -> Float32:
    """Rows of odd shapes, strides and alignments."""
    shape = (*draw(st.lists(st.integers(1, 5), max_size=3)), draw(st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    wide = rng.standard_normal((*shape[:-1], shape[-1] + 3)).astype(np.float32)
    x: Any = wide[..., draw(st.integers(0, 3)) :][..., : shape[-1]]
    if x.ndim == 4 and draw(st.booleans()):
        x = x.swapaxes(1, 2)
    if x.ndim > 1 and draw(st.booleans()):
        x = x[::-1]
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    return x  # type: ignore[no-any-return]


@given(arrays())
def test_norms(x: Float32) -> None:
    wide, dim = x.astype(np.float64), x.shape[-1]
    factor, bias = (np.linspace(0.5, 2, dim).astype(np.float32) for _ in range(2))
    square = np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layers.rms_norm(x, factor, 1 / dim, 1e-5), wide / square * factor, rtol=5e-6, atol=1e-7)
    np.testing.assert_allclose(layers.rms_norm(x, None, 1 / dim, 1e-5), wide / square, rtol=5e-6, atol=1e-7)
    centred = wide - wide.mean(-1, keepdims=True)
    right = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * factor + bias
    np.testing.assert_allclose(layers.layer_norm(x, factor, bias, 1 / dim, 1e-5), right, rtol=1e-5, atol=2e-4)


@given(arrays())
def test_gates_and_sums(x: Float32) -> None:
    other = np.ascontiguousarray(x[..., ::-1])
    wide = x.astype(np.float64)
    right = wide / (1 + np.exp(-wide)) * other
    np.testing.assert_allclose(layers.gate(x, Function.SILU, other), right, rtol=2e-6, atol=1e-12)
    np.testing.assert_array_equal(layers.gate(x, Function.RELU, None), np.maximum(x, 0))
    np.testing.assert_array_equal(layers.add(x, other, 0.5), x + other * np.float32(0.5))
    np.testing.assert_array_equal(layers.scale(x, 3.0), x * np.float32(3))


@pytest.mark.parametrize("interleaved", [False, True])
@given(arrays(), st.integers(0, 9))
def test_rotations(interleaved: bool, x: Float32, position: int) -> None:
    if x.ndim < 2 or x.shape[-1] < 2:
        return
    half = x.shape[-1] // 2

    def parts(values: Float32) -> tuple[Float32, Float32]:
        rotated = values[..., : 2 * half]
        return (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else (rotated[..., :half], rotated[..., half:])

    angles = np.arange(position + x.shape[-2])[:, None] * np.linspace(0.1, 1, half)
    cos, sin = (np.ascontiguousarray(f(angles), np.float32) for f in (np.cos, np.sin))
    rotation = layers.Rotation(cos.ctypes.data, sin.ctypes.data, len(cos), half, interleaved)
    y = layers.rotate(x, rotation, position, None)
    first, second = parts(x)
    turned = (first + 1j * second.astype(np.complex128)) * np.exp(1j * angles[position:])
    for part, right in zip(parts(y), (turned.real, turned.imag), strict=True):
        np.testing.assert_allclose(part, right, rtol=0, atol=1e-6 * np.abs(x).max())
    np.testing.assert_array_equal(y[..., 2 * half :], x[..., 2 * half :])


def unaligned(x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The same values where no float begins: behind a byte, and in records of five bytes."""
    behind = np.frombuffer(b"\0" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape)
    records = np.zeros(x.shape, np.dtype([("kind", np.int8), ("value", np.float32)]))
    records["value"] = x
    assert not behind.flags.aligned
    assert records["value"].strides[-1] == 5
    return [behind, records["value"]]


def test_floats_that_begin_anywhere() -> None:
    """As in files that are mapped, and in packed records."""
    x = np.random.default_rng(1).standard_normal((2, 3, 16), np.float32)
    rope, norms = nn.RoPE(8), (nn.RMSNorm(16), nn.LayerNorm(16))
    for weight in unaligned(np.linspace(1, 2, 16, dtype=np.float32)):
        norms[1].weight = norms[1].bias = weight
        for odd in unaligned(x):
            for work in (*norms, lambda x: rope(x, 5), lambda x: nn.activate(x, "silu", x)):
                assert work(odd).tobytes() == work(x.copy()).tobytes()
            assert nn.activate(x, "gelu", odd).tobytes() == nn.activate(x, "gelu", x).tobytes()
            assert layers.kth_largest(odd.reshape(-1), 3) == np.sort(x, axis=None)[-3]


def test_a_position_that_is_no_integer_is_refused_as_by_numpy() -> None:
    with pytest.raises(TypeError, match="integers"):
        nn.RoPE(8)(np.ones((1, 8), np.float32), 1.5)  # type: ignore[arg-type]


def test_queries_without_values_see_all_keys_alike() -> None:
    q, k, v = np.ones((2, 3, 0), np.float32), np.ones((2, 5, 0), np.float32), np.arange(10, dtype=np.float32)
    y = nn.scaled_dot_product_attention(q, k, v.reshape(2, 5, 1))
    np.testing.assert_allclose(y[:, :, 0], [[2] * 3, [7] * 3])
