"""Try npumatmul on the system of a board: Debian 12 for 64-bit ARM in a folder, its programs run by qemu.

    python tools/board_image.py             with the interpreter of the project's environment (make check-board-image)
    python tools/board_image.py --fresh     make the system anew, even if one is kept from before

The wheel for 64-bit ARM is built here; it and all that it depends on are installed there by pip without a network, by a
user without privileges. Then that user does what somebody does on the first day with a board. The system is made by
debootstrap from the mirror that apt uses here (about five minutes), kept below ``$XDG_CACHE_HOME/npumatmul`` and copied
for each run. It needs root, or sudo.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_tests
import packages
import wheel_aarch64

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "gcc", "libc6-dev", "make")
#: What reads programs for 64-bit ARM: linked statically, since a program in the folder sees no library of this machine.
EMULATOR = "/usr/libexec/qemu-binfmt/aarch64-binfmt-P"
NEEDED = {
    "/usr/sbin/debootstrap": "debootstrap",
    "/usr/sbin/update-binfmts": "binfmt-support",
    EMULATOR: "qemu-user-static",
}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
#: Tags of wheels that Debian 12's pip takes.
PLATFORMS = ("linux_aarch64", "manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
PYTHON = "311"
USER = 1000
HOME = "/home/user"
ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
SOC = "rk3588"


def call(*command: object, timeout: float = 1800) -> str:
    """Run a command of this machine; `SystemExit` with what it printed where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}\n{done.stdout}")
    return done.stdout


class Timed:
    """Says in the end what was done, how long it took, and what `said` is then."""

    def __init__(self, what: str) -> None:
        self.what, self.said = what, ""

    def __enter__(self) -> Timed:
        self.started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            said = [f"          {line}" for line in self.said.splitlines()]
            print("\n".join([f"{time.monotonic() - self.started:6.1f} s  {self.what}", *said]), flush=True)


def enable_emulation() -> None:
    """Have the kernel start programs for 64-bit ARM with the emulator."""
    if (BINFMT / "qemu-aarch64").exists():
        return
    if not (BINFMT / "register").exists():
        call(*ROOT, "mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    call(*ROOT, "update-binfmts", "--import", "qemu-aarch64")
    if not (BINFMT / "qemu-aarch64").exists():
        call(*ROOT, "update-binfmts", "--enable", "qemu-aarch64")


def mirror(apt: Path = Path("/etc/apt")) -> str:
    """The mirror of Debian that apt uses here."""
    files = [
        *apt.glob("sources.list"),
        *(file for kind in ("list", "sources") for file in apt.glob(f"sources.list.d/*.{kind}")),
    ]
    text = "\n".join(file.read_text() for file in sorted(files))
    found = re.findall(r"^(?:URIs:|deb\s+(?:\[[^]]*\])?)\s*(\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    if not found:
        sys.exit("apt's sources name no mirror of Debian here; give one with --mirror")
    return str(found[0])


def debian(cache: Path, source: str, fresh: bool) -> Path:
    """A folder with an installed Debian, made now or kept from before."""
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    kept, new = cache / key, cache / f"{key}.new"
    if fresh and kept.exists():
        remove(kept)
    if kept.exists():
        print(f"          the system in {kept} is used again")
        return kept
    if new.exists():
        remove(new)
    new.mkdir(parents=True)
    with Timed("debootstrap: packages of the system fetched and unpacked"):
        options = ("--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}")
        call(*ROOT, "/usr/sbin/debootstrap", *options, SUITE, new, source)
        # nothing here has to outlive a power cut
        unsafe = new / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io"
        call(*ROOT, "sh", "-c", f"mkdir -p {unsafe.parent} && echo force-unsafe-io > {unsafe}")
    with Timed("debootstrap: the system installed, emulated"):
        call(*ROOT, "chroot", new, "/debootstrap/debootstrap", "--second-stage")
    call(*ROOT, "sh", "-c", f"rm -rf {new}/var/cache/apt/archives/*.deb && mkdir -p {new}{HOME} && "
                            f"chown {USER}:{USER} {new}{HOME}")  # fmt: skip
    call(*ROOT, "mv", new, kept)
    return kept


def remove(folder: Path) -> None:
    """Delete a system; never across a mount."""
    call(*ROOT, "rm", "-rf", "--one-file-system", folder)


class Board:
    """A copy of the system, in which a user types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Path(f"{folder}{HOME}")

    def put(self, source: Path, name: str) -> None:
        """Copy a file or folder of this machine into the user's home."""
        call(*ROOT, "cp", "-r", source, self.home / name)
        call(*ROOT, "chown", "-R", f"{USER}:{USER}", self.home / name)

    def write(self, name: str, text: str) -> None:
        """Write a file in the user's home."""
        with tempfile.NamedTemporaryFile("w", suffix=name) as file:
            file.write(text)
            file.flush()
            os.chmod(file.name, 0o644)
            self.put(Path(file.name), name)

    def type(self, command: str, timeout: float = 1800) -> str:
        """Run a line of the user's shell; what it prints."""
        # A namespace of its own: what is mounted there is gone when it ends, whatever happens.
        inside = ("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.folder}/proc")
        user = ("chroot", f"--userspec={USER}:{USER}", self.folder)
        variables = (f"HOME={HOME}", f"PATH={HOME}/npu/bin:/usr/bin:/bin", "LANG=C.UTF-8", "COLUMNS=110", "USER=user")
        line = f"set -e; cd {HOME}; {command}"
        return call(*ROOT, *inside, *user, "/usr/bin/env", "-i", *variables, "/bin/sh", "-c", line, timeout=timeout)


def wheels(folder: Path) -> None:
    """Put the project's wheel for 64-bit ARM and all that its extra ``llm`` needs into a folder."""
    with Timed("the wheel cross-built, its dependencies' wheels fetched"):
        _fetch(wheel_aarch64.build(), folder)


def _fetch(wheel: Path, folder: Path) -> None:
    options = ("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", f"--dest={folder}")
    tags = (*(f"--abi={abi}" for abi in (f"cp{PYTHON}", "abi3", "none")), *(f"--platform={tag}" for tag in PLATFORMS))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    call(*pip, "download", *options, *tags, f"{wheel}[llm]")


def tiny_model(folder: Path) -> Path:
    """A small random model, made as the tests make it."""
    path = folder / "tiny.gguf"
    program = "import sys, pathlib, llm_models; llm_models.write_tiny_model(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(c_tests.ROOT / "tests" / "llm")}
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
    return path


def last(text: str, lines: int = 1) -> str:
    """The last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


# ---- what somebody does on the first day: each does it, and says what came of it -------------------------------------


def look(board: Board) -> str:
    """Look at the device."""
    said = board.type("npumatmul info")
    if "aarch64" not in board.type("uname -m") or not re.search(r"^simulated +yes$", said, re.MULTILINE):
        sys.exit(f"npumatmul info was to tell of a simulated device:\n{said}")
    return said


def multiply(board: Board) -> str:
    """Multiply in every type and by every scheme, and compare with numpy."""
    board.put(c_tests.ROOT / "tools" / "check_installed.py", "check_installed.py")
    return board.type("python check_installed.py")


def follow_readme(board: Board, model: Path) -> str:
    """Run README's Python, with a tiny model: there is no network from which to fetch its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (c_tests.ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    program = "\n".join(blocks).replace("npumatmul.llm.fetch_demo_model()", repr(model.name))
    board.write("readme.py", program)
    return board.type("python readme.py")


def generate(board: Board, model: Path, scheme: str) -> str:
    """Have a tiny model continue a text, there and here."""
    prompt = ("-p", "the lighthouse", "-n", "12", "--raw", "--scheme", scheme)
    there = board.type(f"npumatmul generate -m {model.name} {shlex.join(prompt)}")
    here = call(Path(sys.executable).with_name("npumatmul"), "generate", "-m", model, *prompt)
    if there.splitlines()[0] != here.splitlines()[0]:
        sys.exit(f"generate by {scheme}: {there!r} there, {here!r} here")
    return f"{scheme}: the same text as on this machine"


def compile_examples(board: Board) -> str:
    """Compile the C examples with that system's compiler and the headers that are installed there, and run them."""
    board.put(c_tests.ROOT / "examples" / "c", "c")
    board.type("make -s -C c clean; npumatmul sim env -- make -s -C c")
    runs = (("matmul_static", "4,64,32"), ("matmul_dynamic", "'4,64,32#8,64,32'"))
    said = "\n".join(
        last(board.type(f"cd c; npumatmul sim env --soc {SOC} -- ./{program} 2 {shape} 1 1 1 1 0"))
        for program, shape in runs
    )
    if said.count("matmul result is correct") != len(runs):
        sys.exit(f"the examples were to find their results correct:\n{said}")
    return said


def probe(board: Board) -> str:
    """Ask the simulator the open questions."""
    said = board.type(f"npumatmul probe --quick --device sim:{SOC} -o probe.json")
    if not re.search(r"cells of the capability table are settled", said):
        sys.exit(f"the probe was to settle cells of the table:\n{said}")
    return last(said, 2)


def first_day(board: Board, model: Path) -> None:
    """Install, then everything else, as much at once as there are processors."""
    install = "npu/bin/pip install -q --no-index --find-links wheels --no-compile 'npumatmul[llm]'"
    with Timed("python3 -m venv npu; pip install 'npumatmul[llm]', without a network"):
        board.type(f"python3 -m venv npu; {install}")
    board.put(model, model.name)
    steps: dict[str, Callable[[], str]] = {
        "npumatmul probe --quick": lambda: probe(board),
        "examples/c, compiled by the system's gcc with the installed headers, and run": lambda: compile_examples(board),
        "npumatmul info": lambda: look(board),
        "products of every type and scheme, compared with numpy": lambda: multiply(board),
        "README's Python": lambda: follow_readme(board, model),
        "npumatmul generate, float16": lambda: generate(board, model, "w16a16"),
        "npumatmul generate, int8": lambda: generate(board, model, "w8a8"),
    }

    def timed(what: str) -> None:
        with Timed(what) as step:
            step.said = steps[what]()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in [pool.submit(timed, what) for what in steps]:
            done.result()


def main() -> None:
    """Make the system and try everything in it."""
    parser = argparse.ArgumentParser(description="Try npumatmul on the system of a board, emulated.")
    parser.add_argument("--fresh", action="store_true", help="make the system anew")
    parser.add_argument("--mirror", help="of Debian; by default the one that apt uses here")
    options = parser.parse_args()
    packages.ensure("trying a board's system", NEEDED)
    enable_emulation()
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "npumatmul" / "board-image"
    started = time.monotonic()
    for old in cache.glob("run-*"):  # of runs that were killed
        if not Path("/proc", old.name.partition("-")[2]).exists():
            remove(old)
    board = Board(cache / f"run-{os.getpid()}")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as pool:
        folder = Path(name)
        folder.chmod(0o755)
        fetched = pool.submit(wheels, folder / "wheels")
        try:
            system = debian(cache, options.mirror or mirror(), options.fresh)
            with Timed("the system copied"):
                call(*ROOT, "cp", "-a", "--reflink=auto", system, board.folder)
            fetched.result()
            board.put(folder / "wheels", "wheels")
            first_day(board, tiny_model(folder))
        finally:
            if board.folder.exists():
                remove(board.folder)
    print(f"{time.monotonic() - started:6.1f} s  in all: the first day on a board went well")


if __name__ == "__main__":
    main()
