"""Quantization: which values stand for a weight and for activations on the NPU."""

from npumatmul.quant.bias_correction import bias_correction
from npumatmul.quant.calibration import (
    MMSE,
    Calibrator,
    ClipRatio,
    KLDivergence,
    MinMax,
    Percentile,
    calibrate,
)
from npumatmul.quant.functions import dequantize, fake_quantize, quantize
from npumatmul.quant.gptq import gptq
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.hadamard_matrices import hadamard_matrix
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.ranges import token_params
from npumatmul.quant.refinement import refine
from npumatmul.quant.schemes import SCHEMES, Scheme, scheme_for
from npumatmul.quant.smooth import fold_into_linear, fold_into_norm, search_smooth, smooth
from npumatmul.quant.transforms import Chain, ChannelScale, Permutation, transform_from
from npumatmul.quant.weight_scales import round_weight, weight_params

__all__ = [
    "MMSE",
    "SCHEMES",
    "Calibrator",
    "Chain",
    "ChannelScale",
    "ClipRatio",
    "Hadamard",
    "Hessian",
    "KLDivergence",
    "MinMax",
    "Percentile",
    "Permutation",
    "Scheme",
    "bias_correction",
    "calibrate",
    "dequantize",
    "fake_quantize",
    "fold_into_linear",
    "fold_into_norm",
    "gptq",
    "hadamard_matrix",
    "quantize",
    "refine",
    "round_weight",
    "scheme_for",
    "search_smooth",
    "smooth",
    "token_params",
    "transform_from",
    "weight_params",
]
