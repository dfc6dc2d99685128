"""`npumatmul info`: the device, its versions, and what was looked for and where; or what a chip can do."""

from __future__ import annotations

import json

import npumatmul
from npumatmul import sim
from npumatmul.chips import NEWEST_RUNTIME, capabilities
from npumatmul.chips.timing import TIMINGS, used_timing_path
from npumatmul.device.device import Device
from npumatmul.host import kernels
from npumatmul.rknn import discover


def show(device_name: str | None, as_json: bool) -> None:
    """Print what is known of the device; where none can be used, the error says what was looked at."""
    found = discover(device_name)
    with Device(device_name) as device:
        facts: dict[str, object] = {
            "npumatmul": npumatmul.__version__,
            "device": device.name,
            "simulated": device.simulated,
            **({"simulated_runs": device.simulated_runs} if device.simulated_runs else {}),
            "chip": device.chip.soc,
            "npu_cores": device.chip.cores,
            "library": str(device.runtime.path),
            "runtime_version": device.api_version,
            "driver_version": device.driver_version,
            "runtime_used_as": str(min(device.runtime_version, NEWEST_RUNTIME)),
            "matmul_types": [mm_type.name for mm_type in device.chip.limits],
            "timing_constants": _timing(device),
            "host_kernels": kernels.instruction_set(),
            **({"simulator_uses": sim.counter_details(device)["instructions"]} if device.simulated else {}),
            "looked_at": [{"where": where, "found": what} for where, what in found.looked_at],
        }
        newer = device.runtime_version > NEWEST_RUNTIME
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        if key == "looked_at":
            value = [f"{where}: {what}" for where, what in found.looked_at]
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif key == "runtime_used_as":
            if not newer:
                continue
            value = f"{value}: what is newer than that is not known, and used like it"
        lines = value if isinstance(value, list) else [str(value)]
        for index, line in enumerate(lines):
            print(f"{key.replace('_', ' ') if index == 0 else '':<{width}}  {line}")


def _timing(device: Device) -> str:
    """Which constants plans model time with."""
    soc = device.chip.soc
    if soc not in device.chip.timings:
        return "none"
    model, kept = device.chip.timings[soc], used_timing_path(soc, device.simulated)
    if model == TIMINGS.get(soc):
        return f"{model.provenance}; not calibrated on this machine"
    return f"{model.provenance} ({kept})"


def show_capabilities(device_name: str | None, soc: str | None, runtime: str | None, as_json: bool) -> None:
    """Print the capability table of a chip and a runtime; by default, of the device that is here.

    A chip that is named is shown as the sources have it, where no version is named under the newest.
    """
    if soc is None:
        with Device(device_name) as device:
            table = capabilities(device.chip.soc, runtime or device.runtime_version, simulated=device.simulated)
    else:
        table = capabilities(soc, runtime or NEWEST_RUNTIME)
    print(table.to_json() if as_json else table)
