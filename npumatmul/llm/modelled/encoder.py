"""Modelled time of texts that an encoder reads together: its products by their plans, and what is done between them.

What is between is counted as for decoders (`seconds`): three arrays for each norm and sum, two for the activation and
for what is rotated, three for the scores; an exponential for each value of the activation and each score; attention's
products on one thread of the CPU. Texts are filled up to the longest of them for attention alone. A window saves no
scores: texts of up to 256 tokens are attended to at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from npumatmul.chips import Chip
from npumatmul.chips.timing import TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.llm.modelled.seconds import ModelledPass, weight_plan
from npumatmul.llm.modelled.shape import LinearShape
from npumatmul.llm.models.encoder_config import EncoderConfig
from npumatmul.planning.cost import ModelledTime
from npumatmul.planning.product import plan_matmul

__all__ = ["encoder_linears", "modelled_texts"]

_FLOAT32_BYTES = 4
#: Three arrays, compared with the two of a copy.
_THREE = 1.5


def encoder_linears(config: EncoderConfig) -> tuple[LinearShape, ...]:
    """Linear layers of all blocks."""
    c = config
    every = (
        ("qkv", c.hidden_size, 3 * c.hidden_size),
        ("attn_out", c.hidden_size, c.hidden_size),
        ("gate_up", c.hidden_size, (2 if c.gated else 1) * c.ffn_size),
        ("down", c.ffn_size, c.hidden_size),
    )
    return tuple(LinearShape(name, k, n, c.n_layers) for name, k, n in every)


def modelled_texts(
    config: EncoderConfig, lengths: Sequence[int], mm_type: MatmulType, chip: Chip
) -> ModelledPass | None:
    """Modelled time of texts that are computed together.

    Parameters
    ----------
    config : EncoderConfig
    lengths : sequence of int
        Tokens of each text.
    mm_type : MatmulType
        What computes the linear layers.
    chip : Chip

    Returns
    -------
    ModelledPass or None
        None where nothing is known of the chip's time.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.models.decoder_config import LayerConfig
    >>> config = EncoderConfig("bert", 6, 384, 12, 1536, 30522, 512, (LayerConfig(),) * 6, positions=512)
    >>> found = modelled_texts(config, [16], MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> 0.001 < found.seconds < 0.1
    True
    """
    model = chip.timings.get(chip.soc)
    if model is None or not model.knows(mm_type):
        return None
    rows = sum(lengths)
    linear = ModelledTime(0.0, 0.0, 0.0, model.within)
    for each in encoder_linears(config):
        plan = plan_matmul(rows, weight_plan(each, mm_type, chip), timings=chip.timings)
        assert plan.modelled is not None
        linear += plan.modelled.times(each.times)
    return ModelledPass(rows, linear, _between(config, lengths, model), model.models_within)


def _between(c: EncoderConfig, lengths: Sequence[int], model: TimingModel) -> float:
    """Seconds of the host between products, of all layers."""
    rows, scores = sum(lengths), len(lengths) * max(lengths) ** 2 * c.n_heads
    rotated = 0 if c.positions else 2 * c.hidden_size
    copies = rows * (_THREE * 4 * c.hidden_size + c.ffn_size * (_THREE if c.gated else 1) + rotated) + _THREE * scores
    exponentials = rows * c.ffn_size + scores
    operations = 4.0 * scores * c.head_dim
    layer = copies * _FLOAT32_BYTES / model.host_bandwidth
    layer += exponentials * model.host_exp_seconds + operations / model.host_flops
    return c.n_layers * layer
