"""What was measured to be best on this machine: choices for single weights, kept in a file and consulted when told.

One JSON file per machine in ``$XDG_CACHE_HOME/npumatmul``: chip, runtime, driver, clocks, library version. What was
measured on a simulated chip has a file of its own and is never used on a board. A file that is damaged, or of another
machine or version, is ignored with a warning that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from npumatmul.board.readings import governors, highest_clocks
from npumatmul.chips import Chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.files.folders import cache_folder
from npumatmul.files.locking import locked
from npumatmul.files.reading import read_json, shown
from npumatmul.files.writing import write_text
from npumatmul.planning.weight import WeightPlan, plan_weight
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["Machine", "Tuned", "TuningCache", "WeightShape", "consulting", "planned"]

logger = logging.getLogger(__name__)

FORMAT = "npumatmul-tuning"
VERSION = 1


@dataclass(frozen=True)
class Machine:
    """What measured times hold for.

    Attributes
    ----------
    soc : str
    simulated : bool
    runtime, driver : str
        As the runtime says.
    clocks : mapping of str to str
        Governors and highest frequencies, where they can be read.
    npumatmul : str
        Version of this library.
    """

    soc: str
    simulated: bool
    runtime: str
    driver: str
    clocks: Mapping[str, str] = field(default_factory=lambda: _clocks())
    npumatmul: str = field(default_factory=lambda: version("npumatmul"))

    @property
    def file_name(self) -> str:
        """Name of its file in the cache."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"tuning-{'simulated-' if self.simulated else ''}{self.soc}-{digest}.json"


def _clocks() -> dict[str, str]:
    """What tells a board's clocks apart; not the present frequencies, which governors change all the time."""
    highest = {f"{name}_max_freq": str(hertz) for name, hertz in highest_clocks().items()}
    found = {**{f"{name}_governor": governor for name, governor in governors().items()}, **highest}
    return {name: value for name, value in sorted(found.items()) if name.startswith(("npu", "ddr"))}


@dataclass(frozen=True)
class WeightShape:
    """What a choice is made for.

    Attributes
    ----------
    k, n : int
    mm_type : MatmulType
    k_group : int or None
    row_images : int
    """

    k: int
    n: int
    mm_type: MatmulType
    k_group: int | None = None
    row_images: int = 1

    def __str__(self) -> str:
        group = "" if self.k_group is None else f" groups of {self.k_group}"
        images = "" if self.row_images == 1 else f" {self.row_images} images"
        return f"{self.k}x{self.n} {self.mm_type.name}{group}{images}"


@dataclass(frozen=True)
class Tuned:
    """A choice, and the times that it was made by.

    Attributes
    ----------
    k_slices, n_tiles : int
    ac_native : bool
    buckets : tuple of int
    cores : tuple of (int, int)
        Numbers of rows, ascending, and the cores that took least for them.
    seconds : tuple of (int, float)
        Numbers of rows, and what they took on this machine.
    shared : tuple of int
        Those numbers of rows for which cores had rows of their own, not tiles.
    """

    k_slices: int
    n_tiles: int
    ac_native: bool
    buckets: tuple[int, ...]
    cores: tuple[tuple[int, int], ...]
    seconds: tuple[tuple[int, float], ...] = ()
    shared: tuple[int, ...] = ()

    def plan(self, weight: WeightShape, chip: Chip, runtime: RuntimeVersion, k_parts: int = 1) -> WeightPlan:
        """The plan that was chosen.

        Raises
        ------
        ValueError, DeviceError
            If it does not fit the weight or the chip.
        """
        return plan_weight(
            weight.k, weight.n, weight.mm_type, chip, runtime, k_parts, k_group=weight.k_group,
            row_images=weight.row_images, k_slices=self.k_slices, n_tiles=self.n_tiles, buckets=self.buckets,
            ac_native=self.ac_native, measured_cores=self.cores,
            measured_shared=self.shared,
        )  # fmt: skip

    @classmethod
    def of(cls, content: Any) -> Tuned:
        """A choice from what JSON holds.

        Raises
        ------
        ValueError
            If it is none.
        """
        try:
            if type(content["ac_native"]) is not bool:
                raise TypeError("ac_native")
            return cls(
                _count(content["k_slices"]),
                _count(content["n_tiles"]),
                content["ac_native"],
                tuple(_count(size) for size in content["buckets"]),
                tuple(sorted((_count(rows), _count(cores)) for rows, cores in content["cores"])),
                tuple((_count(rows), float(seconds)) for rows, seconds in content["seconds"]),
                tuple(_count(rows) for rows in content.get("shared", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no choice of a plan: {error!r}") from error


def _count(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{shown(value)} is no positive number")
    return value


class TuningCache:
    """The choices that were measured on one machine.

    Parameters
    ----------
    machine : Machine
    directory : Path, optional
        `npumatmul.files.folders.cache_folder` by default.

    Examples
    --------
    >>> import tempfile
    >>> machine = Machine("rk3588", True, "2.3.2", "0.9.8")
    >>> weight = WeightShape(64, 96, MatmulType.INT8_INT8_INT32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     TuningCache(machine, Path(folder)).record(weight, Tuned(1, 1, True, (1, 4), ((1, 1),)))
    ...     TuningCache(machine, Path(folder)).find(weight).buckets
    (1, 4)
    """

    def __init__(self, machine: Machine, directory: Path | None = None) -> None:
        self.machine = machine
        self.path = (cache_folder() if directory is None else directory) / machine.file_name
        self._entries: dict[str, Tuned] | None = None

    def find(self, weight: WeightShape) -> Tuned | None:
        """What was chosen for a weight, or None."""
        if self._entries is None:
            self._entries = self._read()
        return self._entries.get(str(weight))

    def plan(self, weight: WeightShape, chip: Chip, runtime: RuntimeVersion, k_parts: int = 1) -> WeightPlan | None:
        """The plan that was chosen for a weight; None where there is none, or it does not fit any more."""
        tuned = self.find(weight)
        if tuned is None:
            return None
        try:
            return tuned.plan(weight, chip, runtime, k_parts)
        except (ValueError, DeviceError) as error:
            warnings.warn(f"{self.path}: the choice for {weight} is ignored: {error}", RuntimeWarning, stacklevel=2)
            return None

    def record(self, weight: WeightShape, tuned: Tuned) -> None:
        """Add a choice to the file, which is replaced as a whole; what other processes add meanwhile stays.

        Raises
        ------
        OSError
            If it cannot be written, or another process does so for more than ten seconds. The old one is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            entries = self._entries = {**self._read(), str(weight): tuned}
            content = {
                "format": FORMAT,
                "version": VERSION,
                "machine": asdict(self.machine),
                "entries": {name: asdict(each) for name, each in sorted(entries.items())},
            }
            write_text(self.path, json.dumps(content, indent=1) + "\n")
        logger.info("kept the choice for %s in %s", weight, self.path)

    def _read(self) -> dict[str, Tuned]:
        try:
            content = read_json(self.path)
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError("it is no file of autotune")
            if content.get("version") != VERSION:
                raise ValueError(f"its version is {shown(content.get('version'))}, this npumatmul reads {VERSION}")
            if content.get("machine") != asdict(self.machine):
                raise ValueError("it is another machine's")
            entries = content.get("entries")
            if not isinstance(entries, dict):
                raise ValueError("it has no entries")
            return {str(name): Tuned.of(entry) for name, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            return self._ignored(error)

    def _ignored(self, error: Exception) -> dict[str, Tuned]:
        warnings.warn(f"{self.path} is ignored: {error}", RuntimeWarning, stacklevel=4)
        return {}


#: The cache that is consulted, and what is asked for instead.
_consulted: ContextVar[tuple[TuningCache | None, Mapping[str, Any]]]
_consulted = ContextVar("npumatmul_tuning", default=(None, {}))


@contextlib.contextmanager
def consulting(cache: TuningCache | None, wishes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Have `planned` look for choices here, within a ``with`` block; None: nowhere.

    Parameters
    ----------
    cache : TuningCache or None
    wishes : mapping, optional
        Arguments of `plan_weight` that somebody asks for; where there are any the cache is not consulted.
    """
    before = _consulted.get()
    try:
        _consulted.set((None, wishes) if wishes else (cache, {}))  # an interrupt may come as soon as this is done
        yield
    finally:
        _consulted.set(before)


def planned(
    k: int,
    n: int,
    mm_type: MatmulType,
    chip: Chip,
    runtime: RuntimeVersion,
    k_parts: int = 1,
    *,
    k_group: int | None = None,
    row_images: int = 1,
    k_slices: int | None = None,
    cut_for: int | None = None,
) -> WeightPlan:
    """Cut a weight as is asked for or the cache that is consulted says, else by the model.

    The other arguments are those of `plan_weight`. With `k_slices` the cache is not consulted.

    Parameters
    ----------
    cut_for : int, optional
        Tiles are chosen for so many cores, where nobody asks for others: three tiles are no even work for two cores.
        All cores may multiply with them all the same. What was measured on all cores says nothing then.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> rk3588 = chip("rk3588")
    >>> planned(64, 96, MatmulType.INT8_INT8_INT32, rk3588, rk3588.runtime).measured_cores
    ()
    >>> whole = planned(2048, 2048, MatmulType.INT8_INT8_INT32, rk3588, rk3588.runtime)
    >>> [span.length for span in whole.n_spans]
    [704, 672, 672]
    >>> halves = planned(2048, 2048, MatmulType.INT8_INT8_INT32, rk3588, rk3588.runtime, cut_for=2)
    >>> [span.length for span in halves.n_spans], halves.row_cores
    ([1024, 1024], 3)
    """
    cache, wishes = _consulted.get()
    fewer = cut_for is not None and cut_for < chip.cores and "cores" not in wishes
    if fewer:
        wishes = {**wishes, "cores": cut_for}
    elif cache is not None and k_slices is None:
        found = cache.plan(WeightShape(k, n, mm_type, k_group, row_images), chip, runtime, k_parts)
        if found is not None:
            return found
    plan = plan_weight(
        k,
        n,
        mm_type,
        chip,
        runtime,
        k_parts,
        k_group=k_group,
        row_images=row_images,
        k_slices=k_slices,
        **wishes,
    )
    return replace(plan, cores=min(chip.cores, len(plan.n_spans)), row_cores=chip.cores) if fewer else plan
