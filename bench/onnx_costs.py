"""What a node of an ONNX model costs beside its product: ``python bench/onnx_costs.py``.

A chain of equal MatMul and Add: with one node and with many, so that what a run costs and what a node costs can be told
apart. Lower quartiles of runs that take turns in one process, and Python functions entered; the simulator is in the
place of an NPU, so times of products are its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from calls import calls_of
from onnx import TensorProto, helper, numpy_helper

import npumatmul as npu
from npumatmul.onnx import InferenceSession

ROUNDS = 501
MANY = 21
CASES = ((1, 64, "w16a16"), (1, 64, "w8a8"), (1, 576, "w16a16"), (1, 576, "w8a8"))


def chain(nodes: int, size: int) -> Any:
    """A model of so many products with a bias and nothing else."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
    constants = {"w": weight, "b": rng.standard_normal(size).astype(np.float32)}
    made, name = [], "x"
    for i in range(nodes):
        made += [helper.make_node("MatMul", [name, "w"], [f"t{i}"]), helper.make_node("Add", [f"t{i}", "b"], [f"y{i}"])]
        name = f"y{i}"
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["m", size]) for each in ("x", name))
    tensors = [numpy_helper.from_array(array, each) for each, array in constants.items()]
    graph = helper.make_graph(made, "chain", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    """Print the table."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    print(f"onnxruntime {onnxruntime.__version__}, microseconds, lower quartiles of {ROUNDS} runs that take turns\n")
    print("| node | ONNX Runtime | product alone | node | run besides | Python calls: product, node, run |")
    print("|---|---|---|---|---|---|")
    for rows, size, scheme in CASES:
        x = np.random.default_rng(1).standard_normal((rows, size)).astype(np.float32)
        functions: list[Callable[[], object]] = []
        for count in (1, MANY):
            model = chain(count, size)
            functions += [
                partial(InferenceSession(model, options, scheme=scheme).run, None, {"x": x}),
                partial(onnxruntime.InferenceSession(model.SerializeToString(), options).run, None, {"x": x}),
            ]
        session = InferenceSession(chain(1, size), scheme=scheme)
        product = next(iter(session._work.computed.values()))
        weight, bias = product.products[0].weight, product.finish.bias  # type: ignore[attr-defined]
        functions.append(partial(npu.matmul, x, weight, np.empty_like(x), bias=bias))
        times: list[list[float]] = [[] for _ in functions]
        for _ in range(ROUNDS):
            for each, found in zip(functions, times, strict=True):
                start = time.perf_counter()
                each()
                found.append(time.perf_counter() - start)
        one, plain_one, many, plain_many, alone = (1e6 * statistics.quantiles(found)[0] for found in times)
        calls = [calls_of(each) for each in functions]
        node, plain = (many - one) / (MANY - 1), (plain_many - plain_one) / (MANY - 1)
        of_node = (calls[2] - calls[0]) / (MANY - 1)
        print(
            f"| {rows} x {size} x {size}, {scheme} | {plain:.1f} | {alone:.1f} | {node:.1f} | {one - node:.1f} "
            f"| {calls[4]}, {of_node:.0f}, {calls[0] - of_node:.0f} |"
        )


if __name__ == "__main__":
    main()
