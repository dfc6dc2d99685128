"""`npumatmul plan`: how large and how fast a model is modelled to be on a chip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from npumatmul.chips import Chip, chip
from npumatmul.chips.timing import Estimate, find_timing
from npumatmul.cli import offloading
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say
from npumatmul.llm.modelled import ModelPlan, plan_model, shape_of
from npumatmul.llm.policy import Policy
from npumatmul.rknn import discover
from npumatmul.rknn.socs import DEFAULT_SOC


def show(
    model: str,
    soc: str | None,
    schemes: Sequence[str] | None,
    as_json: bool,
    expert_memory: int | None = None,
    *,
    policy: Policy | None = None,
) -> None:
    """Print the plan of a model, by itself or under a policy."""
    if policy is not None:
        offloading.show(shape_of(model), _chip_here(soc), schemes, policy, as_json)
        return
    plan = plan_model(shape_of(model), _chip_here(soc), schemes, expert_memory=expert_memory)
    if as_json:
        print(json.dumps(plan.content(), indent=1))
        return
    _print(plan)


def _chip_here(soc: str | None) -> Chip:
    """The chip, by default that of the device, with constants that were fitted on this machine, if any were."""
    simulated = False
    if soc is None:
        device = discover()
        soc, simulated = device.soc or DEFAULT_SOC, device.device.startswith("sim:")
    found = chip(soc)
    timing = find_timing(found.soc, simulated)
    return found if timing is None else replace(found, timings={found.soc: timing})


def _print(plan: ModelPlan) -> None:
    output = results()
    output.print(_about(plan), soft_wrap=True)
    cores = f"{plan.cores} core{'s' if plan.cores > 1 else ''}"
    title = f"modelled for {plan.soc} ({cores}), not measured: nine tenths are taken to lie in the range"
    print_table(output, title, Column("scheme", [each.scheme for each in plan.schemes], left=True), _speeds(plan))
    first = plan.schemes[0]
    print_table(
        output,
        "linear layers; tiles and MB of all that are alike",
        Column("layer", [each.name for each in first.layers], left=True),
        [
            Column("K x N", [f"{each.k} x {each.n}" for each in first.layers]),
            Column("times", [str(each.times) for each in first.layers]),
            *(
                Column(f"{each.scheme}\ntiles, MB", [f"{x.tiles * x.times}, {x.nbytes / 1e6:.1f}" for x in each.layers])
                for each in plan.schemes
            ),
        ],
    )
    if first.expert_bytes:
        say(
            "assumed of experts: tokens choose independently and every expert alike, and each chosen one has the mean "
            "number of rows; real models have favourites, which is faster"
        )
    if plan.expert_memory is not None:
        say(
            "assumed of experts that are brought in: they wait in the host's memory and are copied by one thread; from "
            "files it takes as long as these need to be read"
        )
    say(f"constants of {plan.soc}: {plan.provenance}")
    for each in plan.schemes:
        if each.note:
            say(f"{each.scheme}: {each.note}")
    for name, why in plan.left_out.items():
        say(f"left out {name}: {why}")


def _about(plan: ModelPlan) -> str:
    shape = plan.shape
    size = f"{_count(shape.parameters)} parameters"
    if shape.active_parameters != shape.parameters:
        size += f", of which a token passes {_count(shape.active_parameters)}"
    kept = f"; keys and values take {plan.cache_bytes / 1024:.0f} KiB a position in float16" if plan.cache_bytes else ""
    return f"{shape.name}: {shape.layers} layers, {size}{kept}"


def _speeds(plan: ModelPlan) -> list[Column]:
    schemes = plan.schemes
    columns = [Column("weights\nMB", [f"{each.nbytes / 1e6:.0f}" for each in schemes])]
    if plan.expert_memory is not None:
        here = [each.nbytes - max(0, each.expert_bytes - plan.expert_memory) for each in schemes]
        columns.append(Column("in NPU memory\nMB", [f"{each / 1e6:.0f}" for each in here]))
    columns.append(Column("NPU\ncontexts", [str(each.contexts) for each in schemes]))
    if plan.shape.kind == "encoder":
        for texts in schemes[0].texts:
            cells = [_range(each.texts[texts], "{:.0f}", 1e3) for each in schemes]
            columns.append(Column(f"{texts} tokens\nmilliseconds", cells))
        return columns
    if plan.expert_memory is not None:
        columns.append(Column("brought in\nMB a token", [f"{(each.brought or 0) / 1e6:.0f}" for each in schemes]))
    if plan.shape.kind == "speech":
        columns.append(Column("hearing 30 s\nseconds", [_range(each.window, "{:.2f}") for each in schemes]))
    columns.append(Column("tokens/s", [_range(each.tokens_per_second, "{:.1f}") for each in schemes]))
    for rows in schemes[0].prompts:
        cells = [_range(each.prompts[rows], "{:.2f}") for each in schemes]
        columns.append(Column(f"prompt of {rows}\nseconds", cells))
    return columns


def _range(found: Estimate | None, form: str, unit: float = 1.0) -> str:
    if found is None:
        return "-"
    seconds, low, high = (form.format(each * unit) for each in (found.seconds, found.low, found.high))
    return f"{seconds} ({low}-{high})"


def _count(parameters: int) -> str:
    if parameters >= 0.9995e9:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.0f} million" if parameters >= 0.9995e6 else f"{parameters / 1e3:.0f} thousand"
