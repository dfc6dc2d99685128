"""Small random Llama models, made with transformers and written as GGUF files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER_DEFINED = 1, 3, 4


def byte_alphabet() -> list[str]:
    """GPT-2's spelling of the bytes 0 to 255."""
    table = bytes_to_unicode()
    return [table[byte] for byte in range(256)]


@dataclass
class TinyModel:
    """A small Llama model twice: as transformers runs it and as a GGUF file."""

    path: Path
    torch_model: Any

    def torch_logits(self, ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self.torch_model(torch.tensor([ids])).logits[0].numpy()
        return logits


def tokenizer_metadata(writer: gguf.GGUFWriter, vocab_size: int = 264) -> None:
    """A vocabulary of all bytes, three merges, a user-defined token and control tokens at the end."""
    tokens = [*byte_alphabet(), "th", "the", "Ġthe", "<think>", "<|im_start|>", "<|im_end|>", "<bos>", "<unused>"]
    kinds = [TOKEN_NORMAL] * 259 + [TOKEN_USER_DEFINED] + [TOKEN_CONTROL] * 4
    assert len(tokens) == len(kinds) == vocab_size
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_bos_token_id(262)
    writer.add_eos_token_id(261)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}")


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"


def write_tokenizer(folder: Path, **config: Any) -> None:
    """The vocabulary that the GGUF files of these tests have."""
    tokens = [*byte_alphabet(), "th", "the", "Ġthe"]
    special = ["<think>", "<|im_start|>", "<|im_end|>", "<bos>", "<unused>"]
    assert len(tokens) + len(special) == 264
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    described = {
        "version": "1.0",
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"]],
        },
        "pre_tokenizer": words,
        "decoder": words,
        "added_tokens": [
            {"id": len(tokens) + i, "content": text, "special": text != "<think>", "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for i, text in enumerate(special)
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    settings = {"bos_token": "<bos>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of q or k as llama.cpp's converter does: halves of a head become neighbouring pairs."""
    per_head = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2).reshape(weight.shape))


def write_tiny_model(
    path: Path,
    *,
    tied: bool = False,
    bias: bool = False,
    rope: dict[str, Any] | None = None,
    rope_factors: NDArray[np.float32] | None = None,
    head_dim: int = 8,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
) -> TinyModel:
    """Make a random Llama model with transformers and write it as GGUF."""
    heads, kv_heads, hidden, ffn, layers, vocab = 4, 2, 32, 48, 2, 264
    torch.manual_seed(1)
    rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        attention_bias=bias,
        rope_parameters=rope_parameters,
        initializer_range=0.2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.5 + 1)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(vocab)
    if rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_parameters["factor"])
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    tokenizer_metadata(writer, vocab)
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem == "model.embed_tokens":
            writer.add_tensor("token_embd.weight", value)
        elif stem == "model.norm":
            writer.add_tensor("output_norm.weight", value)
        elif stem == "lm_head":
            if not tied:
                writer.add_tensor("output.weight", value)
        else:
            _, _, layer, part = stem.split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                value = _interleave(value, heads if "q_proj" in part else kv_heads)
            writer.add_tensor(f"blk.{layer}.{names[part]}.{kind}", np.ascontiguousarray(value))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyModel(path, model)


def text_of(generation: Any) -> str:
    return "".join(piece.text for piece in generation)


def greedy(tiny: Any, prompt: list[int], count: int) -> list[int]:
    """What PyTorch continues a prompt with."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(tiny.torch_logits(ids)[-1])))
    return ids[len(prompt) :]
