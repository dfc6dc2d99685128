"""Chains of products of NpuArrays: between two of them one pass, from C of the first into A of the second."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaining import BF16, KINDS, READERS, Layer, chained, check, floats, layer
from hypothesis import given, settings
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import sim
from npumatmul.planning.product import plan_weight
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.schemes import Scheme

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _here(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small results are deferred here, too."""
    monkeypatch.setattr("npumatmul.ops.array.multiply.AT_ONCE", 0)
    with npu.use_device(device):
        yield


def in_tiles(monkeypatch: pytest.MonkeyPatch, **how: int) -> None:
    """Have every weight that is packed cut so: n_tiles, and k_parts at least."""

    def planned(k: int, n: int, mm_type: Any, chip: Any, runtime: Any, k_parts: int = 1, **others: Any) -> Any:
        parts = max(k_parts, how["k_parts"])
        others.pop("cut_for")  # no scope names cores
        return plan_weight(k, n, mm_type, chip, runtime, parts, n_tiles=how["n_tiles"], **others)

    monkeypatch.setattr("npumatmul.ops.packed.tiles.planned", planned)


# ---- one pass, and the same bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 37, 300, 700])
def test_one_pass_between_products_and_the_same_bits(device: npu.Device, kind: str, m: int) -> None:
    layers = [layer(kind, k, n, seed) for seed, (k, n) in enumerate([(96, 160), (160, 200), (200, 40)])]
    check(device, floats(m, 96), layers)


@pytest.mark.parametrize("kind", ["w16a16", "w8a8_wasym_aasym", "w4a8", "hadamard"])
@pytest.mark.parametrize("m", [1, 37, 700])
def test_several_tiles_on_several_cores_and_slices_of_k(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, kind: str, m: int
) -> None:
    """Ranges of rows of one product are not those of the next, and tiles of N are not slices of K."""
    layers = []
    for seed, (k, n, tiles, parts) in enumerate(
        [(256, 700, 3, 2), (700, 500, 5, 3), (500, 100, 1, 1), (100, 400, 3, 1)]
    ):
        in_tiles(monkeypatch, n_tiles=tiles, k_parts=parts)
        layers.append(layer(kind, k, n, seed))
        plan = layers[-1][0].plan
        assert plan is not None
        assert (len(plan.n_spans), len(plan.k_spans)) >= (tiles, parts)
    check(device, floats(m, 256), layers)


@pytest.mark.parametrize("kind", ["w8a8_g32", "w4a8_g32_agroup", "w8a8_g32_wasym_aasym_agroup"])
def test_more_slices_than_images_of_a(device: npu.Device, kind: str) -> None:
    """Rows that are finished once serve several batches of slices."""
    check(device, floats(300, 400), [layer(kind, 400, 700), layer(kind, 700, 500, 1), layer(kind, 500, 64, 2)])


@given(data=st.data())
@settings(max_examples=150)
def test_chains_of_any_shapes_and_kinds(data: st.DataObject) -> None:
    device = npu.current_device()
    m, extents = data.draw(st.integers(1, 90)), data.draw(st.lists(st.integers(1, 300), min_size=3, max_size=4))
    stack = data.draw(st.lists(st.integers(1, 3), max_size=2))
    layers = [layer(data.draw(st.sampled_from(KINDS)), k, n, seed) for seed, (k, n) in enumerate(pairwise(extents))]
    dtype = data.draw(st.sampled_from([np.float32, np.float16, BF16]))
    check(device, floats(*stack, m, extents[0], dtype=dtype), layers)


def test_sums_are_those_of_numpy(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers, whose sums float32 holds exactly: an eager product that is wrong in the same way would not help."""
    in_tiles(monkeypatch, n_tiles=3, k_parts=2)
    rng = np.random.default_rng(2)
    a, b, c = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((300, 200), (200, 330), (330, 64)))
    x = npu.asarray(a) @ npu.pack(b) @ npu.pack(c)
    np.testing.assert_array_equal(x.numpy(), a.astype(np.float64) @ b.astype(np.float64) @ c.astype(np.float64))


def test_codes_go_straight_into_the_next_product(device: npu.Device) -> None:
    """int8 of the NPU's own rounding: nothing is converted, the rows only change their layout."""

    def requantized(result: float) -> Scheme:
        return Scheme(8, 8, granularity="layer", activation_granularity="layer", activation_params=QuantParams(0.5),
                      result_bits=8, result_params=QuantParams(result))  # fmt: skip

    layers: list[Layer] = [
        (npu.pack(QuantizedWeight(RNG.integers(-9, 9, (n, k), np.int8), QuantParams(0.25)), requantized(s)), {})
        for k, n, s in ((64, 96, 8.0), (96, 320, 6.0), (320, 32, 4.0))
    ]
    result = check(device, RNG.integers(-99, 99, (37, 64)).astype(np.int8), layers)
    assert result.dtype == np.int8
    assert len(np.unique(result.numpy())) > 20


def test_exact_integers_are_stored_at_once_and_with_an_epilogue_go_on(device: npu.Device) -> None:
    a, b = (RNG.integers(-9, 9, shape).astype(np.int8) for shape in ((37, 60), (60, 100)))
    x, w = npu.asarray(a), npu.pack(b)
    before = device.stats().conversions
    sums = x @ w
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(sums.numpy(), a.astype(np.int32) @ b)
    assert device.stats().conversions == before + 2
    with pytest.raises(TypeError, match="int32"):
        sums @ npu.pack(np.ones((100, 32), np.int8))
    scaled = npu.Epilogue(scale=1 / 64, bias=floats(100))
    check(device, a, [(w, {"epilogue": scaled}), layer("w8a8", 100, 64), layer("w8a8", 64, 60)])


def test_the_calls_of_a_chain(device: npu.Device, tmp_path: Path) -> None:
    """Nothing is allocated from the second time on, and C of a product is not bound as C of the next one."""
    a, layers = floats(37, 64), [layer("w8a8", 64, 96), layer("w8a8", 96, 64)]
    x = npu.asarray(a)
    chained(x, layers)
    gc.collect()
    device.stats()  # gives back what other tests left
    with sim.trace(tmp_path / "trace.json", device):
        result = chained(x, layers)
    events = [event for event in json.loads((tmp_path / "trace.json").read_text()) if event.get("cat") == "rknn"]
    calls = [(event["name"], event["args"].get("tensor")) for event in events]
    bind = [("rknn_matmul_set_io_mem", tensor) for tensor in "ABC"]
    product = [("rknn_mem_sync", None), *bind, ("rknn_matmul_run", None), ("rknn_mem_sync", None)]
    assert [call for call in calls if call[0] != "rknn_matmul_set_dynamic_shape"] == product * 2
    np.testing.assert_array_equal(result.numpy(), chained(a, layers))


# ---- who reads -----------------------------------------------------------------------------------------------------


def test_two_products_of_one_result_take_it_each(device: npu.Device) -> None:
    a, (up, _), (gate, _), (down, _) = floats(37, 64), *(layer("w8a8", 64, 96, seed) for seed in range(3))
    expected = a @ up @ npu.pack(np.eye(96, dtype=np.float32))
    x = npu.asarray(a) @ layer("w16a16", 64, 64)[0]
    plain = a @ layer("w16a16", 64, 64)[0]
    before = device.stats().conversions
    results = [x @ weight for weight in (up, gate, down)]
    assert device.stats().conversions == before + 3
    assert x.deferred is not None
    for result, weight in zip(results, (up, gate, down), strict=True):
        np.testing.assert_array_equal(result.numpy(), plain @ weight)
    assert expected.shape == results[0].shape


@pytest.mark.parametrize("reader", READERS)
def test_everybody_who_reads_sees_the_values(device: npu.Device, reader: str) -> None:
    a, (w, _) = floats(37, 64), layer("w8a8", 64, 96)
    eager, kept = npu.asarray(npu.matmul(a, w)), npu.asarray(a) @ w
    assert kept.deferred is not None
    read = READERS[reader]
    expected, got = read(eager), read(kept)
    assert type(got) is type(expected)
    np.testing.assert_array_equal(got, expected)
    assert kept.deferred is None
    before = device.stats().conversions
    np.testing.assert_array_equal(kept.numpy(), eager.numpy())
    assert device.stats().conversions == before
    np.testing.assert_array_equal((kept @ layer("w8a8", 96, 32)[0]).numpy(), eager.numpy() @ layer("w8a8", 96, 32)[0])


def test_views_share_the_memory_that_comes_later(device: npu.Device) -> None:
    w = layer("w8a8", 64, 96)[0]
    x = npu.asarray(floats(4, 9, 64)) @ w
    before = device.stats().conversions
    flat, part, turned = x.reshape(-1, 96), x[1:3, ::2], x.T
    assert device.stats().conversions == before
    assert flat.deferred is x.deferred is not None
    assert part.deferred is None
    assert turned.deferred is None
    assert (flat.shape, part.shape, turned.shape) == ((36, 96), (2, 5, 96), (96, 9, 4))
    part.numpy()[...] = 7
    assert (x.numpy()[1:3, ::2] == 7).all()
    assert flat.buffer is x.buffer is turned.buffer
    assert device.stats().conversions == before + 1
    np.testing.assert_array_equal(turned.numpy(), x.numpy().T)


def test_rows_of_another_shape_are_taken_and_others_are_stored_first(device: npu.Device) -> None:
    first, second = layer("w8a8", 64, 96)[0], layer("w8a8", 96, 32)[0]
    a = floats(4, 9, 64)
    expected = a @ first @ second
    for make, passes in (
        (lambda x: x @ second, 1),
        (lambda x: x.reshape(36, 96) @ second, 1),
        (lambda x: x.reshape(2, 18, 96) @ second, 1),
        (lambda x: x[1:] @ second, 3 - 1),
        (lambda x: x.transpose(1, 0, 2) @ second, 3 - 1),
    ):
        x = npu.asarray(a) @ first
        before = device.stats().conversions
        got = make(x)
        assert device.stats().conversions == before + passes
        if got.shape[-3:] == expected.shape:
            np.testing.assert_array_equal(got.numpy(), expected)
    vector = npu.asarray(floats(64)) @ first
    assert vector.shape == (96,)
    before = device.stats().conversions
    again = vector @ second
    assert device.stats().conversions == before + 1
    np.testing.assert_array_equal(again.numpy(), floats(64) @ first @ second)
    column = npu.asarray(floats(96, 64)) @ npu.pack(np.ones((64, 1), np.float32))
    flat = npu.matmul(npu.asarray(floats(96, 64)), np.ones(64, np.float32))
    assert flat.shape == (96,)
    np.testing.assert_array_equal((flat @ second).numpy(), column.numpy()[:, 0] @ second)


def test_plain_right_operands_and_given_places(device: npu.Device) -> None:
    a, b = floats(37, 64), floats(96, 32, seed=4)
    w = layer("w8a8", 64, 96)[0]
    expected = npu.matmul(a @ w, b)
    x = npu.asarray(a) @ w
    before = device.stats().conversions
    got = x @ b
    assert device.stats().conversions == before + 1
    np.testing.assert_array_equal(got.numpy(), expected)
    for place in (np.empty((37, 32), np.float32), npu.empty((37, 32))):
        before = device.stats().conversions
        assert npu.matmul(x, b, out=place) is place
        assert device.stats().conversions == before + 2  # into A, and from C into `out`
        np.testing.assert_array_equal(np.asarray(place), expected)
    assert x.deferred is not None
    stack = floats(3, 96, 8, seed=5)
    np.testing.assert_array_equal((x @ stack).numpy(), npu.matmul(a @ w, stack))


def test_a_result_is_read_and_closed_while_a_hung_product_takes_it(fresh_device: npu.Device) -> None:
    device = fresh_device
    with npu.use_device(device):
        a, first, second = floats(37, 64), layer("w8a8", 64, 96)[0], layer("w8a8", 96, 64)[0]
        halfway, expected = a @ first, a @ first @ second
        x = npu.asarray(a) @ first
        (x @ second).close()
        results: list[npu.NpuArray] = []
        with sim.configured(device, faults="run:times=1:hang"):
            sim.reset_counters(device)
            hung = threading.Thread(target=lambda: results.append(x @ second))
            hung.start()
            for _ in range(6000):
                if sim.counters(device).run_calls:
                    break
                time.sleep(0.01)
            np.testing.assert_array_equal(x.numpy(), halfway)
            x.close()
            others = npu.asarray(a + 1) @ first  # its C is none that the hung product still reads
            np.testing.assert_array_equal(others.numpy(), (a + 1) @ first)
            assert hung.is_alive()
        hung.join(60)  # the end of the block ends the hang with a time-out, and the product is repeated
        np.testing.assert_array_equal(results[0].numpy(), expected)


def test_who_reads_without_room_waits_for_products_of_others_to_give_theirs_back(fresh_device: npu.Device) -> None:
    """It must not hold meanwhile what those need to end."""
    device = fresh_device
    with npu.use_device(device):
        first, second = layer("w8a8", 64, 512)[0], layer("w8a8", 64, 96)[0]
        a, b = floats(300, 64), floats(3, 64)
        x, y = npu.asarray(a) @ first, npu.asarray(b)
        expected = a @ first
        results: list[Any] = []
        with sim.configured(device, faults="run:times=1:hang"):
            sim.reset_counters(device)
            hung = threading.Thread(target=lambda: results.append(y @ second))
            hung.start()
            for _ in range(6000):
                if sim.counters(device).run_calls:
                    break
                time.sleep(0.01)
            npu.empty_cache(device)
            npu.memory_limit(device.memory_stats().nbytes + 4096, device)
            reader = threading.Thread(target=lambda: results.append(x.numpy()))
            reader.start()
            reader.join(0.3)
            assert reader.is_alive()
            npu.memory_limit(None, device)
        hung.join(60)
        reader.join(60)
        assert len(results) == 2
        np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize(
    "product",
    [
        npu.dot, np.dot, np.matmul, npu.linear, lambda x, w: x @ w, lambda x, w: npu.tensordot(x, w, 1),
        lambda x, w: np.tensordot(x, w, axes=(-1, 0)), lambda x, w: npu.inner(x, np.ascontiguousarray(w.T)),
        lambda x, w: np.einsum("ij,jk->ik", x, w), lambda x, w: npu.einsum("ij,jk", x, w),
    ],
)  # fmt: skip
def test_relatives_of_matmul_chain_too(device: npu.Device, product: Callable[[Any, Any], Any]) -> None:
    a, b, c = floats(37, 64), floats(64, 96, seed=1) / 8, floats(96, 32, seed=2) / 8
    expected = npu.matmul(npu.matmul(a, b), c)
    x = npu.asarray(a)
    before = device.stats().conversions
    halfway = product(x, b)
    assert device.stats().conversions == before + 1
    assert halfway.deferred is not None
    result = product(halfway, c)
    assert device.stats().conversions == before + 2
    np.testing.assert_array_equal(result.numpy(), expected)
    assert halfway.deferred is not None


def test_einsum_of_three_operands_is_a_chain(device: npu.Device) -> None:
    a, b, c = floats(37, 64), floats(64, 96, seed=1) / 8, floats(96, 32, seed=2) / 8
    x = npu.asarray(a)
    before = device.stats().conversions
    result = np.einsum("ij,jk,kl->il", x, b, c, optimize=["einsum_path", (0, 1), (0, 1)])
    assert isinstance(result, npu.NpuArray)
    assert device.stats().conversions == before + 2
    np.testing.assert_array_equal(result.numpy(), npu.matmul(npu.matmul(a, b), c))
    turned = np.einsum("ij,jk->ki", x, b)
    np.testing.assert_array_equal(turned.numpy(), npu.matmul(a, b).T)


def test_matmul_objects_look_at_the_operand_when_they_execute(device: npu.Device) -> None:
    a, w, b = floats(5, 64), layer("w8a8", 64, 96)[0], layer("w8a8", 96, 32)[0]
    x = npu.asarray(a) @ w
    with npu.Matmul(x, b) as product:
        np.testing.assert_array_equal(product.execute().numpy(), a @ w @ b)
        assert x.deferred is not None
        x.numpy()[...] = 3
        np.testing.assert_array_equal(product.execute().numpy(), np.full((5, 96), 3, np.float32) @ b)
        future = product.submit()
        np.testing.assert_array_equal(future.result().numpy(), np.full((5, 96), 3, np.float32) @ b)


def test_what_an_epilogue_reads_may_change_afterwards(device: npu.Device) -> None:
    a, w = floats(5, 64), layer("w8a8", 64, 96)[0]
    bias, residual = floats(96, seed=1), floats(5, 96, seed=2)
    with_bias, with_both = npu.Epilogue(bias=bias), npu.Epilogue(bias=bias, residual=residual)
    expected = [npu.matmul(a, w, epilogue=epilogue) for epilogue in (with_bias, with_both)]
    results = [npu.matmul(npu.asarray(a), w, epilogue=epilogue) for epilogue in (with_bias, with_both)]
    bias[...] = residual[...] = 99
    for result, values in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), values)


def test_in_place_products_follow_where_they_can(device: npu.Device) -> None:
    """A float16 result that could not be written in place is stored once, and the chain goes on without a copy."""
    a = RNG.integers(-3, 4, (8, 60)).astype(np.float16)
    ws = [RNG.integers(-2, 3, shape).astype(np.float16) for shape in ((60, 64), (64, 96), (96, 32))]
    layers: list[Layer] = [(npu.pack(w), {"dtype": np.float16}) for w in ws]
    before, passes = device.stats().conversions, []
    result = chained(npu.asarray(a), layers, lambda *_: passes.append(device.stats().conversions - before))
    assert passes == [1, 2, 2]  # into A; C to where the next one reads it; nothing
    expected = a
    for w in ws:
        expected = (expected.astype(np.float64) @ w.astype(np.float64)).astype(np.float16)
    np.testing.assert_array_equal(result.numpy(), expected)
    assert device.stats().conversions == before + 2
