"""Profiles: their figures are those of the device, whoever computes; times add up; nothing is left of them."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import nn, sim
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import ElementType
from npumatmul.host.profiling import EVENT, Span
from npumatmul.llm import Decoder, DecoderConfig
from npumatmul.llm.models import recorded
from npumatmul.running.times import Times, nanoseconds_covered

RNG = np.random.default_rng(18)
X = RNG.standard_normal((150, 96)).astype(np.float32)
W = RNG.standard_normal((96, 320)).astype(np.float32)
COUNTED = {
    "run (simulated by the CPU)": "run_calls",
    "bind A, B, C": "set_io_mem_calls",
}


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


def counted(profile: npu.Profile, before: npu.DeviceStats, after: npu.DeviceStats, others: int = 0) -> None:
    """What a profile counted is what the device did, and its times are those of one whole."""
    calls = {each.name: each.calls for each in profile.steps}
    for name, field in COUNTED.items():
        assert calls.get(name, 0) == getattr(after, field) - getattr(before, field), name
    # contexts that are made have their first shape selected, too
    assert calls.get("select shape", 0) <= after.set_dynamic_shape_calls - before.set_dynamic_shape_calls
    syncs = calls.get("sync A", 0) + calls.get("sync C", 0)
    assert syncs + others == after.mem_sync_calls - before.mem_sync_calls
    assert sum(each.macs for each in profile.steps) == sum(each.macs for each in profile.products)
    on_npu = [each for each in profile.products if not each.on_cpu]
    assert sum(each.macs for each in on_npu) == after.macs - before.macs
    assert sum(each.runs for each in on_npu) == after.run_calls - before.run_calls
    assert sum(each.seconds for each in profile.steps) == pytest.approx(profile.seconds, rel=1e-6)
    assert sum(each.share for each in profile.steps) == pytest.approx(1, rel=1e-6)
    assert sum(each.seconds for each in profile.products) <= profile.seconds
    assert all(each.run_seconds <= each.seconds + 1e-12 for each in profile.products)


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16", "w4a8"])
def test_products_are_counted_as_the_device_counts_them(scheme: str, device: npu.Device) -> None:
    with npu.pack(W, scheme, device=device) as weight:
        npu.matmul(X, weight)
        before = device.stats()
        with npu.profile() as p:
            expected = npu.matmul(X, weight)
            npu.matmul(X[:1], weight)
            npu.matmul(X[:1], weight)
            on_cpu = npu.matmul(X, weight.on("cpu"))
        counted(p, before, device.stats())
        found = {(each.scheme, each.m, each.k, each.n, each.on_cpu): each.calls for each in p.products}
    assert found == {
        (scheme, 150, 96, 320, False): 1,
        (scheme, 1, 96, 320, False): 2,
        (scheme, 150, 96, 320, True): 1,
    }
    assert np.allclose(expected, on_cpu, atol=1e-3)
    assert p.simulated
    assert p.lost == 0


def test_chains_and_results_in_place_are_counted(device: npu.Device) -> None:
    with npu.use_device(device), npu.pack(np.eye(96, dtype=np.float32), "w16a16") as square:
        a = npu.asarray(X.astype(np.float16))
        before = device.stats()
        with npu.profile() as p:
            result = npu.matmul(npu.matmul(a, square), square)
            np.asarray(result)
        counted(p, before, device.stats(), others=1)  # what the CPU wrote to the array is synchronised beforehand
    assert sum(each.calls for each in p.products) == 2


def test_threads_are_measured_together(device: npu.Device) -> None:
    with npu.pack(W, "w8a8", device=device) as weight:
        before = device.stats()
        with npu.profile() as p:
            threads = [threading.Thread(target=npu.matmul, args=(X, weight)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        counted(p, before, device.stats())
    assert [each.calls for each in p.products] == [4]


def test_nothing_is_measured_before_and_after(device: npu.Device) -> None:
    with npu.pack(W, "w8a8", device=device) as weight:
        npu.matmul(X, weight)
        with npu.profile() as p:
            pass
        npu.matmul(X, weight)
    assert p.products == []
    assert [each.name for each in p.steps] == ["executor, threads", "Python and all else"]
    assert not p.simulated
    assert p.steps[-1].share == pytest.approx(1)


def test_profiles_do_not_nest_and_end_with_exceptions(device: npu.Device) -> None:
    with npu.pack(W, "w8a8", device=device) as weight:
        one = npu.profile()

        def fail() -> None:
            with one:
                npu.matmul(X, weight)
                with pytest.raises(ValueError, match="another profile is on"), npu.profile():
                    pass
                with pytest.raises(ValueError, match="has ended"):
                    one.table()
                npu.matmul(X, weight)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert [each.calls for each in one.products] == [2]
        with pytest.raises(ValueError, match="make another one"), one:
            pass
        with npu.profile() as other:
            npu.matmul(X, weight)
        assert [each.calls for each in other.products] == [1]


def test_a_profile_that_is_dropped_is_over() -> None:
    npu.profile().__enter__()
    gc.collect()
    with npu.profile() as p:
        pass
    assert p.steps


def test_what_is_not_kept_is_counted(device: npu.Device) -> None:
    with pytest.raises(ValueError, match="most is 0"):
        npu.profile(most=0)
    with pytest.raises(TypeError, match=r"most is 1\.5"):
        npu.profile(most=1.5)  # type: ignore[arg-type]
    with npu.pack(W, "w8a8", device=device) as weight:
        npu.matmul(X, weight)
        with npu.profile() as whole:
            npu.matmul(X, weight)
        with npu.profile(most=3) as p:
            npu.matmul(X, weight)
    events = (
        sum(each.calls for each in whole.steps if each.name not in ("executor, threads", "Python and all else")) + 1
    )
    assert p.lost == events - 3
    assert "are missing here" in p.table()


def test_products_whose_weight_is_gone_keep_their_names(device: npu.Device) -> None:
    with npu.profile() as p:
        for _ in range(3):
            with npu.pack(W, "w8a8", device=device) as weight:
                npu.matmul(X, weight)
                del weight
    assert [(each.scheme, each.calls) for each in p.products] == [("w8a8", 3)]


def test_tables_json_and_traces(device: npu.Device, tmp_path: Path) -> None:
    with npu.pack(W, "w8a8", device=device) as weight, npu.profile() as p:
        npu.matmul(X, weight)
    table = p.table()
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "150x96x320 w8a8" in table
    assert "the NPU is simulated, so its runs take the CPU's time" in table
    figures = json.loads(p.to_json())
    assert figures["simulated"] is True
    assert figures["lost"] == 0
    assert [(each["m"], each["calls"]) for each in figures["products"]] == [(150, 1)]
    p.save_trace(tmp_path / "trace.json")
    events = [each for each in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if each["ph"] == "X"]
    (call,) = (each for each in events if each["name"] == "w8a8 150x96x320")
    assert len(events) > 5
    assert call["args"]["macs"] == 150 * 96 * 320
    for each in events:
        assert each["ts"] >= 0
        assert each["ts"] + each["dur"] <= p.seconds * 1e6 + 1
        assert call["ts"] <= each["ts"]
        assert each["ts"] + each["dur"] <= call["ts"] + call["dur"]


@contextmanager
def by_python() -> Iterator[None]:
    """No program is used."""
    before = recorded.RecordedBlocks.run
    recorded.RecordedBlocks.run = lambda self, *given: recorded._Work(*given).by_python()  # type: ignore[method-assign]
    try:
        yield
    finally:
        recorded.RecordedBlocks.run = before  # type: ignore[method-assign]


def profiled(model: Decoder, device: npu.Device) -> npu.Profile:
    before, cache = device.stats(), model.new_cache()
    with npu.profile() as p:
        for token in range(4):
            model.forward([token], cache)
    counted(p, before, device.stats())
    return p


def test_programs_and_python_name_the_same_products_and_layers(device: npu.Device) -> None:
    model = Decoder(DecoderConfig(2, 64, 4, 2, 16, 96, vocab_size=64, context_length=64), scheme="w8a8", device=device)
    shapes = model.parameter_shapes()
    model.load_state_dict({name: RNG.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()})
    profiled(model, device)  # what is recorded now is used from then on
    program = profiled(model, device)
    with by_python():
        python = profiled(model, device)

    def products(p: npu.Profile) -> set[tuple[Any, ...]]:
        return {(each.layer, each.scheme, each.m, each.k, each.n, each.calls) for each in p.products}

    assert products(program) == products(python)
    assert {each.layer for each in program.products} >= {
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
    }
    assert "mlp.down_proj 1x96x64 w8a8" in program.table()
    layers = [
        {
            each.name: each.calls
            for each in p.steps
            if each.name in ("attention", "append to caches", "gate", "RMS norm")
        }
        for p in (program, python)
    ]
    assert layers[0] == layers[1]
    assert layers[0]["attention"] == 2 * 4


def test_layers_alone_are_measured() -> None:
    norm = nn.RMSNorm(64)
    with npu.profile() as p:
        norm(X[:, :64])
    assert {each.name: each.calls for each in p.steps}["RMS norm"] == 1


def events(*rows: tuple[Span, int, int]) -> np.ndarray:
    """Events of a kind between two times."""
    found = np.zeros(len(rows), EVENT)
    for event, (kind, start, stop) in zip(found, rows, strict=True):
        event["kind"], event["start"], event["nanoseconds"] = kind, start, stop - start
    return found


def test_threads_at_once_share_what_goes_by() -> None:
    # two calls of two threads; what they do at once counts half for each, and a call of Python within is Python's
    given = events(
        (Span.CALL, 10, 60), (Span.RUN, 20, 50), (Span.PROGRAM, 30, 90), (Span.PACK_A, 40, 70), (Span.PYTHON, 75, 85)
    )
    times = Times.of(given, 0, 100)
    assert times.each.tolist() == [0, 25, 0, 25, 0]
    assert (times.executor, times.outside) == (10 + 5 + 5, 10 + 10 + 10)


def test_rates_are_over_the_time_in_which_a_thread_was_at_it() -> None:
    # the run of 30 ns gets half of the 10 ns in which rows are packed, and multiplied all the same for 30
    given = events(
        (Span.RUN, 40, 50), (Span.RUN, 10, 40), (Span.PACK_A, 30, 45), (Span.RUN, 45, 60), (Span.RUN, 80, 90)
    )
    assert nanoseconds_covered(given[given["kind"] == Span.RUN]) == 50 + 10
    assert nanoseconds_covered(given) == 50 + 10
    assert nanoseconds_covered(given[:0]) == 0
    within = events((Span.RUN, 0, 100), (Span.RUN, 10, 20), (Span.RUN, 90, 95))
    assert nanoseconds_covered(within) == 100


def test_an_npu_is_never_said_to_be_faster_than_it_is(tmp_path: Path) -> None:
    """Runs that last as long as modelled, beside another thread's packing: no rate is above the modelled one."""
    x, w = RNG.standard_normal((1024, 512)).astype(np.float32), RNG.standard_normal((512, 512)).astype(np.float32)
    with (
        npu.Device("sim:rk3566") as device,
        npu.pack(w, "w8a8", device=device) as weight,
        npu.Matmul(x, weight) as product,
        sim.configured(device, timing="realtime", compute="off"),
    ):
        assert "by 2 threads in turns" in str(product.plan())
        product.execute()
        with npu.profile() as p:
            product.execute()
    (run,) = (each for each in p.steps if each.macs)
    assert run.name == "run (modelled time)"
    assert run.seconds <= run.busy_seconds <= p.seconds
    assert run.gops == pytest.approx(p.products[0].gops)
    assert run.gops <= 2e-9 * TIMINGS["rk3566"].peak[ElementType.INT8]  # since no run is shorter
    p.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {each["tid"]: each["args"]["name"] for each in events if each["name"] == "thread_name"}
    assert sorted(names.values()) == ["calls", "core 0", "core 0"]
    assert {each["tid"] for each in events if each["name"] == "run (modelled time)"} == {
        tid for tid, name in names.items() if name == "core 0"
    }
    assert "its runs take as long as modelled and compute nothing" in p.table()
    assert json.loads(p.to_json())["simulated_runs"] == "runs take as long as modelled and compute nothing"


def test_what_settings_make_of_runs_is_said_of_them_alone(device: npu.Device) -> None:
    assert device.simulated_runs == ""
    with npu.pack(W, "w8a8", device=device) as weight, sim.configured(device, timing="model", compute="off"):
        assert device.simulated_runs == "runs compute nothing"
        with npu.profile() as p:
            npu.matmul(X, weight)
        with sim.configured(device, compute="on"), npu.profile() as computed:
            npu.matmul(X, weight)
        with npu.profile() as on_cpu:
            npu.matmul(X, weight.on("cpu"))
    assert "run (nothing computed)" in p.table()
    assert "compute" not in on_cpu.table()
    assert "run (simulated by the CPU)" in computed.table()
    assert json.loads(on_cpu.to_json())["simulated_runs"] == ""


def test_no_events_are_all_outside() -> None:
    times = Times.of(events(), 0, 100)
    assert times.each.size == 0
    assert (times.executor, times.outside) == (0, 100)
