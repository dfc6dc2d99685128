"""A model with random weights and the shapes of one with 1.5 billion parameters, to measure loading with.

``python bench/synthetic_model.py PATH`` writes a GGUF file, ``--type BF16 PATH`` with a folder's name a Hugging Face
folder. It is written piece by piece, in a few hundred megabytes of memory. Shapes are Qwen2.5-1.5B's, whose vocabulary
has 151936 tokens; here all but 256 of them are made up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 1536, 8960, 12, 2, 128, 151936, 28
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
    "tie_word_embeddings": True, "use_sliding_window": False, "torch_dtype": "bfloat16", "eos_token_id": 256,
}  # fmt: skip
BLOCK = 1 << 22

Tensor = tuple[str, str, tuple[int, ...]]
"""Name in a folder, name in a GGUF file, shape."""


def tensors(layers: int) -> Iterator[Tensor]:
    """All tensors of the model."""
    yield "model.embed_tokens.weight", "token_embd.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        theirs, ours = f"model.layers.{i}", f"blk.{i}"
        for name, tensor, n in (
            ("q_proj", "attn_q", HEADS * HEAD_DIM),
            ("k_proj", "attn_k", KV_HEADS * HEAD_DIM),
            ("v_proj", "attn_v", KV_HEADS * HEAD_DIM),
        ):
            yield f"{theirs}.self_attn.{name}.weight", f"{ours}.{tensor}.weight", (n, HIDDEN)
            yield f"{theirs}.self_attn.{name}.bias", f"{ours}.{tensor}.bias", (n,)
        yield f"{theirs}.self_attn.o_proj.weight", f"{ours}.attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield f"{theirs}.mlp.gate_proj.weight", f"{ours}.ffn_gate.weight", (FFN, HIDDEN)
        yield f"{theirs}.mlp.up_proj.weight", f"{ours}.ffn_up.weight", (FFN, HIDDEN)
        yield f"{theirs}.mlp.down_proj.weight", f"{ours}.ffn_down.weight", (HIDDEN, FFN)
        yield f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.weight", (HIDDEN,)
        yield f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (HIDDEN,)
    yield "model.norm.weight", "output_norm.weight", (HIDDEN,)


def tokens() -> list[str]:
    """The bytes as GPT-2 spells them, and made-up ones."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in spelled)
    spelled.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [
        *(spelled[byte] for byte in range(256)),
        "<|im_end|>",
        "ĠĠ",
        *(f"<|made-up-{i}|>" for i in range(VOCAB - 258)),
    ]


class Values:
    """Random values that cost little: a block of them, from another place on each time."""

    def __init__(self, kind: gguf.GGMLQuantizationType) -> None:
        self._rng = np.random.default_rng(0)
        self.kind = kind
        block = self._rng.standard_normal(BLOCK, np.float32) * 0.02
        self._stored = quantize(block.reshape(-1, 256), kind).view(np.uint8).reshape(BLOCK // 256, -1)

    def stored(self, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
        """Bytes of a tensor in pieces; vectors are ones in float32."""
        if len(shape) == 1:
            yield np.ones(shape, np.float32).view(np.uint8)
            return
        left = shape[0] * shape[1] // 256
        while left:
            start = int(self._rng.integers(0, len(self._stored) // 2))
            piece = self._stored[start : start + left]
            left -= len(piece)
            yield piece

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor."""
        return 4 * shape[0] if len(shape) == 1 else shape[0] * shape[1] // 256 * self._stored.shape[1]


def write_gguf(path: Path, kind: str, layers: int, architecture: str) -> None:
    """Write a GGUF file."""
    values = Values(gguf.GGMLQuantizationType[kind])
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"synthetic {kind}")
    writer.add_block_count(layers)
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens())
    writer.add_token_types([1] * 256 + [3, 1] + [5] * (VOCAB - 258))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(256)
    for _, name, shape in tensors(layers):
        stored = values.kind if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(name, shape, np.dtype(np.float32), values.nbytes(shape), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    out: BinaryIO = writer.fout[0]
    for _, _, shape in tensors(layers):
        writer.write_padding(out, out.tell())
        for piece in values.stored(shape):
            out.write(piece.data)
        writer.write_padding(out, values.nbytes(shape))
    writer.close()


def write_folder(folder: Path, layers: int) -> None:
    """Write a folder, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    values = Values(gguf.GGMLQuantizationType.BF16)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, _, shape in tensors(layers):
        end = at + values.nbytes(shape)
        entries[name] = {
            "dtype": "BF16" if len(shape) == 2 else "F32",
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for _, _, shape in tensors(layers):
            for piece in values.stored(shape):
                out.write(piece.data)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    listed = tokens()
    added = [{"id": i, "content": each, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for i, each in enumerate(listed) if i in (256,)]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {each: i for i, each in enumerate(listed)}, "merges": ["Ġ Ġ"]}
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", default="Q8_0", choices=["Q8_0", "Q4_0", "Q4_1", "BF16"])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--architecture", default="qwen2", choices=["qwen2", "llama"], help="of a GGUF file")
    options = parser.parse_args()
    if options.path.suffix == ".gguf":
        write_gguf(options.path, options.type, options.layers, options.architecture)
    elif options.type == "BF16":
        write_folder(options.path, options.layers)
    else:
        parser.error("a folder is --type BF16; else the name ends in .gguf")


if __name__ == "__main__":
    main()
