"""Models with a few bytes or values changed, read as far as a load reads them: an error of ours, or what is there.

``python tests/llm/mutated_models.py SECONDS [SEED]`` goes on for as long as it is told, and keeps what it found.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from npumatmul.errors import ModelError
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.registry import config_of
from npumatmul.llm.models.weights import load_decoder
from npumatmul.llm.tokenizers.gguf_tokenizer import GGUFTokenizer
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.product import FloatProduct

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutations import changed_bytes, changed_json

INDEX = "model.safetensors.index.json"
HIDDEN, FFN, VOCAB = 8, 12, 24
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 1, "vocab_size": VOCAB,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip
WEIGHTS = {
    "model.embed_tokens.weight": ("token_embd.weight", (VOCAB, HIDDEN)),
    "lm_head.weight": ("output.weight", (VOCAB, HIDDEN)),
    "model.norm.weight": ("output_norm.weight", (HIDDEN,)),
    "model.layers.0.input_layernorm.weight": ("blk.0.attn_norm.weight", (HIDDEN,)),
    "model.layers.0.self_attn.q_proj.weight": ("blk.0.attn_q.weight", (HIDDEN, HIDDEN)),
    "model.layers.0.self_attn.k_proj.weight": ("blk.0.attn_k.weight", (HIDDEN // 2, HIDDEN)),
    "model.layers.0.self_attn.v_proj.weight": ("blk.0.attn_v.weight", (HIDDEN // 2, HIDDEN)),
    "model.layers.0.self_attn.o_proj.weight": ("blk.0.attn_output.weight", (HIDDEN, HIDDEN)),
    "model.layers.0.post_attention_layernorm.weight": ("blk.0.ffn_norm.weight", (HIDDEN,)),
    "model.layers.0.mlp.gate_proj.weight": ("blk.0.ffn_gate.weight", (FFN, HIDDEN)),
    "model.layers.0.mlp.up_proj.weight": ("blk.0.ffn_up.weight", (FFN, HIDDEN)),
    "model.layers.0.mlp.down_proj.weight": ("blk.0.ffn_down.weight", (HIDDEN, FFN)),
}
TEMPLATES = {
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "b", "template": "x"}],
    "eos_token": "<e>", "bos_token": {"content": "<s>"},
    "added_tokens_decoder": {"1": {"content": "<e>", "special": True}},
}  # fmt: skip
TOKENS = ["<s>", "<e>", *"abcdefghijklmno", "\u0120", "ab", "abc", "\u0120a", "\u0120ab", "de", "def"]
MERGES = ["a b", "ab c", "\u0120 a", "\u0120a b", "d e", "de f"]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": i, "content": TOKENS[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for i in (0, 1)
    ],
    "normalizer": {
        "type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "x"}, "content": "ab"}],
    },
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {each: i for i, each in enumerate(TOKENS)}, "merges": MERGES, "fuse_unk": False},
}  # fmt: skip


def read_all(path: Path) -> None:
    """Read all that a source has; `ModelError` is how it refuses."""
    with open_source(path) as source:
        repr((source, source.name, dict(source.config), dict(source.rope_factors), dict(source.generation_config)))
        for name in source.weights:
            shape = source.weights.shape(name)
            assert source.weights.stored_as(name)[0].isupper()
            try:
                values = source.weights[name]
            except ModelError:
                continue
            assert values.shape == shape
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            if values.ndim == 2 and values.size:
                rows = source.weights.rows(name)(np.array([len(values) - 1, 0]))
                np.testing.assert_array_equal(rows, values[[-1, 0]])
        assert all(isinstance(content, bytes) for content in source.tokenizer_files.values())
        assert all(isinstance(each, str) for each in source.chat_templates.values())
        assert len(source.digest()) == 64
        config = config_of(source)
        if isinstance(source, GGUFSource):
            tokenizer: Tokenizer = GGUFTokenizer(source.file)
        else:
            tokenizer = JSONTokenizer(source.tokenizer_files, vocab_size=config.vocab_size, error=source.error)
        ids = tokenizer.encode("ab abc def x<s>", parse_special=True, add_special=True)
        assert all(0 <= each < tokenizer.vocab_size for each in ids)
        assert len(tokenizer.decode(ids)) < 10_000
        model = load_decoder(source, lambda layer: FloatProduct(layer.weight(source)), context_length=32)
        ids = ids[: model.config.context_length] or [0]
        with np.errstate(all="ignore"):
            assert model.forward(ids, model.new_cache(len(ids))).shape == (config.vocab_size,)


def write_folder(folder: Path) -> None:
    """A folder with everything that is read, its weights in two files and two types."""
    rng = np.random.default_rng(0)
    shards: dict[str, dict[str, Any]] = {f"model-0000{i}-of-00002.safetensors": {} for i in (1, 2)}
    for i, (name, (_, shape)) in enumerate(WEIGHTS.items()):
        tensors = shards[f"model-0000{1 + i % 2}-of-00002.safetensors"]
        tensors[name] = (0.3 * rng.standard_normal(shape)).astype(np.float16 if i % 3 else np.float32)
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: each for each in shards for name in shards[each]}}
    files = {"config.json": CONFIG, INDEX: index, "tokenizer_config.json": TEMPLATES}
    files |= {"generation_config.json": {"top_k": 3}, "tokenizer.json": TOKENIZER}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_gguf(path: Path) -> None:
    """The same model as a GGUF file."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template([{"name": "default", "template": "{{ messages[0].content }}"}])
    for i, (name, shape) in enumerate(WEIGHTS.values()):
        values = (0.3 * rng.standard_normal(shape)).astype(np.float16 if i % 3 and len(shape) == 2 else np.float32)
        writer.add_tensor(name, values)
    writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mutated(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Write one changed file after the other in `folder`; yields the model's path, and what is changed."""
    (folder / "gguf").mkdir()
    (folder / "hf").mkdir()
    write_gguf(folder / "gguf" / "m.gguf")
    write_folder(folder / "hf")
    changes: list[tuple[Path, Path, Callable[[bytes, int, int], Iterator[bytes]]]] = [
        (folder / "gguf" / "m.gguf", folder / "gguf" / "m.gguf", changed_bytes)
    ]
    for file in sorted((folder / "hf").iterdir()):
        changes.append((folder / "hf", file, changed_bytes))
        if file.suffix == ".json":
            changes.append((folder / "hf", file, _changed_text))
        else:
            changes.append((folder / "hf", file, _changed_header))
    for model, file, change in changes:
        whole = file.read_bytes()
        for data in change(whole, count, seed):
            file.write_bytes(data)
            yield model, file.name
        file.write_bytes(whole)


def _changed_text(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    for content in changed_json(json.loads(whole), count, seed):
        yield json.dumps(content).encode()


def _changed_header(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    length = int.from_bytes(whole[:8], "little")
    for content in changed_json(json.loads(whole[8 : 8 + length]), count, seed):
        text = json.dumps(content).encode()
        yield len(text).to_bytes(8, "little") + text + whole[8 + length :]


def main() -> None:
    """Go on for some time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    end, seed, tried, refused, found = time.monotonic() + options.seconds, options.seed, 0, 0, 0
    while time.monotonic() < end:
        seed += 1
        with tempfile.TemporaryDirectory() as folder:
            for model, name in mutated(Path(folder), 50, seed):
                tried += 1
                start = time.monotonic()
                try:
                    read_all(model)
                except (ModelError, FileNotFoundError):
                    refused += 1
                except BaseException as error:
                    found += 1
                    print(f"seed {seed}, {name}: {error!r}")
                    traceback.print_exc()
                    (Path(tempfile.gettempdir()) / f"found-{seed}-{tried}-{name}").write_bytes(
                        (model if model.is_file() else model / name).read_bytes()
                    )
                    if isinstance(error, KeyboardInterrupt):
                        raise
                if time.monotonic() - start > 2:
                    print(f"seed {seed}, {name}: took {time.monotonic() - start:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{tried} models, {refused} refused, {found} found; peak {peak} MB; seeds {options.seed + 1} to {seed}")


if __name__ == "__main__":
    main()
