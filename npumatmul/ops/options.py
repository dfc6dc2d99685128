"""Options of a `Matmul`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import Chip

__all__ = ["MatmulOptions"]

logger = logging.getLogger("npumatmul.Matmul")

#: Whether A and C are in native layout, as `plan_weight` has it.
_LAYOUTS = {"auto": None, "native": True, "normal": False}


@dataclass(frozen=True)
class MatmulOptions:
    """Options of a `Matmul`: how it is cut, where the model's or autotune's choice is not wanted, and its log.

    Attributes
    ----------
    logger : logging.Logger, optional
        Where the phases are logged; ``logging.getLogger("npumatmul.Matmul")`` by default.
    level : int
        At which level; ``logging.INFO`` by default.
    cores : int, optional
        At most so many NPU cores, and no more than the chip has; by default all that the model finds worth it.
    layout : {"auto", "native", "normal"}
        Layout of A and C in NPU memory: ``"native"``, which the NPU reads and writes as it is; ``"normal"``, row-major,
        which the runtime converts. ``"auto"``: native where the layout of C is documented.
    rows : sequence of int, optional
        Numbers of rows that tiles are chosen for; by default 1 and 128, since a weight meets tokens and prompts.
    buckets : sequence of int, optional
        Numbers of rows that NPU contexts are made for, and others are padded to: 1, or multiples of four. By default
        those with which no number of rows loses much by the model.
    tuned : bool, optional
        Whether what `Matmul.autotune` found best on this machine is taken; by default as `npumatmul.config` says. What
        other options ask for comes first.

    Raises
    ------
    TypeError
        If an option is of a wrong type.
    ValueError
        If a value makes no sense, or two options contradict each other.

    Examples
    --------
    >>> MatmulOptions(cores=1, buckets=(1, 64)).plan_options
    {'cores': 1, 'buckets': (1, 64)}
    """

    logger: logging.Logger = logger
    level: int = logging.INFO
    cores: int | None = None
    layout: Literal["auto", "native", "normal"] = "auto"
    rows: Sequence[int] | None = None
    buckets: Sequence[int] | None = None
    tuned: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.logger, (logging.Logger, logging.LoggerAdapter)):
            raise TypeError(f"Matmul: option 'logger' is a logging.Logger, not {type(self.logger).__name__}")
        if type(self.level) is not int:
            raise TypeError(f"Matmul: option 'level' is a number such as logging.INFO, not {self.level!r}")
        if self.cores is not None:
            object.__setattr__(self, "cores", _numbers("cores", (self.cores,))[0])
        for name in ("rows", "buckets"):
            given = getattr(self, name)
            if given is None:
                continue
            if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or not len(given):
                raise TypeError(f"Matmul: option {name!r} is a sequence of numbers of rows, not {given!r}")
            object.__setattr__(self, name, _numbers(name, given))
        if self.layout not in _LAYOUTS:
            raise ValueError(f"Matmul: option 'layout' is {self.layout!r}; it can be {', '.join(map(repr, _LAYOUTS))}")
        if self.tuned not in (None, True, False):
            raise TypeError(f"Matmul: option 'tuned' is True, False or None, not {self.tuned!r}")
        if self.tuned and self.asked:
            raise ValueError(
                f"Matmul: option 'tuned' takes a plan as it was measured; leave it out, or {', '.join(self.asked)}"
            )

    @classmethod
    def of(cls, given: MatmulOptions | Mapping[str, Any] | None) -> MatmulOptions:
        """Options from what a caller gave.

        Raises
        ------
        TypeError
            If there is no such option, or it is of a wrong type.
        ValueError
            As `MatmulOptions`.
        """
        if isinstance(given, MatmulOptions):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"Matmul: options are a dict or a MatmulOptions, not {type(given).__name__}")
        known = [field.name for field in fields(cls)]
        for name in given or ():
            if name not in known:
                raise TypeError(f"Matmul: there is no option {name!r}; there is {', '.join(known)}")
        return cls(**(given or {}))

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the options that say how the right operand is cut."""
        named = [name for name in ("cores", "rows", "buckets") if getattr(self, name) is not None]
        return (*named, *(["layout"] if self.layout != "auto" else []))

    def check_uncut(self, packed: object) -> None:
        """Raise `ValueError` if options say how to cut a right operand that is packed, and so cut, already."""
        asked = [*self.asked, *(["tuned"] if self.tuned else [])]
        if asked:
            raise ValueError(
                f"Matmul: options say {', '.join(asked)}, but b is packed and so it is cut already ({packed!r}); leave "
                "them out, or give the array that it was packed from"
            )

    def check_chip(self, chip: Chip) -> None:
        """Raise `ValueError` if a chip cannot do what options ask for, whatever the operands."""
        if self.cores is not None and self.cores > chip.cores:
            raise ValueError(f"Matmul: option 'cores' is {self.cores}; {chip.soc} has {chip.cores}")
        multiple = chip.native.row_multiple
        for rows in self.buckets or ():
            if rows != 1 and rows % multiple:
                raise ValueError(f"Matmul: option 'buckets' takes 1 and multiples of {multiple}, not {rows}")

    @property
    def plan_options(self) -> dict[str, Any]:
        """What they are for `npumatmul.planning.product.plan_weight`."""
        given = {name: getattr(self, name) for name in self.asked if name != "layout"}
        return given if self.layout == "auto" else {**given, "ac_native": _LAYOUTS[self.layout]}


def _numbers(name: str, values: Sequence[Any] | NDArray[Any]) -> tuple[int, ...]:
    for value in values:
        if type(value) is not int and not isinstance(value, np.integer):
            raise TypeError(f"Matmul: option {name!r} takes int, not {type(value).__name__}")
        if value < 1:
            raise ValueError(f"Matmul: option {name!r} takes numbers of at least 1, not {value}")
    return tuple(map(int, values))
