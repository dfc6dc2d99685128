"""Control of the simulator: which libraries there are, programs run on them, counters and traces.

A C or C++ program that is linked with ``librknnrt.so`` runs on the simulator when it finds the simulator under that
name; `environment` returns the variables that make it so, and ``npumatmul sim env`` sets them and starts the program.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npumatmul.chips.timing import TimingModel
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.device.scope import Scope
from npumatmul.errors import DeviceError, LibraryNotFoundError
from npumatmul.files.folders import cache_folder
from npumatmul.files.writing import scratch_folder
from npumatmul.rknn import simulator
from npumatmul.rknn.discovery import native_directory
from npumatmul.rknn.simulator import SETTINGS, VARIABLE_PREFIX, Simulator
from npumatmul.rknn.socs import DEFAULT_SOC, SOCS, meant, plain_name

__all__ = [
    "NEWEST_RUNTIME",
    "SETTINGS",
    "SOCS",
    "Counters",
    "compile_flags",
    "configured",
    "counter_details",
    "counters",
    "environment",
    "include_path",
    "library_path",
    "link_flags",
    "reset_counters",
    "runtimes",
    "timing_constants",
    "trace",
]

NEWEST_RUNTIME = "2.3.2"

_CONSTANTS = (
    "start_seconds",
    "join_seconds",
    "buffer_bytes",
    "bandwidth_one_core",
    "bandwidth_all_cores",
    "bind_seconds",
    "host_bandwidth",
    "normal_c_seconds",
)


def runtimes() -> tuple[str, ...]:
    """Versions of the vendor's runtime that are simulated, oldest first.

    Examples
    --------
    >>> runtimes()[-1]
    '2.3.2'
    """
    return tuple(simulator.libraries())


def library_path(runtime: str = NEWEST_RUNTIME) -> Path:
    """Path of the simulator's library that has the functions of one version of the runtime, and no others.

    Parameters
    ----------
    runtime : str
        One of `runtimes`.

    Raises
    ------
    DeviceError
        If that version is not simulated; the message lists those that are.

    Examples
    --------
    >>> library_path("2.3.2").name
    'libnpumm_sim_2.3.2.so'
    """
    libraries = simulator.libraries()
    if runtime not in libraries:
        raise DeviceError(f"runtime {runtime!r} is not simulated; these are: {', '.join(libraries) or 'none'}")
    return libraries[runtime]


def include_path() -> Path:
    """Folder of the C headers: ``rknn_matmul_api.h`` and ``rknn_api.h``, and ``npumatmul_sim.h`` of the simulator.

    They declare the vendor's documented API in our own words, so that programs compile where the SDK is not installed.

    Raises
    ------
    LibraryNotFoundError
        If the package was installed without them.

    Examples
    --------
    >>> (include_path() / "rknn_matmul_api.h").exists()
    True
    """
    folder = native_directory() / "include"
    if not (folder / "rknn_matmul_api.h").exists():
        raise LibraryNotFoundError(f"the C headers are missing from the package: {folder}; reinstall npumatmul")
    return folder


def compile_flags() -> list[str]:
    """What a C or C++ compiler needs to find the headers.

    Examples
    --------
    >>> compile_flags() == [f"-I{include_path()}"]
    True
    """
    return [f"-I{include_path()}"]


def link_flags(runtime: str = NEWEST_RUNTIME) -> list[str]:
    """What a compiler needs to link a program with the simulator as its ``librknnrt.so``.

    The program then runs without further ado on this machine, and follows `environment` where that is set.

    Parameters
    ----------
    runtime : str
        The simulated version of the runtime, one of `runtimes`.

    Raises
    ------
    DeviceError
        If that version is not simulated.
    OSError
        If the folder for ``librknnrt.so`` cannot be made below ``$XDG_CACHE_HOME`` (``~/.cache`` by default).

    Examples
    --------
    >>> link_flags()[-1]
    '-lrknnrt'
    """
    folder = _folder_with_librknnrt(library_path(runtime), os.environ)
    # of the two kinds of search path in a program, the one that LD_LIBRARY_PATH beats
    return [f"-L{folder}", f"-Wl,--enable-new-dtags,-rpath,{folder}", "-lrknnrt"]


def environment(
    soc: str = DEFAULT_SOC,
    runtime: str = NEWEST_RUNTIME,
    *,
    inherited: Mapping[str, str] | None = None,
    **settings: str | int | bool,
) -> dict[str, str]:
    """Variables that make a program take the simulator for its ``librknnrt.so``.

    Parameters
    ----------
    soc : str
        The simulated chip, one of `SOCS`.
    runtime : str
        The simulated version of the runtime, one of `runtimes`.
    inherited : mapping, optional
        The variables that the program has already, ``os.environ`` by default: its search paths are kept behind ours.
    **settings : str, int or bool
        Settings of the simulator by name, such as ``strict=True`` or ``faults="run:after=3:code=-2"``, or by the name
        of their variable: `SETTINGS` and docs/simulator.md list them.

    Returns
    -------
    dict of str to str
        ``LD_LIBRARY_PATH`` (for running), ``LIBRARY_PATH`` (for linking with ``-lrknnrt``), ``C_INCLUDE_PATH`` and
        ``CPLUS_INCLUDE_PATH`` (for compiling), ``NPUMATMUL_LIBRARY`` (for npumatmul itself) and the
        ``NPUMATMUL_SIM_*`` variables.

    Raises
    ------
    DeviceError
        If the chip or the version is not simulated.
    ValueError
        If there is no such setting, or it has no such value.
    OSError
        If the folder for ``librknnrt.so`` cannot be made below ``$XDG_CACHE_HOME`` (``~/.cache`` by default).

    Examples
    --------
    >>> variables = environment("rk3576", strict=True)
    >>> variables["NPUMATMUL_SIM_SOC"], variables["NPUMATMUL_SIM_STRICT"]
    ('rk3576', '1')
    """
    soc = plain_name(soc) if isinstance(soc, str) else soc
    if soc not in SOCS:
        raise DeviceError(f"chip {soc!r} is not simulated; these are: {', '.join(SOCS)}{meant(str(soc))}")
    inherited = os.environ if inherited is None else inherited
    library = library_path(runtime)
    variables = {"NPUMATMUL_SIM_SOC": soc, "NPUMATMUL_SIM_RUNTIME": runtime}
    variables.update(_setting(name, value) for name, value in settings.items())
    folder = _folder_with_librknnrt(library, inherited)
    headers = include_path()
    for name, place in (
        ("LD_LIBRARY_PATH", folder), ("LIBRARY_PATH", folder),
        ("C_INCLUDE_PATH", headers), ("CPLUS_INCLUDE_PATH", headers),
    ):  # fmt: skip
        before = inherited.get(name)
        variables[name] = f"{place}:{before}" if before else str(place)
    variables["NPUMATMUL_LIBRARY"] = str(folder / "librknnrt.so")
    return variables


def _setting(name: str, value: str | int | bool) -> tuple[str, str]:
    """The variable of a setting, which may also be named by its variable, and its text."""
    known = name.lower().removeprefix(VARIABLE_PREFIX.lower())
    if known not in SETTINGS:
        guess = difflib.get_close_matches(known, SETTINGS, 1)
        hint = f" (did you mean {guess[0]!r}?)" if guess else ""
        raise ValueError(f"the simulator has no setting {name!r}{hint}; there are: {', '.join(SETTINGS)}")
    text = str(int(value)) if isinstance(value, bool) else str(value)
    values = SETTINGS[known]
    if values is not None and text not in values:
        raise ValueError(f"the simulator's setting {known!r} is {' or '.join(values)}, not {text!r}")
    return VARIABLE_PREFIX + known.upper(), text


def _folder_with_librknnrt(library: Path, inherited: Mapping[str, str]) -> Path:
    """A folder that holds nothing but ``librknnrt.so``, a link to `library`; it stays, for programs that run later."""
    key = hashlib.sha256(str(library).encode()).hexdigest()[:12]
    folder = cache_folder("sim", f"{library.stem}-{key}", environment=inherited)
    link = folder / "librknnrt.so"
    if ":" in str(folder) or ";" in str(folder):
        raise OSError(
            errno.EINVAL,
            f"librknnrt.so cannot be put into {folder}: a loader takes ':' and ';' for the end of a folder's name; set "
            "XDG_CACHE_HOME to a folder without them",
        )
    if link.is_symlink() and os.readlink(link) == str(library):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) as scratch:
            passing = scratch / link.name
            passing.symlink_to(library)
            passing.replace(link)  # another process may look at the same moment
    except OSError as error:
        raise OSError(
            error.errno,
            f"librknnrt.so cannot be put into {folder} ({error.strerror}); set XDG_CACHE_HOME to a folder that can be "
            "written",
        ) from error
    return folder


@dataclass(frozen=True)
class Counters:
    """What the simulator counted since it was loaded or `reset_counters` was called.

    Attributes
    ----------
    run_calls, set_io_mem_calls, mem_sync_calls : int
        Calls of the runtime's functions, failed ones included.
    macs : int
        Multiply-accumulates of all runs, padding included.
    contexts_now, memories_now : int
        Living matmul contexts and ``rknn_tensor_mem`` structs.
    descriptors_now : int
        File descriptors that allocations hold.
    bytes_now : int
        Bytes of NPU memory allocated.
    device_nanoseconds : int
        What all this is modelled to have taken a board, with the setting ``timing`` other than ``"off"``; else 0.
    """

    run_calls: int
    set_io_mem_calls: int
    mem_sync_calls: int
    macs: int
    contexts_now: int
    memories_now: int
    descriptors_now: int
    bytes_now: int
    device_nanoseconds: int


def counters(device: Device | str | None = None) -> Counters:
    """Read the counters of the library that simulates a device.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default. Devices that share a library share its counters.

    Raises
    ------
    DeviceError
        If the device is not simulated.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.Device("sim:rk3588") as device:
    ...     before = counters(device).run_calls
    ...     _ = npu.matmul(np.ones((4, 32), np.int8), np.ones((32, 32), np.int8), device=device)
    ...     counters(device).run_calls - before
    1
    """
    return Counters(**_simulator(device).read_counters())


def counter_details(device: Device | str | None = None) -> dict[str, Any]:
    """All counters: calls and failures by function, bytes moved, multiply-accumulates by chip, type and core.

    Beside them, the simulated runtime and the instructions of this CPU that products are computed with.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default.

    Raises
    ------
    DeviceError
        If the device is not simulated.

    Examples
    --------
    >>> import npumatmul as npu
    >>> with npu.Device("sim:rk3588") as device:
    ...     counter_details(device)["calls"]["rknn_matmul_create"] > 0
    True
    """
    details = json.loads(_simulator(device).counters_json())
    assert isinstance(details, dict)
    return details


def reset_counters(device: Device | str | None = None) -> None:
    """Set the sums of `counters` to 0; the present values (``*_now``) stay what they are.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default.

    Raises
    ------
    DeviceError
        If the device is not simulated.

    Examples
    --------
    >>> import npumatmul as npu
    >>> with npu.Device("sim:rk3588") as device:
    ...     reset_counters(device)
    ...     counters(device).run_calls
    0
    """
    _simulator(device).reset_counters()


def configured(device: Device | str | None = None, **settings: str | int | bool) -> Scope[None]:
    """Give settings of the simulator other values within a ``with`` block; afterwards they are what they were before.

    Contexts and memories keep the settings that held when they were created, so open a `Device` inside the block.
    Faults that are put back count calls anew, and a trace that gave way to another one has ended.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default; devices that share a library share its settings.
    **settings : str, int or bool
        As for `environment`: `SETTINGS` and docs/simulator.md list them.

    Raises
    ------
    DeviceError
        If the device is not simulated.
    ValueError
        If there is no such setting, or it has no such value.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with configured(faults="run:after=0:code=-2"), npu.Device("sim:rk3588") as device:
    ...     npu.matmul(np.ones((1, 1), np.int8), np.ones((1, 1), np.int8), device=device)
    Traceback (most recent call last):
    npumatmul.errors.RknnTimeout: rknn_matmul_run(...) returned -2 (RKNN_ERR_TIMEOUT): timed out...
    """
    simulated = _simulator(device)
    values = dict(_setting(name, value) for name, value in settings.items())
    return Scope(lambda: _configured(simulated, values), "npumatmul.sim.configured")


@contextmanager
def _configured(simulated: Simulator, values: Mapping[str, str]) -> Iterator[None]:
    before = {name: simulated.setting(name) for name in values if name != "NPUMATMUL_SIM_TRACE"}
    try:
        for name, text in values.items():
            simulated.configure(name, text)
        yield
    finally:
        for name in values:
            simulated.configure(name, before.get(name))


def timing_constants(model: TimingModel) -> str:
    """Constants of a timing model, for the setting ``timing_constants``: a simulator with them is as fast as it says.

    Parameters
    ----------
    model : TimingModel

    Returns
    -------
    str
        Names and values, separated by commas.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from npumatmul.chips.timing import TIMINGS
    >>> slow = replace(TIMINGS["rk3588"], start_seconds=1e-3)
    >>> timing_constants(slow).split(",")[0]
    'start_seconds=0.001'
    >>> with configured(timing="model", timing_constants=timing_constants(slow)):
    ...     pass
    """
    values = {name: getattr(model, name) for name in _CONSTANTS}
    for name in ("peak", "normal_peak"):
        values.update({f"{name}_{element.label}": rate for element, rate in getattr(model, name).items()})
    return ",".join(f"{name}={float(value)!r}" for name, value in values.items())


def trace(path: str | os.PathLike[str], device: Device | str | None = None) -> Scope[None]:
    """Write every call of the C API within a ``with`` block to a file for chrome://tracing or ui.perfetto.dev.

    Parameters
    ----------
    path : str or os.PathLike
        The file; one that exists is overwritten. One trace is written at a time: starting another ends the first.
    device : Device or str, optional
        The current device by default; devices that share a library are traced together.

    Raises
    ------
    DeviceError
        If the device is not simulated.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with tempfile.NamedTemporaryFile() as file, npu.Device("sim:rk3588") as device:
    ...     with trace(file.name, device):
    ...         _ = npu.matmul(np.ones((4, 32), np.int8), np.ones((32, 32), np.int8), device=device)
    ...     b"rknn_matmul_run" in file.read()
    True
    """
    simulated, name = _simulator(device), os.fspath(path)
    return Scope(lambda: _traced(simulated, name), "npumatmul.sim.trace")


@contextmanager
def _traced(simulated: Simulator, path: str) -> Iterator[None]:
    simulated.trace_start(path)
    try:
        yield
    finally:
        simulated.trace_stop()


def _simulator(device: Device | str | None) -> Simulator:
    chosen = current_device(device)
    chosen.check_usable()
    return Simulator(chosen.runtime)
