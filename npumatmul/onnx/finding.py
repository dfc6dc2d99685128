"""Nodes of a model whose products can run on the NPU, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.onnx.candidates import OWN, Candidate, constant, geometry, graphs, input_name
from npumatmul.onnx.constants import attributes
from npumatmul.onnx.finding_integers import conv_integer, matmul_integer, qgemm, qlinear_conv, qlinear_matmul

__all__ = ["look"]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_MICROSOFT = "com.microsoft"


def look(model: Any, folder: str = "") -> list[Candidate]:
    """All nodes with products, in the order of the model; files of weights are in a folder."""
    found: list[Candidate] = []
    paths: set[str] = set()
    opset = next((each.version for each in model.opset_import if each.domain in OWN), 1)
    for graph, scope, path, depth in graphs(model.graph, opset=opset, folder=folder):
        for i, node in enumerate(graph.node):
            key = ("" if node.domain in OWN else node.domain, node.op_type)
            if key not in _LOOKS and key not in _STAY:
                continue
            name = path + (node.name or f"{node.op_type}_{i}")
            while name in paths:  # a node may be called as another would be that has no name
                name += "'"
            paths.add(name)
            kind, how = _LOOKS.get(key, ("", None))
            each = Candidate(graph, node, scope, name, depth=depth, kind=kind, op_type=node.op_type)
            each.why_not = _STAY[key] if how is None else _why_not(each, how)
            found.append(each)
    return found


def _why_not(each: Candidate, how: Callable[[Candidate], str | None]) -> str | None:
    if not input_name(each, 0) or not any(each.node.output):
        return "it has no input or no output"
    try:
        return how(each)
    except (OSError, ModelError):
        raise  # of a file beside the model
    except Exception as error:  # anybody may have written the model; ONNX Runtime says what is wrong with it
        return f"it is not as ONNX has it ({type(error).__name__}: {error})"


# ---- matrices --------------------------------------------------------------------------------------------------------


def _matmul(each: Candidate) -> str | None:
    weight = constant(each, 1, _FLOATS, "right operand")
    if isinstance(weight, str):
        return weight
    if weight.ndim != 2:
        return f"its right operand has {weight.ndim} dimensions"
    _matrix(each, weight)
    return None


def _matrix(each: Candidate, weight: NDArray[Any], factor: float = 1.0, bias: NDArray[Any] | None = None) -> None:
    each.k, each.n = weight.shape
    scaled = weight if factor == 1.0 else weight.astype(np.float32) * np.float32(factor)
    each.extra.update(weight=scaled, bias=bias, is_half=weight.dtype == np.float16)


def _gemm(each: Candidate) -> str | None:
    given = attributes(each.node)
    weight = constant(each, 1, _FLOATS)
    if isinstance(weight, str):
        return weight
    if given.get("transA", 0):
        return "its left operand is transposed"
    weight = weight.T if given.get("transB", 0) else weight
    n = weight.shape[1]
    bias = None
    if input_name(each, 2):
        bias = each.scope.value(input_name(each, 2))
        if bias is None or bias.size not in (1, n) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
            each.k, each.n = weight.shape
            return "what it adds is not one constant row"
        bias = np.broadcast_to(bias.reshape(-1), (n,)).astype(np.float32) * np.float32(given.get("beta", 1.0))
    _matrix(each, weight, given.get("alpha", 1.0), bias)
    return None


def _fused_matmul(each: Candidate) -> str | None:
    """MatMul with a factor and transpositions, as ONNX Runtime writes optimized models."""
    given = attributes(each.node)
    weight = constant(each, 1, _FLOATS, "right operand")
    if isinstance(weight, str):
        return weight
    if any(given.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        return "its left operand or its batches are transposed"
    if weight.ndim != 2:
        return f"its right operand has {weight.ndim} dimensions"
    weight = weight.T if given.get("transB", 0) else weight
    _matrix(each, weight, given.get("alpha", 1.0))
    return None


def _einsum(each: Candidate) -> str | None:
    """Sums over the last dimensions of x with those of a weight, as projections of attention are written."""
    terms = attributes(each.node).get("equation", b"").decode().replace(" ", "")
    inputs, arrow, result = terms.partition("->")
    left, _, right = inputs.partition(",")
    if left.startswith("...") and result.startswith("..."):
        left, result = left[3:], result[3:]
    labels = left + right + result
    if not arrow or len(each.node.input) != 2 or not right or not labels.isalpha():
        return f"its equation is {terms}"
    weight = constant(each, 1, _FLOATS, "right operand")
    if isinstance(weight, str):
        return weight
    summed = [label for label in left if label in right]
    made = [label for label in result if label in right]
    kept = left.removesuffix("".join(summed))
    is_product = (
        summed and made and all(len(set(part)) == len(part) for part in (left, right, result))
        and len(kept) == len(left) - len(summed) and result == kept + "".join(made)
        and sorted(right) == sorted(summed + made) and len(right) == weight.ndim
    )  # fmt: skip
    if not is_product:
        return f"its equation is {terms}"
    turned = weight.transpose([right.index(label) for label in (*summed, *made)])
    sizes = turned.shape[: len(summed)], turned.shape[len(summed) :]
    _matrix(each, turned.reshape(int(np.prod(sizes[0])), -1))
    if weight.ndim > 2:
        each.extra.update(summed=sizes[0], made=sizes[1])
    return None


def _matmul_of_bits(each: Candidate) -> str | None:
    """MatMulNBits: codes of 4 or 8 bits, a scale for each block of a row."""
    given = attributes(each.node)
    n, k, block, bits = (int(given.get(name, 0)) for name in ("N", "K", "block_size", "bits"))
    bits = bits or 4
    codes, scales = constant(each, 1, _BYTES[1:]), constant(each, 2, _FLOATS, "scale")
    for value in (codes, scales):
        if isinstance(value, str):
            return value
    if bits not in (4, 8) or input_name(each, 4) or given.get("weight_prepacked", 0):
        return f"its codes have {bits} bits, or an order of their own"
    blocks = -(-k // block)
    if min(n, k, block) < 1 or codes.size != n * blocks * (block * bits // 8) or scales.size != n * blocks:
        return "its codes and scales are not those of N, K and block_size"
    zeros = np.full((n, blocks), 1 << (bits - 1), np.float32)
    if input_name(each, 3):
        given_zeros = constant(each, 3, (*_FLOATS, *_BYTES[1:]), "zero point")
        if isinstance(given_zeros, str):
            return given_zeros
        if given_zeros.dtype == np.uint8:
            given_zeros = _unpacked(given_zeros.reshape(n, -1), bits)[:, :blocks]
        zeros = given_zeros.reshape(n, blocks).astype(np.float32)
    values = _unpacked(codes.reshape(n, blocks, -1), bits)[..., :block].astype(np.float32)
    weight = (values - zeros[..., None]) * scales.reshape(n, blocks, 1).astype(np.float32)
    bias = each.scope.value(input_name(each, 5))
    if input_name(each, 5) and bias is None:
        return "its bias is not constant"
    bias = None if bias is None else bias.reshape(-1).astype(np.float32)
    _matrix(each, weight.reshape(n, -1)[:, :k].T, bias=bias)
    each.extra["is_half"] = scales.dtype == np.float16
    return None


def _unpacked(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """Codes of bytes, the lower half of a byte first."""
    if bits == 8:
        return packed
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(*packed.shape[:-1], -1)


# ---- convolutions and recurrent layers -------------------------------------------------------------------------------


def _conv(each: Candidate) -> str | None:
    is_transposed = each.node.op_type == "ConvTranspose"
    weight = constant(each, 1, _FLOATS)
    if isinstance(weight, str):
        return weight
    why = geometry(each, weight, 2, is_transposed)
    if why is not None:
        return why
    bias = None
    if input_name(each, 2):
        bias = each.scope.value(input_name(each, 2))
        if bias is None:
            return "its bias is not constant"
        bias = bias.astype(np.float32).reshape(-1)
        if bias.size != (weight.shape[1] * each.extra["groups"] if is_transposed else weight.shape[0]):
            return f"its bias has {bias.size} values"
    each.extra.update(weight=weight, bias=bias, is_half=weight.dtype == np.float16)
    return None


#: Gates of recurrent layers, and activations that they have if nothing else is said.
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
_USUAL = {4: ["sigmoid", "tanh", "tanh"], 3: ["sigmoid", "tanh"], 1: ["tanh"]}


def _recurrent(each: Candidate) -> str | None:
    weight, recurrent = constant(each, 1, _FLOATS[:1]), constant(each, 2, _FLOATS[:1], "recurrent weight")
    return _recurrence(each, weight, recurrent)


def _recurrent_of_codes(each: Candidate) -> str | None:
    """DynamicQuantizeLSTM; its weights are dequantized, and what comes in is not rounded to 8 bits."""
    found = []
    for index, scale, zero, called in ((1, 8, 9, "weight"), (2, 10, 11, "recurrent weight")):
        codes, factor = constant(each, index, _BYTES, called), constant(each, scale, _FLOATS[:1], f"{called}'s scale")
        offset = constant(each, zero, _BYTES, f"{called}'s zero point")
        for value in (codes, factor, offset):
            if isinstance(value, str):
                return value
        shape = (len(codes), 1, -1)  # one for each direction, or for each of its columns
        values = codes.astype(np.float32) - offset.astype(np.float32).reshape(shape)
        found.append(np.ascontiguousarray((values * factor.reshape(shape)).transpose(0, 2, 1)))
    return _recurrence(each, *found)


def _recurrence(each: Candidate, weight: Any, recurrent: Any) -> str | None:
    given, gates = attributes(each.node), _GATES[each.node.op_type]
    if input_name(each, 4):
        return "it has lengths of sequences"
    if gates == 4 and input_name(each, 7):
        return "it has peepholes"
    if given.get("clip") or given.get("input_forget") or given.get("layout"):
        return "it has clip, input_forget or layout"
    functions = [name.decode().lower() for name in given.get("activations", [])]
    directions = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[
        given.get("direction", b"forward").decode()
    ]
    if functions and functions != _USUAL[gates] * len(directions):
        return f"its activations are {', '.join(functions)}"
    for value in (weight, recurrent):
        if isinstance(value, str):
            return value
    bias: NDArray[Any] | None = np.zeros((len(directions), 2 * weight.shape[1]), np.float32)
    if input_name(each, 3):
        bias = each.scope.value(input_name(each, 3))
        if bias is None:
            return "its bias is not constant"
    each.k, each.n = weight.shape[2], weight.shape[0] * weight.shape[1]
    each.extra.update(
        weight=weight, recurrent=recurrent, recurrent_bias=bias, directions=directions, gates=gates,
        is_reset_after=bool(given.get("linear_before_reset", 0)),
    )  # fmt: skip
    return None


#: By domain and operator: the kind, and what looks at a node.
_LOOKS: dict[tuple[str, str], tuple[str, Callable[[Candidate], str | None] | None]] = {
    ("", "MatMul"): ("matrix", _matmul),
    ("", "Gemm"): ("matrix", _gemm),
    ("", "Einsum"): ("matrix", _einsum),
    (_MICROSOFT, "FusedMatMul"): ("matrix", _fused_matmul),
    (_MICROSOFT, "MatMulNBits"): ("matrix", _matmul_of_bits),
    ("", "Conv"): ("convolution", _conv),
    ("", "ConvTranspose"): ("convolution", _conv),
    ("", "LSTM"): ("recurrent", _recurrent),
    ("", "GRU"): ("recurrent", _recurrent),
    ("", "RNN"): ("recurrent", _recurrent),
    (_MICROSOFT, "DynamicQuantizeLSTM"): ("recurrent", _recurrent_of_codes),
    ("", "MatMulInteger"): ("integers", matmul_integer),
    ("", "ConvInteger"): ("integers", conv_integer),
    ("", "QLinearMatMul"): ("integers", qlinear_matmul),
    ("", "QLinearConv"): ("integers", qlinear_conv),
    (_MICROSOFT, "QGemm"): ("integers", qgemm),
}

_BOTH = "both of its operands are results"
_FUSED = "it is a fusion of ONNX Runtime's, which computes it as a whole; the model before that has products that go"

#: Other nodes with products, by domain and operator, and why they stay.
_STAY: dict[tuple[str, str], str] = {
    ("", "Attention"): _BOTH,
    ("", "DeformConv"): "where its windows are depends on its input",
    (_MICROSOFT, "QLinearConv"): "its channels are last",
    **dict.fromkeys([("ai.onnx.ml", f"Linear{each}") for each in ("Classifier", "Regressor")],
                    "a linear model does little besides; npumatmul.sklearn takes the estimator"),
    **dict.fromkeys([("ai.onnx.ml", f"SVM{each}") for each in ("Classifier", "Regressor")],
                    "its kernel is not computed as a product; npumatmul.sklearn takes the estimator"),
    **dict.fromkeys([(_MICROSOFT, each) for each in (
        "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention", "DecoderMaskedMultiHeadAttention",
        "SparseAttention", "PagedAttention", "LinearAttention",
    )], _BOTH),
    **dict.fromkeys([(_MICROSOFT, each) for each in (
        "Attention", "AttnLSTM", "ConvTransposeWithDynamicPads", "DecoderAttention", "DecoderMaskedSelfAttention",
        "DynamicQuantizeMatMul", "FusedConv", "FusedGemm", "FusedMatMulActivation", "GemmFastGelu", "GemmFloat8",
        "LongformerAttention", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulPacked",
        "MatMulNBitsMlp", "MatMulNBitsQLoRA", "MatMulNBitsQkv", "MatMulBlockQuantizedFp4Weight",
        "MatMulBlockQuantizedFp8Weight", "MoE", "MoEPacked", "NhwcConv", "NhwcFusedConv", "PackedAttention",
        "QAttention", "QMoE", "QOrderedAttention", "QOrderedLongformerAttention", "QOrderedMatMul",
        "SparseToDenseMatMul", "TransposeMatMul", "WordConvEmbedding",
    )], _FUSED),
}  # fmt: skip
