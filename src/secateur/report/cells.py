"""What tables are made of: cells that keep a value beside the text that people read.

So a page can sort by the value, and a file can hold it unrounded.
"""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Row:
    """One line of the main table, ready to print."""

    label: str
    dense: str
    pruned: str
    change: str


@dataclass(frozen=True)
class Cell:
    """A value and the text that stands for it; where it has an interval, its bounds and text.

    A cell with a ``link`` leads there; ``spoken`` then says where to, for who hears the text alone.
    """

    value: Value
    text: str
    detail: str = ""
    bounds: tuple[float, float] | None = None
    link: str = ""
    spoken: str = ""

    @property
    def full(self) -> str:
        """Text and detail in one line."""
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Column:
    """A column: its name in files, its title on the page, and whether it holds numbers."""

    key: str
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A named table; every row has one cell for each column, the first one names the row."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = True


def text_cell(value: str) -> Cell:
    """A cell that is its own text."""
    return Cell(value, value)
