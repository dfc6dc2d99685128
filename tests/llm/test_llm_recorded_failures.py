"""Tokens whose computation fails, at any run or behind the blocks: afterwards the model goes on as if nothing was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hybrid_zoo
import numpy as np
import pytest
from model_zoo import VOCAB, Variant, torch_model, write_folder
from numpy.typing import NDArray
from test_llm_recorded import IDS, by_python

import npumatmul as npu
from npumatmul import nn, sim
from npumatmul.errors import RknnError
from npumatmul.llm import Decoder, npu_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.weights import load_decoder

VARIANT = next(each for each in (Variant(*given) for given in hybrid_zoo.VARIANTS) if each.name == "lfm2-plain")
TOKENS = [each % VOCAB for each in IDS]


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


@pytest.fixture
def hybrid(tmp_path: Path, device: npu.Device) -> Decoder:
    """A model whose last layer has a state, and is computed by calls of Python."""
    path = write_folder(tmp_path, VARIANT, torch_model(VARIANT))
    pack = npu_pack("w8a8", device)
    with open_source(path) as source:
        return load_decoder(source, lambda layer: pack(layer.weight(source), layer.name))


def test_a_call_that_failed_is_not_made_again(hybrid: Decoder, device: npu.Device) -> None:
    """It may have stored a state: what failed in it was repeated there."""
    with by_python():
        cache = hybrid.new_cache()
        right = [hybrid.forward([token], cache) for token in TOKENS]
    cache, failed = hybrid.new_cache(), 0
    for i, token in enumerate(TOKENS):
        faults = f"run:after={i % 16}:times=4:code=-1" if i >= 4 else ""
        try:
            with sim.configured(device, faults=faults):
                made = hybrid.forward([token], cache)
        except RknnError:
            failed += 1
            assert cache.length == i
            made = hybrid.forward([token], cache)
        assert made.tobytes() == right[i].tobytes(), i
    assert failed > 10


def test_what_fails_for_good_in_a_call_is_tried_no_more_often_than_by_python(
    hybrid: Decoder, device: npu.Device
) -> None:
    """A call of Python within a program is not made again for a product that was repeated in it."""
    cache = hybrid.new_cache()
    for token in TOKENS[:4]:  # from the second on by a program
        before = sim.counters(device).run_calls
        hybrid.forward([token], cache)
    runs = sim.counters(device).run_calls - before

    def tried(passed: int) -> int:
        before = sim.counters(device).run_calls
        with sim.configured(device, faults=f"run:after={passed}:code=-2"), pytest.raises(RknnError):
            hybrid.forward([TOKENS[4]], cache)
        return sim.counters(device).run_calls - before

    by_programs = [tried(passed) for passed in range(runs)]
    with by_python():
        assert [tried(passed) for passed in range(runs)] == by_programs


class Failing(nn.FloatProduct):
    """An output matrix of which nothing comes."""

    def __call__(self, *given: object, **how: object) -> NDArray[np.float32]:
        raise RuntimeError("no logits")


def test_where_logits_fail_the_token_is_no_part_of_the_cache(hybrid: Decoder) -> None:
    with by_python():
        cache = hybrid.new_cache()
        right = [hybrid.forward([token], cache) for token in TOKENS[:8]]
    cache, head = hybrid.new_cache(), hybrid.lm_head.product
    for i, token in enumerate(TOKENS[:8]):
        hybrid.lm_head.use(Failing(np.ones((VOCAB, 64), np.float32)))
        with pytest.raises(RuntimeError, match="no logits"):
            hybrid.forward([token], cache)
        hybrid.lm_head.use(head)
        assert cache.length == i
        assert hybrid.forward([token], cache).tobytes() == right[i].tobytes()
