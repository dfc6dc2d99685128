"""The command `chat` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npumatmul.cli.files import path
from npumatmul.cli.offloading import (
    CoresOption,
    DecodeOption,
    NpuLayersOption,
    NpuMemoryOption,
    PolicyOption,
    policy_of,
)
from npumatmul.cli.options import (
    CacheOption,
    DeviceOption,
    ExpertFolderOption,
    ExpertMemoryOption,
    SchemeOption,
    SeedOption,
    SpeculationOption,
    TemperatureOption,
    checked_speculation,
)


def chat_command(
    model: Annotated[
        Path,
        typer.Option(
            "-m",
            "--model",
            parser=path,
            metavar="<path>",
            help="A GGUF file, a Hugging Face folder, or a quantized model.",
        ),
    ],
    session: Annotated[
        Path | None,
        typer.Option(help="A file to go on with if it is there; at the end the conversation is saved there."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the system says first.")] = None,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Tokens of an answer at most.")] = 1024,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    temperature: TemperatureOption = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among this many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest of this mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out those below this part of the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes repetitions less likely.")] = 1.0,
    seed: SeedOption = None,
    context: Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.")] = None,
    on_full: Annotated[
        str, typer.Option(help="Where the context is full: 'window' leaves old messages out, 'error' says so.")
    ] = "window",
    speculation: SpeculationOption = "none",
    cache: CacheOption = True,
    expert_memory: ExpertMemoryOption = None,
    expert_folder: ExpertFolderOption = None,
    npu_layers: NpuLayersOption = None,
    decode: DecodeOption = None,
    npu_memory: NpuMemoryOption = None,
    cores: CoresOption = None,
    policy: PolicyOption = None,
) -> None:
    """Talk with a language model; /help lists what can be typed beside messages (docs/chat.md)."""
    from npumatmul.cli import chatting  # here, since it needs the extra `llm`, which other commands do not

    if on_full not in ("window", "error"):
        raise typer.BadParameter("--on-full is window or error")
    settings = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "on_full": on_full,
        "speculation": checked_speculation(speculation),
    }
    places = policy_of(policy, npu_layers=npu_layers, decode=decode, memory_limit=npu_memory, cores=cores)
    request = chatting.Request(
        model, settings, session, system, scheme, device, context, cache, expert_memory, expert_folder, places
    )
    chatting.chat(request)
