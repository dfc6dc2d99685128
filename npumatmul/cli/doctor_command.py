"""`npumatmul doctor`: what makes this machine's NPU slow or broken, and what to do about it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from npumatmul.cli.terminal import results
from npumatmul.doctor import Level, diagnose

__all__ = ["doctor_command"]

_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.WARNING: "WARNING", Level.ERROR: "ERROR"}
_COLOURS = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.ERROR: "red"}
_INDENT = 9
#: Lines that are wider are hard to read.
_WIDEST = 100


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    root: Annotated[Path, typer.Option(help="Look at a copy of a machine's files below this folder.")] = Path("/"),
    run: Annotated[bool, typer.Option("--run/--no-run", help="Also compute a few products.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
) -> None:
    """Look for what makes an NPU slow or broken: each finding says what is so, why it matters, and what to do.

    The exit code is 1 if something is broken, and 0 otherwise.
    """
    report = diagnose(root, tries=run)
    if as_json:
        print(report.to_json())
    else:
        page = results()
        width = min(page.width, _WIDEST)
        for each in report.findings:
            line = Text(f"{_MARKS[each.level]:<{_INDENT}}", _COLOURS[each.level])
            line.append(_wrapped(f"{each.subject}: {each.what}", width), "default")
            page.print(line, soft_wrap=True)
            if each.why:
                page.print(" " * _INDENT + _wrapped(each.why, width), soft_wrap=True)
            if each.command:
                page.print(" " * _INDENT + "-> " + each.command, soft_wrap=True)
        counts = {level: sum(each.level is level for each in report.findings) for level in Level}
        told = [
            f"{counts[level]} {level.name.lower()}{'s' if counts[level] != 1 else ''}"
            for level in (Level.ERROR, Level.WARNING, Level.NOTE)
            if counts[level]
        ]
        page.print("\n" + (", ".join(told) or "all is well"), soft_wrap=True)
    if report.worst >= (Level.WARNING if strict else Level.ERROR):
        raise typer.Exit(1)


def _wrapped(text: str, width: int) -> str:
    return f"\n{' ' * _INDENT}".join(textwrap.wrap(text, max(40, width - _INDENT), break_on_hyphens=False))
