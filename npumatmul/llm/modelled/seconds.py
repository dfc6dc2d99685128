"""Modelled time of a pass of tokens through a model: its products by their plans, and what is done between them.

What is between products is done by one thread of the CPU, in float32. It is counted, not measured:

- what goes through memory, at the speed of a copy: three arrays for each norm, for each of two residual sums and for
  the gate (two read and one written, which is one and a half times a copy), two for a rotation, three for the scores;
- an exponential for each element of the gate and of the scores;
- the products of attention, at the float32 operations per second of a thread; keys and values are read once.

Python's own time, sampling and the look-up of embeddings are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate, TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.llm.modelled.shape import LinearShape, ModelShape
from npumatmul.planning.cost import ModelledTime
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import WeightPlan, plan_weight

__all__ = ["ModelledPass", "modelled_pass"]

_FLOAT32_BYTES = 4
#: Three arrays, compared with the two of a copy.
_THREE = 1.5


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
        All else.
    within : float
        The factor that nine tenths of such times are right to.
    """

    rows: int
    linear: ModelledTime
    between: float
    within: float

    @property
    def seconds(self) -> float:
        """All together."""
        return self.linear.seconds + self.between

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

    Returns
    -------
    ModelledPass or None
        None where nothing is known of the chip's time.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.shape import SHAPES
    >>> token = modelled_pass(SHAPES["TinyLLAMA-1.1B"], 1, 128, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> 0.03 < token.seconds < 0.07
    True
    """
    model = chip.timings.get(chip.soc)
    if model is None or not model.knows(mm_type):
        return None
    linear = ModelledTime(0.0, 0.0, 0.0, model.within)
    for each, m in (*((each, rows) for each in shape.linears), (shape.head, 1)):
        plan = plan_matmul(m, weight_plan(each, mm_type, chip, row_images, k_group), timings=chip.timings)
        assert plan.modelled is not None
        linear += plan.modelled.times(each.times)
    return ModelledPass(rows, linear, _between(shape, rows, keys, model), model.models_within)


def weight_plan(
    linear: LinearShape, mm_type: MatmulType, chip: Chip, row_images: int = 1, k_group: int | None = None
) -> WeightPlan:
    """The plan of such a layer's weight."""
    return plan_weight(linear.k, linear.n, mm_type, chip, chip.runtime, row_images=row_images, k_group=k_group)


def _between(shape: ModelShape, rows: int, keys: int, model: TimingModel) -> float:
    """Seconds of the host between products, of all layers."""
    rotated = shape.q_size + shape.kv_heads * shape.head_dim
    scores = shape.heads * keys
    copies = _THREE * (shape.hidden * (shape.norms + 2) + shape.ffn + scores) + rotated
    if shape.qk_norm:
        copies += _THREE * rotated
    operations = 2.0 * scores * (shape.head_dim + shape.values // shape.heads)
    a_row = (
        copies * _FLOAT32_BYTES / model.host_bandwidth
        + (shape.ffn + scores) * model.host_exp_seconds
        + operations / model.host_flops
    )
    read = keys * shape.cached * _FLOAT32_BYTES / 2 / model.host_bandwidth
    return shape.layers * (rows * a_row + read)
