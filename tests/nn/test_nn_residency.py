"""Weights that are brought to the device by use: how many are there, which give way, and that nothing else changes."""

from __future__ import annotations

import copy
import pickle
import shutil
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import nn
from npumatmul.errors import ClosedError, NpuMemoryError, PackedFileError
from npumatmul.nn import residency as residency_module
from npumatmul.running.placement import Placement
from npumatmul.running.where import Where, storing

sys.path.insert(0, str(Path(__file__).parents[1]))
from interrupts import interrupted_at

DEVICE = "sim:rk3588"
X = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


def packed(seed: int, scheme: Any = "w16a16") -> npu.PackedWeight:
    return npu.pack(np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32), scheme, device=DEVICE)


def kept(count: int, here: int, folder: Path | None = None, scheme: Any = "w16a16") -> Any:
    """As many products of which some fit, what each gives, and the residency."""
    weights = [packed(seed, scheme) for seed in range(count)]
    residency = nn.Residency(here * weights[0].nbytes, folder)
    expected: list[NDArray[np.float32]] = [np.array(nn.PackedProduct(weight)(X)) for weight in weights]
    return [residency.keep(nn.PackedProduct(weight)) for weight in weights], expected, residency


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 5))
def test_what_was_used_longest_ago_gives_way(uses: list[int], here: int) -> None:
    products, expected, residency = kept(5, here)
    model: OrderedDict[int, None] = OrderedDict()
    brought = 0
    for each in uses:
        brought += each not in model
        model[each] = None
        model.move_to_end(each)
        if len(model) > here:
            model.popitem(last=False)
        np.testing.assert_array_equal(products[each](X), expected[each])
        assert residency.nbytes <= residency.limit
    assert (residency.brought, residency.found) == (brought, len(uses) - brought)
    residency.close()


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "w4a8_g32"])
@pytest.mark.parametrize("in_files", [False, True])
def test_results_are_bit_for_bit_those_of_weights_that_stay(tmp_path: Path, scheme: str, in_files: bool) -> None:
    products, expected, residency = kept(3, 1, tmp_path if in_files else None, scheme)
    for _ in range(2):
        for product, y in zip(products, expected, strict=True):
            np.testing.assert_array_equal(product(X), y)
    assert residency.brought == 6
    np.testing.assert_array_equal(products[1].unpack(), np.asarray(packed(1, scheme).unpack().T, np.float32))
    assert any(tmp_path.iterdir()) == in_files
    residency.close()
    assert not any(tmp_path.iterdir())


def test_memory_of_the_device_is_that_of_those_that_are_there() -> None:
    with npu.Device(DEVICE) as device:
        weights = [npu.pack(np.ones((64, 32), np.float32), device=device) for _ in range(4)]
        size = weights[0].nbytes
        assert device.weights.bytes_used == 4 * size
        residency = nn.Residency(2 * size)
        products = [residency.keep(nn.PackedProduct(weight)) for weight in weights]
        assert device.weights.bytes_used == residency.nbytes == 0
        assert residency.waiting == 4 * size
        for product in products:
            product(X)
        assert device.weights.bytes_used == residency.nbytes == 2 * size
        residency.close()
        assert device.weights.bytes_used == residency.nbytes == residency.waiting == 0


def test_others_give_way_where_the_device_has_less_room_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    products, expected, residency = kept(3, 3)
    size, bring = residency._kept[2]

    def scarce() -> npu.PackedWeight:
        if residency._here:
            raise NpuMemoryError("no room")
        weight: npu.PackedWeight = bring()
        return weight

    residency._kept[2] = (size, scarce)
    for product, y in zip(products, expected, strict=True):
        np.testing.assert_array_equal(product(X), y)
    assert residency.nbytes == residency.limit // 3

    def full() -> npu.PackedWeight:
        raise NpuMemoryError("no room")

    residency._kept[0] = (size, full)
    with pytest.raises(NpuMemoryError):
        products[0](X)
    np.testing.assert_array_equal(products[1](X), expected[1])
    residency.close()


def test_threads_take_turns() -> None:
    products, expected, residency = kept(4, 2)
    wrong: list[int] = []

    def run(start: int) -> None:
        for i in range(20):
            each = (start + i) % 4
            if not np.array_equal(products[each](X), expected[each]):
                wrong.append(each)

    threads = [threading.Thread(target=run, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert residency.brought + residency.found == 60
    residency.close()


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_interrupt_anywhere_loses_no_memory_and_no_weight(tmp_path: Path, on_disk: bool) -> None:
    products, expected, residency = kept(3, 2, tmp_path if on_disk else None)
    size, position = residency.limit // 2, 0
    for each in products[:2]:
        each(X)
    while interrupted_at(position, lambda: products[position % 3](X)):  # noqa: B023
        assert residency.nbytes <= residency.limit
        for i in range(3):
            np.testing.assert_array_equal(products[i](X), expected[i])
        assert residency.nbytes == residency.limit  # two of them are there, as before
        position += 2
    position = 0
    while True:
        weight = packed(3)
        wanted = np.array(nn.PackedProduct(weight)(X))
        waiting = residency.waiting
        if not interrupted_at(position, lambda: products.append(residency.keep(nn.PackedProduct(weight)))):  # noqa: B023
            break
        assert residency.waiting in (waiting, waiting + size)
        position += 5
    np.testing.assert_array_equal(products[-1](X), wanted)
    residency.close()
    assert (residency.nbytes, residency.waiting) == (0, 0)


def test_nobody_copies_what_there_is_once(tmp_path: Path) -> None:
    products, expected, residency = kept(2, 1, tmp_path)
    for each in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Residency cannot be copied"):
            each(residency)
    with pytest.raises(TypeError, match="Residency cannot be copied"):
        copy.deepcopy(products[0])
    np.testing.assert_array_equal(copy.copy(products[0])(X), expected[0])  # which shares it


def test_files_that_vanish_or_cannot_be_written_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products, expected, residency = kept(2, 1, tmp_path)
    weight = packed(5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(residency_module, "save_packed", full)
        with pytest.raises(OSError, match="No space left"):
            residency.keep(nn.PackedProduct(weight))
    assert not weight.closed
    products[1](X)
    (folder,) = tmp_path.iterdir()
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        products[0](X)
    shutil.move(tmp_path / "away", folder)
    for product, y in zip(products, expected, strict=True):
        np.testing.assert_array_equal(product(X), y)
    (folder / "0.safetensors").write_bytes((folder / "1.safetensors").read_bytes()[:-9])
    products[1](X)
    with pytest.raises(PackedFileError, match=r"0\.safetensors"):
        products[0](X)
    residency.close()


def test_mistakes_are_told() -> None:
    for limit in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="1 or more"):
            nn.Residency(limit)  # type: ignore[arg-type]
    weight = packed(0)
    residency = nn.Residency(weight.nbytes - 1)
    with pytest.raises(ValueError, match="larger than the limit"):
        residency.keep(nn.PackedProduct(weight))
    assert not weight.closed
    with pytest.raises(TypeError, match="FloatProduct has no packed weight"):
        residency.keep(nn.FloatProduct(X))
    products, _, residency = kept(1, 1)
    residency.close()
    residency.close()
    with pytest.raises(ClosedError):
        products[0](X)
    with pytest.raises(ClosedError):
        residency.keep(nn.PackedProduct(packed(1)))


@pytest.mark.parametrize("on_disk", [False, True])
def test_who_multiplies_stays_the_same_when_a_weight_is_brought_in(tmp_path: Path, on_disk: bool) -> None:
    where = Where(cores=(1,), crossover=4)
    with npu.Device("sim:rk3588") as device:
        with storing(where):
            weight = npu.pack(np.ones((64, 96), np.float32), "w8a8", device=device)
        residency = nn.Residency(weight.nbytes, tmp_path if on_disk else None)
        product = residency.keep(nn.Linear.from_packed(weight).product)
        before = device.stats()
        product(np.ones((4, 64), np.float32))
        product(np.ones((5, 64), np.float32))
        after = device.stats()
        assert (after.cpu_macs - before.cpu_macs, after.macs - before.macs) == (4 * 64 * 96, 5 * 64 * 96)
        assert {spec.core for spec, _ in Placement.of(device).contexts._contexts} == {1}
        residency.close()
