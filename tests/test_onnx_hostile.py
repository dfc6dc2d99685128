"""ONNX models that look like others, are damaged, or are used in ways that only some people use."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_onnx import CPU, agree, error_of, expected_of, model_of, randn, simple, value

import npumatmul as npu
from npumatmul.host import onnx_bridge
from npumatmul.onnx import InferenceSession, compare
from npumatmul.onnx.nodes import Product

node = helper.make_node


def product_then(*nodes: Any, x: Any = ("m", 64), opset: int = 20, ir: int = 9, **constants: Any) -> Any:
    """A product ``t``, and nodes after it that make ``y``."""
    first = node("MatMul", ["x", "w"], ["t"], "product")
    made = model_of([first, *nodes], [value("x", x)], [value("y", None)], w=randn(64, 40), **constants)
    made.opset_import[0].version, made.ir_version = opset, ir
    return made


def gelu(**shapes: Any) -> dict[str, Any]:
    return {
        name: np.full(shapes.get(name, ()), number, np.float32)
        for name, number in (("root", np.sqrt(2)), ("one", 1), ("half", 0.5))
    }


GELU = [
    node("Div", ["t", "root"], ["e0"]), node("Erf", ["e0"], ["e1"]), node("Add", ["e1", "one"], ["e2"]),
    node("Mul", ["t", "e2"], ["e3"]), node("Mul", ["e3", "half"], ["y"]),
]  # fmt: skip


# ---- what looks as if it could be fused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (product_then(node("Clip", ["t"], ["y"], min=0.0, max=6.0), opset=9, ir=4), "clip"),
        (product_then(node("Clip", ["t"], ["y"], max=1.0), opset=10, ir=5), "clip"),
        (product_then(node("Clip", ["t", "low", "high"], ["y"]), low=np.float32(1), high=np.float32(-1)), ""),
        (product_then(node("Clip", ["t", "low"], ["y"]), low=np.float32(np.nan)), ""),
        (product_then(node("Add", ["t", "b"], ["y"]), b=randn(1, 40)), "bias"),
        (product_then(node("Add", ["t", "b"], ["y"]), b=randn(1, 1, 1, 40)), "bias"),
        (product_then(node("Add", ["t", "b"], ["y"]), b=randn(5, 40)), ""),
        (product_then(node("Add", ["t", "b"], ["y"]), b=np.float32(3)), ""),
        (product_then(node("Add", ["t", "t"], ["y"])), ""),
        (product_then(*GELU, **gelu()), "gelu"),
        (product_then(*GELU, **gelu(root=(1, 1, 1))), "gelu"),
        (product_then(*GELU, **gelu(half=(1, 1, 1, 1))), "gelu"),
        (product_then(*GELU, **{**gelu(), "one": np.float32(2)}), ""),
        (product_then(*GELU, **{**gelu(), "root": np.float32(1.5)}), ""),
        (product_then(node("Sigmoid", ["t"], ["s"]), node("Mul", ["s", "s"], ["y"])), ""),
        (
            product_then(
                node("Sigmoid", ["t"], ["s"]), node("Mul", ["t", "s"], ["u"]), node("Add", ["u", "s"], ["y"])
            ),
            "",
        ),
    ],
)  # fmt: skip
def test_what_follows_means_what_onnx_says(model: Any, fused: str) -> None:
    session = agree(model, {"x": randn(5, 64)}, off=5e-3)
    assert next(iter(session.report)).fused == fused


@pytest.mark.parametrize("model", [product_then(node("Add", ["t", "b"], ["y"]), x=["k"], b=randn(1, 40))])
def test_constants_with_more_dimensions_give_them_to_the_result(model: Any) -> None:
    agree(model, {"x": randn(64)})


def test_constants_that_are_numbers() -> None:
    """Limits as newer exporters write them; a list is an array of one dimension."""
    nodes = [
        node("Constant", [], ["low"], value_float=-0.5), node("Constant", [], ["high"], value_floats=[0.75]),
        node("Constant", [], ["shape"], value_ints=[64, -1]), node("Reshape", ["w0", "shape"], ["w"]),
        node("MatMul", ["x", "w"], ["t"], "product"), node("Reshape", ["high", "one"], ["h"]),
        node("Clip", ["t", "low", "h"], ["y"]),
    ]  # fmt: skip
    inputs = [value("x", ["m", 64])]
    model = model_of(nodes, inputs, [value("y", None)], w0=randn(40, 64), one=np.array([], np.int64))
    session = agree(model, {"x": randn(5, 64)}, off=2e-2)
    assert next(iter(session.report)).fused == "clip"


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu", "FastGelu with a bias"])
@pytest.mark.parametrize("before", [False, True])
def test_activations_as_onnx_runtime_writes_them(op: str, before: bool) -> None:
    """A bias before one with a bias cannot be in the same pass: it is, and the activation stays."""
    has_bias = op != "FastGelu"
    name = op.split()[0]
    nodes = [node("Add", ["t", "b0"], ["s"])] if before else []
    nodes.append(node(name, ["s" if before else "t", *["b1"] * has_bias], ["y"], domain="com.microsoft"))
    model = product_then(*nodes, b0=randn(40), b1=randn(40, seed=1))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    session = agree(model, {"x": randn(5, 64)}, off=5e-3)
    gelu_ = "gelu" if name == "BiasGelu" else "gelu_tanh"
    wanted = ["bias"] if before and has_bias else (["bias"] if before or has_bias else []) + [gelu_]
    assert next(iter(session.report)).fused == ", ".join(wanted)


def test_weights_that_onnx_runtimes_own_operator_dequantizes() -> None:
    q, scale = np.random.default_rng(0).integers(-128, 128, (64, 40)).astype(np.int8), np.float32(0.01)
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"], domain="com.microsoft"), node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], q=q, s=scale)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (y,) = InferenceSession(model).run(None, {"x": randn(5, 64)})
    np.testing.assert_allclose(y, randn(5, 64) @ (q * scale), atol=0.02)


def test_weights_of_four_bits_in_blocks() -> None:
    q, scale = np.random.default_rng(0).integers(-8, 8, (64, 40)).astype(np.int8), np.abs(randn(2, 40)) + 0.1
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32), node("MatMul", ["x", "w"], ["y"], "product")
    ]  # fmt: skip
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], s=scale)
    model.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [64, 40], q.reshape(-1).tolist()))
    model.opset_import[0].version, model.ir_version = 21, 10
    session = InferenceSession(model)
    (y,) = session.run(None, {"x": randn(5, 64)})
    assert len(session.report) == 1
    wanted = randn(5, 64) @ (q * np.repeat(scale, 32, axis=0))
    np.testing.assert_allclose(y, wanted, atol=2e-3 * np.abs(wanted).max())


def test_operators_of_other_domains_only_share_a_name() -> None:
    model = product_then(node("Sigmoid", ["t"], ["s"], domain="mine"), node("Mul", ["t", "s"], ["y"]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(Exception, match="mine"):  # ONNX Runtime has none such
        InferenceSession(model)


# ---- other versions of the format ------------------------------------------------------------------------------------


def test_initializers_of_old_models_are_constants_though_they_are_inputs() -> None:
    model = product_then(node("Relu", ["t"], ["y"]), opset=8, ir=3)
    model.graph.input.append(value("w", [64, 40]))
    session = agree(model, {"x": randn(5, 64)})
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
    assert [each.name for each in session.get_inputs()] == [each.name for each in wanted.get_inputs()] == ["x"]


@pytest.mark.parametrize("opset", [*range(7, 22)])
def test_weights_are_folded_as_their_version_of_the_operators_does(opset: int) -> None:
    """Axes were an attribute once; one that is not looked at would take out all dimensions of 1."""
    has_inputs, axes = opset >= 13, ["axes"] * (opset >= 13)
    how: dict[str, Any] = {} if has_inputs else {"axes": [0]}
    nodes = [
        node("Squeeze", ["v", *axes], ["v1"], **how), node("Unsqueeze", ["v1", *axes], ["v2"], **how),
        node("Reshape", ["v2", "shape"], ["v3"]), node("Transpose", ["v3"], ["v4"], perm=[1, 0]),
        node("Identity", ["v4"], ["v5"]), node("Cast", ["v5"], ["w"], to=TensorProto.FLOAT),
        node("MatMul", ["x", "w"], ["y"]),
    ]  # fmt: skip
    constants = {"v": randn(1, 1, 40), "shape": np.array([0, -1]), **({"axes": np.array([0])} if has_inputs else {})}
    inputs, outputs = [value("x", ["m", 40])], [value("y", None)]
    model = model_of(nodes, inputs, outputs, **constants)
    model.opset_import[0].version = opset
    agree(model, {"x": randn(5, 40)})
    if opset < 10:
        return
    q = np.random.default_rng(0).integers(-128, 128, (64, 40)).astype(np.int8)
    each: dict[str, Any] = {"axis": 1} if has_inputs else {}
    scale, zero = (np.linspace(0.01, 0.02, 40).astype(np.float32), np.arange(40).astype(np.int8))
    constants = {"q": q, "s": scale if has_inputs else scale[0], "z": zero if has_inputs else zero[3]}
    nodes = [node("DequantizeLinear", ["q", "s", "z"], ["w"], **each), node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, [value("x", ["m", 64])], outputs, **constants)
    model.opset_import[0].version = opset
    agree(model, {"x": randn(5, 64)}, off=2e-2)  # ONNX Runtime rounds x to 8 bits before such a weight


def test_products_in_functions_of_the_model() -> None:
    function = helper.make_function(
        "mine", "Layer", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], ["c"], "inside")],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    model = model_of(
        [node("Layer", ["x", "w"], ["y"], domain="mine")], [value("x", ["m", 64])], [value("y", None)], w=randn(64, 40)
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    agree(model, {"x": randn(5, 64)})


def test_shapes_that_nobody_wrote_down() -> None:
    """ONNX Runtime infers them, and Scan needs those of its body; nodes of others tell it nothing."""
    body = helper.make_graph(
        [node("MatMul", ["e", "w"], ["q"], "inside"), node("Add", ["q", "s"], ["s2"]), node("Relu", ["s2"], ["o"])],
        "body", [value("s", None), value("e", None)], [value("s2", None), value("o", None)],
    )  # fmt: skip
    scan = node("Scan", ["z", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    inputs = [value("z", [64]), value("x", ["m", 64])]
    model = model_of([scan], inputs, [value("last", None), value("y", None)], w=randn(64, 64) / 8)
    agree(model, {"x": randn(3, 64), "z": randn(64)})
    plain = onnxruntime.InferenceSession(simple().SerializeToString(), providers=CPU)
    assert InferenceSession(simple()).get_outputs()[0].shape == plain.get_outputs()[0].shape == ["m", 32]


def test_nodes_that_share_a_weight_share_its_memory() -> None:
    """As layers of ALBERT do; another factor, or a transposition, makes another weight."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Gemm", ["b", "w"], ["c"]),
        node("Gemm", ["c", "w"], ["d"], transB=1), node("Gemm", ["d", "w"], ["e"], alpha=0.5),
        node("Relu", ["e"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=randn(64, 64) / 8)
    session = agree(model, {"x": randn(5, 64)}, 5, off=5e-3)
    assert len({id(each.products[0].weight) for each in session._work.computed.values()}) == 3


# ---- damaged and hostile models --------------------------------------------------------------------------------------


def test_weights_behind_long_chains_and_circles() -> None:
    chain = [node("Identity", [f"i{i}" if i else "w0"], [f"i{i + 1}"]) for i in range(400)]
    nodes = [*chain, node("MatMul", ["x", "i400"], ["y"], "product")]
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w0=randn(64, 40))
    agree(model, {"x": randn(5, 64)})
    circle = [node("Transpose", ["b"], ["a"]), node("Transpose", ["a"], ["b"]), node("MatMul", ["x", "a"], ["y"])]
    with pytest.raises(Exception, match="acyclic"):
        InferenceSession(model_of(circle, [value("x", ["m", 64])], [value("y", None)]))


@pytest.mark.parametrize(
    ("op", "weight", "how"),
    [
        ("Gemm", (64,), {}), ("Conv", (40, 64, 3), {"group": 0}), ("Conv", (40, 64, 3), {"strides": [1, 1, 1]}),
        ("Conv", (40, 64, 3), {"strides": [0]}), ("Conv", (40, 64, 3), {"pads": [-1, -1]}),
        ("Conv", (40, 64, 3), {"auto_pad": "WHAT"}), ("Conv", (40, 64, 3), {"kernel_shape": [5]}),
        ("ConvTranspose", (64, 40, 3), {"dilations": [1, 1]}), ("LSTM", (3, 3), {"hidden_size": 3}),
        ("LSTM", (1, 80, 64), {"direction": "sideways"}),
    ],
)  # fmt: skip
def test_what_onnx_runtime_refuses_is_left_to_it(op: str, weight: Any, how: Any) -> None:
    names = ["x", "w", "r"] if op == "LSTM" else ["x", "w"]
    shape = [1, 64, 9] if op.startswith("Conv") else [3, 2, 64] if op == "LSTM" else [9, 64]
    constants = {"w": randn(*weight), **({"r": randn(1, 80, 20)} if op == "LSTM" else {})}
    model = model_of([node(op, names, ["y"], **how)], [value("x", shape)], [value("y", None)], **constants)
    feeds = {"x": randn(*shape)}
    kinds = []
    for make in (InferenceSession, lambda each: onnxruntime.InferenceSession(each.SerializeToString(), providers=CPU)):
        try:
            make(model).run(None, feeds)
        except Exception as error:
            kinds.append(type(error))
    assert len(kinds) == 2
    assert kinds[0] is kinds[1]


@pytest.mark.parametrize("dims", [(1 << 40, 40), (-64, 40), (64, 39)])
def test_weights_of_another_size_than_they_say(dims: Any) -> None:
    model = simple(64, 40)
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        InferenceSession(model)


def test_weights_that_are_not_finite_stay() -> None:
    model = simple()
    weight = randn(64, 32)
    weight[3, 3] = np.inf
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    session, x = InferenceSession(model), {"x": randn(3, 64)}
    np.testing.assert_array_equal(session.run(None, x)[0], expected_of(model, x)[0])
    assert session.report.left == {"product": "its right operand holds an inf or nan"}


@pytest.mark.parametrize(("inputs", "outputs"), [([], ["y"]), (["", "w"], ["y"]), (["x", "w"], []), (["x", "w"], [""])])
def test_products_of_nothing_or_for_nobody(inputs: list[str], outputs: list[str]) -> None:
    nodes = [node("MatMul", inputs, outputs), node("Identity", ["y" if "y" in outputs else "x"], ["z"])]
    model = model_of(nodes, [value("x", ["m", 64])], [value("z", None)], w=randn(64, 40))
    kinds = []
    for make in (InferenceSession, lambda each: onnxruntime.InferenceSession(each.SerializeToString(), providers=CPU)):
        try:
            make(model).run(None, {"x": randn(5, 64)})
        except Exception as error:
            kinds.append(type(error))
    assert len(set(kinds)) <= 1
    assert len(kinds) in (0, 2)


def test_names_that_nodes_share_with_those_that_have_none() -> None:
    """ONNX Runtime forbids equal names, but a node without one is called after its place."""
    nodes = [node("MatMul", ["x", "w"], ["t"], "MatMul_1"), node("MatMul", ["t", "v"], ["y"])]
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=randn(64, 40), v=randn(40, 33))
    feeds = {"x": randn(5, 64)}
    session = agree(model, feeds, 2, calibration=[feeds])
    assert [(row.name, row.k) for row in session.report] == [("MatMul_1", 64), ("MatMul_1'", 40)]
    assert [each.name for each in compare(model, feeds)] == ["MatMul_1", "MatMul_1'", "y"]


def test_bytes_that_were_changed_raise_what_people_can_read() -> None:
    """Whatever a model's bytes are, there is a result, or an error of ONNX Runtime or this package."""
    nodes = [
        node("MatMul", ["x", "w"], ["t"], "product"), node("Add", ["t", "b"], ["u"]),
        node("Clip", ["u", "low", "high"], ["v"]), node("Transpose", ["wt"], ["w2"], perm=[1, 0]),
        node("MatMul", ["v", "w2"], ["z"]), node("Unsqueeze", ["z", "axes"], ["z3"]),
        node("LSTM", ["z3", "lw", "lr"], ["", "h", ""], hidden_size=3), node("Conv", ["z3", "cw"], ["y"], pads=[1, 1]),
    ]  # fmt: skip
    model = model_of(
        nodes, [value("x", ["m", 4])], [value("y", None), value("h", None)], w=randn(4, 5), b=randn(5),
        low=np.float32(-1), high=np.float32(1), wt=randn(6, 5), axes=np.array([0]), lw=randn(1, 12, 6),
        lr=randn(1, 12, 3), cw=randn(2, 1, 3),
    )  # fmt: skip
    good = model.SerializeToString()
    chance = random.Random(0)
    kinds = set()
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 5))):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        if chance.random() < 0.1:
            del bad[chance.randrange(len(bad)) :]
        try:
            InferenceSession(bytes(bad), filter_fn=lambda *_: True)
        except Exception as error:
            kinds.add(type(error).__module__.partition(".")[0])
    assert kinds <= {"onnxruntime", "npumatmul"}


# ---- recurrent layers, outputs that are left out ---------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [["", "h", "c"], ["y", "", "c"], ["", "h"], ["", "", "c"], ["y"]])
@pytest.mark.parametrize("steps", [0, 4])
def test_recurrent_layers_make_only_what_is_asked_for(outputs: list[str], steps: int) -> None:
    made = [value(name, None) for name in outputs if name]
    layer = node("LSTM", ["x", "w", "r"], outputs, hidden_size=20)
    model = model_of([layer], [value("x", ["t", "n", 33])], made, w=randn(1, 80, 33) / 6, r=randn(1, 80, 20) / 5)
    feeds = {"x": randn(steps, 2, 33)}
    if steps:
        agree(model, feeds)
        return
    for y, e in zip(InferenceSession(model).run(None, feeds), expected_of(model, feeds), strict=True):
        assert y.shape == e.shape
        assert not y.any()  # a state that no step changes; ONNX Runtime leaves what was in its memory


def test_high_ranks() -> None:
    agree(_any_rank(), {"x": randn(5, 64).reshape((1,) * 18 + (5, 64))})


def _any_rank() -> Any:
    return model_of([node("MatMul", ["x", "w"], ["y"])], [value("x", None)], [value("y", None)], w=randn(64, 40))


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_sessions_share_options_and_one_callback() -> None:
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    sessions = [InferenceSession(simple(), options) for _ in range(3)]
    x = {"x": randn(3, 64)}
    first, *others = [session.run(None, x)[0] for session in sessions]
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert len(onnx_bridge._kept) == 1


def test_errors_belong_to_the_run_that_they_come_from() -> None:
    session = InferenceSession(simple(), scheme="w8a8")
    bound = onnxruntime.IOBinding(session)
    bound.bind_cpu_input("x", np.full((2, 64), np.nan, np.float32))
    bound.bind_output("y")
    with pytest.raises(npu.errors.NotFiniteError, match="row"):
        session.run_with_iobinding(bound)
    plain = onnxruntime.InferenceSession(simple().SerializeToString(), providers=CPU)
    bad = {"x": randn(3, 63)}
    assert error_of(session, bad) is error_of(plain, bad)
    with pytest.raises(npu.errors.NotFiniteError):
        session.run_with_ort_values(
            None, {"x": onnxruntime.OrtValue.ortvalue_from_numpy(np.full((2, 64), np.inf, np.float32))}
        )
    found: list[tuple[int, str]] = []

    def work(i: int) -> None:
        x = randn(8, 64)
        x[i] = np.nan
        for _ in range(10):
            try:
                session.run(None, {"x": x})
            except npu.errors.NotFiniteError as error:
                found.append((i, str(error)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 60
    assert all(f"row {i} " in text for i, text in found)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), MemoryError("none"), ValueError("\udc80" + "é" * 2000)]
)
def test_whatever_a_node_raises_comes_out(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, given: Any, outputs: int, allocate: Any) -> None:
        arrays = given
        assert arrays
        raise error

    session = InferenceSession(simple())
    monkeypatch.setattr(Product, "compute", fail)
    with pytest.raises(type(error)) as caught:
        session.run(None, {"x": randn(2, 64)})
    assert caught.value is error
    frame = error.__traceback__
    while frame is not None:  # arrays in its frames would be memory that ONNX Runtime has taken back
        assert frame.tb_frame.f_code.co_name != "fail" or "arrays" not in frame.tb_frame.f_locals
        frame = frame.tb_next


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_ctypes_swallows_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def fail(*_: Any) -> None:
        raise Unspeakable

    session = InferenceSession(simple())
    monkeypatch.setattr(Product, "compute", fail)
    with pytest.raises(Exception, match="a node failed"):
        session.run(None, {"x": randn(2, 64)})


def test_comparing_what_is_no_number_and_what_is_not_finite() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["t"], "product"), node("Log", ["t"], ["y"]),
        node("SequenceConstruct", ["t"], ["s"]), node("SequenceLength", ["s"], ["length"]),
    ]  # fmt: skip
    outputs = [value("y", None), value("length", [], TensorProto.INT64)]
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    outputs.append(helper.make_value_info("s", helper.make_sequence_type_proto(tensor)))
    x = np.abs(randn(3, 64))
    model = model_of(nodes, [value("x", ["m", 64])], outputs, w=np.diag(np.full(64, -1.0, np.float32)))
    found = {each.name: each for each in compare(model, {"x": x}, scheme="float32", calibration=iter([{"x": x}]))}
    assert (found["y"].largest, found["length"].largest, found["s"].largest) == (0, 0, 0)
    assert expected_of(model, {"x": x})[0].shape == (3, 64)
