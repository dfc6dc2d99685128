"""Ollama's API, by its own client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import ollama
import pytest
from serving import Scripted, serving

import npumatmul.llm
from npumatmul.llm import Model, Policy
from npumatmul.server import Server

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = {"temperature": 0, "repeat_penalty": 1.0}


Of = Callable[[Server], ollama.Client]


@pytest.fixture
def of() -> Iterator[Of]:
    made: list[ollama.Client] = []

    def make(server: Server) -> ollama.Client:
        made.append(ollama.Client(host=server.url))
        return made[-1]

    yield make
    for each in made:
        each._client.close()


@pytest.fixture
def client(server: Server, of: Of) -> ollama.Client:
    return of(server)


def test_chat(client: ollama.Client, model: Model) -> None:
    expected = "".join(piece.text for piece in model.chat(HELLO, max_tokens=8))
    answer = client.chat(model="tiny", messages=HELLO, options={**PLAIN, "num_predict": 8}, keep_alive="5m")
    assert answer.message.content == expected
    assert answer.done
    assert answer.done_reason == "length"
    assert answer.eval_count == 8
    assert answer.prompt_eval_count == len(model.encode_chat(HELLO))
    for duration in (answer.total_duration, answer.prompt_eval_duration, answer.eval_duration):
        assert isinstance(duration, int)
    assert (answer.total_duration or 0) >= (answer.prompt_eval_duration or 0) > 10_000, "in nanoseconds"
    parts = list(client.chat(model="tiny:latest", messages=HELLO, stream=True, options={**PLAIN, "num_predict": 8}))
    assert "".join(part.message.content or "" for part in parts) == expected
    assert [part.done for part in parts].count(True) == 1
    assert parts[-1].eval_count == 8


def test_lines_are_json_each(server: Server) -> None:
    """Without a stream field there is one, as with Ollama."""
    body = {"model": "tiny", "prompt": "Hi", "options": {"num_predict": 3}}
    answer = httpx.post(f"{server.url}/api/generate", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[-1]["done"]
    assert lines[-1]["response"] == ""
    assert all(not line["done"] and line["model"] == "tiny" for line in lines[:-1])


def test_generate(client: ollama.Client, model: Model, of: Of) -> None:
    raw = client.generate(model="tiny", prompt="abc", raw=True, options={**PLAIN, "num_predict": 5})
    assert raw.response == "".join(piece.text for piece in model.generate("abc", max_tokens=5))
    said = Scripted(model, "yes")
    with serving({"tiny": said}) as server:
        answer = of(server).generate(model="tiny", prompt="Go?", system="Be brief")
    assert answer.response == "yes"
    assert answer.done_reason == "stop"
    assert said.prompts == ["<|im_start|>system\nBe brief<|im_end|><|im_start|>user\nGo?<|im_end|>"]


def test_options(client: ollama.Client, model: Model, of: Of) -> None:
    options = {
        "seed": 3,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.01,
        "num_predict": 20,
        "num_gpu": 1,
    }
    one, two = (client.generate(model="tiny", prompt="x", options=options).response for _ in range(2))
    assert one == two
    assert client.generate(model="tiny", prompt="x", options={**options, "seed": 4}).response != one
    with serving({"tiny": Scripted(model, "one STOP two")}) as server:
        answer = of(server).generate(model="tiny", prompt="x", options={"stop": ["STOP"]})
    assert answer.response == "one "
    for wrong, said in (
        ({"mirostat": 1}, "options.mirostat is not supported"),
        ({"num_ctx": 100_000}, "was loaded with a context of 512"),
        ({"unheard": 1}, "options.unheard is not known"),
        ({"temperature": "hot"}, "options.temperature is 'hot'"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as error:
            client.generate(model="tiny", prompt="x", options=wrong)
        assert error.value.status_code == 400


def test_repetitions_count_in_a_window(client: ollama.Client) -> None:
    def distinct(**options: Any) -> int:
        given = {"temperature": 0, "num_predict": 40, **options}
        text = client.generate(model="tiny", prompt="x", raw=True, options=given, logprobs=None).response
        return len(set(text))

    plain = distinct(repeat_penalty=1.0)
    assert distinct(repeat_penalty=5.0, repeat_last_n=-1) > plain
    assert distinct(repeat_penalty=5.0, repeat_last_n=0) == plain


def test_formats(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    for seed in range(3):
        answer = client.chat(model="tiny", messages=HELLO, format=schema, options={"seed": seed, "temperature": 1})
        jsonschema.validate(json.loads(answer.message.content or ""), schema)
    with pytest.raises(ollama.ResponseError, match="'multipleOf'"):
        client.chat(model="tiny", messages=HELLO, format={"type": "integer", "multipleOf": 2})


def test_tools(model: Model, of: Of) -> None:
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    said = Scripted(model, f"Sure. {call}")
    with serving({"tiny": said}) as server:
        client = of(server)
        answer = client.chat(model="tiny", messages=HELLO, tools=[tool])
        assert answer.message.content == "Sure. "
        (found,) = answer.message.tool_calls or []
        assert (found.function.name, found.function.arguments) == ("add", {"a": 1})
        history: list[Any] = [*HELLO, answer.message, {"role": "tool", "content": "2", "tool_name": "add"}]
        parts = list(client.chat(model="tiny", messages=history, tools=[tool], stream=True))
        assert [c.function.name for part in parts for c in part.message.tool_calls or []] == ["add"]
        assert client.show("tiny").capabilities == ["completion", "tools"]
    assert '<tool_call>["a"]</tool_call>' in said.prompts[1]


def test_thoughts_are_told_apart(model: Model, of: Of) -> None:
    said = Scripted(model, "<think>\nhm, 2\n</think>\n\nTwo.")
    with serving({"tiny": said}) as server:
        client = of(server)
        for think in (True, "high"):
            answer = client.chat(model="tiny", messages=HELLO, think=think)  # type: ignore[arg-type]
            assert (answer.message.thinking, answer.message.content) == ("hm, 2", "Two.")
        parts = list(client.chat(model="tiny", messages=HELLO, think=True, stream=True))
        assert "".join(part.message.thinking or "" for part in parts).strip() == "hm, 2"
        assert "".join(part.message.content or "" for part in parts) == "Two."
        assert (client.chat(model="tiny", messages=HELLO).message.content or "").startswith("<think>")
        client.chat(model="tiny", messages=HELLO, think=False)
    assert "thinking=True" in said.prompts[0]
    assert "thinking=False" in said.prompts[-1]


def test_embeddings_are_of_length_one(encoder: Model, of: Of) -> None:
    texts = ["the cat sat", "a dog"]
    with serving({"e": encoder}) as server:
        client = of(server)
        made = client.embed(model="e", input=texts, truncate=True)
        rows = encoder.embed(texts, normalize=True)
        assert np.allclose(np.array(made.embeddings), rows, atol=1e-6)
        assert made.prompt_eval_count == sum(len(encoder.tokenizer.encode(text)) for text in texts)
        older = client.embeddings(model="e", prompt="a dog")
        assert np.allclose(np.array(older.embedding), encoder.embed(["a dog"])[0])
        with pytest.raises(ollama.ResponseError, match="truncate is false"):
            client.embed(model="e", input="the cat " * 100, truncate=False)
        with pytest.raises(ollama.ResponseError, match="input is empty"):
            client.embed(model="e", input="")
        assert client.show("e").capabilities == ["embedding"]


def test_memory_of_the_npu_is_what_layers_there_take(model: Model, of: Of) -> None:
    """As `ollama ps` makes a share of GPU and CPU of it."""
    with (
        npumatmul.llm.load(model.path, device="sim:rk3588") as whole,
        npumatmul.llm.load(model.path, device="sim:rk3588", policy=Policy(1, decode="npu", prefill="npu")) as part,
        npumatmul.llm.load(model.path, device="sim:rk3588", policy=Policy(0)) as none,
        serving({"whole": whole, "part": part, "none": none}) as server,
    ):
        found = {each.model: each.size_vram for each in of(server).ps().models}
        assert part.placement is not None
        assert found["part:latest"] == part.placement.npu_bytes
        assert found["none:latest"] == 0
        assert found["whole:latest"] > found["part:latest"] > 0


def test_what_clients_ask_of_models(client: ollama.Client, model: Model, server: Server) -> None:
    (entry,) = client.list().models
    assert entry.model == "tiny:latest"
    assert entry.size == model.path.stat().st_size
    assert [each.model for each in client.ps().models] == ["tiny:latest"]
    assert client.ps().models[0].size_vram == 0, "numpy computes it"
    assert entry.details is not None
    assert (entry.details.family, entry.details.families) == ("llama", ["llama"])
    shown = client.show("tiny")
    assert shown.template == model.chat_template.source
    assert (shown.modelinfo or {})["npumatmul.context_length"] == 512
    assert httpx.get(f"{server.url}/").text == "npumatmul is running"
    assert "version" in httpx.get(f"{server.url}/api/version").json()
    loaded = client.generate(model="tiny", prompt="")
    assert loaded.done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="model 'other' not found") as error:
        client.chat(model="other", messages=HELLO)
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="fetches and changes none"):
        client.pull("other")
