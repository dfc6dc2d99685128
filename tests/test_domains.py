"""Weights that one IOMMU domain cannot hold: each lives in one domain, with its contexts, A and C."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import sim
from npumatmul.device.arenas import WeightMemory
from npumatmul.errors import NpuMemoryError, RknnParamInvalid, UnsupportedByRuntime
from npumatmul.planning.product import plan_matmul
from npumatmul.rknn import Runtime
from npumatmul.running.placement import Placement

MIB = 2**20
RUNTIME = "2.1.0"  # no other device of this process is on its library, whose settings are changed here


@contextmanager
def small_domains(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, runtime: str = RUNTIME, real: int = 8 * MIB,
    known: int | None = None, soc: str = "rk3588", domains: int | None = None,
) -> Iterator[npu.Device]:  # fmt: skip
    """A device whose domains hold `real` bytes, of which the capability table knows, or believes `known`."""
    cells: dict[str, Any] = {"domain_bytes": real if known is None else known}
    if domains is not None:
        cells["iommu_domains"] = domains
    probed = {
        "format": "npumatmul-probe", "version": 1, "soc": soc, "runtime": runtime, "simulated": True,
        "cells": {name: {"value": value, "source": "this test"} for name, value in cells.items()},
    }  # fmt: skip
    (folder / "probe.json").write_text(json.dumps(probed))
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(folder / "probe.json"))
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", runtime)
    with npu.Device(f"sim:{soc}") as device, sim.configured(device, domain_bytes=real):
        yield device


def simulated_bytes(device: npu.Device) -> dict[int, int]:
    """What the simulator counts in each domain."""
    chips = sim.counter_details(device)["chips"]
    return {int(domain): held for domain, held in chips[device.chip.soc]["domain_bytes"].items()}


def check_domains(device: npu.Device, limit: int) -> None:
    """The limit is kept, and the budget counts what the simulator does."""
    stats = device.memory_stats()
    held = {each.domain: each.nbytes for each in stats.domains if each.nbytes}
    counted = simulated_bytes(device)
    assert set(counted) == set(held)
    for domain, nbytes in counted.items():
        assert nbytes <= limit
        assert 0 <= nbytes - held[domain] < 4096 * stats.descriptors, "whole pages are counted there"


def layers(count: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Weights in the proportions of a model's layers; alternately int8 and to be quantized."""
    random = np.random.default_rng(11)
    shapes = {"attention": (512, 768), "output": (512, 512), "up": (512, 1536), "down": (1536, 512)}
    for layer in range(count):
        for name, shape in shapes.items():
            if layer % 2:
                yield f"{layer}.{name}", random.standard_normal(shape, np.float32)
            else:
                yield f"{layer}.{name}", random.integers(-128, 128, shape).astype(np.int8)


def expect(a: NDArray[Any], w: NDArray[Any], packed: npu.PackedWeight) -> None:
    """A product is numpy's: of integers exactly, of quantized weights with their own values."""
    found = npu.matmul(a, packed)
    if w.dtype == np.int8:
        assert (found == a.astype(np.int64) @ w.astype(np.int64)).all()
    else:
        exact = a.astype(np.float64) @ packed.unpack().astype(np.float64)
        # activations are rounded to 127 steps of their row's largest value
        bound = np.abs(a).max(1, keepdims=True) / 254 * np.abs(packed.unpack()).sum(0) * 1.01 + 1e-3
        assert (np.abs(found - exact) <= bound).all()


def fill_up(device: npu.Device, w: NDArray[Any]) -> tuple[list[npu.PackedWeight], str]:
    """As many of a weight as there is room for, and what the error says then."""
    packed: list[npu.PackedWeight] = []
    try:
        while len(packed) < 100:
            packed.append(npu.pack(w, device=device))
    except NpuMemoryError as error:
        return packed, str(error)
    raise AssertionError("there is no end")


@pytest.mark.parametrize("known", [None, 2**31], ids=["the table knows", "the runtime refuses"])
@pytest.mark.parametrize("runtime", ["2.0.0b0", "2.1.0", "2.3.0"])
def test_a_model_larger_than_a_domain_is_spread_weight_by_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: int | None, runtime: str
) -> None:
    random = np.random.default_rng(1)
    limit = 8 * MIB
    with small_domains(monkeypatch, tmp_path, runtime=runtime, real=limit, known=known) as device:
        weights = dict(layers(8))
        packed = {}
        for name, w in weights.items():
            packed[name] = npu.pack(w, "int8" if w.dtype == np.int8 else "w8a8", device=device)
            check_domains(device, limit)
        domains = {each.domain for each in packed.values()}
        assert sum(each.nbytes for each in packed.values()) > 1.5 * limit
        assert len(domains) >= 2
        for each in packed.values():
            assert each.stored is not None
            assert {piece.memory.domain for piece in each.stored.tiles} == {each.domain}
        if known is None:  # then room is left for A and C from the start
            for domain in device.memory_stats().domains:
                assert domain.weights <= limit - 64 * 1024
        for rows in (1, 40):
            for name in random.permutation(list(packed)):
                w = weights[name]
                a = random.integers(-128, 128, (rows, w.shape[0])).astype(w.dtype)
                expect(a, w, packed[name])
            check_domains(device, limit)
        working = {each.domain for each in device.memory_stats().domains if each.workspaces}
        assert working == domains, "A and C are where the weights are"
        assert device.empty_cache() > 0
        assert all(each.workspaces == 0 for each in device.memory_stats().domains)
        name = max(packed, key=lambda each: packed[each].domain)
        expect(np.ones((2, weights[name].shape[0]), weights[name].dtype), weights[name], packed[name])
        for each in packed.values():
            each.close()
        device.empty_cache()
        assert simulated_bytes(device) == {}


def test_a_model_that_fits_stays_in_the_first_domain(fresh_device: npu.Device) -> None:
    packed = [npu.pack(w, "int8" if w.dtype == np.int8 else "w8a8", device=fresh_device) for _, w in layers(2)]
    assert {each.domain for each in packed} == {0}
    assert fresh_device.memory_stats().contexts == 1, "no context for memory of other domains"


def test_room_that_becomes_free_is_taken_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    w = np.ones((1024, 1024), np.int8)
    with small_domains(monkeypatch, tmp_path) as device:
        packed = [npu.pack(w, device=device) for _ in range(12)]
        where = [each.domain for each in packed]
        assert where == sorted(where)
        assert where[-1] >= 1
        packed[1].close()
        packed[1] = npu.pack(w, device=device)
        assert packed[1].domain == 0
        a = np.arange(5 * 1024, dtype=np.int64).reshape(5, 1024).astype(np.int8)
        for each in packed:
            assert (npu.matmul(a, each) == a.astype(np.int64).sum(1, keepdims=True)).all()
        check_domains(device, 8 * MIB)


@pytest.mark.parametrize("runtime", sim.runtimes())
def test_runtimes_without_domains_use_the_one_that_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str
) -> None:
    """And later ones are full when all of theirs are; the message says what is in each.

    That of 2.3.2 on an RK3576, whose memory is its own: other tests keep a device on an RK3588 of that runtime.
    """
    has_domains = runtime >= "2"
    soc = "rk3576" if runtime == "2.3.2" else "rk3588"
    count = 3 if has_domains else 1
    w = np.ones((1024, 1024), np.int8)
    a = np.ones((3, 1024), np.int8)
    with small_domains(
        monkeypatch, tmp_path, runtime=runtime, real=4 * MIB, soc=soc, domains=count if has_domains else None
    ) as device:
        assert device.weights.domains == count
        packed, text = fill_up(device, w)
        assert len(packed) >= 2 * count
        assert {each.domain for each in packed} == set(range(count))
        assert f"weights fill {len(packed)}.0 MiB" in text
        with pytest.raises(NpuMemoryError, match=rf"weights fill {len(packed)}\.0 MiB"):
            device.buffer(4 * MIB)
        assert (f"any of {count} IOMMU domains" if has_domains else "the one IOMMU domain") in text
        for domain in range(count):
            assert f"domain {domain}: " in text
        last = packed.pop()
        last.close()
        assert (npu.matmul(a, packed[0]) == 1024).all()
        if has_domains:
            with pytest.raises(ValueError, match="domains are 0 to 2"):
                device.buffer(4096, domain=3)
        else:
            with pytest.raises(UnsupportedByRuntime):
                device.buffer(4096, domain=1)
        with pytest.raises(ValueError, match="IOMMU domains are"):
            device.buffer(4096, domain=-1)


def test_a_weight_larger_than_a_domain_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    w = random.integers(-128, 128, (2048, 5120)).astype(np.int8)
    a = random.integers(-128, 128, (3, 2048)).astype(np.int8)
    with small_domains(monkeypatch, tmp_path) as device:
        with pytest.raises(NpuMemoryError, match=r"larger than an IOMMU domain.*Split it along N \(numpy.array_split"):
            npu.pack(w, device=device)
        assert device.memory_stats().nbytes == 0
        parts = [npu.pack(part, device=device) for part in np.array_split(w, 3, axis=1)]
        assert len({part.domain for part in parts}) > 1
        found = np.concatenate([npu.matmul(a, part) for part in parts], axis=1)
        assert (found == a.astype(np.int64) @ w.astype(np.int64)).all()


def test_what_is_idle_gives_way_in_the_domain_that_needs_room_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    w = np.ones((1024, 1024), np.int8)
    with small_domains(monkeypatch, tmp_path) as device:
        packed = {}
        while len(packed) < 2:
            made = npu.pack(w, device=device)
            packed.setdefault(made.domain, []).append(made)
        for weights in packed.values():
            npu.matmul(np.ones((40, 1024), np.int8), weights[0])
        before = {each.domain: each for each in device.memory_stats().domains}
        assert before[0].workspaces > 0
        assert before[1].workspaces > 0
        contexts = device.memory_stats().contexts
        size = 8 * MIB - before[0].weights - 64 * 1024
        with device.buffer(size):  # in domain 0
            after = {each.domain: each for each in device.memory_stats().domains}
            assert (after[0].workspaces, after[1].workspaces) == (0, before[1].workspaces)
            assert 2 < device.memory_stats().contexts < contexts, "contexts of domain 1 stayed"
            assert (npu.matmul(np.ones((40, 1024), np.int8), packed[1][0]) == 1024).all()
        assert (npu.matmul(np.ones((40, 1024), np.int8), packed[0][0]) == 1024).all()


def test_products_in_place_need_everything_in_one_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    w = random.integers(-2, 3, (512, 512)).astype(np.float16)
    values = random.integers(-2, 3, (8, 512)).astype(np.float16)
    expected = (values.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
    # copying is never found to be faster
    monkeypatch.setattr(
        "npumatmul.running.in_place.plan_matmul", lambda *_, **__: SimpleNamespace(modelled_seconds=None)
    )
    with small_domains(monkeypatch, tmp_path) as device, npu.use_device(device):
        first, x, spare = npu.pack(w), npu.asarray(values), device.buffer(MIB)
        packed = [npu.pack(np.tile(w, (1, 3)))]
        while packed[-1].domain == 0:
            packed.append(npu.pack(np.tile(w, (1, 3))))
        second = packed[-1]
        assert (first.domain, second.domain) == (0, 1)
        spare.close()  # room for results in domain 0
        assert x.buffer.domain == 0

        def copies(a: npu.NpuArray, packed: npu.PackedWeight, wanted: NDArray[np.float32]) -> int:
            before = device.stats().conversions
            y = npu.matmul(a, packed)
            assert isinstance(y, npu.NpuArray)
            np.testing.assert_array_equal(y.numpy(writable=False), wanted)
            if device.stats().conversions == before:
                assert y.buffer.domain == packed.domain
            return device.stats().conversions - before

        wide = np.tile(expected, (1, 3))
        assert copies(x, first, expected) == 0
        assert copies(x, second, wide) > 0, "its memory means nothing in domain 1"
        there = npu.empty(x.shape, np.float16, domain=second.domain)
        there.numpy()[...] = values
        assert copies(there, second, wide) == 0
        assert copies(there, first, expected) > 0
        with pytest.raises(ValueError, match="IOMMU domains are 0 to 15"):
            npu.empty((2, 2), domain=16)


def test_a_result_of_one_domain_goes_straight_into_a_product_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    w = random.standard_normal((512, 512)).astype(np.float32)
    values = random.standard_normal((8, 512)).astype(np.float32)
    monkeypatch.setattr("npumatmul.ops.array.multiply.AT_ONCE", 0)  # small results are deferred, too
    with small_domains(monkeypatch, tmp_path) as device, npu.use_device(device):
        packed = [npu.pack(w, "w8a8"), npu.pack(np.tile(w, (1, 3)), "w8a8")]
        while packed[-1].domain == 0:
            packed.append(npu.pack(np.tile(w, (1, 3)), "w8a8"))
        first, second = packed[0], packed[-1]
        assert (first.domain, second.domain) == (0, 1)
        expected = values @ first @ second
        before = device.stats().conversions
        result = npu.asarray(values) @ first @ second
        assert device.stats().conversions == before + 2
        np.testing.assert_array_equal(result.numpy(), expected)


def test_arrays_are_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with small_domains(monkeypatch, tmp_path, domains=2) as device, npu.use_device(device):
        arrays = [npu.zeros((3, 2**18), np.float32) for _ in range(4)]  # of 4 MiB, with room for a fourth row
        assert [each.buffer.domain for each in arrays] == [0, 0, 1, 1]
        with pytest.raises(NpuMemoryError, match=r"(?s)domain 0: 8.0 MiB.*domain 1: 8.0 MiB"):
            npu.zeros((3, 2**18), np.float32)


def test_saved_weights_are_loaded_wherever_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = dict(layers(3))
    random = np.random.default_rng(4)
    file = tmp_path / "weights.safetensors"
    with small_domains(monkeypatch, tmp_path) as device, npu.use_device(device):
        packed = {name: npu.pack(w, "int8" if w.dtype == np.int8 else "w8a8") for name, w in weights.items()}
        npu.save_packed(packed, file)
        copies = [{name: npu.load_packed(file, name) for name in weights} for _ in range(2)]
        assert len({each.domain for loaded in [packed, *copies] for each in loaded.values()}) >= 2
        for loaded in copies:
            for name, w in weights.items():
                a = random.integers(-128, 128, (4, w.shape[0])).astype(w.dtype)
                expect(a, w, loaded[name])
                np.testing.assert_array_equal(loaded[name].unpack(), packed[name].unpack())
        check_domains(device, 8 * MIB)


def test_a_driver_with_fewer_domains_than_the_table_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = np.ones((1024, 1024), np.int8)
    with small_domains(monkeypatch, tmp_path) as device:
        create = device.runtime.matmul_create

        def creating(info: Any, note: Any) -> Any:
            if info.iommu_domain_id > 1:
                raise RknnParamInvalid("rknn_matmul_create", -5, {"iommu_domain_id": info.iommu_domain_id})
            return create(info, note)

        monkeypatch.setattr(device.runtime, "matmul_create", creating)
        packed, text = fill_up(device, w)
        assert "any of 2 IOMMU domains" in text
        assert {each.domain for each in packed} == {0, 1}
        assert "stay in the first 2 domains" in caplog.text


@pytest.mark.parametrize("shared", [False, True])
def test_processes_that_share_a_board_stay_in_its_first_domain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    """Two that use domains at once can panic the kernel."""
    monkeypatch.setattr(Runtime, "simulated_soc", lambda _: None)
    monkeypatch.setenv("NPUMATMUL_SHARE_BOARD", str(int(shared)))
    monkeypatch.setenv("NPUMATMUL_LOCK_FILE", str(tmp_path / "lock"))
    with npu.Device("sim:rk3588") as device:
        assert not device.simulated
        assert device.weights.domains == (1 if shared else device.chip.memory.domains)


@given(
    st.lists(
        st.one_of(
            st.lists(st.lists(st.integers(1, 600_000), min_size=1, max_size=3), min_size=1, max_size=4),
            st.integers(0, 50),
        ),
        min_size=5,
        max_size=40,
    ),
    st.booleans(),
)
@settings(max_examples=30)
def test_whatever_comes_and_goes_every_weight_is_in_one_domain(steps: list[Any], together: bool) -> None:
    with npu.Device("sim:rk3588") as device:
        memory = WeightMemory(device.session, 2 * MIB, 3)
        held: list[list[Any]] = []
        for step in steps:
            if isinstance(step, int):
                if held:
                    memory.release(held.pop(step % len(held)))
                continue
            needed = sum(-(-size // 4096) * 4096 for row in step for size in row)
            try:
                made = memory.allocate(step, together=together)
            except NpuMemoryError:
                # not even a domain that is empty has room, or none is empty
                empty = any(not any(arena.slices for arena in memory._arenas_in(domain)) for domain in range(3))
                assert needed > 2 * MIB or not empty
                continue
            assert [piece.size for piece in made] == [size for row in step for size in row]
            assert len({piece.memory.domain for piece in made}) == 1
            held.append(made)
            for domain in range(3):
                assert sum(arena.size for arena in memory._arenas_in(domain)) <= 2 * MIB
            assert memory.bytes_used == sum(piece.size for made in held for piece in made)
            addresses = sorted((piece.address, piece.address + piece.size) for made in held for piece in made)
            assert all(one[1] <= other[0] for one, other in pairwise(addresses))
        for made in held:
            memory.release(made)
        memory.close()


def test_arenas_leave_little_unused_beside_tiles_of_one_size() -> None:
    with npu.Device("sim:rk3588") as device:
        memory = WeightMemory(device.session, 1024 * MIB, 2)
        held = [memory.allocate([[14 * MIB + 4096] * 3]) for _ in range(8)]
        assert memory.bytes_reserved <= 1.02 * memory.bytes_used
        assert len(memory.arenas) < 12, "and few descriptors are taken"
        for made in held:
            memory.release(made)
        memory.close()


def test_an_empty_arena_that_is_too_small_is_given_up() -> None:
    with npu.Device("sim:rk3588") as device:
        memory = WeightMemory(device.session, 6 * MIB)
        memory.release(memory.allocate([[MIB]]))
        assert [arena.empty for arena in memory.arenas] == [True]
        held = memory.allocate([[5 * MIB]])
        assert memory.bytes_reserved <= 6 * MIB
        with pytest.raises(NpuMemoryError, match="the one IOMMU domain there is"):
            memory.allocate([[2 * MIB]])
        memory.release(held)
        memory.close()


def test_contexts_are_made_in_the_domain_of_the_weight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of equal shapes are shared within a domain, not beyond it."""
    w = np.ones((512, 512), np.int8)
    with small_domains(monkeypatch, tmp_path) as device:
        packed = [npu.pack(w, device=device)]
        while packed[-1].domain == 0:
            packed.append(npu.pack(w, device=device))
        one, others = packed[0], [packed[-1], npu.pack(w, device=device)]
        assert {each.domain for each in others} == {1}
        pool = Placement.of(device).contexts
        made = []
        for each in (one, *others):
            assert (npu.matmul(np.ones((4, 512), np.int8), each) == 512).all()
            made.append(sorted(key[0].domain for key in pool._contexts))
        assert set(made[0]) == {0}
        assert made[1] == made[2] == [*made[0], *(1 for _ in made[0])]


def test_threads_multiply_in_several_domains_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each with weights of all domains; many rows of the narrow ones are shared by cores."""
    random = np.random.default_rng(8)
    shapes = [(1024, 1024), (2048, 96), (1024, 512)]
    weights = [random.integers(-8, 8, shapes[i % 3]).astype(np.int8) for i in range(30)]
    with small_domains(monkeypatch, tmp_path, real=16 * MIB) as device:
        packed = [npu.pack(w, device=device) for w in weights]
        assert len({each.domain for each in packed}) >= 2
        narrow = packed[1].plan
        assert narrow is not None
        assert plan_matmul(600, narrow).range_cores

        def work(seed: int) -> int:
            mine = np.random.default_rng(seed)
            for index in mine.permutation(len(weights))[:8]:
                a = mine.integers(-8, 8, (int(mine.choice([1, 9, 600])), weights[index].shape[0])).astype(np.int8)
                # sums are below 2^24: exact in float32
                expected = a.astype(np.float32) @ weights[index].astype(np.float32)
                assert (npu.matmul(a, packed[index]) == expected).all()
            return seed

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [0, 1, 2, 3]
        assert max(simulated_bytes(device).values()) <= 16 * MIB
        device.empty_cache()  # contexts may be bound to buffers that gave way, which stay as long
        check_domains(device, 16 * MIB)
