"""Tables that are complete at any width: what does not fit beside the rest stands below it, and no figure is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

__all__ = ["Column", "print_table"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    heading : str
        May have several lines.
    cells : sequence of str
        One for each row.
    left : bool
        Whether it is aligned to the left; figures are not.
    """

    heading: str
    cells: Sequence[str]
    left: bool = False

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes, a border and the spaces beside it included."""
        return max(cell_len(line) for text in (self.heading, *self.cells) for line in text.split("\n")) + 3


def print_table(console: Console, title: str, rows: Column, columns: Sequence[Column]) -> None:
    """Print a table; where it is too wide, several, one below the other, each with what names the rows.

    Parameters
    ----------
    console : Console
    title : str
        Above the first.
    rows : Column
        What names the rows.
    columns : sequence of Column
        The most important first.
    """
    if title:
        console.print(title, soft_wrap=True)
    for piece in _pieces(rows, columns, console.width):
        table = Table()
        for column in (rows, *piece):
            table.add_column(column.heading, justify="left" if column.left else "right", no_wrap=True)
        for cells in zip(*(column.cells for column in (rows, *piece)), strict=True):
            table.add_row(*cells)
        before, needed = console.width, _width(rows, piece)
        console.width = max(before, needed)  # a terminal that is narrower than two columns wraps the lines itself
        console.print(table)
        console.width = before


def _width(rows: Column, columns: Sequence[Column]) -> int:
    return sum(column.width for column in (rows, *columns)) + 1


def _pieces(rows: Column, columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Columns that fit side by side, in their order."""
    pieces: list[list[Column]] = [[]]
    for column in columns:
        if pieces[-1] and _width(rows, [*pieces[-1], column]) > width:
            pieces.append([])
        pieces[-1].append(column)
    return pieces
