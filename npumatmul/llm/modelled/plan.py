"""What a model would take on a chip, scheme by scheme, by plans of its layers and the timing model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate
from npumatmul.errors import NpuError
from npumatmul.llm.modelled.seconds import ModelledPass, modelled_pass, modelled_texts, weight_plan
from npumatmul.llm.modelled.shape import LinearShape, ModelShape
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import WeightPlan
from npumatmul.quant.params import Granularity
from npumatmul.quant.routes import Route, route_for
from npumatmul.quant.schemes import Scheme

__all__ = ["PROMPTS", "SCHEMES", "TEXTS", "LayerPlan", "ModelPlan", "SchemePlan", "plan_model"]

#: Prompts that are shown, and the positions that a token sees.
PROMPTS = (128, 512)
TOKEN_KEYS = 128
#: Of encoders: texts that are read together, and the tokens of each.
TEXTS = ((1, 16), (1, 128), (8, 128), (32, 128), (1, 512))
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
    experts : int
        How many experts a block has where they are parts of these; else 0.
    """

    name: str
    k: int
    n: int
    times: int
    tiles: int
    nbytes: int
    experts: int = 0


@dataclass(frozen=True)
class SchemePlan:
    """A model in a scheme; times are modelled and nothing of them was measured.

    Attributes
    ----------
    scheme : str
    mm_type : str
        What computes it.
    layers : tuple of LayerPlan
        The output matrix, if there is one, is the last.
    contexts : int
        Contexts that prompts and tokens, or texts, need.
    prompts : dict of int to Estimate or None
        Of decoders: seconds of a prompt of so many tokens; None where nothing is known of the chip.
    token : Estimate or None
        Seconds of a token after 128 others.
    texts : dict of str to Estimate or None
        Of encoders: seconds of texts that are read together, by ``"<texts> x <tokens>"``.
    window : Estimate or None
        Of models of speech: seconds of hearing a window, of 30 s.
    brought : float or None
        Where memory for experts is limited: bytes of them that a token is expected to have brought in.
    note : str
        What a user should know of the scheme on the chip.
    """

    scheme: str
    mm_type: str
    layers: tuple[LayerPlan, ...]
    contexts: int
    prompts: dict[int, Estimate | None]
    token: Estimate | None
    texts: dict[str, Estimate | None]
    window: Estimate | None
    brought: float | None
    note: str

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in NPU memory."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def expert_bytes(self) -> int:
        """Of these, those of experts."""
        return sum(layer.nbytes for layer in self.layers if layer.experts)

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
    expert_memory : int or None
        Bytes of experts in NPU memory at a time.
    """

    shape: ModelShape
    soc: str
    cores: int
    provenance: str
    cache_bytes: int
    schemes: tuple[SchemePlan, ...]
    left_out: dict[str, str]
    expert_memory: int | None = None

    def content(self) -> dict[str, Any]:
        """What JSON can hold."""
        found = asdict(self)
        found["parameters"] = self.shape.parameters
        found["active_parameters"] = self.shape.active_parameters
        for shown, scheme in zip(found["schemes"], self.schemes, strict=True):
            speed = scheme.tokens_per_second
            shown["weight_bytes"], shown["expert_bytes"] = scheme.nbytes, scheme.expert_bytes
            shown["tokens_per_second"] = None if speed is None else asdict(speed)
        return found


def plan_model(
    shape: ModelShape, chip: Chip, schemes: Sequence[str] | None = None, *, expert_memory: int | None = None
) -> ModelPlan:
    """Plan all linear layers of a model, and add up modelled times.

    Parameters
    ----------
    shape : ModelShape
    chip : Chip
    schemes : sequence of str, optional
        By name; by default those of `SCHEMES` that the chip has.
    expert_memory : int, optional
        As for `npumatmul.llm.load`: bytes of experts in NPU memory at a time.

    Raises
    ------
    ValueError
        If a name is that of no scheme, or memory of experts is limited that are not there or larger.
    npumatmul.errors.DeviceError
        If the chip has none of them.
    npumatmul.errors.ModelError
        If a layer is larger than is planned.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> plan = plan_model(SHAPES["Qwen2-0.5B"], chip("rk3562"))
    >>> [each.scheme for each in plan.schemes]
    ['w16a16', 'w8a8', 'w4a8']
    """
    if expert_memory is not None and not any(each.experts for each in shape.whole):
        raise ValueError(f"memory of experts is limited, and {shape.name} has no experts")
    found, left_out = [], {}
    first: NpuError | None = None
    for name in SCHEMES if schemes is None else schemes:
        scheme = Scheme.parse(name)
        try:
            route = route_for(scheme, chip, chip.runtime)
        except NpuError as error:
            first = first or error
            left_out[name] = str(error)
            continue
        found.append(_SchemePlanner(shape, chip, scheme, route, expert_memory).plan())
    if first is not None and not found:
        raise first
    model = chip.timings.get(chip.soc)
    return ModelPlan(
        shape,
        chip.soc,
        chip.cores,
        "no times are known" if model is None else model.provenance,
        _FLOAT16_BYTES * shape.cached if shape.kind != "encoder" else 0,
        tuple(found),
        {} if schemes is None else left_out,
        expert_memory,
    )


class _SchemePlanner:
    """Plans a model in one scheme."""

    def __init__(self, shape: ModelShape, chip: Chip, scheme: Scheme, route: Route, expert_memory: int | None) -> None:
        self._shape, self._chip, self._scheme, self._route = shape, chip, scheme, route
        self._memory = expert_memory
        self._group = scheme.group_size if scheme.granularity is Granularity.GROUP else None
        self._contexts: set[tuple[int, int, int, int]] = set()

    def plan(self) -> SchemePlan:
        shape, route = self._shape, self._route
        layers = tuple(self._layer(each) for each in shape.whole)
        token = None if shape.kind == "encoder" else self._pass(shape, 1, TOKEN_KEYS)
        hearing = shape.hearing
        return SchemePlan(
            self._scheme.name,
            route.mm_type.name,
            layers,
            len(self._contexts),
            {rows: _estimate(self._pass(shape, rows, rows)) for rows in PROMPTS} if shape.kind == "decoder" else {},
            _estimate(token),
            {f"{texts} x {length}": self._texts([length] * texts) for texts, length in TEXTS}
            if shape.kind == "encoder"
            else {},
            None if hearing is None else _estimate(self._pass(hearing, shape.states, shape.states)),
            None if token is None or self._memory is None else token.brought,
            route.note,
        )

    def _layer(self, each: LinearShape) -> LayerPlan:
        weight = self._weight(each)
        if each.experts and self._memory is not None and weight.nbytes > self._memory:
            raise ValueError(f"a weight of {weight.nbytes} bytes is larger than the memory for experts: give more")
        for rows in self._rows(each):
            plan = plan_matmul(rows, weight, timings=self._chip.timings)
            self._contexts |= {
                (k.padded, n.padded, plan.core(m, index), plan.turn(m))
                for m in range(len(plan.m_spans))
                for k in weight.k_spans
                for index, n in enumerate(weight.n_spans)
            }
        tiles = len(weight.k_spans) * len(weight.n_spans)
        return LayerPlan(each.name, each.k, each.n, each.times, tiles, weight.nbytes * each.times, each.experts)

    def _rows(self, each: LinearShape) -> list[int]:
        """Numbers of rows that products of a layer have."""
        if each is self._shape.head:
            return [1]
        passes = {
            "decoder": (1, *PROMPTS),
            "encoder": tuple(texts * length for texts, length in TEXTS),
            "speech": (1,),
        }[self._shape.kind]
        if self._shape.hearing is not None and each in self._shape.hearing.every_linear:
            passes = (self._shape.states,)
        return [each.whole_rows(tokens) for tokens in passes]

    def _weight(self, each: LinearShape) -> WeightPlan:
        return weight_plan(each, self._route.mm_type, self._chip, self._route.row_images, self._group)

    def _pass(self, shape: ModelShape, rows: int, keys: int) -> ModelledPass | None:
        route = self._route
        return modelled_pass(
            shape, rows, keys, route.mm_type, self._chip,
            row_images=route.row_images, k_group=self._group, expert_memory=self._memory,
        )  # fmt: skip

    def _texts(self, lengths: Sequence[int]) -> Estimate | None:
        route = self._route
        return _estimate(
            modelled_texts(
                self._shape, lengths, route.mm_type, self._chip, row_images=route.row_images, k_group=self._group
            )
        )


def _estimate(found: ModelledPass | None) -> Estimate | None:
    return None if found is None else found.estimate
