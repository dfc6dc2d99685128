"""Requests of all kinds from several clients, with failures of the NPU among them; what they leave behind is counted.

    python tests/server/server_soak.py --requests 1000

A small model is on a simulated NPU. Clients ask for answers, streams and JSON; they send what is malformed, go away in
the midst of answers and while they wait, and send bodies that never arrive. Now and then runs of the NPU fail. It fails
where an answer is another than the model gives alone, where an error is none of those that are meant, or where threads,
descriptors, contexts, NPU memory, connections or resident memory grow after the first fifth.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import npumatmul as npu
import npumatmul.llm
from npumatmul import sim
from npumatmul.llm import Model
from npumatmul.server import Server, Settings

CLIENTS = 8
TOKENS = 6
#: By how much figures may grow all the same. Memory of a process moves by some MiB; a number of answers at once that
#: did not come before has contexts and buffers of its own. What a request leaves behind would be far above.
SLACK = {"rss": 24 << 20, "contexts": 20, "npu_bytes": 1 << 20, "descriptors": 2}
FAULT = "run:after={after}:times=12:code=-2"


@dataclass(frozen=True)
class Figures:
    """What is in use while nobody asks."""

    threads: int
    descriptors: int
    contexts: int
    npu_bytes: int
    connections: int
    jobs: int
    waiting: int
    rss: int


@dataclass
class Soak:
    """One run, and what came of it."""

    model: Model
    device: npu.Device
    server: Server
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    failing: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    def figures(self) -> Figures:
        """Wait until all is quiet, and count."""
        desk, state = self.server._service.desk, self.server._uvicorn.server_state
        for _ in range(2000):
            if not desk.jobs and not desk.waiting and not state.connections:
                break
            time.sleep(0.005)
        gc.collect()
        stats = self.device.stats()
        return Figures(
            threading.active_count(),
            len(os.listdir("/proc/self/fd"))
            - stats.descriptors
            - stats.contexts * self.device.chip.memory.context_descriptors,
            stats.contexts,
            stats.npu_bytes,
            len(state.connections),
            len(desk.jobs),
            desk.waiting,
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        )


def prompt(number: int) -> str:
    return f"Question {number % 7}"


def body(number: int, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt(number)}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logit_bias": {"261": -100},
        **more,
    }


def plain(soak: Soak, client: httpx.Client, number: int) -> None:
    """An answer; right, or one of the failures that are meant."""
    answer = client.post("/v1/chat/completions", json=body(number))
    judge(soak, answer.status_code, lambda: answer.json()["choices"][0]["message"]["content"], number)


def stream(soak: Soak, client: httpx.Client, number: int) -> None:
    """A stream; right, or with an error in it."""
    text, failed = "", False
    with client.stream("POST", "/v1/chat/completions", json=body(number, stream=True)) as answer:
        status = answer.status_code
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                failed = failed or "error" in event
                text += "" if failed else event["choices"][0]["delta"].get("content") or ""
    judge(soak, 500 if failed else status, lambda: text, number)


def as_json(soak: Soak, client: httpx.Client, number: int) -> None:
    """An answer by a schema."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.post(
        "/api/chat",
        json={"messages": body(number)["messages"], "format": schema, "stream": False, "options": {"seed": number}},
    )
    if answer.status_code == 200:
        assert json.loads(answer.json()["message"]["content"]) in ({"a": 1}, {"a": 2}), answer.text
        soak.note("json")
    else:
        judge(soak, answer.status_code, lambda: "", number)


def malformed(soak: Soak, client: httpx.Client, number: int) -> None:
    wrong = [
        b"{",
        b"\xff",
        b'{"messages": 3}',
        b"[" * 5000,
        b'{"messages": [{"role": "user", "content": "<|im_end|>"}]}',
    ]
    answer = client.post("/v1/chat/completions", content=wrong[number % len(wrong)])
    assert answer.status_code in (400, 503), answer.text
    soak.note(f"malformed {answer.status_code}")


def abandoned(soak: Soak, client: httpx.Client, number: int) -> None:
    """A client that goes away: at once, or after some of the answer."""
    data = json.dumps(body(number, stream=number % 2 == 0, max_tokens=200)).encode()
    with contextlib.closing(socket.create_connection(soak.server._socket.getsockname())) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data))
        raw.sendall(data[: len(data) // 2] if number % 5 == 0 else data)
        if number % 3 == 0:
            raw.settimeout(0.05)
            with contextlib.suppress(OSError):
                raw.recv(100)
    soak.note("abandoned")


KINDS: list[Callable[[Soak, httpx.Client, int], None]] = [plain, plain, stream, stream, as_json, malformed, abandoned]


def judge(soak: Soak, status: int, text: Callable[[], str], number: int) -> None:
    if status == 200:
        assert text() == soak.expected[prompt(number)], f"{text()!r}, not {soak.expected[prompt(number)]!r}"
    else:
        assert status in (500, 503), status
    soak.note(f"answer {status}")


def work(soak: Soak, numbers: range, seed: int) -> None:
    """One client."""
    chance = random.Random(seed)
    with httpx.Client(base_url=soak.server.url, timeout=60) as client:
        for number in numbers:
            kind = chance.choice(KINDS)
            try:
                kind(soak, client, number)
            except Exception as error:
                soak.problems.append(f"{kind.__name__} {number}: {type(error).__name__}: {error}")
            if chance.random() < 0.05:
                after = chance.randrange(20)
                soak.note("faults")
                with soak.failing, sim.configured(soak.device, faults=FAULT.format(after=after)):
                    plain(soak, client, number)


def run(path: Path, requests: int, clients: int = CLIENTS, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Ask so often; return what came of it, and what went wrong."""
    with npu.Device("sim:rk3588") as device, npumatmul.llm.load(path, device=device, cache=False) as model:
        settings = Settings(port=0, parallel=3, queue=4)
        with Server({"tiny": model}, settings) as server:
            soak = Soak(model, device, server)
            for number in range(7):
                bias = body(number)
                soak.expected[prompt(number)] = httpx.post(
                    f"{server.url}/v1/chat/completions", json=bias, timeout=60
                ).json()["choices"][0]["message"]["content"]
            first = last = rounds(soak, requests // 5, clients, seed)
            for part in range(1, 5):
                print(f"after {part} fifths: {last}")
                last = rounds(soak, requests // 5, clients, seed + 1000 * part)
            print(f"at the end: {last}")
            for name in Figures.__dataclass_fields__:
                before, after = getattr(first, name), getattr(last, name)
                if after > before + SLACK.get(name, 0):
                    soak.problems.append(f"{name} grew from {before} to {after}")
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body(0), timeout=60)
            judge(soak, answer.status_code, lambda: answer.json()["choices"][0]["message"]["content"], 0)
            if answer.status_code != 200:
                soak.problems.append(f"at the end an answer has the status {answer.status_code}")
    return soak.outcomes, soak.problems


def rounds(soak: Soak, requests: int, clients: int, seed: int) -> Figures:
    each = -(-requests // clients)
    threads = [
        threading.Thread(target=work, args=(soak, range(i * each, (i + 1) * each), seed + i)) for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return soak.figures()


def main() -> None:
    """Run as the arguments say; end with 1 where something went wrong."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "llm"))
    from llm_models import write_tiny_model

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["NPUMATMUL_SIM_STRICT"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_model(Path(folder) / "tiny.gguf").path
        outcomes, problems = run(path, options.requests, options.clients, options.seed)
    for name, count in sorted(outcomes.items()):
        print(f"{name:20} {count}")
    for problem in problems[:20]:
        print("WRONG:", problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
