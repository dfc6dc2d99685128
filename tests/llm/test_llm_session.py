"""Sessions: what is said and read, and that a file of one is of use to its own model alone."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_models import text_of

import npumatmul.llm
from npumatmul.errors import ClosedError, UnusableFileError
from npumatmul.llm import ContextFullError, KVCache, Model, Session

HOW: dict[str, Any] = {"max_tokens": 8, "stop_ids": []}


@pytest.fixture
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


def test_a_session_answers_as_chat_does_and_reads_only_what_is_new(model: Model) -> None:
    session = model.session(system="be brief", **HOW)
    said = [{"role": "system", "content": "be brief"}]
    for text in ("one", "two", "three"):
        said.append({"role": "user", "content": text})
        answer = session.send(text)
        model.prefixes.clear()
        assert text_of(answer) == text_of(model.chat(said, **HOW)) == answer.text
        said.append({"role": "assistant", "content": answer.text})
        assert session.messages == said
    assert answer.stats.cached_tokens > len(model.encode_chat(said[:5])) // 2
    assert session.tokens == answer.stats.prompt_tokens + 7


def test_settings_count_for_all_answers_and_options_for_one(model: Model) -> None:
    session = model.session(max_tokens=3, stop_ids=())
    assert session.settings == {"max_tokens": 3, "stop_ids": []}
    assert len(list(session.send("a"))) == 3
    assert len(list(session.send("b", max_tokens=5))) == 5
    assert len(list(session.send({"role": "tool", "content": "42"}))) == 3
    assert [each["role"] for each in session.messages] == ["user", "assistant"] * 2 + ["tool", "assistant"]


def test_an_answer_that_is_left_is_what_was_said(model: Model) -> None:
    session = model.session(**HOW)
    answer = session.send("one")
    first = next(answer).text + next(answer).text
    second = session.send("two")
    assert session.messages[1] == {"role": "assistant", "content": first}
    second.cancel()
    assert list(second) == []
    assert len(session.messages) == 2, "nothing was answered, so nothing was asked"
    third = session.send("three")
    next(third)
    third.close()
    assert [each["role"] for each in session.messages] == ["user", "assistant"] * 2
    session.reset()
    assert (session.messages, session.tokens) == ([], 0)


def test_a_message_that_cannot_be_answered_is_not_said(model: Model) -> None:
    session = model.session(system="s", **HOW)
    with pytest.raises(ContextFullError):
        session.send("x" * 600)
    with pytest.raises(TypeError, match="send: a message is a text or a mapping with a role, not int"):
        session.send(3)  # type: ignore[arg-type]
    assert [each["role"] for each in session.messages] == ["system"]
    assert text_of(session.send("y" * 600, on_full="window"))
    for wrong in ({"max_token": 3}, {"max_tokens": "3"}, {"temperature": True}, {"speculation": object()}):
        with pytest.raises(TypeError, match="session: "):
            model.session(**wrong)
    with pytest.raises(TypeError, match="session: messages are a list"):
        model.session("hello")  # type: ignore[arg-type]


def test_a_conversation_goes_on_from_its_file(model: Model, tiny: Any, tmp_path: Path) -> None:
    session = model.session(system="be brief", temperature=0.0, **HOW)
    for text in ("one", "two"):
        list(session.send(text))
    session.save(tmp_path / "talk.session")
    expected = text_of(session.send("three"))
    with npumatmul.llm.load(tiny.path, "float32") as other:
        again = other.load_session(tmp_path / "talk.session")
        assert again.messages == session.messages[:-2]
        assert again.settings == session.settings
        answer = again.send("three")
        assert text_of(answer) == expected
        assert answer.stats.cached_tokens >= session.tokens // 2


def test_an_empty_session_and_one_of_a_longer_context(model: Model, tiny: Any, tmp_path: Path) -> None:
    model.session().save(tmp_path / "empty")
    assert model.load_session(tmp_path / "empty").messages == []
    session = model.session(**HOW)
    list(session.send("x" * 100))
    session.save(tmp_path / "long")
    with npumatmul.llm.load(tiny.path, "float32", context=64) as short:
        again = short.load_session(tmp_path / "long")
        assert again.tokens == 0
        assert again.messages == session.messages
    with npumatmul.llm.load(tiny.path, "float32", context=400) as shorter:
        again = shorter.load_session(tmp_path / "long")
        assert again.tokens == session.tokens
        list(again.send("y"))


def test_a_session_of_another_model_is_refused(model: Model, tiny: Any, make_tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "talk.session"
    session = model.session(**HOW)
    list(session.send("one"))
    session.save(path)
    message = "is a session with the model 'tiny', whose files are others"
    other = npumatmul.llm.load(make_tiny_model(tied=True).path, "float32")
    with other, pytest.raises(UnusableFileError, match=message):
        other.load_session(path)
    message = "is a session with weights as 'float32'; the model is loaded as w8a8"
    other = npumatmul.llm.load(tiny.path, "w8a8", device="sim:rk3588")
    with other, pytest.raises(UnusableFileError, match=message):
        other.load_session(path)
    moved = tmp_path / "renamed.gguf"
    shutil.copy(tiny.path, moved)
    with npumatmul.llm.load(moved, "float32") as same:
        assert same.load_session(path).messages == session.messages


def test_files_that_are_none_of_a_session(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        model.load_session(path)
    cache = model._model.new_cache()
    model._model.forward([1, 2, 3], cache)
    cache.save(path)
    with pytest.raises(UnusableFileError, match="is a cache without a conversation"):
        model.load_session(path)
    good = {
        "version": 1,
        "model": "tiny",
        "digest": model.digest,
        "schemes": model.schemes_digest,
        "scheme": "float32",
        "messages": [],
        "settings": {},
    }
    changes: list[tuple[Any, str]] = [
        ("nothing", "is not JSON"),
        ([], "of version None"),
        ({**good, "version": 2}, "of version 2"),
        ({**good, "messages": [{}]}, "lacks what belongs to one"),
        ({**good, "messages": "hi"}, "lacks what belongs to one"),
        ({**good, "settings": {"max_tokens": []}}, "the settings in .* are none"),
        ({**good, "settings": {"progress": 1}}, "the settings in .* are none"),
        ({**good, "digest": 5}, "lacks what belongs to one"),
    ]
    for content, message in changes:
        cache.notes = {"session": content if isinstance(content, str) else json.dumps(content)}
        cache.save(path)
        with pytest.raises(UnusableFileError, match=message):
            model.load_session(path)
    other = KVCache(npumatmul.llm.DecoderConfig(2, 32, 4, 4, 8, 48, 264, 512), 512)
    other.notes = {"session": json.dumps(good)}
    other.save(path)
    with pytest.raises(UnusableFileError, match=r"the keys and values in .* are not those of tiny"):
        model.load_session(path)


def test_a_damaged_file_is_never_believed(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk.session"
    session = model.session(**HOW)
    list(session.send("one"))
    session.save(path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            at = rng.randrange(len(damaged))
            damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UnusableFileError):
            model.load_session(path)
    path.write_bytes(whole)
    assert model.load_session(path).messages == session.messages


def test_what_cannot_be_saved_leaves_the_file_that_was(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk.session"
    session = model.session(**HOW)
    session.save(path)
    before = path.read_bytes()
    session.messages.append({"role": "user", "content": object()})
    with pytest.raises(TypeError, match="a session is saved as JSON"):
        session.save(path)
    assert path.read_bytes() == before


def test_sessions_share_their_model(model: Model) -> None:
    """Each keeps its own cache, and what one leaves serves another one."""
    one, other = model.session(system="a" * 30, **HOW), model.session(system="a" * 30, **HOW)
    list(one.send("x"))
    tokens = one.tokens
    one.close()
    assert (one.tokens, len(model.prefixes)) == (0, 1)
    answer = other.send("y")
    list(answer)
    assert answer.stats.cached_tokens > 30
    assert tokens > 0
    model.close()
    with pytest.raises(ClosedError):
        other.send("z")
    assert len(other.messages) == 3
    assert isinstance(other, Session)
