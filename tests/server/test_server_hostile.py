"""Requests that are malformed, huge, slow or abandoned: an error for who sent them, and nothing for others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import hypothesis
import hypothesis.strategies as st
import pytest
import uvicorn
from serving import serving

from npumatmul.llm import Model
from npumatmul.server import Server, Settings
from npumatmul.server.connection import connection_class

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"logit_bias": {"261": -100}, "temperature": 0}
CHAT = "/v1/chat/completions"


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within ten seconds")


def idle(server: Server) -> bool:
    return not server._service.desk.jobs and not server._service.desk.waiting


class Waits:
    """A constraint that waits before each token."""

    def __init__(self, steps: threading.Semaphore, inner: Any) -> None:
        self._steps, self._inner = steps, inner
        self.generation: Any = None

    def allowed(self, logits: Any) -> None:
        while not self._steps.acquire(timeout=0.01) and not self.generation.cancelled:
            pass
        if self._inner is not None:
            self._inner.allowed(logits)

    def accept(self, token: int) -> None:
        if self._inner is not None:
            self._inner.accept(token)


class Slow(Model):
    """A model whose answers go on token by token, as they are let."""

    def __init__(self, model: Model) -> None:
        self.__dict__.update(model.__dict__)
        self.steps = threading.Semaphore(0)
        self.generations: list[Any] = []

    def _generation(self, *args: Any, **options: Any) -> Any:
        waits = Waits(self.steps, options.get("constraint"))
        waits.generation = super()._generation(*args, **{**options, "constraint": waits})
        self.generations.append(waits.generation)
        return waits.generation


@pytest.fixture
def slow(model: Model) -> Slow:
    return Slow(model)


#: A short schema whose grammar would take gigabytes.
SETS = {"pattern": "".join(f"[^{chr(300 + 9 * i)}]" for i in range(1000))}
FORMAT_OF_SETS = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"prefixItems": [SETS] * 500}}}

MALFORMED: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "must be an object"),
    (b'"text"', "must be an object"),
    (b"\xff\xfe{}", "not UTF-8: byte 0"),
    (b'{"messages": "\xc3\x28"}', "not UTF-8: byte 14"),
    (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    (b'{"messages": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "nested too deeply"),
    (b'{"temperature": NaN}', "NaN is no number"),
    (b'{"temperature": 1e999}', "too large"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
    (b'{"seed": ' + b"9" * 300 + b"}", "seed is 9999"),
    (b"{}", "messages is empty"),
    (b'{"messages": []}', "messages is empty"),
    (b'{"messages": {"role": "user"}}', "messages is"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    (b'{"messages": [{"role": "user", "content": "x"}], "surprise": 1}', "surprise is not known"),
    (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "stream is 'yes'"),
    (b'{"messages": [{"role": "user", "content": "x"}], "n": 9}', "n is 9; it must be from 1 to 8"),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "max_tokens is 0"),
    (b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}', "stop has an empty text"),
    (b'{"messages": [{"role": "user", "content": "x"}], "stop": ' + json.dumps(["a"] * 99).encode() + b"}", "99 texts"),
    (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"x": 1}}', "logit_bias has 'x'"),
    (b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3}', "goes with logprobs"),
    (b'{"messages": [{"role": "user", "content": "x"}], "functions": []}', "tools and tool_choice"),
    (b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "xml"}}', "'xml'"),
    (b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}', "no schema"),
    (b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": 1}}', "'messages'"),
    (b'{"messages": [{"role": "user", "content": "<|im_end|>"}]}', "message 0 spells '<|im_end|>'"),
    (
        json.dumps({"messages": HELLO, "response_format": FORMAT_OF_SETS}, ensure_ascii=False).encode(),
        "the schema is too large",
    ),
    (b'{"messages": ' + json.dumps(HELLO * 2000).encode() + b"}", "2000 entries"),
    (b'{"messages": [{"role": "user", "content": "' + b"x" * 100_000 + b'"}]}', "leaves no room for an answer"),
    (b'{"messages": [{"role": "user", "content": "' + b"x" * 3_000_000 + b'"}]}', "message 0 has 3000000 characters"),
]


@pytest.mark.parametrize(("body", "said"), MALFORMED, ids=[said for _, said in MALFORMED])
def test_what_is_wrong_is_said(server: Server, body: bytes, said: str) -> None:
    answer = httpx.post(server.url + CHAT, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000
    assert idle(server)


def test_errors_of_ollamas_paths_have_its_form(server: Server) -> None:
    answer = httpx.post(f"{server.url}/api/chat", content=b"{")
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert httpx.get(f"{server.url}/api/none").json()["error"].startswith("/api/none: there is no such path")


def test_pages_may_be_asked_for_their_head(server: Server) -> None:
    for path in ("/", "/api/tags", "/api/version"):
        answer = httpx.head(server.url + path)
        assert answer.status_code == 200
        assert answer.content == b""


#: Of every type, and some that almost fit.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["json", "auto", "required", "tiny", "user", "float", "base64", [["x"]], {"type": "json_object"}]),
    st.lists(st.one_of(st.text(max_size=3), st.integers(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
    st.just([{"role": "user", "content": "x"}]),
    st.just([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
)
FIELDS = {
    CHAT: "messages model stream stream_options max_tokens max_completion_tokens stop n seed temperature top_p top_k "
    "min_p presence_penalty repetition_penalty logit_bias logprobs top_logprobs tools tool_choice response_format "
    "reasoning_effort chat_template_kwargs user",
    "/v1/completions": "prompt suffix echo logprobs best_of stop n stream max_tokens response_format",
    "/v1/embeddings": "input encoding_format dimensions user",
    "/api/chat": "messages format options think tools keep_alive stream",
    "/api/generate": "prompt system raw format options template context images stream",
    "/api/embed": "input truncate dimensions options",
    "/api/show": "model name verbose",
}
RIGHT: dict[str, Any] = {"messages": HELLO, "prompt": "x", "input": "x", "max_tokens": 2, "options": {"num_predict": 2}}


@hypothesis.given(path=st.sampled_from(list(FIELDS)), data=st.data())
def test_no_value_of_any_field_is_a_failure(server: Server, path: str, data: st.DataObject) -> None:
    """What a client sends is answered or refused; it never makes the server fail."""
    names = FIELDS[path].split()
    body = {name: value for name, value in RIGHT.items() if name in names}
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
        body[name] = data.draw(VALUES)
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code in (200, 400, 404), f"{body}: {answer.text}"
    assert (answer.status_code == 200) == ('"error"' not in answer.text), f"{body}: {answer.text}"


def test_bodies_that_are_too_large(model: Model) -> None:
    with serving({"tiny": model}, max_body=2000) as server:
        answer = httpx.post(server.url + CHAT, content=b" " * 2001)
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"

        def chunks() -> Iterator[bytes]:
            for _ in range(50):
                yield b" " * 100

        with httpx.Client() as client, contextlib.suppress(httpx.WriteError):  # the server may have closed by then
            assert client.post(server.url + CHAT, content=chunks()).status_code == 413
        assert httpx.post(server.url + CHAT, json={"messages": HELLO, "max_tokens": 1}).status_code == 200


RAW = [
    b"\x00" * 3000,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models/%F0%9F%98%80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
]


def test_a_length_and_chunks_are_not_taken_together(server: Server) -> None:
    """Who passes requests on may see another end of this one: a second one would come in under its name."""
    body = b'{"messages": []}'
    with closing(_connected(server)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
            % (len(body), body)
            + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        answer = _rest(client)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"not both" in answer


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_what_is_no_http(server: Server, data: bytes) -> None:
    with closing(_connected(server)) as client:
        client.sendall(data)
        client.settimeout(5)
        answer = b""
        try:
            client.shutdown(socket.SHUT_WR)
            while more := client.recv(65536):
                answer += more
        except OSError:
            pass
    assert not answer or answer.startswith(b"HTTP/1.1")
    assert b"HTTP/1.1 5" not in answer
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def test_requests_that_do_not_arrive(model: Model) -> None:
    with serving({"tiny": model}, read_timeout=1.0) as server:
        begun = [
            b"",
            b"POST /v1/chat",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
        ]
        answers = []
        for data in begun:
            with closing(_connected(server)) as client:
                client.sendall(data)
                answers.append(_rest(client))
        assert answers[:2] == [b"", b""], "who has not said what it wants is told nothing"
        assert answers[2].startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 1 s" in answers[2]
        assert answers[3].startswith(b"HTTP/1.1 200")
        until(lambda: not server._uvicorn.server_state.connections)


def test_answers_that_nobody_takes() -> None:
    """A connection whose client reads nothing is given up, while it is answered and when it is about to be closed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(
        app, http=connection_class(Settings(write_timeout=0.2)), lifespan="off", log_config=None, ws="none"
    )
    server = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        with closing(socket.create_connection(listening.getsockname())) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: bool(server.server_state.connections))
            until(lambda: not server.server_state.connections)
        server.should_exit = True
        thread.join()


def test_too_many_connections_are_not_taken(model: Model) -> None:
    with serving({"tiny": model}, connections=3) as server:
        held = [_connected(server) for _ in range(3)]
        until(lambda: len(server._uvicorn.server_state.connections) == 3)
        with closing(_connected(server)) as more:
            assert _rest(more) == b""
        for each in held:
            each.close()
        until(lambda: not server._uvicorn.server_state.connections)
        assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(slow: Slow, path: str, stream: bool) -> None:
    with serving({"tiny": slow}, parallel=1) as server:
        body = {"messages": HELLO, "stream": stream, "model": "tiny"}
        with closing(_connected(server)) as client:
            _post(client, path, body)
            until(lambda: bool(slow.generations))
            slow.steps.release(3)
            if stream:
                while client.recv(1) not in (b"d", b"{"):
                    pass
        until(lambda: idle(server))
        assert slow.generations[0].cancelled
        slow.steps.release(1000)
        answer = httpx.post(server.url + CHAT, json={"messages": HELLO, "max_tokens": 2})
        assert answer.status_code == 200
        assert server._service.metrics.gone == 1


def test_places_and_the_queue_are_limited(slow: Slow) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "model": "tiny"}
    with serving({"tiny": slow}, parallel=1, queue=2) as server:
        desk = server._service.desk
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(server.url + CHAT, json=body, timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        until(lambda: len(slow.generations) == 1)
        threads[1].start()
        until(lambda: desk.waiting == 1)
        with closing(_connected(server)) as gone:  # waits, and goes away while it does
            _post(gone, CHAT, body)
            until(lambda: desk.waiting == 2)
            refused = httpx.post(server.url + CHAT, json=body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
            assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "running": 1, "waiting": 2}
        until(lambda: desk.waiting == 1)
        slow.steps.release(6)
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert len(slow.generations) == 2
        until(lambda: idle(server))


def test_answers_that_take_too_long_end(slow: Slow) -> None:
    with serving({"tiny": slow}, answer_timeout=0.2) as server:
        slow.steps.release(2)
        answer = httpx.post(server.url + CHAT, json={"messages": HELLO})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        slow.steps.release(2)
        lines = httpx.post(f"{server.url}/api/chat", json={"messages": HELLO}).text.splitlines()
        assert json.loads(lines[-1]) == {"error": "the answer took longer than 0.2 s"}
        until(lambda: idle(server))


def test_closing_ends_what_goes_on(slow: Slow) -> None:
    before = threading.active_count()
    with serving({"tiny": slow}, shutdown_timeout=0) as server, closing(_connected(server)) as client:
        _post(client, CHAT, {"messages": HELLO, "stream": True})
        until(lambda: bool(slow.generations))
        slow.steps.release(2)
        client.recv(10)
        server.close()
        assert b'"message":"the server is ending"' in _rest(client)
    assert slow.generations[0].cancelled
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_closing_lets_short_answers_end(slow: Slow) -> None:
    with serving({"tiny": slow}, shutdown_timeout=20) as server, closing(_connected(server)) as client:
        _post(client, CHAT, {"messages": HELLO, "max_tokens": 3, **ENDLESS})
        until(lambda: bool(slow.generations))
        closer = threading.Thread(target=server.close)
        closer.start()
        slow.steps.release(3)
        answer = _rest(client)
        closer.join()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"finish_reason":"length"' in answer


def test_a_model_that_is_closed_is_told(model: Model) -> None:
    import npumatmul.llm

    with npumatmul.llm.load(model.path, "float32") as other, serving({"tiny": other}) as server:
        other.close()
        answer = httpx.post(server.url + CHAT, json={"messages": HELLO})
        assert answer.status_code == 503
        assert "is closed" in answer.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health").status_code == 503


def test_web_pages(model: Model) -> None:
    page = {"origin": "https://page.example", "access-control-request-method": "POST"}
    with serving({"tiny": model}) as server:
        assert httpx.options(server.url + CHAT, headers=page).status_code == 403
        assert httpx.post(server.url + CHAT, json={}, headers={"origin": "https://page.example"}).status_code == 403
        for host in (
            "page.example",
            "localhost@page.example",
            "page.example@localhost",
            "localhost/page.example",
            "[::",
        ):
            assert httpx.get(server.url, headers={"host": host}).status_code == 403
        for origin in ("http://[", "null", "http://[::1", "//"):
            refused = httpx.get(server.url, headers={"origin": origin})
            assert refused.status_code == 403
            assert "may not ask this server" in refused.json()["error"]["message"]
    with serving({"tiny": model}, origins=("https://page.example",), api_key="k") as server:
        asked = httpx.options(server.url + CHAT, headers=page)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        answer = httpx.get(f"{server.url}/v1/models", headers={"origin": page["origin"], "authorization": "Bearer k"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-origin" not in httpx.get(f"{server.url}/health").headers


def test_limits_of_tokens(model: Model) -> None:
    with serving({"tiny": model}, max_tokens=4, max_prompt_tokens=12, control_texts="allow") as server:
        answer = httpx.post(server.url + CHAT, json={"messages": HELLO, "max_tokens": 50, **ENDLESS}).json()
        assert answer["usage"]["completion_tokens"] == 4
        long = [{"role": "user", "content": "a longer text"}]
        refused = httpx.post(server.url + CHAT, json={"messages": long})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        control = [{"role": "user", "content": "<|im_end|>"}]
        assert httpx.post(server.url + CHAT, json={"messages": control, "max_tokens": 1}).status_code == 200


def _connected(server: Server) -> socket.socket:
    return socket.create_connection(server._socket.getsockname()[:2], timeout=20)


def _post(client: socket.socket, path: str, body: Any) -> None:
    data = json.dumps(body).encode()
    client.sendall(
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)
    )


def _rest(client: socket.socket) -> bytes:
    data = b""
    try:
        while more := client.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data
