"""`npumatmul info`: the device, its versions, and what was looked for and where."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

import npumatmul
from npumatmul import _kernels
from npumatmul.device import Device
from npumatmul.rknn import discover


def show(device_name: str | None, as_json: bool) -> None:
    """Print what is known of the device; where none can be used, the error says what was looked at."""
    found = discover(device_name)
    with Device(device_name) as device:
        facts = {
            "npumatmul": npumatmul.__version__,
            "device": device.name,
            "simulated": device.simulated,
            "chip": device.chip.soc,
            "npu_cores": device.chip.cores,
            "library": str(device.runtime.path),
            "runtime_version": device.api_version,
            "driver_version": device.driver_version,
            "matmul_types": [mm_type.name for mm_type in device.chip.limits],
            "host_kernels": _kernels.instruction_set(),
            "looked_at": [{"where": where, "found": what} for where, what in found.looked_at],
        }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        if key == "looked_at":
            lines = [f"{where}: {what}" for where, what in found.looked_at]
            table.add_row("looked at", "\n".join(lines))
        else:
            shown = "\n".join(value) if isinstance(value, list) else {True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload]
            table.add_row(key.replace("_", " "), shown)
    Console(highlight=False, soft_wrap=True).print(table, markup=False)
