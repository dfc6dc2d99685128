"""Recorded programs: what a decoded token costs the host beside the NPU's work, in calls of Python and in time.

The simulator multiplies nothing here (`NPUMATMUL_SIM_COMPUTE=off`): what is left is what a board's CPU does, too, with
the simulator's own calls in the place of the driver's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from calls import calls_of

import npumatmul as npu
from npumatmul import sim
from npumatmul.llm import Decoder, DecoderConfig
from npumatmul.llm.models.recorded import Ending, _Work
from targets.lines import Count, Turns, line

LAYERS, CONTEXT = 30, 128
#: Of which tokens logits are wanted: of the one that there is.
ROWS = ((0, 1),)


@contextmanager
def decoding() -> Iterator[tuple[Decoder, Any, Any]]:
    """A w8a8 model of SmolLM2-135M's sizes with random weights, its cache after some tokens, a token's embedding."""
    with sim.configured(compute="off"), npu.Device("sim:rk3588") as device:
        sizes = DecoderConfig(LAYERS, 576, 9, 3, 64, 1536, vocab_size=1024, context_length=2048)
        model = Decoder(sizes, scheme="w8a8", device=device)
        rng = np.random.default_rng(0)
        shapes = model.parameter_shapes()
        model.load_state_dict({name: rng.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()})
        cache = model.new_cache(1024)
        for token in range(CONTEXT):
            model.forward([token], cache)
        yield model, cache, model.embed([5])


@line("a token, {0} layers: host", "the same steps from C", most=1.5, over=[(LAYERS,)])
def host(layers: int) -> Iterator[Turns]:
    """Leases, checks, the cache and copies, beside nothing but the steps."""
    with decoding() as (model, cache, x):
        (recorded,) = model._recorded._programs.values()
        program, kept = recorded.program, [x]

        def by_program() -> None:
            kept[0] = model.run_to_logits(x, cache, CONTEXT + 1, ROWS)  # where steps from C write theirs
            cache.trim(1)

        def from_c() -> None:
            bound: Any = program._last_bound
            program._run.first, program._run.stop = 0, len(bound.struct)
            bound.executor.executor.steps(bound.struct, program._run)

        by_program()
        yield Turns(by_program, from_c)


@line("a token, {0} layers: program", "Python, layer by layer", least=1.0, over=[(LAYERS,)])
def program(layers: int) -> Iterator[Turns]:
    """What recording is for."""
    with decoding() as (model, cache, x):

        def by_program() -> None:
            model.run_to_logits(x, cache, CONTEXT + 1, ROWS)
            cache.trim(1)

        work = _Work(model.model.layers, x, cache, None, None, Ending(model.model.norm, model.lm_head, ROWS))

        def by_python() -> None:
            work.by_python()
            cache.trim(1)

        yield Turns(by_program, by_python)


@line("a decoded token of {0} layers", "calls of Python functions", most=300, over=[(LAYERS,)])
def calls(layers: int) -> Iterator[Count]:
    """From a token to logits; choosing the next one is not in it."""
    with decoding() as (model, cache, _):
        yield Count(calls_of(lambda: model.forward([5], cache)))
