"""What the command line shows: bars while it works, tables when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from secateur.comparison import Comparison, setups
from secateur.results import Result
from secateur.tuning_results import Tuning

WIDE = 110
"""Columns that a table with its intervals takes; on a narrower screen they stay in the report."""


def bars() -> Progress:
    """Make progress bars with the time that is left; on stderr, and only on a real screen."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def show_result(result: Result, folder: Path) -> None:
    """Print the table of a run, its proof, its notes and where its report is."""
    from secateur.report import table
    from secateur.report.summary import proof_of

    console = Console()
    drawn = _table(result.title)
    drawn.add_column("")
    for heading in ("dense", "pruned", "change"):
        drawn.add_column(heading, justify="right")
    for row in table(result):
        values = [row.dense, row.pruned, row.change]
        if console.width < WIDE:
            values = [value.partition(" (")[0] for value in values]
        drawn.add_row(row.label, *values)
    console.print(drawn)
    _line(console, f"proof:  {proof_of(result)}")
    for note in result.notes:
        _line(console, f"note:   {note}")
    _line(console, f"report: {folder / 'report.html'}")


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Print what a study found, the frontier for MACs, and where its report is."""
    from secateur.report.comparison_page import summary
    from secateur.report.comparison_tables import name_of, varying

    console = Console()
    found = setups(comparison.trials)
    size, shown = comparison.dense.size, varying(comparison.trials)
    drawn = _table(comparison.title)
    drawn.add_column("on the frontier for MACs", overflow="fold")
    for heading in ("accuracy", "params", "MACs", "test"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    best = [setup for setup in found if "macs" in setup.frontiers]
    for setup in sorted(best, key=lambda one: one.macs):
        drawn.add_row(
            name_of(setup.first, shown),
            f"{setup.accuracy:.2%}",
            f"{setup.params / size.params:.1%}",
            f"{setup.macs / size.macs:.1%}",
            "" if setup.test is None else f"{setup.test:.2%}",
        )
    console.print(drawn)
    for line in summary(comparison, found):
        _line(console, f"{line.label + ':':<10}{line.text}")
    _line(console, f"report:   {folder / 'report.html'}")


def show_tuning(tuning: Tuning, folder: Path) -> None:
    """Print the best settings, what the dense network made of them, and where the report is."""
    from secateur.report.tuning_page import summary
    from secateur.report.tuning_tables import best_table, dense_table

    console = Console()
    for table in (best_table(tuning), dense_table(tuning)):
        drawn = _table(table.caption)
        for column in table.columns:
            drawn.add_column(column.title, justify="right" if column.numeric else "left")
        for row in table.rows:
            drawn.add_row(*(cell.text for cell in row))
        console.print(drawn)
    for line in summary(tuning):
        _line(console, f"{line.label + ':':<10}{line.text}")
    _line(console, f"report:   {folder / 'report.html'}")


def show_dry_run(trials: Sequence[str], seconds: tuple[float, float], workers: int) -> None:
    """Print the trials of a study and about how long they take, at least and at most."""
    from secateur.report.format import duration

    console = Console()
    for number, trial in enumerate(trials):
        _line(console, f"{number:>5}  {trial}")
    processes = "1 process" if workers == 1 else f"{workers} processes"
    _line(
        console,
        f"{len(trials)} trials, about {duration(seconds[0])} to {duration(seconds[1])} with "
        f"{processes}: as fast as the MACs left allow, or as slow as the dense network now",
    )


def show_inspection(found: dict[str, Any]) -> None:
    """Print what :func:`secateur.study.inspection.inspected` found."""
    console = Console()
    groups = _table(f"{len(found['groups'])} groups of {found['model']}")
    groups.add_column("group", no_wrap=True)
    for heading in ("kind", "also from", "into"):
        groups.add_column(heading, overflow="fold")
    for heading in ("size", "params", "MACs"):
        groups.add_column(heading, justify="right", no_wrap=True)
    for group in found["groups"]:
        # A group is named after the first module that its units come out of.
        made = [name for name in group["out_of"] if name != group["name"]]
        shares = (f"{group[key]:.1%}" for key in ("params_share", "macs_share"))
        groups.add_row(
            group["name"],
            group["kind"],
            _few(made),
            _few(group["into"]),
            str(group["size"]),
            *shares,
        )
    console.print(groups)
    if found["pinned"]:
        pinned = _table("pinned")
        pinned.add_column("where", overflow="fold")
        pinned.add_column("why")
        for reason in dict.fromkeys(pin["reason"] for pin in found["pinned"]):
            places = [p["where"] for p in found["pinned"] if p["reason"] == reason]
            pinned.add_row(_few(places, most=4), reason)
        console.print(pinned)
    for note in found["notes"]:
        _line(console, f"note: {note}")
    _line(
        console,
        f"{found['params']:,} parameters and {found['macs']:,} MACs for a sample of "
        f"{found['input']}; the shares go when one unit of the group stays",
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _few(names: Sequence[str], most: int = 1) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} +{len(names) - most}" if len(names) > most else shown
