"""`npumatmul generate` and `demo`: load a model, stream an answer, and say what it took."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from npumatmul.cli.files import read_standard_input
from npumatmul.cli.models import DEFAULT_SCHEME, check_model, check_scheme, open_model
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import notes
from npumatmul.device.current import current_device
from npumatmul.device.device import Device, DeviceStats
from npumatmul.llm import Generation, LoadedModel, SamplingOptions, StopReason, generate
from npumatmul.llm.models.cache import ContextFullError
from npumatmul.llm.quantize import is_quantized
from npumatmul.llm.tokenizers.protocol import not_characters


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    model: Path
    prompt: str
    scheme: str | None = None
    device: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    system: str | None = None
    raw: bool = False
    context: int | None = None
    stats: bool = True
    as_json: bool = False

    def sampling(self) -> SamplingOptions:
        """How tokens are chosen; errors name the options as they are typed."""
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
        }
        try:
            return SamplingOptions(**given)  # type: ignore[arg-type]
        except ValueError as error:
            name, space, rest = str(error).partition(" ")
            option = f"--{name.replace('_', '-')}" if name in given else name
            raise ValueError(f"{option}{space}{rest}") from error


def read_prompt(given: str | None) -> str:
    """The prompt of the command line, else standard input.

    Raises
    ------
    ValueError
        If there is none, or it is no text.
    """
    prompt = given
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("no prompt: give one with -p, or on standard input")
        prompt = read_standard_input("the prompt")
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt


def answer(request: Request) -> None:
    """Stream the answer to standard output and a table of figures to standard error, or print all as JSON."""
    for name, text in (("the prompt", request.prompt), ("--system", request.system or "")):
        problem = not_characters(text)
        if problem:
            raise ValueError(f"{name} {problem}")
    check_model(request.model)
    sampling = request.sampling()
    check_scheme(request.scheme)
    device = current_device(request.device)
    told = request.stats  # who wants no figures wants nothing on standard error
    with working(lines=told) as progress:
        loaded = open_model(
            request.model, request.scheme, device, context=request.context, progress=progress, quiet=not told
        )
    ids = _prompt_ids(loaded, request)
    before = device.stats()
    pieces: list[str] = []
    with ExitStack() as bar:
        progress = bar.enter_context(working(lines=told))
        generation = generate(
            loaded.model,
            loaded.tokenizer,
            ids,
            max_new_tokens=request.max_tokens,
            sampling=sampling,
            progress=lambda done, total: progress(done, total, "reading the prompt"),
        )
        try:
            for token in generation:
                bar.close()  # the first one: the bar makes room for the answer
                pieces.append(token.text)
                _stream(token.text, request)
        except KeyboardInterrupt:
            bar.close()
            generation.close()
    _stream("\n", request)
    if request.as_json:
        print(json.dumps(_as_dict("".join(pieces), device, before, loaded, generation, request), indent=1))
    elif request.stats:
        notes.print(_table(device, before, loaded, generation, request))
    if generation.stats.stop_reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt


def _stream(text: str, request: Request) -> None:
    if not request.as_json:
        print(text, end="", flush=True)


def _prompt_ids(loaded: LoadedModel, request: Request) -> list[int]:
    if request.raw:
        ids = loaded.tokenizer.encode(request.prompt, parse_special=False, add_special=True)
    else:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        ids = loaded.encode_chat([*messages, {"role": "user", "content": request.prompt}])
    length = loaded.config.context_length
    if len(ids) >= length:
        whose = "the model's context" if request.context is None else "--context"
        more = "shorten it" if request.context is None else "shorten it, or give a larger --context"
        raise ContextFullError(
            f"the prompt has {len(ids)} tokens; {whose} of {length} leaves no room for an answer: {more}"
        )
    return ids


def weight_macs(loaded: LoadedModel, generation: Generation) -> int:
    """Multiply-accumulates with weights that the generation took: the prompt, then each token but the last."""
    stats = generation.stats
    if not stats.generated_tokens:
        return 0
    prompt = loaded.model.weight_macs(stats.prompt_tokens - stats.cached_tokens)
    return prompt + (stats.generated_tokens - 1) * loaded.model.weight_macs(1)


def _scheme(request: Request) -> str:
    return request.scheme or ("as it was quantized" if is_quantized(request.model) else DEFAULT_SCHEME)


def _share(device: Device, before: DeviceStats, loaded: LoadedModel, generation: Generation) -> float | None:
    """Which part of the work with weights went through the NPU; after an interrupt, with a step half done, none."""
    total = weight_macs(loaded, generation)
    if not total or generation.stats.stop_reason is StopReason.INTERRUPTED:
        return None
    return (device.stats().macs - before.macs) / total


def _as_dict(
    text: str, device: Device, before: DeviceStats, loaded: LoadedModel, generation: Generation, request: Request
) -> dict[str, Any]:
    """The answer and its figures; speeds are those of the device, which may be a simulation."""
    stats, now = generation.stats, device.stats()
    assert stats.stop_reason is not None
    return {
        "text": text,
        "stop_reason": stats.stop_reason.value,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "prompt_seconds": stats.prompt_seconds,
        "generate_seconds": stats.generate_seconds,
        "prompt_tokens_per_second": stats.prompt_tokens_per_second,
        "tokens_per_second": stats.tokens_per_second,
        "load_seconds": loaded.load_seconds,
        "model": str(request.model),
        "model_name": loaded.name,
        "scheme": _scheme(request),
        "device": device.name,
        "chip": device.chip.soc,
        "simulated": device.simulated,
        "runtime": device.api_version,
        "run_calls": now.run_calls - before.run_calls,
        "contexts": now.contexts,
        "descriptors": now.descriptors,
        "npu_bytes": now.npu_bytes,
        "share_of_weight_macs": _share(device, before, loaded, generation),
        "seed": request.seed,
    }


def _table(device: Device, before: DeviceStats, loaded: LoadedModel, generation: Generation, request: Request) -> Table:
    stats, now = generation.stats, device.stats()
    where = f"CPU simulation of {device.chip.soc}" if device.simulated else f"NPU of {device.chip.soc}"
    share = _share(device, before, loaded, generation)
    speed_note = " (CPU simulation)" if device.simulated else ""
    table = Table(title="npumatmul", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right", overflow="fold")
    rows = [
        ("device", f"{device.name}: {where}"),
        ("model", f"{loaded.name}, {_scheme(request)}, loaded in {loaded.load_seconds:.1f} s"),
        (f"prompt{speed_note}", f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s"),
        (f"generation{speed_note}", f"{stats.generated_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s"),
        ("rknn_matmul_run calls", f"{now.run_calls - before.run_calls}"),
        ("contexts", f"{now.contexts}"),
        ("file descriptors of NPU memory", f"{now.descriptors}"),
        ("NPU memory in use", f"{now.npu_bytes / 1e6:.1f} MB"),
        (
            "weight multiply-accumulates through the matmul API",
            "interrupted" if share is None else f"{100 * share:.2f} %",
        ),
        ("ended by", "an interruption" if stats.stop_reason is None else stats.stop_reason.value.replace("_", " ")),
    ]
    for row in rows:
        table.add_row(*row)
    return table
