"""Quantization: which values stand for a weight and for activations on the NPU."""

from npumatmul.quant.functions import dequantize, fake_quantize, quantize
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.hadamard_matrices import hadamard_matrix
from npumatmul.quant.schemes import SCHEMES, Scheme, scheme_for
from npumatmul.quant.transforms import Chain, ChannelScale, Permutation, transform_from

__all__ = [
    "SCHEMES",
    "Chain",
    "ChannelScale",
    "Hadamard",
    "Permutation",
    "Scheme",
    "dequantize",
    "fake_quantize",
    "hadamard_matrix",
    "quantize",
    "scheme_for",
    "transform_from",
]
