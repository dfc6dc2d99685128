"""`load` of every architecture, from folders and GGUF files: end to end, on the simulator, with the cache on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hybrid_zoo
import numpy as np
import pytest
from llm_models import write_tokenizer
from model_zoo import VARIANTS, VOCAB, Variant, prefill_logits, torch_model, write_folder, write_gguf
from numpy.typing import NDArray

import npumatmul as npu
import npumatmul.llm
from npumatmul.errors import ModelError
from npumatmul.llm import JSONTokenizer
from npumatmul.llm.models.encoders import ENCODERS
from npumatmul.llm.models.registry import GGUF_ARCHITECTURES

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 255, 24)]
HELLO = [{"role": "user", "content": "hello"}]
#: One of each architecture is enough here: what else differs is in test_llm_architectures.py.
CASES: list[Any] = [
    pytest.param(variant, kind, id=f"{variant.model_type}-{kind}")
    for variant in {each.model_type: each for each in reversed(VARIANTS)}.values()
    for kind in ("folder", "gguf")
    if kind == "folder" or variant.gguf is not None
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant, str], tuple[Path, Any]]:
    models: dict[str, Any] = {}

    def make(variant: Variant, kind: str) -> tuple[Path, Any]:
        model = models.setdefault(variant.name, None) or torch_model(variant)
        models[variant.name] = model
        folder = tmp_path_factory.mktemp("model")
        if kind == "gguf":
            return write_gguf(folder / "model.gguf", variant, model), model
        path = write_folder(folder, variant, model)
        write_tokenizer(path)
        return path, model

    return make


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(prefill_logits(model, ids)[-1])))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_every_architecture_end_to_end(
    made: Callable[[Variant, str], tuple[Path, Any]], variant: Variant, kind: str, device: npu.Device
) -> None:
    path, torch_one = made(variant, kind)
    expected = prefill_logits(torch_one, IDS)
    with npumatmul.llm.load(path, "float32") as model:
        bound = 2e-5 * float(np.abs(expected).max())
        np.testing.assert_allclose(model.logits(IDS), expected, rtol=0, atol=bound)
        ids = model.encode_chat(HELLO)
        assert model.tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nhello<|im_end|>"
        pieces = list(model.chat(HELLO, max_tokens=5, stop_ids=()))
        assert [piece.token for piece in pieces] == greedy(torch_one, ids, 5)
        assert "".join(piece.text for piece in pieces) == model.tokenizer.decode(p.token for p in pieces)

    def on_npu() -> NDArray[np.float32]:
        with npumatmul.llm.load(path, device=device) as model:
            assert model.scheme == "w8a8"
            return model.logits(IDS)

    got = on_npu()
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    # a norm behind states makes small differences large
    assert cosine.mean() > (0.95 if variant.model_type in {each[0] for each in hybrid_zoo.VARIANTS} else 0.98)
    np.testing.assert_array_equal(on_npu(), got)  # from the cache
    npu.empty_cache(device)
    assert device.stats().npu_bytes == 0


def test_a_folder_and_a_gguf_file_are_one_model(made: Callable[[Variant, str], tuple[Path, Any]]) -> None:
    variant = next(each for each in VARIANTS if each.gguf == "llama")
    with (
        npumatmul.llm.load(made(variant, "folder")[0], "float32") as one,
        npumatmul.llm.load(made(variant, "gguf")[0], "float32") as other,
    ):
        assert one.vocab_size == other.vocab_size == one.tokenizer.vocab_size == other.tokenizer.vocab_size
        assert one.encode_chat(HELLO) == other.encode_chat(HELLO)
        np.testing.assert_allclose(one.logits(IDS), other.logits(IDS), atol=1e-4)
        for text in ("the end", "<think>naïve 人<|im_end|>"):
            assert one.tokenizer.encode(text) == other.tokenizer.encode(text)


@pytest.fixture
def folder(made: Callable[[Variant, str], tuple[Path, Any]]) -> Path:
    return made(next(each for each in VARIANTS if each.gguf == "llama"), "folder")[0]


def test_ends_of_answers_come_from_all_configurations(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 261, 10**12]}))
    with npumatmul.llm.load(folder, "float32") as model:
        assert model.tokenizer.stop_ids == {5, 261}


def test_templates_of_their_own_files_come_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    with npumatmul.llm.load(folder, "float32") as model:
        assert model.encode_chat(HELLO) == [262, *model.tokenizer.encode("hello"), 261]


def test_without_a_template_messages_follow_one_another(folder: Path) -> None:
    write_tokenizer(folder, chat_template=None)
    with npumatmul.llm.load(folder, "float32") as model:
        assert model.tokenizer.decode(model.encode_chat([*HELLO, *HELLO])) == "hello\nhello"


def test_a_folder_without_a_tokenizer_says_what_to_do(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ModelError, match=r"no tokenizer\.json but tokenizer\.model: .*save_pretrained\(folder\)"):
        npumatmul.llm.load(folder, "float32")


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": VOCAB, "content": "<one too many>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"'<one too many>' of number {VOCAB}, its model {VOCAB} tokens"):
        npumatmul.llm.load(folder, "float32")


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", ModelError, "fails"),
        (
            "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
            ModelError,
            "fails|compiled",
        ),
        ("{{ raise_exception('roles must alternate') }}", ValueError, "refuses these messages: roles must alternate"),
        ("{% if %}", ModelError, "cannot be compiled"),
    ],
)
def test_templates_that_do_harm(folder: Path, template: str, kind: type[Exception], message: str) -> None:
    write_tokenizer(folder, chat_template=template)
    with pytest.raises(kind, match=message) as caught, npumatmul.llm.load(folder, "float32") as model:
        model.chat(HELLO)
    assert "\n" not in str(caught.value)


def test_tokenizer_json_is_what_the_folder_reads(folder: Path) -> None:
    with npumatmul.llm.load(folder, "float32") as model:
        assert isinstance(model.tokenizer, JSONTokenizer)
        assert (model.tokenizer.bos_id, model.tokenizer.eos_id) == (262, 261)


def test_the_document_about_loading_names_every_architecture_of_gguf_files() -> None:
    document = (Path(__file__).parents[2] / "docs" / "loading.md").read_text(encoding="utf-8")
    told = document[document.index("- Architectures ") : document.index("- All storage types")]
    names = {*GGUF_ARCHITECTURES, *(name for each in ENCODERS for name in each.gguf)}
    assert {name for name in names if f"`{name}`" not in told} == set()
