"""Where a policy puts the layers of a model: pure, from shapes and a chip, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from npumatmul.chips import Chip
from npumatmul.files.sizes import size_in_words
from npumatmul.llm.fitting import LayerShape, Room, facts_of, fitted
from npumatmul.llm.policy import Policy, check_patterns
from npumatmul.nn.product import FLOAT32
from npumatmul.rknn.version import RuntimeVersion
from npumatmul.running.where import DECODE_ROWS, Where

__all__ = ["LayerPlace", "ModelPlacement", "check_cores", "place_layers"]


@dataclass(frozen=True)
class LayerPlace:
    """Where a linear layer is, and who computes it.

    Attributes
    ----------
    name : str
    k, n : int
    scheme : str
    memory : {"npu", "host"}
        Where its weight stands.
    nbytes : int
        Bytes of it there.
    prefill : {"npu", "cpu"}
        Who computes products of more than 8 rows.
    crossover : int
        Products of up to so many rows are computed by the CPU.
    domain : int or None
        IOMMU domain that there is room in for it.
    measured : bool
        Whether the crossover was measured on the board, instead of modelled.
    """

    name: str
    k: int
    n: int
    scheme: str
    memory: Literal["npu", "host"]
    nbytes: int
    prefill: Literal["npu", "cpu"]
    crossover: int
    domain: int | None = None
    measured: bool = False

    def place(self, rows: int) -> str:
        """Who computes a product of so many rows: ``"npu"`` or ``"cpu"``."""
        return self.where.computed_by(rows)

    @property
    def where(self) -> Where:
        """The same for who stores the weight."""
        return Where(self.memory, crossover=self.crossover, prefill=self.prefill)

    @property
    def decode(self) -> str:
        """Who computes a single row."""
        return self.place(1)


class ModelPlacement(Sequence[LayerPlace]):
    """Where the layers of a model are, in the order in which a token passes them; printed, it is a table.

    Attributes
    ----------
    policy : Policy
    npu_bytes, host_bytes : int
        Of weights in NPU memory and in ordinary memory.
    workspace : int
        Bytes of A and C that the largest product on the NPU works with.
    """

    def __init__(self, layers: Sequence[LayerPlace], policy: Policy, workspace: int) -> None:
        self._layers, self.policy, self.workspace = tuple(layers), policy, workspace

    def __repr__(self) -> str:
        """Return how many are where."""
        npu = sum(each.memory == "npu" for each in self)
        return (
            f"<ModelPlacement: {npu} of {len(self)} layers in NPU memory, {size_in_words(self.npu_bytes)}; "
            f"{size_in_words(self.host_bytes)} in ordinary memory>"
        )

    def __str__(self) -> str:
        """Return the table; layers of blocks that follow one another and are alike have one line."""
        head = ("layers", "scheme", "memory", "MB", "prompts by", "tokens by")
        rows = [head, *(_line(first, last, group) for first, last, group in _alike(self._layers))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, repr(self)[1:-1]])

    @overload
    def __getitem__(self, index: int) -> LayerPlace: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerPlace, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerPlace | tuple[LayerPlace, ...]:
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerPlace]:
        return iter(self._layers)

    @property
    def npu_bytes(self) -> int:
        """Of weights in NPU memory."""
        return sum(each.nbytes for each in self if each.memory == "npu")

    @property
    def host_bytes(self) -> int:
        """Of weights in ordinary memory."""
        return sum(each.nbytes for each in self if each.memory == "host")

    def named(self, name: str) -> LayerPlace:
        """The place of a layer.

        Raises
        ------
        KeyError
            If there is none of this name.
        """
        found = next((each for each in self if each.name == name), None)
        if found is None:
            raise KeyError(f"the model has no layer {name!r}")
        return found

    def content(self) -> list[dict[str, Any]]:
        """What JSON can hold."""
        return [{**asdict(each), "decode": each.decode} for each in self]


def place_layers(
    layers: Sequence[LayerShape], policy: Policy, chip: Chip, room: Room, runtime: RuntimeVersion | None = None
) -> ModelPlacement:
    """Decide where each layer is.

    Parameters
    ----------
    layers : sequence of LayerShape
    policy : Policy
    chip : Chip
        With the constants that time is modelled by.
    room : Room
    runtime : RuntimeVersion, optional
        The chip's own by default.

    Raises
    ------
    ValueError
        If a pattern matches no layer, a core does not exist, or the limit has no room for a single layer.
    npumatmul.errors.NpuMemoryError
        If layers that are asked for do not fit; the message says what would.
    """
    names = [each.name for each in layers]
    check_patterns(policy.schemes, names, "schemes")
    check_cores(policy, chip)
    facts = facts_of(layers, policy, chip, runtime or chip.runtime, room.rows)
    wanted = policy.wanted([each.shape.name for each in facts if each.plan is not None] or names)
    domains = fitted(facts, wanted, room)
    placed = [
        LayerPlace(
            each.shape.name,
            each.shape.k,
            each.shape.n,
            each.shape.scheme,
            "host" if domains.get(each.shape.name) is None else "npu",
            each.nbytes,
            each.where.prefill if each.shape.name in domains else "cpu",
            each.where.crossover if each.shape.name in domains else DECODE_ROWS,
            domains.get(each.shape.name),
        )
        for each in facts
    ]
    workspace = max((each.beside for each in facts if each.shape.name in domains), default=0)
    return ModelPlacement(placed, policy, workspace)


def check_cores(policy: Policy, chip: Chip) -> None:
    """Refuse cores that a chip does not have."""
    cores = policy.cores
    if isinstance(cores, tuple) and cores[-1] >= chip.cores:
        raise ValueError(
            f"Policy: cores has {cores[-1]}; {chip.soc} has {'one core, 0' if chip.cores == 1 else ''}"
            f"{f'cores 0 to {chip.cores - 1}' if chip.cores > 1 else ''}"
        )


# ---- tables ----------------------------------------------------------------------------------------------------------


def _alike(layers: Sequence[LayerPlace]) -> list[tuple[str, str, list[LayerPlace]]]:
    """Runs of blocks whose layers of one kind are in the same place: first and last name, and the layers."""
    groups: dict[tuple[Any, ...], list[LayerPlace]] = {}
    for each in layers:
        groups.setdefault((_kind(each.name), *_where(each)), []).append(each)
    return [(group[0].name, group[-1].name, group) for group in groups.values()]


def _kind(name: str) -> str:
    """What a layer is, whatever the block: ``attn_out``; all experts of a block are one kind."""
    half, found, inside = name.rpartition("blk.")
    return ".".join([half, *(part for part in inside.split(".") if not part.isdigit())]) if found else name


def _where(each: LayerPlace) -> tuple[Any, ...]:
    return each.scheme, each.memory, each.prefill, each.crossover


def _line(first: str, last: str, group: Sequence[LayerPlace]) -> tuple[str, ...]:
    one = group[0]
    name = first if first == last else f"{first} to {last} ({len(group)})"
    tokens = one.decode
    if one.memory == "npu" and one.crossover > 0:
        tokens = f"cpu up to {one.crossover} rows{', measured' if one.measured else ''}"
    by = "numpy" if one.scheme == FLOAT32 else one.prefill
    return (name, one.scheme, one.memory, f"{sum(each.nbytes for each in group) / 1e6:.1f}", by,
            "numpy" if one.scheme == FLOAT32 else tokens)  # fmt: skip
