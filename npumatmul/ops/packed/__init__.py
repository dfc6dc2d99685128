"""Weights that were packed ahead: quantized, cut into tiles and laid out as the NPU reads them."""
