"""Tiny models of transformers for tests of `npumatmul.torch`, and what results are compared by."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn


def tiny(name: str) -> tuple[nn.Module, dict[str, torch.Tensor], str]:
    """A tiny random model of transformers, what it is called with, and which result is compared."""
    ids = torch.randint(3, 90, (2, 9))
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    causal = {
        **sizes,
        "vocab_size": 99,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    t = transformers
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**causal)), {"input_ids": ids}, "logits"
    if name == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**causal)), {"input_ids": ids}, "logits"
    if name == "qwen3-moe":
        more = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16}
        return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**causal, **more)), {"input_ids": ids}, "logits"
    if name == "gpt2":
        config = t.GPT2Config(
            vocab_size=99, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
        )
        return t.GPT2LMHeadModel(config), {"input_ids": ids}, "logits"
    if name == "bert":
        return t.BertModel(t.BertConfig(vocab_size=99, **sizes)), {"input_ids": ids}, "last_hidden_state"
    if name == "t5":
        config = t.T5Config(
            vocab_size=99,
            d_model=64,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            d_kv=16,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
        return t.T5ForConditionalGeneration(config), {"input_ids": ids, "decoder_input_ids": ids}, "logits"
    if name == "whisper":
        config = t.WhisperConfig(
            vocab_size=99, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, num_mel_bins=80,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1, max_source_positions=50, suppress_tokens=[],
            begin_suppress_tokens=[],
        )  # fmt: skip
        given = {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": ids}
        return t.WhisperForConditionalGeneration(config), given, "logits"
    if name == "vit":
        config = t.ViTConfig(image_size=32, patch_size=8, **sizes)
        return t.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, "logits"
    config = t.VitsConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, flow_size=64,
        spectrogram_bins=33, upsample_initial_channel=128, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_wavenet_layers=2, duration_predictor_filter_channels=32, prior_encoder_num_flows=2,
        depth_separable_num_layers=1,
    )  # fmt: skip
    return t.VitsModel(config), {"input_ids": ids[:1]}, "waveform"


def spread(model: nn.Module) -> nn.Module:
    """The model in evaluation, with weights large enough that layers matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "parametrizations" not in name:
            parameter.mul_(3.0)
    return model.eval()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))
