"""Language models with every linear layer through the matmul API.

Load a GGUF file with `load_model`, passing the function that turns a weight into something that multiplies, and
continue a prompt with `generate`. `models.decoder` is the whole computation, over the layers of `npumatmul.nn`.
"""

from typing import TypeAlias

from npumatmul.extras import explain_missing

try:
    from npumatmul.llm.constrain.constraint import Format, FormatConstraint
    from npumatmul.llm.constrain.forms import json_format
    from npumatmul.llm.encoder_model import EncoderModel
    from npumatmul.llm.files.demo_encoder import fetch_demo_encoder
    from npumatmul.llm.files.demo_model import fetch_demo_model
    from npumatmul.llm.files.gguf import GGUFFile
    from npumatmul.llm.language_model import Model, Prompt
    from npumatmul.llm.loader import load
    from npumatmul.llm.loading import LoadedModel, load_model, numpy_pack
    from npumatmul.llm.measure.evaluation import (
        Estimate,
        Evaluation,
        Window,
        evaluate,
        evaluate_models,
        text_tokens,
        windows,
    )
    from npumatmul.llm.models.cache import ContextFullError, KVCache
    from npumatmul.llm.models.decoder import Decoder
    from npumatmul.llm.models.decoder_config import DecoderConfig
    from npumatmul.llm.models.embedded import Embedded
    from npumatmul.llm.npu import NpuLinear, NpuQuantizedLinear, npu_layers, npu_pack
    from npumatmul.llm.placement import LayerPlace, ModelPlacement
    from npumatmul.llm.policy import Policy
    from npumatmul.llm.run.batch import BatchGeneration
    from npumatmul.llm.run.chat import ChatTemplate, control_texts
    from npumatmul.llm.run.generate import generate
    from npumatmul.llm.run.generation import Generation
    from npumatmul.llm.run.pieces import Constraint, GenerationStats, Piece, StopReason
    from npumatmul.llm.run.sampling import Sampler, SamplingOptions
    from npumatmul.llm.run.sequence import TokenSequence
    from npumatmul.llm.run.session import Answer, Session
    from npumatmul.llm.run.speculation import Speculation
    from npumatmul.llm.speech.transcript import Segment, Transcription
    from npumatmul.llm.speech.wave_file import read_wave
    from npumatmul.llm.speech_model import SpeechModel
    from npumatmul.llm.tokenizers.gguf_tokenizer import GGUFTokenizer
    from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer
    from npumatmul.llm.tokenizers.protocol import Tokenizer
    from npumatmul.llm.tokenizers.streaming import StreamDecoder
    from npumatmul.nn.product import Pack, Product
    from npumatmul.nn.product import Product as Linear
except ImportError as error:
    explain_missing(error, "npumatmul.llm")
    raise

# what they were called when there was one architecture
LlamaModel: TypeAlias = Decoder
LlamaConfig: TypeAlias = DecoderConfig

__all__ = [
    "Answer",
    "BatchGeneration",
    "ChatTemplate",
    "Constraint",
    "ContextFullError",
    "Decoder",
    "DecoderConfig",
    "Embedded",
    "EncoderModel",
    "Estimate",
    "Evaluation",
    "Format",
    "FormatConstraint",
    "GGUFFile",
    "GGUFTokenizer",
    "Generation",
    "GenerationStats",
    "JSONTokenizer",
    "KVCache",
    "LayerPlace",
    "Linear",
    "LlamaConfig",
    "LlamaModel",
    "LoadedModel",
    "Model",
    "ModelPlacement",
    "NpuLinear",
    "NpuQuantizedLinear",
    "Pack",
    "Piece",
    "Policy",
    "Product",
    "Prompt",
    "Sampler",
    "SamplingOptions",
    "Segment",
    "Session",
    "Speculation",
    "SpeechModel",
    "StopReason",
    "StreamDecoder",
    "TokenSequence",
    "Tokenizer",
    "Transcription",
    "Window",
    "control_texts",
    "evaluate",
    "evaluate_models",
    "fetch_demo_encoder",
    "fetch_demo_model",
    "generate",
    "json_format",
    "load",
    "load_model",
    "npu_layers",
    "npu_pack",
    "numpy_pack",
    "read_wave",
    "text_tokens",
    "windows",
]
