"""`InferenceSession`: as ONNX Runtime's, with products on the NPU."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime

from npumatmul.host.onnx_bridge import Allocate, connect, failure_of
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, check_way
from npumatmul.onnx.loading import Loaded, load_model, reading_names, session_of
from npumatmul.onnx.nodes import Computed
from npumatmul.onnx.report import Report, nbytes_of, row_of
from npumatmul.onnx.rewriting import NodeFilter, choose, rewrite

__all__ = ["InferenceSession"]

Feeds = Mapping[str, Any]

_numbers = itertools.count(1)
_sessions: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_extended: weakref.WeakSet[Any] = weakref.WeakSet()  # options that have the operators, which they may have once
_extending = threading.Lock()
_RUNS = ("run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")


class _Work:
    """What a session computes, by numbers."""

    def __init__(self) -> None:
        self.computed: dict[int, Computed] = {}

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
    work.computed[number].compute(given, outputs, allocate)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Errors of nodes, where ONNX Runtime has only their text."""
    try:
        yield
    except Exception as error:
        found = failure_of(error)
        if found is None:
            raise
        raise found from error


class InferenceSession:
    """An ONNX model whose products with constant weights are on the NPU; ONNX Runtime runs the rest on the CPU.

    It takes the place of ``onnxruntime.InferenceSession``: `run`, `get_inputs` and all its other methods are there,
    with names, types and errors as ever. Inputs may have any shape that the model allows; none is listed or compiled.

    Parameters
    ----------
    path_or_bytes : str, os.PathLike, bytes or onnx.ModelProto
        The model.
    sess_options : onnxruntime.SessionOptions, optional
        As of ONNX Runtime; operators are registered in it, once for all sessions that it is used for.
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

    @reading_names()
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
        loaded = load_model(path_or_bytes, sess_options)
        chosen, left = choose(loaded, skip_nodes, filter_fn)
        statistics: dict[str, LayerStatistics] = {}
        if calibration is not None:
            statistics = _collect(loaded, chosen, calibration)
        self._work = _Work()
        rewritten = rewrite(loaded.model, chosen, left, way, statistics, self._work.number_of)
        self._rewritten = rewritten
        rows = [row_of(path, rewritten.kinds[path], each, scheme) for path, each in rewritten.computed.items()]
        self.report = Report(tuple(rows), left, nbytes_of(rewritten.computed.values()))
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        library = connect(_compute)
        with _extending:
            if options not in _extended:
                options.register_custom_ops_library(str(library))
                _extended.add(options)
        with _own_errors():  # of nodes whose inputs are constants: they run now
            self._session = session_of(
                Loaded(rewritten.model, loaded.folder),
                options,
                providers,
                provider_options,
                is_ours=sess_options is None,
                **kwargs,
            )

    def __repr__(self) -> str:
        return f"<InferenceSession: {len(self.report)} products on the NPU, {len(self.report.left)} on the CPU>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "_sess":  # that one is for ``onnxruntime.IOBinding(session)``
            raise AttributeError(name)
        found = getattr(self._session, name)
        return _own_errors()(found) if name in _RUNS else found

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
        try:  # not by `_own_errors`, which enters six functions more
            made: list[Any] = self._session.run(output_names, input_feed, run_options)
        except Exception as error:
            found = failure_of(error)
            if found is None:
                raise
            raise found from error
        return made


def _collect(loaded: Loaded, chosen: Sequence[Any], calibration: Iterable[Feeds]) -> dict[str, LayerStatistics]:
    """What comes into products of the outermost graph."""
    wanted = {each.path: each for each in chosen if each.depth == 0 and each.kind == "matrix"}
    if not wanted:
        return {}
    looked = onnx.ModelProto()
    looked.CopyFrom(loaded.model)
    names = sorted({each.node.input[0] for each in wanted.values()})
    have = {each.name for each in looked.graph.output}
    inputs = {each.name for each in looked.graph.input}
    looked.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in have and name not in inputs
    )
    session = session_of(Loaded(looked, loaded.folder))
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
