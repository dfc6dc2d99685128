"""Products of NpuArrays in place: they copy nothing where operands and results suit the NPU."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import MatmulType, sim
from npumatmul.chips import CHIPS
from npumatmul.errors import RknnTimeout
from npumatmul.planning.in_place import padded_rows, plan_in_place, rows_of
from npumatmul.planning.product import plan_weight


@pytest.fixture(autouse=True)
def _here(device: npu.Device) -> Iterator[None]:
    with npu.use_device(device):
        yield


def values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-8, 8, shape).clip(0 if dtype == np.uint8 else -8, 7).astype(dtype)


def calls_of(path: Path) -> list[tuple[str, Any]]:
    return [(e["name"], e["args"].get("tensor")) for e in json.loads(path.read_text()) if e.get("cat") == "rknn"]


@pytest.mark.parametrize("m", [1, 4, 5, 100, 512, 600])
def test_a_chain_of_float16_copies_nothing(device: npu.Device, tmp_path: Path, m: int) -> None:
    a, b, c = values((m, 64), np.float16), values((64, 96), np.float16, 1), values((96, 32), np.float16, 2)
    x, first, second = npu.asarray(a), npu.pack(b), npu.pack(c)

    def chain() -> npu.NpuArray:
        halfway = npu.matmul(x, first, dtype=np.float16)
        return npu.matmul(halfway, second, dtype=np.float16)

    chain()  # contexts are made, and memory for results is allocated
    before = device.stats()
    with sim.trace(tmp_path / "trace.json", device):
        result = chain()
    after = device.stats()
    assert after.conversions == before.conversions
    spans = 1 if m <= 512 else 3  # more rows than a run takes are shared by the cores
    assert after.run_calls - before.run_calls == 2 * spans
    assert after.macs - before.macs == m * 64 * 96 + m * 96 * 32
    bind = [("rknn_matmul_set_io_mem", tensor) for tensor in "ABC"]
    others = ("rknn_matmul_set_dynamic_shape", "rknn_destroy_mem")  # memory of tests before
    calls = [call for call in calls_of(tmp_path / "trace.json") if call[0] not in others]
    run = [*bind, ("rknn_matmul_run", None)]
    made = [*run * spans, ("rknn_mem_sync", None)] * 2
    assert calls == made if spans == 1 else Counter(calls) == Counter(made)  # cores run at once
    # sums of these integers are exact in float32; each product rounds once
    halfway = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16)
    expected = (halfway.astype(np.float64) @ c.astype(np.float64)).astype(np.float16)
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize(("dtype", "result"), [(np.float16, np.float32), (np.int8, np.int32)])
def test_plain_sums_are_written_in_place_too(device: npu.Device, dtype: Any, result: Any) -> None:
    a, b = values((6, 64), dtype), values((64, 64), dtype, 1)
    x, w = npu.asarray(a), npu.pack(b)
    before = device.stats().conversions
    got = x @ w
    assert device.stats().conversions == before
    assert got.dtype == result
    np.testing.assert_array_equal(got.numpy(), a.astype(result) @ b.astype(result))


def modelled(monkeypatch: pytest.MonkeyPatch, copying: float | None) -> None:
    """Have every product that is not made in place take so many seconds by the model; None: nobody knows."""
    plan = SimpleNamespace(modelled_seconds=copying)
    monkeypatch.setattr("npumatmul.running.in_place.plan_matmul", lambda *_, **__: plan)


@pytest.mark.parametrize("m", [64, 100, 300, 512, 1100])
def test_cores_share_the_rows_of_a_product_in_place(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch, m: int
) -> None:
    """Weights are cut along N for the cores; in place, whole rows are what they can share."""
    three_tiles = functools.partial(plan_weight, n_tiles=3)
    monkeypatch.setattr("npumatmul.ops.packed.tiles.planned", lambda *shape, cut_for, **how: three_tiles(*shape, **how))
    modelled(monkeypatch, None)
    a, b = values((m, 576), np.float16), values((576, 1536), np.float16, 1)
    x, w = npu.asarray(a, device=fresh_device), npu.pack(b, device=fresh_device)
    assert w.plan is not None
    assert len(w.plan.n_spans) == 3
    out = npu.empty((m, 1536), device=fresh_device)
    out.numpy()[...] = -1

    def work() -> np.ndarray[Any, Any]:
        chips = sim.counter_details(fresh_device)["chips"]
        return np.array(chips["rk3588"]["macs"].get("RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32", [0, 0, 0]))

    before, done = fresh_device.stats(), work()
    assert npu.matmul(x, w, out=out) is out
    np.testing.assert_array_equal(out.numpy(), a.astype(np.float32) @ b.astype(np.float32))
    assert fresh_device.stats().conversions == before.conversions
    assert fresh_device.stats().macs - before.macs == m * 576 * 1536
    plan = plan_in_place(m, w.plan, MatmulType.FLOAT16_FLOAT16_FLOAT32, CHIPS["rk3588"])
    assert plan is not None
    assert ((work() - done) > 0).sum() == plan.cores
    assert plan.cores > 1 or m < 512


def test_copying_is_preferred_where_it_is_modelled_to_be_faster(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = values((1, 1024), np.float16), values((1024, 1024), np.float16, 1)
    x, w = npu.asarray(a), npu.pack(b)
    for copying, conversions in ((1e-9, 2), (1e9, 0), (None, 0)):
        modelled(monkeypatch, copying)
        before = device.stats().conversions
        np.testing.assert_array_equal((x @ w).numpy(), a.astype(np.float32) @ b.astype(np.float32))
        assert device.stats().conversions == before + conversions


@given(
    m=st.integers(1, 3000),
    k=st.integers(1, 64).map(lambda units: 32 * units),
    n=st.integers(1, 128).map(lambda units: 32 * units),
    chip=st.sampled_from(["rk3588", "rk3576", "rk3566"]),
)
def test_rows_are_shared_without_gaps_overlaps_or_odd_starts(m: int, k: int, n: int, chip: str) -> None:
    mm_type = MatmulType.FLOAT16_FLOAT16_FLOAT32
    plan = plan_in_place(m, plan_weight(k, n, mm_type, CHIPS[chip]), mm_type, CHIPS[chip], padded_rows(m, CHIPS[chip]))
    assert plan is not None
    position = 0
    for span in plan.m_spans:
        assert span.start == position < m
        assert span.start * k * 2 % 4096 == span.start * n * 4 % 4096 == 0
        assert span.padded == 1 or span.padded % 4 == 0
        position += span.padded
    assert m <= position == rows_of(plan) <= padded_rows(m, CHIPS[chip])
    assert sum(span.length for span in plan.m_spans) == m
    assert 1 <= plan.cores <= CHIPS[chip].cores
    assert plan.range_cores == tuple(sorted(plan.range_cores))
    assert set(plan.range_cores or (0,)) == set(range(plan.cores))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_core_that_fails_is_made_good_once(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    modelled(monkeypatch, None)
    a, b = values((300, 576), np.float16), values((576, 1536), np.float16, 1)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    mm_type = MatmulType.FLOAT16_FLOAT16_FLOAT32
    plan = plan_in_place(300, plan_weight(576, 1536, mm_type, CHIPS["rk3588"]), mm_type, CHIPS["rk3588"])
    assert plan is not None
    assert plan.cores > 1
    with npu.Device("sim:rk3588") as opened:
        x, w = npu.asarray(a, device=opened), npu.pack(b, device=opened)
        np.testing.assert_array_equal((x @ w).numpy(), expected)
        before = opened.stats()
        with sim.configured(opened, faults=f"run:after={failing}:times=1:code=-2"):
            np.testing.assert_array_equal((x @ w).numpy(), expected)
        with sim.configured(opened, faults=f"run:after={failing}:code=-2"):
            with pytest.raises(RknnTimeout, match=r"\(300, 576\) @ \(576, 1536\).*in vain") as caught:
                x @ w
            assert isinstance(caught.value.__cause__, RknnTimeout)
        np.testing.assert_array_equal((x @ w).numpy(), expected)
        assert opened.stats().contexts == before.contexts
        x.close()


def test_rows_that_pad_a_product_never_reach_other_rows(device: npu.Device) -> None:
    a, b = values((5, 64), np.float16), values((64, 32), np.float16, 1)
    w = npu.pack(b)
    whole = npu.asarray(np.full((64, 32), 3, np.float16))
    before = device.stats().conversions
    for start in (0, 32):
        part = whole[start : start + 5]
        npu.matmul(npu.asarray(a), w, out=part, dtype=np.float16)
        expected = a.astype(np.float32) @ b.astype(np.float32)
        np.testing.assert_array_equal(part.numpy(), expected.astype(np.float16))
        assert (whole.numpy()[start + 5 : start + 32] == 3).all()
    assert device.stats().conversions > before
    npu.matmul(npu.asarray(a), w, out=whole[59:], dtype=np.float16)  # the last rows, but they start within a page
    np.testing.assert_array_equal(whole[59:].numpy(), (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16))
    assert (whole.numpy()[37:59] == 3).all()


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "dtype"),
    [
        ((3, 60), (60, 32), None),
        ((3, 64), (64, 33), None),
        ((3, 64), (64, 32), np.float32),
        ((3, 4096), (4096, 32), None),
    ],
)
def test_what_does_not_fit_is_converted_and_counted(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, a_shape: tuple[int, int], b_shape: tuple[int, int], dtype: Any
) -> None:
    monkeypatch.setattr("npumatmul.ops.array.multiply.AT_ONCE", 0)
    kind = dtype or np.float16
    a, b = values(a_shape, kind), values(b_shape, kind, 1)
    x, w = npu.asarray(a), npu.pack(b)
    before = device.stats().conversions
    got = npu.matmul(x, w, dtype=np.float16)
    assert device.stats().conversions == before + 1  # over A
    np.testing.assert_array_equal(got.numpy(), (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16))
    assert device.stats().conversions == before + 2  # and over C, when it is read


def test_slices_and_strides_are_converted_where_they_have_to_be() -> None:
    a, b = values((64, 128), np.float16), values((64, 64), np.float16, 1)
    x, w = npu.asarray(a), npu.pack(b)
    for view, expected in (
        (x[3:7, :64], a[3:7, :64]),
        (x[::2, 64:], a[::2, 64:]),
        (x.T[:, :], a.T),
        (x[::-1, :64], a[::-1, :64]),
    ):
        got = view @ w
        np.testing.assert_array_equal(got.numpy(), expected.astype(np.float32) @ b.astype(np.float32))


def test_what_the_cpu_writes_between_products_is_seen(device: npu.Device) -> None:
    """Caches are not coherent here (conftest.py): a forgotten synchronisation shows as an old value."""
    b = values((64, 64), np.float16, 1)
    w = npu.pack(b)
    x, out = npu.zeros((8, 64), np.float16), npu.zeros((8, 64), np.float32)
    held = np.asarray(x)
    shown = np.asarray(out)
    for seed in range(3):
        held[...] = values((8, 64), np.float16, seed)
        shown[...] = -1
        npu.matmul(x, w, out=out)
        np.testing.assert_array_equal(shown, held.astype(np.float32) @ b.astype(np.float32))
    del held, shown
    torch.from_dlpack(x).fill_(2)
    npu.matmul(x, w, out=out)
    np.testing.assert_array_equal(out.numpy(writable=False), np.full((8, 64), 2, np.float32) @ b.astype(np.float32))
    x[3] = 0
    syncs = device.stats().mem_sync_calls
    npu.matmul(x, w, out=out)
    assert device.stats().mem_sync_calls == syncs + 2  # A to the device once, C from it
    syncs = device.stats().mem_sync_calls
    npu.matmul(x, w, out=out)
    assert device.stats().mem_sync_calls == syncs + 1
    assert not out.numpy()[3].any()


@pytest.mark.parametrize("name", ["sim:rk3576", "sim:rk3562", "sim:rk3566"])
def test_chips_without_float16_results_convert_them(name: str) -> None:
    a, b = values((4, 64), np.float16), values((64, 32), np.float16, 1)
    with npu.Device(name) as chip, npu.use_device(chip):
        x, w = npu.asarray(a), npu.pack(b)
        got = npu.matmul(x, w, dtype=np.float16)
        np.testing.assert_array_equal(got.numpy(), (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16))
        assert (chip.stats().conversions == 0) == (name == "sim:rk3576")  # facts 3.2: type 4 is on rk3576 and rk3588
        before = chip.stats().conversions
        np.testing.assert_array_equal((x @ w).numpy(), a.astype(np.float32) @ b.astype(np.float32))
        assert chip.stats().conversions == before


@pytest.mark.parametrize("runtime", ["1.5.2", "1.6.0", "2.0.0b0", "2.1.0"])
def test_older_runtimes(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", runtime)
    a, b = values((300, 64), np.float16), values((64, 64), np.float16, 1)
    with npu.Device("sim:rk3588") as old, npu.use_device(old):
        x, w = npu.asarray(a), npu.pack(b)
        for rows in (slice(0, 8), slice(0, 300), slice(64, 72)):
            got = npu.matmul(x[rows], w, dtype=np.float16)
            expected = (a[rows].astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
            np.testing.assert_array_equal(got.numpy(), expected)
            x[rows] = x[rows].numpy()  # written again
