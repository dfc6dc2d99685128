"""Language models with every linear layer through the matmul API.

Load a GGUF file with `load_model`, passing the function that turns a weight into something that multiplies, and
continue a prompt with `generate`. `model` is the whole computation in one file.
"""

from .chat import ChatTemplate, control_texts
from .config import LlamaConfig
from .demo_model import fetch_demo_model
from .evaluation import Estimate, Evaluation, Window, evaluate, evaluate_models, text_tokens, windows
from .generate import Generation, GenerationStats, StopReason, Token, generate
from .gguf_file import GGUFFile
from .loader import LoadedModel, load_model, numpy_pack
from .model import Block, ContextFullError, KVCache, Linear, LlamaModel, Pack
from .npu import NpuLinear, NpuQuantizedLinear, npu_layers, npu_pack
from .sampling import Sampler, SamplingOptions
from .tokenizer import GGUFTokenizer, StreamDecoder

__all__ = [
    "Block",
    "ChatTemplate",
    "ContextFullError",
    "Estimate",
    "Evaluation",
    "GGUFFile",
    "GGUFTokenizer",
    "Generation",
    "GenerationStats",
    "KVCache",
    "Linear",
    "LlamaConfig",
    "LlamaModel",
    "LoadedModel",
    "NpuLinear",
    "NpuQuantizedLinear",
    "Pack",
    "Sampler",
    "SamplingOptions",
    "StopReason",
    "StreamDecoder",
    "Token",
    "Window",
    "control_texts",
    "evaluate",
    "evaluate_models",
    "fetch_demo_model",
    "generate",
    "load_model",
    "npu_layers",
    "npu_pack",
    "numpy_pack",
    "text_tokens",
    "windows",
]
