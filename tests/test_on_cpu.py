"""Products that the CPU makes of packed weights, from the tiles that the NPU reads: bit by bit those of the NPU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import nn
from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import ClosedError, NotFiniteError
from npumatmul.host.multiply import NativeB, Operands, instruction_sets, multiply
from npumatmul.planning.on_cpu import plan_on_cpu, suits_cpu
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import plan_weight
from npumatmul.quant import round_weight
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.params import QuantParams
from npumatmul.quant.schemes import Scheme
from npumatmul.running.placement import Placement

SCHEMES = {
    "rk3588": ("w8a8", "w4a8", "w4a4", "w16a16"),
    "rk3576": ("w8a8", "w4a8", "w8a16", "w4a16", "w16a16"),
    "rk3562": ("w8a8", "w4a8", "w16a16"),
    "rk3566": ("w8a8", "w4a8", "w16a16"),
}
PAIRS = [(soc, scheme) for soc, schemes in SCHEMES.items() for scheme in schemes]


@pytest.fixture(scope="module")
def devices() -> Iterator[dict[str, npu.Device]]:
    opened = {soc: npu.Device(f"sim:{soc}") for soc in SCHEMES}
    yield opened
    for device in opened.values():
        device.close()


@pytest.fixture(scope="module")
def device(devices: dict[str, npu.Device]) -> npu.Device:
    return devices["rk3588"]


def floats(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_same(on_cpu: Any, on_npu: Any, x: Any, w: Any, scheme: str) -> None:
    """Equal bits, unless floats are added up, which may happen in any order."""
    assert on_cpu.dtype == on_npu.dtype
    if scheme.partition("_")[0].endswith("a16"):
        k = w.shape[0]
        bound = 2.0 * (k + 1) * 2.0**-24 * 1.01 * (np.abs(x) @ np.abs(w)) + 1e-30
        # what a weight of 8 or 4 bits is beside the one that it was rounded from
        assert (np.abs(on_cpu.astype(np.float64) - on_npu) <= 1.2 * bound).all()
    else:
        np.testing.assert_array_equal(on_cpu, on_npu)


def named(scheme: str) -> list[str]:
    """The scheme with the kinds of scales that it can have."""
    if scheme == "w16a16":
        return [scheme]
    scales = ["", "_g32", "_g96", "_layer"]
    return [
        scheme + each
        for each in (scales if scheme.endswith("a16") else [*scales, "_g32_wasym", "_aasym", "_g64_agroup"])
    ]


@settings(max_examples=60)
@given(
    st.sampled_from([(soc, name) for soc, scheme in PAIRS for name in named(scheme)]),
    st.tuples(st.integers(1, 70), st.integers(1, 300), st.integers(1, 200)),
    st.integers(0, 99),
)
def test_results_are_those_of_the_npu(
    devices: dict[str, npu.Device], pair: tuple[str, str], shape: tuple[int, int, int], seed: int
) -> None:
    soc, scheme = pair
    m, k, n = shape
    x, w = floats(seed, m, k), floats(seed + 1, k, n)
    with npu.pack(w, Scheme.parse(scheme), device=devices[soc]) as packed:
        check_same(npu.matmul(x, packed.on("cpu")), npu.matmul(x, packed), x, packed.unpack(), scheme)


@pytest.mark.parametrize(("soc", "scheme"), PAIRS)
def test_weights_of_many_tiles(devices: dict[str, npu.Device], soc: str, scheme: str) -> None:
    """K and N are cut, for several cores; pieces of a thread end within tiles."""
    x, w = floats(1, 5, 9000), floats(2, 9000, 1100)
    with npu.pack(w, Scheme.parse(scheme), device=devices[soc]) as packed:
        assert packed.plan is not None
        assert len(packed.plan.k_spans) * len(packed.plan.n_spans) > 1
        check_same(npu.matmul(x, packed.on("cpu")), npu.matmul(x, packed), x, packed.unpack(), scheme)


def test_more_rows_than_are_multiplied_at_once(device: npu.Device) -> None:
    x, packed = floats(3, 201, 96), npu.pack(floats(4, 96, 80), "w8a8_g32", device=device)
    np.testing.assert_array_equal(npu.matmul(x, packed.on("cpu")), npu.matmul(x, packed))


def test_high_precision_and_integers(device: npu.Device) -> None:
    x, w = floats(5, 6, 300), floats(6, 300, 70)
    with npu.config(processor="cpu"):
        high = npu.matmul(x, w, precision="high", device=device)
    assert np.abs(high - x.astype(np.float64) @ w).max() < 1e-5
    rng = np.random.default_rng(7)
    for dtype in (np.int8, np.uint8, ml_dtypes.int4):
        low, limit = (-8, 8) if dtype is ml_dtypes.int4 else (np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
        a, b = (rng.integers(low, limit, shape).astype(dtype) for shape in ((9, 500), (500, 65)))
        with npu.config(processor="cpu"):
            product = npu.matmul(a, b, device=device)
        np.testing.assert_array_equal(product, a.astype(np.int32) @ b.astype(np.int32))


def test_results_of_int8(device: npu.Device) -> None:
    """The device rounds there; the CPU does as the simulator, which cuts off."""
    scheme = replace(Scheme.parse("w8a8o8"), activation_params=QuantParams(0.05), result_params=QuantParams(0.4))
    x, packed = floats(8, 7, 100), npu.pack(floats(9, 100, 40), scheme, device=device)
    on_npu = npu.matmul(x, packed)
    assert on_npu.dtype == np.int8
    assert len(np.unique(on_npu)) > 50
    np.testing.assert_array_equal(npu.matmul(x, packed.on("cpu")), on_npu)


@pytest.mark.parametrize("activation", ["gelu", "silu", None])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_epilogues_and_places(device: npu.Device, activation: Any, dtype: Any) -> None:
    x, packed = floats(10, 12, 160), npu.pack(floats(11, 160, 96), "w8a8", device=device)
    bias, gate, residual = floats(12, 96), floats(13, 12, 96), floats(14, 12, 96)
    how = npu.Epilogue(scale=0.5, bias=bias, activation=activation, multiply=gate, residual=residual, dtype=dtype)
    out = np.empty((12, 96), dtype)
    assert npu.matmul(x, packed.on("cpu"), out, epilogue=how) is out
    np.testing.assert_array_equal(out, npu.matmul(x, packed, epilogue=how))
    stack = npu.linear(x.reshape(3, 4, 160)[::2], packed.on("cpu"), bias, activation)
    np.testing.assert_array_equal(stack, npu.linear(x.reshape(3, 4, 160)[::2], packed, bias, activation))


def test_transformed_activations(device: npu.Device) -> None:
    w = floats(15, 96, 192)  # (N, K)
    weight = round_weight(w, bits=4, input_transform=Hadamard(192))
    packed, x = npu.pack(weight, "w4a8", device=device), floats(16, 5, 192)
    np.testing.assert_array_equal(npu.matmul(x, packed.on("cpu")), npu.matmul(x, packed))


def test_arrays_go_from_one_to_the_other(device: npu.Device) -> None:
    """Results that stand in C of the NPU are read by products of the CPU, and those of the CPU by the NPU's."""
    x, first, second = floats(17, 300, 256), floats(18, 256, 1024), floats(19, 1024, 256)
    one, two = npu.pack(first, "w8a8", device=device), npu.pack(second, "w8a8", device=device)
    expected = np.asarray(npu.matmul(npu.matmul(x, one), two))
    for left, right in (("npu", "cpu"), ("cpu", "npu"), ("cpu", "cpu")):
        chain = npu.asarray(x, device=device) @ one.on(left) @ two.on(right)  # type: ignore[arg-type]
        assert isinstance(chain, npu.NpuArray)
        np.testing.assert_array_equal(np.asarray(chain), expected)
    codes = npu.asarray(np.arange(64 * 64, dtype=np.int8).reshape(64, 64), device=device)
    integers = npu.pack(np.eye(64, dtype=np.int8) * 3, device=device)
    np.testing.assert_array_equal(np.asarray(codes @ integers.on("cpu")), np.asarray(codes @ integers))


def test_it_is_the_cpu_that_multiplies(device: npu.Device) -> None:
    x, packed = floats(20, 3, 128), npu.pack(floats(21, 128, 64), "w8a8", device=device)
    before = device.stats()
    npu.matmul(x, packed.on("cpu"))
    after = device.stats()
    assert after.cpu_macs - before.cpu_macs == 3 * 128 * 64
    assert (after.macs, after.run_calls, after.set_io_mem_calls) == (
        before.macs, before.run_calls, before.set_io_mem_calls,
    )  # fmt: skip
    assert after.npu_bytes == before.npu_bytes  # not even for A and C, and no second copy
    assert after.contexts == before.contexts


def test_scopes_and_weights_that_say_it(device: npu.Device) -> None:
    x, packed = floats(22, 2, 64), npu.pack(floats(23, 64, 64), "w8a8", device=device)

    def computed_by_cpu(*calls: Any) -> list[bool]:
        found = []
        for call in calls:
            before = device.stats().cpu_macs
            call()
            found.append(device.stats().cpu_macs > before)
        return found

    product = npu.Matmul(x, packed)
    layer = nn.Linear.from_packed(packed)
    pinned = layer.with_product(layer.product.on("npu"))  # type: ignore[attr-defined]
    calls = (lambda: npu.matmul(x, packed), lambda: x @ packed, product.execute, lambda: layer(x), lambda: pinned(x))
    for _ in range(2):  # what was prepared in one scope does not serve another
        assert computed_by_cpu(*calls) == [False] * 5
        with npu.config(processor="cpu"):
            assert computed_by_cpu(*calls) == [True, True, True, True, False]
            with npu.config(processor="npu"):
                assert computed_by_cpu(*calls) == [False] * 5
    for pinned_product in (
        npu.Matmul(x, packed.on("cpu")),
        npu.Matmul(npu.asarray(x, device=device), packed.on("cpu")),
    ):
        assert computed_by_cpu(pinned_product.execute, pinned_product.execute) == [True, True]
    assert packed.on(None) is packed
    assert packed.on("cpu").on(None).processor is None
    assert packed.on("auto").processor == "auto"


def test_auto_takes_what_is_modelled_to_be_faster(device: npu.Device) -> None:
    packed = npu.pack(floats(24, 512, 512), "w8a8", device=device)
    assert packed.plan is not None
    for m in (1, 300):
        before = device.stats().cpu_macs
        npu.matmul(floats(25, m, 512), packed.on("auto"))
        assert (device.stats().cpu_macs > before) == suits_cpu(plan_matmul(m, packed.plan))
    assert suits_cpu(plan_matmul(1, packed.plan))
    assert not suits_cpu(plan_matmul(300, packed.plan))


def test_mistakes(device: npu.Device) -> None:
    packed = npu.pack(floats(26, 64, 64), "w8a8", device=device)
    with pytest.raises(ValueError, match=r"on: processor is 'gpu'; it can be 'npu', 'cpu', 'auto' or None"):
        packed.on("gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="config: processor is 'gpu'"):
        npu.config(processor="gpu")  # type: ignore[arg-type]
    x = floats(27, 3, 64)
    x[1, 5] = np.nan
    with pytest.raises(NotFiniteError, match="row 1"):
        npu.matmul(x, packed.on("cpu"))
    on_cpu = packed.on("cpu")
    packed.close()
    assert on_cpu.closed
    with pytest.raises(ClosedError):
        npu.matmul(floats(28, 3, 64), on_cpu)


def test_threads_at_once(device: npu.Device) -> None:
    """Each call has A, C and threads of its own."""
    x, packed = floats(29, 4, 700), npu.pack(floats(30, 700, 900), "w8a8", device=device)
    expected, wrong = npu.matmul(x, packed), []

    def work(processor: Any) -> None:
        mine = packed.on(processor)
        for _ in range(10):
            if not np.array_equal(npu.matmul(x, mine), expected):
                wrong.append(processor)

    threads = [threading.Thread(target=work, args=(each,)) for each in ("cpu", "npu", "cpu", "auto")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pieces_cover_every_column_once_and_are_shared() -> None:
    for soc, mm_type, tile in (
        ("rk3588", MatmulType.INT8_INT8_INT32, 32),
        ("rk3588", MatmulType.INT4_INT4_INT16, 64),
        ("rk3566", MatmulType.FLOAT16_FLOAT16_FLOAT32, 8),
    ):
        for k, n in ((64, 17), (4096, 4096), (576, 49152), (9000, 1000)):
            plan = plan_weight(k, n, mm_type, chip(soc))
            for m, threads in ((1, 1), (1, 4), (130, 3)):
                cpu = plan_on_cpu(m, plan, tile, threads)
                starts = [piece.span.start for piece in cpu.pieces]
                ends = [piece.span.start + piece.span.length for piece in cpu.pieces]
                assert starts == [0, *ends[:-1]]
                assert ends[-1] == n
                assert {piece.thread for piece in cpu.pieces} == set(range(cpu.threads))
                assert cpu.threads <= threads
                for piece in cpu.pieces:
                    assert 0 < piece.span.length <= piece.span.padded
                    assert piece.span.start == plan.n_spans[piece.n_index].start + piece.tile_columns * tile
                assert sum(span.length for span in cpu.m_spans) == m


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_results_do_not_depend_on_threads(device: npu.Device, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    x, w = floats(33, 6, 900), floats(34, 900, 1500)
    for scheme in ("w8a8_g96", "w16a16"):
        packed = npu.pack(w, Scheme.parse(scheme), device=device)
        expected = npu.matmul(x, packed.on("cpu"))
        monkeypatch.setattr("npumatmul.running.on_cpu.fast_processors", lambda: threads)
        np.testing.assert_array_equal(npu.matmul(x, packed.on("cpu")), expected)
        np.testing.assert_array_equal(npu.matmul(x[2:3], packed.on("cpu")), expected[2:3])  # nor on the number of rows


def test_memory_lives_as_long_as_one_of_both(device: npu.Device) -> None:
    x, w = floats(35, 2, 512), floats(36, 512, 512)
    before = device.memory_stats().weights_used
    packed = npu.pack(w, "w8a8", device=device)
    expected, held = npu.matmul(x, packed), device.memory_stats().weights_used
    on_cpu = packed.on("cpu")
    np.testing.assert_array_equal(npu.matmul(x, on_cpu), expected)
    del packed
    assert device.memory_stats().weights_used == held > before
    np.testing.assert_array_equal(npu.matmul(x, on_cpu), expected)
    del on_cpu
    npu.matmul(x, npu.pack(floats(37, 512, 8), device=device))
    assert device.memory_stats().weights_used < held


def test_weights_and_rows_share_memory_for_a_and_c() -> None:
    with npu.Device("sim:rk3588") as device:
        x, memories = floats(41, 9, 512), Placement.of(device).cpu_memories
        weights = [npu.pack(floats(42 + i, 512, 512), "w8a8", device=device).on("cpu") for i in range(5)]
        expected = [npu.matmul(x, each) for each in weights]
        held = memories.nbytes
        for _ in range(2):
            for rows in (1, 5, 9):
                for each, whole in zip(weights, expected, strict=True):
                    np.testing.assert_array_equal(npu.matmul(x[:rows], each), whole[:rows])
            assert memories.nbytes <= 2 * held  # of one row, and of more
        device.empty_cache()
        assert memories.nbytes == 0
        np.testing.assert_array_equal(npu.matmul(x, weights[0]), expected[0])
        assert memories.nbytes == held


def test_instruction_sets_multiply_alike() -> None:
    rng = np.random.default_rng(38)
    of = NativeB(Operands.I8_I8, 0, 64, 96, 32, 32)
    a, b = rng.integers(0, 256, (3, 64), np.uint8), rng.integers(0, 256, 64 * 96, np.uint8)
    tiles = b.view(np.int8).reshape(3, 2, 32, 32)  # [N/n, K/k, n, k]
    expected = a.view(np.int8).astype(np.int32) @ tiles.transpose(1, 3, 0, 2).reshape(64, 96)
    for name in ("", *instruction_sets()):
        np.testing.assert_array_equal(multiply(of, a, b, name), expected)
    with pytest.raises(ValueError, match="this machine has scalar"):
        multiply(of, a, b, "vliw")
    with pytest.raises(ValueError, match="rows of 64 bytes"):
        multiply(of, a[:, :32], b)
    with pytest.raises(ValueError, match="6144 are needed"):
        multiply(of, a, b[:-1])
    with pytest.raises(ValueError, match="do not go together"):
        multiply(NativeB(Operands.I8_I8, 0, 64, 96, 8, 32), a, b)


def test_interrupts_end_long_products_and_leave_nothing_in_use(device: npu.Device) -> None:
    """At any point; there are hundreds of ranges of rows, after each of which it can end."""
    x, packed = floats(39, 20_000, 256), npu.pack(floats(40, 256, 64), "w8a8", device=device)
    on_cpu, expected = packed.on("cpu"), npu.matmul(x[:5], packed)

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for seconds in (0.001, 0.02, 0.15):
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - whichever product it is
                signal.setitimer(signal.ITIMER_REAL, seconds)
                while True:
                    npu.matmul(x, on_cpu)
            assert not device.session.leases._at_work()
            np.testing.assert_array_equal(npu.matmul(x[:5], on_cpu), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_is_refused_as_on_the_npu(device: npu.Device) -> None:
    x, packed = floats(31, 2, 64), npu.pack(floats(32, 64, 64), "w8a8", device=device)
    npu.matmul(x, packed.on("cpu"))
    child = os.fork()
    if child == 0:
        try:
            npu.matmul(x, packed.on("cpu"))
        except ClosedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
