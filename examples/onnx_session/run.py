"""An ONNX model with its products on the NPU: one import is another one, and nothing is converted.

    python examples/onnx_session/run.py                             a small random model, made here
    python examples/onnx_session/run.py MODEL.onnx --size length=128     one of your own

Inputs are random; sizes that the model leaves open are those given, or 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from npumatmul.onnx import InferenceSession

LENGTHS = (1, 7, 64, 200)


def make(path: Path) -> Path:
    """A network over frames of sound: two convolutions, a recurrent layer, two products."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (64, 40, 3), "b1": (64,), "w2": (64, 64, 3), "b2": (64,), "wx": (1, 192, 64), "wh": (1, 192, 64),
        "w3": (64, 128), "b3": (128,), "w4": (128, 35),
    }  # fmt: skip
    weights = {name: rng.standard_normal(shape) * 2 / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    weights["wx"] *= 8  # so that states tell inputs apart
    weights["w3"] /= 8
    weights["w4"] /= 6
    nodes = [
        helper.make_node("Conv", ["frames", "w1", "b1"], ["c1"], "first", pads=[1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1]),
        helper.make_node("Transpose", ["c2"], ["t"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["t", "wx", "wh"], ["", "state"], "recurrent", hidden_size=64),
        helper.make_node("MatMul", ["state", "w3"], ["h"], "wide"),
        helper.make_node("Add", ["h", "b3"], ["hb"]),
        helper.make_node("Relu", ["hb"], ["hr"]),
        helper.make_node("MatMul", ["hr", "w4"], ["words"], "last"),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    frames = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 40, "length"])
    words = helper.make_tensor_value_info("words", TensorProto.FLOAT, [1, "batch", 35])
    graph = helper.make_graph(nodes, "words", [frames], [words], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def inputs(session: Any, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Random ones, as the session says that it takes them."""
    rng = np.random.default_rng(seed)
    made = {}
    for each in session.get_inputs():
        shape = [dim if isinstance(dim, int) else sizes.get(dim or "", 1) for dim in each.shape]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(each.type)
        made[each.name] = rng.integers(0, 2, shape) if kind is None else rng.standard_normal(shape).astype(kind)
    return made


def error(session: Any, alone: Any, feeds: dict[str, np.ndarray]) -> float:
    """Of the first result, as a share of its spread."""
    y, e = (np.asarray(each.run(None, feeds)[0], np.float64) for each in (session, alone))
    return float(np.sqrt(np.mean((y - e) ** 2) / max(np.mean(e**2), 1e-30)))


def main() -> None:
    """Run a model as onnxruntime does, and with its products on the NPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--size", action="append", default=[], help="of a dimension that the model names: length=128")
    options = parser.parse_args()
    sizes = {name: int(number) for name, _, number in (each.partition("=") for each in options.size)}
    with tempfile.TemporaryDirectory() as folder:
        path = str(options.model or make(Path(folder) / "words.onnx"))
        alone = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = InferenceSession(path)  # all that changes in a program

        print("on the NPU:")
        for row in session.report:
            print(f"  {row.name}: {row.op_type}, {row.k} x {row.n}{f', with {row.fused}' if row.fused else ''}")
        for why, count in Counter(session.report.left.values()).items():
            print(f"  {count} not, because {why}")

        print("any size in one session, and how far it is off ONNX Runtime's:")
        named = [dim for each in session.get_inputs() for dim in each.shape if isinstance(dim, str)]
        asked = [sizes] if options.model else [{"length": n} for n in LENGTHS]
        for each in asked:
            shown = ", ".join(f"{name} {each.get(name, 1)}" for name in dict.fromkeys(named)) or "fixed sizes"
            print(f"  {shown}: {error(session, alone, inputs(session, each, 1)):.1e}")

        print("in fewer bits; with inputs like those that will come, weights are rounded by them:")
        several = asked[-1] | {"batch": 32}
        test = inputs(session, several, 1)
        known = [inputs(session, several, seed) for seed in range(2, 14)]  # a model of one's own needs what it will get
        for scheme in ("w8a8", "w4a8"):
            for how in (None,) if options.model else (None, known):
                made = InferenceSession(path, scheme=scheme, calibration=how)
                size = made.report.nbytes / 1024
                called = f"{scheme}{', calibrated' if how else ''}"
                print(f"  {called}: {size:.0f} KiB of weights, off by {error(made, alone, test):.1e}")


if __name__ == "__main__":
    main()
