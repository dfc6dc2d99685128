"""The file in which constants are kept that were fitted on this machine; they override those of `constants`.

JSON, version 1. A file that is damaged, or of another chip, is ignored with one warning that names it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npumatmul.chips.timing.constants import TIMINGS
from npumatmul.chips.timing.model import TimingModel
from npumatmul.errors import UnusableFileError
from npumatmul.files.folders import settings_folder
from npumatmul.files.reading import parse_json, read_text
from npumatmul.files.writing import write_text

__all__ = ["default_timing_path", "find_timing", "keep_timing", "used_timing_path"]

FORMAT, VERSION = "npumatmul-timing", 1


def default_timing_path(soc: str, simulated: bool = False, environment: Mapping[str, str] | None = None) -> Path:
    """Where the constants of a chip are kept: ``$XDG_CONFIG_HOME/npumatmul/timing-<soc>.json``.

    Those of the simulator have a name of their own, so that they are never taken for those of a board.

    Raises
    ------
    UnusableFileError
        If the user has no home and ``XDG_CONFIG_HOME`` is not set.

    Examples
    --------
    >>> print(default_timing_path("rk3588", environment={"XDG_CONFIG_HOME": "/etc/xdg"}))
    /etc/xdg/npumatmul/timing-rk3588.json
    """
    return settings_folder(environment) / f"timing-{'sim-' if simulated else ''}{soc}.json"


def used_timing_path(soc: str, simulated: bool = False, environment: Mapping[str, str] | None = None) -> Path | None:
    """Where `find_timing` looks: ``NPUMATMUL_TIMING_FILE``, else `default_timing_path`; None where it does not look.

    Examples
    --------
    >>> used_timing_path("rk3588", environment={"NPUMATMUL_TIMING_FILE": ""}) is None
    True
    """
    environment = os.environ if environment is None else environment
    named = environment.get("NPUMATMUL_TIMING_FILE")
    if named is not None:
        return Path(named) if named else None
    try:
        return default_timing_path(soc, simulated, environment)
    except UnusableFileError:  # no home, so nothing was kept there
        return None


def find_timing(soc: str, simulated: bool = False, environment: Mapping[str, str] | None = None) -> TimingModel | None:
    """The constants to plan with on this machine, or None where nothing is known of a chip.

    ``NPUMATMUL_TIMING_FILE`` names another file than `default_timing_path`; empty, it turns overriding off.

    Examples
    --------
    >>> find_timing("rk3588", environment={"NPUMATMUL_TIMING_FILE": ""}) is TIMINGS["rk3588"]
    True
    """
    published = TIMINGS.get(soc)
    path = used_timing_path(soc, simulated, environment)
    if path is None:
        return published
    try:
        kept = _read(path, soc, simulated)
    except FileNotFoundError:
        if (os.environ if environment is None else environment).get("NPUMATMUL_TIMING_FILE"):
            _ignored(path, "NPUMATMUL_TIMING_FILE names it and it is not there")
        return published
    except (OSError, ValueError) as error:
        _ignored(path, str(error))
        return published
    return kept


def keep_timing(
    model: TimingModel, simulated: bool = False, path: Path | None = None, facts: Mapping[str, Any] | None = None
) -> Path:
    """Keep constants for this machine.

    Parameters
    ----------
    model : TimingModel
    simulated : bool
        Whether they are of a simulator.
    path : Path, optional
        Instead of `default_timing_path`.
    facts : mapping, optional
        What else the file is to say: device, driver, date.

    Returns
    -------
    Path
        Where they are.

    Raises
    ------
    OSError, UnusableFileError
        If the file cannot be written.
    """
    path = default_timing_path(model.soc, simulated) if path is None else path
    content = {
        "format": FORMAT,
        "version": VERSION,
        "simulated": simulated,
        "facts": dict(facts or {}),
        "constants": json.loads(model.to_json()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _read(path: Path, soc: str, simulated: bool) -> TimingModel:
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("not a file of constants of a chip")
    if content.get("version") != VERSION or not isinstance(content.get("constants"), dict):
        raise ValueError(f"its version is not {VERSION}, or it has no constants")
    model = TimingModel.of(content["constants"])
    if model.soc != soc or content.get("simulated") is not simulated:
        kind = "the simulator of " if content.get("simulated") else ""
        raise ValueError(f"it is about {kind}{model.soc}, this is {'the simulator of ' if simulated else ''}{soc}")
    return model


def _ignored(path: Path, why: str) -> None:
    # one location and one text, so that Python shows it once
    warnings.warn(f"the constants {path} are ignored: {why}", UserWarning, stacklevel=2)
