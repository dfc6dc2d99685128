"""`InferenceSession`: as ONNX Runtime's, with products on the NPU."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.host.onnx_bridge import Allocate, connect
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, check_way
from npumatmul.onnx.nodes import Computed
from npumatmul.onnx.report import Report, row_of
from npumatmul.onnx.rewriting import NodeFilter, choose, rewrite

__all__ = ["InferenceSession", "load_model"]

Feeds = Mapping[str, Any]

_numbers = itertools.count(1)
_sessions: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class _Work:
    """What a session computes, by numbers, and what went wrong in the thread that runs it."""

    def __init__(self) -> None:
        self.computed: dict[int, Computed] = {}
        self.errors: list[BaseException] = []
        self.lock = threading.Lock()

    def number_of(self, computed: Computed) -> int:
        """A number for what computes a node."""
        number = next(_numbers)
        self.computed[number] = computed
        _sessions[number] = self
        return number


def _compute(number: int, given: list[Any], outputs: int, allocate: Allocate) -> None:
    work = _sessions.get(number)
    if work is None:
        raise RuntimeError("the session that this node belongs to is gone, or belongs to another process")
    try:
        work.computed[number].compute(given, outputs, allocate)
    except BaseException as error:
        with work.lock:
            work.errors.append(error)
        raise


class InferenceSession:
    """An ONNX model whose products with constant weights are on the NPU; ONNX Runtime runs the rest on the CPU.

    It takes the place of ``onnxruntime.InferenceSession``: `run`, `get_inputs` and all its other methods are there,
    with names, types and errors as ever. Inputs may have any shape that the model allows; none is listed or compiled.

    Parameters
    ----------
    path_or_bytes : str, os.PathLike, bytes or onnx.ModelProto
        The model.
    sess_options : onnxruntime.SessionOptions, optional
        As of ONNX Runtime; it is used for this session only, since operators are registered in it.
    providers, provider_options
        As of ONNX Runtime, for what stays; by default its CPU.
    scheme : str
        As for `npumatmul.pack`: ``"w16a16"`` by default; ``"float32"`` computes with numpy, for comparison. Integers of
        models that are quantized already are multiplied exactly, whatever the scheme.
    calibration : iterable of mappings, optional
        Inputs of the model, by name: what comes into products decides how weights are rounded (GPTQ).
    skip_nodes : sequence of str
        Names of nodes that stay, or patterns with ``*``. Nodes in graphs of others have those before their names.
    filter_fn : callable, optional
        Called with (name, operator, K, N) of each node that could go onto the NPU; False leaves it. With it, small
        convolutions are asked about, too.
    device : Device or str, optional
        The current device by default.

    Attributes
    ----------
    report : Report
        What is where, and what stays and why.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is no model.
    ValueError, TypeError
        If there is no such scheme.
    onnxruntime.capi.onnxruntime_pybind11_state.Fail
        As ONNX Runtime's session.

    Examples
    --------
    >>> import numpy as np
    >>> import onnx
    >>> from onnx import helper, numpy_helper
    >>> from npumatmul.onnx import InferenceSession
    >>> weight = numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "w")
    >>> x, y = (helper.make_tensor_value_info(*each, ["n", None]) for each in (("x", 1), ("y", 1)))  # 1: float32
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    >>> session = InferenceSession(model)
    >>> session.run(None, {"x": np.ones((1, 3), np.float32)})
    [array([[1., 1.]], dtype=float32)]
    >>> [(row.name, row.op_type, row.k, row.n) for row in session.report]
    [('product', 'MatMul', 3, 2)]
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        *,
        scheme: str = "w16a16",
        calibration: Iterable[Feeds] | None = None,
        skip_nodes: Sequence[str] = (),
        filter_fn: NodeFilter | None = None,
        device: Any = None,
        **kwargs: Any,
    ) -> None:
        way = Way(scheme, device)
        check_way(way)
        if isinstance(skip_nodes, str):
            raise TypeError("InferenceSession: skip_nodes is a sequence of names, not a single text")
        model = load_model(path_or_bytes)
        chosen, left = choose(model, skip_nodes, filter_fn)
        statistics: dict[str, LayerStatistics] = {}
        if calibration is not None:
            statistics = _collect(model, chosen, calibration)
        self._work = _Work()
        rewritten = rewrite(model, chosen, left, way, statistics, self._work.number_of)
        self._rewritten = rewritten
        rows = [row_of(path, rewritten.kinds[path], each, scheme) for path, each in rewritten.computed.items()]
        self.report = Report(tuple(rows), left)
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        options.register_custom_ops_library(str(connect(_compute)))
        self._session = onnxruntime.InferenceSession(
            _serialized(rewritten.model), options, providers or ["CPUExecutionProvider"], provider_options, **kwargs
        )

    def __repr__(self) -> str:
        return f"<InferenceSession: {len(self.report)} products on the NPU, {len(self.report.left)} on the CPU>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._session, name)

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None) -> list[Any]:
        """Run the model, as ``onnxruntime.InferenceSession.run``.

        Parameters
        ----------
        output_names : sequence of str or None
            Which results; None: all.
        input_feed : mapping of str to ndarray
        run_options : onnxruntime.RunOptions, optional

        Returns
        -------
        list
            Results in their order.

        Raises
        ------
        npumatmul.errors.NpuError
            If a product fails.
        Exception
            As ONNX Runtime, for everything else.
        """
        work = self._work
        try:
            made: list[Any] = self._session.run(output_names, input_feed, run_options)
        except Exception as error:
            with work.lock:
                found = work.errors.pop() if work.errors else None
                work.errors.clear()
            if found is not None:
                raise found from error
            raise
        return made


def load_model(given: Any) -> Any:
    """A model of a file, of bytes, or a copy of one that is loaded.

    Raises
    ------
    OSError
        If the file cannot be read.
    npumatmul.errors.ModelError
        If it is no model.
    """
    if isinstance(given, onnx.ModelProto):
        made = onnx.ModelProto()
        made.CopyFrom(given)
        return made
    if not isinstance(given, bytes | str | os.PathLike):
        raise TypeError(f"InferenceSession: a model is a path, bytes or an onnx.ModelProto, not {type(given).__name__}")
    called = "the bytes" if isinstance(given, bytes) else str(given)
    try:
        model = onnx.load_from_string(given) if isinstance(given, bytes) else onnx.load(given)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"{called}: this is no ONNX model: {shown(str(error))}") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{called}: this is no ONNX model: it has no graph")
    return model


def _serialized(model: Any) -> bytes:
    try:
        made: bytes = model.SerializeToString()
    except ValueError as error:
        raise ModelError(f"what stays on the CPU is larger than the 2 GB that a model can have: {error}") from error
    return made


def _collect(model: Any, chosen: Sequence[Any], calibration: Iterable[Feeds]) -> dict[str, LayerStatistics]:
    """What comes into products of the outermost graph."""
    wanted = {each.path: each for each in chosen if each.depth == 0 and each.node.op_type in ("MatMul", "Gemm")}
    if not wanted:
        return {}
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    names = sorted({each.node.input[0] for each in wanted.values()})
    have = {each.name for each in looked.graph.output}
    inputs = {each.name for each in looked.graph.input}
    looked.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in have and name not in inputs
    )
    session = onnxruntime.InferenceSession(_serialized(looked), providers=["CPUExecutionProvider"])
    found: dict[str, LayerStatistics] = {path: LayerStatistics(each.k) for path, each in wanted.items()}
    count = 0
    for feeds in calibration:
        if not isinstance(feeds, Mapping):
            raise TypeError("InferenceSession: calibration has mappings of input names to arrays")
        count += 1
        outputs = [name for name in names if name not in inputs]
        seen = dict(zip(outputs, session.run(outputs, dict(feeds)) if outputs else [], strict=True))
        for path, each in wanted.items():
            x = seen.get(each.node.input[0])
            x = feeds[each.node.input[0]] if x is None else x
            found[path].add(np.asarray(x, np.float32).reshape(-1, each.k))
    if not count:
        raise ValueError("InferenceSession: calibration is empty")
    return found
