"""The capability table for people: a few tables of fixed width, every figure with the number of its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from npumatmul.chips.cells import Cell

if TYPE_CHECKING:
    from npumatmul.chips.table import Capabilities, TypeCapabilities

__all__ = ["as_text"]

_SIZES = (
    ("K mult.", "k_multiple"), ("K", "k_max"), ("K limit", "k_limit"), ("N mult.", "n_multiple"), ("N", "n_max"),
    ("N limit", "n_limit"), ("M", "m_max"), ("M native", "native_rows"),
)  # fmt: skip
_LAYOUTS = (
    ("A, C normal", "ac_normal"), ("A, C native", "ac_native"), ("A group", "a_group"), ("C group", "c_group"),
    ("B normal", "b_normal"), ("B native", "b_native"), ("B tile", "b_tile"), ("B [N,K]", "b_transposed"),
    ("B segment", "k_segment"),
)  # fmt: skip
_SCALES = (
    ("per layer", "per_layer"), ("per channel", "per_channel"), ("per group", "per_group"),
    ("group sizes", "group_sizes"), ("asymmetric", "asymmetric"), ("asym. groups", "group_asymmetric"),
    ("overflow", "overflow"), ("scales a plain sum", "scales_apply"),
)  # fmt: skip


class _Notes:
    """Numbers sources in the order in which they are met."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def shown(self, cell: Cell[Any]) -> str:
        note = f"{cell.provenance.value}: {cell.source}"
        number = self.numbers.setdefault(note, len(self.numbers) + 1)
        return f"{_value(cell.value)} [{number}]"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if len(value) == 2 else ",".join(map(str, value)) or "none"
    return str(value)


def _table(title: str, header: list[str], lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    shown = (header, *lines) if any(header) else lines
    return [title, *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in shown), ""]


def as_text(table: Capabilities, chip_cells: Sequence[str]) -> str:
    """The table as text, with these cells of the chip; numbers in brackets lead to the sources at its end."""
    notes = _Notes()
    out = [f"{table.soc} under runtime {table.runtime}; sizes in elements, sources in brackets", ""]
    chip = [[name.replace("_", " "), notes.shown(getattr(table, name))] for name in chip_cells]
    out += _table("chip", ["", ""], chip)
    names = [[f"{int(t.code):2} {t.name}", notes.shown(row.supported)] for t, row in table.types.items()]
    out += _table("types", ["", "supported"], names)
    shown = {t: row for t, row in table.types.items() if row.supported.value}
    groups = (("sizes: K, N and M are what one context is given", _SIZES), ("layouts", _LAYOUTS),
              ("scales of B", _SCALES))  # fmt: skip
    for title, columns in groups:
        lines = [
            [f"{int(t.code):2} {t.name}", *(_cell(row, name, notes) for _, name in columns)] for t, row in shown.items()
        ]
        out += _table(title, ["", *(label for label, _ in columns)], lines)
    if table.problems:
        out.append("reported broken")
        for problem in table.problems:
            types = ", ".join(str(int(t.code)) for t in problem.types)
            out.append(f"  {f'type {types}: ' if types else ''}{problem.what} ({problem.source})")
        out.append("")
    out.append("sources")
    out += [f"  [{number}] {note}" for note, number in notes.numbers.items()]
    return "\n".join(out)


def _cell(row: TypeCapabilities, name: str, notes: _Notes) -> str:
    return notes.shown(getattr(row, name))
