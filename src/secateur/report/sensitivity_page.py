"""A sensitivity run as one HTML file and its tables as CSV and JSON; from records alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from secateur.report import format as fmt
from secateur.report import tables as tables_of
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.report.export import write_each
from secateur.report.figures import Figure, finished, safe, short_names
from secateur.report.page import render_page, write_page
from secateur.report.parts import Section, Shown, has_content, with_rows
from secateur.report.summary import Line
from secateur.sensitivity_results import Allocation, GroupEntry, Sensitivity

# Cividis is made for readers who confuse red and green, and is even in brightness.
SCALE = "Cividis"
_SPOKEN = 5
_RULES = {
    "sensitivity": "by sensitivity",
    "local": "the same share of each group",
    "global": "all units compete",
}


def write_sensitivity(found: Sensitivity, path: Path) -> Path:
    """Write a run as one self-contained page; the same run gives the same bytes.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist.
    """
    return write_page(render_sensitivity(found), path)


def write_sensitivity_tables(found: Sensitivity, folder: Path) -> tuple[Path, ...]:
    """Write ``groups``, ``cells``, ``allocations`` and ``shares`` as CSV and JSON."""
    every = (groups_table(found), cells_table(found), allocations_table(found), shares_table(found))
    return write_each([table for table in every if table.rows], folder)


def render_sensitivity(found: Sensitivity) -> str:
    """The page of a run as HTML text."""
    verdict = f"{len(found.groups)} groups measured"
    sections = (
        Section("heat", "Accuracy when one group alone is cut", figure=heat_figure(found)),
        Section(
            "allocations",
            "A target divided by sensitivity",
            texts=_division_texts(found),
            tables=(
                *with_rows(allocations_table(found)),
                *with_rows(shares_table(found), folded=True),
            ),
        ),
        Section("groups", "All groups", tables=(Shown(groups_table(found)),)),
        Section("how", "How it was measured", bullets=_how(found)),
        Section("notes", "Notes", bullets=found.notes),
        Section(
            "repeat",
            "To repeat it",
            code=found.command,
            tables=(
                *with_rows(tables_of.asked_table(found.asked), folded=True),
                *with_rows(tables_of.environment_table(found.environment)),
            ),
        ),
    )
    shown = tuple(section for section in sections if has_content(section))
    return render_page(found.title, verdict, True, summary(found), shown)


def summary(found: Sensitivity) -> tuple[Line, ...]:
    """Five lines: asked, dense, most and least sensitive, the allocation."""
    last = found.sparsities[-1]
    ranked = sorted(found.groups, key=lambda entry: found.at(entry.name, last).accuracy)
    asked = found.asked
    return (
        Line(
            "Asked",
            f"{len(found.groups)} groups cut one at a time at {_percents(found.sparsities)}; "
            f"criterion {asked.get('criterion', 'unknown')}.",
        ),
        Line(
            "Dense",
            f"{fmt.percent(found.dense.accuracy)} on {fmt.count(found.dense.count)} images of "
            f"validation, loss {fmt.decimal(found.dense.loss)}.",
        ),
        Line("Most sensitive", _named(found, ranked[:3], last)),
        Line("Least sensitive", _named(found, ranked[::-1][:3], last)),
        Line("Allocation", _allocated(found)),
    )


def heat_figure(found: Sensitivity) -> Figure:
    """Accuracy by group and sparsity: a change in points, dense is 0."""
    names = [entry.name for entry in found.groups]
    change = [
        [100 * (found.at(name, s).accuracy - found.dense.accuracy) for s in found.sparsities]
        for name in names
    ]
    texts = [
        [
            f"{safe(name)}<br>{cell.removed} units gone ({fmt.percent(s, 0)} asked)<br>accuracy "
            f"{fmt.percent(cell.accuracy)}, loss {fmt.decimal(cell.loss)}"
            for s in found.sparsities
            for cell in (found.at(name, s),)
        ]
        for name in names
    ]
    figure = go.Figure(
        go.Heatmap(
            x=[f"{100 * s:g}" for s in found.sparsities],
            y=list(range(1, len(names) + 1)),
            z=change,
            text=texts,
            hovertemplate="%{text}<br>%{z:+.2f} points<extra></extra>",
            colorscale=SCALE,
            zmax=0,
            zmin=min(-1.0, min(map(min, change))),
            xgap=1,
            ygap=1,
            # Below the drawing, so that a phone's width is left to it.
            colorbar={
                "title": {"text": "Accuracy, points to dense", "side": "bottom"},
                "orientation": "h",
                "thickness": 14,
                "y": 0,
                "yanchor": "top",
                "yref": "container",
            },
        )
    )
    labels = [safe(name) for name in short_names(names, longest=24)]
    figure.update_layout(
        xaxis={
            "title": {"text": "% of group gone"},
            "type": "category",
            "showgrid": False,
            "side": "top",
        },
        yaxis={
            "tickvals": list(range(1, len(names) + 1)),
            "ticktext": labels,
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
    )
    caption = (
        "One row a group, in the order of the network; one column a sparsity; nothing is "
        "finetuned. Light is as good as dense, dark is worse."
    )
    drawn = finished(
        "heat", "Accuracy when one group alone is cut", caption, 190 + 22 * len(names), figure
    )
    figure_spec = drawn.spec
    bar = figure_spec["data"][0]["colorbar"]
    bar.update({"yref": "container", "y": 0.0, "yanchor": "bottom"})
    figure_spec["layout"]["margin"] = {"l": 8, "r": 12, "t": 60, "b": 80}
    last = found.sparsities[-1]
    ranked = sorted(found.groups, key=lambda entry: found.at(entry.name, last).accuracy)
    spoken = f"Most sensitive: {_named(found, ranked[:_SPOKEN], last)}"
    return dataclasses.replace(drawn, details=spoken)


def groups_table(found: Sensitivity) -> Table:
    """One row a group: what it is, and the accuracy at each sparsity."""
    columns = (
        Column("group", "Group"),
        Column("kind", "Kind"),
        Column("size", "Units", True),
        Column("macs_share", "MACs", True),
        *(Column(f"accuracy_{100 * s:g}", f"{100 * s:g} %", True) for s in found.sparsities),
    )
    rows = tuple(
        (
            _text(entry.name),
            _text(entry.kind),
            Cell(entry.size, fmt.count(entry.size)),
            Cell(entry.macs_share, fmt.percent(entry.macs_share, 1)),
            *(_accuracy(found, entry, s) for s in found.sparsities),
        )
        for entry in found.groups
    )
    caption = (
        "Accuracy on validation with so much of one group gone. MACs: the share that goes when "
        "one unit of the group stays."
    )
    return Table("groups", caption, columns, rows)


def cells_table(found: Sensitivity) -> Table:
    """Every cell in full, for other programs."""
    columns = (
        Column("group", "Group"),
        Column("sparsity", "Sparsity", True),
        Column("removed", "Units gone", True),
        Column("accuracy", "Accuracy", True),
        Column("loss", "Loss", True),
    )
    rows = tuple(
        (
            _text(cell.group),
            *(
                Cell(value, str(value))
                for value in (cell.sparsity, cell.removed, cell.accuracy, cell.loss)
            ),
        )
        for cell in found.cells
    )
    return Table("cells", "Every group at every sparsity.", columns, rows)


def allocations_table(found: Sensitivity) -> Table:
    """The target met in several ways."""
    columns = (
        Column("rule", "Divided"),
        Column("accuracy", "Accuracy (validation)", True),
        Column("loss", "Loss", True),
        Column("predicted", "Loss predicted", True),
        Column("macs", "MACs", True),
        Column("params", "Parameters", True),
    )
    rows = tuple(_division(found, one) for one in found.allocations)
    caption = "The same target, divided over the groups in three ways; nothing is finetuned."
    return Table("allocations", caption, columns, rows)


def shares_table(found: Sensitivity) -> Table:
    """How much of each group the allocations take."""
    columns = (
        Column("group", "Group"),
        Column("size", "Units", True),
        *(Column(one.rule, one.rule.capitalize(), True) for one in found.allocations),
    )
    rows = tuple(
        (
            _text(entry.name),
            Cell(entry.size, fmt.count(entry.size)),
            *(_gone(one, entry) for one in found.allocations),
        )
        for entry in found.groups
    )
    caption = "Share of each group that goes, by how the target is divided."
    return Table("shares", caption, columns, rows if found.allocations else ())


def _gone(one: Allocation, entry: GroupEntry) -> Cell:
    share = one.removed.get(entry.name, 0) / entry.size
    return Cell(share, fmt.percent(share, 0))


def _division(found: Sensitivity, one: Allocation) -> tuple[Cell, ...]:
    total = found.dense.loss + one.predicted
    return (
        Cell(one.rule, f"{one.rule} ({_RULES[one.rule]})"),
        Cell(one.quality.accuracy, fmt.percent(one.quality.accuracy)),
        Cell(one.quality.loss, fmt.decimal(one.quality.loss)),
        Cell(total, fmt.decimal(total)),
        Cell(one.macs, fmt.percent(one.macs, 1)),
        Cell(one.params, fmt.percent(one.params, 1)),
    )


def _accuracy(found: Sensitivity, entry: GroupEntry, sparsity: float) -> Cell:
    value = found.at(entry.name, sparsity).accuracy
    return Cell(value, fmt.percent(value, 1))


def _percents(shares: Sequence[float]) -> str:
    listed = [f"{100 * share:g}" for share in shares]
    if len(listed) == 1:
        return f"{listed[0]} %"
    return f"{', '.join(listed[:-1])} and {listed[-1]} %"


def _named(found: Sensitivity, entries: Sequence[GroupEntry], sparsity: float) -> str:
    said = [
        f"{entry.name} ({fmt.percent(found.at(entry.name, sparsity).accuracy, 1)})"
        for entry in entries
    ]
    return f"{', '.join(said)} with {100 * sparsity:g} % of it gone."


def _allocated(found: Sensitivity) -> str:
    if not found.allocations:
        return "None was asked for."
    said = [
        f"{one.rule} {fmt.percent(one.quality.accuracy)} with {fmt.percent(one.macs, 1)} of "
        "the MACs"
        for one in found.allocations
    ]
    return f"On validation: {'; '.join(said)}."


def _division_texts(found: Sensitivity) -> tuple[str, ...]:
    if not found.allocations:
        return ()
    return (
        "Units leave in the order of the loss that their group's curve predicts for them, over "
        "what they save; the losses of groups are taken to add up. Where the measured loss is far "
        "above the predicted one, they do not.",
    )


def _how(found: Sensitivity) -> tuple[str, ...]:
    return (
        f"Each cell is a network of its own: one group is cut, on its own, and judged on "
        f"{fmt.count(found.dense.count)} images of validation. The test split was not read.",
        "The first cut of each group was compared with its masked reference in double precision "
        f"(largest relative error {fmt.tiny(found.max_error)}).",
    )
