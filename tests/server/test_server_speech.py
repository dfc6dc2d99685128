"""Speech by OpenAI's API, with its own client."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving import serving
from whisper_zoo import RATE, save_whisper, sound, torch_whisper

import npumatmul.llm
from npumatmul.llm import Model
from npumatmul.server import Server


def wave_of(samples: np.ndarray) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return made.getvalue()


SOUND = wave_of(sound(0.8))
SAMPLES = np.frombuffer(SOUND[44:], "<i2").astype(np.float32) / 32768


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = save_whisper(torch_whisper(), tmp_path_factory.mktemp("served") / "whisper")
    with npumatmul.llm.load(folder, "float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(hearing: Model, model: Model) -> Iterator[Server]:
    with serving({"whisper": hearing, "tiny": model}) as running:
        yield running


def test_speech_is_written_down(server: Server, hearing: Model) -> None:
    asked: dict[str, Any] = {"language": "de", "temperature": 0.0}
    expected = hearing.transcribe(SAMPLES, sampling_rate=RATE, **asked)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        given: Any = {"model": "whisper", "file": ("a.wav", SOUND), **asked}
        assert client.audio.transcriptions.create(**given).text == expected.text
        assert client.audio.transcriptions.create(**given, response_format="text") == f"{expected.text}\n"
        told = client.audio.transcriptions.create(**given, response_format="verbose_json")
        assert [(each.start, each.end, each.text) for each in told.segments or []] == [
            (each.start, each.end, each.text) for each in expected.segments
        ]
        assert told.language == "de"
    form = {"model": "whisper", "temperature": "0"}
    english = httpx.post(f"{server.url}/v1/audio/translations", files={"file": SOUND}, data=form).json()
    translated = hearing.transcribe(SAMPLES, sampling_rate=RATE, task="translate", temperature=0.0)
    assert english == {"text": translated.text}


@pytest.mark.parametrize(
    ("files", "data", "said"),
    [
        ({}, {"model": "whisper"}, "no form with a file"),
        ({"other": b"x"}, {"model": "whisper"}, "file is missing"),
        ({"file": b"no wave"}, {}, "file is no wave file"),
        ({"file": SOUND}, {"model": "tiny"}, "hears nothing"),
        ({"file": SOUND}, {"language": "xx"}, "xx"),
        ({"file": SOUND}, {"response_format": "srt"}, "response_format is 'srt'"),
        ({"file": SOUND}, {"temperature": "hot"}, "temperature is 'hot'"),
        ({"file": SOUND}, {"surprise": "1"}, "surprise is not known"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(server: Server, files: Any, data: Any, said: str) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=data)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"--x\r\n", b"--x\r\n\r\n\r\n--x--", b'--x\r\ncontent-disposition: a; name="n"\r\n\r\n']
)
def test_forms_that_are_malformed(server: Server, body: bytes) -> None:
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", content=body, headers=kind)
    assert answer.status_code == 400


def test_what_hears_answers_nothing(server: Server) -> None:
    asked = {"model": "whisper", "messages": [{"role": "user", "content": "Hi"}]}
    for path in ("/v1/chat/completions", "/api/chat"):
        assert "writes down speech, and answers nothing" in httpx.post(server.url + path, json=asked).text
    shown = httpx.post(f"{server.url}/api/show", json={"model": "whisper"}).json()
    assert shown["capabilities"] == ["transcription"]
    assert httpx.post(f"{server.url}/v1/embeddings", json={"model": "whisper", "input": "x"}).status_code == 400
