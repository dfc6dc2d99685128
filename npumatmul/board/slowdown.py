"""Whether a board is slower than it was: by its clocks, its temperature, and by what its kernel does about heat."""

from __future__ import annotations

from pathlib import Path

from npumatmul.board.readings import clocks, slowed_down, temperature_limits, temperatures

__all__ = ["SlowdownWatch"]


class SlowdownWatch:
    """Looks at a board again and again, while or just after something runs.

    Parameters
    ----------
    root : Path
        Below which the files of Linux are.
    share : float
        A clock below this share of the fastest that was seen counts as slow.
    only : tuple of str, optional
        Beginnings of names of clocks that count; all by default.
    """

    def __init__(self, root: Path = Path("/"), share: float = 0.75, only: tuple[str, ...] = ("",)) -> None:
        self._root, self._share, self._only = root, share, only
        self._fastest: dict[str, int] = {}
        self._limits = temperature_limits(root)

    def reasons(self) -> list[str]:
        """What makes the board slow now, in a few words each; nothing where all is well."""
        found = []
        for name, hertz in clocks(self._root).items():
            if not name.startswith(self._only):
                continue
            fastest = self._fastest[name] = max(hertz, self._fastest.get(name, 0))
            if hertz < self._share * fastest:
                found.append(f"{name} at {hertz / 1e6:.0f} of {fastest / 1e6:.0f} MHz")
        found += [f"the kernel slows {kind} down" for kind in slowed_down(self._root)]
        for zone, degrees in temperatures(self._root).items():
            if degrees >= self._limits.get(zone, float("inf")):
                found.append(f"{zone} has {degrees:.0f} degrees, and is to stay below {self._limits[zone]:.0f}")
        return found
