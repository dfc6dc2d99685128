"""From a model to the same with nodes that the NPU computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from npumatmul import nn
from npumatmul.host.onnx_bridge import DOMAIN
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.nn.product import FLOAT32
from npumatmul.offload.products import Way, make_product
from npumatmul.onnx.finding import Candidate, graphs, look
from npumatmul.onnx.fusing import Uses, fuse
from npumatmul.onnx.loading import Loaded
from npumatmul.onnx.nodes import Computed, Convolution, Finish, Product, Quantized, Recurrent, packed_integers

__all__ = ["NodeFilter", "Rewritten", "choose", "rewrite", "types_of"]

NodeFilter = Callable[[str, str, int, int], bool]
"""Called with a node's name, its operator, and K and N of its product; False leaves the node on the CPU."""

_SMALL = "its product of {} x {} would not fill a tile of 32 x 32"


@dataclass
class Rewritten:
    """A model whose products are somebody else's.

    Attributes
    ----------
    model : onnx.ModelProto
    computed : dict of str to Computed
        What the NPU computes, by the path of the node that it was.
    kinds : dict of str to str
        The operators that they were.
    left : dict of str to str
        Nodes with products that stay, and why.
    made : dict of str to str
        Names of results of those in the outermost graph, by path.
    """

    model: Any
    computed: dict[str, Computed]
    kinds: dict[str, str]
    left: dict[str, str]
    made: dict[str, str]


def choose(
    loaded: Loaded, skip_nodes: Sequence[str], filter_fn: NodeFilter | None
) -> tuple[list[Candidate], dict[str, str]]:
    """Nodes that go onto the NPU, and why others stay."""
    chosen, left = [], {}
    types: dict[str, int] | None = None
    for each in look(loaded.model, loaded.folder):
        why = each.why_not
        if why is None and any(fnmatchcase(each.path, pattern) for pattern in skip_nodes):
            why = "skip_nodes names it"
        if why is None and filter_fn is not None and not filter_fn(each.path, each.node.op_type, each.k, each.n):
            why = "filter_fn leaves it out"
        if why is None and filter_fn is None and each.extra.get("is_small"):
            why = _SMALL.format(each.k, each.n)
        if why is None and each.node.op_type == "MatMulInteger":
            types = types_of(loaded.model) if types is None else types
            kind = _integer_type(each, types)
            why = "the type of its input is not known" if kind is None else None
            each.extra["type"] = kind
        if why is None:
            chosen.append(each)
        else:
            left[each.path] = why
    return chosen, left


def types_of(model: Any) -> dict[str, int]:
    """Element types of names, as far as they can be inferred."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a model that cannot be inferred can still be run
        inferred = model
    graph = inferred.graph
    return {each.name: each.type.tensor_type.elem_type for each in [*graph.value_info, *graph.input, *graph.output]}


def _integer_type(each: Candidate, types: Mapping[str, int]) -> int | None:
    found = types.get(each.node.input[0])
    if not found and len(each.node.input) > 2 and each.node.input[2]:
        zero = each.scope.value(each.node.input[2])
        found = types.get(each.node.input[2]) if zero is None else helper.np_dtype_to_tensor_dtype(zero.dtype)
    return found if found in (TensorProto.UINT8, TensorProto.INT8) else None


def rewrite(
    model: Any,
    chosen: Sequence[Candidate],
    left: dict[str, str],
    way: Way,
    statistics: Mapping[str, LayerStatistics],
    number_of: Callable[[Computed], int],
) -> Rewritten:
    """Put nodes onto the NPU; the model is changed, and weights that nobody reads any more are taken out of it."""
    _tell_shapes(model)
    uses = {id(each.graph): Uses(each.graph) for each in chosen}
    result = Rewritten(model, {}, {}, left, {})
    packed: dict[Any, Any] = {}
    for each in chosen:
        finish = Finish(each.extra.get("bias") if each.node.op_type != "LSTM" and each.node.op_type != "GRU" else None)
        name = each.node.output[0]
        gone: list[Any] = []
        if each.node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            is_matrix = each.node.op_type in ("MatMul", "Gemm")
            name, gone = fuse(name, each.n, each.scope, uses[id(each.graph)], finish, is_matrix)
        known = packed.get(each.extra.get("same")) if each.path not in statistics else None
        if known is not None:
            computed: Computed = Product(each.path, known, finish)
        else:
            computed = _MAKERS[each.node.op_type](each, way, finish, statistics.get(each.path))
        if type(computed) is Product and each.path not in statistics:
            packed[each.extra["same"]] = computed.product
        made = _node(each, name, number_of(computed))
        nodes = each.graph.node
        # results are made where the last of the nodes was, or where the node itself was: all of them follow it
        index = next(i for i, node in enumerate(nodes) if node is each.node or node == each.node)
        nodes[index].CopyFrom(made)
        for node in gone:
            nodes.remove(node)
        result.computed[each.path], result.kinds[each.path] = computed, each.extra["op_type"]
        if each.depth == 0:
            result.made[each.path] = name
    if not any(each.domain == DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    _drop_unread(model.graph)
    return result


def _tell_shapes(model: Any) -> None:
    """Write down shapes of results that ONNX Runtime infers through nodes, and cannot through those of others."""
    ours = [graph for graph, *_ in graphs(model.graph)]
    if all(_has_shape(each) for graph in ours for each in graph.output):
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a model that cannot be inferred can still be run
        return
    for mine, (graph, *_) in zip(ours, graphs(inferred.graph), strict=True):
        for into, found in zip(mine.output, graph.output, strict=True):
            if not _has_shape(into) and found.type.WhichOneof("value") == "tensor_type":
                into.type.CopyFrom(found.type)


def _has_shape(value: Any) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _node(each: Candidate, name: str, number: int) -> Any:
    node = each.node
    each.extra["op_type"] = node.op_type
    inputs, outputs = [node.input[0]], [name]
    weight = each.extra["weight"]
    if node.op_type in ("LSTM", "GRU"):
        kind = "Recurrent"
        given = [*node.input, *[""] * 8]
        inputs = [node.input[0], given[5], given[6] if node.op_type == "LSTM" else ""]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(node.output)
    elif node.op_type == "MatMulInteger":
        kind = "ProductUint8" if each.extra["type"] == TensorProto.UINT8 else "ProductInt8"
        inputs = list(node.input[:1]) + ([node.input[2]] if len(node.input) > 2 and node.input[2] else [])
    elif node.op_type == "QLinearMatMul":
        kind = "QuantizedUint8" if each.extra["y_zero"].dtype == np.uint8 else "QuantizedInt8"
    else:
        kind = "Product" if weight.dtype == np.float32 else "ProductHalf"
    return helper.make_node(kind, inputs, outputs, node.name, domain=DOMAIN, number=number)


def _product(each: Candidate, way: Way, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    return Product(each.path, make_product(each.extra["weight"].T, way, statistics, each.path), finish)


def _convolution(each: Candidate, way: Way, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    weight = np.asarray(e["weight"], np.float32)
    dims = weight.ndim - 2
    transposed = each.node.op_type == "ConvTranspose"
    is_even = all(low == high for low, high in e["pads"])
    padding = [low for low, _ in e["pads"]] if is_even else [0] * dims
    options: dict[str, Any] = {
        "stride": e["strides"], "padding": padding, "dilation": e["dilations"], "groups": e["groups"], "bias": False,
        "scheme": way.scheme, "device": way.device,
    }  # fmt: skip
    channels = weight.shape[1] * e["groups"], weight.shape[0]
    if transposed:
        options["output_padding"] = e["output_padding"]
        channels = weight.shape[0], weight.shape[1] * e["groups"]
    make: Any = nn.ConvTranspose1d if transposed else (nn.Conv1d, nn.Conv2d)[dims - 1]
    kernel: Any = tuple(weight.shape[2:])
    if dims == 1:
        kernel = kernel[0]
        options = {name: value[0] if isinstance(value, list) else value for name, value in options.items()}
    layer = make(*channels, kernel, **options)
    pack = None if way.scheme == FLOAT32 else lambda values, path: make_product(values, way, None, each.path)
    layer.load_state_dict({"weight": weight}, pack=pack)
    uneven = None if is_even else tuple((int(low), int(high)) for low, high in e["pads"])
    return Convolution(each.path, layer, None if transposed else uneven, uneven if transposed else None, finish)


def _recurrent(each: Candidate, way: Way, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    weight, recurrent, bias = e["weight"], e["recurrent"], e["bias"]
    half = weight.shape[1]
    hidden = recurrent.shape[2]
    own, other = bias[:, :half].copy(), bias[:, half:]
    if each.node.op_type == "LSTM":
        own += other
    else:  # of a GRU's last gate the recurrent bias may be multiplied by the reset gate
        own[:, : 2 * hidden] += other[:, : 2 * hidden]
        if not e["is_reset_after"]:
            own[:, 2 * hidden :] += other[:, 2 * hidden :]
    product = make_product(weight.reshape(-1, weight.shape[2]), way, None, each.path)
    return Recurrent(
        each.path, each.node.op_type, product, own.reshape(-1).astype(np.float32),
        [np.ascontiguousarray(part.T) for part in recurrent], list(other), e["directions"], hidden, e["is_reset_after"],
    )  # fmt: skip


def _integers(each: Candidate, way: Way, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    return packed_integers(each.path, each.extra["weight"], each.extra["zero"], way.device)


def _quantized(each: Candidate, way: Way, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    integers = packed_integers(each.path, e["weight"], e["weight_zero"], way.device)
    scale = e["x_scale"].astype(np.float64).reshape(-1) * e["weight_scale"].astype(np.float64).reshape(-1)
    return Quantized(each.path, integers, e["x_zero"], scale / e["y_scale"].astype(np.float64).reshape(-1), e["y_zero"])


_MAKERS: dict[str, Callable[[Candidate, Way, Finish, LayerStatistics | None], Computed]] = {
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "MatMulInteger": _integers,
    "QLinearMatMul": _quantized,
}


#: Operators that may have made weights of constants.
_MAKE_WEIGHTS = frozenset(
    {"Constant", "Transpose", "Identity", "Cast", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze"}
)


def _drop_unread(graph: Any) -> None:
    """Take out initializers and constants that nobody reads any more, in the graphs inside first."""
    for inner in _inside(graph):
        _drop_unread(inner)
    read = _names(graph)
    for i in reversed(range(len(graph.node))):  # those that read others come after them
        node = graph.node[i]
        if node.op_type in _MAKE_WEIGHTS and not any(read[name] for name in node.output):
            read.subtract(node.input)
            del graph.node[i]
    inputs = {each.name for each in graph.input}
    for i in reversed(range(len(graph.initializer))):
        name = graph.initializer[i].name
        if not read[name] and name not in inputs:
            del graph.initializer[i]


def _inside(graph: Any) -> list[Any]:
    found = []
    for node in graph.node:
        for each in node.attribute:
            found += [each.g] if each.type == onnx.AttributeProto.GRAPH else list(each.graphs)
    return found


def _names(graph: Any) -> Counter[str]:
    """What a graph and those inside read, and how often."""
    found = Counter(each.name for each in graph.output)
    for node in graph.node:
        found.update(node.input)
    for inner in _inside(graph):
        found += _names(inner)
    return found
