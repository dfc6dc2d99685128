"""The simulator's own functions (`native/include/npumatmul_sim.h`), and which of its libraries exist."""

from __future__ import annotations

import ctypes as C
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from npumatmul.errors import DeviceError, LibraryNotFoundError
from npumatmul.files.reading import shown
from npumatmul.rknn.discovery import native_directory
from npumatmul.rknn.runtime import Runtime
from npumatmul.rknn.version import RuntimeVersion

VARIABLE_PREFIX = "NPUMATMUL_SIM_"

#: Settings, each the variable ``NPUMATMUL_SIM_<NAME>``, with their values where those are words (docs/simulator.md).
SETTINGS: dict[str, tuple[str, ...] | None] = {
    "limits": ("observed", "documented"),
    "broken": ("0", "1"),
    "overflow": ("saturate", "wrap", "error"),
    "strict": ("0", "1"),
    "rows": ("exact", "ceil4"),
    "int4_rows": ("refused", "deadly", "any"),
    "compute": ("on", "off"),
    "foreign": ("accept", "refuse"),
    "contexts": None,
    "domain_bytes": None,
    "driver": ("ok", "old", "missing"),
    "timing": ("off", "model", "realtime"),
    "timing_constants": None,
    "instructions": None,
    "faults": None,
    "trace": None,
}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and text.strip("0") != ""


def _are_constants(text: str) -> bool:
    for each in text.split(","):
        name, _, value = each.partition("=")
        try:
            fits = name.isidentifier() and 0 < float(value) < math.inf and value == value.strip()
        except ValueError:
            return False
        if not fits:
            return False
    return True


#: Settings that hold numbers, or words of which each CPU has some: whether a text is one of their values, and which
#: these are.
_FORMS: dict[str, tuple[Callable[[str], bool], str]] = {
    "contexts": (lambda text: text == "none" or _is_number(text), "none or a number from 1 on"),
    "domain_bytes": (_is_number, "a number from 1 to 4294967296"),
    "timing_constants": (
        _are_constants,
        "constants as in docs/simulator.md, such as start_seconds=3e-5,peak_int8=1e12",
    ),
    "instructions": (
        {"best", "scalar", "avx2", "avx512", "amx", "neon", "neon-dotprod"}.__contains__,
        "best, scalar, or what this CPU has of avx2, avx512, amx, neon and neon-dotprod",
    ),
}

COUNTERS = (
    "run_calls",
    "set_io_mem_calls",
    "mem_sync_calls",
    "macs",
    "contexts_now",
    "memories_now",
    "descriptors_now",
    "bytes_now",
    "device_nanoseconds",
)


class _Counters(C.Structure):
    """`npumm_sim_counters`."""

    _fields_ = tuple((name, C.c_uint64) for name in COUNTERS)


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse values of settings that no simulator takes, before one fails without saying which.

    Raises
    ------
    DeviceError
        The message names the variable.
    """
    environment = os.environ if environment is None else environment
    for name, values in SETTINGS.items():
        given = environment.get(VARIABLE_PREFIX + name.upper())
        if given and values is not None and given not in values:
            raise DeviceError(f"{VARIABLE_PREFIX}{name.upper()} is {shown(given)}; it can be {' or '.join(values)}")
        if given and name in _FORMS:
            fits, wanted = _FORMS[name]
            if not fits(given):
                raise DeviceError(f"{VARIABLE_PREFIX}{name.upper()} is {shown(given)}; it can be {wanted}")


def libraries(folder: str | Path | None = None) -> dict[str, Path]:
    """The libraries that are one version of the runtime each, by version, oldest first.

    Examples
    --------
    >>> "2.3.2" in libraries()
    True
    """
    prefix = "libnpumm_sim_"
    places = Path(native_directory() if folder is None else folder).glob(f"{prefix}*.so")
    found = {place.name[len(prefix) : -len(".so")]: place for place in places}
    return dict(sorted(found.items(), key=lambda item: RuntimeVersion.parse(item[0]) or RuntimeVersion(0, 0, 0)))


class Simulator:
    """The functions that a simulator exports beside the vendor's.

    Parameters
    ----------
    runtime : Runtime
        The loaded library.

    Raises
    ------
    DeviceError
        If the library is not the simulator.

    Examples
    --------
    >>> from npumatmul.rknn import discovery
    >>> Simulator(Runtime(discovery.simulator_path())).read_counters()["contexts_now"] >= 0
    True
    """

    def __init__(self, runtime: Runtime) -> None:
        if runtime.simulated_soc() is None:
            raise DeviceError(f"{runtime.path} is not the simulator: it counts and traces nothing")
        library = runtime.library
        try:
            self._read_counters = library["npumm_sim_read_counters"]
            self._reset_counters = library["npumm_sim_reset_counters"]
            self._counters_json = library["npumm_sim_counters_json"]
            self._configure = library["npumm_sim_configure"]
            self._setting = library["npumm_sim_setting"]
            self._trace_start = library["npumm_sim_trace_start"]
            self._trace_stop = library["npumm_sim_trace_stop"]
            self._run_seconds = library["npumm_sim_run_seconds"]
        except AttributeError as error:
            raise LibraryNotFoundError(f"{runtime.path} is an older simulator: {error}; reinstall npumatmul") from error
        self._read_counters.restype = None
        self._read_counters.argtypes = (C.POINTER(_Counters),)
        self._reset_counters.restype = None
        self._reset_counters.argtypes = ()
        self._counters_json.restype = C.c_size_t
        self._counters_json.argtypes = (C.c_char_p, C.c_size_t)
        self._configure.restype = C.c_int
        self._configure.argtypes = (C.c_char_p, C.c_char_p)
        self._setting.restype = C.c_size_t
        self._setting.argtypes = (C.c_char_p, C.c_char_p, C.c_size_t)
        self._trace_start.restype = C.c_int
        self._trace_start.argtypes = (C.c_char_p,)
        self._trace_stop.restype = None
        self._trace_stop.argtypes = ()
        self._run_seconds.restype = C.c_double
        self._run_seconds.argtypes = (C.c_char_p, *6 * (C.c_int,))

    def read_counters(self) -> dict[str, int]:
        """The counters of `npumm_sim_counters`, by field."""
        counters = _Counters()
        self._read_counters(C.byref(counters))
        return {name: int(getattr(counters, name)) for name in COUNTERS}

    def reset_counters(self) -> None:
        """Set the sums to 0; present values stay."""
        self._reset_counters()

    def counters_json(self) -> str:
        """All counters as JSON text."""
        length = self._counters_json(None, 0)
        while True:
            buffer = C.create_string_buffer(length + 1)
            wanted = self._counters_json(buffer, len(buffer))
            if wanted <= length:
                return buffer.value.decode("ascii")
            length = wanted  # it grew between the calls

    def configure(self, name: str, value: str | None) -> None:
        """Give a setting a value, by its variable's name; None takes the default. It counts for what is created later.

        Raises
        ------
        ValueError
            If there is no such setting, or it has no such value.
        """
        code = self._configure(name.encode(), None if value is None else os.fsencode(value))
        if code != 0:
            raise ValueError(f"npumm_sim_configure({name!r}, {value!r}) returned {code}: see docs/simulator.md")

    def setting(self, name: str) -> str:
        """The value of a setting that is in force, by its variable's name.

        Raises
        ------
        ValueError
            If there is no such setting.
        """
        length = 0
        while True:
            buffer = C.create_string_buffer(length + 1)
            wanted = self._setting(name.encode(), buffer, len(buffer))
            if wanted == C.c_size_t(-1).value:
                raise ValueError(f"the simulator has no setting {name!r}: see docs/simulator.md")
            if wanted <= length:
                return os.fsdecode(buffer.value)
            length = wanted

    def runs(self) -> str:
        """What runs do other than to compute as fast as this CPU can; empty where they do just that."""
        does = []
        if self.setting(f"{VARIABLE_PREFIX}TIMING") == "realtime":
            does.append("take as long as modelled")
        if self.setting(f"{VARIABLE_PREFIX}COMPUTE") == "off":
            does.append("compute nothing")
        return f"runs {' and '.join(does)}" if does else ""

    def run_seconds(self, soc: str, mm_type: int, m: int, k: int, n: int, cores: int, ac_native: bool) -> float:
        """Modelled seconds of a run by the constants in force, -1 for what cannot be.

        `mm_type` is a number of `MatmulTypeCode`, `cores` how many cores are at work.
        """
        return float(self._run_seconds(soc.encode(), mm_type, m, k, n, cores, ac_native))

    def trace_start(self, path: str | Path) -> None:
        """Write all calls from now on to `path`; ends a trace that is going on.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        code = self._trace_start(os.fsencode(path))
        if code != 0:
            raise OSError(f"npumm_sim_trace_start({str(path)!r}) returned {code}: the file cannot be written")

    def trace_stop(self) -> None:
        """End the trace; its file is complete then."""
        self._trace_stop()
