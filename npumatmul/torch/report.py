"""What `offload` put where, and what that is modelled to bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from npumatmul.offload.modelled import modelled
from npumatmul.torch.modules import NpuModule

__all__ = ["OffloadReport", "OffloadRow", "row_of"]


@dataclass(frozen=True)
class OffloadRow:
    """A module on the NPU.

    Attributes
    ----------
    name, kind : str
        In the model, and the class that it had.
    scheme, where : str
    k, n, times : int
        Shape of its product, and how many it has: groups of a convolution, weights of experts.
    nbytes : int
        Of the packed weights.
    npu_seconds, cpu_seconds : dict of int to float, or None
        Modelled times of one product with so many rows on the chip, and of the same in float16 on its own CPU; nothing
        of it was measured. None where nothing is known of the chip.
    """

    name: str
    kind: str
    scheme: str
    where: str
    k: int
    n: int
    times: int
    nbytes: int
    npu_seconds: dict[int, float] | None
    cpu_seconds: dict[int, float] | None


@dataclass(frozen=True)
class OffloadReport:
    """What became of a model.

    Attributes
    ----------
    rows : tuple of OffloadRow
        Modules on the NPU.
    left : dict of str to str
        Modules with products that stay, and why.
    """

    rows: tuple[OffloadRow, ...]
    left: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(row.nbytes for row in self.rows)

    def gain(self, rows: int = 128) -> float | None:
        """How many times faster the products are modelled to be on the NPU than on the chip's CPU in float16.

        Parameters
        ----------
        rows : {1, 128}
            Of each product.
        """
        known = [row for row in self.rows if row.npu_seconds is not None and row.cpu_seconds is not None]
        if not known or len(known) < len(self.rows):
            return None
        npu = sum(row.times * row.npu_seconds[rows] for row in known if row.npu_seconds)
        cpu = sum(row.times * row.cpu_seconds[rows] for row in known if row.cpu_seconds)
        return cpu / npu

    def __iter__(self) -> Iterator[OffloadRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [4])
        lines = [f"{'name':<{width}}  {'kind':<16} {'K x N':>14} {'times':>5}  {'scheme':<10} {'MB':>8}  where"]
        lines += [
            f"{row.name:<{width}}  {row.kind:<16} {f'{row.k} x {row.n}':>14} {row.times:>5}  {row.scheme:<10} "
            f"{row.nbytes / 1e6:>8.2f}  {row.where}"
            for row in self.rows
        ]
        lines += [f"left: {name}: {why}" for name, why in self.left.items()]
        gain = self.gain()
        more = (
            "" if gain is None else f"; products of 128 rows: modelled, not measured, {gain:.1f} times the chip's CPU"
        )
        return "\n".join([*lines, f"{self.nbytes / 1e6:.1f} MB of packed weights{more}"])


def row_of(name: str, kind: str, module: NpuModule) -> OffloadRow:
    """The row of a module."""
    products = module.products()
    k, n = products[0].shape
    npu, cpu = modelled(products[0])
    return OffloadRow(name, kind, module.scheme, module.where, k, n, len(products), module.nbytes, npu, cpu)
