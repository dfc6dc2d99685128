"""What a model would take on a chip, scheme by scheme, by plans of its layers and the timing model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate
from npumatmul.errors import NpuError
from npumatmul.llm.modelled.seconds import modelled_pass, weight_plan
from npumatmul.llm.modelled.shape import ModelShape
from npumatmul.planning.product import plan_matmul
from npumatmul.quant.params import Granularity
from npumatmul.quant.routes import Route, route_for
from npumatmul.quant.schemes import Scheme

__all__ = ["PROMPTS", "SCHEMES", "LayerPlan", "ModelPlan", "SchemePlan", "plan_model"]

#: Prompts that are shown, and the positions that a token sees.
PROMPTS = (128, 512)
TOKEN_KEYS = 128
#: Schemes that are shown where none is named, as far as a chip has them.
SCHEMES = ("w16a16", "w8a8", "w8a16", "w4a16", "w4a8", "w4a4")
_FLOAT16_BYTES = 2


@dataclass(frozen=True)
class LayerPlan:
    """Linear layers that are alike, in a scheme.

    Attributes
    ----------
    name : str
    k, n, times : int
    tiles : int
        Slices of K times tiles of N of each.
    nbytes : int
        Bytes of all of them in NPU memory.
    """

    name: str
    k: int
    n: int
    times: int
    tiles: int
    nbytes: int


@dataclass(frozen=True)
class SchemePlan:
    """A model in a scheme; times are modelled and nothing of them was measured.

    Attributes
    ----------
    scheme : str
    mm_type : str
        What computes it.
    layers : tuple of LayerPlan
        The output matrix is the last.
    contexts : int
        Contexts that prompts and tokens need.
    prompts : dict of int to Estimate or None
        Seconds of a prompt of so many tokens; None where nothing is known of the chip.
    token : Estimate or None
        Seconds of a token after 128 others.
    note : str
        What a user should know of the scheme on the chip.
    """

    scheme: str
    mm_type: str
    layers: tuple[LayerPlan, ...]
    contexts: int
    prompts: dict[int, Estimate | None]
    token: Estimate | None
    note: str

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in NPU memory."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def tokens_per_second(self) -> Estimate | None:
        """Of generation; `low` is the slowest."""
        each = self.token
        return None if each is None else Estimate(1 / each.seconds, 1 / each.high, 1 / each.low)


@dataclass(frozen=True)
class ModelPlan:
    """A model on a chip.

    Attributes
    ----------
    shape : ModelShape
    soc : str
    cores : int
    provenance : str
        Where the constants of the chip's times come from.
    cache_bytes : int
        Of keys and values per position, in float16.
    schemes : tuple of SchemePlan
    left_out : dict of str to str
        Schemes that the chip cannot compute, and why.
    """

    shape: ModelShape
    soc: str
    cores: int
    provenance: str
    cache_bytes: int
    schemes: tuple[SchemePlan, ...]
    left_out: dict[str, str]

    def content(self) -> dict[str, Any]:
        """What JSON can hold."""
        found = asdict(self)
        found["parameters"] = self.shape.parameters
        for shown, scheme in zip(found["schemes"], self.schemes, strict=True):
            speed = scheme.tokens_per_second
            shown["weight_bytes"] = scheme.nbytes
            shown["tokens_per_second"] = None if speed is None else asdict(speed)
        return found


def plan_model(shape: ModelShape, chip: Chip, schemes: Sequence[str] | None = None) -> ModelPlan:
    """Plan all linear layers of a model, and add up modelled times.

    Parameters
    ----------
    shape : ModelShape
    chip : Chip
    schemes : sequence of str, optional
        By name; by default those of `SCHEMES` that the chip has.

    Raises
    ------
    ValueError
        If a name is that of no scheme.
    npumatmul.errors.DeviceError
        If the chip has none of them.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.shape import SHAPES
    >>> plan = plan_model(SHAPES["Qwen2-0.5B"], chip("rk3562"))
    >>> [each.scheme for each in plan.schemes]
    ['w16a16', 'w8a8', 'w4a8']
    """
    found, left_out = [], {}
    first: NpuError | None = None
    for name in SCHEMES if schemes is None else schemes:
        scheme = Scheme.parse(name)
        try:
            found.append(_scheme_plan(shape, chip, scheme, route_for(scheme, chip, chip.runtime)))
        except NpuError as error:
            first = first or error
            left_out[name] = str(error)
    if first is not None and not found:
        raise first
    model = chip.timings.get(chip.soc)
    return ModelPlan(
        shape,
        chip.soc,
        chip.cores,
        "no times are known" if model is None else model.provenance,
        _FLOAT16_BYTES * shape.cached * shape.layers,
        tuple(found),
        {} if schemes is None else left_out,
    )


def _scheme_plan(shape: ModelShape, chip: Chip, scheme: Scheme, route: Route) -> SchemePlan:
    images = route.row_images
    group = scheme.group_size if scheme.granularity is Granularity.GROUP else None
    layers, contexts = [], set()
    for each in (*shape.linears, shape.head):
        weight = weight_plan(each, route.mm_type, chip, images, group)
        tiles = len(weight.k_spans) * len(weight.n_spans)
        layers.append(LayerPlan(*each[:4], tiles, weight.nbytes * each.times))
        for rows in (1,) if each.name == "head" else (1, *PROMPTS):
            plan = plan_matmul(rows, weight, timings=chip.timings)
            contexts |= {
                (k.padded, n.padded, plan.core(m, index))
                for m in range(len(plan.m_spans))
                for k in weight.k_spans
                for index, n in enumerate(weight.n_spans)
            }

    def seconds(rows: int, keys: int) -> Estimate | None:
        found = modelled_pass(shape, rows, keys, route.mm_type, chip, row_images=images, k_group=group)
        return None if found is None else found.estimate

    return SchemePlan(
        scheme.name, route.mm_type.name, tuple(layers), len(contexts), {rows: seconds(rows, rows) for rows in PROMPTS},
        seconds(1, TOKEN_KEYS), route.note,
    )  # fmt: skip
