"""Control of the simulator from Python, and programs that run on it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import sim
from npumatmul.chips import CHIPS
from npumatmul.errors import DeviceError
from npumatmul.rknn import discovery
from npumatmul.rknn.simulator import Simulator
from npumatmul.rknn.socs import COMPATIBLE, DEFAULT_SOC, SOCS

INT8 = np.ones((4, 32), np.int8), np.ones((32, 32), np.int8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "sim", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", **environment},
        timeout=100,
    )


# ---- libraries and variables ---------------------------------------------------------------------------------------


def test_every_version_has_a_library_with_its_own_functions() -> None:
    """Facts 1.8: which functions appeared when."""
    assert sim.runtimes() == ("1.5.2", "1.6.0", "2.0.0b0", "2.1.0", "2.3.0", "2.3.2")
    since = {
        "rknn_matmul_create": "1.5.2",
        "rknn_mem_sync": "1.6.0",
        "rknn_matmul_set_quant_params": "2.0.0b0",
        "rknn_matmul_create_dynamic_shape": "2.1.0",
    }
    for runtime in sim.runtimes():
        library = ctypes.CDLL(str(sim.library_path(runtime)))
        for function, first in since.items():
            assert hasattr(library, function) == (runtime >= first), (runtime, function)


def test_the_chips_are_those_of_the_library(fresh_device: npu.Device) -> None:
    """C and Python have a list of their own each, from which everything there derives."""
    assert sorted(sim.counter_details(fresh_device)["chips"]) == sorted(SOCS)
    assert set(SOCS) == set(sim.SOCS) == set(CHIPS) == set(COMPATIBLE.values())
    assert DEFAULT_SOC in SOCS
    listing = ctypes.CDLL(str(discovery.simulator_path())).npumm_sim_select
    assert [listing(soc.encode()) for soc in SOCS] == [0] * len(SOCS)
    listing(None)


def test_chips_are_listed_once() -> None:
    """No other code of the package names several of them: what belongs to a chip is in its row, or constants of it."""
    package = Path(npu.__path__[-1])
    naming = {}
    for file in sorted(package.rglob("*.py")):
        code = re.sub(r'""".*?"""|#[^\n]*', "", file.read_text(), flags=re.S)
        found = {soc for soc in SOCS if soc in code}
        if len(found) > 2:
            naming[file.name] = found
    assert set(naming) == {"socs.py", "rows.py", "constants.py", "cpu.py"}, naming


@pytest.mark.parametrize("name", sorted(sim.SETTINGS))
def test_the_settings_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    """The default, in a process of its own: settings belong to a whole library."""
    example = {"contexts": "5", "domain_bytes": "1000000", "faults": "run:code=-2", "trace": str(tmp_path / "t.json"),
               "timing_constants": "start_seconds=1e-3", "instructions": "scalar"}  # fmt: skip
    values = sim.SETTINGS[name] or (example[name],)
    text = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]);"
        "sys.exit(any(library.npumm_sim_configure(sys.argv[2].encode(), v.encode()) for v in sys.argv[3:]))"
    )
    command = [sys.executable, "-c", text, str(discovery.simulator_path()), f"NPUMATMUL_SIM_{name.upper()}", *values]
    assert subprocess.run(command, timeout=100).returncode == 0


def instruction_sets(device: npu.Device) -> list[str]:
    """Those that this CPU has."""
    found = []
    for name in ("scalar", "avx2", "avx512", "neon", "neon-dotprod"):
        with contextlib.suppress(ValueError), sim.configured(device, instructions=name):
            found.append(name)
    return found


@pytest.mark.parametrize("soc", SOCS)
def test_products_are_the_same_with_every_instruction_set(soc: str) -> None:
    """Integers to the bit; float32 sums of K products to K roundings. Rows for every loop, K for several blocks."""
    rng = np.random.default_rng(0)
    k, n = 1312, 192
    with npu.Device(f"sim:{soc}") as device:
        sets = instruction_sets(device)
    assert "scalar" in sets
    for rows in (1, 5, 9, 70):
        ints = rng.integers(-128, 128, (rows, k), np.int8), rng.integers(-128, 128, (k, n), np.int8)
        halves = rng.standard_normal((rows, k)).astype(np.float16), rng.standard_normal((k, n)).astype(np.float16)
        exact = ints[0].astype(np.int64) @ ints[1].astype(np.int64)
        wide = halves[0].astype(np.float64) @ halves[1].astype(np.float64)
        bound = k * 2.0**-24 * (np.abs(halves[0].astype(np.float64)) @ np.abs(halves[1].astype(np.float64)))
        for instructions in sets:
            with npu.Device(f"sim:{soc}") as device, sim.configured(device, instructions=instructions):
                np.testing.assert_array_equal(npu.matmul(*ints, device=device), exact)
                assert np.all(np.abs(npu.matmul(*halves, device=device) - wide) <= bound), (instructions, rows)


def test_environment(own_cache: Path) -> None:
    variables = sim.environment("rk3576", "2.1.0", inherited={"LD_LIBRARY_PATH": "/a:/b"}, strict=True, contexts=7)
    folder, _, rest = variables["LD_LIBRARY_PATH"].partition(":")
    assert rest == "/a:/b"
    assert os.listdir(folder) == ["librknnrt.so"]
    assert (Path(folder) / "librknnrt.so").resolve() == sim.library_path("2.1.0").resolve()
    assert {name: value for name, value in variables.items() if name.startswith("NPUMATMUL_SIM_")} == {
        "NPUMATMUL_SIM_SOC": "rk3576",
        "NPUMATMUL_SIM_RUNTIME": "2.1.0",
        "NPUMATMUL_SIM_STRICT": "1",
        "NPUMATMUL_SIM_CONTEXTS": "7",
    }
    assert "LD_PRELOAD" not in variables


def test_no_empty_search_path_is_made() -> None:
    """An empty entry of LD_LIBRARY_PATH means the working directory."""
    for inherited in ({}, {"LD_LIBRARY_PATH": ""}):
        assert not sim.environment(inherited=inherited)["LD_LIBRARY_PATH"].endswith(":")


def test_a_link_that_leads_elsewhere_is_put_right(own_cache: Path) -> None:
    link = Path(sim.environment()["NPUMATMUL_LIBRARY"])
    link.unlink()
    link.symlink_to("/nowhere")
    assert Path(sim.environment()["NPUMATMUL_LIBRARY"]).resolve() == sim.library_path().resolve()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"soc": "rk3399"}, DeviceError, r"'rk3399' is not simulated.*rk3588, rk3576, rk3568, rk3566, rk3562"),
        ({"runtime": "9.9"}, DeviceError, r"'9.9' is not simulated.*1.5.2, 1.6.0, 2.0.0b0, 2.1.0, 2.3.0, 2.3.2"),
        ({"speed": "fast"}, ValueError, r"no setting 'speed'; there are: limits"),
        ({"overflow": "explode"}, ValueError, r"'overflow' is saturate or wrap or error, not 'explode'"),
    ],
)
def test_what_is_not_there(arguments: dict[str, str], kind: type[Exception], message: str, own_cache: Path) -> None:
    with pytest.raises(kind, match=message):
        sim.environment(**arguments)  # type: ignore[arg-type]
    assert not own_cache.exists()


# ---- counters and traces -------------------------------------------------------------------------------------------


def test_counters(fresh_device: npu.Device) -> None:
    packed = npu.pack(INT8[1], "int8", device=fresh_device)
    npu.matmul(INT8[0], packed, device=fresh_device)
    sim.reset_counters(fresh_device)
    before = sim.counters(fresh_device)
    assert (before.run_calls, before.set_io_mem_calls, before.mem_sync_calls, before.macs) == (0, 0, 0, 0)
    assert before.contexts_now >= 2  # the device's own and that of the shape
    npu.matmul(INT8[0], packed, device=fresh_device)
    after = sim.counters(fresh_device)
    assert (after.run_calls, after.macs) == (1, 4 * 32 * 32)
    assert after.bytes_now == before.bytes_now
    details = sim.counter_details(fresh_device)
    assert details["calls"]["rknn_matmul_run"] == 1
    assert details["macs"] == 4 * 32 * 32


def test_a_library_that_is_not_the_simulator(fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fresh_device.runtime), "simulated_soc", lambda _: None)
    with pytest.raises(DeviceError, match="is not the simulator"):
        Simulator(fresh_device.runtime)


def test_trace(fresh_device: npu.Device, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with sim.trace(file, fresh_device):
        npu.matmul(*INT8, device=fresh_device)
    npu.matmul(*INT8, device=fresh_device)
    traced = json.loads(file.read_text())
    events = traced["traceEvents"] if isinstance(traced, dict) else traced
    assert sum(event["name"] == "rknn_matmul_run" for event in events) == 1
    with pytest.raises(OSError, match="cannot be written"), sim.trace(tmp_path / "no" / "such", fresh_device):
        pass


#: In a process of its own, since other libraries of a test's may not end in a child: they wait for threads it has not.
FORKED = """
import ctypes, os, sys
import numpy as np
import npumatmul as npu
from npumatmul import sim

with npu.Device("sim:rk3588") as device, sim.trace(sys.argv[1], device):
    operands = np.ones((4, 32), np.int8), np.ones((32, 32), np.int8)
    npu.matmul(*operands, device=device)
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).exit(0)  # as a program ends, with what the library does then
    assert os.waitpid(child, 0)[1] == 0
    npu.matmul(*operands, device=device)
"""


def test_a_forked_child_leaves_the_trace_alone(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    subprocess.run([sys.executable, "-c", FORKED, str(file)], check=True, timeout=120)
    names = [event["name"] for event in json.loads(file.read_text())]
    assert names.count("process_name") == 1
    assert names.count("rknn_matmul_run") == 2


def test_runs_can_be_told_to_compute_nothing(own_cache: Path) -> None:
    """Everything else happens as ever: what is left is the host's own work."""
    with sim.configured(compute="off"), npu.Device("sim:rk3588") as device:
        result = npu.matmul(*INT8, device=device)
        assert not result.any(), "memory for C was new"
        assert device.stats().run_calls == 1
    with npu.Device("sim:rk3588") as device:
        assert (npu.matmul(*INT8, device=device) == INT8[0].astype(np.int32) @ INT8[1].astype(np.int32)).all()


def test_settings_become_what_they_were_before(fresh_device: npu.Device, tmp_path: Path) -> None:
    simulator = Simulator(fresh_device.runtime)

    def now() -> tuple[str, ...]:
        return tuple(simulator.setting(f"NPUMATMUL_SIM_{name}") for name in ("STRICT", "CONTEXTS", "FAULTS"))

    before = now()
    assert before[1:] == ("none", "")
    with sim.configured(fresh_device, strict=True, contexts=50):
        with sim.configured(fresh_device, strict=False, faults="query:code=-1"):
            assert now() == ("0", "50", "query:code=-1")
            with sim.configured(fresh_device, faults="query:code=-2"):
                assert now() == ("0", "50", "query:code=-2")
            assert now() == ("0", "50", "query:code=-1")
        assert now() == ("1", "50", "")
        with (
            pytest.raises(ValueError, match="npumm_sim_configure"),
            sim.configured(fresh_device, strict=False, contexts=0),
        ):
            pass
        assert now() == ("1", "50", ""), "what was set before the mistake is put back"
        outer, inner = tmp_path / "outer.json", tmp_path / "inner.json"
        with sim.configured(fresh_device, trace=str(outer)):
            npu.matmul(*INT8, device=fresh_device)
            with sim.configured(fresh_device, trace=str(inner)):
                pass
        assert "rknn_matmul_run" in outer.read_text(), "it was not begun once more"
        json.loads(outer.read_text()), json.loads(inner.read_text())
    assert now() == before
    with pytest.raises(ValueError, match="no setting 'NPUMATMUL_SIM_COLOUR'"):
        simulator.setting("NPUMATMUL_SIM_COLOUR")


@pytest.mark.parametrize("value", ["1", ""])
def test_the_environment_counts_again_after_a_block(value: str) -> None:
    """Not the library's default."""
    text = (
        "import sys, npumatmul as npu; from npumatmul import sim; from npumatmul.rknn.simulator import Simulator\n"
        "with npu.Device('sim:rk3588') as device:\n"
        "    with sim.configured(device, strict=True): pass\n"
        "    print(Simulator(device.runtime).setting('NPUMATMUL_SIM_STRICT'))\n"
    )
    environment = {**os.environ, "NPUMATMUL_SIM_STRICT": value}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=100)
    assert (done.stdout, done.stderr) == (f"{value or 0}\n", "")


# ---- the command line ----------------------------------------------------------------------------------------------


def test_path() -> None:
    assert command_line("path").stdout == f"{sim.library_path('2.3.2')}\n"
    assert command_line("path", "--runtime", "1.6.0").stdout == f"{sim.library_path('1.6.0')}\n"
    done = command_line("path", "--runtime", "3")
    assert done.returncode == 1
    assert done.stderr.startswith("npumatmul: runtime '3' is not simulated; these are: 1.5.2")


def test_env_runs_a_program_with_its_own_options_and_exit_code() -> None:
    text = "import os, sys; print(os.environ['NPUMATMUL_SIM_SOC'], sys.argv[1:]); sys.exit(7)"
    done = command_line("env", "--soc", "rk3562", "--", sys.executable, "-c", text, "--soc", "--strict")
    assert (done.returncode, done.stdout, done.stderr) == (7, "rk3562 ['--soc', '--strict']\n", "")


def test_env_leaves_signals_to_the_program() -> None:
    """It becomes the program: the caller sees how that one ended, and a closed pipe kills it as it should."""
    done = command_line("env", "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == -signal.SIGTERM
    done = command_line("env", "--", "sh", "-c", "yes | head -n 1; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "y\n", "")
    ignored = [
        line for line in command_line("env", "--", "cat", "/proc/self/status").stdout.splitlines() if "SigIgn" in line
    ]
    own = [line for line in Path("/proc/self/status").read_text().splitlines() if "SigIgn" in line]
    pipe = 1 << (signal.SIGPIPE - 1)
    assert int(ignored[0].split()[1], 16) & pipe == 0
    assert int(own[0].split()[1], 16) & pipe == pipe


def test_env_without_a_program_prints_what_a_shell_can_read() -> None:
    exports = command_line("env", "--runtime", "2.1.0", "--set", "faults=run:after=1:code=-2;query:code=-1").stdout
    done = subprocess.run(
        ["sh", "-c", f"{exports}\necho $NPUMATMUL_SIM_RUNTIME; echo $NPUMATMUL_SIM_FAULTS"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2.1.0\nrun:after=1:code=-2;query:code=-1\n"


def test_env_serves_npumatmul_itself() -> None:
    done = command_line("env", "--soc", "rk3588", "--", sys.executable, "-m", "npumatmul.cli", "info", "--json")
    facts = json.loads(done.stdout)
    assert facts["simulated"] is True
    assert facts["chip"] == "rk3588"
    assert facts["library"].endswith("/librknnrt.so")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--soc", "rk3399", "--", "true"], 1, "npumatmul: chip 'rk3399' is not simulated; these are: rk3588"),
        (["--runtime", "0", "--", "true"], 1, "npumatmul: runtime '0' is not simulated"),
        (["--set", "strict", "--", "true"], 1, "npumatmul: --set takes NAME=VALUE, not 'strict'"),
        (["--set", "limits=none", "--", "true"], 1, "npumatmul: the simulator's setting 'limits'"),
        (["--", "/nowhere/program"], 127, "npumatmul: /nowhere/program: No such file or directory"),
        (["--", "/"], 126, "npumatmul: /: Permission denied"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, message: str) -> None:
    done = command_line("env", *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
