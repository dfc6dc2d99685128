"""Buffers of A and C: lent to one user at a time, and given back by whatever way it ends."""

from __future__ import annotations

import gc

import pytest

import npumatmul as npu
from npumatmul.device.leases import Lease
from npumatmul.running.workspace import Workspace


@pytest.fixture
def workspace(fresh_device: npu.Device) -> Workspace:
    return Workspace(fresh_device.session)


def allocations(device: npu.Device) -> int:
    return device.stats().descriptors


def test_what_is_lent_is_nobody_elses(fresh_device: npu.Device, workspace: Workspace) -> None:
    first = workspace.acquire("C", 2, 5000)
    second = workspace.acquire("C", 2, 5000)
    assert len({id(memory) for memory in (*first, *second)}) == 4
    assert all(memory.size >= 5000 for memory in (*first, *second))
    first.lease.over = True
    third = workspace.acquire("C", 2, 9000)
    assert {*third} == {*first}, "buffers of one size are reused"
    assert not {*workspace.acquire("C", 2, 5000)} & {*second, *third}
    assert allocations(fresh_device) == 6


def test_what_the_cpu_wrote_is_never_written_by_the_npu(workspace: Workspace) -> None:
    a = workspace.acquire("A", 3, 100)
    a.lease.over = True
    assert not {*workspace.acquire("C", 3, 100)} & {*a}


@pytest.mark.parametrize("size", [1, 4096, 4097, 16384, 16385, 10**6])
def test_a_size_is_a_power_of_four_pages(workspace: Workspace, size: int) -> None:
    (memory,) = workspace.acquire("A", 1, size)
    assert size <= memory.size < max(4 * size, 4097)
    pages = memory.size // 4096
    assert pages.bit_count() == 1
    assert pages.bit_length() % 2 == 1


def test_a_loan_ends_with_its_lease_or_with_whoever_has_it(fresh_device: npu.Device, workspace: Workspace) -> None:
    lease = Lease()
    buffers = workspace.acquire("A", 2, 100, lease)
    lease.over = True
    other = workspace.acquire("A", 2, 100)
    assert {*other} == {*buffers}
    known = {id(memory) for memory in other}
    del other
    assert {id(memory) for memory in workspace.acquire("A", 2, 100)} == known
    assert allocations(fresh_device) == 2


@pytest.mark.parametrize("end", ["dropped", "lease over"])
def test_what_is_lent_outlives_clearing_and_is_freed_afterwards(
    fresh_device: npu.Device, workspace: Workspace, end: str
) -> None:
    lease = Lease()
    buffers = workspace.acquire("C", 1, 100, lease)
    idle = workspace.acquire("C", 2, 100)
    idle.lease.over = True
    assert workspace.clear()
    assert allocations(fresh_device) == 1
    assert not workspace.clear()
    assert not buffers[0].closed
    if end == "dropped":
        del buffers, lease
        gc.collect()
    else:
        lease.over = True
        workspace.clear()
    assert allocations(fresh_device) == 0
    again = workspace.acquire("C", 1, 100)
    assert not again[0].closed


def test_what_is_to_be_freed_is_not_lent_again(fresh_device: npu.Device, workspace: Workspace) -> None:
    lease = Lease()
    buffers = workspace.acquire("A", 2, 100, lease)
    workspace.clear()
    lease.over = True
    assert all(memory.retired for memory in buffers)
    assert not {*workspace.acquire("A", 2, 100)} & {*buffers}
    workspace.clear()
    assert allocations(fresh_device) == 0


def test_closing_the_device_frees_what_is_lent(workspace: Workspace, fresh_device: npu.Device) -> None:
    buffers = workspace.acquire("C", 2, 100)
    fresh_device.close()
    assert all(memory.closed for memory in buffers)
