"""Pictures in prompts: an encoder of one's own before a language model that sees.

    python examples/pictures.py [FOLDER]

FOLDER is a model of the Qwen-VL family as Hugging Face has it, with its vision encoder left out. Without one, a small
random model is made, so that everything runs within seconds and without a network; its answers mean nothing. The
encoder here is a single layer that nobody trained: put yours in its place, in PyTorch, ONNX or over npumatmul.nn.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from npumatmul import llm, nn

PATCH, MERGED = 4, 2  # pixels of a patch, and patches that become one row, on each side
PICTURE = 258  # the token that stands for pictures


def random_model(folder: Path) -> Path:
    """A folder with a language model that knows bytes, of the kind of Qwen2-VL."""
    config = {
        "model_type": "qwen2_vl",
        "image_token_id": PICTURE,
        "video_token_id": PICTURE,
        "text_config": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    decoder = llm.Decoder(llm.DecoderConfig(2, 64, 4, 2, 16, 96, 259, 512, qkv_bias=True))
    rng = np.random.default_rng(1)
    shapes = decoder.parameter_shapes()
    save_file(
        {name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    start, end, picture = (
        {"id": 256 + i, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False,
         "rstrip": False} for i, text in enumerate(("<|im_start|>", "<|im_end|>", "<|image_pad|>"))
    )  # fmt: skip
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that are written as themselves
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "model": {"type": "BPE", "vocab": letters, "merges": []}, "pre_tokenizer": words,
        "decoder": words, "added_tokens": [start, end, picture],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (
        "{% for m in messages %}<|im_start|>{% for part in m.content %}{% if part.type == 'image' %}<|image_pad|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
    return folder


class Encoder:
    """Makes rows of a picture: patches of pixels, four of them beside each other merged into one row."""

    def __init__(self, width: int) -> None:
        self.merge = nn.Linear(3 * (PATCH * MERGED) ** 2, width, bias=False, scheme="w16a16")
        shape = self.merge.parameter_shapes()["weight"]
        self.merge.load_state_dict({"weight": np.random.default_rng(2).normal(0, shape[1] ** -0.5, shape)})

    def __call__(self, pixels: np.ndarray) -> llm.Embedded:
        """From (height, width, 3) to rows and their grid."""
        side = PATCH * MERGED
        height, width = pixels.shape[0] // side, pixels.shape[1] // side
        blocks = pixels.reshape(height, side, width, side, 3).swapaxes(1, 2).reshape(height * width, -1)
        return llm.Embedded(self.merge(np.ascontiguousarray(blocks, np.float32)), grid=(1, height, width))


def main() -> None:
    """Ask about two pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if len(sys.argv) > 1 else random_model(Path(folder))
        with llm.load(path, cache=False) as model:
            config = json.loads((Path(path) / "config.json").read_text())
            encoder = Encoder(config.get("text_config", config)["hidden_size"])
            rng = np.random.default_rng(3)  # instead of two photographs
            pictures = [encoder(rng.random((32, 48, 3))), encoder(rng.random((64, 32, 3)))]
            content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What differs?"}]
            for _ in range(2):
                answer = model.chat([{"role": "user", "content": content}], embeddings=pictures, max_tokens=8)
                text = "".join(piece.text for piece in answer)
                print(f"{answer.stats.prompt_tokens} tokens, {answer.stats.cached_tokens} of them known: {text!r}")


if __name__ == "__main__":
    main()
