"""Fuzz the simulator's C API with libFuzzer, starting from the kept corpus.

python3 tools/fuzz.py --seconds 60            look for crashes; findings go to build/fuzz
python3 tools/fuzz.py --seconds 600 --keep    and replace the corpus by a minimal one with what was found on the way
python3 tools/fuzz.py --replay FILE...        run inputs, with a C compiler of any kind
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import c_tests
import packages

FUZZ = c_tests.NATIVE / "fuzz"
CORPUS = FUZZ / "corpus"
CORPUS_BYTES_MOST = 150_000
FINDINGS = c_tests.ROOT / "build" / "fuzz"
SANITIZERS = "address,undefined"
#: The longest input, in bytes: some dozens of calls.
LONGEST = 500


def sources() -> list[Path]:
    """The fuzz target and what it fuzzes."""
    return [FUZZ / "fuzz_api.c", *sorted((c_tests.NATIVE / "simulator").glob("*.c"))]


def clang() -> str:
    """A clang that has libFuzzer; installed where it is missing."""
    for version in ("", *(f"-{number}" for number in range(21, 12, -1))):
        found = shutil.which(f"clang{version}")
        if found and _has_libfuzzer(found):
            return found
    packages.ensure(
        "fuzzing",
        {"clang-14": "clang-14", "/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*": "libclang-rt-14-dev"},
    )
    return "clang-14"


def _has_libfuzzer(compiler: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text(
            "#include <stddef.h>\nint LLVMFuzzerTestOneInput(const char *d, size_t n) { return d && n > 9; }\n"
        )
        command = [compiler, f"-fsanitize=fuzzer,{SANITIZERS}", str(source), "-o", str(source.with_suffix(""))]
        return subprocess.run(command, capture_output=True).returncode == 0


def build(folder: Path) -> Path:
    """Compile the fuzz target with libFuzzer."""
    program = folder / "fuzz_api"
    # The scalar products serve: they read what the others read, and clang before 19 cannot ask for f16c.
    flags = ("-g", "-O1", "-fno-sanitize-recover=all", "-D__builtin_cpu_supports(feature)=0")
    c_tests.compile_program(program, sources(), *flags, f"-fsanitize=fuzzer,{SANITIZERS}", compiler=clang())
    return program


def fuzz(seconds: int, keep: bool) -> None:
    """Look for crashes; end with a message where there is one."""
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        program, found = build(Path(name)), Path(name) / "found"
        found.mkdir()
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            "-timeout=30",
            "-close_fd_mask=2",  # the library's log lines; reports of sanitizers are printed all the same
            f"-artifact_prefix={FINDINGS}/",
            "-print_final_stats=1",
        ]
        log = Path(name) / "log"
        with log.open("wb") as output:
            done = subprocess.run([str(program), *options, str(found), str(CORPUS)], stdout=output, stderr=output)
        text = log.read_text(errors="replace")
        if done.returncode != 0:
            tail = text[text.find("ERROR:") if "ERROR:" in text else -4000 :]
            sys.exit(f"{tail}\nfuzzing found something: replay it with python3 tools/fuzz.py --replay FILE")
        runs = [line.split()[-1] for line in text.splitlines() if line.startswith("stat::number_of_executed_units")]
        coverage = [word for line in text.splitlines() if " cov: " in line for word in line.split(" cov: ")[1:]]
        print(f"fuzz: {runs[0] if runs else '?'} inputs in {seconds} s, {coverage[-1].split()[0]} edges, no finding")
        if keep:
            merge(program, [found, CORPUS], Path(name))


def merge(program: Path, inputs: list[Path], folder: Path) -> None:
    """Replace the corpus by the smallest inputs that reach all that `inputs` reach, within the size that is kept."""
    merged = folder / "merged"
    merged.mkdir()
    # Edges alone, not how often each was taken: that makes for a tenth of the inputs.
    options = ("-merge=1", "-use_counters=0", "-close_fd_mask=2", f"-max_len={LONGEST}")
    subprocess.run(
        [str(program), *options, str(merged), *map(str, inputs)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    total = 0
    for old in CORPUS.glob("*"):
        old.unlink()
    for file in sorted(merged.iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        total += file.stat().st_size
        if total > CORPUS_BYTES_MOST:
            break
        shutil.copy(file, CORPUS / file.name)
    print(f"the corpus has {len(list(CORPUS.glob('*')))} inputs")


def replay(files: list[Path], folder: Path, workshop: c_tests.Workshop | None = None) -> str:
    """Run inputs under the sanitizers of whatever compiler there is; what was printed. Raises on a finding."""
    workshop = workshop or c_tests.Workshop(folder / "replay", c_tests.WAYS["address"][0])
    target, *fuzzed = sources()
    program = workshop.build(c_tests.Program(target, tuple(fuzzed), False), "-DREPLAY")
    report = folder / "report"
    environment = {**os.environ, "ASAN_OPTIONS": f"log_path={report}", "UBSAN_OPTIONS": f"log_path={report}"}
    done = subprocess.run([str(program), *map(str, files)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        reports = "".join(file.read_text() for file in folder.glob("report.*"))
        raise RuntimeError(f"the last of these ended with {done.returncode}:\n{done.stdout[-300:]}\n{reports}")
    return done.stdout


def main() -> None:
    """Fuzz or replay."""
    parser = argparse.ArgumentParser(description="Fuzz the simulator's C API.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="replace the corpus by a minimal one")
    parser.add_argument("--replay", type=Path, nargs="+", help="inputs to run instead")
    options = parser.parse_args()
    if options.replay:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(replay(options.replay, Path(folder)), end="")
            except RuntimeError as error:
                sys.exit(str(error))
    else:
        fuzz(options.seconds, options.keep)


if __name__ == "__main__":
    main()
