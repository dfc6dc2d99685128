"""`matmul` and its family against numpy: shapes, broadcasting, strides, `out`, dtypes, and numpy's own tests."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npumatmul as npu

seeds = st.integers(0, 2**32 - 1)
INTEGERS = [np.int8, np.uint8, ml_dtypes.int4]


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    low, high = {np.int8: (-128, 128), np.uint8: (0, 256), ml_dtypes.int4: (-8, 8)}[dtype]
    return rng.integers(low, high, shape).astype(dtype)


def exact(a: np.ndarray) -> np.ndarray:
    return a.astype(np.int64)


@given(
    shapes=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=3, max_side=5, min_side=0),
    dtypes=st.tuples(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS)),
    seed=seeds,
)
def test_matmul_of_any_shapes(device: npu.Device, shapes: Any, dtypes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (integers(rng, shape, dtype) for shape, dtype in zip(shapes.input_shapes, dtypes, strict=True))
    result = npu.matmul(a, b, device=device)
    expected = np.matmul(exact(a), exact(b))
    assert np.shape(result) == expected.shape == shapes.result_shape
    np.testing.assert_array_equal(result, expected)
    assert isinstance(result, np.ndarray) == isinstance(expected, np.ndarray)
    assert result.dtype == np.int32


@given(
    dtypes=st.tuples(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS)),
    m=st.integers(1, 40),
    k=st.integers(1, 3000),
    n=st.integers(1, 90),
    seed=seeds,
    extreme=st.booleans(),
)
def test_integer_products_are_exact(
    device: npu.Device, dtypes: Any, m: int, k: int, n: int, seed: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    a, b = integers(rng, (m, k), dtypes[0]), integers(rng, (k, n), dtypes[1])
    if extreme:  # the largest magnitudes everywhere: -8 * -8 overflows int16 after 512 products
        a = np.full_like(a, {np.int8: -128, np.uint8: 255, ml_dtypes.int4: -8}[dtypes[0]])
        b = np.full_like(b, {np.int8: -128, np.uint8: 255, ml_dtypes.int4: -8}[dtypes[1]])
    expected = exact(a) @ exact(b)
    np.testing.assert_array_equal(npu.matmul(a, b, device=device), expected)
    with npu.pack(b, device=device) as packed:
        if not (dtypes[1] is ml_dtypes.int4 and dtypes[0] is not ml_dtypes.int4):
            np.testing.assert_array_equal(npu.matmul(a, packed), expected)


def test_int4_runs_as_int4_in_slices_that_cannot_overflow(device: npu.Device) -> None:
    b = np.full((4096, 64), 7, ml_dtypes.int4)
    b[:, 1:] = 0
    with npu.pack(b, device=device) as packed:
        assert packed.scheme.name == "int4"
        assert packed.nbytes == 4096 * 64 // 2
        assert packed.plan is not None
        # 8 * 7 * K <= 32767 gives K <= 585: at least 8 slices for the one column that matters
        assert all(8 * 7 * span.length <= 32767 for span in packed.plan.k_spans)
        assert len(packed.plan.k_spans) >= 8
    sparse = np.zeros((4096, 64), ml_dtypes.int4)
    sparse[::16] = 7
    with npu.pack(sparse, device=device) as packed:
        assert packed.plan is not None
        assert len(packed.plan.k_spans) == 1  # the packed weight decides, not the worst case


@given(
    shapes=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=4, min_side=1),
    types=st.tuples(*[st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16])] * 2),
    seed=seeds,
)
def test_floats_of_any_shapes(device: npu.Device, shapes: Any, types: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-8, 9, shape).astype(dtype) for shape, dtype in zip(shapes.input_shapes, types, strict=True))
    result = npu.matmul(a, b, device=device)  # small integers: every type holds them and every product exactly
    np.testing.assert_array_equal(result, np.matmul(a.astype(np.float64), b.astype(np.float64)))
    assert result.dtype == np.float32
    for dtype in (np.float16, ml_dtypes.bfloat16):
        rounded = npu.matmul(a, b, dtype=dtype, device=device)
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(rounded, result.astype(dtype))


@given(seed=seeds, data=st.data())
def test_out_of_any_strides_and_overlap(device: npu.Device, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    n = data.draw(st.integers(1, 12))
    memory = rng.integers(-9, 9, (4 * n, 4 * n)).astype(np.int32)
    a, b = integers(rng, (n, n), np.int8), integers(rng, (n, n), np.int8)
    expected = exact(a) @ exact(b)
    out = [memory[:n, :n], memory[::2, ::4][:n, :n], memory[::-1, ::-2][:n, :n], memory.T[:n, :n]][
        data.draw(st.integers(0, 3))
    ]
    assert npu.matmul(a, b, out=out, device=device) is out
    np.testing.assert_array_equal(out, expected)
    assert npu.matmul(a, b, (out,), device=device) is out

    square = rng.integers(-5, 6, (n, n)).astype(np.float32)
    expected = square.astype(np.float64) @ square
    np.testing.assert_array_equal(npu.matmul(square, square, out=square, device=device), expected)


def test_out_mistakes(device: npu.Device) -> None:
    a = np.ones((2, 3), np.int8)
    with pytest.raises(ValueError, match=r"out has shape \(2, 3\), the result has \(2, 2\)"):
        npu.matmul(a, a.T, out=np.zeros((2, 3), np.int32), device=device)
    with pytest.raises(TypeError, match="ndarray"):
        npu.matmul(a, a.T, out=[[0, 0], [0, 0]], device=device)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="same_kind"):
        npu.matmul(a.astype(np.float32), a.T.astype(np.float32), out=np.zeros((2, 2), np.int32), device=device)
    with pytest.raises(TypeError, match="can be int32"):
        npu.matmul(a, a.T, dtype=np.float32, device=device)
    read_only = np.zeros((2, 2), np.int32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        npu.matmul(a, a.T, out=read_only, device=device)


def test_subclasses_come_back_as_with_numpy(device: npu.Device) -> None:
    class Labelled(np.ndarray):
        __array_priority__ = 5

    a = np.ones((2, 2), np.int8).view(Labelled)
    assert type(npu.matmul(a, np.ones((2, 2), np.int8), device=device)) is Labelled
    assert type(npu.matmul(np.ones((2, 2), np.int8), a, device=device)) is Labelled


shapes_2 = st.tuples(*[hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)] * 2)


def same_as_numpy(ours: Any, theirs: Any, a: np.ndarray, b: np.ndarray, device: npu.Device, **options: Any) -> None:
    """Equal results, or an error from both."""
    try:
        expected = theirs(exact(a), exact(b), **options)
    except (ValueError, IndexError) as error:
        with pytest.raises((ValueError, type(error))):
            ours(a, b, device=device, **options)
        return
    result = ours(a, b, device=device, **options)
    assert np.shape(result) == np.shape(expected)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", ["matmul", "dot", "inner", "outer", "vdot"])
@given(shapes=shapes_2, seed=seeds)
def test_family_against_numpy(device: npu.Device, name: str, shapes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (integers(rng, shape, np.int8) for shape in shapes)
    same_as_numpy(getattr(npu, name), getattr(np, name), a, b, device)


@pytest.mark.parametrize("name", ["matmul", "dot", "inner", "outer", "vdot"])
@given(k=st.integers(0, 5), seed=seeds, data=st.data())
def test_family_against_numpy_where_k_fits(
    device: npu.Device, name: str, k: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    left = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))
    right = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))
    a = integers(rng, (*left, k), np.int8)
    at = {"inner": len(right)}.get(name, max(len(right) - 1, 0))
    b = integers(rng, (*right[:at], k, *right[at:]), np.int8)
    same_as_numpy(getattr(npu, name), getattr(np, name), a, b, device)


GUFUNCS = {
    "vecdot": ("(n),(n)->()", lambda a, b: np.einsum("...n,...n->...", a, b)),
    "matvec": ("(m,n),(n)->(m)", lambda a, b: np.einsum("...mn,...n->...m", a, b)),
    "vecmat": ("(n),(n,m)->(m)", lambda a, b: np.einsum("...n,...nm->...m", a, b)),
}


@pytest.mark.parametrize("name", GUFUNCS)
@given(seed=seeds, data=st.data())
def test_vector_products_against_einsum(device: npu.Device, name: str, seed: int, data: st.DataObject) -> None:
    """numpy has these functions from 2.0 and 2.2 on; einsum says the same on every version."""
    signature, reference = GUFUNCS[name]
    shapes = data.draw(hnp.mutually_broadcastable_shapes(signature=signature, max_dims=2, max_side=4, min_side=0))
    rng = np.random.default_rng(seed)
    a, b = (integers(rng, shape, np.int8) for shape in shapes.input_shapes)
    result = getattr(npu, name)(a, b, device=device)
    assert np.shape(result) == shapes.result_shape
    np.testing.assert_array_equal(result, reference(exact(a), exact(b)))


@given(seed=seeds, data=st.data())
def test_tensordot_against_numpy(device: npu.Device, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))  # the axes that are summed over
    left = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))
    right = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))
    order_a = data.draw(st.permutations(range(len(left) + len(sizes))))
    order_b = data.draw(st.permutations(range(len(right) + len(sizes))))
    a = integers(rng, (*left, *sizes), np.int8).transpose(order_a)
    b = integers(rng, (*sizes, *right), np.int8).transpose(order_b)
    axes = ([order_a.index(len(left) + i) for i in range(len(sizes))], [order_b.index(i) for i in range(len(sizes))])
    same_as_numpy(npu.tensordot, np.tensordot, a, b, device, axes=axes)
    count = data.draw(st.integers(0, 3))
    same_as_numpy(npu.tensordot, np.tensordot, a, b, device, axes=count)


FAMILY = [
    ("dot", [(2, 3, 5), (5, 4)], {}),
    ("inner", [(2, 5), (3, 5)], {}),
    ("tensordot", [(2, 3, 5), (3, 5, 4)], {"axes": 2}),
    ("vdot", [(5,), (5,)], {}),
    ("vecdot", [(4, 5), (5,)], {}),
    ("matvec", [(4, 3, 5), (5,)], {}),
    ("vecmat", [(4, 5), (5, 3)], {}),
    ("einsum", ["bij,jk->kbi", (2, 3, 5), (5, 4)], {}),
]


@pytest.mark.parametrize(("name", "operands", "options"), FAMILY, ids=[name for name, *_ in FAMILY])
def test_scheme_and_precision_reach_the_product(device: npu.Device, name: str, operands: Any, options: Any) -> None:
    rng = np.random.default_rng(0)
    given = [x if isinstance(x, str) else rng.standard_normal(x).astype(np.float32) for x in operands]
    reference = {"vecdot": "...n,...n->...", "matvec": "...mn,...n->...m", "vecmat": "...n,...nm->...m"}.get(name)
    doubles = [x if isinstance(x, str) else x.astype(np.float64) for x in given]
    exact = np.einsum(reference, *doubles) if reference else getattr(np, name)(*doubles, **options)
    errors = {}
    for how in ({"scheme": "w8a8"}, {}, {"precision": "high"}):
        result = getattr(npu, name)(*given, **options, **how, device=device)
        assert np.shape(result) == np.shape(exact)
        errors[str(how)] = float(np.abs(result - exact).max())
    quantized, plain, high = errors.values()
    assert high < 1e-5
    assert high < plain < quantized < 1


def test_linear(device: npu.Device) -> None:
    rng = np.random.default_rng(0)
    x, w = integers(rng, (2, 3, 5), np.int8), integers(rng, (5, 4), np.int8)
    bias = np.arange(4, dtype=np.int32)
    np.testing.assert_array_equal(npu.linear(x, w, bias, device=device), exact(x) @ exact(w) + bias)
    with pytest.raises(ValueError, match=r"one element per column, \(4,\)"):
        npu.linear(x, w, np.zeros(3, np.int32), device=device)
    with pytest.raises(TypeError, match="same_kind"):
        npu.linear(x, w, np.zeros(4, np.float32), device=device)


def test_linear_says_which_way_round_a_weight_is(device: npu.Device) -> None:
    rng = np.random.default_rng(1)
    x, layer = torch.from_numpy(integers(rng, (2, 5), np.int8)).float(), torch.nn.Linear(5, 4)
    w, bias = torch.from_numpy(integers(rng, (4, 5), np.int8)).float(), torch.arange(4.0)
    layer.load_state_dict({"weight": w, "bias": bias})
    expected = layer(x).detach()
    options = {"transposed": True, "device": device}
    for weight in (w, w.numpy(), w.tolist(), npu.asarray(w, device=device), layer.weight.detach()):
        np.testing.assert_array_equal(npu.linear(x.numpy(), np.float32(weight), bias, **options), expected)
    np.testing.assert_array_equal(npu.linear(x, w, bias, **options), expected)
    np.testing.assert_array_equal(npu.linear(x, w.T, bias, device=device), expected)
    with npu.pack(w, transposed=True, device=device) as packed:
        np.testing.assert_array_equal(npu.linear(x, packed, bias), expected)
        with pytest.raises(ValueError, match="w is packed"):
            npu.linear(x, packed, bias, transposed=True)
    with pytest.raises(ValueError, match=r"\(4, 5\) is taken as \(K, N\); it is \(N, K\): give transposed=True"):
        npu.linear(x, w, device=device)
    with pytest.raises(ValueError, match=r"\(5, 4\) is taken as \(N, K\); it is \(K, N\): give transposed=False"):
        npu.linear(x, w.T, **options)
    with pytest.raises(ValueError, match=r"w of shape .* is taken as"):
        npu.linear(x, torch.ones(6, 7), device=device)
    square = torch.from_numpy(integers(rng, (5, 5), np.int8)).float()
    with pytest.raises(ValueError, match="may be either way round; say transposed=True"):
        npu.linear(x, square, device=device)
    np.testing.assert_array_equal(npu.linear(x, square, **options), x @ square.T)
    np.testing.assert_array_equal(npu.linear(x, square, transposed=False, device=device), x @ square)
    np.testing.assert_array_equal(npu.linear(x, square.numpy(), device=device), x @ square)
    with pytest.raises(TypeError, match="True or False"):
        npu.linear(x, square, transposed="yes", device=device)  # type: ignore[arg-type]


def test_fallback_is_scoped_and_equals_numpy(device: npu.Device) -> None:
    a = np.arange(6.0).reshape(2, 3)
    with npu.config(fallback="numpy"):
        for left, right in ((a, a.T), (a.astype(complex), a.T), (a.astype(np.int64), a.T > 1), (a > 1, a.T > 2)):
            result, expected = npu.matmul(left, right, device=device), np.matmul(left, right)
            assert result.dtype == expected.dtype
            np.testing.assert_array_equal(result, expected)
        before = device.stats().run_calls
        assert npu.matmul(np.ones((2, 2), np.int8), np.ones((2, 2), np.int8), device=device).dtype == np.int32
        assert device.stats().run_calls == before + 1  # what the NPU can do, it does
    with pytest.raises(TypeError, match="fallback='numpy'"):
        npu.matmul(a, a.T, device=device)
    with pytest.raises(ValueError, match="'numpy' or None"), npu.config(fallback="cuda"):
        pass
    with npu.config(fallback="numpy"):
        with npu.config(tuned=True) as both:  # what is not given stays
            assert (both.fallback, both.tuned) == ("numpy", True)
        with npu.config(fallback=None), pytest.raises(TypeError, match="fallback='numpy'"):
            npu.matmul(a, a.T, device=device)


@given(seed=seeds, data=st.data())
def test_einsum_of_two_operands(device: npu.Device, seed: int, data: st.DataObject) -> None:
    """Indices in both operands are summed or stacked, the others stay; any order everywhere."""
    labels = "abcdef"
    sizes = {label: data.draw(st.integers(1, 4)) for label in labels}
    left = data.draw(st.permutations(labels).flatmap(lambda p: st.integers(0, 4).map(lambda n: p[:n])))
    right = data.draw(st.permutations(labels).flatmap(lambda p: st.integers(0, 4).map(lambda n: p[:n])))
    alone = set(left) ^ set(right)
    both = sorted(set(left) & set(right))
    kept = [label for label in both if data.draw(st.booleans())]
    output = data.draw(st.permutations(sorted(alone) + kept))
    rng = np.random.default_rng(seed)
    a, b = (integers(rng, tuple(sizes[x] for x in term), np.int8) for term in (left, right))
    notation = f"{''.join(left)},{''.join(right)}->{''.join(output)}"
    result = npu.einsum(notation, a, b, device=device)
    expected = np.einsum(notation, exact(a), exact(b))
    assert np.shape(result) == expected.shape
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("notation", "shapes"),
    [
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ba,cb", [(2, 3), (4, 2)]),
        ("...ij,...jk->...ik", [(5, 2, 3), (6, 5, 3, 4)]),
        ("...j,jk", [(5, 2, 3), (3, 4)]),
        ("ii,ij->ij", [(3, 3), (3, 4)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("i,j->ji", [(2,), (3,)]),
        ("ij->ji", [(2, 3)]),
        ("ii->i", [(3, 3)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),  # an extent of 1 is broadcast
        (" i j , j k -> i k ", [(2, 3), (3, 4)]),
        (",ij->ij", [(), (2, 3)]),
    ],
)
def test_einsum_notation(device: npu.Device, notation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    arrays = [integers(rng, shape, np.int8) for shape in shapes]
    result = npu.einsum(notation, *arrays, device=device)
    np.testing.assert_array_equal(result, np.einsum(notation, *map(exact, arrays)))


@pytest.mark.parametrize("notation", ["ij,jk,kl->il", "bik,bjk,bjl->bil", "a,ab,bc,cd,d->", "abc,cd,db,ae->e"])
@pytest.mark.parametrize("optimize", ["greedy", "optimal", False, True])
def test_einsum_of_more_operands(device: npu.Device, notation: str, optimize: Any) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-2, 3, (3,) * len(term)).astype(np.float32) for term in notation.split("->")[0].split(",")]
    result = npu.einsum(notation, *arrays, optimize=optimize, device=device)  # small integers: exact in any order
    np.testing.assert_array_equal(result, np.einsum(notation, *arrays))


def test_einsum_with_lists_and_out(device: npu.Device) -> None:
    a, b = np.arange(6, dtype=np.int8).reshape(2, 3), np.arange(12, dtype=np.int8).reshape(3, 4)
    out = np.zeros((4, 2), np.int32).T
    assert npu.einsum(a, [0, 1], b, [1, 2], [0, 2], out=out, device=device) is out
    np.testing.assert_array_equal(out, exact(a) @ exact(b))
    np.testing.assert_array_equal(npu.einsum(a, [..., 1], b, [1, 2], device=device), exact(a) @ exact(b))


@pytest.mark.parametrize(
    ("notation", "count", "message"),
    [
        ("ij,jk", 1, "names 2 operands, 1 were given"),
        ("ijk,jk", 2, "does not fit an operand with 2 dimensions"),
        ("ij,jk->iz", 2, "names one that no operand has"),
        ("ij,jk->ii", 2, "repeats an index"),
        ("i?,jk", 2, "is not an index"),
        ("ij,kl->ik", 2, "summed over within one operand"),
        ("ij->", 1, "summed over within one operand"),
        ("ii,ii,ij->j", 3, "cannot take int32"),
    ],
)
def test_einsum_mistakes(device: npu.Device, notation: str, count: int, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        npu.einsum(notation, *[np.ones((3, 3), np.int8)] * count, device=device)


def test_einsum_lengths_that_differ(device: npu.Device) -> None:
    with pytest.raises(ValueError, match="index 'j' has length 3 in one operand and 4 in another"):
        npu.einsum("ij,jk", np.ones((2, 3), np.int8), np.ones((4, 5), np.int8), device=device)


def test_einsum_falls_back_as_a_whole(device: npu.Device) -> None:
    a = np.arange(9.0).reshape(3, 3)
    with npu.config(fallback="numpy"):
        for notation, arrays in (("ij,jk", [a, a]), ("ij->i", [a]), ("ij,kl->ik", [a.astype(np.float32)] * 2)):
            np.testing.assert_array_equal(npu.einsum(notation, *arrays, device=device), np.einsum(notation, *arrays))
