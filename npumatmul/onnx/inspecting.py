"""What of a model would run where, before anything is packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from npumatmul.chips import Chip
from npumatmul.chips.timing import CPUS
from npumatmul.chips.types import ElementType
from npumatmul.onnx.candidates import Candidate
from npumatmul.onnx.finding import look
from npumatmul.onnx.loading import load_model, reading_names
from npumatmul.onnx.rewriting import NodeFilter, choose
from npumatmul.planning.product import plan_matmul, plan_weight
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme

__all__ = ["Inspected", "inspect"]


@dataclass(frozen=True)
class Inspected:
    """A node with a product.

    Attributes
    ----------
    name, op_type : str
    k, n : int
        Of its product; 0 where that is not known.
    rows : int or None
        Rows of its product, or positions of a convolution; None where a size is not known.
    macs : int or None
        Multiply-accumulates; None where `rows` is.
    why_not : str or None
        Why it stays on the CPU.
    npu_seconds, cpu_seconds : float or None
        Modelled times on the chip and in float16 on its own CPU; nothing of it was measured.
    """

    name: str
    op_type: str
    k: int
    n: int
    rows: int | None
    macs: int | None
    why_not: str | None
    npu_seconds: float | None
    cpu_seconds: float | None


@reading_names()
def inspect(
    model: Any,
    chip: Chip,
    scheme: str = "w16a16",
    sizes: Mapping[str, int] | None = None,
    filter_fn: NodeFilter | None = None,
) -> list[Inspected]:
    """List the nodes of a model that have products.

    Parameters
    ----------
    model : str, os.PathLike, bytes or onnx.ModelProto
    chip : Chip
        For which times are modelled.
    scheme : str
    sizes : mapping of str to int, optional
        Of dimensions that the model names, such as ``{"batch": 1, "length": 128}``; those that are not named are 1.
    filter_fn : callable, optional
        As of `InferenceSession`.

    Returns
    -------
    list of Inspected
        In the order of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper, numpy_helper
    >>> from npumatmul.chips import chip
    >>> from npumatmul.onnx import inspect
    >>> weight = numpy_helper.from_array(np.eye(64, 32, dtype=np.float32), "w")
    >>> x, y = (helper.make_tensor_value_info(n, 1, ["n", s]) for n, s in (("x", 64), ("y", 32)))  # 1: float32
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    >>> [(each.name, each.rows, each.macs) for each in inspect(model, chip("rk3588"), sizes={"n": 10})]
    [('product', 10, 20480)]
    """
    loaded = load_model(model)
    shapes = _shapes(loaded.model, sizes or {})
    _, left = choose(loaded, (), filter_fn)
    return [_inspected(each, left.get(each.path), shapes, chip, scheme) for each in look(loaded.model, loaded.folder)]


def _inspected(
    each: Candidate, why_not: str | None, shapes: Mapping[str, list[int] | None], chip: Chip, scheme: str
) -> Inspected:
    node = each.node
    rows = None
    if each.k:
        x, y = shapes.get(node.input[0]), shapes.get(node.output[0]) if node.output else None
        if "strides" in each.extra:
            spatial = x if node.op_type == "ConvTranspose" else y
            rows = None if spatial is None else _product(spatial[:1] + spatial[2:])
        elif x is not None:
            rows = _product(x[: -max(1, len(each.extra.get("summed", ())))])
    groups = each.extra.get("groups", 1)
    macs = None if rows is None else rows * each.k * each.n * groups
    npu = cpu = None
    if rows and each.k and why_not is None:
        npu, cpu = _seconds(rows, each.k, each.n, groups, chip, "int8" if each.kind == "integers" else scheme)
    return Inspected(each.path, node.op_type, each.k, each.n, rows, macs, why_not, npu, cpu)


def _seconds(rows: int, k: int, n: int, groups: int, chip: Chip, scheme: str) -> tuple[float | None, float | None]:
    half = ElementType.FLOAT16
    cpu = CPUS.get(chip.soc)
    slow = None if cpu is None else groups * cpu.seconds(rows, k, n, half, half)
    if scheme == "float32":
        return None, slow
    route = route_for(Scheme.parse(scheme), chip, chip.runtime)
    plan = plan_matmul(rows, plan_weight(k, n, route.mm_type, chip, row_images=route.row_images), timings=chip.timings)
    fast = plan.modelled_seconds
    return None if fast is None else groups * fast, slow


def _shapes(model: Any, sizes: Mapping[str, int]) -> dict[str, list[int] | None]:
    """Shapes of names with sizes in the place of names, as far as they can be inferred."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    names = {dim.dim_param for each in model.graph.input for dim in each.type.tensor_type.shape.dim if dim.dim_param}
    for name in sizes:
        if name not in names:
            known = ", ".join(map(repr, sorted(names))) or "none"
            raise ValueError(
                f"sizes: no input of the model has a dimension {name!r}; those that it leaves open: {known}"
            )
    for each in fixed.graph.input:
        for dim in each.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.get(dim.dim_param, 1)
    for each in [*fixed.graph.output, *fixed.graph.value_info]:
        for dim in each.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.ClearField("dim_param")
    del fixed.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:  # then nothing is known
        return {}
    found: dict[str, list[int] | None] = {}

    def take(graph: Any) -> None:
        for each in [*graph.value_info, *graph.input, *graph.output]:
            dims = each.type.tensor_type.shape.dim
            known = each.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
            found.setdefault(each.name, [dim.dim_value for dim in dims] if known else None)
        for node in graph.node:
            for attribute in node.attribute:
                for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                    take(inner)

    take(inferred.graph)
    return found


def _product(sizes: list[int]) -> int:
    made = 1
    for each in sizes:
        made *= each
    return made
