"""`npumatmul calibrate`: times runs, fits the timing model's constants, shows and stores them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from npumatmul.calibrate import Calibration, calibrate
from npumatmul.chips.timing import default_timing_path, used_timing_path
from npumatmul.cli.files import STANDARD, check_outputs
from npumatmul.cli.progress import working
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say
from npumatmul.device.device import Device


def run(device_name: str | None, *, seconds: float, output: Path | None, dry_run: bool, as_json: bool) -> None:
    """Calibrate a device; constants go to standard output, the rest to standard error. Only the end stores anything."""
    if output == STANDARD:
        raise ValueError("--output is a file that plans can find again; --json prints what was found")
    check_outputs({"--output": output})
    with Device(device_name) as device:
        soc, simulated = device.chip.soc, device.simulated
        say(
            f"Calibrating {device.name}: {'a simulated ' if simulated else ''}{soc}, about {seconds + 15:.0f} s."
            + ("" if simulated else " Stop other programs that use the NPU or much memory.")
        )
        try:
            with working() as bar:
                found = calibrate(device, seconds=seconds, progress=bar)
        except KeyboardInterrupt:
            say("Nothing was stored; constants that were there before are still in use.")
            raise
    path = output or used_timing_path(soc, simulated) or default_timing_path(soc, simulated)
    stored = None if dry_run or found.problem is not None else found.keep(path)
    if as_json:
        print(json.dumps(_facts(found, stored), indent=1))
    else:
        _show(found)
    if found.problem is not None and not dry_run:
        found.keep()  # raises
    if found.problem is not None:
        say(f"Not to be relied on: {found.problem}")
    elif stored is None:
        say("Nothing was stored (--dry-run).")
    else:
        say(f"Stored in {stored}.")
        _say_how_they_are_used(stored, used_timing_path(soc, simulated))


def _say_how_they_are_used(stored: Path, used: Path | None) -> None:
    if used is None:
        say("Plans do not use them: NPUMATMUL_TIMING_FILE is empty, which turns it off.")
    elif os.path.abspath(used) != os.path.abspath(stored):
        say(f"To use them: NPUMATMUL_TIMING_FILE={stored}")
    else:
        say("Devices that are opened from now on plan with them; `npumatmul info` says so.")


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _show(found: Calibration) -> None:
    constants = found.constants
    print_table(
        results(), "",
        Column("constant", [each.name for each in constants], left=True),
        [
            Column("before", [_figure(each.before) for each in constants]),
            Column("after", [_figure(each.after) for each in constants]),
            Column("ratio", [f"{each.after / each.before:.2f}" for each in constants]),
            Column("", ["" if each.noticed else "as before: no run decides it" if each.before == each.after
                        else "unsure, or at least so much" for each in constants], left=True),
        ],
    )  # fmt: skip
    before, after = found.error(found.before), found.error(found.after)
    print(
        f"{len(found.measured)} runs in {found.seconds:.0f} s; the model's error over them (root mean square of "
        f"logarithms) was {before:.3f}, is {after:.3f}"
    )
    for point, ratio in found.worst(found.after):
        print(f"  {point}: modelled {ratio:.2f} times the {1e3 * found.measured[point].seconds:.3f} ms that it took")


def _facts(found: Calibration, stored: Path | None) -> dict[str, Any]:
    return {
        **found.facts,
        "simulated": found.simulated,
        "constants": [
            {"name": each.name, "before": each.before, "after": each.after, "noticed": each.noticed}
            for each in found.constants
        ],
        "error_before": found.error(found.before),
        "error_after": found.error(found.after),
        "slowdown": found.slowdown,
        "seconds": found.seconds,
        "problem": found.problem,
        "stored": None if stored is None else str(stored),
        "runs": [
            {
                "run": str(point),
                "seconds": sample.seconds,
                "spread": sample.spread,
                "modelled_before": point.seconds(found.before),
                "modelled_after": point.seconds(found.after),
            }
            for point, sample in found.measured.items()
        ],
    }
