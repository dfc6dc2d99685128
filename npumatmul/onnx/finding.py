"""Nodes of a model whose products can run on the NPU, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from npumatmul.errors import ModelError
from npumatmul.onnx.constants import Scope, attributes

__all__ = ["Candidate", "graphs", "look"]

#: A convolution with fewer values in a window, or fewer outputs, would not fill a tile.
_LEAST = 32
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
KINDS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "MatMulInteger", "QLinearMatMul")


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
    """

    graph: Any
    node: Any
    scope: Scope
    path: str
    k: int = 0
    n: int = 0
    why_not: str | None = None
    depth: int = 0
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


def look(model: Any, folder: str = "") -> list[Candidate]:
    """All nodes with products, in the order of the model; files of weights are in a folder."""
    found: list[Candidate] = []
    paths: set[str] = set()
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)
    for graph, scope, path, depth in graphs(model.graph, opset=opset, folder=folder):
        for i, node in enumerate(graph.node):
            if node.op_type in KINDS and node.domain in ("", "ai.onnx"):
                name = path + (node.name or f"{node.op_type}_{i}")
                while name in paths:  # a node may be called as another would be that has no name
                    name += "'"
                paths.add(name)
                each = Candidate(graph, node, scope, name, depth=depth)
                each.why_not = _why_not(each)
                found.append(each)
    return found


def _why_not(each: Candidate) -> str | None:
    try:
        return _LOOKS[each.node.op_type](each)
    except (OSError, ModelError):
        raise  # of a file beside the model
    except Exception as error:  # anybody may have written the model; ONNX Runtime says what is wrong with it
        return f"it is not as ONNX has it ({type(error).__name__}: {error})"


def _weight(each: Candidate, index: int, dtypes: Any, called: str = "weight") -> Any:
    """A constant input, or why it is none that can be used."""
    node = each.node
    value = each.scope.value(node.input[index]) if len(node.input) > index else None
    if value is None:
        return f"its {called} is not constant"
    if value.dtype not in dtypes:
        return f"its {called} is of {value.dtype}"
    if not value.size:
        return f"its {called} is empty"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return f"its {called} holds an inf or nan"
    return value


def _matmul(each: Candidate) -> str | None:
    weight = _weight(each, 1, _FLOATS, "right operand")
    if isinstance(weight, str):
        return weight
    if weight.ndim != 2:
        return f"its right operand has {weight.ndim} dimensions"
    each.k, each.n = weight.shape
    each.extra.update(weight=weight, same=(id(weight), 0, 1.0))
    return None


def _gemm(each: Candidate) -> str | None:
    given = attributes(each.node)
    weight = _weight(each, 1, _FLOATS)
    if isinstance(weight, str):
        return weight
    if given.get("transA", 0):
        return "its left operand is transposed"
    same = id(weight), given.get("transB", 0), given.get("alpha", 1.0)  # nodes that share it share a packed weight
    weight = weight.T if given.get("transB", 0) else weight
    each.k, each.n = weight.shape
    bias = None
    if len(each.node.input) > 2 and each.node.input[2]:
        bias = each.scope.value(each.node.input[2])
        if bias is None or bias.size not in (1, each.n) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            return "what it adds is not one constant row"
        bias = np.broadcast_to(bias.reshape(-1), (each.n,)).astype(np.float32) * np.float32(given.get("beta", 1.0))
    each.extra.update(weight=weight * weight.dtype.type(given.get("alpha", 1.0)), bias=bias, same=same)
    return None


def _bias(each: Candidate, index: int, n: int) -> Any:
    node = each.node
    if len(node.input) <= index or not node.input[index]:
        return None
    bias = each.scope.value(node.input[index])
    return "its bias is not constant" if bias is None else bias.astype(np.float32).reshape(-1)


def _conv(each: Candidate) -> str | None:
    given, transposed = attributes(each.node), each.node.op_type == "ConvTranspose"
    weight = _weight(each, 1, _FLOATS)
    if isinstance(weight, str):
        return weight
    dims = weight.ndim - 2
    if dims not in ((1,) if transposed else (1, 2)):
        return f"it has {dims} dimensions"
    groups = given.get("group", 1)
    each.k, each.n = weight[0].size, weight.shape[0] // groups
    if transposed:
        each.k, each.n = weight.shape[0] // groups, weight[0].size
    if groups > 1 and (weight.shape[1] == 1 or groups == weight.shape[0]):
        return "it is depthwise"
    if each.k < _LEAST or each.n < _LEAST:
        each.extra["is_small"] = True
    bias = _bias(each, 2, each.n)
    if isinstance(bias, str):
        return bias
    if bias is not None and bias.size != (weight.shape[1] * groups if transposed else weight.shape[0]):
        return f"its bias has {bias.size} values"
    kernel = weight.shape[2:]
    strides, dilations = (list(given.get(name, [1] * dims)) for name in ("strides", "dilations"))
    pads = list(given.get("pads", [0] * 2 * dims))
    mode = given.get("auto_pad", b"NOTSET").decode()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if transposed or any(stride != 1 for stride in strides):
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
    if transposed and given.get("output_shape"):
        return "it has an output_shape"
    each.extra.update(
        weight=weight, bias=bias, groups=groups, strides=strides, dilations=dilations,
        pads=list(zip(pads[:dims], pads[dims:], strict=True)),
        output_padding=list(given.get("output_padding", [0] * dims)),
    )  # fmt: skip
    return None


def _recurrent(each: Candidate) -> str | None:
    node, given = each.node, attributes(each.node)
    names = [*node.input, *[""] * 8]
    if names[4]:
        return "it has lengths of sequences"
    if node.op_type == "LSTM" and names[7]:
        return "it has peepholes"
    if given.get("clip") or given.get("input_forget") or given.get("layout"):
        return "it has clip, input_forget or layout"
    usual = ["sigmoid", "tanh", "tanh"] if node.op_type == "LSTM" else ["sigmoid", "tanh"]
    functions = [name.decode().lower() for name in given.get("activations", [])]
    directions = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[
        given.get("direction", b"forward").decode()
    ]
    if functions and functions != usual * len(directions):
        return f"its activations are {', '.join(functions)}"
    weight, recurrent = _weight(each, 1, _FLOATS[:1]), _weight(each, 2, _FLOATS[:1], "recurrent weight")
    for value in (weight, recurrent):
        if isinstance(value, str):
            return value
    bias = each.scope.value(names[3]) if names[3] else np.zeros((len(directions), 2 * weight.shape[1]), np.float32)
    if bias is None:
        return "its bias is not constant"
    each.k, each.n = weight.shape[2], weight.shape[0] * weight.shape[1]
    each.extra.update(
        weight=weight, recurrent=recurrent, bias=bias, directions=directions,
        is_reset_after=bool(given.get("linear_before_reset", 0)),
    )  # fmt: skip
    return None


def _integers(each: Candidate) -> str | None:
    weight = _weight(each, 1, _BYTES, "right operand")
    if isinstance(weight, str):
        return weight
    if weight.ndim != 2:
        return f"its right operand has {weight.ndim} dimensions"
    zero = None
    if len(each.node.input) > 3 and each.node.input[3]:
        zero = each.scope.value(each.node.input[3])
        if zero is None:
            return "the zero point of its weight is not constant"
    each.k, each.n = weight.shape
    each.extra.update(weight=weight, zero=zero)
    return None


def _quantized(each: Candidate) -> str | None:
    names = ("x_scale", "x_zero", "weight", "weight_scale", "weight_zero", "y_scale", "y_zero")
    for i, name in enumerate(names, 1):
        value = each.scope.value(each.node.input[i])
        if value is None:
            return f"its {name} is not constant"
        each.extra[name] = value
    weight = each.extra["weight"]
    if weight.ndim != 2 or weight.dtype not in _BYTES:
        return f"its right operand is {weight.dtype} with {weight.ndim} dimensions"
    if each.extra["x_scale"].size != 1 or each.extra["y_scale"].size != 1 or each.extra["y_zero"].size != 1:
        return "it has scales for each row"
    if each.extra["x_zero"].dtype != each.extra["y_zero"].dtype:
        return "its input and output are of unlike types"
    each.k, each.n = weight.shape
    return None


_LOOKS = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "MatMulInteger": _integers,
    "QLinearMatMul": _quantized,
}
