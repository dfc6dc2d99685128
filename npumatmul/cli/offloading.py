"""Where layers are, on the command line: the options of a policy, and plans under it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say
from npumatmul.device.budget import descriptors_within_reach

if TYPE_CHECKING:
    from npumatmul.llm.modelled.offload import OffloadPlan
    from npumatmul.llm.modelled.shape import ModelShape
    from npumatmul.llm.placement import ModelPlacement
    from npumatmul.llm.policy import Policy

NpuLayersOption = Annotated[
    str | None,
    typer.Option(
        help="Layers on the NPU: a number of the last blocks, auto, all, or patterns such as 'blk.*.down,head'."
    ),
]
DecodeOption = Annotated[
    str | None, typer.Option(help="Who computes tokens of layers on the NPU: npu, cpu or auto, who is faster.")
]
NpuMemoryOption = Annotated[str | None, typer.Option(help="Most bytes of NPU memory, such as 2GB.")]
CoresOption = Annotated[str | None, typer.Option(help="Cores of the NPU that may be used, such as 0,1.")]
LayersOption = Annotated[str | None, typer.Option(help="A part of the model: blocks 0 to 11 are 0:12.")]
PolicyOption = Annotated[
    str | None,
    typer.Option(help="All of a policy, such as 'npu_layers=20,prefill=npu,domains=2' (docs/offloading.md)."),
]

_OPTIONS = {
    "npu_layers": "--npu-layers", "decode": "--decode", "memory_limit": "--npu-memory", "cores": "--cores",
    "layers": "--layers",
}  # fmt: skip


def policy_of(text: str | None = None, **given: str | None) -> Policy | None:
    """The policy that options ask for; None where none is given.

    Parameters
    ----------
    text : str, optional
        Of ``--policy``; the others win.
    npu_layers, decode, memory_limit, cores, layers : str, optional
        As they are typed.

    Raises
    ------
    ValueError
        If one makes no sense; the message names the option.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if text is None and not wanted:
        return None
    from npumatmul.llm.policy import Policy

    try:
        policy = Policy() if text is None else Policy.parse(text)
    except ValueError as error:
        raise ValueError(f"--policy: {_bare(error)}") from error
    for name, value in wanted.items():
        try:
            read = Policy.parse(f"{name}={value.replace(',', '+')}")
        except ValueError as error:
            raise ValueError(f"{_OPTIONS[name]}: {_bare(error)}") from error
        policy = replace(policy, **{name: getattr(read, name)})
    return policy


def _bare(error: ValueError) -> str:
    """What an error says, without the name of what raised it."""
    return str(error).partition(": ")[2] or str(error)


def placement_rows(placement: ModelPlacement | None) -> list[tuple[str, str]]:
    """Lines of a table of figures: how many layers are where."""
    if placement is None:
        return []
    there = sum(each.memory == "npu" for each in placement)
    return [
        ("layers in NPU memory", f"{there} of {len(placement)}, {placement.npu_bytes / 1e6:.1f} MB"),
        ("layers in ordinary memory", f"{len(placement) - there}, {placement.host_bytes / 1e6:.1f} MB"),
    ]


def placement_content(placement: ModelPlacement | None) -> dict[str, Any] | None:
    """The same for JSON."""
    if placement is None:
        return None
    return {
        "policy": str(placement.policy),
        "npu_bytes": placement.npu_bytes,
        "host_bytes": placement.host_bytes,
        "layers": placement.content(),
    }


def show(shape: ModelShape, chip: Chip, schemes: Sequence[str] | None, policy: Policy, as_json: bool) -> None:
    """Print the plan of a model under a policy.

    Raises
    ------
    npumatmul.errors.NpuMemoryError
        If it fits in no scheme.
    """
    from npumatmul.errors import DeviceError, NpuMemoryError
    from npumatmul.llm.modelled.offload import plan_offload
    from npumatmul.llm.modelled.plan import SCHEMES

    if shape.kind != "decoder":
        raise ValueError(
            f"a policy is planned for models that continue texts; {shape.name} is of the kind {shape.kind}"
        )
    plans: list[OffloadPlan] = []
    for name in schemes or SCHEMES:
        try:
            plans.append(plan_offload(shape, chip, name, policy))
        except DeviceError:
            if schemes:
                raise
    if as_json:
        content = {"model": shape.name, "soc": chip.soc, "policy": str(policy)}
        print(json.dumps({**content, "schemes": [each.content() for each in plans]}, indent=1))
        return
    fitting = [each for each in plans if each.placement is not None]
    if not fitting:
        raise NpuMemoryError(f"{shape.name} on {chip.soc}: {plans[0].why_not}")
    _print(shape, chip, fitting, policy)
    for each in plans:
        if each.placement is None:
            say(f"{each.scheme} does not fit: {each.why_not}")


def _print(shape: ModelShape, chip: Chip, plans: Sequence[OffloadPlan], policy: Policy) -> None:
    from npumatmul.llm.modelled.plan import PROMPTS

    output = results()
    rows = PROMPTS[-1]
    output.print(f"{shape.name} on {chip.soc} with {str(policy) or 'the usual policy'}", soft_wrap=True)
    print_table(
        output,
        f"modelled, not measured: tokens per second of a prompt of {rows}, and of generation",
        Column("scheme", [each.scheme for each in plans], left=True),
        [
            Column("NPU\nMB", [f"{_placed(each).npu_bytes / 1e6:.0f}" for each in plans]),
            Column("host\nMB", [f"{_placed(each).host_bytes / 1e6:.0f}" for each in plans]),
            Column("domains", [str(len(each.domains or {})) for each in plans]),
            Column("contexts,\ndescriptors", [f"{each.contexts}, ~{each.descriptors}" for each in plans]),
            *(
                Column(f"{title}\nprompt, tokens", [_speeds(getattr(each, name), rows) for each in plans])
                for title, name in (("policy", "under"), ("NPU alone", "npu"), ("CPU alone", "cpu"))
            ),
        ],
    )
    for each in plans:
        output.print(f"\n{each.scheme}:\n{each.placement}", soft_wrap=True, highlight=False, markup=False)
    say(f"a domain of {chip.soc} holds {chip.memory.domain_bytes / 1e9:.1f} GB, and there are {chip.memory.domains}")
    for line in _beyond(chip, max(each.contexts for each in plans), max(each.descriptors for each in plans)):
        say(line)


def _beyond(chip: Chip, contexts: int, descriptors: int) -> list[str]:
    """What a process may not have as many of as are planned, and what becomes of it."""
    reach, most = descriptors_within_reach(), chip.memory.contexts
    found = []
    if reach is not None and descriptors > reach:
        found.append(
            f"about {descriptors} file descriptors are wanted, and a process may have {reach} here: raise the hard "
            "limit (ulimit -Hn), or contexts that were used longest ago are made anew again and again"
        )
    if most is not None and contexts > most:
        found.append(
            f"{contexts} contexts are wanted, and a process can have {most}: those that were used longest ago are made "
            "anew again and again; npu_layers can leave kinds of layers to the CPU"
        )
    return found


def _placed(plan: OffloadPlan) -> ModelPlacement:
    assert plan.placement is not None
    return plan.placement


def _speeds(speeds: Any, rows: int) -> str:
    if speeds is None:
        return "-"
    return f"{_rate(speeds.prompt_per_second(rows))}, {_rate(speeds.tokens_per_second)}"


def _rate(each: Estimate | None) -> str:
    return "-" if each is None else f"{each.seconds:.1f}"
