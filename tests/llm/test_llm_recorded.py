"""Blocks as recorded programs: the bits that Python computes, for every architecture, cache, fault and change."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import VARIANTS, VOCAB, torch_model, write_folder
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import nn, sim
from npumatmul.errors import ClosedError, RknnError
from npumatmul.llm import Decoder, DecoderConfig, npu_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models import recorded
from npumatmul.llm.models.weights import load_decoder
from npumatmul.nn.prefill import NpuProducts

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 60, 40)]
Float32 = NDArray[np.float32]

FIRST = {each.model_type: each for each in reversed(VARIANTS)}


def decoder(layers: int = 3, device: Any = None, scheme: str = "w8a8", **more: Any) -> Decoder:
    """A small random model."""
    sizes = DecoderConfig(layers, 64, 4, 2, 16, 96, vocab_size=64, context_length=1024, **more)
    model = Decoder(sizes, scheme=scheme, device=device)
    rng = np.random.default_rng(3)
    shapes = model.parameter_shapes()
    model.load_state_dict({name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()})
    return model


@contextmanager
def by_python() -> Iterator[None]:
    """No program is used."""
    before = recorded.RecordedBlocks.run
    recorded.RecordedBlocks.run = lambda self, *given: recorded._Work(*given).by_python()  # type: ignore[method-assign]
    try:
        yield
    finally:
        recorded.RecordedBlocks.run = before  # type: ignore[method-assign]


def steps(model: Decoder, cache: nn.KVCache, counts: list[int]) -> list[Float32]:
    """What leaves the last block for so many tokens after one another."""
    found, start = [], 0
    for count in counts:
        x = model.embed(IDS[start : start + count])
        found.append(model.run_blocks(x, cache, cache.offset + count))
        start += count
    return found


def trusted(model: Decoder) -> set[int]:
    """Numbers of rows that programs compute."""
    return {key[0][0] for key, each in model._recorded._programs.items() if each.trusted}  # type: ignore[index]


def same(one: list[Float32], other: list[Float32]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model_type", sorted(FIRST))
def test_every_architecture_gives_the_same_bits(tmp_path: Path, model_type: str) -> None:
    variant = FIRST[model_type]
    path = write_folder(tmp_path, variant, torch_model(variant))
    pack = npu_pack("w8a8", "sim:rk3588")
    with open_source(path) as source:
        model = load_decoder(source, lambda layer: pack(layer.weight(source), layer.name))
    tokens = [each % VOCAB for each in IDS]
    found = []
    for guard in (by_python, None):
        cache = model.new_cache()
        with guard() if guard else npu.config():
            found.append([model.forward([token], cache) for token in tokens[:24]])
    assert same(*found)
    assert trusted(model) == {1}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "more",
    [{}, {"qk_norm": "head", "norm_places": "around", "norm_offset": 1.0}, {"attention_softcap": 5.0, "sinks": True},
     {"norm": "layer", "gated": False, "activation": "gelu_tanh", "qkv_bias": True, "mlp_bias": True},
     {"residual_scale": 0.22, "query_scale": 0.1, "fused": True}],
    ids=["plain", "gemma", "sinks", "layer-norm", "granite"],
)  # fmt: skip
def test_growing_caches_and_several_rows(more: dict[str, Any], dtype: str) -> None:
    """Memory of the cache grows, and is shared with a fork and cut, between runs of the same programs."""
    model = decoder(**more)
    counts = [5, 1, 1, 1, 3, 1, 3, 1, 3, 1, 5, 1, 1, 5, 1]
    found = []
    for guard in (by_python, None):
        caches = [nn.KVCache(3, 2, 16, dtype=dtype, chunk=4)]
        with guard() if guard else npu.config():
            rows = steps(model, caches[0], counts)
            caches.append(caches[0].fork())
            caches[0].trim(3)
            rows += steps(model, caches[0], [1, 3, 1]) + steps(model, caches[1], [3, 1, 1])
        found.append(rows)
    assert same(*found)
    assert trusted(model) == {1, 3, 5}


@pytest.mark.parametrize("window", [3, 8])
def test_windows_that_slide(window: int) -> None:
    model = decoder()
    for block in model.model.layers[::2]:
        assert block.self_attn is not None
        block.self_attn._window = window
    found = []
    for guard in (by_python, None):
        cache = nn.KVCache(3, 2, 16, window=[window, None, window], chunk=2)
        with guard() if guard else npu.config():
            found.append(steps(model, cache, [4, *[1] * 20, 4, 1, 1]))
    assert same(*found)
    assert 1 in trusted(model)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3)])
def test_several_sequences_of_their_own_lengths(counts: tuple[int, ...]) -> None:
    model = decoder(qk_norm="head")
    found = []
    for guard in (by_python, None):
        caches = [nn.KVCache(3, 2, 16, chunk=4) for _ in counts]
        with guard() if guard else npu.config():
            for length, cache in zip((1, 5, 9), caches, strict=True):
                steps(model, cache, [length])
            rows = []
            for i in range(9):
                batch = nn.CacheBatch(caches, counts)
                x = model.embed(IDS[i : i + sum(counts)])
                rows.append(model.run_blocks(x, batch, 60))
            found.append(rows)
        assert [each.offset for each in caches] == [n + 9 * c for n, c in zip((1, 5, 9), counts, strict=True)]
    assert same(*found)
    assert sum(counts) in trusted(model)


def test_many_rows_are_recorded_when_they_come_twice() -> None:
    model = decoder()
    told: list[int] = []
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            rows = []
            for _ in range(4):
                x = model.embed([each % 64 for each in IDS * 8])
                told.clear()
                rows.append(model.run_blocks(x, nn.KVCache(3, 2, 16), len(x), told.append))
                assert told == [1, 2, 3], "progress is told after each block"
            found.append(rows)
    assert same(*found)
    assert trusted(model) == {320}


def test_attention_moves_to_an_npu_when_a_cache_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was recorded while the CPU attended holds while it does."""
    device = npu.Device("sim:rk3588")
    model = decoder(device=device)
    monkeypatch.setattr(device, "simulated", False)
    made = NpuProducts.of

    def of(device: npu.Device, q: tuple[int, ...], k: tuple[int, ...], always: bool = True) -> NpuProducts | None:
        return made(device, q, k) if always or k[-2] > 200 else None

    monkeypatch.setattr(NpuProducts, "of", of)
    x = model.embed(IDS[:32])

    def grown() -> tuple[list[Float32], list[int]]:
        cache, found, runs = nn.KVCache(3, 2, 16), [], []
        for i in range(10):
            before = device.stats().run_calls
            found.append(model.run_blocks(x, cache, 32 * (i + 1)))
            runs.append(device.stats().run_calls - before)
        return found, runs

    with by_python():
        wanted, runs = grown()
    # runs[6] holds some more: what the host takes to pack is measured once for a device
    assert runs[5] < runs[7] == runs[9], "from 224 keys on the NPU attends"
    assert same(grown()[0], wanted)
    assert trusted(model) == {32}
    assert same(grown()[0], wanted)


def test_the_cpus_products_are_part_of_programs() -> None:
    model = decoder()
    with npu.config(processor="cpu"):
        cpu = steps(model, nn.KVCache(3, 2, 16), [1] * 6)
        assert trusted(model) == {1}
    on_npu = steps(model, nn.KVCache(3, 2, 16), [1] * 6)
    assert same(cpu, on_npu), "sums of integers are the same"


def test_a_failed_run_is_repeated_once_from_where_it_failed() -> None:
    with sim.configured(), npu.Device("sim:rk3588") as device:
        model = decoder(device=device)
        cache = nn.KVCache(3, 2, 16)
        right = steps(model, cache, [1] * 6)
        assert trusted(model) == {1}
        cache.trim(1)
        x = model.embed(IDS[5:6])
        runs = device.stats().run_calls
        with sim.configured(device, faults="run:after=7:times=1:code=-1"):
            again = model.run_blocks(x, cache, 6)
        assert again.tobytes() == right[5].tobytes()
        assert device.stats().run_calls - runs <= 12 + 1, "what was done before the failure is not done again"
        before = cache.offset
        with sim.configured(device, faults="run:after=3:times=5:code=-1"), pytest.raises(RknnError, match="in vain"):
            model.run_blocks(x, cache, 7)
        assert cache.offset == before
        once_more = model.run_blocks(model.embed(IDS[6:7]), cache, 7)
        with by_python():
            cache.trim(1)
            assert model.run_blocks(model.embed(IDS[6:7]), cache, 7).tobytes() == once_more.tobytes()


class Interrupting(nn.MLP):
    """Is called by programs, and raises when it is told to."""

    recordable = False  # type: ignore[assignment]
    raises: BaseException | None = None

    def __call__(self, x: Any) -> Any:
        if self.raises is not None:
            raise self.raises
        return super().__call__(x)


def test_what_python_raises_in_the_middle_leaves_the_cache_as_it_was() -> None:
    model = decoder()
    own = Interrupting(64, 96, scheme="w8a8")
    own.load_state_dict(dict(model.model.layers[1].mlp.state_dict()))
    model.model.layers[1].mlp = own
    cache = nn.KVCache(3, 2, 16)
    steps(model, cache, [1] * 5)
    assert trusted(model) == {1}
    for error in (KeyboardInterrupt(), ValueError("mine")):
        own.raises = error
        with pytest.raises(type(error)):
            model.run_blocks(model.embed([7]), cache, 6)
        own.raises = None
        assert cache.offset == 5
    one = model.run_blocks(model.embed([7]), cache, 6)
    cache.trim(1)
    with by_python():
        assert model.run_blocks(model.embed([7]), cache, 6).tobytes() == one.tobytes()


def test_ctrl_c_is_attended_to_while_a_program_runs() -> None:
    """A run that hangs: the first signal is seen within a step, the second gives the run up."""
    with npu.Device("sim:rk3588") as device:
        model = decoder(device=device)
        cache = nn.KVCache(3, 2, 16)
        steps(model, cache, [1] * 4)
        stop = threading.Event()

        def press() -> None:
            while not stop.wait(0.2):
                signal.raise_signal(signal.SIGINT)

        pressing = threading.Thread(target=press)
        with sim.configured(device, faults="run:after=2:hang"):
            pressing.start()
            try:
                with pytest.raises(KeyboardInterrupt):
                    model.run_blocks(model.embed([7]), cache, 5)
            finally:
                while True:
                    try:
                        stop.set()
                        pressing.join()
                        break
                    except KeyboardInterrupt:
                        continue
        assert cache.offset == 4
        again = model.run_blocks(model.embed([7]), cache, 5)
        cache.trim(1)
        with by_python():
            assert model.run_blocks(model.embed([7]), cache, 5).tobytes() == again.tobytes()


@pytest.mark.parametrize("change", ["product", "norm", "block", "list"])
def test_changes_of_layers_are_seen(change: str) -> None:
    model, other = decoder(), decoder(more_bias := 3)
    assert more_bias == 3
    steps(model, nn.KVCache(3, 2, 16), [1] * 5)
    block = model.model.layers[1]
    if change == "product":
        block.mlp.down_proj.use(nn.PackedProduct(npu.pack(np.eye(96, 64, dtype=np.float32), "w8a8")))
    elif change == "norm":
        block.input_layernorm.load_state_dict({"weight": np.full(64, 0.25)})
    elif change == "block":
        block.mlp = other.model.layers[2].mlp
    else:
        model.model.layers[1] = other.model.layers[2]
    changed = steps(model, nn.KVCache(3, 2, 16), [1] * 5)
    with by_python():
        assert same(changed, steps(model, nn.KVCache(3, 2, 16), [1] * 5))


def test_a_closed_weight_is_told_as_ever() -> None:
    model = decoder()
    steps(model, nn.KVCache(3, 2, 16), [1] * 5)
    product: Any = model.model.layers[2].mlp.down_proj.product
    product.weight.close()
    with pytest.raises(ClosedError, match="packed weight"):
        model.run_blocks(model.embed([1]), nn.KVCache(3, 2, 16), 1)


def test_products_of_programs_are_among_those_that_a_run_tells_of() -> None:
    """By which they are logged (``NPUMATMUL_LOG=bench``)."""
    model = decoder()
    steps(model, nn.KVCache(3, 2, 16), [1] * 4)
    (found,) = model._recorded._programs.values()
    program = found.program
    shapes = [(each.plan.m, each.plan.weight.k, each.plan.weight.n) for each in program.products]
    assert shapes == []  # it has ended
    program._run.first = 0
    shapes = [(each.plan.m, each.plan.weight.k, each.plan.weight.n) for each in program.products]
    assert shapes == [(1, 64, 128), (1, 64, 64), (1, 64, 192), (1, 96, 64)] * 3


def test_threads_that_share_a_model() -> None:
    """One of them has the program, the others compute by Python: all get their own results."""
    model = decoder()
    with by_python():
        right = steps(model, nn.KVCache(3, 2, 16), [1] * 30)
    found: list[list[Float32]] = []

    def work() -> None:
        found.append(steps(model, nn.KVCache(3, 2, 16), [1] * 30))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3
    assert all(same(each, right) for each in found)


def calls_of(work: Callable[[], object]) -> int:
    """Calls of functions written in Python, but for numpy's own."""
    inside = f"{Path(np.__file__ or '').parent}/"
    calls = -1

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and not frame.f_code.co_filename.startswith(inside)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_a_token_takes_few_calls_of_python_however_many_layers_there_are() -> None:
    taken = []
    for layers in (2, 30):
        model = decoder(layers)
        cache = model.new_cache(300)
        for token in IDS[:6]:
            model.forward([token], cache)
        taken.append(calls_of(lambda model=model, cache=cache: model.forward([3], cache)))  # type: ignore[misc]
    assert taken[1] <= 150, "a decoded token of 30 layers"
    assert taken[0] == taken[1]


def test_a_prompt_takes_few_calls_for_each_block() -> None:
    taken = []
    for layers in (2, 12):
        model = decoder(layers)
        for _ in range(3):
            model.forward(IDS, model.new_cache(300))
        cache = model.new_cache(300)
        taken.append(calls_of(lambda model=model, cache=cache: model.forward(IDS, cache)))  # type: ignore[misc]
    assert (taken[1] - taken[0]) / 10 <= 20
