"""Nodes with products: what is known of one, and how constants and windows of nodes are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from npumatmul.onnx.constants import Scope, attributes

__all__ = ["LEAST", "OWN", "Candidate", "constant", "geometry", "graphs", "input_name"]

#: A convolution with fewer values in a window, or fewer outputs, would not fill a tile.
LEAST = 32
#: What ONNX calls its own domain.
OWN = ("", "ai.onnx")


@dataclass
class Candidate:
    """A node with a product.

    Attributes
    ----------
    graph : onnx.GraphProto
        That it is in.
    node : onnx.NodeProto
    scope : Scope
    path : str
        Name, behind those of the nodes whose graphs it is in.
    k, n : int
        Of its product; 0 where that is not known.
    why_not : str or None
        Why it stays on the CPU.
    depth : int
        How many graphs are around its own.
    kind : str
        What computes it: ``"matrix"``, ``"convolution"``, ``"recurrent"`` or ``"integers"``.
    op_type : str
        Operator of the node.
    extra : dict
        What was read of the node, as its kind needs it.
    """

    graph: Any
    node: Any
    scope: Scope
    path: str
    k: int = 0
    n: int = 0
    why_not: str | None = None
    depth: int = 0
    kind: str = ""
    op_type: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def graphs(
    graph: Any, outer: Scope | None = None, path: str = "", depth: int = 0, opset: int = 0, folder: str = ""
) -> Iterator[tuple[Any, Scope, str, int]]:
    """A graph, and those in its nodes."""
    scope = Scope(graph, outer, opset, folder)
    yield graph, scope, path, depth
    for i, node in enumerate(graph.node):
        for each in node.attribute:
            inside = [each.g] if each.type == onnx.AttributeProto.GRAPH else each.graphs
            for inner in inside:
                yield from graphs(inner, scope, f"{path}{node.name or f'{node.op_type}_{i}'}.{each.name}/", depth + 1)


def input_name(each: Candidate, index: int) -> str:
    """Of an input; empty if it was left out."""
    names: Sequence[str] = each.node.input
    return names[index] if len(names) > index else ""


def constant(each: Candidate, index: int, dtypes: Sequence[Any], called: str = "weight") -> Any:
    """A constant input, or why it is none that can be used."""
    value = each.scope.value(input_name(each, index))
    if value is None:
        return f"its {called} is not constant"
    if value.dtype not in dtypes:
        return f"its {called} is of {value.dtype}"
    if not value.size:
        return f"its {called} is empty"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return f"its {called} holds an inf or nan"
    return value


def geometry(each: Candidate, weight: Any, most: int, is_transposed: bool = False) -> str | None:
    """Read what a convolution slides over, and K and N of its product; or why it stays."""
    given, dims = attributes(each.node), weight.ndim - 2
    if not 1 <= dims <= most:
        return f"it has {dims} dimensions"
    groups = given.get("group", 1)
    each.k, each.n = weight[0].size, weight.shape[0] // groups
    if is_transposed:
        each.k, each.n = weight.shape[0] // groups, weight[0].size
    if groups > 1 and (weight.shape[1] == 1 or groups == weight.shape[0]):
        return "it is depthwise"
    if each.k < LEAST or each.n < LEAST:
        each.extra["is_small"] = True
    kernel = weight.shape[2:]
    strides, dilations = (list(given.get(name, [1] * dims)) for name in ("strides", "dilations"))
    pads = list(given.get("pads", [0] * 2 * dims))
    mode = given.get("auto_pad", b"NOTSET").decode()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if is_transposed or any(stride != 1 for stride in strides):
            return f"it has auto_pad {mode} with strides"
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        low = [r // 2 if mode == "SAME_UPPER" else r - r // 2 for r in reach]
        pads = [*low, *(r - each_low for r, each_low in zip(reach, low, strict=True))]
    elif mode == "VALID":
        pads = [0] * 2 * dims
    elif mode != "NOTSET":
        return f"its auto_pad is {mode}"
    if list(given.get("kernel_shape", kernel)) != list(kernel):
        return "its kernel_shape is not that of its weight"
    if not (len(strides) == len(dilations) == len(pads) / 2 == dims and min(strides + dilations) > 0 <= min(pads)):
        return "its strides, dilations or pads are not those of its dimensions"
    if is_transposed and given.get("output_shape"):
        return "it has an output_shape"
    each.extra.update(
        groups=groups, strides=strides, dilations=dilations, pads=list(zip(pads[:dims], pads[dims:], strict=True)),
        output_padding=list(given.get("output_padding", [0] * dims)),
    )  # fmt: skip
    return None
