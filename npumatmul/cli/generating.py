"""`npumatmul generate` and `demo`: load a model, stream an answer, and say what it took."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from npumatmul.cli.models import DEFAULT_SCHEME, console, open_model, progress_bar
from npumatmul.device.current import current_device
from npumatmul.device.device import Device, DeviceStats
from npumatmul.llm import (
    Generation,
    LoadedModel,
    SamplingOptions,
    StopReason,
    generate,
)
from npumatmul.llm.models.llama import ContextFullError
from npumatmul.llm.quantize import is_quantized


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


def read_prompt(given: str | None) -> str:
    """The prompt of the command line, else standard input.

    Raises
    ------
    ValueError
        If there is none.
    """
    prompt = given
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("no prompt: give one with -p, or on standard input")
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt


def answer(request: Request) -> None:
    """Stream the answer to standard output, and a table of figures to standard error."""
    sampling = SamplingOptions(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
    )
    device = current_device(request.device)
    with progress_bar() as progress:
        loaded = open_model(
            request.model, request.scheme, device, context=request.context, progress=progress, quiet=not request.stats
        )
    before = device.stats()
    generation = generate(
        loaded.model,
        loaded.tokenizer,
        _prompt_ids(loaded, request),
        max_new_tokens=request.max_tokens,
        sampling=sampling,
    )
    interrupted = False
    try:
        for token in generation:
            sys.stdout.write(token.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    sys.stdout.write("\n")
    sys.stdout.flush()
    if request.stats:
        console.print(_figures(device, before, loaded, generation, request))
    if interrupted:
        raise KeyboardInterrupt


def _prompt_ids(loaded: LoadedModel, request: Request) -> list[int]:
    if request.raw:
        ids = loaded.tokenizer.encode(request.prompt, parse_special=False, add_special=True)
    else:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        ids = loaded.encode_chat([*messages, {"role": "user", "content": request.prompt}])
    if len(ids) >= loaded.config.context_length:
        raise ContextFullError(
            f"the prompt has {len(ids)} tokens; the model's context of {loaded.config.context_length} leaves no room "
            "for an answer: shorten it"
        )
    return ids


def weight_macs(loaded: LoadedModel, generation: Generation) -> int:
    """Multiply-accumulates with weights that the generation took: the prompt, then each token but the last."""
    stats = generation.stats
    if not stats.generated_tokens:
        return 0
    prompt = loaded.model.weight_macs(stats.prompt_tokens - stats.cached_tokens)
    return prompt + (stats.generated_tokens - 1) * loaded.model.weight_macs(1)


def _figures(
    device: Device, before: DeviceStats, loaded: LoadedModel, generation: Generation, request: Request
) -> Table:
    stats, now = generation.stats, device.stats()
    where = f"CPU simulation of {device.chip.soc}" if device.simulated else f"NPU of {device.chip.soc}"
    total = weight_macs(loaded, generation)
    # after an interruption the last step was counted only in part, so the share cannot be told
    whole = total and stats.stop_reason is not StopReason.INTERRUPTED
    share = f"{100 * (now.macs - before.macs) / total:.2f} %" if whole else "interrupted"
    scheme = request.scheme or ("as it was quantized" if is_quantized(request.model) else DEFAULT_SCHEME)
    speed_note = " (CPU simulation)" if device.simulated else ""
    table = Table(title="npumatmul", show_header=False, title_justify="left")
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = [
        ("device", f"{device.name}: {where}"),
        ("model", f"{loaded.name}, {scheme}, loaded in {loaded.load_seconds:.1f} s"),
        (f"prompt{speed_note}", f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s"),
        (f"generation{speed_note}", f"{stats.generated_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s"),
        ("rknn_matmul_run calls", f"{now.run_calls - before.run_calls}"),
        ("contexts", f"{now.contexts}"),
        ("file descriptors of NPU memory", f"{now.descriptors}"),
        ("NPU memory in use", f"{now.npu_bytes / 1e6:.1f} MB"),
        ("weight multiply-accumulates through the matmul API", share),
        ("ended by", "an interruption" if stats.stop_reason is None else stats.stop_reason.value.replace("_", " ")),
    ]
    for row in rows:
        table.add_row(*row)
    return table
