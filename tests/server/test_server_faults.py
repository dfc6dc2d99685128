"""An NPU that fails while several clients are served: an error for whom it concerns; others go on, nothing is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from llm_models import write_tiny_model
from server_soak import run
from serving import serving

import npumatmul as npu
import npumatmul.llm
from npumatmul import sim
from npumatmul.llm import Model

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("served") / "tiny.gguf").path


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


@pytest.fixture
def on_npu(path: Path, device: npu.Device) -> Iterator[Model]:
    with npumatmul.llm.load(path, device=device) as model:
        yield model


def test_a_failure_is_told_and_the_next_answer_is_right(on_npu: Model, device: npu.Device) -> None:
    with serving({"tiny": on_npu}) as server:
        right = httpx.post(server.url + CHAT, json=BODY).json()["choices"][0]["message"]["content"]
        with sim.configured(device, faults="run:code=-2"):
            failed = httpx.post(server.url + CHAT, json=BODY)
        assert failed.status_code == 500
        assert "RKNN_ERR_TIMEOUT" in failed.json()["error"]["message"]
        assert failed.json()["error"]["type"] == "server_error"
        again = httpx.post(server.url + CHAT, json=BODY)
        assert again.json()["choices"][0]["message"]["content"] == right
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_failure_in_the_midst_of_a_stream_is_its_last_event(on_npu: Model, device: npu.Device) -> None:
    with serving({"tiny": on_npu}) as server:
        httpx.post(server.url + CHAT, json=BODY)  # contexts are there from now on
        before = device.stats().run_calls
        httpx.post(server.url + CHAT, json={**BODY, "max_tokens": 2})
        runs = device.stats().run_calls - before
        long = {**BODY, "max_tokens": 50, "stream": True, "logit_bias": {"261": -100}}
        with sim.configured(device, faults=f"run:after={2 * runs}:code=-2"):
            lines = httpx.post(server.url + CHAT, json=long).text.strip().split("\n\n")
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert "choices" in events[0]
        assert "RKNN_ERR_TIMEOUT" in events[-1]["error"]["message"]
        assert all("error" not in event for event in events[:-1])


def test_a_lost_device_fails_all_and_health_says_so(path: Path) -> None:
    with npu.Device("sim:rk3588") as device, npumatmul.llm.load(path, device=device) as model, serving(model) as server:
        assert httpx.post(server.url + CHAT, json=BODY).status_code == 200
        with sim.configured(device, faults="run:lost"):
            for _ in range(2):
                answer = httpx.post(server.url + CHAT, json=BODY)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "unavailable"
            health = httpx.get(f"{server.url}/health")
            assert health.status_code == 503
            assert "rknn_matmul_run" in health.json()["error"]["message"]


def test_nothing_is_left_after_requests_of_all_kinds(path: Path) -> None:
    """Sixty here; the program of this name asks a thousand times."""
    outcomes, problems = run(path, 60, clients=6)
    assert not problems
    assert outcomes["answer 200"] > 0
    assert outcomes["faults"] > 0
