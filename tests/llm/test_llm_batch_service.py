"""The example of a service that gathers requests: every one is answered, whatever fails and whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from encoder_zoo import VARIANTS, sentence_folder, torch_model, write_folder

import npumatmul as npu
import npumatmul.llm
from npumatmul import sim

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "batch_service"
ENVIRONMENT = {**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"}
TEXTS = ["the cat sat", "a dog", "rain on the mat, fast", "chip", "the dog sat on a mat ."] * 6


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = next(each for each in VARIANTS if each.model_type == "bert")
    path = tmp_path_factory.mktemp("encoder")
    return sentence_folder(write_folder(path, variant, torch_model(variant)))


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


def service(folder: Path, device: npu.Device, **how: Any) -> tuple[Any, Any]:
    serve = example("serve")
    embedder = serve.Embedder(lambda: npumatmul.llm.load(folder, "w8a8", device=device, cache=False), 32)
    return serve.service(embedder, **{"size": 32, "max_wait": 0.005, "limit": 256, **how}), embedder


async def asked(app: Any, bodies: list[Any]) -> list[httpx.Response]:
    """The answers to requests that are made at once, by a service that begins and ends."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            texts = (body if isinstance(body, bytes) else json.dumps(body) for body in bodies)
            posts = (client.post("/embed", content=text) for text in texts)
            answers = list(await asyncio.gather(*posts))
            return [*answers, await client.get("/stats")]


def embeddings(answers: list[httpx.Response]) -> np.ndarray:
    return np.array([answer.json()["embedding"] for answer in answers], np.float32)


def test_requests_that_come_together_are_computed_together(folder: Path, device: npu.Device) -> None:
    app, embedder = service(folder, device, max_wait=3600.0, size=len(TEXTS))
    expected = embedder(TEXTS)
    *answers, stats = asyncio.run(asked(app, [{"text": text} for text in TEXTS]))
    assert {answer.status_code for answer in answers} == {200}
    np.testing.assert_array_equal(embeddings(answers), expected)
    assert stats.json() == {"items": 30, "calls": 1, "failed": 0, "refused": 0, "waiting": 0}


def test_what_is_no_text_is_told_and_spoils_nothing(folder: Path, device: npu.Device) -> None:
    app, embedder = service(folder, device)
    expected = embedder(["a dog"])
    bodies = [{"text": 3}, {"text": "x" * 30_000}, {"words": "a"}, ["a dog"], {"text": "a dog"}, b"a dog", b"\xff"]
    *answers, _ = asyncio.run(asked(app, bodies))
    assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 200, 400, 400]
    assert "30000 characters" in answers[1].json()["error"]
    told = [answer.json()["error"] for answer in (answers[0], *answers[2:4])]
    shape = 'a string is expected, as in {"text": "A cat sits."}; this is '
    assert told == [shape + "int", shape + "NoneType", shape + "list"]
    for answer in answers[5:]:
        assert answer.json()["error"].startswith('the body is no JSON such as {"text": "A cat sits."}: ')
    np.testing.assert_allclose(embeddings(answers[4:5]), expected, atol=1e-6)


def test_too_many_are_told_to_come_again_and_the_others_are_answered_at_the_end(
    folder: Path, device: npu.Device
) -> None:
    app, embedder = service(folder, device, max_wait=3600.0, size=32, limit=20)
    expected = embedder(TEXTS)

    async def asked() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with app.router.lifespan_context(app):
                tasks = [asyncio.create_task(client.post("/embed", json={"text": text})) for text in TEXTS]
                while (await client.get("/stats")).json()["refused"] < 10:
                    await asyncio.sleep(0.01)
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(asked())
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(503)) == (20, 10)
    for answer, row in zip(answers, expected, strict=True):
        if answer.status_code == 200:
            np.testing.assert_allclose(answer.json()["embedding"], row, atol=2e-3)
        else:
            assert answer.headers["retry-after"] == "1"


def test_nothing_is_lost_where_runs_fail(folder: Path, device: npu.Device) -> None:
    """A failed run is made good; one that fails twice is told to those of its batch, and all others are right."""
    app, embedder = service(folder, device, max_wait=0.0, size=4)
    expected = embedder(TEXTS)
    with sim.configured(device, faults="run:after=7:times=1:code=-2"):
        *answers, _ = asyncio.run(asked(app, [{"text": text} for text in TEXTS]))
    assert {answer.status_code for answer in answers} == {200}
    np.testing.assert_allclose(embeddings(answers), expected, atol=2e-3)  # int8 rows, other texts beside them

    app, embedder = service(folder, device, max_wait=3600.0, size=10)
    with sim.configured(device, faults="run:after=3:times=2:code=-2"):
        *answers, stats = asyncio.run(asked(app, [{"text": text} for text in TEXTS]))
    codes = [answer.status_code for answer in answers]
    assert codes == [500] * 10 + [200] * 20
    assert "made anew and all was repeated, in vain" in answers[0].json()["error"]
    assert stats.json() == {"items": 20, "calls": 3, "failed": 10, "refused": 0, "waiting": 0}


def test_nothing_is_lost_where_the_device_is(folder: Path) -> None:
    """It is opened anew, as after a driver was loaded again, and the batch that met the loss is computed there."""
    serve, faults = example("serve"), contextlib.ExitStack()
    with npu.Device("sim:rk3588") as first, npu.Device("sim:rk3588") as second:
        devices = [first, second]

        def load() -> npumatmul.llm.Model:
            faults.close()
            return npumatmul.llm.load(folder, "w8a8", device=devices.pop(0), cache=False)

        embedder = serve.Embedder(load, 32)
        expected = embedder(TEXTS)
        app = serve.service(embedder, size=10, max_wait=3600.0, limit=256)
        faults.enter_context(sim.configured(first, faults="run:after=5:lost"))
        *answers, stats = asyncio.run(asked(app, [{"text": text} for text in TEXTS]))
    assert {answer.status_code for answer in answers} == {200}
    np.testing.assert_allclose(embeddings(answers), expected, atol=2e-3)
    assert (stats.json()["calls"], devices) == (3, [])


def test_a_service_that_is_ended_answers_what_it_was_asked(folder: Path) -> None:
    """Requests wait for a batch that is not full when SIGTERM comes."""
    command = [sys.executable, str(EXAMPLE / "serve.py"), "--port", "0", "--model", str(folder), "--max-wait", "1500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        async def asked() -> list[int]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                tasks = [asyncio.create_task(client.post("/embed", json={"text": text})) for text in TEXTS[:9]]
                while (await client.get("/stats")).json()["waiting"] < 9:
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                return [answer.status_code for answer in await asyncio.gather(*tasks)]

        assert asyncio.run(asked()) == [200] * 9
        assert process.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_the_curve_is_measured_and_drawn(folder: Path, tmp_path: Path) -> None:
    where = "--plot", str(tmp_path / "curve.png"), "--csv", str(tmp_path / "curve.csv")
    command = [sys.executable, str(EXAMPLE / "measure.py"), "--quick", "--model", str(folder), *where]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [(row["way"], float(row["offered"])) for row in rows] == [
        (way, rate) for way in ("one by one", "what waits") for rate in (20, 60)
    ]
    assert all(row["refused"] == row["failed"] == row["lost"] == "0" for row in rows)
    assert all(0 < float(row["p50_ms"]) <= float(row["p99_ms"]) for row in rows)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_has_the_modelled_tables() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE / "modelled.py")], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    batches, loads = done.stdout.split("\n\n")
    assert batches in (EXAMPLE / "README.md").read_text()
    assert loads in (EXAMPLE / "README.md").read_text()


def test_the_reckoning_is_right_where_it_can_be_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    reckoned = example("modelled").reckoned
    alone = reckoned(0.001, 50, lambda count: 0.001, size=8, max_wait=0.25)
    assert [alone.latencies[0], alone.latencies[-1]] == pytest.approx(
        [0.251, 0.251]
    )  # nobody comes in time: it waits in full
    assert (alone.answered, alone.refused) == (50, 0)
    crowd = reckoned(1e6, 800, lambda count: count * 0.01, size=8, max_wait=0.25, limit=800)
    assert crowd.throughput == pytest.approx(100, rel=1e-3)  # full ones, one after the other
    assert crowd.latencies[-1] == pytest.approx(8.0, rel=1e-3)
    refusing = reckoned(1e6, 800, lambda count: 0.08, size=8, max_wait=0.25, limit=16)
    assert (refusing.answered, refusing.refused) == (24, 776)
