"""What of a model is on the NPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from npumatmul.offload.modelled import modelled
from npumatmul.onnx.integers import Integers
from npumatmul.onnx.nodes import Computed

__all__ = ["NodeRow", "Report", "nbytes_of", "row_of"]


@dataclass(frozen=True)
class NodeRow:
    """A node on the NPU.

    Attributes
    ----------
    name, op_type : str
        In the model.
    scheme, where : str
    k, n, times : int
        Shape of its product, and how many it has: groups of a convolution.
    nbytes : int
        Of packed weights, which other nodes may have, too.
    fused : str
        What is done in the pass that stores its result, such as ``"bias, relu"``.
    npu_seconds, cpu_seconds : dict of int to float, or None
        Modelled times of one product with so many rows on the chip, and of the same in float16 on its own CPU; nothing
        of it was measured. None where nothing is known of the chip.
    """

    name: str
    op_type: str
    scheme: str
    where: str
    k: int
    n: int
    times: int
    nbytes: int
    fused: str
    npu_seconds: dict[int, float] | None
    cpu_seconds: dict[int, float] | None


@dataclass(frozen=True)
class Report:
    """What became of a model.

    Attributes
    ----------
    rows : tuple of NodeRow
        Nodes on the NPU.
    left : dict of str to str
        Nodes with products that stay on the CPU, and why.
    nbytes : int
        Of all packed weights; one that several nodes have is there once.
    """

    rows: tuple[NodeRow, ...]
    left: dict[str, str]
    nbytes: int

    def __iter__(self) -> Iterator[NodeRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def nbytes_of(computed: Iterable[Computed]) -> int:
    """Bytes of all weights that nodes have."""
    weights = {id(product.weight): product.weight for each in computed for product in each.products}
    return sum(int(each.nbytes) for each in weights.values())


def row_of(name: str, op_type: str, computed: Computed, scheme: str) -> NodeRow:
    """The row of a node."""
    products = computed.products
    first = products[0]
    weight = getattr(first, "weight", None)
    is_packed = not isinstance(weight, np.ndarray) and hasattr(weight, "device")
    npu, cpu = modelled(first)
    finish = getattr(computed, "finish", None)
    parts = [] if finish is None else [
        "bias" if finish.bias is not None else "", finish.activation or "", "clip" if finish.clip is not None else "",
    ]  # fmt: skip
    return NodeRow(
        name, op_type, "int8" if isinstance(first, Integers) else scheme,
        weight.device.name if weight is not None and is_packed else "cpu", first.shape[0], first.shape[1],
        len(products),
        sum(int(each.weight.nbytes) for each in products), ", ".join(part for part in parts if part), npu, cpu,
    )  # fmt: skip
