"""Small random Whispers of transformers, saved as folders with tokenizer, features and what their tokens mean."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

RATE = 16000
LANGUAGES = ("en", "de", "fr", "yue")
#: Positions of a window: one second.
POSITIONS = 50
CONTEXT = 36
WORDS = sorted(pre_tokenizers.ByteLevel.alphabet())
NAMED = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{each}|>" for each in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
TIMES = tuple(f"<|{i / 50:.2f}|>" for i in range(POSITIONS + 1))
NUMBERS = {name: i for i, name in enumerate([*WORDS, *NAMED, *TIMES])}
VOCAB = len(NUMBERS)
SUPPRESSED = [5, 7, NUMBERS["<|startoftranscript|>"], NUMBERS["<|nospeech|>"], NUMBERS["<|startofprev|>"]]


def torch_whisper(seed: int = 0, *, spread: float = 0.3, multilingual: bool = True, **options: Any) -> Any:
    """A model with random weights, whose biases and norms are random, too."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 64,
        "max_source_positions": POSITIONS,
        "max_target_positions": CONTEXT,
        "decoder_start_token_id": NUMBERS["<|startoftranscript|>"],
        "pad_token_id": NUMBERS["<|endoftext|>"],
        "bos_token_id": NUMBERS["<|endoftext|>"],
        "eos_token_id": NUMBERS["<|endoftext|>"],
        "init_std": spread,
        **options,
    }
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "layer_norm" in name:
                parameter.normal_(mean=1, std=0.1)
    given = model.generation_config
    for name, value in {
        "no_timestamps_token_id": NUMBERS["<|notimestamps|>"],
        "prev_sot_token_id": NUMBERS["<|startofprev|>"],
        "max_initial_timestamp_index": 20,
        "suppress_tokens": SUPPRESSED,
        "begin_suppress_tokens": [NUMBERS["<|endoftext|>"], 3],
        "is_multilingual": multilingual,
        "max_length": CONTEXT,
    }.items():
        setattr(given, name, value)
    if multilingual:
        given.lang_to_id = {f"<|{each}|>": NUMBERS[f"<|{each}|>"] for each in LANGUAGES}
        given.task_to_id = {each: NUMBERS[f"<|{each}|>"] for each in ("transcribe", "translate")}
    return model


@functools.cache
def tokenizer() -> Tokenizer:
    """Bytes, and what Whisper has besides."""
    made = Tokenizer(models.BPE({each: NUMBERS[each] for each in WORDS}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(NAMED))
    made.add_tokens(list(TIMES))
    return made


def save_whisper(model: Any, folder: Path) -> Path:
    """Save a model as Hugging Face has it."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    extractor(model).save_pretrained(folder)
    return folder


def extractor(model: Any) -> Any:
    """What makes features in transformers."""
    return transformers.WhisperFeatureExtractor(
        feature_size=model.config.num_mel_bins, chunk_length=model.config.max_source_positions // 50
    )


def sound(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Noise whose colour and loudness change, with tones and pauses."""
    random = np.random.default_rng(seed)
    n = int(seconds * rate)
    t = np.arange(n) / rate
    made = np.zeros(n)
    for start in np.arange(0, seconds, 0.3):
        pitch, loud = random.uniform(80, 3000), random.uniform(0, 0.5)
        made += loud * np.exp(-(((t - start) / 0.12) ** 2)) * np.sin(2 * np.pi * pitch * t)
    return (made + 0.01 * random.standard_normal(n)).astype(np.float32)
