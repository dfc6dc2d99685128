"""The chips with the matmul API (facts 3.1): the one list in Python that all others derive from.

What they can do stands in `npumatmul.chips.rows`. The simulator has a list of its own, `native/simulator/chips.c`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

__all__ = ["COMPATIBLE", "DEFAULT_SOC", "SOCS", "meant", "plain_name"]

#: By chip: the entries of a device tree's `compatible` that name it.
_ENTRIES: Mapping[str, tuple[str, ...]] = {
    "rk3588": ("rockchip,rk3588", "rockchip,rk3588s"),
    "rk3576": ("rockchip,rk3576",),
    "rk3568": ("rockchip,rk3568",),
    "rk3566": ("rockchip,rk3566",),
    "rk3562": ("rockchip,rk3562",),
}

#: All chips by name.
SOCS = tuple(_ENTRIES)

#: The chip that is simulated where none is named.
DEFAULT_SOC = SOCS[0]

#: The chip by an entry of the device tree.
COMPATIBLE: Mapping[str, str] = {entry: soc for soc, entries in _ENTRIES.items() for entry in entries}


def plain_name(name: str) -> str:
    """The name of a chip as it stands in `SOCS`, however it is capitalized; what is no chip stays as it is."""
    return name.lower() if name.lower() in SOCS else name


def meant(name: str, before: str = "") -> str:
    """What was perhaps meant by a name that is no chip's, as a question to follow a sentence; empty if nothing was.

    Parameters
    ----------
    name : str
        What was written.
    before : str
        What stands before the names of chips there, such as ``"sim:"``.
    """
    near = difflib.get_close_matches(name.lower(), [before + each for each in SOCS], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
