"""`Machine`: what is known of a machine from its files, below any root."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from npumatmul.board.readings import first_line, opened
from npumatmul.rknn.discovery import LIBRARY_PLACES
from npumatmul.rknn.socs import COMPATIBLE
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["Library", "Machine", "Node"]

#: Where the vendor's driver says its version; debugfs is root's (facts 11.1).
_DRIVER_VERSIONS = (
    "sys/module/rknpu/version",
    "proc/debug/rknpu/driver_version",
    "proc/rknpu/version",
    "sys/kernel/debug/rknpu/driver_version",
    "sys/kernel/debug/rknpu/version",
)
_LIBRARY_NAME = "librknnrt.so"
#: As the runtime's file has it (facts 11.1).
_VERSION_TEXT = re.compile(rb"librknnrt version: ?(\d[^\s\0]{0,40}(?: \([^)\0]{1,80}\))?)")
_PIECE = 1 << 20
#: So much of a library is searched for its version: ten times what the vendor's has.
_LIBRARY_BYTES = 1 << 26
_MACHINES = {40: "32-bit ARM", 183: "64-bit ARM", 62: "x86-64", 3: "x86"}


@dataclass(frozen=True)
class Library:
    """A file of the vendor's runtime.

    Attributes
    ----------
    path : str
        As programs of that machine see it.
    version : str or None
        What its text says.
    machine : str
        What it was compiled for.
    """

    path: str
    version: str | None
    machine: str

    @property
    def number(self) -> RuntimeVersion | None:
        """Its version as a number."""
        return None if self.version is None else RuntimeVersion.parse(self.version)


@dataclass(frozen=True)
class Node:
    """A device node.

    Attributes
    ----------
    path : str
    driver : str or None
        What serves it, as far as it can be told.
    usable : bool
        Whether this user may read and write it.
    group : int
        Whose it is.
    """

    path: str
    driver: str | None
    usable: bool
    group: int


@dataclass
class Machine:
    """A machine, or a copy of its files.

    Parameters
    ----------
    root : Path
        Where its files are.
    environment : mapping
        Variables of whoever runs programs there.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def at(self, place: str) -> Path:
        """A path of that machine."""
        return self.root / place.lstrip("/")

    def text(self, place: str, most: int = 1 << 16) -> str | None:
        """What a file holds, or None."""
        try:
            with opened(self.at(place)) as file:
                return file.read(most).decode("utf-8", "replace").rstrip("\0\n")
        except OSError:
            return None

    @property
    def is_here(self) -> bool:
        """Whether it is the machine that this runs on."""
        return self.root.resolve() == Path("/")

    # ---- chip and kernel ---------------------------------------------------------------------------------------------

    @cached_property
    def compatible(self) -> list[str]:
        """What the device tree calls the machine."""
        return [each for each in (self.text("proc/device-tree/compatible") or "").split("\0") if each]

    @cached_property
    def soc(self) -> str | None:
        """Its chip, if that has the matmul API."""
        return next((COMPATIBLE[name] for name in self.compatible if name in COMPATIBLE), None)

    @property
    def model(self) -> str | None:
        """What the board is called."""
        return self.text("proc/device-tree/model")

    @property
    def kernel(self) -> str:
        """The kernel's release."""
        return first_line(self.at("proc/sys/kernel/osrelease")) or "unknown"

    @property
    def is_android(self) -> bool:
        """Whether its system is Android."""
        return "android" in self.kernel or self.at("system/build.prop").exists()

    @property
    def container(self) -> str | None:
        """What kind of container this is, if it is one."""
        for place, kind in ((".dockerenv", "Docker"), ("run/.containerenv", "Podman")):
            if self.at(place).exists():
                return kind
        return None

    # ---- drivers -----------------------------------------------------------------------------------------------------

    @cached_property
    def driver_version(self) -> str | None:
        """The version of the vendor's driver, as it says it."""
        for place in _DRIVER_VERSIONS:
            line = first_line(self.at(place))
            found = re.search(r"\d+\.\d+\.\d+", line or "")
            if found:
                return found[0]
        return None

    @cached_property
    def has_driver(self) -> bool:
        """Whether the vendor's driver is in the kernel."""
        places = ("sys/module/rknpu", "sys/bus/platform/drivers/RKNPU", "sys/bus/platform/drivers/rknpu")
        npu = any(self.at("sys/class/devfreq").glob("*.npu"))
        return self.driver_version is not None or npu or any(self.at(place).exists() for place in places)

    @property
    def has_rocket(self) -> bool:
        """Whether the NPU belongs to the open driver of mainline kernels."""
        return any(self.at(place).exists() for place in ("sys/module/rocket", "sys/bus/platform/drivers/rocket"))

    @cached_property
    def nodes(self) -> list[Node]:
        """Render nodes, and the older driver's own."""
        found = []
        for path in [*sorted(self.at("dev/dri").glob("renderD*")), self.at("dev/rknpu")]:
            try:
                status = path.stat()
            except OSError:
                continue
            link = self.at(f"sys/class/drm/{path.name}/device/driver")
            driver = "RKNPU" if path.name == "rknpu" else Path(os.readlink(link)).name if link.is_symlink() else None
            usable = os.access(path, os.R_OK | os.W_OK)
            found.append(Node(f"/{path.relative_to(self.root)}", driver, usable, status.st_gid))
        return found

    @property
    def npu_nodes(self) -> list[Node]:
        """Those that the NPU's driver serves; where nobody says which these are, all."""
        named = [each for each in self.nodes if (each.driver or "").lower() == "rknpu"]
        return named or [each for each in self.nodes if each.driver is None]

    # ---- the runtime -------------------------------------------------------------------------------------------------

    @cached_property
    def libraries(self) -> list[Library]:
        """Files of the vendor's runtime, in the order in which programs find them, each once."""
        places = [self.environment.get("NPUMATMUL_LIBRARY", "")]
        folders = self.environment.get("LD_LIBRARY_PATH", "").split(":")
        places += [f"{folder}/{_LIBRARY_NAME}" for folder in folders if folder.startswith("/")]
        places += LIBRARY_PLACES
        found: dict[Path, Library] = {}
        for place in places:
            path = self.at(place)
            if not place or not path.is_file():
                continue
            real = path.resolve()
            if real not in found:
                found[real] = Library(place, _version_in(path), _machine_of(path))
        return list(found.values())

    # ---- who uses it -------------------------------------------------------------------------------------------------

    def users(self) -> dict[int, str]:
        """Processes that have a node of the NPU open, by number; those of others can only be seen by root."""
        nodes = {each.path for each in self.npu_nodes}
        found = {}
        for folder in self.at("proc").glob("[0-9]*"):
            try:
                opened = {os.readlink(each) for each in (folder / "fd").iterdir()}
            except OSError:
                continue
            if opened & nodes and not (self.is_here and folder.name == str(os.getpid())):
                found[int(folder.name)] = first_line(folder / "comm") or "?"
        return found


def _version_in(path: Path) -> str | None:
    """The version that the text of a library says; it is read piece by piece."""
    try:
        with opened(path) as file:
            before, left = b"", _LIBRARY_BYTES
            while left > 0 and (piece := file.read(_PIECE)):
                left -= len(piece)
                match = _VERSION_TEXT.search(before + piece)
                if match:
                    return match[1].decode("ascii", "replace")
                before = piece[-256:]
    except OSError:
        pass
    return None


def _machine_of(path: Path) -> str:
    """What a library was compiled for, by its ELF header."""
    try:
        with opened(path) as file:
            head = file.read(20)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return "no library"
    (machine,) = struct.unpack("<H", head[18:20])
    return _MACHINES.get(machine, f"machine {machine}")
