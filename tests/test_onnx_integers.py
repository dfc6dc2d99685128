"""ONNX models that are quantized already: exact sums, ONNX Runtime's rounding, and nodes that stay by name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from test_onnx import CPU, agree, everything, expected_of, model_of, randn, value

from npumatmul.chips import chip
from npumatmul.onnx import InferenceSession, inspect
from npumatmul.onnx.finding import _LOOKS, _STAY

MICROSOFT = "com.microsoft"
KINDS = {np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8, np.int32: TensorProto.INT32}
node = helper.make_node


def integers(kind: Any, *shape: int, seed: int = 0, most: int | None = None) -> Any:
    """Of all values of a type, or so far from its middle."""
    limits = np.iinfo(kind)
    low, high = int(limits.min), int(limits.max)
    if most is not None:
        low, high = max(low, -most), min(high, most)
    return np.random.default_rng(seed + sum(shape)).integers(low, high + 1, shape).astype(kind)


def of_microsoft(model: Any) -> Any:
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def rounded(sums: Any, scale: Any, zero: Any) -> Any:
    """As ONNX defines it, in float32 as ONNX Runtime does it."""
    limits = np.iinfo(zero.dtype)
    made = np.rint(sums.astype(np.float32) * np.asarray(scale, np.float32)) + np.float32(zero)
    return np.clip(made, limits.min, limits.max).astype(zero.dtype)


def channels(values: Any, dims: int) -> Any:
    """Something for each channel, to be broadcast over windows."""
    return np.asarray(values).reshape(-1, *(1,) * dims)


@given(
    dims=st.integers(1, 3), groups=st.sampled_from([1, 2]), stride=st.integers(1, 2), dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)), signed=st.booleans(), weight_signed=st.booleans(),
    zeros=st.booleans(), how=st.sampled_from(["integer", "qlinear", "qlinear, each channel"]), bias=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_convolutions_of_integers(
    dims: int, groups: int, stride: int, dilation: int, pads: tuple[int, int], signed: bool, weight_signed: bool,
    zeros: bool, how: str, bias: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    kind, weight_kind = (np.int8 if each else np.uint8 for each in (signed, weight_signed))
    kernel, n = (3, 2, 2)[:dims], 6 * groups
    x, w = integers(kind, 2, 4 * groups, *(7, 6, 5)[:dims], seed=seed), integers(weight_kind, n, 4, *kernel, seed=seed)
    x_zero, w_zero = (k(rng.integers(3, 100)) if zeros else k(0) for k in (kind, weight_kind))
    window: dict[str, Any] = {
        "strides": [stride] * dims, "dilations": [dilation] * dims, "pads": [pads[0]] * dims + [pads[1]] * dims,
        "group": groups,
    }  # fmt: skip
    exact = [torch.from_numpy(each.astype(np.float64)) for each in (x - np.int64(x_zero), w - np.int64(w_zero))]
    padded = torch.nn.functional.pad(exact[0], (*pads,) * dims)
    convolve: Any = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[dims - 1]
    sums = convolve(padded, exact[1], stride=stride, dilation=dilation, groups=groups).numpy().astype(np.int64)
    constants: dict[str, Any] = {"w": w, "xz": x_zero, "wz": w_zero}
    if how == "integer":
        nodes, wanted = [node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], **window)], sums.astype(np.int32)
    else:
        scale = rng.uniform(1e-3, 1e-2, n if "each" in how else ()).astype(np.float32)
        y_zero = kind(rng.integers(3, 100))
        if "each" in how:
            constants["wz"] = np.full(n, w_zero, weight_kind)
        constants |= {"xs": np.float32(0.02), "ws": scale, "ys": np.float32(0.5), "yz": y_zero}
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        if bias:
            constants["b"] = rng.integers(-5000, 5000, n).astype(np.int32)
            sums, names = sums + channels(constants["b"], dims), [*names, "b"]
        factor = constants["xs"] * scale / constants["ys"]
        wanted = rounded(sums, channels(factor, dims), y_zero)
        nodes = [node("QLinearConv", names, ["y"], **window)]
    result = KINDS[wanted.dtype.type]
    model = model_of(nodes, [value("x", None, KINDS[kind])], [value("y", None, result)], **constants)
    session = InferenceSession(model, filter_fn=everything)
    (y,) = session.run(None, {"x": x})
    assert [row.scheme for row in session.report] == ["int8"], session.report.left
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("op", ["QLinearMatMul", "QGemm", "QGemm, floats", "QGemm, transposed"])
def test_products_are_rounded_as_by_onnx_runtime(op: str, columns: bool, kind: Any) -> None:
    """Weights of 7 bits: some processors saturate sums of two products of more, in ONNX Runtime."""
    rng = np.random.default_rng(5)
    m, k, n = 200, 96, 48
    x, w = integers(kind, m, k), integers(np.int8, k, n, most=63)
    w_zero = rng.integers(-3, 4, n).astype(np.int8) if columns and "QGemm" in op else np.int8(0)
    if columns and op == "QLinearMatMul":
        w_zero = np.zeros(n, np.int8)
    scale = rng.uniform(1e-3, 2e-3, n).astype(np.float32) if columns else np.float32(0.0013)
    constants: dict[str, Any] = {
        "w": w.T.copy() if op.endswith("transposed") else w, "xs": np.float32(0.031), "xz": kind(7), "ws": scale,
        "wz": w_zero, "ys": np.float32(0.027), "yz": kind(11),
    }  # fmt: skip
    sums = (x - np.int64(7)) @ (w - np.int64(w_zero))
    if op == "QLinearMatMul":
        made = node(op, ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
        factor = constants["xs"] * scale / constants["ys"]
    else:
        constants["c"] = rng.integers(-3000, 3000, n).astype(np.int32)
        sums = sums + constants["c"]
        ends = [] if op.endswith("floats") else ["ys", "yz"]
        how: dict[str, Any] = {"transB": 1} if op.endswith("transposed") else {}
        made = node("QGemm", ["x", "xs", "xz", "w", "ws", "wz", "c", *ends], ["y"], domain=MICROSOFT, alpha=1.5, **how)
        factor = np.float32(1.5) * constants["xs"] * scale
        factor = factor / constants["ys"] if ends else factor
    floats = op.endswith("floats")
    outputs = [value("y", None, TensorProto.FLOAT if floats else KINDS[kind])]
    model = of_microsoft(model_of([made], [value("x", ["m", k], KINDS[kind])], outputs, **constants))
    session = InferenceSession(model)
    (y,) = session.run(None, {"x": x})
    assert [(row.op_type, row.scheme) for row in session.report] == [(made.op_type, "int8")]
    wanted = sums.astype(np.float32) * factor if floats else rounded(sums, factor, kind(11))
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(y, expected_of(model, {"x": x})[0])
    assert [row.macs for row in inspect(model, chip("rk3588"), sizes={"m": 200})] == [m * k * n]


def test_zero_points_that_are_results_pad_windows() -> None:
    """As DynamicQuantizeLinear makes them; what stands around the values is zero, not the integer 0."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("ConvInteger", ["q", "w", "z"], ["i"], pads=[2, 1, 1, 2]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, [value("x", ["b", 8, "h", "w2"])], [value("y", None)], w=integers(np.int8, 40, 8, 3, 3))
    x = randn(2, 8, 9, 7) + 3
    (y,) = InferenceSession(model).run(None, {"x": x})
    scale = np.float32((x.max() - min(0, x.min())) / np.float32(255))
    zero = np.rint(np.clip(-min(np.float32(0), x.min()) / scale, 0, 255))
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    padded = np.pad(q - zero, ((0, 0), (0, 0), (2, 1), (1, 2)))
    weight = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64))
    sums = torch.nn.functional.conv2d(torch.from_numpy(padded.astype(np.float64)), weight).numpy()
    np.testing.assert_array_equal(y, sums.astype(np.float32) * scale)


@pytest.mark.parametrize("shape", [(1, 8, 1, 7), (1, 9, 9, 7), (1, 8, 9)])
def test_inputs_that_no_window_fits_into(shape: tuple[int, ...]) -> None:
    model = model_of(
        [node("ConvInteger", ["x", "w"], ["y"])], [value("x", None, TensorProto.UINT8)],
        [value("y", None, TensorProto.INT32)], w=integers(np.int8, 40, 8, 3, 3),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"ConvInteger_0.*its input"):
        InferenceSession(model).run(None, {"x": integers(np.uint8, *shape)})


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("columns", [False, True])
def test_a_recurrent_layer_with_weights_of_8_bits(direction: str, columns: bool) -> None:
    """As the layer of the weights that the codes stand for; ONNX Runtime rounds what comes in, too, and is near."""
    hidden, features, d = 16, 40, 2 if direction == "bidirectional" else 1
    # Without VNNI, ONNX Runtime adds two products in 16 bits, which larger weights saturate.
    codes = {
        "w": integers(np.int8, d, features, 4 * hidden, most=64),
        "r": integers(np.int8, d, hidden, 4 * hidden, most=64),
    }
    shape = (d, 4 * hidden) if columns else (d,)
    rng = np.random.default_rng(1)
    scales = {f"{name}s": rng.uniform(1e-3, 4e-3, shape).astype(np.float32) for name in "wr"}
    zeros = {f"{name}z": np.zeros(shape, np.int8) for name in "wr"}
    bias = randn(d, 8 * hidden)
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    layer = node("DynamicQuantizeLSTM", names, ["y", "h"], domain=MICROSOFT, hidden_size=hidden, direction=direction)
    outputs = [value("y", None), value("h", None)]
    model = of_microsoft(
        model_of([layer], [value("x", ["t", "n", features])], outputs, b=bias, **codes, **scales, **zeros)
    )
    floats = {
        name: (codes[name].astype(np.float32) * scales[f"{name}s"].reshape(d, 1, -1)).transpose(0, 2, 1)
        for name in "wr"
    }
    plain = node("LSTM", ["x", "w", "r", "b"], ["y", "h"], hidden_size=hidden, direction=direction)
    same = model_of([plain], [value("x", ["t", "n", features])], outputs, b=bias, **floats)
    x = {"x": randn(9, 2, features)}
    session = InferenceSession(model)
    assert [row.op_type for row in session.report] == ["DynamicQuantizeLSTM"]
    for y, e, near in zip(session.run(None, x), expected_of(same, x), expected_of(model, x), strict=True):
        np.testing.assert_allclose(y, e, atol=2e-3)
        np.testing.assert_allclose(y, near, atol=0.1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "codes", "floats"])
def test_weights_of_few_bits_in_blocks(bits: int, zeros: str) -> None:
    k, n, block = 88, 40, 32  # the last block is not full
    blocks, rng = -(-k // block), np.random.default_rng(0)
    codes, scale = rng.integers(0, 1 << bits, (n, blocks * block)), rng.uniform(0.01, 0.02, (n, blocks))
    zero = rng.integers(0, 1 << bits, (n, blocks)) if zeros != "none" else np.full((n, blocks), 1 << (bits - 1))
    weight = ((codes.reshape(n, blocks, block) - zero[..., None]) * scale[..., None]).reshape(n, -1)[:, :k]

    def packed(values: Any) -> Any:
        values = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8)
        return values if bits == 8 else values[:, ::2] | values[:, 1::2] << 4

    constants: dict[str, Any] = {
        "b": packed(codes).reshape(n, blocks, -1), "s": scale.astype(np.float32), "c": randn(n),
        "z": (packed(zero) if zeros == "codes" else zero.astype(np.float32)).reshape(-1),
    }  # fmt: skip
    if bits == 8 and zeros == "codes":
        constants["z"] = zero.astype(np.uint8).reshape(-1)
    made = node(
        "MatMulNBits", ["x", "b", "s", "z" if zeros != "none" else "", "", "c"], ["y"], "product", domain=MICROSOFT,
        K=k, N=n, bits=bits, block_size=block,
    )  # fmt: skip
    model = of_microsoft(model_of([made], [value("x", ["m", k])], [value("y", None)], **constants))
    x = randn(5, k)
    session = InferenceSession(model)
    assert [(row.k, row.n, row.fused) for row in session.report] == [(k, n, "bias")], session.report.left
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight.T + constants["c"], atol=0.05)


def test_products_with_a_factor_and_a_transposition() -> None:
    made = node("FusedMatMul", ["x", "w"], ["y"], domain=MICROSOFT, transB=1, alpha=0.25)
    agree(
        of_microsoft(model_of([made], [value("x", ["m", 64])], [value("y", None)], w=randn(40, 64))),
        {"x": randn(5, 64)},
    )


def test_quantized_models_whose_bytes_were_changed() -> None:
    """Whatever a model's bytes are, there is a result, or an error of ONNX Runtime or this package."""
    scalar = {"s": np.float32(0.1), "z": np.uint8(3), "n": np.int8(2)}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("ConvInteger", ["q", "c", "qz", "n"], ["i"], pads=[1, 1]),
        node("QLinearConv", ["q", "s", "z", "c", "s", "n", "s", "z", "b"], ["d"]),
        node("QGemm", ["f", "s", "z", "g", "s", "n", "", "s", "z"], ["y"], domain=MICROSOFT, transB=1),
        node("MatMulNBits", ["t", "m", "ms"], ["y2"], domain=MICROSOFT, K=32, N=4, bits=4, block_size=32),
        node("DynamicQuantizeLSTM", ["x", "lw", "lr", "", "", "", "", "", "ls", "lz", "ls", "lz"], ["y3"],
             domain=MICROSOFT, hidden_size=3),
    ]  # fmt: skip
    nodes[3:3] = [node("Reshape", ["d", "flat"], ["f"])]
    nodes[5:5] = [node("Reshape", ["x", "wide"], ["t"])]
    model = model_of(
        nodes, [value("x", [2, 4, 8])], [value("y", None, TensorProto.UINT8), value("y2", None), value("y3", None)],
        c=integers(np.int8, 5, 4, 3), b=integers(np.int32, 5, most=99), g=integers(np.int8, 7, 5),
        flat=np.array([-1, 5]), wide=np.array([-1, 32]), m=integers(np.uint8, 4, 1, 16), ms=randn(4),
        lw=integers(np.int8, 1, 8, 12), lr=integers(np.int8, 1, 3, 12), ls=np.ones(1, np.float32),
        lz=np.zeros(1, np.int8), **scalar,
    )  # fmt: skip
    good = of_microsoft(model).SerializeToString()
    x = {"x": randn(2, 4, 8)}
    session = InferenceSession(good, filter_fn=everything)
    assert len(session.report) == 5, session.report.left
    session.run(None, x)
    chance, kinds = random.Random(0), set()
    for _ in range(250):
        bad = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 5))):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            InferenceSession(bytes(bad), filter_fn=everything)
        except Exception as error:
            kinds.add(type(error).__module__.partition(".")[0])
    assert kinds <= {"onnxruntime", "npumatmul"}


# ---- models that ONNX Runtime's own tools quantize ------------------------------------------------------------------


def floats(path: Path) -> None:
    """Convolutions, one of them depthwise, a recurrent layer, and two products."""
    nodes = [
        node("Conv", ["x", "w1"], ["c"], "first", pads=[1, 1]), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["d"], "second", strides=[2]),
        node("Conv", ["d", "w3"], ["e"], "depthwise", group=48), node("Transpose", ["e"], ["t"], perm=[2, 0, 1]),
        node("LSTM", ["t", "lw", "lr"], ["h"], "lstm", hidden_size=32),
        node("Squeeze", ["h", "one"], ["s"]), node("MatMul", ["s", "m"], ["u"], "product"),
        node("Reshape", ["u", "flat"], ["v"]), node("Gemm", ["v", "g", "gb"], ["y"], "gemm"),
    ]  # fmt: skip
    model = model_of(
        nodes, [value("x", ["b", 32, "t"])], [value("y", ["n", 33])], w1=randn(40, 32, 3) / 10, b2=randn(48),
        w2=randn(48, 40, 3) / 10, w3=randn(48, 1, 1), lw=randn(1, 128, 48) / 7, lr=randn(1, 128, 32) / 6,
        one=np.array([1]), m=randn(32, 40) / 6, flat=np.array([-1, 40]), g=randn(40, 33) / 6, gb=randn(33),
    )  # fmt: skip
    onnx.save(model, path)


class Reader:
    """What static quantization is calibrated with."""

    def __init__(self) -> None:
        self._left = [{"x": randn(1, 32, 24, seed=i)} for i in range(3)]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None


def dequantized(model: Any, feeds: Any) -> Any:
    return onnxruntime.InferenceSession(model, providers=CPU).run(None, feeds)[0]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_quantized_dynamically(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    floats(tmp_path / "model.onnx")
    quantize_dynamic(tmp_path / "model.onnx", tmp_path / "quantized.onnx", reduce_range=True)
    session = InferenceSession(tmp_path / "quantized.onnx")
    kinds = sorted(row.op_type for row in session.report)
    assert kinds == ["ConvInteger", "ConvInteger", "DynamicQuantizeLSTM", "MatMulInteger", "MatMulInteger"]
    assert list(session.report.left.values()) == ["it is depthwise"]
    for length in (24, 5, 60):
        x = {"x": randn(2, 32, length)}
        (y,), e = session.run(None, x), dequantized(str(tmp_path / "quantized.onnx"), x)
        np.testing.assert_allclose(y, e, atol=0.05 * np.abs(e).max())  # the recurrent layer's inputs are not rounded


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_quantized_with_static_scales(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    floats(tmp_path / "model.onnx")
    how: dict[str, Any] = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8, "reduce_range": True}
    for channel in (False, True):
        for form in (QuantFormat.QOperator, QuantFormat.QDQ):
            path = tmp_path / f"{form.name}{channel}.onnx"
            quantize_static(
                tmp_path / "model.onnx", path, Reader(), quant_format=form, per_channel=channel,
                extra_options={"ForceQuantizeNoInputCheck": True}, **how,
            )  # fmt: skip
            session = InferenceSession(path)
            kinds = sorted(row.op_type for row in session.report)
            if form == QuantFormat.QOperator:
                assert kinds == ["LSTM", "QGemm", "QLinearConv", "QLinearConv", "QLinearMatMul"], session.report.left
            else:
                assert kinds == ["Conv", "Conv", "Gemm", "LSTM", "MatMul"], session.report.left
            x = {"x": randn(2, 32, 40)}
            (y,), e = session.run(None, x), dequantized(str(path), x)
            np.testing.assert_allclose(y, e, atol=0.06 * np.abs(e).max())


# ---- what stays, and what is packed once ----------------------------------------------------------------------------


def test_operators_that_are_named_exist() -> None:
    known = {(each.domain, each.name) for each in get_all_operator_schema()} | {
        (each.domain, each.name) for each in onnx.defs.get_all_schemas()
    }
    assert not {key for key in [*_LOOKS, *_STAY] if key[0] != MICROSOFT} - known
    assert {name for domain, name in [*_LOOKS, *_STAY] if domain == MICROSOFT} <= {name for _, name in known}
    assert not set(_LOOKS) & set(_STAY)


def test_other_products_stay_and_say_why() -> None:
    nodes = [
        node("Einsum", ["x", "w"], ["e"], "sum", equation="mk,mk->mk"),
        node("FusedGemm", ["e", "v"], ["f"], "fused", domain=MICROSOFT, activation="Relu"),
        node("LinearRegressor", ["f"], ["y"], "line", domain="ai.onnx.ml", coefficients=[1.0] * 40),
    ]  # fmt: skip
    model = of_microsoft(model_of(nodes, [value("x", ["m", 64])], [value("y", None)], w=randn(64, 64), v=randn(64, 40)))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    session = agree(model, {"x": randn(64, 64)}, 0)
    assert session.report.left["sum"] == "its equation is mk,mk->mk"
    assert list(session.report.left) == ["sum", "fused", "line"]
    assert [each.why_not for each in inspect(model, chip("rk3588"))] == list(session.report.left.values())


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "LSTM", "MatMulInteger", "ConvInteger", "Gemm"])
def test_nodes_with_equal_weights_share_what_is_packed(op: str) -> None:
    """Initializers of other names, too, if they hold the same."""
    x, kind, names = ["b", 40, "t"], TensorProto.FLOAT, ["w", "w", "copy"]
    how: dict[str, Any] = {}
    constants: dict[str, Any] = {"w": randn(40, 40, 3)}
    if op == "LSTM":
        x, constants, how = ["t", "b", 40], {"w": randn(1, 80, 40), "r": randn(1, 80, 20)}, {"hidden_size": 20}
    elif op.endswith("Integer"):
        kind = TensorProto.UINT8
        constants = {"w": integers(np.int8, 40, 40, *([3] if op == "ConvInteger" else []))}
    elif op == "Gemm":
        x, constants = ["m", 40], {"w": randn(40, 40)}
    constants["copy"] = constants["w"].copy()
    more = ["r"] if op == "LSTM" else []
    nodes = [node(op, ["x", name, *more], [f"y{i}"], **how) for i, name in enumerate(names)]
    result = TensorProto.INT32 if op.endswith("Integer") else TensorProto.FLOAT
    model = model_of(nodes, [value("x", x, kind)], [value(f"y{i}", None, result) for i in range(3)], **constants)
    session = InferenceSession(model)
    weights = {id(product.weight) for each in session._work.computed.values() for product in each.products}
    assert (len(session.report), len(weights)) == (3, 1)
    assert session.report.nbytes == session.report.rows[0].nbytes
    given_ = integers(np.uint8, 2, 40, 40) if kind == TensorProto.UINT8 else randn(2, 40, 40)
    made = session.run(None, {"x": given_[0] if op == "Gemm" else given_})
    np.testing.assert_array_equal(made[0], made[2])
