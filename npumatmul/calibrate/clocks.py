"""What times are read from: the computer's clock, or that of a simulator that counts modelled time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from npumatmul.device.device import Device
from npumatmul.errors import DeviceError
from npumatmul.rknn.simulator import VARIABLE_PREFIX, Simulator

__all__ = ["Clock", "clock_of", "modelled_clock"]


@dataclass(frozen=True)
class Clock:
    """A clock.

    Attributes
    ----------
    now : callable
        Seconds since some moment.
    exact : bool
        Whether it says the same of the same work, so that once is enough.
    """

    now: Callable[[], float] = time.perf_counter
    exact: bool = False


def modelled_clock(device: Device) -> Clock:
    """The virtual clock of a simulated device, which stands still unless its simulator counts modelled time.

    Raises
    ------
    DeviceError
        If the device is not simulated.
    """
    simulator = Simulator(device.runtime)
    return Clock(lambda: simulator.read_counters()["device_nanoseconds"] * 1e-9, exact=True)


def clock_of(device: Device) -> Clock:
    """The clock to calibrate a device by.

    Raises
    ------
    DeviceError
        If it is simulated without modelled time: then only this computer could be measured.
    """
    if not device.simulated:
        return Clock()
    mode = Simulator(device.runtime).setting(f"{VARIABLE_PREFIX}TIMING")
    if mode == "off":
        raise DeviceError(
            f"{device.name} is simulated: its runs take as long as this computer needs, which says nothing of a board. "
            "To try the command, have the simulator model time: NPUMATMUL_SIM_TIMING=model"
        )
    return modelled_clock(device) if mode == "model" else Clock()
