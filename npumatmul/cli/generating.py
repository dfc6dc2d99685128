"""`npumatmul generate` and `demo`: load a model, stream an answer, and say what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from npumatmul.cli.files import read_standard_input
from npumatmul.cli.models import check_model, check_scheme, say_what_to_know
from npumatmul.cli.offloading import placement_content, placement_rows
from npumatmul.cli.profiling import check_profiles, profiled
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import notes, stream
from npumatmul.device.current import current_device
from npumatmul.device.device import Device, DeviceStats
from npumatmul.llm import ContextFullError, Generation, Model, SamplingOptions, StopReason, load
from npumatmul.llm.loader import DEFAULT_SCHEME
from npumatmul.llm.policy import Policy
from npumatmul.llm.quantize import is_quantized
from npumatmul.llm.run.stopping import StopTexts
from npumatmul.llm.tokenizers.protocol import not_characters
from npumatmul.nn.residency import Residency


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
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    system: str | None = None
    raw: bool = False
    context: int | None = None
    speculation: Literal["auto", "lookup"] | None = None
    cache: bool = True
    stats: bool = True
    as_json: bool = False
    policy: Policy | None = None
    expert_memory: int | None = None
    expert_folder: Path | None = None
    profile: tuple[Path, ...] = ()

    def options(self) -> dict[str, Any]:
        """How tokens are chosen; errors name the options as they are typed."""
        given = {
            name: getattr(self, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        }
        try:
            SamplingOptions(**given)
        except ValueError as error:
            name, space, rest = str(error).partition(" ")
            option = f"--{name.replace('_', '-')}" if name in given else name
            raise ValueError(f"{option}{space}{rest}") from error
        try:
            StopTexts(self.stop)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
        return {**given, "stop": self.stop, "max_tokens": self.max_tokens, "speculation": self.speculation}


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
    check_profiles(request.profile, sources=[request.model])
    options = request.options()
    check_scheme(request.scheme)
    if request.scheme is not None and is_quantized(request.model):
        raise ValueError(f"{request.model} is quantized already and takes no scheme, but {request.scheme!r} was given")
    device = current_device(request.device)
    told = request.stats  # who wants no figures wants nothing on standard error
    scheme = request.scheme or DEFAULT_SCHEME
    if told and request.scheme is not None:  # what is usual needs no remark
        say_what_to_know(request.model, scheme)
    with working(lines=told) as progress:
        model = load(
            request.model,
            scheme,
            device=device,
            context=request.context,
            cache=request.cache,
            expert_memory=request.expert_memory,
            expert_folder=request.expert_folder,
            policy=request.policy,
            progress=progress,
        )
    with model, profiled(request.profile):
        _answer(request, model, device, options)


def _answer(request: Request, model: Model, device: Device, options: Mapping[str, Any]) -> None:
    told = request.stats
    messages = _messages(request)
    _check_length(model, request, messages)
    before = device.stats()
    pieces: list[str] = []
    with ExitStack() as bar:
        progress = bar.enter_context(working(lines=told))
        ask = partial(model.generate, request.prompt) if request.raw else partial(model.chat, messages)
        generation = ask(**options, progress=lambda done, total: progress(done, total, "reading the prompt"))
        try:
            for piece in generation:
                bar.close()  # the first one: the bar makes room for the answer
                pieces.append(piece.text)
                _stream(piece.text, request)
        except KeyboardInterrupt:
            bar.close()
            generation.close()
    _stream("\n", request)
    if request.as_json:
        print(json.dumps(_as_dict("".join(pieces), device, before, model, generation, request), indent=1))
    elif request.stats:
        notes.print(_table(device, before, model, generation, request))
    if generation.stats.stop_reason is StopReason.INTERRUPTED:
        raise KeyboardInterrupt


def _stream(text: str, request: Request) -> None:
    if not request.as_json:
        stream(text)


def _messages(request: Request) -> list[dict[str, str]]:
    system = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, {"role": "user", "content": request.prompt}]


def _check_length(model: Model, request: Request, messages: list[dict[str, str]]) -> None:
    """Refuse a prompt that is too long in the words of the command."""
    ids = model.tokenizer.encode(request.prompt) if request.raw else model.encode_chat(messages)
    if len(ids) >= model.context:
        whose = "the model's context" if request.context is None else "--context"
        more = "shorten it" if request.context is None else "shorten it, or give a larger --context"
        raise ContextFullError(
            f"the prompt has {len(ids)} tokens; {whose} of {model.context} leaves no room for an answer: {more}"
        )


def weight_macs(model: Model, generation: Generation) -> int:
    """Multiply-accumulates with weights that it took: of the prompt, each token but the last, and wrong guesses."""
    stats = generation.stats
    if not stats.generated_tokens:
        return 0
    prompt = model.weight_macs(stats.prompt_tokens - stats.cached_tokens)
    wrong = stats.drafted_tokens - stats.accepted_tokens
    return prompt + (stats.generated_tokens - 1 + wrong) * model.weight_macs(1)


def _share(device: Device, before: DeviceStats, model: Model, generation: Generation) -> float | None:
    """Which part of the work with weights went through the NPU; after an interrupt, with a step half done, none."""
    total = weight_macs(model, generation)
    if not total or generation.stats.stop_reason is StopReason.INTERRUPTED:
        return None
    # rows that a recorded program is checked with are computed twice, and asked for once
    return min(1.0, (device.stats().macs - before.macs) / total)


def _as_dict(
    text: str, device: Device, before: DeviceStats, model: Model, generation: Generation, request: Request
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
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "generate_seconds": stats.generate_seconds,
        "prompt_tokens_per_second": stats.prompt_tokens_per_second,
        "tokens_per_second": stats.tokens_per_second,
        "load_seconds": model.load_seconds,
        "model": str(request.model),
        "model_name": model.name,
        "scheme": model.scheme,
        "device": device.name,
        "chip": device.chip.soc,
        "simulated": device.simulated,
        **({"simulated_runs": device.simulated_runs} if device.simulated_runs else {}),
        "runtime": device.api_version,
        "run_calls": now.run_calls - before.run_calls,
        "contexts": now.contexts,
        "descriptors": now.descriptors,
        "npu_bytes": now.npu_bytes,
        "share_of_weight_macs": _share(device, before, model, generation),
        "placement": placement_content(model.placement),
        "experts": None if model.experts is None else expert_figures(model.experts),
        "seed": request.seed,
    }


def expert_figures(experts: Residency) -> dict[str, int]:
    """How many bytes of experts are where, and how often one was brought in."""
    return {name: getattr(experts, name) for name in ("limit", "nbytes", "waiting", "brought", "found")}


def _expert_rows(experts: Residency | None) -> list[tuple[str, str]]:
    if experts is None:
        return []
    where = f"{experts.nbytes / 1e6:.1f} of {experts.limit / 1e6:.1f} MB; {experts.waiting / 1e6:.1f} MB in all"
    return [
        ("experts in NPU memory", where),
        ("experts brought in, found there", f"{experts.brought}, {experts.found} times"),
    ]


def _table(device: Device, before: DeviceStats, model: Model, generation: Generation, request: Request) -> Table:
    stats, now = generation.stats, device.stats()
    where = f"CPU simulation of {device.chip.soc}" if device.simulated else f"NPU of {device.chip.soc}"
    if device.simulated_runs:
        where += f", {device.simulated_runs}"
    share = _share(device, before, model, generation)
    speed_note = " (CPU simulation)" if device.simulated else ""
    table = Table(title="npumatmul", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right", overflow="fold")
    rows = [
        ("device", f"{device.name}: {where}"),
        ("model", f"{model.name}, {model.scheme}, loaded in {model.load_seconds:.1f} s"),
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
        *(
            []
            if stats.acceptance is None
            else [("guesses that were right", f"{stats.accepted_tokens} of {stats.drafted_tokens}")]
        ),
        *placement_rows(model.placement),
        *_expert_rows(model.experts),
        ("ended by", "an interruption" if stats.stop_reason is None else stats.stop_reason.value.replace("_", " ")),
    ]
    for row in rows:
        table.add_row(*row)
    return table
