"""Quantized models: recipes, what they make of a model's layers, emulation on the host, files.

`quantize_model` applies a `Recipe` to a GGUF file; what it returns can be run (`QuantizedModel.load`), written
(`save_quantized`) and read again (`load_quantized`).
"""

from npumatmul.llm.quantize.arrays import ProductError, analyze_product
from npumatmul.llm.quantize.best import best_recipe
from npumatmul.llm.quantize.build import quantize_layer
from npumatmul.llm.quantize.calibration import LayerStatistics, collect_statistics
from npumatmul.llm.quantize.emulation import EmulatedLinear, emulate
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.own_text import own_text
from npumatmul.llm.quantize.packed_layer import PackedLayer
from npumatmul.llm.quantize.quantized_model import MakeLinear, QuantizedModel, Source, quantize_model
from npumatmul.llm.quantize.quick import cost_of, quick_recipe
from npumatmul.llm.quantize.recipe import LayerRecipe, Recipe, parse_scheme
from npumatmul.llm.quantize.saving import is_quantized, load_quantized, save_quantized
from npumatmul.llm.quantize.sensitivity import Candidate, auto_quantize, choose, measure_sensitivity

__all__ = [
    "Candidate",
    "EmulatedLinear",
    "LayerRecipe",
    "LayerStatistics",
    "MakeLinear",
    "PackedLayer",
    "ProductError",
    "QuantizedLayer",
    "QuantizedModel",
    "Recipe",
    "Source",
    "analyze_product",
    "auto_quantize",
    "best_recipe",
    "choose",
    "collect_statistics",
    "cost_of",
    "emulate",
    "is_quantized",
    "load_quantized",
    "measure_sensitivity",
    "own_text",
    "parse_scheme",
    "quantize_layer",
    "quantize_model",
    "quick_recipe",
    "save_quantized",
]
