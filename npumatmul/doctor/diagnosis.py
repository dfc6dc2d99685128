"""`diagnose`: all checks, and what they found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine
from npumatmul.doctor.memory import check_descriptors, check_iommu, check_memory, check_others
from npumatmul.doctor.runtime import check_environment, check_libraries
from npumatmul.doctor.speed import check_governors, check_heat
from npumatmul.doctor.system import check_chip, check_driver, check_kernel, check_nodes
from npumatmul.doctor.trial import check_build, check_products

__all__ = ["Report", "diagnose"]

Check = Callable[[Machine], Iterator[Finding]]
#: What is read, in this order, and what is tried.
_READ: tuple[Check, ...] = (
    check_chip, check_kernel, check_driver, check_nodes, check_libraries, check_environment, check_governors,
    check_heat, check_memory, check_iommu, check_descriptors, check_others,
)  # fmt: skip
_TRIED: tuple[Check, ...] = (check_build, check_products)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes
    ----------
    findings : tuple of Finding
        In the order of the checks.
    """

    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Level:
        """How bad the worst of them is."""
        return max((each.level for each in self.findings), default=Level.OK)

    def to_json(self) -> str:
        """The findings as JSON, with the level of the worst one."""
        return json.dumps(
            {"worst": self.worst.name.lower(), "findings": [each.as_dict() for each in self.findings]}, indent=1
        )


def diagnose(
    root: str | os.PathLike[str] = "/", environment: Mapping[str, str] | None = None, *, tries: bool = True
) -> Report:
    """Look at what makes a machine's NPU slow or broken.

    Parameters
    ----------
    root : path
        Where the machine's files are: a copy of a board's ``/proc``, ``/sys``, ``/dev``, ``/usr/lib``, ``/etc``, say.
    environment : mapping, optional
        Variables of programs on it; those of this process for the machine itself, none for a copy.
    tries : bool
        Whether products are computed, too. Of a copy they never are.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        If there is no such folder.

    Examples
    --------
    >>> report = diagnose(tries=False)
    >>> report.findings[0].subject
    'chip'
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"diagnose: {folder} is no folder; it has to be the root of a machine's files")
    here = folder.resolve() == Path("/")
    machine = Machine(folder, dict(os.environ if here else {}) if environment is None else environment)
    checks = [*_READ, *(_TRIED if here and tries else ())]
    return Report(tuple(finding for check in checks for finding in check(machine)))
