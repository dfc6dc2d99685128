"""The command `plan`, and what options of several commands mean."""

from __future__ import annotations

from typing import Annotated

import typer

from npumatmul.cli.offloading import (
    CoresOption,
    DecodeOption,
    LayersOption,
    NpuLayersOption,
    NpuMemoryOption,
    PolicyOption,
    policy_of,
)
from npumatmul.cli.options import ExpertMemoryOption
from npumatmul.rknn.socs import SOCS


def names_of(text: str | None, option: str = "--scheme") -> tuple[str, ...] | None:
    """Names that are separated by commas, each once."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise typer.BadParameter(f"{option}: a name is missing in {text!r}")
    return names


def plan_command(
    model: Annotated[
        str,
        typer.Argument(help="A GGUF file, a config.json or a folder with one, or a name such as Qwen2.5-1.5B."),
    ],
    soc: Annotated[str | None, typer.Option(help=f"The chip: {', '.join(SOCS)}; by default the device's.")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="One or more, separated by commas; by default all usual ones of the chip.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    expert_memory: ExpertMemoryOption = None,
    npu_layers: NpuLayersOption = None,
    decode: DecodeOption = None,
    npu_memory: NpuMemoryOption = None,
    cores: CoresOption = None,
    layers: LayersOption = None,
    policy: PolicyOption = None,
) -> None:
    """Show how large a model is on a chip, and how fast it is modelled to be; no weights are needed.

    With options of a policy: where each layer would be, what fits, and how fast that is beside NPU and CPU alone.
    """
    from npumatmul.cli import planning

    wanted = policy_of(
        policy, npu_layers=npu_layers, decode=decode, memory_limit=npu_memory, cores=cores, layers=layers
    )
    if wanted is not None and expert_memory is not None:
        raise typer.BadParameter("--expert-memory is for plans without a policy, whose limit is --npu-memory")
    schemes = names_of(scheme)
    planning.show(model, soc, schemes, as_json, expert_memory, policy=wanted)
