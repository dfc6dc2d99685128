"""``--profile``: what a command spends its time with, once what it works with is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from npumatmul.cli.files import STANDARD, check_outputs, path, write_output
from npumatmul.cli.terminal import say
from npumatmul.running.profile import Profile, profile

__all__ = ["ProfileOption", "check_profiles", "profiled"]

ProfileOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--profile",
        parser=path,
        metavar="<path>",
        help="Where the time goes: '-' prints a table on standard error, *.txt is one; *.trace.json is for "
        "chrome://tracing, any other *.json has figures. May be given again (docs/profiling.md).",
    ),
]
_TRACE = ".trace.json"


def check_profiles(places: Iterable[Path], outputs: Iterable[Path | None] = (), sources: Iterable[Path] = ()) -> None:
    """Refuse what cannot be written, before the work that is to be measured.

    Parameters
    ----------
    places : iterable of Path
        Values of ``--profile``.
    outputs : iterable of Path or None
        Others that the command writes.
    sources : iterable of Path
        What it reads.
    """
    files = [each for each in places if each != STANDARD]
    for each in files:
        if each.suffix not in (".json", ".txt"):
            raise ValueError(f"--profile {each}: its ending says what is written: .txt, .json or {_TRACE}; '-' prints")
    others = {f"output {i}": each for i, each in enumerate(outputs) if each not in (None, STANDARD)}
    check_outputs({**others, **{f"--profile {i + 1}": each for i, each in enumerate(files)}}, sources)


@contextmanager
def profiled(places: Sequence[Path]) -> Iterator[None]:
    """Measure a block, if anybody asked for that; what there is is written after errors and interrupts, too.

    Parameters
    ----------
    places : sequence of Path
        Values of ``--profile``.
    """
    if not places:
        yield
        return
    measured = profile()
    try:
        with measured:
            yield
    finally:
        for each in places:
            _write(measured, each)


def _write(measured: Profile, place: Path) -> None:
    if place == STANDARD:
        say(measured.table())
        return
    if place.name.endswith(_TRACE):
        measured.save_trace(place)
    else:
        write_output(place, (measured.to_json() if place.suffix == ".json" else measured.table()) + "\n")
    say(f"profile: {place}")
