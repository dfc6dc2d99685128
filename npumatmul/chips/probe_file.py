"""The file that `npumatmul probe` writes: what was found on this machine, overriding cells of the capability table.

JSON, version 1. A file that is damaged, or of another chip or runtime, is ignored with one warning that names it.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npumatmul.chips.native_rows import NativeRows
from npumatmul.chips.types import MatmulType
from npumatmul.errors import UnusableFileError
from npumatmul.files.folders import settings_folder
from npumatmul.files.reading import parse_json, read_text, shown
from npumatmul.rknn.version import RuntimeVersion

__all__ = [
    "AS_RECORDED",
    "FORMAT",
    "VERSION",
    "ProbeResults",
    "checked_cells",
    "default_path",
    "find_probe_results",
    "load_probe_results",
]

logger = logging.getLogger(__name__)

#: What a board's rows of native A and C are where they agree with what is recorded (`NativeRows`).
AS_RECORDED = "as recorded"

FORMAT = "npumatmul-probe"
VERSION = 1


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40


def _size_or_none(value: object) -> bool:
    return value is None or _size(value)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _log_level(value: object) -> bool:
    return type(value) is int and 0 <= value <= 6


def _tile(value: object) -> bool:
    return _numbers(value) and isinstance(value, list) and len(value) == 2 and all(value)


def _native_rows(value: object) -> bool:
    if value is None or value == AS_RECORDED:
        return True
    try:
        NativeRows.of(value)
    except ValueError:
        return False
    return True


def _one_of(*words: str | bool | None) -> Callable[[object], bool]:
    return lambda value: any(value is word or (isinstance(word, str) and value == word) for word in words)


#: Cells that a probe can fill, and what values they take; those of `Capabilities`, then of `TypeCapabilities`.
CHIP_KINDS: Mapping[str, Callable[[object], bool]] = {
    "core_masks": _numbers,
    "row_multiple": _size,
    "contexts": _size,
    "iommu_domains": _size,
    "domain_bytes": _size,
    "slice_alignment": _size,
    "dynamic_kn": _flag,
    "int4_even_nibble": _one_of("low", "high"),
    "int4_log_level": _log_level,
    "helper_int4": _one_of("packed", "one per byte"),
    "group_order": _one_of("g*N+n", "n*(K/G)+g"),
}
TYPE_KINDS: Mapping[str, Callable[[object], bool]] = {
    "supported": _flag,
    "k_multiple": _size,
    "n_multiple": _size,
    "k_max": _size,
    "n_max": _size,
    "k_limit": _size_or_none,
    "n_limit": _size_or_none,
    "m_limit": _size_or_none,
    "k_segment": _size_or_none,
    "native_rows": _native_rows,
    "ac_normal": _flag,
    "ac_native": _flag,
    "b_normal": _flag,
    "b_native": _flag,
    "b_transposed": _flag,
    "a_group": _size,
    "b_tile": _tile,
    "c_group": _size,
    "per_channel": _flag,
    "per_group": _flag,
    "group_sizes": _numbers,
    "group_asymmetric": _flag,
    "overflow": _one_of("saturate", "wrap"),
    "scales_apply": _one_of(True, False),
}


@dataclass(frozen=True)
class ProbeResults:
    """What was found on a machine.

    Attributes
    ----------
    soc : str
    runtime : RuntimeVersion
    simulated : bool
    cells : mapping of str to (value, source)
        Cells of the table, named as `Capabilities.cells` names them; sources are question numbers.
    facts : mapping
        Everything else: device, driver, kernel, date, and the answers by question.
    """

    soc: str
    runtime: RuntimeVersion
    simulated: bool
    cells: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "soc": self.soc,
            "runtime": str(self.runtime),
            "simulated": self.simulated,
            **self.facts,
            "cells": {name: {"value": value, "source": source} for name, (value, source) in self.cells.items()},
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ProbeResults:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            If it is anything else; the message says what is wrong.

        Examples
        --------
        >>> ProbeResults.from_json("{}")
        Traceback (most recent call last):
            ...
        ValueError: not a file of npumatmul probe
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ValueError(f"not JSON ({error})") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("not a file of npumatmul probe")
        if content.get("version") != VERSION:
            raise ValueError(f"its version is {shown(content.get('version'))}, this npumatmul reads {VERSION}")
        soc, runtime, simulated = content.get("soc"), content.get("runtime"), content.get("simulated")
        version = RuntimeVersion.parse(runtime) if isinstance(runtime, str) else None
        if not isinstance(soc, str) or version is None or not isinstance(simulated, bool):
            raise ValueError("soc, runtime or simulated are missing or malformed")
        cells = content.get("cells")
        if not isinstance(cells, dict):
            raise ValueError("cells are missing")
        known = {"format", "version", "soc", "runtime", "simulated", "cells"}
        return cls(
            soc,
            version,
            simulated,
            {name: _checked_cell(name, cell) for name, cell in cells.items()},
            {key: value for key, value in content.items() if key not in known},
        )


def _checked_cell(name: str, cell: object) -> tuple[Any, str]:
    of_type, _, cell_name = name.rpartition(".")
    kinds = TYPE_KINDS if of_type else CHIP_KINDS
    if (of_type and of_type not in MatmulType.__members__) or cell_name not in kinds:
        raise ValueError(f"there is no cell {shown(name)} to override")
    if not isinstance(cell, dict) or not isinstance(cell.get("source"), str):
        raise ValueError(f"cell {name!r} has no source")
    value = cell.get("value")
    if not kinds[cell_name](value):
        raise ValueError(f"cell {name!r} cannot be {shown(value)}")
    return value, cell["source"]


def checked_cells(cells: Mapping[str, Any], source: str) -> dict[str, tuple[Any, str]]:
    """Cells that a question settled, less those that the table cannot hold; for `ProbeResults.cells`.

    Examples
    --------
    >>> checked_cells({"contexts": 128, "colour": "blue"}, "X1")
    {'contexts': (128, 'X1')}
    """
    kept = {}
    for name, value in cells.items():
        try:
            kept[name] = _checked_cell(name, {"value": value, "source": source})
        except ValueError as error:
            logger.warning("%s: %s", source, error)
    return kept


def default_path(
    soc: str, runtime: RuntimeVersion, simulated: bool = False, environment: Mapping[str, str] | None = None
) -> Path:
    """Where the results of a chip and a runtime are kept: ``$XDG_CONFIG_HOME/npumatmul/probe-<soc>-<runtime>.json``.

    Results of the simulator have names of their own, so that they are never taken for those of a board.

    Raises
    ------
    UnusableFileError
        If the user has no home and ``XDG_CONFIG_HOME`` is not set.

    Examples
    --------
    >>> print(default_path("rk3588", RuntimeVersion(2, 3, 2), environment={"XDG_CONFIG_HOME": "/etc/xdg"}))
    /etc/xdg/npumatmul/probe-rk3588-2.3.2.json
    """
    return settings_folder(environment) / f"probe-{'sim-' if simulated else ''}{soc}-{runtime}.json"


def load_probe_results(path: str | Path) -> ProbeResults:
    """Read a file of probe results.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged or something else; the message says what is wrong.
    """
    return ProbeResults.from_json(read_text(path))


def find_probe_results(
    soc: str,
    runtime: RuntimeVersion,
    simulated: bool = False,
    environment: Mapping[str, str] | None = None,
    contradiction: Callable[[ProbeResults], str | None] = lambda results: None,
) -> ProbeResults | None:
    """What was found on this machine for a chip and a runtime, or None.

    ``NPUMATMUL_PROBE_FILE`` names another file than `default_path`; empty, it turns overriding off. A file that cannot
    be used is ignored with a warning that names it, also where `contradiction` finds one.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("NPUMATMUL_PROBE_FILE")
    if named == "":
        return None
    try:
        path = Path(named) if named else default_path(soc, runtime, simulated, environment)
    except UnusableFileError:  # no home, so nothing was kept there
        return None
    try:
        results = load_probe_results(path)
    except FileNotFoundError:
        if named:
            _ignored(path, "NPUMATMUL_PROBE_FILE names it and it is not there")
        return None
    except (OSError, ValueError) as error:
        _ignored(path, str(error))
        return None
    if (results.soc, results.runtime, results.simulated) != (soc, runtime, simulated):
        _ignored(
            path,
            f"it is about {'the simulator of ' if results.simulated else ''}{results.soc} under {results.runtime}, "
            f"this is {'the simulator of ' if simulated else ''}{soc} under {runtime}",
        )
        return None
    problem = contradiction(results)
    if problem is not None:
        _ignored(path, f"its cells contradict each other, or the table: {problem}")
        return None
    return results


def _ignored(path: Path, why: str) -> None:
    # one location and one text, so that Python shows it once
    warnings.warn(f"the probe results {path} are ignored: {why}", UserWarning, stacklevel=2)
