"""ONNX models against ONNX Runtime, ONNX's own test cases, and real models from packages."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_call_budgets import calls_of

import npumatmul as npu
from npumatmul.chips import chip
from npumatmul.onnx import InferenceSession, compare, inspect

CPU = ["CPUExecutionProvider"]


def everything(name: str, op_type: str, k: int, n: int) -> bool:
    return True


def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> Any:
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return made


def expected_of(model: Any, feeds: dict[str, Any]) -> list[Any]:
    found: list[Any] = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU).run(None, feeds)
    return found


def agree(model: Any, feeds: dict[str, Any], count: int = 1, off: float = 2e-3, **how: Any) -> InferenceSession:
    """Run a model both ways; so many products are on the NPU, and results are as close as they say."""
    session = InferenceSession(model, **{"filter_fn": everything, **how})
    assert len(session.report) == count
    made = session.run(None, feeds)
    for y, e in zip(made, expected_of(model, feeds), strict=True):
        assert (y.shape, y.dtype) == (e.shape, e.dtype)
        if e.size:
            np.testing.assert_allclose(y, e, atol=off * max(1e-3, np.abs(e.astype(np.float64)).max()), rtol=0)
    return session


def randn(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


# ---- ONNX's own test cases, their weights made constants -------------------------------------------------------------


def cases() -> dict[str, Any]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        wanted = {
            "Gemm", "MatMul", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "MatMulInteger", "QLinearMatMul",
            "ConvInteger", "QLinearConv",
        }  # fmt: skip
        # of all at once: modules of cases are imported a single time, and keep the cases of that time
        every = collect_testcases(None)
    found = {}
    for each in every:
        kinds = [node.op_type for node in each.model.graph.node] if each.model is not None else []
        if len(kinds) == 1 and kinds[0] in wanted:
            found[each.name] = each
    kinds = [each.model.graph.node[0].op_type for each in found.values() if each.model is not None]
    assert set(kinds) == wanted
    return found


CASES = cases()
#: What the operators of these cases have, and where they run then.
STAY = {
    "test_gemm_all_attributes": "transposed",
    "test_gemm_transposeA": "transposed",
    "test_matmul_3d": "3 dimensions",
    "test_matmul_4d": "4 dimensions",
    "test_matmul_bcast": "4 dimensions",
    "test_matmul_1d_1d": "1 dimensions",
    "test_matmul_4d_1d": "1 dimensions",
    "test_matmul_1d_3d": "3 dimensions",
    "test_gemm_default_matrix_bias": "one constant row",
    "test_convtranspose_3d": "3 dimensions",
    "test_convtranspose_output_shape": "output_shape",
    "test_convtranspose_kernel_shape": "output_shape",
    "test_convtranspose_autopad_same": "auto_pad",
    "test_conv_with_autopad_same": "auto_pad",
    "test_lstm_with_peepholes": "lengths",
    "test_lstm_batchwise": "layout",
    "test_gru_batchwise": "layout",
    "test_simple_rnn_batchwise": "layout",
    "test_convtranspose_group_2": "depthwise",
    "test_convtranspose_group_2_image_3": "depthwise",
    **{
        f"test_qlinearmatmul_3D_{kind}_{scale}": "3 dimensions"
        for kind in ("int8", "uint8")
        for scale in ("float16", "float32")
    },
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.filterwarnings("ignore")
def test_onnxs_own_cases(name: str) -> None:
    case = CASES[name]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, outputs = case.data_sets[0]
    names = [each.name for each in model.graph.input]
    given_ = {name: np.asarray(each) for name, each in zip(names, inputs, strict=True)}
    node = model.graph.node[0]
    keep = {node.input[0]} | ({node.input[2]} if node.op_type.endswith("Integer") and len(node.input) > 2 else set())
    if node.op_type in ("LSTM", "GRU", "RNN"):
        keep |= set(node.input[5:7])
    for each in list(model.graph.input):
        if each.name not in keep:
            array = np.asarray(given_.pop(each.name))
            model.graph.initializer.append(numpy_helper.from_array(array, each.name))
            model.graph.input.remove(each)
    if any(np.asarray(each).dtype in (np.float64, np.int64, np.uint64, np.int32, np.uint32) for each in [*inputs[:2]]):
        pytest.skip("not of a type that the NPU multiplies")
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
    except Exception as error:  # not all that ONNX has is in ONNX Runtime
        with pytest.raises(type(error)):
            InferenceSession(model, filter_fn=everything)
        return
    session = InferenceSession(model, filter_fn=everything)
    if name in STAY:
        assert STAY[name] in next(iter(session.report.left.values()))
    else:
        assert len(session.report) == 1, session.report.left
    for y, e in zip(session.run(None, given_), outputs, strict=True):
        e = np.asarray(e)
        assert y.shape == e.shape
        if e.dtype.kind in "iu":
            np.testing.assert_array_equal(y, e)
        else:
            np.testing.assert_allclose(y, e, rtol=4e-3, atol=4e-3 * max(1.0, np.abs(e).max()))


# ---- operators, over shapes ------------------------------------------------------------------------------------------


@given(
    lead=st.lists(st.integers(0, 3), max_size=3), k=st.integers(1, 70), n=st.integers(1, 70),
    half=st.booleans(), bias=st.booleans(), activation=st.sampled_from(["", "Relu", "silu", "Gelu", "erf", "Clip"]),
)  # fmt: skip
@settings(max_examples=40)
def test_products_with_what_follows(lead: list[int], k: int, n: int, half: bool, bias: bool, activation: str) -> None:
    dtype, kind = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    nodes, name = [helper.make_node("MatMul", ["x", "w"], ["t0"], "product")], "t0"
    constants: dict[str, Any] = {"w": randn(k, n, dtype=dtype)}
    if bias:
        nodes.append(helper.make_node("Add", ["b", name], ["t1"]))
        constants["b"], name = randn(n, dtype=dtype), "t1"
    if activation in ("Relu", "Gelu"):
        nodes.append(helper.make_node(activation, [name], ["y"]))
    elif activation == "silu":
        nodes += [helper.make_node("Sigmoid", [name], ["s"]), helper.make_node("Mul", ["s", name], ["y"])]
    elif activation == "erf":
        constants.update(r=dtype(np.sqrt(2)), o=dtype(1), h=dtype(0.5))
        nodes += [
            helper.make_node("Div", [name, "r"], ["e0"]), helper.make_node("Erf", ["e0"], ["e1"]),
            helper.make_node("Add", ["e1", "o"], ["e2"]), helper.make_node("Mul", [name, "e2"], ["e3"]),
            helper.make_node("Mul", ["e3", "h"], ["y"]),
        ]  # fmt: skip
    elif activation == "Clip":
        constants.update(low=dtype(-0.5), high=dtype(0.75))
        nodes.append(helper.make_node("Clip", [name, "low", "high"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", [name], ["y"]))
    shape = [f"d{i}" for i in range(len(lead))]
    model = model_of(nodes, [value("x", [*shape, k], kind)], [value("y", None, kind)], **constants)
    x = randn(*lead, k, seed=1, dtype=dtype)
    session = InferenceSession(model, filter_fn=everything)
    (y,), (e,) = session.run(None, {"x": x}), expected_of(model, {"x": x})
    assert (y.shape, y.dtype) == (e.shape, e.dtype)
    sums = (
        np.abs(x.astype(np.float64)) @ np.abs(constants["w"].astype(np.float64)) + 4
    )  # no function is steeper than 1.2
    assert (np.abs(y.astype(np.float64) - e) <= 1.2 * (3 if half else 1) * 2.0**-10 * sums).all()
    fused = next(iter(session.report)).fused
    wanted = {"": "", "Relu": "relu", "silu": "silu", "Gelu": "gelu", "erf": "gelu", "Clip": "clip"}[activation]
    assert fused == ", ".join(part for part in ("bias" if bias else "", wanted) if part)


@given(
    channels=st.sampled_from([(32, 32), (8, 40), (33, 64)]), kernel=st.integers(1, 5), stride=st.integers(1, 3),
    dilation=st.integers(1, 3), pads=st.tuples(st.integers(0, 4), st.integers(0, 4)), length=st.integers(14, 40),
    transposed=st.booleans(), relu=st.booleans(), bias=st.booleans(), batch=st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=50)
def test_convolutions(
    channels: tuple[int, int], kernel: int, stride: int, dilation: int, pads: tuple[int, int], length: int,
    transposed: bool, relu: bool, bias: bool, batch: int,
) -> None:  # fmt: skip
    ins, outs = channels
    weight = randn(ins, outs, kernel) if transposed else randn(outs, ins, kernel)
    op = "ConvTranspose" if transposed else "Conv"
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node(op, inputs, ["t"], strides=[stride], dilations=[dilation], pads=list(pads))
    nodes = [node, helper.make_node("Relu" if relu else "Identity", ["t"], ["y"])]
    constants = {"w": weight, **({"b": randn(outs)} if bias else {})}
    model = model_of(nodes, [value("x", ["b", ins, "t"])], [value("y", None)], **constants)
    session = agree(model, {"x": randn(batch, ins, length)})
    assert next(iter(session.report)).fused == ", ".join(
        p for p in ("bias" if bias else "", "relu" if relu else "") if p
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_convolutions_of_two_dimensions(auto_pad: str) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, group=2)
    model = model_of([node], [value("x", [2, 8, "h", "w2"])], [value("y", None)], w=randn(64, 4, 4, 3))
    agree(model, {"x": randn(2, 8, 9, 11)})


@pytest.mark.parametrize(
    ("equation", "x", "w", "goes"),
    [
        ("bsd,dn->bsn", (2, 5, 64), (64, 40), True),
        ("bsd, nd -> bsn", (2, 5, 64), (40, 64), True),
        ("bsd,dhk->bshk", (2, 5, 64), (64, 4, 16), True),
        ("bsd,hdk->bshk", (2, 5, 64), (4, 64, 16), True),
        ("bshk,hkd->bsd", (2, 5, 4, 16), (4, 16, 64), True),
        ("bshk,dkh->bsd", (2, 5, 4, 16), (64, 16, 4), True),
        ("...d,dn->...n", (2, 5, 64), (64, 40), True),
        ("d,dn->n", (64,), (64, 40), True),
        ("bsd,dhk->bhsk", (2, 5, 64), (64, 4, 16), False),
        ("bds,dn->bsn", (2, 64, 5), (64, 40), False),
        ("bsd,bdn->bsn", (2, 5, 64), (2, 64, 40), False),
        ("bsd,dn->bs", (2, 5, 64), (64, 40), False),
        ("...d,dn->...", (2, 5, 64), (64, 40), False),
    ],
)
def test_sums_of_products(equation: str, x: tuple[int, ...], w: tuple[int, ...], goes: bool) -> None:
    nodes = [helper.make_node("Einsum", ["x", "w"], ["t"], equation=equation), helper.make_node("Relu", ["t"], ["y"])]
    model = model_of(nodes, [value("x", x)], [value("y", None)], w=randn(*w))
    feeds = {"x": randn(*x)}
    session = agree(model, feeds, int(goes))
    assert session.report.left == ({} if goes else {"Einsum_0": f"its equation is {equation}"})
    if goes:
        assert [row.fused for row in session.report] == ["relu"]
        rows = inspect(model, chip("rk3588"))[0].rows
        assert rows == (10 if len(x) > 1 else 1)
        assert len(
            InferenceSession(model, scheme="w8a8", calibration=[{"x": randn(*x, seed=i)} for i in range(9)]).report
        )


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 0], [2, 1, 0, 1]])
@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolutions_of_images(pads: list[int], group: int) -> None:
    how: dict[str, Any] = {"strides": [2, 1], "dilations": [1, 2], "output_padding": [1, 0]}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], pads=pads, group=group, **how)
    model = model_of(
        [node], [value("x", ["b", 36, "h", "w2"])], [value("y", None)], w=randn(36, 8, 4, 3), b=randn(8 * group)
    )
    agree(model, {"x": randn(2, 36, 5, 7)})
    assert [(each.rows, each.k, each.n) for each in inspect(model, chip("rk3588"), sizes={"h": 5, "w2": 7})] == [
        (35, 36 // group, 96)
    ]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("reset", [0, 1])
def test_recurrent_layers(kind: str, direction: str, states: bool, reset: int) -> None:
    if kind != "GRU" and reset:
        return  # they have no such attribute; the other cases cover it
    hidden, features, d, gates = 20, 33, 2 if direction == "bidirectional" else 1, {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    names = ["x", "w", "r", "b", ""]
    inputs = [value("x", ["t", "n", features])]
    if states:
        names += ["h", "c"] if kind == "LSTM" else ["h"]
        inputs += [value(name, [d, "n", hidden]) for name in names[5:]]
    results = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    more: dict[str, Any] = {"linear_before_reset": reset} if kind == "GRU" else {}
    node = helper.make_node(kind, names, results, hidden_size=hidden, direction=direction, **more)
    constants = {"w": randn(d, gates * hidden, features) / 6, "r": randn(d, gates * hidden, hidden) / 5}
    model = model_of(
        [node], inputs, [value(each, None) for each in results], b=randn(d, 2 * gates * hidden), **constants
    )
    for steps, batch in ((7, 3), (1, 1)):
        feeds = {"x": randn(steps, batch, features), **{n: randn(d, batch, hidden) for n in names[5:]}}
        agree(model, feeds)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("weight_kind", [np.int8, np.uint8])
@pytest.mark.parametrize("zeros", ["none", "x", "both", "each"])
def test_integers_are_exact(signed: bool, weight_kind: Any, zeros: str) -> None:
    rng = np.random.default_rng(3)
    kind = np.int8 if signed else np.uint8
    x, w = (
        rng.integers(np.iinfo(k).min, np.iinfo(k).max + 1, s).astype(k)
        for k, s in ((kind, (5, 77)), (weight_kind, (77, 33)))
    )
    names, constants = ["x", "w"], {"w": w}
    if zeros != "none":
        names.append("xz")
        constants["xz"] = kind(rng.integers(3, 100))
    if zeros == "both":
        names.append("wz")
        constants["wz"] = weight_kind(rng.integers(3, 100))
    if zeros == "each":
        names.append("wz")
        constants["wz"] = rng.integers(3, 100, 33).astype(weight_kind)
    onnx_kind = TensorProto.INT8 if signed else TensorProto.UINT8
    node = helper.make_node("MatMulInteger", names, ["y"])
    model = model_of([node], [value("x", ["m", 77], onnx_kind)], [value("y", None, TensorProto.INT32)], **constants)
    (y,) = InferenceSession(model).run(None, {"x": x})
    exact = x.astype(np.int64) - np.int64(constants.get("xz", 0))
    wanted = exact @ (w.astype(np.int64) - np.asarray(constants.get("wz", 0), np.int64))
    np.testing.assert_array_equal(y, wanted)


def test_a_model_that_quantizes_as_it_runs() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    # Without VNNI, ONNX Runtime adds two products in 16 bits, which larger weights saturate.
    w = np.random.default_rng(0).integers(-64, 65, (64, 40)).astype(np.int8)
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=w)
    agree(model, {"x": randn(9, 64)}, off=1e-6, filter_fn=None)


def test_weights_behind_other_nodes_and_names_that_are_hidden() -> None:
    """Transposed and dequantized weights are constants, too; an input of an inner graph is none, whatever its name."""
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["then"], "inside")], "then", [], [value("then", None)]
    )
    other = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["else"], perm=[1, 0])], "else", [], [value("else", None)]
    )
    nodes = [
        helper.make_node("Transpose", ["wt"], ["w"], perm=[1, 0]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["first"], "dequantized"),
        helper.make_node("If", ["c"], ["y"], "either", then_branch=inner, else_branch=other),
    ]
    q = np.random.default_rng(0).integers(-128, 128, (48, 48)).astype(np.int8)
    model = model_of(
        nodes, [value("x", [48, 48]), value("c", [], TensorProto.BOOL)], [value("first", None), value("y", None)],
        wt=randn(48, 48), q=q, s=np.float32(0.01),
    )  # fmt: skip
    x = randn(48, 48, seed=5)
    session = InferenceSession(model)
    for condition in (True, False):
        first, second = session.run(None, {"x": x, "c": np.array(condition)})
        # ONNX Runtime itself rounds x to 8 bits before a weight that is dequantized
        np.testing.assert_allclose(first, x @ (q * np.float32(0.01)), atol=0.03)
        wanted = x @ numpy_helper.to_array(model.graph.initializer[0]).T if condition else x.T
        np.testing.assert_allclose(second, wanted, atol=0.05)
    assert [row.name for row in session.report] == ["dequantized", "either.then_branch/inside"]


def test_results_that_others_read_are_not_fused() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], "product"),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    model = model_of(nodes, [value("x", ["m", 40])], [value("y", None), value("t", None)], w=randn(40, 40))
    session = agree(model, {"x": randn(3, 40)})
    assert next(iter(session.report)).fused == ""


def test_an_initializer_that_can_be_given_is_no_constant() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    model = model_of([node], [value("x", ["m", 40]), value("w", [40, 40])], [value("y", None)], w=randn(40, 40))
    session = agree(model, {"x": randn(3, 40)}, 0)
    assert session.report.left == {"product": "its right operand is not constant"}


# ---- a drop-in -------------------------------------------------------------------------------------------------------


def simple(k: int = 64, n: int = 32) -> Any:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    return model_of([node], [value("x", ["m", k])], [value("y", None)], w=randn(k, n))


def error_of(session: Any, feeds: dict[str, Any]) -> type[Exception]:
    try:
        session.run(None, feeds)
    except Exception as error:
        return type(error)
    raise AssertionError("it went well")


def test_it_is_what_it_replaces(tmp_path: Path) -> None:
    model = simple()
    onnx.save(model, tmp_path / "model.onnx")
    before = model.SerializeToString()
    x = {"x": randn(3, 64)}
    first = InferenceSession(model).run(None, x)[0]
    assert model.SerializeToString() == before
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for given_ in (tmp_path / "model.onnx", str(tmp_path / "model.onnx"), before):
        session = InferenceSession(given_, options if given_ is before else None, providers=CPU)
        np.testing.assert_array_equal(session.run(["y"], x)[0], first)
    assert [each.name for each in session.get_inputs()] == ["x"]
    assert session.get_inputs()[0].shape == ["m", 64]
    assert session.get_providers() == CPU
    assert session.get_modelmeta().graph_name == "graph"
    for bad in ({"x": randn(3, 63)}, {"z": randn(3, 64)}, {"x": randn(3, 64).astype(np.float64)}, {}):
        assert error_of(session, bad) is error_of(onnxruntime.InferenceSession(before, providers=CPU), bad)
    with pytest.raises(Exception, match="nothing"):
        session.run(["nothing"], x)


def test_any_length_without_listing_shapes() -> None:
    session = InferenceSession(simple())
    wanted = expected_of(simple(), {"x": randn(333, 64)})[0]
    for count in (1, 2, 7, 64, 129, 333, 0):
        y = session.run(None, {"x": randn(333, 64)[:count]})[0]
        np.testing.assert_allclose(y, wanted[:count], atol=0.05)
    assert next(iter(session._work.computed.values())).rows == 1 + 2 + 7 + 64 + 129 + 333


def test_errors_of_the_npu_are_its_own() -> None:
    session = InferenceSession(simple(), scheme="w8a8")
    with pytest.raises(npu.errors.NotFiniteError, match="row"):
        session.run(None, {"x": np.full((2, 64), np.nan, np.float32)})
    assert session.run(None, {"x": randn(2, 64)})[0].shape == (2, 32)


def test_threads_share_a_session() -> None:
    session = InferenceSession(simple())
    x = randn(40, 64)
    wanted = session.run(None, {"x": x})[0]
    found: list[bool] = []

    def work(i: int) -> None:
        for _ in range(5):
            found.append(np.array_equal(session.run(None, {"x": x[i : i + 20]})[0], wanted[i : i + 20]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [True] * 40


def test_weights_leave_with_their_session() -> None:
    session = InferenceSession(simple())
    session.run(None, {"x": randn(2, 64)})
    gone = weakref.ref(next(iter(session._work.computed.values())).products[0].weight)
    del session
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("model", "how", "kind", "message"),
    [
        (b"", {}, npu.errors.ModelError, "no ONNX model"),
        (b"nothing at all", {}, npu.errors.ModelError, "no ONNX model"),
        (3, {}, TypeError, "not int"),
        ("/nowhere/model.onnx", {}, FileNotFoundError, "nowhere"),
        (None, {"scheme": "w9a9"}, ValueError, "w9a9"),
        (None, {"scheme": 3}, TypeError, "scheme is a name"),
        (None, {"skip_nodes": "product"}, TypeError, "a sequence of names"),
        (None, {"calibration": []}, ValueError, "calibration is empty"),
        (None, {"calibration": [3]}, TypeError, "mappings"),
    ],
)
def test_mistakes(model: Any, how: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        InferenceSession(simple() if model is None else model, **how)


def test_nodes_that_stay_say_why() -> None:
    session = InferenceSession(simple(8, 8), skip_nodes=["prod*"])
    assert session.report.left == {"product": "skip_nodes names it"}
    session = InferenceSession(
        simple(), filter_fn=lambda name, op, k, n: (name, op, k, n) != ("product", "MatMul", 64, 32)
    )
    assert session.report.left == {"product": "filter_fn leaves it out"}
    node = helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=64)
    model = model_of([node], [value("x", [1, 64, "t"])], [value("y", None)], w=randn(64, 1, 3))
    assert InferenceSession(model).report.left == {"depthwise": "it is depthwise"}


def test_calibration_rounds_weights_better() -> None:
    rng = np.random.default_rng(0)
    mixing = (rng.standard_normal((128, 128)) * np.logspace(-1, 1, 128)).astype(np.float32)
    x = rng.standard_normal((300, 128)).astype(np.float32) @ mixing
    model, test = simple(128, 96), {"x": x[200:]}
    wanted = expected_of(model, test)[0]
    errors = [
        np.square(InferenceSession(model, scheme="w4a8", calibration=how).run(None, test)[0] - wanted).mean()
        for how in (None, [{"x": x[:100]}, {"x": x[100:200]}])
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_what_a_node_and_a_run_cost_beside_the_product(scheme: str) -> None:
    """Python functions entered; those of ONNX Runtime's own session among them."""
    x, found = {"x": randn(1, 64)}, []
    for count in (1, 11):
        names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
        nodes = [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]]) for i in range(count)]
        session = InferenceSession(
            model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=randn(64, 64) / 8), scheme=scheme
        )
        found.append(calls_of(lambda each=session: each.run(None, x)))  # type: ignore[misc]
        weight = next(iter(session._work.computed.values())).products[0].weight
    out = np.empty((1, 64), np.float32)
    product = calls_of(lambda: npu.matmul(x["x"], weight, out))
    node = (found[1] - found[0]) // 10
    assert node <= product + 16
    assert found[0] - node <= 10


def test_calibration_with_too_little_names_the_node() -> None:
    """Rows that hardly differ: what is left of them beside their mean is less than rounding errors of float32."""
    x = np.ones((4, 128), np.float32) + 3e-3 * randn(4, 128)
    with pytest.raises(ValueError, match="layer 'product': what came into it, 4 rows"):
        InferenceSession(simple(128, 96), scheme="w8a8", calibration=[{"x": x}])


# ---- inspecting and comparing ----------------------------------------------------------------------------------------


def test_what_would_run_where() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1], strides=[2]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "v"], ["y"], "product"),
        helper.make_node("MatMul", ["y", "y2"], ["z"], "attention"),
    ]
    inputs = [value("x", ["batch", 32, "length"]), value("y2", ["batch", 48, 9])]
    model = model_of(nodes, inputs, [value("z", None)], w=randn(64, 32, 3), v=randn(64, 48))
    found = {each.name: each for each in inspect(model, chip("rk3588"), sizes={"batch": 2, "length": 100})}
    assert (found["conv"].rows, found["conv"].macs) == (2 * 50, 2 * 50 * 96 * 64)
    assert (found["product"].rows, found["product"].macs) == (2 * 50, 2 * 50 * 64 * 48)
    assert found["attention"].why_not == "its right operand is not constant"
    assert found["product"].npu_seconds is not None
    assert found["product"].npu_seconds > 0


def test_errors_of_nodes() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], "first"),
        helper.make_node("Relu", ["t"], ["u"]),
        helper.make_node("MatMul", ["u", "v"], ["y"], "second"),
    ]
    model = model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=randn(64, 64), v=randn(64, 32))
    feeds = [{"x": randn(m, 64)} for m in (3, 5)]
    fine, coarse = (compare(model, feeds, scheme=scheme) for scheme in ("w16a16", "w8a8"))
    assert [(each.name, each.op_type) for each in fine] == [("first", "MatMul"), ("second", "MatMul"), ("y", "output")]
    for a, b in zip(fine, coarse, strict=True):
        assert a.sqnr > 55 > b.sqnr > 25
        assert a.cosine > 0.99999
        assert 0 < a.largest < b.largest < 0.1
