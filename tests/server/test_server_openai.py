"""OpenAI's API, by its own client."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from serving import Scripted, serving

from npumatmul.llm import Model
from npumatmul.server import Server

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def scripted(model: Model, text: str, **settings: Any) -> Any:
    return serving({"tiny": Scripted(model, text)}, **settings)


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_an_answer_is_what_the_model_says(client: openai.OpenAI, model: Model) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, temperature=0)
    pieces = list(model.chat(HELLO, max_tokens=8))
    assert answer.choices[0].message.content == "".join(piece.text for piece in pieces)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(model.encode_chat(HELLO))
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_completion_tokens": 12, "seed": 7}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_guessed_tokens_change_no_answer(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the the the the", "max_tokens": 30, "temperature": 0}
    asked["logit_bias"] = {str(ord(letter)): 20 for letter in "ab"}  # so that things come again
    with serving({"tiny": model}, speculation="lookup") as server, client_of(server) as guessing:
        guessed = guessing.completions.create(**asked)
    assert guessed.choices[0].text == client.completions.create(**asked).choices[0].text


def test_several_answers_differ_and_are_repeatable(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 6, "n": 3, "seed": 1}
    one, two = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in one.choices] == [0, 1, 2]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert one.usage is not None
    assert one.usage.completion_tokens == 18


def test_probabilities_are_those_of_the_logits(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 3, "temperature": 0}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=4)
    assert answer.choices[0].logprobs is not None
    told = answer.choices[0].logprobs.content or []
    logits = model.logits(model.encode_chat(HELLO))[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert len(told) == 3
    assert told[0].logprob == pytest.approx(expected.max(), abs=1e-4)
    assert [each.logprob for each in told[0].top_logprobs] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-4)
    assert told[0].bytes == list(model.tokenizer.token_bytes(int(expected.argmax())))
    chunks = client.chat.completions.create(**asked, logprobs=True, stream=True)
    streamed = [each for c in chunks if c.choices[0].logprobs for each in c.choices[0].logprobs.content or []]
    assert [each.logprob for each in streamed] == [each.logprob for each in told]


def test_answers_end_at_texts_that_stop_them(model: Model) -> None:
    with scripted(model, "one STOP two") as server, client_of(server) as client:
        for stop in ("STOP", ["xyz", "STOP"]):
            answer = client.chat.completions.create(model="tiny", messages=HELLO, stop=stop)
            assert answer.choices[0].message.content == "one "
            assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_json_is_json(client: openai.OpenAI, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["color", "size"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": schema}}
    for seed in range(3):
        asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "response_format": form, "seed": seed}
        if stream:
            chunks = list(client.chat.completions.create(**asked, stream=True))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            answer = client.chat.completions.create(**asked)
            assert answer.choices[0].finish_reason == "stop"
            text = answer.choices[0].message.content or ""
        jsonschema.validate(json.loads(text), schema)


def test_any_object_and_its_schema_by_a_bias(client: openai.OpenAI) -> None:
    """A bias makes it end: a quote and braces are likely."""
    bias = {str(byte): 20 for byte in b'"}'} | {"261": 100}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format={"type": "json_object"}, logit_bias=bias, max_tokens=400
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_what_a_schema_cannot_have_is_said(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "contains": {}}}}
    with pytest.raises(openai.BadRequestError, match="'contains', which answers cannot be kept to"):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=form)


def test_formats_that_take_too_long_to_follow_are_the_clients_mistake(client: openai.OpenAI) -> None:
    schema = {"type": "string", "pattern": "^((a{0,60}){0,60}){0,60}$"}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="too ambiguous"):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=form)


def test_penalties_keep_tokens_from_coming_again(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "temperature": 0, "logprobs": True}

    def repeated(**more: Any) -> int:
        told = client.chat.completions.create(**asked, **more).choices[0].logprobs
        assert told is not None
        tokens = [tuple(each.bytes or []) for each in told.content or []]
        return len(tokens) - len(set(tokens))

    plain = repeated()
    assert plain > 0
    assert repeated(presence_penalty=2.0, frequency_penalty=2.0) < plain
    assert repeated(frequency_penalty=-2.0) > plain


def test_a_bias_decides(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, logit_bias={str(ord("Q")): 100}, max_tokens=3, temperature=1
    )
    assert answer.choices[0].message.content == "QQQ"
    with pytest.raises(openai.BadRequestError, match="logit_bias has token 264; there are 264"):
        client.chat.completions.create(model="tiny", messages=HELLO, logit_bias={"264": 1})


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'


@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_calls_of_tools_are_read(model: Model, before: str) -> None:
    both = f"{before}{CALL}\n{CALL}"
    with scripted(model, both) as server, client_of(server) as client:
        asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": [WEATHER]}
        answer = client.chat.completions.create(**asked).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content == (before.strip() or None)
        calls = answer.message.tool_calls or []
        assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [  # type: ignore[union-attr]
            ("weather", {"city": "Rome", "days": 2})
        ] * 2
        assert len({call.id for call in calls}) == 2
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks).strip() == before.strip()
        found = [each for c in chunks for each in c.choices[0].delta.tool_calls or []]
        assert [each.index for each in found] == [0, 1]
        assert json.loads(found[0].function.arguments or "") == {"city": "Rome", "days": 2}  # type: ignore[union-attr]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
        assert len(one.message.tool_calls or []) == 1
        none = client.chat.completions.create(**asked, tool_choice="none").choices[0]
        assert none.message.content == both


def test_tools_and_calls_reach_the_template(model: Model) -> None:
    said = Scripted(model, "ok")
    messages: list[Any] = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
    ]
    with serving({"tiny": said}) as server, client_of(server) as client:
        client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    (prompt,) = said.prompts
    assert '"name": "weather"' in prompt
    assert '<tool_call>["city"]</tool_call>' in prompt, "arguments are an object, as templates expect"
    assert "<|im_start|>tool\nsunny" in prompt
    assert "And\nnow?" in prompt


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_required(model: Model, choice: Any) -> None:
    """The model is random: only the grammar of the call makes it one."""
    said = Scripted(model, "")
    said._generation = lambda *a, **o: Model._generation(said, *a, **o)  # type: ignore[method-assign]
    with serving({"tiny": said}) as server, client_of(server) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=200
        ).choices[0]
    (call,) = answer.message.tool_calls or []
    assert answer.finish_reason == "tool_calls"
    jsonschema.validate(
        json.loads(call.function.arguments),  # type: ignore[union-attr]
        WEATHER["function"]["parameters"],
    )


def test_models_without_tools_say_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER])


def test_completions(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    answer = client.completions.create(**asked, prompt=["abc", "the"], echo=True)
    for choice, prompt in zip(answer.choices, ["abc", "the"], strict=True):
        assert choice.text == prompt + "".join(piece.text for piece in model.generate(prompt, max_tokens=5))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(model.tokenizer.encode(text)) for text in ["abc", "the"])
    numbers = client.completions.create(**asked, prompt=model.tokenizer.encode("abc"), logprobs=2)
    assert "abc" + numbers.choices[0].text == answer.choices[0].text
    told = numbers.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or []) == len(told.token_logprobs or []) == len(told.text_offset or []) == 5
    streamed = list(client.completions.create(**asked, prompt="abc", stream=True))
    assert "abc" + "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_an_answer_goes_on_until_the_context_is_full(client: openai.OpenAI, model: Model) -> None:
    prompt = "abcdefgh" * 62
    answer = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=10_000, logit_bias={"261": -100}, temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == model.context + 1, "the last token is told and not read"


def test_embeddings(encoder: Model, model: Model) -> None:
    texts = ["the cat sat", "a dog"]
    rows = encoder.embed(texts)
    with serving({"e": encoder, "tiny": model}) as server, client_of(server) as client:
        made = client.embeddings.create(model="e", input=texts)  # by default as base64
        assert np.array_equal(np.array([each.embedding for each in made.data], np.float32), rows)
        raw = httpx.post(f"{server.url}/v1/embeddings", json={"model": "e", "input": texts[0]}).json()
        assert np.array_equal(np.array(raw["data"][0]["embedding"], np.float32), encoder.embed(texts[:1])[0])
        raw = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json()
        assert len(base64.b64decode(raw["data"][0]["embedding"])) == 4 * rows.shape[1]
        assert raw["usage"]["prompt_tokens"] == len(encoder.tokenizer.encode("a"))
        with pytest.raises(openai.BadRequestError, match="dimensions is 7"):
            client.embeddings.create(model="e", input="a", dimensions=7)
        with pytest.raises(openai.BadRequestError, match="numbers of tokens"):
            client.embeddings.create(model="e", input=[1, 2])
        with pytest.raises(openai.BadRequestError, match="makes embeddings, and answers nothing"):
            client.chat.completions.create(model="e", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="does not say how the states"):
            client.embeddings.create(model="tiny", input="a")
        assert [each.id for each in client.models.list()] == ["e", "tiny"]
        assert client.models.retrieve("tiny").id == "tiny"


def test_how_states_become_embeddings_can_be_said(model: Model) -> None:
    with serving({"tiny": model}, pooling="last") as server, client_of(server) as client:
        (made,) = client.embeddings.create(model="tiny", input=["abc"]).data
    assert np.array_equal(np.array(made.embedding, np.float32), model.embed(["abc"], pooling="last")[0])


def test_documents_are_scored(reranker: Model, model: Model) -> None:
    documents = ["the cat sat", "a dog", "rain"]
    scores = reranker.rerank("a cat", documents)
    body = {"query": "a cat", "documents": documents}
    with serving({"r": reranker, "tiny": model}) as server:
        path = f"{server.url}/v1/rerank"
        results = httpx.post(path, json=body).json()["results"]
        assert [each["index"] for each in results] == np.argsort(-scores, kind="stable").tolist()
        assert [each["relevance_score"] for each in results] == pytest.approx(sorted(scores, reverse=True))
        (best,) = httpx.post(path, json={**body, "top_n": 1, "return_documents": True}).json()["results"]
        assert best == {**results[0], "document": {"text": documents[results[0]["index"]]}}
        for wrong, said in (
            ({"model": "tiny"}, "cross-encoder"),
            ({"query": ""}, "query"),
            ({"documents": []}, "documents"),
        ):
            answer = httpx.post(path, json={**body, **wrong})
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]


def test_unknown_models_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4o' not found; there are 'tiny'") as error:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_prompts_beyond_the_context_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="leaves no room") as error:
        client.completions.create(model="tiny", prompt="abcdefgh" * 100)
    assert error.value.code == "context_length_exceeded"


def test_keys(model: Model) -> None:
    with serving({"tiny": model}, api_key="secret-1") as server:
        for key, status in (("secret-1", 200), ("secret-2", 401), ("secret-1é", 401), ("", 401)):
            headers = {b"authorization": f"Bearer {key}".encode()} if key else {}
            answer = httpx.get(f"{server.url}/v1/models", headers=headers)
            assert answer.status_code == status
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "secret" not in answer.text
        assert httpx.get(f"{server.url}/health").status_code == 200
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            client.models.list()
        assert "secret" not in repr(server.settings)


def test_metrics_count(model: Model) -> None:
    with serving({"tiny": model}) as server, client_of(server) as client:
        for _ in range(2):
            client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5, logit_bias={"261": -100})
        httpx.get(f"{server.url}/nothing/here")
        text = httpx.get(f"{server.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['npumatmul_requests_total{path="/v1/chat/completions",status="200"}'] == "2"
    assert lines['npumatmul_requests_total{path="other",status="404"}'] == "1"
    assert lines["npumatmul_generated_tokens_total"] == "10"
    assert int(lines["npumatmul_prompt_tokens_total"]) == 2 * len(model.encode_chat(HELLO))
    assert lines["npumatmul_running"] == lines["npumatmul_waiting"] == "0"
    assert math.isfinite(float(lines["npumatmul_prompt_seconds_total"]))
