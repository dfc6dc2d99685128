"""`npumatmul transcribe`: what is said in a wave file, as text, subtitles or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from npumatmul.cli.files import STANDARD, check_outputs, write_output
from npumatmul.cli.models import check_model, check_scheme
from npumatmul.cli.profiling import check_profiles, profiled
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import say
from npumatmul.device.current import current_device
from npumatmul.llm import Segment, Transcription, load, read_wave
from npumatmul.llm.loader import DEFAULT_SCHEME, FLOAT32

__all__ = ["FORMATS", "Request", "run"]


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    model: Path
    audio: Path
    output: Path = STANDARD
    form: str = "text"
    language: str | None = None
    task: str = "transcribe"
    prompt: str | None = None
    timestamps: bool = True
    scheme: str | None = None
    device: str | None = None
    seed: int | None = None
    cache: bool = True
    profile: tuple[Path, ...] = ()


def run(request: Request) -> None:
    """Write what is said.

    Raises
    ------
    ValueError
        If the file is no wave file, or there is no such format.
    """
    check_model(request.model)
    check_scheme(request.scheme)
    if request.form not in FORMATS:
        raise ValueError(f"--format is {request.form!r}; it can be {', '.join(FORMATS)}")
    check_outputs({"--output": request.output}, [request.audio])
    check_profiles(request.profile, [request.output], [request.model, request.audio])
    samples, rate = read_wave(request.audio)
    scheme = request.scheme or DEFAULT_SCHEME
    device = None if scheme == FLOAT32 else current_device(request.device)
    with (
        working() as progress,
        load(request.model, scheme, device=device, cache=request.cache, progress=progress) as model,
        profiled(request.profile),
    ):

        def told(done: float, total: float) -> None:
            progress(round(done), round(total), "listening")

        made = model.transcribe(
            samples,
            sampling_rate=rate,
            language=request.language,
            task=request.task,
            prompt=request.prompt,
            timestamps=request.timestamps,
            seed=request.seed,
            progress=told,
        )
    write_output(request.output, FORMATS[request.form](made))
    if made.language_probability is not None:
        say(f"language: {made.language}, {made.language_probability:.0%}")


def _text(made: Transcription) -> str:
    return "".join(f"{each.text.strip()}\n" for each in made.segments)


def _json(made: Transcription) -> str:
    return json.dumps(dataclasses.asdict(made), ensure_ascii=False, indent=1) + "\n"


def _srt(made: Transcription) -> str:
    return "\n".join(f"{i}\n{_cue(each, ',')}" for i, each in enumerate(made.segments, 1))


def _vtt(made: Transcription) -> str:
    return "\n".join(["WEBVTT\n", *(_cue(each, ".") for each in made.segments)])


def _cue(segment: Segment, point: str) -> str:
    """Times and words of a subtitle; what would be read as the end of its times is written otherwise."""
    words = " ".join(segment.text.split()).replace("-->", "->")
    return f"{_clock(segment.start, point)} --> {_clock(segment.end, point)}\n{words}\n"


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


#: Formats by name.
FORMATS: dict[str, Callable[[Transcription], str]] = {"text": _text, "json": _json, "srt": _srt, "vtt": _vtt}
