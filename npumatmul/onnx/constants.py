"""Constants of a model's graphs: initializers, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from npumatmul.errors import ModelError

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
    opset : int
        Version of ONNX's operators in the model.
    folder : str
        Where files of weights are that the model names.
    """

    def __init__(self, graph: Any, outer: Scope | None = None, opset: int = 0, folder: str = "") -> None:
        self._outer = outer
        self._opset: int = opset if outer is None else outer._opset
        self._folder: str = folder if outer is None else outer._folder
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
        waiting = [name]
        while waiting:  # no recursion: chains are as long as a model has them
            top = waiting[-1]
            if top in self._values:
                waiting.pop()
                continue
            node = None if top in self._own else self._nodes.get(top)
            needs = (
                [] if node is None or not _is_folded(node) else [*dict.fromkeys(each for each in node.input if each)]
            )
            needs = [each for each in needs if each not in self._values]
            if needs and top in waiting[:-1]:  # it needs itself, and that is no graph
                self._values[top] = None
            elif needs:
                waiting += needs
            else:
                self._values[top] = self._find(top)
        return self._values[name]

    def _find(self, name: str) -> NDArray[Any] | None:
        if name in self._own:
            return _array(self._own[name], self._folder)
        if name in self._nodes:
            return self._folded(self._nodes[name])
        if name in self._hidden or self._outer is None:
            return None
        return self._outer.value(name)

    def _folded(self, node: Any) -> NDArray[Any] | None:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            return self._constant(attributes(node))
        if not _is_folded(node):
            return None
        given = {name: self._values[name] for name in node.input if name}
        if any(each is None for each in given.values()):
            return None
        return _computed(node, {name: each for name, each in given.items() if each is not None}, self._opset)

    def _constant(self, given: Mapping[str, Any]) -> NDArray[Any] | None:
        """The value of a Constant, which has one attribute of several."""
        if "value" in given:
            return _array(given["value"], self._folder)
        for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
            value = given.get(name, given.get(f"{name}s"))
            if value is not None:
                return np.asarray(value, dtype)
        return None


def _is_folded(node: Any) -> bool:
    is_own = node.domain in ("", "ai.onnx") or (node.domain, node.op_type) == ("com.microsoft", "DequantizeLinear")
    return is_own and node.op_type in _FOLDED and len(node.output) == 1


def _array(tensor: Any, folder: str) -> NDArray[Any] | None:
    """Values of a constant; None if it has others than it says, which ONNX Runtime complains about."""
    try:
        made = np.asarray(numpy_helper.to_array(tensor, folder))
    except OSError:
        raise  # of a file beside the model
    except Exception as error:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # outside of its folder, or behind a link
            raise ModelError(f"the values of {tensor.name!r} are in a file that is not read: {error}") from error
        return None
    return made if made.shape == tuple(tensor.dims) else None


def _computed(node: Any, given: Mapping[str, NDArray[Any]], opset: int) -> NDArray[Any] | None:
    """What a node makes of constants, as its version of the operator does; None where that is not known."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "DequantizeLinear":  # the reference has it from 19 on, with the meaning that it had before
        opset = max(opset, 21 if node.domain else 19)
        node = _own(node)
    inputs, outputs = ([onnx.ValueInfoProto(name=each) for each in names] for names in (given, node.output))
    try:
        graph = onnx.GraphProto(name="constant", node=[node], input=inputs, output=outputs)
        made: Any = ReferenceEvaluator(graph, opsets={"": opset}).run(None, dict(given))
    except Exception:  # then nothing is offloaded here
        return None
    return np.asarray(made[0])


def _own(node: Any) -> Any:
    """The same node of ONNX: what ONNX Runtime calls so of its own was there before ONNX had these types."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.domain = ""
    return made


def attributes(node: Any) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
