"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``."""

from __future__ import annotations

import tempfile
from email.message import Message
from typing import Any

from npumatmul.files.reading import shown
from npumatmul.llm import SpeechModel, Transcription, read_wave
from npumatmul.server.desk import Gone, Job
from npumatmul.server.errors import ApiError, of_request
from npumatmul.server.exchange import Exchange
from npumatmul.server.fields import Fields
from npumatmul.server.service import Service

__all__ = ["Transcriptions"]

MOST_PARTS = 32
FORMS = ("json", "text", "verbose_json")


class Transcriptions:
    """Writes down what is said in a wave file, or what it means in English.

    Parameters
    ----------
    service : Service
        Models and the desk.
    task : {"transcribe", "translate"}
        Which of both.
    """

    def __init__(self, service: Service, task: str) -> None:
        self._service, self._task = service, task

    async def __call__(self, exchange: Exchange) -> None:
        given = _parts(exchange)
        data = given.pop("file", b"")
        if not data:
            raise ApiError(400, "file is missing: a wave file is what is heard", param="file")
        fields = Fields({name: _text(name, value) for name, value in given.items()})
        served = self._service.served(fields.text("model"))
        model = served.model
        if not isinstance(model, SpeechModel):
            raise ApiError(400, f"the model {served.name!r} hears nothing", param="model")
        form = fields.text("response_format", "json")
        if form not in FORMS:
            raise fields.wrong("response_format", f"is {shown(form)}; it must be one of {', '.join(FORMS)}")
        options: dict[str, Any] = {"prompt": fields.text("prompt"), "task": self._task}
        if self._task == "transcribe":
            options["language"] = fields.text("language")
        temperature = fields.text("temperature")
        if temperature is not None:
            try:
                options["temperature"] = float(temperature)
            except ValueError:
                raise fields.wrong("temperature", f"is {shown(temperature)}; it must be a number") from None
        fields.refuse("timestamp_granularities[]", "can be segment", unless=("segment",))
        fields.finish()

        def work(job: Job) -> None:
            try:
                with tempfile.NamedTemporaryFile(suffix=".wav") as file:
                    file.write(data)
                    file.flush()
                    try:
                        samples, rate = read_wave(file.name)
                    except ValueError as error:
                        raise ValueError(str(error).replace(file.name, "file")) from None
                job.give(model.transcribe(samples, sampling_rate=rate, progress=job.check, **options))
            except Gone:
                raise
            except Exception as error:
                raise of_request(error) from error

        async with self._service.desk.job(work) as job:
            (made,) = [item async for item in job]
        if form == "text":
            await exchange.reply_bytes(f"{made.text}\n".encode(), b"text/plain; charset=utf-8")
        else:
            await exchange.reply(_told(made, self._task) if form == "verbose_json" else {"text": made.text})


def _told(made: Transcription, task: str) -> dict[str, Any]:
    segments = [
        {
            "id": i,
            "seek": 0,
            "start": each.start,
            "end": each.end,
            "text": each.text,
            "tokens": list(each.tokens),
            "temperature": each.temperature,
            "avg_logprob": each.average_logprob,
            "compression_ratio": each.compression_ratio,
            "no_speech_prob": each.no_speech_probability,
        }
        for i, each in enumerate(made.segments)
    ]
    told = {"task": task, "language": made.language, "duration": made.duration, "text": made.text}
    return {**told, "segments": segments}


def _parts(exchange: Exchange) -> dict[str, bytes]:
    """The fields of a form with a file in it."""
    header = Message()
    header["content-type"] = dict(exchange.scope["headers"]).get(b"content-type", b"").decode("latin-1")
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise ApiError(400, "the request is no form with a file: multipart/form-data is what clients send")
    line = b"--" + boundary.encode("latin-1", "replace")
    found: dict[str, bytes] = {}
    for part in (b"\r\n" + exchange.body).split(b"\r\n" + line)[1:]:
        if part.startswith(b"--"):
            return found
        head, middle, data = part.partition(b"\r\n\r\n")
        described = Message()
        for each in head.decode("utf-8", "replace").splitlines():
            name, _, value = each.partition(":")
            if name.strip().lower() == "content-disposition":
                described["content-disposition"] = value.strip()
        called = described.get_param("name", header="content-disposition")
        if not middle or not isinstance(called, str) or called in found or len(found) >= MOST_PARTS:
            raise ApiError(400, "a part of the form has no name, or one that came before, or there are too many")
        found[called] = data
    raise ApiError(400, "the form has no end")


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{name[:60]} is not UTF-8", param=name[:60]) from None
