"""Where files are kept between runs: one rule for all of them, that of the XDG base directories.

A variable counts if it is an absolute path, as that rule says; else the folder is below the home of the user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from npumatmul.errors import UnusableFileError

__all__ = ["cache_folder", "settings_folder"]


def cache_folder(*below: str, environment: Mapping[str, str] | None = None) -> Path:
    """``$XDG_CACHE_HOME/npumatmul``, ``~/.cache/npumatmul`` by default; it need not exist.

    Parameters
    ----------
    *below : str
        Folders in it.
    environment : mapping, optional
        Instead of that of the process.

    Raises
    ------
    UnusableFileError
        If the variable is not set and the user has no home.

    Examples
    --------
    >>> print(cache_folder("sim", environment={"XDG_CACHE_HOME": "/var/cache"}))
    /var/cache/npumatmul/sim
    """
    return _folder("XDG_CACHE_HOME", ".cache", environment).joinpath(*below)


def settings_folder(environment: Mapping[str, str] | None = None) -> Path:
    """``$XDG_CONFIG_HOME/npumatmul``, ``~/.config/npumatmul`` by default; it need not exist.

    Parameters
    ----------
    environment : mapping, optional
        Instead of that of the process.

    Raises
    ------
    UnusableFileError
        As `cache_folder`.
    """
    return _folder("XDG_CONFIG_HOME", ".config", environment)


def _folder(variable: str, usual: str, environment: Mapping[str, str] | None) -> Path:
    base = (os.environ if environment is None else environment).get(variable, "")
    if os.path.isabs(base):
        return Path(base) / "npumatmul"
    try:
        return Path.home() / usual / "npumatmul"
    except RuntimeError as error:
        raise UnusableFileError(f"this user has no home folder to keep files in: set {variable} ({error})") from None
