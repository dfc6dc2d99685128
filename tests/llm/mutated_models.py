"""Models with a few bytes or values changed, read as far as a load reads them: an error of ours, or what is there.

``python tests/llm/mutated_models.py SECONDS [SEED]`` goes on for as long as it is told, and keeps what it found.
"""

from __future__ import annotations

import argparse
import json
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
from npumatmul.llm.files.opening import open_source

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutations import changed_bytes, changed_json

INDEX = "model.safetensors.index.json"
CONFIG = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": {"rope_type": "llama3", "factor": 2.0},
}  # fmt: skip
TEMPLATES = {"chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "b", "template": "x"}]}


def read_all(path: Path) -> None:
    """Read all that a source has; `ModelError` is how it refuses."""
    with open_source(path) as source:
        repr((source, source.name, dict(source.config), dict(source.rope_factors), dict(source.generation_config)))
        for name in source.weights:
            shape = source.weights.shape(name)
            assert source.weights.stored_as(name).isupper() or source.weights.stored_as(name)[0].isupper()
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


def write_folder(folder: Path) -> None:
    """A folder with everything that is read, its weights in two files and three types."""
    rng = np.random.default_rng(0)
    first: dict[str, Any] = {"model.embed_tokens.weight": rng.standard_normal((16, 8)).astype(np.float32)}
    second: dict[str, Any] = {
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((12, 8)).astype(np.float16),
        "model.norm.weight": np.ones(8, np.float32),
    }
    shards = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: each for each in shards for name in shards[each]}}
    files = {"config.json": CONFIG, INDEX: index, "tokenizer_config.json": TEMPLATES}
    files |= {"generation_config.json": {"top_k": 3}, "tokenizer.json": {"model": {"type": "BPE"}}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_gguf(path: Path) -> None:
    """A GGUF file with metadata of several types, and tensors of several."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.5])
    writer.add_chat_template([{"name": "default", "template": "{{ messages }}"}])
    writer.add_tensor("token_embd.weight", rng.standard_normal((4, 8)).astype(np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0):
        stored = gguf.quants.quantize(rng.standard_normal((2, 32)).astype(np.float32), kind)
        writer.add_tensor(f"blk.0.{kind.name}.weight", stored, raw_dtype=kind)
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
