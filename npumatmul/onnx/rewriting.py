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
from npumatmul.offload.products import Way
from npumatmul.onnx.candidates import Candidate, graphs, input_name
from npumatmul.onnx.finding import look
from npumatmul.onnx.fusing import Uses, fuse
from npumatmul.onnx.integers import IntegerNode, Rounding, Sliding
from npumatmul.onnx.loading import Loaded
from npumatmul.onnx.nodes import Computed, Convolution, Finish, Product, Recurrent
from npumatmul.onnx.packing import Packing

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
        if why is None and each.kind == "integers":
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
    """Element types of names, as far as they can be inferred; 0 where graphs have several by one name."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a model that cannot be inferred can still be run
        inferred = model
    found: dict[str, int] = {}
    for graph, *_ in graphs(inferred.graph):
        for each in [*graph.value_info, *graph.input, *graph.output]:
            kind = each.type.tensor_type.elem_type
            found[each.name] = kind if found.get(each.name, kind) == kind else 0
        for node in graph.node:
            if node.op_type == "DynamicQuantizeLinear":  # the graphs of nodes are not always inferred
                found.setdefault(node.output[0], TensorProto.UINT8)
    return found


def _integer_type(each: Candidate, types: Mapping[str, int]) -> int | None:
    zero = each.extra.get("x_zero")
    found: int | None = None if zero is None else helper.np_dtype_to_tensor_dtype(zero.dtype)
    if not found:
        found = types.get(each.node.input[0])
    if not found and input_name(each, 2):
        zero = each.scope.value(input_name(each, 2))
        found = types.get(input_name(each, 2)) if zero is None else helper.np_dtype_to_tensor_dtype(zero.dtype)
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
    packing = Packing(way)
    for each in chosen:
        finish = Finish(each.extra.get("bias"))
        name = each.node.output[0]
        gone: list[Any] = []
        if each.kind in ("matrix", "convolution"):
            name, gone = fuse(name, each.n, each.scope, uses[id(each.graph)], finish, each.kind == "matrix")
        computed = _MAKERS[each.kind](each, packing, finish, statistics.get(each.path))
        made = _node(each, name, number_of(computed))
        nodes = each.graph.node
        # results are made where the last of the nodes was, or where the node itself was: all of them follow it
        index = next(i for i, node in enumerate(nodes) if node is each.node or node == each.node)
        nodes[index].CopyFrom(made)
        for node in gone:
            nodes.remove(node)
        result.computed[each.path], result.kinds[each.path] = computed, each.op_type
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
    inputs, outputs = [node.input[0]], [name]
    if each.kind == "recurrent":
        kind = "Recurrent"
        inputs += [input_name(each, 5), input_name(each, 6) if each.extra["gates"] == 4 else ""]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = list(node.output)
    elif each.kind == "integers":
        kind = "OfUint8" if each.extra["type"] == TensorProto.UINT8 else "OfInt8"
        if "scale" not in each.extra:
            kind = f"Sums{kind}"
            inputs += [input_name(each, 2)] if input_name(each, 2) else []
        else:
            kind = f"Floats{kind}" if each.extra["y_zero"] is None else f"Rounded{kind}"
    else:
        kind = "ProductHalf" if each.extra["is_half"] else "Product"
    return helper.make_node(kind, inputs, outputs, node.name, domain=DOMAIN, number=number)


def _product(each: Candidate, packing: Packing, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    product = packing.product(e["weight"].T, each.path, statistics)
    return Product(each.path, product, finish, e.get("summed", ()), e.get("made", ()))


def _convolution(each: Candidate, packing: Packing, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    weight = np.asarray(e["weight"], np.float32)
    dims = weight.ndim - 2
    way, transposed = packing.way, each.op_type == "ConvTranspose"
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
    make: Any = ((nn.ConvTranspose1d, nn.ConvTranspose2d) if transposed else (nn.Conv1d, nn.Conv2d))[dims - 1]
    kernel: Any = tuple(weight.shape[2:])
    if dims == 1:
        kernel = kernel[0]
        options = {name: value[0] if isinstance(value, list) else value for name, value in options.items()}
    layer = make(*channels, kernel, **options)
    pack = None if way.scheme == FLOAT32 else lambda values, path: packing.product(values, each.path)
    layer.load_state_dict({"weight": weight}, pack=pack)
    uneven = None if is_even else tuple((int(low), int(high)) for low, high in e["pads"])
    return Convolution(each.path, layer, None if transposed else uneven, uneven if transposed else None, finish)


def _recurrent(each: Candidate, packing: Packing, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    weight, recurrent, bias, gates = e["weight"], e["recurrent"], e["recurrent_bias"], e["gates"]
    half = weight.shape[1]
    hidden = recurrent.shape[2]
    own, other = bias[:, :half].copy(), bias[:, half:]
    if gates != 3:
        own += other
    else:  # of a GRU's last gate the recurrent bias may be multiplied by the reset gate
        own[:, : 2 * hidden] += other[:, : 2 * hidden]
        if not e["is_reset_after"]:
            own[:, 2 * hidden :] += other[:, 2 * hidden :]
    return Recurrent(
        each.path, gates, packing.product(weight.reshape(-1, weight.shape[2]), each.path),
        own.reshape(-1).astype(np.float32), [np.ascontiguousarray(part.T) for part in recurrent], list(other),
        e["directions"], hidden, e["is_reset_after"],
    )  # fmt: skip


def _integers(each: Candidate, packing: Packing, finish: Finish, statistics: LayerStatistics | None) -> Computed:
    e = each.extra
    weight, zero = e["weight"], e["weight_zero"]
    sliding = None
    matrices, zeros = [weight], [zero]
    if "strides" in e:
        sliding = Sliding(weight.shape[2:], e["strides"], e["dilations"], e["pads"], e["groups"])
        channels_last = np.moveaxis(weight, 1, -1).reshape(len(weight), -1).T  # (K, N of all groups)
        matrices = np.split(channels_last, e["groups"], axis=1)
        is_whole = zero is None or zero.size == 1
        zeros = [zero] * e["groups"] if is_whole else np.split(zero.reshape(-1), e["groups"])
    rounding = Rounding(e["scale"], e["y_zero"]) if "scale" in e else None
    weights = [packing.integers(*pair) for pair in zip(matrices, zeros, strict=True)]
    return IntegerNode(each.path, weights, sliding, e.get("x_zero"), e.get("sums_bias"), rounding)


_MAKERS: dict[str, Callable[[Candidate, Packing, Finish, LayerStatistics | None], Computed]] = {
    "matrix": _product,
    "convolution": _convolution,
    "recurrent": _recurrent,
    "integers": _integers,
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
