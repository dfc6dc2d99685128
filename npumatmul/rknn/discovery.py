"""Which runtime library to use, and a record of what was looked for and where.

The order: a device string (an argument, else ``NPUMATMUL_DEVICE``); else ``NPUMATMUL_LIBRARY``; else, on a Rockchip
chip, the board's `librknnrt.so`; else the simulator. On a board the simulator is used only when it is named: a chip
that is found without a usable runtime is an error, not a fallback. The kernel's device tree names the chip;
``NPUMATMUL_SOC`` does where it names none, as in some containers.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from npumatmul.errors import DeviceError, LibraryNotFoundError
from npumatmul.rknn.runtime import Runtime
from npumatmul.rknn.socs import COMPATIBLE, DEFAULT_SOC, SOCS, meant, plain_name

logger = logging.getLogger(__name__)

#: Where distributions put the vendor's library (facts 11.1, D33).
LIBRARY_PLACES = (
    "/usr/lib/librknnrt.so",
    "/usr/lib64/librknnrt.so",
    "/usr/lib/aarch64-linux-gnu/librknnrt.so",
    "/usr/lib/arm-linux-gnueabihf/librknnrt.so",
    "/usr/local/lib/librknnrt.so",
    "/vendor/lib64/librknnrt.so",
    "/oem/usr/lib/librknnrt.so",
)

DEVICE_TREE = "/proc/device-tree/compatible"


@dataclass
class Discovery:
    """What was decided and why.

    Attributes
    ----------
    device : str
        The device string: ``rknn`` or ``sim:<chip>``.
    soc : str or None
        The chip; None where it is the library's to say.
    library : Path or None
        The library to load; None where none was found.
    looked_at : list of (str, str)
        Each place that was looked at, and what was found there.
    """

    device: str = ""
    soc: str | None = None
    library: Path | None = None
    looked_at: list[tuple[str, str]] = field(default_factory=list)

    def note(self, where: str, what: str) -> None:
        self.looked_at.append((where, what))
        logger.debug("looked at %s: %s", where, what)

    def report(self) -> str:
        """The looks as lines of text."""
        return "\n".join(f"  {where}: {what}" for where, what in self.looked_at)


def simulator_path(version: str | None = None, named_by: str = "") -> Path:
    """Path of the simulator's library inside the package.

    Parameters
    ----------
    version : str, optional
        Of the runtime that is simulated, such as ``"1.6.0"``: then the library with exactly that version's functions.
    named_by : str, optional
        For errors, what named the version.

    Raises
    ------
    LibraryNotFoundError
        If the package was installed without its libraries.
    DeviceError
        If that version is not simulated; the message lists those that are.
    """
    folder = native_directory()
    path = folder / "libnpumm_sim.so"
    if not path.exists():
        raise LibraryNotFoundError(f"the simulator's library is missing from the package: {path}; reinstall npumatmul")
    if version is None:
        return path
    prefix = "libnpumm_sim_"
    versions = sorted(each.name[len(prefix) : -len(".so")] for each in folder.glob(f"{prefix}*.so"))
    if version not in versions:
        raise DeviceError(f"runtime {version!r}{named_by} is not simulated; these are: {', '.join(versions)}")
    return folder / f"{prefix}{version}.so"


def native_directory() -> Path:
    """Directory of the package's own shared libraries; an editable install has the package in two places."""
    places = [Path(place) / "_native" for place in importlib.import_module("npumatmul").__path__]
    return next((place for place in places if place.is_dir()), places[0])


def board_soc(
    found: Discovery, device_tree: str | Path = DEVICE_TREE, environment: Mapping[str, str] | None = None
) -> str | None:
    """The chip that the kernel's device tree names, or ``NPUMATMUL_SOC`` where it names none; None on other machines.

    Raises
    ------
    DeviceError
        If ``NPUMATMUL_SOC`` is no chip with the matmul API, or another one than the device tree names.
    """
    named = (os.environ if environment is None else environment).get("NPUMATMUL_SOC")
    if named:
        found.note("NPUMATMUL_SOC", repr(named))
        named = plain_name(named)
        if named not in SOCS:
            raise DeviceError(
                f"NPUMATMUL_SOC is {named!r}; chips with the matmul API are: {', '.join(SOCS)}{meant(named)}"
            )
    seen = _device_tree_soc(found, device_tree)
    if named and seen not in (None, named):
        raise DeviceError(
            f"NPUMATMUL_SOC is {named!r}, but {device_tree} names an {seen}: unset it, or simulate with "
            f"NPUMATMUL_DEVICE=sim:{named}"
        )
    return seen or named or None


def _device_tree_soc(found: Discovery, device_tree: str | Path) -> str | None:
    try:
        entries = Path(device_tree).read_bytes().split(b"\0")
    except FileNotFoundError:
        found.note(str(device_tree), "not there: not a device-tree machine")
        return None
    except OSError as error:
        found.note(str(device_tree), f"cannot be read: {error.strerror}")
        return None
    names = [entry.decode("ascii", "replace") for entry in entries if entry]
    for name in names:
        if name in COMPATIBLE:
            found.note(str(device_tree), f"names {name}")
            return COMPATIBLE[name]
    found.note(str(device_tree), f"names no chip with the matmul API ({', '.join(names) or 'empty'})")
    return None


def discover(
    device: str | None = None,
    environment: Mapping[str, str] | None = None,
    device_tree: str | Path = DEVICE_TREE,
    places: tuple[str, ...] = LIBRARY_PLACES,
) -> Discovery:
    """Decide which library serves, without loading it.

    Parameters
    ----------
    device : str, optional
        ``"rknn"`` (the board's own chip) or ``"sim:<chip>"``, such as ``"sim:rk3588"``; ``"sim"`` takes the chip of
        ``NPUMATMUL_SIM_SOC``, else rk3588. It beats the environment.
    environment : mapping, optional
        ``os.environ`` by default. ``NPUMATMUL_SIM_RUNTIME`` names the version of the runtime that is simulated,
        ``NPUMATMUL_SOC`` the chip where no device tree does.
    device_tree, places : optional
        Where to look; for tests.

    Returns
    -------
    Discovery
        With ``library`` None where a board's library is wanted and not found; `load` turns that into an error.

    Raises
    ------
    DeviceError
        If the device string is not one of those above, or ``NPUMATMUL_SOC`` is no chip or contradicts the machine.
    TypeError
        If `device` is no string.

    Examples
    --------
    >>> discover("sim:rk3588").soc
    'rk3588'
    """
    if device is not None and not isinstance(device, str):
        raise TypeError(
            f"a device is named by a string such as 'rknn' or 'sim:rk3588', not by an object of type "
            f"{type(device).__name__}"
        )
    environment = os.environ if environment is None else environment
    found = Discovery()
    wanted, named_by = device, ""
    if wanted is not None:
        found.note("device argument", repr(wanted))
    elif environment.get("NPUMATMUL_DEVICE"):
        wanted, named_by = environment["NPUMATMUL_DEVICE"], " (of NPUMATMUL_DEVICE)"
        found.note("NPUMATMUL_DEVICE", repr(wanted))
    else:
        found.note("NPUMATMUL_DEVICE", "not set")

    if wanted is not None:
        kind, _, soc = wanted.partition(":")
        if kind.lower() == "sim":
            return _simulator(found, plain_name(soc), environment)
        if wanted.lower() != "rknn":
            raise DeviceError(
                f"device {wanted!r}{named_by} is not known: use 'rknn' for the board's own NPU, or "
                + " or ".join(repr(f"sim:{name}") for name in SOCS)
                + _meant(wanted)
            )
    library = environment.get("NPUMATMUL_LIBRARY")
    found.note("NPUMATMUL_LIBRARY", repr(library) if library else "not set")
    soc_here = board_soc(found, device_tree, environment)
    if library:
        found.device, found.soc, found.library = "rknn", soc_here, Path(library)
        return found
    if wanted is None and soc_here is None:
        return _simulator(found, "", environment)
    found.device, found.soc = "rknn", soc_here
    for place in places:
        if Path(place).exists():
            found.note(place, "found")
            found.library = found.library or Path(place)
        else:
            found.note(place, "not there")
    return found


def _meant(wanted: str) -> str:
    """What a device was perhaps to be: the name of a chip alone may be the board's or a simulated one."""
    soc = plain_name(wanted)
    return f"; did you mean 'sim:{soc}', or on a board 'rknn'?" if soc in SOCS else meant(wanted, "sim:")


def _simulator(found: Discovery, soc: str, environment: Mapping[str, str]) -> Discovery:
    named_by = ""
    if not soc:
        soc = environment.get("NPUMATMUL_SIM_SOC") or DEFAULT_SOC
        found.note("NPUMATMUL_SIM_SOC", environment.get("NPUMATMUL_SIM_SOC") or "not set")
        named_by = " (of NPUMATMUL_SIM_SOC)"
    if soc not in SOCS:
        raise DeviceError(
            f"device 'sim:{soc}'{named_by} is not simulated; these are: {', '.join(f'sim:{each}' for each in SOCS)}"
            + meant(f"sim:{soc}", "sim:")
        )
    version = environment.get("NPUMATMUL_SIM_RUNTIME") or None
    if version is not None:
        found.note("NPUMATMUL_SIM_RUNTIME", version)
    path = simulator_path(version, " (of NPUMATMUL_SIM_RUNTIME)")
    found.note(str(path), "the simulator")
    found.device, found.soc, found.library = f"sim:{soc}", soc, path
    return found


def load(found: Discovery) -> Runtime:
    """Load what `discover` decided on.

    Raises
    ------
    LibraryNotFoundError
        If there is no library, it does not load, or the chip is unknown; the message tells what was looked at.
    """
    if found.library is None:
        chip = f"this machine is an {found.soc}" if found.soc else "the device 'rknn' was asked for"
        raise LibraryNotFoundError(
            f"{chip}, but no librknnrt.so was found. Install the board's RKNN runtime (2.3.2 is the newest known), or "
            f"set NPUMATMUL_LIBRARY to its path, or NPUMATMUL_DEVICE=sim to simulate. Looked at:\n{found.report()}"
        )
    try:
        runtime = Runtime(found.library, found.soc if found.device.startswith("sim:") else None)
    except LibraryNotFoundError as error:
        raise LibraryNotFoundError(f"{error}. Looked at:\n{found.report()}") from error
    simulated = runtime.simulated_soc()
    if simulated is not None:
        found.soc = simulated[0]
        found.device = f"sim:{simulated[0]}"
    if found.soc is None:
        raise LibraryNotFoundError(
            f"{found.library} was loaded, but this machine's chip is not known (no Rockchip chip with the matmul API "
            f"in {DEVICE_TREE}); NPUMATMUL_SOC=rk3588, for example, names it. Looked at:\n{found.report()}"
        )
    return runtime
