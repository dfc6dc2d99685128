"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from npumatmul.cli.files import path
from npumatmul.files.sizes import parsed_size


def size(text: str) -> int:
    """A number of bytes on the command line, such as 2GB."""
    try:
        return parsed_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


DeviceOption = Annotated[
    str | None,
    typer.Option(help="'rknn': the board's NPU; 'sim:rk3588': the simulator. By default the machine decides."),
]
SchemeOption = Annotated[
    str | None,
    typer.Option(
        help="How weights and activations are stored: w8a8 by default, w16a16, ... (docs/schemes.md); float32: numpy."
    ),
]
ModelArgument = Annotated[
    Path | None,
    typer.Argument(parser=path, help="A GGUF file or a quantized model; the demo's by default."),
]
TextOption = Annotated[Path, typer.Option("-f", "--text", help="A text file, UTF-8.")]
EmulateOption = Annotated[bool, typer.Option("--emulate", help="Compute on the host what an NPU would, without one.")]
OriginalOption = Annotated[
    Path | None, typer.Option(help="The GGUF file that a quantized model was made of, if it is not beside it.")
]
TokensOption = Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Tokens to generate at most.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token always.")]
CacheOption = Annotated[bool, typer.Option(help="Keep the packed model on disk for the next time.")]
ExpertMemoryOption = Annotated[
    int | None,
    typer.Option(
        parser=size,
        metavar="<size>",
        help="Of a mixture of experts: bytes of experts in NPU memory at a time, such as 2GB; all by default.",
    ),
]
ExpertFolderOption = Annotated[
    Path | None, typer.Option(help="With --expert-memory: where the others wait in files, instead of in memory.")
]
SpeculationOption = Annotated[
    str, typer.Option(help="Check several guessed tokens at once: 'none', 'auto' where it pays, or 'lookup'.")
]
SeedOption = Annotated[int | None, typer.Option(help="Makes the choices of a temperature above 0 repeatable.")]


def checked_speculation(how: str) -> Literal["auto", "lookup"] | None:
    """What `Model.generate` takes for a value of ``--speculation``."""
    if how not in ("none", "auto", "lookup"):
        raise typer.BadParameter("--speculation is none, auto or lookup")
    return None if how == "none" else cast('Literal["auto", "lookup"]', how)
