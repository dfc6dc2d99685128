"""C programs with the simulator as their librknnrt.so: compiled, linked and loaded in every way that there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiling import compiler

from npumatmul import sim

TELLS = """
#include <stdio.h>
#include "rknn_matmul_api.h"
int main(void) {
  rknn_matmul_info info = {.M = 4, .K = 64, .N = 64, .type = RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, .B_layout = 1};
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx = 0;
  rknn_sdk_version version;
  int code = rknn_matmul_create(&ctx, &info, &io);
  if (code == 0) code = rknn_query(ctx, RKNN_QUERY_SDK_VERSION, &version, sizeof version);
  if (code == 0) printf("%.5s with tiles of %u columns\\n", version.api_version, io.B.dims[2]);
  return code != 0 || rknn_matmul_destroy(ctx) != 0;
}
"""

LOADS = """
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "rknn_matmul_api.h"
int main(int count, char **names) {
  void *library = count == 2 ? dlopen(names[1], RTLD_NOW) : NULL;
  if (!library) return fprintf(stderr, "%s\\n", dlerror()), 1;
  int (*create)(rknn_matmul_ctx *, rknn_matmul_info *, rknn_matmul_io_attr *);
  int (*query)(rknn_context, rknn_query_cmd, void *, uint32_t);
  void *found = dlsym(library, "rknn_matmul_create");
  memcpy(&create, &found, sizeof found);
  found = dlsym(library, "rknn_query");
  memcpy(&query, &found, sizeof found);
  rknn_matmul_info info = {.M = 4, .K = 64, .N = 64, .type = RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, .B_layout = 1};
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  rknn_sdk_version version;
  if (create(&ctx, &info, &io) || query(ctx, RKNN_QUERY_SDK_VERSION, &version, sizeof version)) return 1;
  return printf("%.5s with tiles of %u columns\\n", version.api_version, io.B.dims[2]) < 0;
}
"""

CTYPES = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
info, io = (ctypes.c_int32 * 16)(4, 64, 64, 1, 1), (ctypes.c_uint32 * 249)()
ctx, version = ctypes.c_uint64(), bytes(512)
assert library.rknn_matmul_create(ctypes.byref(ctx), info, io) == 0
assert library.rknn_query(ctx, 5, version, 512) == 0
print(version[:5].decode(), "with tiles of", io[83 + 64 + 3], "columns")  # B.dims[2]
"""

#: Columns of a tile of halves (facts 4.2): they tell the chips apart.
TILES = {"rk3588": 16, "rk3562": 8}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def build(program: Path, text: str, *flags: str) -> Path:
    source = program.with_suffix(".c")
    source.write_text(text)
    warnings = ("-std=c17", "-Wall", "-Wextra", "-Werror")
    command = [compiler(), *warnings, *sim.compile_flags(), "-o", str(program), str(source), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def told(command: list[str | Path], **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NPUMATMUL_", "LD_"))}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**clean, **environment}, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One program by how it was linked, all with 2.3.2."""
    folder = tmp_path_factory.mktemp("linked")
    linked = Path(sim.environment()["NPUMATMUL_LIBRARY"]).parent
    return {
        "by path": build(folder / "by_path", TELLS, str(sim.library_path())),
        "by name": build(folder / "by_name", TELLS, f"-L{linked}", "-lrknnrt"),
        "by flags": build(folder / "by_flags", TELLS, *sim.link_flags()),
        "loading": build(folder / "loading", LOADS, "-ldl"),
    }


@pytest.mark.parametrize(("soc", "runtime"), [("rk3562", "1.6.0"), ("rk3588", "2.1.0"), ("rk3588", "2.3.2")])
@pytest.mark.parametrize("way", ["by path", "by name", "by flags", "dlopen name", "dlopen path", "ctypes", "preloaded"])
def test_a_program_follows_the_environment(way: str, soc: str, runtime: str, programs: dict[str, Path]) -> None:
    """However it was linked with 2.3.2, it runs on the version and the chip that `sim env` names."""
    variables = sim.environment(soc, runtime, inherited={})
    commands: dict[str, list[str | Path]] = {
        "dlopen name": [programs["loading"], "librknnrt.so"],
        "dlopen path": [programs["loading"], variables["NPUMATMUL_LIBRARY"]],
        "ctypes": [sys.executable, "-c", CTYPES, "librknnrt.so"],
        "preloaded": [programs["by path"]],
    }
    if way == "preloaded":  # and nothing else: the loader finds librknnrt.so nowhere
        del variables["LD_LIBRARY_PATH"]
        variables["LD_PRELOAD"] = str(sim.library_path(runtime))
    command = commands.get(way) or [programs[way]]
    assert told(command, **variables) == f"{runtime} with tiles of {TILES[soc]} columns"


def test_a_program_linked_by_flags_runs_by_itself(programs: dict[str, Path], tmp_path: Path) -> None:
    assert told([programs["by flags"]]) == "2.3.2 with tiles of 16 columns"
    assert told([build(tmp_path / "older", TELLS, *sim.link_flags("2.0.0b0"))]).startswith("2.0.0")


def test_loading_by_path_gets_that_file(programs: dict[str, Path]) -> None:
    """Whatever is loaded already under the name librknnrt.so."""
    variables = sim.environment("rk3588", "2.3.2", inherited={})
    command = [sys.executable, "-c", f"import ctypes\nctypes.CDLL('librknnrt.so')\n{CTYPES}"]
    assert told([*command, sim.library_path("1.6.0")], **variables).startswith("1.6.0")
    assert told([*command, "librknnrt.so"], **variables).startswith("2.3.2")


def test_the_simulator_of_npumatmul_is_not_taken_for_librknnrt() -> None:
    """A library that needs librknnrt.so must not get the one that simulated devices are on."""
    text = (
        "import ctypes, npumatmul as npu\n"
        "with npu.Device('sim:rk3588'):\n"
        "    try: ctypes.CDLL('librknnrt.so')\n"
        "    except OSError as error: print(error)\n"
    )
    assert "librknnrt.so: cannot open shared object file" in told([sys.executable, "-c", text])


def test_a_program_that_uses_models_too(tmp_path: Path) -> None:
    """It compiles, links, runs, multiplies, and is told why there is no model."""
    text = """
#include <stdio.h>
#include <string.h>
#include "rknn_api.h"
#include "rknn_matmul_api.h"
#include "npumatmul_sim.h"
int main(void) {
  rknn_matmul_info info = {.M = 4, .K = 64, .N = 64, .type = RKNN_INT8_MM_INT8_TO_INT32};
  rknn_matmul_io_attr io;
  rknn_matmul_ctx ctx;
  printf("%s %d", get_matmul_type_string(info.type), rknn_matmul_create(&ctx, &info, &io));
  rknn_context model = 0;
  char name[] = "yolov8.rknn";
  rknn_input input = {.index = 0, .type = RKNN_TENSOR_UINT8, .fmt = RKNN_TENSOR_NHWC};
  rknn_output output = {.want_float = 1};
  printf(" %d", rknn_init(&model, name, 0, RKNN_FLAG_PRIOR_HIGH, NULL));
  printf(" %d", rknn_inputs_set(model, 1, &input));
  printf(" %d", rknn_run(model, NULL));
  printf(" %d", rknn_outputs_get(model, 1, &output, NULL));
  printf(" %d %s\\n", rknn_destroy(model), npumm_sim_describe(NULL));
  return rknn_matmul_destroy(ctx);
}
"""
    program = build(tmp_path / "both", text, *sim.link_flags("1.5.2"))
    done = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "RKNN_INT8_MM_INT8_TO_INT32 0 -1 -1 -1 -1 -1 rk3588\n"
    assert "rknn_init, simulator: only the matmul API is simulated, models need a board" in done.stderr


@pytest.mark.parametrize("arguments", [["include"], ["cflags"], ["libs"], ["libs", "--runtime", "1.6.0"]])
def test_the_command_prints_what_the_functions_return(arguments: list[str]) -> None:
    printed = told([sys.executable, "-m", "npumatmul.cli", "sim", *arguments], **dict(os.environ))
    expected = {
        "include": [str(sim.include_path())],
        "cflags": sim.compile_flags(),
        "libs": sim.link_flags(arguments[-1] if len(arguments) > 1 else sim.NEWEST_RUNTIME),
    }
    assert printed == " ".join(expected[arguments[0]])


def test_blanks_are_escaped_for_the_shell(tmp_path: Path) -> None:
    cache = tmp_path / "my cache"
    printed = told(
        [sys.executable, "-m", "npumatmul.cli", "sim", "libs"], **{**os.environ, "XDG_CACHE_HOME": str(cache)}
    )
    words = told(["sh", "-c", f"printf '%s\\n' {printed}"]).splitlines()
    assert len(words) == 3
    assert words[0].startswith(f"-L{cache}/npumatmul/sim/")


def test_a_cache_that_cannot_be_written_is_said_so() -> None:
    """A file stands where the folder should be."""
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "sim", "libs"],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": "/dev/null"},
        timeout=100,
    )
    assert done.returncode == 1
    assert "librknnrt.so cannot be put into /dev/null/npumatmul/sim/" in done.stderr
    assert "set XDG_CACHE_HOME to a folder that can be written" in done.stderr


def test_a_cache_that_no_search_path_can_name(tmp_path: Path) -> None:
    """A colon in it would end the folder's name, and the program would find no library, or another one."""
    cache = tmp_path / "a:b"
    with pytest.raises(OSError, match="set XDG_CACHE_HOME to a folder without them"):
        sim.environment(inherited={"XDG_CACHE_HOME": str(cache)})
    assert not cache.exists()
