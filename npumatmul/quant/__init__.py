"""Quantization: which values stand for a weight and for activations on the NPU."""

from npumatmul.quant.functions import dequantize, fake_quantize, quantize
from npumatmul.quant.gptq import gptq
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.hadamard_matrices import hadamard_matrix
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.refinement import refine
from npumatmul.quant.schemes import SCHEMES, Scheme, scheme_for
from npumatmul.quant.transforms import Chain, ChannelScale, Permutation, transform_from
from npumatmul.quant.weight_scales import round_weight, weight_params

__all__ = [
    "SCHEMES",
    "Chain",
    "ChannelScale",
    "Hadamard",
    "Hessian",
    "Permutation",
    "Scheme",
    "dequantize",
    "fake_quantize",
    "gptq",
    "hadamard_matrix",
    "quantize",
    "refine",
    "round_weight",
    "scheme_for",
    "transform_from",
    "weight_params",
]
