"""Constants of a model's graphs: initializers, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["Scope", "attributes"]

#: Operators that weights are found behind.
_FOLDED = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "DequantizeLinear"})


class Scope:
    """Names that are constants in a graph, those of the graphs around it among them.

    Parameters
    ----------
    graph : onnx.GraphProto
    outer : Scope, optional
        Of the graph that this one is in.
    """

    def __init__(self, graph: Any, outer: Scope | None = None) -> None:
        self._outer = outer
        self._own: dict[str, Any] = {each.name: each for each in graph.initializer}
        self._nodes: dict[str, Any] = {}
        # a name that is given, or made here, hides what graphs around have of it
        self._hidden = {each.name for each in graph.input} - set(self._own)
        inputs = {each.name for each in graph.input}
        if outer is None:  # initializers that are inputs, too, can be given anew in each run
            for name in inputs & set(self._own):
                del self._own[name]
                self._hidden.add(name)
        for node in graph.node:
            for name in node.output:
                self._nodes[name] = node
        self._values: dict[str, NDArray[Any] | None] = {}

    def value(self, name: str) -> NDArray[Any] | None:
        """The constant of a name, or None."""
        if not name:
            return None
        if name not in self._values:
            self._values[name] = self._find(name)
        return self._values[name]

    def _find(self, name: str) -> NDArray[Any] | None:
        if name in self._own:
            return np.asarray(numpy_helper.to_array(self._own[name]))
        if name in self._nodes:
            return self._folded(self._nodes[name])
        if name in self._hidden or self._outer is None:
            return None
        return self._outer.value(name)

    def _folded(self, node: Any) -> NDArray[Any] | None:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = attributes(node).get("value")
            return None if value is None else np.asarray(numpy_helper.to_array(value))
        if node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            return None
        given = {name: self.value(name) for name in node.input if name}
        if any(each is None for each in given.values()):
            return None
        return _computed(node, {name: each for name, each in given.items() if each is not None})


def _computed(node: Any, given: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
    """What a node makes of constants; None where that is not known."""
    from onnx.reference import ReferenceEvaluator

    try:
        made: Any = ReferenceEvaluator(node).run(None, dict(given))
    except Exception:  # the model's own opset may mean something else; then nothing is offloaded here
        return None
    return np.asarray(made[0])


def attributes(node: Any) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
