"""The command `serve`, whose many options are the server's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npumatmul.cli.offloading import (
    CoresOption,
    DecodeOption,
    NpuLayersOption,
    NpuMemoryOption,
    PolicyOption,
    policy_of,
)
from npumatmul.cli.options import CacheOption, DeviceOption, SchemeOption, SpeculationOption, checked_speculation


def serve_command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Files or folders, or name=path for a name of your own.")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes one that is free.")] = 8080,
    scheme: SchemeOption = None,
    device: DeviceOption = None,
    context: Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.")] = None,
    cache: CacheOption = True,
    api_key: Annotated[
        str | None, typer.Option(help="What clients have to send; others see it in the process list.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with that key; else NPUMATMUL_API_KEY.")] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web page whose scripts may ask, or '*'; may be given again.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="A further name that the server is asked under; may be given again.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Answers that are computed at the same time.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; others are told to come again.")] = 64,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request at most.")] = 4 << 20,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt at most.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", min=1, help="Tokens of an answer at most.")
    ] = None,
    answer_timeout: Annotated[float, typer.Option(help="Seconds that a request may wait and be answered.")] = 600.0,
    pooling: Annotated[
        str | None, typer.Option(help="How embeddings are made: mean, cls, last or max; by default as the model says.")
    ] = None,
    speculation: SpeculationOption = "none",
    control_texts: Annotated[
        str, typer.Option(help="Messages that spell control tokens: 'refuse' or 'allow' them.")
    ] = "refuse",
    npu_layers: NpuLayersOption = None,
    decode: DecodeOption = None,
    npu_memory: NpuMemoryOption = None,
    cores: CoresOption = None,
    policy: PolicyOption = None,
) -> None:
    """Answer requests over HTTP until Ctrl-C, as clients of OpenAI's API and of Ollama make them (docs/server.md)."""
    from npumatmul.cli import serving
    from npumatmul.server import Settings

    if control_texts not in ("refuse", "allow"):
        raise typer.BadParameter("--control-texts is refuse or allow")
    settings = Settings(
        host=host,
        port=port,
        api_key=serving.api_key(api_key, api_key_file),
        origins=tuple(origin or ()),
        hosts=tuple(host_name or ()),
        parallel=parallel,
        queue=queue,
        max_body=max_body,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        answer_timeout=answer_timeout,
        pooling=pooling,
        speculation=checked_speculation(speculation),
        control_texts=control_texts,  # type: ignore[arg-type]
    )
    places = policy_of(policy, npu_layers=npu_layers, decode=decode, memory_limit=npu_memory, cores=cores)
    serving.serve(serving.Request(tuple(models), settings, scheme, device, context, cache, places))
