"""The parts of a page: sections with texts, a figure and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.report.cells import Table
from secateur.report.figures import Figure


@dataclass(frozen=True)
class Shown:
    """A table on the page; a folded one opens on demand."""

    table: Table
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One part of the page under its own heading; an empty one is left out."""

    name: str
    title: str
    texts: tuple[str, ...] = ()
    figure: Figure | None = None
    tables: tuple[Shown, ...] = ()
    bullets: tuple[str, ...] = ()
    code: str = ""


def with_rows(table: Table, *, folded: bool = False) -> tuple[Shown, ...]:
    """A table to show, or none where it is empty."""
    return (Shown(table, folded),) if table.rows else ()


def has_content(section: Section) -> bool:
    """Whether there is anything to show."""
    parts: Sequence[object] = (section.texts, section.tables, section.bullets, section.code)
    return section.figure is not None or any(parts)
