"""Quantization: which values stand for a weight and for activations on the NPU."""

from npumatmul.quant.functions import dequantize, fake_quantize, quantize
from npumatmul.quant.schemes import SCHEMES, Scheme, scheme_for

__all__ = ["SCHEMES", "Scheme", "dequantize", "fake_quantize", "quantize", "scheme_for"]
