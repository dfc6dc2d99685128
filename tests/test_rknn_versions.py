"""Every runtime version that is simulated: products against numpy, and what an older one cannot do."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import MatmulLayout, MatmulType, QuantType
from npumatmul.errors import DeviceError, RknnError, UnsupportedByRuntime
from npumatmul.rknn import MatmulInfo, MemAllocFlags, MemSyncMode, QuantParams, Runtime, RuntimeVersion, differences
from npumatmul.rknn.constants import MEM_FLAG_ALLOC_NO_CONTEXT, MatmulTypeCode
from npumatmul.rknn.discovery import simulator_path

VERSIONS = ("1.5.2", "1.6.0", "2.0.0b0", "2.1.0", "2.3.0", "2.3.2")
CHIPS = ("rk3562", "rk3566", "rk3568", "rk3576", "rk3588")
WITH_INT4 = VERSIONS[1:]
WITH_QUANT = VERSIONS[2:]
LAYOUTS = (MatmulLayout.NORM, MatmulLayout.NATIVE)
I4, I8, F16 = MatmulType.INT4_INT4_INT16, MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32


def opened(monkeypatch: pytest.MonkeyPatch, version: str, soc: str = "rk3588") -> npu.Device:
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", version)
    return npu.Device(f"sim:{soc}")


@pytest.fixture(params=VERSIONS)
def any_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[npu.Device]:
    with opened(monkeypatch, request.param) as device:
        yield device


def product(context: npu.MatmulContext | npu.DynamicMatmulContext, device: npu.Device, a, b) -> NDArray:  # type: ignore[no-untyped-def,type-arg]
    buffers = [device.buffer(attr.size) for attr in (context.a, context.b, context.c)]
    buffers[0].put(context.a, a)
    buffers[1].put(context.b, b)
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    context.run()
    return buffers[2].get(context.c)


def operands(mm_type: MatmulType, m: int, k: int, n: int) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
    """Small whole numbers, so that float16 products and their sums are exact too."""
    rng = np.random.default_rng(m * k + n)
    return tuple(rng.integers(-7, 8, shape).astype(t.dtype) for shape, t in (((m, k), mm_type.a), ((k, n), mm_type.b)))


def expected(a: NDArray, b: NDArray) -> NDArray:  # type: ignore[type-arg]
    return a.astype(np.int64) @ b.astype(np.int64)


# ---- identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_is_told_and_agrees_with_the_exports(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = RuntimeVersion.parse(version)
    with opened(monkeypatch, version) as device:
        assert device.runtime_version == device.runtime.version == wanted
        assert device.api_version.startswith(version)
        assert device.runtime.path.name == f"libnpumm_sim_{version}.so"
        low = device.runtime.version_from_symbols()
    families = {"1.5.2": "1.5.2", "1.6.0": "1.6.0", "2.0.0b0": "2.0.0"}
    assert str(low) == families.get(version, "2.1.0")


@pytest.mark.parametrize(
    ("told", "window", "judged"),
    [
        ("2.3.2", "2.1.0", "2.3.2"),
        ("2.2.0 (c195366594@2024-09-14T12:18:56)", "2.1.0", "2.2.0"),
        ("3.1.4", "2.1.0", "3.1.4"),
        ("1.6.0", "2.1.0", "2.1.0"),  # it exports what 1.6.0 never had
        ("2.3.2", "1.6.0", "1.6.0"),  # it lacks what 2.3.2 has
        ("1.6.1b3", "1.6.0", "1.6.1"),
        ("1.5.0", "1.5.2", "1.5.0"),
        ("no version", "2.0.0", "2.0.0"),
        ("0.9.8", "1.5.2", "1.5.2"),
    ],
)
def test_a_version_that_the_exports_contradict_is_not_believed(told: str, window: str, judged: str) -> None:
    symbols = {
        "2.1.0": {"rknn_matmul_create_dynamic_shape", "rknn_matmul_set_quant_params", "rknn_mem_sync"},
        "2.0.0": {"rknn_matmul_set_quant_params", "rknn_mem_sync"},
        "1.6.0": {"rknn_mem_sync"},
        "1.5.2": set(),
    }[window]
    low, high = differences.version_window(symbols.__contains__)
    assert str(low) == window
    assert str(differences.judge_version(RuntimeVersion.parse(told), low, high)) == judged


def test_the_general_simulator_is_the_version_that_it_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exports all functions, so that only its word tells them apart; in a process of its own, as it reads once."""
    import subprocess
    import sys

    code = (
        "import npumatmul as npu\n"
        "device = npu.Device()\n"
        "print(device.runtime.path.name, device.runtime_version, device.runtime.has('rknn_mem_sync'))\n"
    )
    environment = {**os.environ, "NPUMATMUL_SIM_RUNTIME": "1.5.2", "NPUMATMUL_LIBRARY": str(simulator_path())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["libnpumm_sim.so", "1.5.2", "False"]


def test_an_unknown_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"'9\.9\.9'.* is not simulated; these are: 1\.5\.2, 1\.6\.0"):
        opened(monkeypatch, "9.9.9")


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soc", CHIPS)
@pytest.mark.parametrize("version", VERSIONS)
def test_products_of_every_chip_are_numpys(version: str, soc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if soc == "rk3576" and version.startswith("1."):
        with pytest.raises(RknnError):  # the chip came with 2.0.0b0 (facts 0)
            opened(monkeypatch, version, soc)
        return
    with opened(monkeypatch, version, soc) as device:
        for mm_type in (I8, F16):
            for b_layout in LAYOUTS:
                for ac_layout in LAYOUTS:
                    a, b = operands(mm_type, 4, 96, 64)
                    with device.context(mm_type, 4, 96, 64, b_layout=b_layout, ac_layout=ac_layout) as context:
                        np.testing.assert_array_equal(product(context, device, a, b), expected(a, b))


def test_matmul_and_packed_weights_work_on_every_version(any_version: npu.Device) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(-99, 99, (7, 5000), dtype=np.int8), rng.integers(-99, 99, (5000, 70), dtype=np.int8)
    np.testing.assert_array_equal(npu.matmul(a, b, device=any_version), a.astype(np.int32) @ b.astype(np.int32))
    x = rng.standard_normal((3, 3000)).astype(np.float16)
    w = rng.standard_normal((3000, 40)).astype(np.float16)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    bound = 3001 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64))  # sums in float32
    assert (np.abs(npu.matmul(x, w, device=any_version) - exact) <= bound).all()


@pytest.mark.parametrize("version", WITH_INT4)
def test_int4_users_see_values_and_not_nibbles(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch, version) as device:
        low_first = not version.startswith("1.")
        assert device.runtime.int4_low_nibble_first is low_first
        for b_layout in LAYOUTS:
            for ac_layout in LAYOUTS:
                a, b = operands(I4, 4, 64, 128)
                with device.context(I4, 4, 64, 128, b_layout=b_layout, ac_layout=ac_layout) as context:
                    np.testing.assert_array_equal(product(context, device, a, b), expected(a, b))
        with device.context(I4, 1, 32, 64) as context, device.buffer(context.a.size) as buffer:
            values = np.zeros((1, 32), ml_dtypes.int4)
            values[0, :3] = 1, -2, 3
            buffer.put(context.a, values)
            # two's complement halves by hand: 1 and 14 share a byte, 3 and 0 the next (facts 4.6)
            assert buffer.array[:2].tolist() == ([0xE1, 0x03] if low_first else [0x1E, 0x30])
            np.testing.assert_array_equal(buffer.get(context.a), values)


@pytest.mark.parametrize("version", WITH_INT4)
def test_int4_matmul_is_numpys(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(-8, 8, (5, 200)).astype(ml_dtypes.int4), rng.integers(-8, 8, (200, 70)).astype(ml_dtypes.int4)
    with opened(monkeypatch, version) as device:
        np.testing.assert_array_equal(npu.matmul(a, b, device=device), expected(a, b))
        assert device.stats().run_calls > 0


def test_there_is_no_int4_before_1_6_0(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        opened(monkeypatch, "1.5.2") as device,
        pytest.raises(UnsupportedByRuntime, match=r"INT4_MM_INT4_TO_INT16 \(10\) needs runtime 1\.6\.0"),
    ):
        device.context(I4, 4, 64, 128)


@pytest.mark.parametrize("version", WITH_QUANT)
def test_dynamic_shapes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(1, 64, 32), (8, 64, 32), (4, 64, 32)]
    with opened(monkeypatch, version) as device:
        for layout in LAYOUTS:
            with device.dynamic_context(I8, shapes, b_layout=layout, ac_layout=layout) as context:
                a_buffer, b_buffer, c_buffer = (device.buffer(size) for size in context.largest)
                _, b = operands(I8, 1, 64, 32)
                b_buffer.put(context.b, b)
                for m, k, n in (*shapes, *reversed(shapes)):
                    context.select(m, k, n)
                    a, _ = operands(I8, m, k, n)
                    a_buffer.put(context.a, a)
                    context.bind(a=a_buffer, b=b_buffer, c=c_buffer)
                    context.run()
                    np.testing.assert_array_equal(c_buffer.get(context.c), expected(a, b))


@pytest.mark.parametrize("version", ["2.1.0", "2.3.2"])
def test_transposed_b_with_k_and_n_of_its_own(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(2, 64, 32), (2, 96, 64)]
    with (
        opened(monkeypatch, version) as device,
        device.dynamic_context(I8, shapes, b_layout=MatmulLayout.TP_NORM) as context,
    ):
        for shape in (*shapes, *shapes):
            context.select(*shape)
            a, b = operands(I8, *shape)
            np.testing.assert_array_equal(product(context, device, a, b), expected(a, b))


# ---- quantization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", WITH_QUANT)
def test_scales_per_layer(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type 3: C = (sum of products) sA sB / sC, towards zero (facts 5.5)."""
    a, b = operands(MatmulType.INT8_INT8_INT8, 2, 64, 32)
    with opened(monkeypatch, version) as device, device.context(MatmulType.INT8_INT8_INT8, 2, 64, 32) as context:
        for tensor, scale in (("A", 0.5), ("B", 0.25), ("C", 2.0)):
            context.set_quant_params(tensor, scale)
        np.testing.assert_array_equal(product(context, device, a, b), np.trunc(expected(a, b) / 16).clip(-128, 127))


@pytest.mark.parametrize("version", WITH_QUANT)
def test_scales_per_channel_in_the_numbering_of_the_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.0.0b0 has 1 for it, which means something else from 2.1.0 on, where it is 2 (D1)."""
    a, b = operands(I8, 2, 64, 32)
    scales = np.where(np.arange(32) % 2, 0.5, 0.25)
    quant = QuantType.PER_CHANNEL_SYM
    with opened(monkeypatch, version) as device, device.context(I8, 2, 64, 32, b_quant=quant) as context:
        context.set_quant_params("B", scales)
        common = context.get_quant_params()
        result = product(context, device, a, b) * common
        assert (np.abs(result - expected(a, b) * scales) <= common / 2).all()  # one rounding to an integer
        assert common in (0.25, 0.5)


@pytest.mark.parametrize("version", ["2.1.0", "2.3.0", "2.3.2"])
def test_zero_points_and_groups(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch, version, "rk3576") as device:
        mm_type = MatmulType.FLOAT16_INT4_FLOAT32
        a, b = operands(mm_type, 2, 64, 64)
        quant = QuantType.PER_GROUP_SYM
        with device.context(mm_type, 2, 64, 64, b_quant=quant, group_size=32) as context:
            context.set_quant_params("B", np.full((2, 64), 0.25))
            np.testing.assert_array_equal(product(context, device, a, b), expected(a, b) * 0.25)
        mm_type = MatmulType.FLOAT16_INT8_FLOAT32
        a, b = operands(mm_type, 2, 64, 64)
        with device.context(mm_type, 2, 64, 64, b_quant=QuantType.PER_LAYER_ASYM) as context:
            context.set_quant_params("B", 0.5, -3)
            shifted = a.astype(np.int64) @ (b.astype(np.int64) + 3)
            np.testing.assert_array_equal(product(context, device, a, b), shifted * 0.5)


# ---- what a version cannot do --------------------------------------------------------------------------------------


REFUSED = [
    ("1.5.2", {"type": 3}, r"2\.0\.0b0"),
    ("1.6.0", {"type": 4}, r"2\.0\.0b0"),
    ("1.6.0", {"B_layout": 2}, r"2\.1\.0"),
    ("1.5.2", {"AC_layout": 2}, r"2\.1\.0"),
    ("1.6.0", {"B_quant_type": 1}, r"2\.0\.0b0"),
    ("1.5.2", {"AC_quant_type": 1}, r"2\.0\.0b0"),
    ("1.6.0", {"iommu_domain_id": 1}, r"2\.0\.0b0"),
    ("1.6.0", {"group_size": 32}, r"2\.1\.0"),
    ("2.0.0b0", {"type": 9}, r"2\.1\.0"),
    ("2.0.0b0", {"B_layout": 2}, r"2\.1\.0"),
    ("2.0.0b0", {"B_quant_type": 1}, r"2\.1\.0"),
    ("2.0.0b0", {"B_quant_type": 3}, r"2\.1\.0"),
    ("2.0.0b0", {"B_quant_type": 4}, r"2\.1\.0"),
    ("2.0.0b0", {"group_size": 32}, r"2\.1\.0"),
    ("2.1.0", {"type": 12}, r"2\.3\.0"),
    ("2.3.0", {"type": 15}, r"2\.3\.2"),
]


@pytest.mark.parametrize(("version", "fields", "needed"), REFUSED)
def test_what_a_version_cannot_be_told_is_refused_before_the_call(
    version: str, fields: dict[str, int], needed: str
) -> None:
    for identified in (True, False):
        runtime = Runtime(simulator_path(version), "rk3588")
        ctx = None
        if identified:
            ctx, _ = runtime.matmul_create(MatmulInfo(M=1, K=64, N=64, type=2))
        elif version in ("2.1.0", "2.3.0"):
            continue  # these export what 2.3.2 does: before they told their version, they refuse it themselves
        create = runtime._functions["rknn_matmul_create"]
        runtime._functions["rknn_matmul_create"] = lambda *_: pytest.fail("the runtime was called")
        with pytest.raises(UnsupportedByRuntime, match=f"needs runtime {needed} or later"):
            runtime.matmul_create(MatmulInfo(**{"M": 1, "K": 64, "N": 64, "type": 2, **fields}))
        runtime._functions["rknn_matmul_create"] = create
        if ctx is not None:
            runtime.matmul_destroy(ctx)


CALLS = {
    "rknn_mem_sync": ("1.6.0", lambda r, ctx, mem: r.mem_sync(ctx, mem, MemSyncMode.TO_DEVICE)),
    "rknn_create_mem2": ("2.0.0b0", lambda r, ctx, mem: r.create_mem2(ctx, 64, MemAllocFlags.NON_CACHEABLE)),
    "rknn_matmul_create_dyn_shape": (
        "2.0.0b0",
        lambda r, ctx, mem: r.matmul_create_dynamic_shape(MatmulInfo(type=2), [(1, 64, 64)]),
    ),
    "rknn_matmul_set_dynamic_shape": ("2.0.0b0", lambda r, ctx, mem: r.matmul_set_dynamic_shape(ctx, (1, 64, 64))),
    "rknn_matmul_set_quant_params": ("2.0.0b0", lambda r, ctx, mem: r.matmul_set_quant_params(ctx, QuantParams())),
    "rknn_matmul_get_quant_params": ("2.0.0b0", lambda r, ctx, mem: r.matmul_get_quant_params(ctx, QuantParams())),
    "rknn_B_normal_layout_to_native_layout": (
        "2.0.0b0",
        lambda r, ctx, mem: r.b_normal_layout_to_native_layout(0, 0, 64, 64, MatmulInfo(type=2), (32, 32)),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_functions_that_a_version_lacks_name_the_one_that_has_them(version: str, name: str) -> None:
    since, call = CALLS[name]
    if RuntimeVersion.parse(version) >= RuntimeVersion.parse(since):  # type: ignore[operator]
        assert Runtime(simulator_path(version)).has(name) or name == "rknn_matmul_create_dyn_shape"
        return
    runtime = Runtime(simulator_path(version), "rk3588")
    ctx, _ = runtime.matmul_create(MatmulInfo(M=1, K=64, N=64, type=2))
    memory = runtime.create_mem(ctx, 64)
    with pytest.raises(UnsupportedByRuntime, match=rf"{name} .*{since.replace('.', r'[.]')}"):
        call(runtime, ctx, memory)
    runtime.destroy_mem(ctx, memory)
    runtime.matmul_destroy(ctx)


@pytest.mark.parametrize(
    ("version", "flags", "needed"),
    [
        ("2.0.0b0", MEM_FLAG_ALLOC_NO_CONTEXT, r"2\.1\.0"),
        ("2.3.0", MemAllocFlags.TRY_ALLOC_SRAM, r"2\.3\.2"),
        ("2.3.2", MemAllocFlags.TRY_ALLOC_SRAM, None),
        ("2.1.0", MEM_FLAG_ALLOC_NO_CONTEXT | MemAllocFlags.CACHEABLE, None),
    ],
)
def test_allocation_flags_by_version(version: str, flags: int, needed: str | None) -> None:
    runtime = Runtime(simulator_path(version), "rk3588")
    ctx, _ = runtime.matmul_create(MatmulInfo(M=1, K=64, N=64, type=2))
    if needed is None:
        runtime.destroy_mem(ctx, runtime.create_mem2(ctx, 64, flags))
    else:
        with pytest.raises(UnsupportedByRuntime, match=needed):
            runtime.create_mem2(ctx, 64, flags)
    runtime.matmul_destroy(ctx)


@pytest.mark.parametrize("version", WITH_QUANT)
@pytest.mark.parametrize("mm_type", [I8, F16])
def test_the_helper_that_packs_b_takes_the_arguments_of_its_version(version: str, mm_type: MatmulType) -> None:
    runtime = Runtime(simulator_path(version), "rk3588")
    info = MatmulInfo(M=1, K=96, N=64, type=mm_type.code, B_layout=1)
    ctx, io_attr = runtime.matmul_create(info)
    tile_n, tile_k = io_attr.B.shape[2:]
    _, b = operands(mm_type, 1, 96, 64)
    packed = np.empty(io_attr.B.size, np.uint8)
    runtime.b_normal_layout_to_native_layout(b.ctypes.data, packed.ctypes.data, 96, 64, info, (tile_n, tile_k))
    tiles = b.reshape(96 // tile_k, tile_k, 64 // tile_n, tile_n).transpose(2, 0, 3, 1)  # (facts 4.2)
    np.testing.assert_array_equal(packed.view(b.dtype), tiles.ravel())
    runtime.matmul_destroy(ctx)


def test_queries_are_typed(any_version: npu.Device) -> None:
    runtime = any_version.runtime
    with any_version.context(I8, 4, 64, 32) as context:
        a, b = operands(I8, 4, 64, 32)
        product(context, any_version, a, b)
        ctx = context._handle.value
        assert runtime.sdk_version(ctx)[0] == any_version.api_version
        assert runtime.mem_size(ctx).total_weight_size == 64 * 32
        assert runtime.perf_run(ctx) >= 0


# ---- what old runtimes read ----------------------------------------------------------------------------------------

FIELDS = {
    "M": st.integers(1, 2**31 - 1),
    "K": st.integers(1, 2**31 - 1),
    "N": st.integers(1, 2**31 - 1),
    "type": st.sampled_from([int(code) for code in MatmulTypeCode]),
    "B_layout": st.integers(0, 2),
    "B_quant_type": st.integers(0, 5),
    "AC_layout": st.integers(0, 1),
    "AC_quant_type": st.integers(0, 5),
    "iommu_domain_id": st.integers(0, 15),
    "group_size": st.sampled_from([0, 32]),
}


@given(st.fixed_dictionaries(FIELDS), st.sampled_from(VERSIONS))
def test_what_passes_is_what_the_version_would_have_been_told_in_its_own_header(
    fields: dict[str, int], version: str
) -> None:
    parsed = RuntimeVersion.parse(version)
    assert parsed is not None
    info = MatmulInfo(**fields)
    try:
        told = differences.translated_info(info, parsed, parsed, "library")
    except UnsupportedByRuntime:
        return
    raw = bytes(told)
    assert len(raw) == 64  # a struct of 24 bytes would be read beyond its end (facts 1.7)
    assert raw[30:] == bytes(34)
    words = np.frombuffer(raw[:24], np.int32)
    assert words[:4].tolist() == [fields["M"], fields["K"], fields["N"], fields["type"]]
    if version.startswith("1."):
        assert words[4:6].tolist() == [fields["B_layout"], fields["AC_layout"]]  # int32 in that header
        assert raw[24:] == bytes(40)
        assert fields["type"] in (1, 2) or (version, fields["type"]) == ("1.6.0", 10)
    halves = np.frombuffer(raw[16:24], np.int16).tolist()
    if version == "2.0.0b0":
        numbers = {0: 0, 2: 1}
        assert halves[1::2] == [numbers[fields["B_quant_type"]], numbers[fields["AC_quant_type"]]]
        assert raw[28:30] == bytes(2)  # reserved there
    elif not version.startswith("1."):
        assert halves[1::2] == [fields["B_quant_type"], fields["AC_quant_type"]]
    assert bytes(info) == bytes(MatmulInfo(**fields)), "the caller's struct stays as it is"


@pytest.mark.parametrize("fields", [{"type": 13}, {"type": 0}, {"B_layout": 3}, {"AC_quant_type": 6}])
def test_values_that_no_runtime_knows(fields: dict[str, int]) -> None:
    info = MatmulInfo(**{"M": 1, "K": 64, "N": 64, "type": 2, **fields})
    newest = RuntimeVersion(2, 3, 2)
    with pytest.raises(ValueError, match="rknn_matmul_info: "):
        differences.translated_info(info, newest, newest, "library")


def test_two_chips_and_two_versions_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(monkeypatch, "1.6.0", "rk3566") as old, opened(monkeypatch, "2.3.2", "rk3588") as new:
        monkeypatch.delenv("NPUMATMUL_SIM_RUNTIME")
        with npu.Device("sim:rk3576") as third, npu.Device("sim:rk3562") as fourth:
            for _ in range(2):
                groups = []
                for device in (old, new, third, fourth):
                    context = device.context(I8, 4, 64, 64, ac_layout=MatmulLayout.NATIVE)
                    groups.append((device.chip.soc, context.a.dims[2]))
                    a, b = operands(I8, 4, 64, 64)
                    np.testing.assert_array_equal(product(context, device, a, b), expected(a, b))
                # facts 4.2
                assert groups == [("rk3566", 8), ("rk3588", 16), ("rk3576", 16), ("rk3562", 16)]


def test_the_environment_names_the_chip_of_a_simulator_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_SOC", "rk3568")
    with npu.Device("sim") as device, npu.Device("sim:rk3562") as named:
        assert (device.name, named.name) == ("sim:rk3568", "sim:rk3562")


def test_int4_order_in_memory_is_right_in_the_fast_path_too() -> None:
    """Both orders through the one place that knows them."""
    from npumatmul.chips import layout
    from npumatmul.chips.types import ElementType
    from npumatmul.host.kernels import Conversion

    to_int4 = {c for c in Conversion if "I4" in c.name or "INT4" in c.name if "HIGH_FIRST" not in c.name}
    assert len(to_int4) == 3
    for conversion in Conversion:
        assert layout.in_nibble_order(conversion, True) is conversion
        swapped = Conversion[f"{conversion.name}_HIGH_FIRST"] if conversion in to_int4 else conversion
        assert layout.in_nibble_order(conversion, False) is swapped
    values = np.arange(-8, 8).astype(ml_dtypes.int4).reshape(1, 16)
    low = layout.pack(values, layout.normal(1, 16, ElementType.INT4))
    high = layout.pack(values, layout.normal(1, 16, ElementType.INT4).in_nibble_order(False))
    np.testing.assert_array_equal(low >> 4 | (low & 15) << 4, high)
    assert ctypes.sizeof(MatmulInfo) == 64
