"""Node by node: what the NPU makes beside what ONNX Runtime makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from npumatmul.onnx.loading import Loaded, load_model, reading_names, session_of
from npumatmul.onnx.session import InferenceSession

__all__ = ["NodeError", "compare"]


@dataclass(frozen=True)
class NodeError:
    """The error of a result, that of all nodes before included.

    Attributes
    ----------
    name : str
        Of the node, or of an output of the model.
    op_type : str
        Of the node; ``"output"`` for an output of the model.
    sqnr : float
        Signal to noise in decibels; infinite where both are equal.
    cosine : float
    largest : float
        Largest error as a share of the largest value.
    """

    name: str
    op_type: str
    sqnr: float
    cosine: float
    largest: float


@reading_names()
def compare(model: Any, feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]], **options: Any) -> list[NodeError]:
    """Run a model both ways, and compare the results of its nodes.

    Parameters
    ----------
    model : str, os.PathLike, bytes or onnx.ModelProto
    feeds : mapping of str to ndarray, or sequence of those
        Inputs.
    **options
        `scheme` and so on, as of `InferenceSession`.

    Returns
    -------
    list of NodeError
        In the order of the model, and its outputs at the end. Nodes in graphs of others have no results
        that can be seen, and are not among them.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper, numpy_helper
    >>> from npumatmul.onnx import compare
    >>> weight = numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "w")
    >>> x, y = (helper.make_tensor_value_info(*each, ["n", None]) for each in (("x", 1), ("y", 1)))  # 1: float32
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    >>> [(each.name, each.sqnr) for each in compare(model, {"x": np.ones((1, 3), np.float32)})]
    [('product', inf), ('y', inf)]
    """
    several = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    if options.get("calibration") is not None:
        options["calibration"] = list(options["calibration"])  # it is read twice
    loaded = load_model(model, options.get("sess_options"))
    first = InferenceSession(loaded, **options)
    rewritten = first._rewritten
    outputs = [each.name for each in first.get_outputs()]
    seen = {path: name for path, name in rewritten.made.items() if name not in outputs}
    with_outputs = _with_outputs(loaded, list(seen.values()))
    here, there = InferenceSession(with_outputs, **options), session_of(with_outputs)
    names = [*seen.values(), *outputs]
    sums = {name: np.zeros(6) for name in names}
    for given in several:
        pairs = zip(names, here.run(names, given), there.run(names, dict(given)), strict=True)
        for name, ours, theirs in pairs:
            _add(sums[name], ours, theirs)
    kinds = {name: (path, rewritten.kinds[path]) for path, name in rewritten.made.items()}
    made = [_error(*kinds[name], sums[name]) for name in rewritten.made.values() if name in sums]
    return made + [_error(name, "output", sums[name]) for name in outputs]


def _with_outputs(loaded: Loaded, names: Sequence[str]) -> Loaded:
    model = onnx.ModelProto()
    model.CopyFrom(loaded.model)
    have = {each.name for each in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return Loaded(model, loaded.folder)


def _add(sums: NDArray[np.float64], ours: Any, theirs: Any) -> None:
    if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in (ours, theirs)):
        ours, theirs = np.ones(1), np.asarray([str(ours) == str(theirs)])  # texts, sequences and maps are equal or not
    if ours.shape != theirs.shape:
        raise ValueError(f"the model gives shapes {np.shape(ours)} on the NPU and {np.shape(theirs)} on the CPU")
    if not ours.size:
        return
    y, e = (np.asarray(each, np.float64).ravel() for each in (ours, theirs))
    are_same = ~np.isfinite(e) & ((y == e) | (np.isnan(y) & np.isnan(e)))
    y, e = (np.where(are_same, 0.0, each) for each in (y, e))
    off = y - e
    sums[:4] += (e @ e, off @ off, y @ e, y @ y)
    sums[4:] = np.maximum(sums[4:], (np.abs(off).max(), np.abs(e).max()))


def _error(name: str, op_type: str, sums: NDArray[np.float64]) -> NodeError:
    signal, noise, both, own, off, most = (float(each) for each in sums)
    sqnr = math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
    cosine = 1.0 if noise == 0 else both / math.sqrt(signal * own) if signal and own else 0.0
    return NodeError(name, op_type, sqnr, cosine, off / most if most else float(off > 0))
