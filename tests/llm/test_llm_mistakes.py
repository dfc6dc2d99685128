"""What people get wrong in their first hour with a model, and what they are told: each message says what to do."""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import model_zoo
import pytest
from llm_models import write_tokenizer
from typer.testing import CliRunner

import npumatmul.llm
from npumatmul.cli.app import app
from npumatmul.errors import DeviceError, ModelError, UnusableFileError
from npumatmul.files.reading import RegularFile
from npumatmul.llm import GGUFFile, Model
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.quantize import (
    LayerRecipe,
    Recipe,
    cost_of,
    load_quantized,
    parse_scheme,
    quantize_model,
    save_quantized,
)
from npumatmul.llm.run.chat import ChatTemplate
from npumatmul.quant.schemes import Scheme

OPENERS = (npumatmul.llm.load, open_source, GGUFFile, load_quantized)


@pytest.fixture(scope="module")
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = next(each for each in model_zoo.VARIANTS if each.name == "qwen3-plain")
    return model_zoo.write_folder(tmp_path_factory.mktemp("mistakes"), variant, model_zoo.torch_model(variant))


# Paths


@pytest.mark.parametrize("call", OPENERS)
@pytest.mark.parametrize("path", [42, None, 1.5, b"model.gguf", ["model.gguf"]])
def test_what_is_no_path(call: Any, path: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"{call.__name__}: the path of a model is a str or a? ?Path.*{type(path).__name__}"
    ):
        call(path)


@pytest.mark.parametrize("call", OPENERS)
def test_an_empty_path_is_not_the_folder_that_we_are_in(call: Any) -> None:
    with pytest.raises(ValueError, match="the path of the model is empty"):
        call("")


@pytest.mark.parametrize("path", [42, "nowhere", "/dev/null"])
def test_a_file_that_never_came_to_be_is_quiet_when_it_goes(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    with pytest.raises((TypeError, OSError, UnusableFileError)):
        RegularFile(path)
    gc.collect()
    assert not told


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("Qwen/Qwen3-0.6B", "`hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B`"),
        ("https://example.org/Qwen3-0.6B", "addresses are not fetched"),
        ("~/models/qwen3.gguf", "os.path.expanduser('~/models/qwen3.gguf')"),
        ("models/qwne3", f"did you mean {Path('models/qwen3')}?"),
    ],
)
def test_a_path_that_leads_nowhere(path: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "qwen3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for call in (npumatmul.llm.load, open_source):
        with pytest.raises(FileNotFoundError, match=re.escape(advice)):
            call(path)


def test_advice_is_given_where_there_is_some_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no model file or folder .*other\.gguf$"):
        npumatmul.llm.load(tmp_path / "other.gguf")


@pytest.mark.parametrize("name", ["model.onnx", "model.rkllm", "notes.txt"])
def test_formats_that_are_not_read_are_not_to_be_fetched_again(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(ModelError, match="a model is a GGUF file, a folder as Hugging Face has it, or a file that"):
        npumatmul.llm.load(tmp_path / name)


def test_a_weight_file_of_a_folder_names_the_folder(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ModelError, match="is a part of a model: give the path of the folder"):
            npumatmul.llm.load(folder / name)


def test_a_weight_file_alone_is_said_to_hold_no_quantized_model(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(ModelError, match="without a quantized model"):
        npumatmul.llm.load(tmp_path / "model.safetensors")


def test_where_a_gguf_file_is_needed_a_quantized_model_is_known(tiny: Any, tmp_path: Path) -> None:
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w8a8"))), tmp_path / "q.safetensors")
    with pytest.raises(ModelError, match="it is a safetensors file; give the GGUF file that the model was made of"):
        GGUFFile(tmp_path / "q.safetensors")


# Schemes and settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [("W8A8", "w8a8"), (" w8a8", "w8a8"), ("w8-a8", "w8a8"), ("fp16", "w16a16"), ("8bit", "w8a8"), ("wa88", "w8a8"),
     ("W4A8_G128", "w4a8_g128")],
)  # fmt: skip
def test_names_that_are_almost_schemes(name: str, meant: str, tiny: Any) -> None:
    for call in (Scheme.parse, parse_scheme, lambda scheme: npumatmul.llm.load(tiny.path, scheme)):
        with pytest.raises(ValueError, match=rf"no scheme is called '{name}'; .*did you mean '{meant}'"):
            call(name)


def test_what_models_have_beside_the_schemes_of_arrays_is_told(tiny: Any) -> None:
    with pytest.raises(ValueError, match="'gguf', too, and 'float32'"):
        npumatmul.llm.load(tiny.path, "f32")
    with pytest.raises(ValueError, match="weights of a model are floats; did you mean 'w8a8'"):
        npumatmul.llm.load(tiny.path, "int8")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"context": "10"}, TypeError, "load: context is a whole number, 1 or more, not '10'"),
        ({"context": 1.5}, TypeError, "load: context is a whole number"),
        ({"context": True}, TypeError, "load: context is a whole number"),
        ({"context": 0}, ValueError, "load: context is 0"),
        ({"cache": "no"}, TypeError, "load: cache is True or False, not 'no'"),
        ({"policy": "w8a8"}, TypeError, "load: policy is a Policy, or a mapping"),
        ({"policy": ["head"]}, TypeError, "load: policy is a Policy, or a mapping"),
        ({"policy": {1: "w8a8"}}, TypeError, "load: policy has patterns of the names of layers, not int"),
    ],
)
def test_settings_are_named_as_they_were_given(
    settings: dict[str, Any], kind: type[Exception], message: str, tiny: Any, folder: Path
) -> None:
    for path in (tiny.path, folder):
        with pytest.raises(kind, match=re.escape(message)):
            npumatmul.llm.load(path, **settings)


# Prompts


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_tokens": None}, TypeError, "generate: max_tokens is a whole number, 1 or more, not None"),
        ({"max_tokens": True}, TypeError, "generate: max_tokens is a whole number"),
        ({"max_tokens": -1}, ValueError, "generate: max_tokens is -1"),
        ({"stop": 5}, TypeError, "stop is a text or a list of texts, not 5"),
        ({"stop_ids": 2}, TypeError, "stop_ids is to be whole numbers of tokens"),
        ({"stop_ids": ["</s>"]}, TypeError, "stop_ids is to be whole numbers of tokens"),
        ({"logprobs": "3"}, TypeError, "logprobs is a whole number from 0"),
    ],
)
def test_options_are_named_as_they_were_given(
    options: dict[str, Any], kind: type[Exception], message: str, model: Model
) -> None:
    with pytest.raises(kind, match=message):
        model.generate("hello", **options)


@pytest.mark.parametrize("ids", ["hi", [1.5], 5])
def test_texts_where_tokens_are_wanted(ids: Any, model: Model) -> None:
    for call in (model.logits, model.tokenizer.decode):
        with pytest.raises(TypeError, match=r"whole numbers of tokens, as tokenizer\.encode makes them"):
            call(ids)


def test_a_conversation_has_a_message(model: Model) -> None:
    with pytest.raises(ValueError, match="messages is empty"):
        model.chat([])


def test_a_text_by_another_name_is_not_left_out(model: Model) -> None:
    with pytest.raises(ValueError, match=r"message 1 has no \"content\".*it has 'role', 'text'"):
        model.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "text": "hello"}])
    with pytest.raises(ValueError, match="tools are a list of mappings"):
        model.chat([{"role": "user", "content": "hello"}], tools="weather")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({"role": "user", "content": None}, "missing or None"),
        ({"role": "assistant"}, "missing or None"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "a list"),
    ],
)
def test_a_template_for_texts_names_the_message_that_has_none(message: dict[str, Any], what: str) -> None:
    template = ChatTemplate("{% for m in messages %}{{ '<' + m['content'] + '>' }}{% endfor %}", {})
    fine = {"role": "user", "content": "hello"}
    with pytest.raises(ValueError, match=f"the content of message 1 is {what}: give a text"):
        template.render([fine, message])
    parts = ChatTemplate("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", {})
    assert parts.render([{"role": "user", "content": [1]}]) == "[1]"  # templates that know parts get them


def test_a_generation_shows_how_far_it_is(model: Model) -> None:
    generation = model.generate("hello", max_tokens=2)
    assert repr(generation) == "<Generation: 0 tokens, to be continued>"
    next(generation)
    generation.close()
    assert repr(generation) == "<Generation: 1 tokens, interrupted>"


def test_a_generation_belongs_to_one_thread_at_a_time(model: Model) -> None:
    """Asked from within a piece that is being made, as another thread would."""
    seen: list[str] = []

    def meddle(done: int, total: int) -> None:
        for call in (generation.__next__, generation.close):
            with pytest.raises(RuntimeError, match=r"one thread iterates .* cancel\(\)") as caught:
                call()
            seen.append(str(caught.value))

    generation = model.generate("hello", max_tokens=2, progress=meddle)
    assert len(list(generation)) == 2
    assert seen


# The command line


def test_the_folder_that_we_are_in_is_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(folder)
    monkeypatch.chdir(folder)
    for command in ("generate", "demo"):
        given = [command, "-m", ".", "-p", "a", "-n", "1", "--scheme", "float32"]
        assert CliRunner().invoke(app, given, catch_exceptions=False).exit_code == 0


# Truth values, progress and numbers of tokens


@pytest.mark.parametrize("value", ["yes", "no", 1, 0, None, 1.0])
def test_what_is_neither_true_nor_false(model: Model, value: Any) -> None:
    tokenizer = model.tokenizer
    calls: list[tuple[str, Callable[[], object]]] = [
        ("encode: parse_special", lambda: tokenizer.encode("ab", parse_special=value)),
        ("encode: add_special", lambda: tokenizer.encode("ab", add_special=value)),
        ("decode: skip_special", lambda: tokenizer.decode([], skip_special=value)),
        ("token_bytes: skip_special", lambda: tokenizer.token_bytes(1, skip_special=value)),
        ("load: cache", lambda: npumatmul.llm.load(model.path, "float32", cache=value)),
    ]
    if value is not None:  # which is what the model says
        calls.append(("embed: normalize", lambda: model.embed([], pooling="mean", normalize=value)))
    for named, call in calls:
        with pytest.raises(TypeError, match=f"^{named} is True or False, not {re.escape(repr(value))}$"):
            call()


@pytest.mark.parametrize("value", [3, True, "bar"])
def test_progress_that_cannot_be_called_is_refused_before_anything_is_done(model: Model, value: Any) -> None:
    path, recipe = model.path, Recipe(LayerRecipe("w8a8"))
    calls: list[tuple[str, Callable[[], object]]] = [
        ("load", lambda: npumatmul.llm.load("nowhere", progress=value)),
        ("load_model", lambda: npumatmul.llm.load_model("nowhere", pack=npumatmul.llm.numpy_pack, progress=value)),
        ("generate", lambda: model.generate("ab", progress=value)),
        ("generate", lambda: model.generate([1, 2], progress=value)),
        ("embed", lambda: model.embed(["ab"], pooling="mean", progress=value)),
        ("quantize_model", lambda: quantize_model(path, recipe, progress=value)),
        ("save_quantized", lambda: save_quantized(None, "nowhere", progress=value)),  # type: ignore[arg-type]
        ("fetch_demo_model", lambda: npumatmul.llm.fetch_demo_model("nowhere", progress=value)),
        ("fetch_demo_encoder", lambda: npumatmul.llm.fetch_demo_encoder("nowhere", progress=value)),
    ]
    for named, call in calls:
        with pytest.raises(TypeError, match=f"^{named}: progress is called with how far it is"):
            call()


@pytest.mark.parametrize("value", [1.5, "1", [1], b"1"])
def test_what_is_no_number_of_a_token(model: Model, value: Any) -> None:
    tokenizer = model.tokenizer
    for call in (tokenizer.token_bytes, tokenizer.token):
        with pytest.raises(TypeError, match=f"^{call.__name__}: token_id is the whole number of a token"):
            call(value)
    for given in ([value], None, 3, 1.5):
        with pytest.raises(TypeError, match=r"^decode: ids is to be whole numbers of tokens"):
            tokenizer.decode(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 1 << 40, 10**400])
def test_a_number_of_no_token(model: Model, number: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: model.tokenizer.token(number),
        lambda: model.tokenizer.token_bytes(number),
        lambda: model.tokenizer.decode([number]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is not in the vocabulary of"):
            call()


# Schemes of other chips


@pytest.mark.parametrize(
    ("scheme", "policy"), [("w4a16", None), ("w8a16", None), ("w4a4", {"head": "w4a16"}), ("float32", {"*": "w4a16"})]
)
def test_a_scheme_that_the_chip_lacks_is_refused_before_anything_is_said_of_its_cost(
    model: Model, scheme: str, policy: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []
    with pytest.raises(DeviceError, match=r"which rk3588 under runtime .* does not have"):
        npumatmul.llm.load(
            model.path, scheme, policy=policy, device="sim:rk3588", progress=lambda *each: told.append(each)
        )
    assert not told
    assert not caplog.records


def test_what_a_scheme_costs_is_told_where_the_chip_has_it(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    npumatmul.llm.load(model.path, "w4a16", device="sim:rk3576", cache=False).close()
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [cost_of("w4a16")]
