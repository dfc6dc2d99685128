"""What follows a product and can be done in the pass that stores its result: biases, activations, limits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx

from npumatmul.onnx.constants import Scope, attributes
from npumatmul.onnx.nodes import Finish

__all__ = ["Uses", "fuse"]


class Uses:
    """Who reads which names in a graph, and in the graphs of its nodes.

    Parameters
    ----------
    graph : onnx.GraphProto
    """

    def __init__(self, graph: Any) -> None:
        self.readers: dict[str, list[Any]] = {}
        self._elsewhere: Counter[str] = Counter(each.name for each in graph.output)
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for each in node.attribute:
                for inner in [each.g] if each.type == onnx.AttributeProto.GRAPH else each.graphs:
                    self._count(inner)

    def _count(self, graph: Any) -> None:
        self._elsewhere.update(each.name for each in graph.output)
        for node in graph.node:
            self._elsewhere.update(node.input)
            for each in node.attribute:
                for inner in [each.g] if each.type == onnx.AttributeProto.GRAPH else each.graphs:
                    self._count(inner)

    def only(self, name: str, count: int = 1) -> list[Any] | None:
        """The readers of a name, if there are just so many and nobody else."""
        found = self.readers.get(name, [])
        return found if len(found) == count and not self._elsewhere[name] else None


def fuse(name: str, n: int, scope: Scope, uses: Uses, finish: Finish, takes_bias: bool) -> tuple[str, list[Any]]:
    """Find what can be done to a result.

    Parameters
    ----------
    name : str
        Of the result.
    n : int
        Its last dimension.
    scope : Scope
    uses : Uses
    finish : Finish
        It is filled.
    takes_bias : bool
        Whether the last dimension is that of a bias.

    Returns
    -------
    name : str
        Of what is made in the end.
    nodes : list of onnx.NodeProto
        Those that are not needed any more.
    """
    gone: list[Any] = []
    if takes_bias and finish.bias is None:
        found = uses.only(name)
        if found and found[0].op_type == "Add" and _plain(found[0]):
            other = next((each for each in found[0].input if each != name), None)
            bias = None if other is None else scope.value(other)
            if bias is not None and bias.shape[-1:] == (n,) and bias.size == n and bias.dtype.kind == "f":
                finish.bias = bias.reshape(-1).astype(np.float32)
                finish.dims = max(finish.dims, bias.ndim)
                name, gone = found[0].output[0], [found[0]]
    if takes_bias:
        found = uses.only(name)
        if found and _gelu_with_bias(found[0], name, n, scope, finish):
            return found[0].output[0], [*gone, found[0]]
    for look in (_one, _silu, _gelu):
        made = look(name, scope, uses, finish)
        if made is not None:
            name, nodes = made
            gone += nodes
            break
    found = uses.only(name)
    if found and found[0].op_type == "Clip" and _plain(found[0]) and finish.clip is None and finish.activation is None:
        low, high = (_limit(found[0], i, scope) for i in (0, 1))
        if low <= high:  # not so with a limit that is no constant
            finish.clip = (low, high)
            name, gone = found[0].output[0], [*gone, found[0]]
    return name, gone


def _limit(clip: Any, index: int, scope: Scope) -> float:
    """A limit of a Clip: an attribute before version 11 of the operators, then an input; NaN if it is not constant."""
    called, end = (("min", -np.inf), ("max", np.inf))[index]
    name = [*clip.input[1:], "", ""][index]
    if not name:
        return float(attributes(clip).get(called, end))
    value = scope.value(name)
    return float("nan") if value is None or value.size != 1 else float(value.reshape(-1)[0])


def _plain(node: Any) -> bool:
    return node.domain in ("", "ai.onnx")


def _one(name: str, scope: Scope, uses: Uses, finish: Finish) -> tuple[str, list[Any]] | None:
    """Relu or Gelu."""
    found = uses.only(name)
    if not found or len(found[0].output) != 1:
        return None
    node = found[0]
    if node.op_type == "Relu" and _plain(node):
        finish.activation = "relu"
    elif node.op_type == "Gelu" and (_plain(node) or node.domain == "com.microsoft"):
        finish.activation = "gelu_tanh" if attributes(node).get("approximate") == b"tanh" else "gelu"
    elif node.op_type == "QuickGelu":
        return None
    else:
        return None
    return node.output[0], [node]


def _gelu_with_bias(node: Any, name: str, n: int, scope: Scope, finish: Finish) -> bool:
    """BiasGelu or FastGelu, as ONNX Runtime writes optimized models."""
    kind = {"BiasGelu": "gelu", "FastGelu": "gelu_tanh"}.get(node.op_type)
    if kind is None or node.domain != "com.microsoft" or node.input[0] != name:
        return False
    if len(node.input) > 1 and node.input[1]:
        bias = scope.value(node.input[1])
        if finish.bias is not None or bias is None or bias.shape != (n,) or bias.dtype.kind != "f":
            return False
        finish.bias = bias.astype(np.float32)
    finish.activation = kind  # type: ignore[assignment]
    return True


def _silu(name: str, scope: Scope, uses: Uses, finish: Finish) -> tuple[str, list[Any]] | None:
    """``x * sigmoid(x)``."""
    found = uses.only(name, 2)
    if not found:
        return None
    kinds = {node.op_type: node for node in found}
    sigmoid, times = kinds.get("Sigmoid"), kinds.get("Mul")
    if (
        sigmoid is None
        or times is None
        or not (_plain(sigmoid) and _plain(times))
        or set(times.input) != {name, sigmoid.output[0]}
    ):
        return None
    if uses.only(sigmoid.output[0]) != [times]:
        return None
    finish.activation = "silu"
    return times.output[0], [sigmoid, times]


def _gelu(name: str, scope: Scope, uses: Uses, finish: Finish) -> tuple[str, list[Any]] | None:
    """``x * 0.5 * (1 + erf(x / sqrt(2)))``, its factors in any order."""
    found = uses.only(name, 2)
    if not found:
        return None
    for first in found:
        other = found[1] if first is found[0] else found[0]
        dims: list[int] = []
        factor = _constant(first, name, scope, dims)
        wanted = {"Div": np.sqrt(2.0), "Mul": np.sqrt(0.5)}.get(first.op_type)
        if factor is None or wanted is None or abs(factor - wanted) > 1e-3:
            continue
        erf = uses.only(first.output[0])
        if not erf or erf[0].op_type != "Erf":
            continue
        plus = uses.only(erf[0].output[0])
        if not plus or plus[0].op_type != "Add" or _constant(plus[0], erf[0].output[0], scope, dims) != 1.0:
            continue
        chain = [first, erf[0], plus[0]]
        end = plus[0].output[0]
        halved, joined = False, None
        current = other  # the branch of x itself: joined at once, or halved before
        if other.op_type == "Mul" and _constant(other, name, scope, dims) == 0.5:
            halved = True
            chain.append(other)
            after = uses.only(other.output[0])
            if not after:
                continue
            current, joined = after[0], {other.output[0], end}
        else:
            joined = {name, end}
        if current.op_type != "Mul":
            continue
        if set(current.input) != joined:  # the other branch may be halved, too
            half = uses.only(end)
            if halved or not half or half[0].op_type != "Mul" or _constant(half[0], end, scope, dims) != 0.5:
                continue
            chain.append(half[0])
            halved, end = True, half[0].output[0]
            if set(current.input) != {name, end}:
                continue
        if uses.only(end) != [current]:
            continue
        chain.append(current)
        result = current.output[0]
        if not halved:
            half = uses.only(result)
            if not half or half[0].op_type != "Mul" or _constant(half[0], result, scope, dims) != 0.5:
                continue
            chain.append(half[0])
            result = half[0].output[0]
        if not all(_plain(node) for node in chain):
            continue
        finish.activation = "gelu"
        finish.dims = max(finish.dims, *dims)
        return result, chain
    return None


def _constant(node: Any, beside: str, scope: Scope, dims: list[int]) -> float | None:
    """The single constant that a node has beside a name; its number of dimensions is added to a list."""
    others = [each for each in node.input if each != beside]
    if len(others) != 1 or (node.op_type == "Div" and node.input[0] != beside):
        return None
    value = scope.value(others[0])
    if value is None or value.size != 1 or value.dtype.kind != "f":
        return None
    dims.append(value.ndim)
    return float(value.reshape(-1)[0])
