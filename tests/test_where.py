"""Where weights are stored: ordinary memory, some cores, some IOMMU domains."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import npumatmul as npu
from npumatmul.errors import NpuMemoryError
from npumatmul.running.placement import Placement
from npumatmul.running.where import Where, storing, where

RNG = np.random.default_rng(7)


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "w4a4", "w8a8_g128", "w4a8_g32"])
def test_ordinary_memory_holds_the_same_bytes_and_none_of_the_npus(device: npu.Device, scheme: str) -> None:
    w = RNG.standard_normal((300, 130)).astype(np.float32)
    there = npu.pack(w, scheme, device=device)
    held = device.memory_stats()
    with storing(Where("host")):
        here = npu.pack(w, scheme, device=device)
    now = device.memory_stats()
    assert (now.nbytes, now.descriptors, now.weights_used) == (held.nbytes, held.descriptors, held.weights_used)
    assert (there.memory, here.memory) == ("npu", "host")
    assert here.nbytes == there.nbytes > 0
    assert there.stored is not None
    assert here.stored is not None
    for one, other in zip(there.stored.tiles, here.stored.tiles, strict=True):
        np.testing.assert_array_equal(one.bytes(), other.bytes())
        assert other.address % 64 == 0
        struct = other.pointer.contents
        assert (struct.virt_addr + struct.offset, struct.size) == (other.address, other.size)
    np.testing.assert_array_equal(here.unpack(), there.unpack())
    here.close()
    assert here.closed
    assert not there.closed


def test_files_are_the_same_wherever_a_weight_was(device: npu.Device, tmp_path: object) -> None:
    w = RNG.standard_normal((64, 96)).astype(np.float32)
    with storing(Where("host")):
        here = npu.pack(w, "w8a8", device=device)
        here.save(f"{tmp_path}/host.safetensors")
        again = npu.load_packed(f"{tmp_path}/host.safetensors", device=device)
    there = npu.load_packed(f"{tmp_path}/host.safetensors", device=device)
    assert (again.memory, there.memory) == ("host", "npu")
    np.testing.assert_array_equal(again.unpack(), there.unpack())


def test_memory_of_weights_that_are_dropped_is_given_back(device: npu.Device) -> None:
    with storing(Where("host")):
        packed = npu.pack(np.ones((64, 64), np.float32), device=device)
    assert packed.stored is not None
    tile = packed.stored.tiles[0]
    assert len(tile.bytes())
    del packed
    device.memory_stats()  # collects
    assert not len(tile.bytes())


def test_it_holds_for_the_thread_and_the_block_alone(device: npu.Device) -> None:
    seen = []
    with storing(Where("host")):
        thread = threading.Thread(target=lambda: seen.append(where()))
        thread.start()
        thread.join()
        with storing(Where(cores=(1,))):
            assert where() == Where("npu", (1,))
        assert where() == Where("host")
    assert [*seen, where()] == [Where(), Where()]


@pytest.mark.parametrize("cores", [(0,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_products_run_on_the_cores_that_were_chosen(device: npu.Device, cores: tuple[int, ...]) -> None:
    w = RNG.standard_normal((256, 3000)).astype(np.float32)
    x = RNG.standard_normal((200, 256)).astype(np.float32)
    free = npu.matmul(x, npu.pack(w, "w8a8", device=device))
    device.empty_cache()
    with storing(Where(cores=cores)):
        packed = npu.pack(w, "w8a8", device=device)
    for rows in (1, 5, 200):
        np.testing.assert_array_equal(npu.matmul(x[:rows], packed), free[:rows])
    assert cores_used(device) == set(cores)


def cores_used(device: npu.Device) -> set[int | None]:
    return {spec.core for spec, _ in Placement.of(device).contexts._contexts}


@pytest.mark.parametrize("stored", [None, (0, 2), (1, 2)])
def test_products_in_place_run_on_the_cores_that_were_chosen(
    device: npu.Device, stored: tuple[int, ...] | None
) -> None:
    """One weight, arrays that the NPU reads and writes where they stand, in as many ranges as cores would share."""
    w = RNG.integers(-9, 9, (576, 512)).astype(np.float16)
    x = RNG.integers(-9, 9, (600, 576)).astype(np.float16)
    expected = x.astype(np.float32) @ w.astype(np.float32)
    with storing(Where(cores=stored)):
        packed = npu.pack(w, device=device)
    a = npu.asarray(x, device=device)
    for cores in (None, (2,)):
        device.empty_cache()
        with npu.config(cores=cores):
            before = device.stats()
            result = npu.matmul(a, packed)
        np.testing.assert_array_equal(result.numpy(), expected)
        assert device.stats().conversions == before.conversions, "in place"
        assert cores_used(device) <= set(cores or stored or (0, 1, 2))


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "w4a4"])
def test_a_scope_has_its_products_on_its_cores_and_one_weight_serves_all(device: npu.Device, scheme: str) -> None:
    w = RNG.standard_normal((256, 3000)).astype(np.float32)
    x = RNG.standard_normal((200, 256)).astype(np.float32)
    packed = npu.pack(w, scheme, device=device)
    held = device.memory_stats().domains[0].weights
    product = npu.Matmul(x, packed)
    free = npu.matmul(x, packed)
    bound = 1e-4 if scheme == "w16a16" else 0  # floats are summed in another order for other numbers of rows
    for cores in ((1,), (0, 2), (2, 1)):
        device.empty_cache()
        with npu.config(cores=cores):
            for rows in (1, 5, 200):
                for _ in range(2):  # the second time it is found again
                    np.testing.assert_allclose(npu.matmul(x[:rows], packed), free[:rows], atol=bound)
            np.testing.assert_array_equal(product.execute(), free)
        assert cores_used(device) == set(cores)
    np.testing.assert_array_equal(product.execute(), free)
    assert cores_used(device) > {1, 2}
    assert device.memory_stats().domains[0].weights == held


def test_cores_that_cannot_be_are_told(device: npu.Device) -> None:
    x = np.ones((1, 64), np.float32)
    with storing(Where(cores=(1, 2))):
        packed = npu.pack(np.eye(64, dtype=np.float32), device=device)
    for cores in ((), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="config: cores is"):
            npu.config(cores=cores)
    for wrong in (1, ["one"], 1.5):
        with pytest.raises(TypeError, match="config: cores is"):
            npu.config(cores=wrong)  # type: ignore[arg-type]
    with npu.config(cores=(1, 3)), pytest.raises(ValueError, match=r"sim:rk3588 has 3, counted from 0"):
        npu.matmul(x, packed)
    with npu.config(cores=(0, 1)), pytest.raises(ValueError, match=r"was stored for cores \(1, 2\)"):
        npu.matmul(x, packed)
    with npu.config(cores=(2,)):
        np.testing.assert_array_equal(npu.matmul(x, packed), x)


def test_weights_stay_in_the_domains_that_were_allowed(device: npu.Device) -> None:
    device.weights.capacity = 1_000_000
    w = np.ones((512, 600), np.float32)
    packed: list[npu.PackedWeight] = []

    def fill() -> None:
        while True:
            packed.append(npu.pack(w, "w8a8", device=device))

    with storing(Where(domains=2)), pytest.raises(NpuMemoryError, match="any of 2 IOMMU domains"):
        fill()
    assert {each.domain for each in packed} == {0, 1}
    assert npu.pack(w, "w8a8", device=device).domain == 2
