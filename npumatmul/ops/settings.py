"""Settings of a scope: who multiplies, on which cores, what happens to what the NPU cannot compute."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from npumatmul.device.scope import Scope

__all__ = ["CURRENT", "PROCESSORS", "Processor", "Settings", "config", "settings"]

#: Who multiplies.
Processor = Literal["npu", "cpu", "auto"]
PROCESSORS: tuple[str, ...] = get_args(Processor)


@dataclass(frozen=True)
class Settings:
    """What holds in the present scope.

    Attributes
    ----------
    fallback : str or None
        ``"numpy"``: dtypes that the NPU cannot multiply without losing information are computed by numpy, on the CPU.
        None: they raise `TypeError`.
    tuned : bool
        Whether weights are cut as `Matmul.autotune` found best on this machine, where it was asked.
    processor : str
        ``"npu"``; ``"cpu"``: the CPU multiplies the same packed weights, from the tiles in NPU memory and by the same
        scheme, and sums of integers are the same; ``"auto"``: whoever is modelled to be faster for the rows at hand.
        It holds for weights that do not say it themselves (`PackedWeight.on`).
    cores : tuple of int or None
        The NPU cores that products may run on, for weights that several pieces of work share; None: all. Weights that
        are packed there are cut evenly for so many: three tiles of N are no even work for two cores.
    """

    fallback: str | None = None
    tuned: bool = False
    processor: Processor = "npu"
    cores: tuple[int, ...] | None = None


#: Those of the present scope, for who cannot spare the call of `settings`.
CURRENT: ContextVar[Settings] = ContextVar("npumatmul_settings", default=Settings())  # noqa: B039 - it is frozen


def settings() -> Settings:
    """Return the settings of the present scope.

    Examples
    --------
    >>> settings().fallback is None
    True
    """
    return CURRENT.get()


def config(
    *,
    fallback: Literal["numpy", "unchanged"] | None = "unchanged",
    tuned: bool | Literal["unchanged"] = "unchanged",
    processor: Processor | Literal["unchanged"] = "unchanged",
    cores: Sequence[int] | Literal["unchanged"] | None = "unchanged",
) -> Scope[Settings]:
    """Change settings within a ``with`` block, for this thread or task.

    Parameters
    ----------
    fallback : {"numpy", None, "unchanged"}
        See `Settings`. ``"unchanged"``, as for the others: what holds around the block.
    tuned : bool or "unchanged"
        See `Settings`.
    processor : {"npu", "cpu", "auto", "unchanged"}
        See `Settings`.
    cores : sequence of int, None or "unchanged"
        See `Settings`. Cores are counted from 0; a product whose chip lacks one of them raises `ValueError`.

    Returns
    -------
    context manager
        Of the `Settings` that hold. Dropped without ``with`` it warns that it did nothing.

    Raises
    ------
    ValueError
        If there is no such fallback or processor, or no cores are named, or one twice.
    TypeError
        If `tuned` is neither True nor False, or cores are no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.config(fallback="numpy"):
    ...     npu.matmul(np.array([[2.0]]), np.array([[3.0]]))  # float64: numpy computes it
    array([[6.]])
    >>> w = npu.pack(np.ones((64, 64), np.float32), "w8a8")
    >>> with npu.config(processor="cpu"):  # a token of a decoder, say, when prompts went through the NPU
    ...     npu.matmul(np.ones((1, 64), np.float32), w).sum()
    np.float32(4096.0)
    """
    if fallback not in (None, "numpy", "unchanged"):
        raise ValueError(f"config: fallback is {fallback!r}; it can be 'numpy' or None")
    if tuned not in ("unchanged", True, False):
        raise TypeError(f"config: tuned is {tuned!r}; it can be True or False")
    if processor not in ("unchanged", *PROCESSORS):
        raise ValueError(f"config: processor is {processor!r}; it can be {', '.join(map(repr, PROCESSORS))}")
    chosen = cores if cores is None or cores == "unchanged" else _cores(cores)
    changes: dict[str, Any] = {"fallback": fallback, "tuned": tuned, "processor": processor, "cores": chosen}
    changes = {name: value for name, value in changes.items() if value != "unchanged"}
    return Scope(lambda: _changed(changes), "npumatmul.config")


def _cores(given: object) -> tuple[int, ...]:
    """Numbers of cores, in their order."""
    try:
        cores = tuple(sorted(operator.index(each) for each in given))  # type: ignore[attr-defined]
    except TypeError:
        raise TypeError(f"config: cores is {given!r}; it is a sequence of numbers from 0 on, or None") from None
    if not cores or cores[0] < 0 or len(set(cores)) != len(cores):
        raise ValueError(f"config: cores is {given!r}; it names at least one core, from 0 on, and none of them twice")
    return cores


@contextmanager
def _changed(changes: dict[str, Any]) -> Iterator[Settings]:
    before = CURRENT.get()
    try:
        CURRENT.set(replace(before, **changes))  # an interrupt may come as soon as this is done
        yield CURRENT.get()
    finally:
        CURRENT.set(before)
