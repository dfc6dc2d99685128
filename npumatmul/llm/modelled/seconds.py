"""Modelled time of a pass of tokens through a model: its products by their plans, and what is done between them.

What is between products is done by one thread of the CPU, in float32. It is counted, not measured:

- what goes through memory, at the speed of a copy: three arrays for each norm, for each of two residual sums and for
  the gate (two read and one written, which is one and a half times a copy), two for a rotation and for an activation
  without a gate, three for the scores;
- an exponential for each element of the gate and of the scores;
- the products of attention, at the float32 operations per second of a thread; keys and values are read once;
- of a gated delta net, its convolution, norms and gate, and the rule: its state, a matrix for each head, is read and
  written once for each chunk of tokens, whose rows see one another; of a short convolution two products and itself;
- of experts, the router's product and its exponentials, and gathering and adding up rows, five arrays for each expert
  of each token.

Of experts those products are counted that tokens are expected to choose (`LinearShape.touched`), each with the mean of
their rows. Where memory for experts is limited, copying those that have to be brought in is added.

Python's own time, sampling and the look-up of embeddings are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate, TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.errors import ModelError
from npumatmul.llm.modelled.built import THREE
from npumatmul.llm.modelled.shape import HostWork, LinearShape, ModelShape
from npumatmul.llm.models.decoder import PREFILL_CHUNK
from npumatmul.planning.cost import ModelledTime
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import WeightPlan, plan_weight

__all__ = ["ModelledPass", "modelled_pass", "modelled_texts", "seconds_between", "weight_plan"]

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ModelledPass:
    """Modelled seconds of a pass; nothing of it was measured.

    Attributes
    ----------
    rows : int
        Tokens.
    linear : ModelledTime
        Products of all linear layers, the output matrix with one row included.
    between : float
        All that the CPU does between them.
    within : float
        The factor that nine tenths of such times are right to.
    brought : float
        Bytes of experts that are copied to the NPU's memory.
    bringing : float
        Seconds of that, from the host's memory.
    """

    rows: int
    linear: ModelledTime
    between: float
    within: float
    brought: float = 0.0
    bringing: float = 0.0

    @property
    def seconds(self) -> float:
        """All together."""
        return self.linear.seconds + self.between + self.bringing

    @property
    def estimate(self) -> Estimate:
        """All together, with what it may be wrong by."""
        return Estimate.within(self.seconds, self.within)


def modelled_pass(
    shape: ModelShape,
    rows: int,
    keys: int,
    mm_type: MatmulType,
    chip: Chip,
    *,
    row_images: int = 1,
    k_group: int | None = None,
    expert_memory: int | None = None,
) -> ModelledPass | None:
    """Modelled time of `rows` tokens that attend to `keys` positions, themselves included.

    Parameters
    ----------
    shape : ModelShape
    rows, keys : int
    mm_type : MatmulType
        What computes the linear layers.
    chip : Chip
    row_images : {1, 2}
        Rows of A per row of an activation.
    k_group : int, optional
        Rows of weights that share a scale.
    expert_memory : int, optional
        Bytes of experts in the NPU's memory at a time; all by default.

    Returns
    -------
    ModelledPass or None
        None where nothing is known of the chip's time.

    Raises
    ------
    npumatmul.errors.ModelError
        If a layer is larger than is planned.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> token = modelled_pass(SHAPES["TinyLLAMA-1.1B"], 1, 128, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> 0.03 < token.seconds < 0.07
    True
    """
    model = chip.timings.get(chip.soc)
    if model is None or not model.knows(mm_type):
        return None
    linear = _products(shape, rows, mm_type, chip, row_images, k_group)
    between = seconds_between(shape, rows, keys, model)
    brought = 0.0
    if expert_memory is not None:
        sizes = {
            each: weight_plan(each, mm_type, chip, row_images, k_group).nbytes for each in shape.linears if each.experts
        }
        brought = bytes_brought(sizes, rows, expert_memory)
    return ModelledPass(rows, linear, between, model.models_within, brought, brought / model.host_bandwidth)


def seconds_between(shape: ModelShape, rows: int, keys: int, model: TimingModel) -> float:
    """Modelled seconds of all that the CPU does between the products of `rows` tokens that attend to `keys`."""
    return sum(
        block.times
        * (_by_row(block.work, rows, rows * block.work.heads * block.work.seen(rows, keys), model)
           + block.work.kept(rows, keys) * _FLOAT32_BYTES / model.host_bandwidth)
        for block in shape.blocks
    )  # fmt: skip


def modelled_texts(
    shape: ModelShape,
    lengths: Sequence[int],
    mm_type: MatmulType,
    chip: Chip,
    *,
    row_images: int = 1,
    k_group: int | None = None,
) -> ModelledPass | None:
    """Modelled time of texts that an encoder reads together.

    Texts are filled up to the longest of them for attention alone.

    Parameters
    ----------
    shape : ModelShape
    lengths : sequence of int
        Tokens of each text.
    mm_type, chip, row_images, k_group
        As for `modelled_pass`.

    Returns
    -------
    ModelledPass or None
        None where nothing is known of the chip's time.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> found = modelled_texts(SHAPES["all-MiniLM-L6-v2"], [16], MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> 0.001 < found.seconds < 0.1
    True
    """
    model = chip.timings.get(chip.soc)
    if model is None or not model.knows(mm_type):
        return None
    rows, pairs = sum(lengths), len(lengths) * max(lengths) ** 2
    linear = _products(shape, rows, mm_type, chip, row_images, k_group)
    between = sum(block.times * _by_row(block.work, rows, pairs * block.work.heads, model) for block in shape.blocks)
    return ModelledPass(rows, linear, between, model.models_within)


def bytes_brought(sizes: dict[LinearShape, int], rows: int, limit: int) -> float:
    """Bytes of experts that are expected to be brought in for so many tokens.

    What was used longest ago gives way. So nothing is found again where what one block of a prompt, or one token,
    passes in all layers does not fit; else what fits is found.

    Parameters
    ----------
    sizes : dict of LinearShape to int
        Bytes of one of each.
    rows : int
        Tokens; they are read in blocks as `Decoder.forward` does.
    limit : int
        Bytes of experts in the NPU's memory at a time.

    Examples
    --------
    >>> experts = {LinearShape("expert", 64, 64, 16, experts=8, chosen=2): 4096}
    >>> [bytes_brought(experts, 1, 4096 * count) for count in (3, 4, 8, 16)]
    [16384.0, 12288.0, 8192.0, 0.0]
    """
    blocks = math.ceil(rows / PREFILL_CHUNK)
    touched = sum(size * each.touched(math.ceil(rows / blocks)) for each, size in sizes.items())
    everything = sum(size * each.times for each, size in sizes.items())
    missing = 1.0 if limit < touched else max(0.0, 1 - limit / everything)
    return blocks * touched * missing


def weight_plan(
    linear: LinearShape, mm_type: MatmulType, chip: Chip, row_images: int = 1, k_group: int | None = None
) -> WeightPlan:
    """The plan of such a layer's weight.

    Raises
    ------
    npumatmul.errors.ModelError
        If the layer is larger than is planned.
    """
    try:
        return plan_weight(linear.k, linear.n, mm_type, chip, chip.runtime, row_images=row_images, k_group=k_group)
    except ValueError as error:
        raise ModelError(f"the layer {linear.name} cannot be planned: {error}") from error


def _products(
    shape: ModelShape, rows: int, mm_type: MatmulType, chip: Chip, row_images: int, k_group: int | None
) -> ModelledTime:
    linear = ModelledTime(0.0, 0.0, 0.0, chip.timings[chip.soc].within)
    for each in shape.every_linear:
        m = 1 if each is shape.head else each.whole_rows(rows)
        weight = weight_plan(each, mm_type, chip, row_images, k_group)
        # constants were fitted to figures of whole models by plans without turns
        plan = plan_matmul(m, weight, turns=False, timings=chip.timings)
        assert plan.modelled is not None
        linear += plan.modelled.times(each.touched(rows))
    return linear


def _by_row(work: HostWork, rows: int, scores: float, model: TimingModel) -> float:
    """Seconds of the host in a block, of all its rows and so many scores of attention."""
    copied = rows * work.copied + THREE * scores
    exponentials = rows * work.exponentials + scores
    operations = rows * work.operations + 2.0 * scores * (work.key_size + work.value_size)
    seconds = copied * _FLOAT32_BYTES / model.host_bandwidth
    return seconds + exponentials * model.host_exp_seconds + operations / model.host_flops
