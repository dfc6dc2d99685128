"""Make sure that the programs of a check are installed: with apt, as root or through sudo."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def ensure(what_for: str, programs: dict[str, str]) -> None:
    """Install what is missing, or end the program with a message that says what to install.

    Parameters
    ----------
    what_for : str
        The check, for the message.
    programs : dict of str to str
        Names of programs, or absolute paths (also with ``*``) of files, and the Debian packages that have them.
    """
    if all(map(_present, programs)):
        return
    with open(Path(tempfile.gettempdir()) / f"npumatmul-packages-{os.geteuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of several processes need them at once
        _install(what_for, programs)


def _install(what_for: str, programs: dict[str, str]) -> None:
    missing = sorted({package for name, package in programs.items() if not _present(name)})
    if not missing:
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    wanted = " ".join(missing)
    if shutil.which("apt-get") and (not root or shutil.which("sudo")):
        print(f"installing {wanted} ...", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = [*root, "apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        if subprocess.run(install, **quiet).returncode != 0:  # type: ignore[call-overload]
            subprocess.run([*root, "apt-get", "update", "-q"], **quiet)  # type: ignore[call-overload]
            subprocess.run(install, env=environment, stdout=subprocess.DEVNULL)
    still = [name for name in programs if not _present(name)]
    if still:
        sys.exit(f"{what_for} needs {', '.join(still)}; on Debian or Ubuntu: sudo apt install {wanted}")


def _present(name: str) -> bool:
    return bool(glob.glob(name)) if name.startswith("/") else shutil.which(name) is not None
