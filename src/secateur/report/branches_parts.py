"""Residual branches that training could let go: which ones went, and the factors of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.report.figures import BLUE, VERMILLION, Figure, finished, finite, row_of, safe
from secateur.report.parts import Section, with_rows
from secateur.results import Branch

_NAMED = 5


def branches_section(branches: Sequence[Branch]) -> Section:
    """The part of the page; without content where no branch could go."""
    return Section(
        "branches",
        "Residual branches",
        texts=(branches_text(branches),) if branches else (),
        figure=branches_figure(branches),
        tables=with_rows(branches_table(branches), folded=len(branches) > _NAMED),
    )


def branches_text(branches: Sequence[Branch]) -> str:
    """Which branches went, and what they held; empty without branches."""
    if not branches:
        return ""
    had = [one for one in branches if one.factor is not None]
    gone = [one for one in branches if one.gone]
    are = "is" if len(gone) == 1 else "are"
    text = f"{len(gone)} of {len(had)} residual branches with a factor {are} gone"
    text = f"{text}: {fmt.listed([one.name for one in gone], _NAMED)}" if gone else text
    params = [one.params for one in gone if one.params is not None]
    if params:
        text = f"{text}, with {fmt.count(sum(params))} parameters of the dense network"
    without = len(branches) - len(had)
    if without == 1:
        text = f"{text}. 1 branch had no factor and stays"
    elif without:
        text = f"{text}. {without} branches had no factor and stay"
    return f"{text}."


def branches_table(branches: Sequence[Branch]) -> Table:
    """What became of every branch; the reason is there where one had no factor."""
    reasons = any(one.reason for one in branches)
    columns = (
        Column("branch", "Branch"),
        Column("gone", "Fate"),
        Column("factor", "Factor", True),
        Column("params", "Parameters", True),
        *((Column("reason", "Why without a factor"),) if reasons else ()),
    )
    rows = tuple(
        (
            _text(one.name),
            Cell(one.gone, "gone" if one.gone else "kept"),
            Cell(one.factor, "none" if one.factor is None else _factor(one.factor)),
            Cell(one.params, "" if one.params is None else fmt.count(one.params)),
            *((_text(one.reason),) if reasons else ()),
        )
        for one in branches
    )
    caption = (
        "Every residual branch, with its factor at the end of the sparse training: 1 at the "
        "beginning; at exactly zero the branch goes. Parameters are those of the dense network."
    )
    return Table("branches", caption, columns, rows)


def branches_figure(branches: Sequence[Branch]) -> Figure | None:
    """The factor of every branch that had one; None where none is left to compare."""
    had = [one for one in branches if one.factor is not None]
    if all(one.gone for one in had):
        return None
    figure = go.Figure()
    row = row_of([one.name for one in had], "Branch, in the order of the network")
    told = [[safe(one.name), _factor(one.factor or 0.0)] for one in had]
    figure.add_bar(
        **row.bars([None if one.gone else finite(one.factor or 0.0) for one in had]),
        name="kept",
        width=0.6,
        marker={"color": BLUE, "line": {"width": 0}},
        customdata=told,
        hovertemplate="%{customdata[0]}<br>kept, factor %{customdata[1]}<extra></extra>",
    )
    figure.add_scatter(
        **row.at([0.0 if one.gone else None for one in had]),
        name="gone",
        mode="markers",
        marker={"color": VERMILLION, "symbol": "x", "size": 10},
        cliponaxis=False,
        customdata=told,
        hovertemplate="%{customdata[0]}<br>gone, factor 0<extra></extra>",
    )
    size = {"title": {"text": "Factor at the end"}}
    figure.update_layout(hovermode="closest", showlegend=True, **row.axes(size))
    return finished("branches", "Factors of the branches", _caption(had), row.height, figure)


def _caption(had: Sequence[Branch]) -> str:
    """How to read the figure, and how far from zero the rest is."""
    text = "Factor of each residual branch at the end of the sparse training, 1 at its beginning."
    kept = [one for one in had if not one.gone]
    least = min(kept, key=lambda one: abs(one.factor or 0.0))
    most = max(kept, key=lambda one: abs(one.factor or 0.0))
    return (
        f"{text} Of those kept, {least.name} is nearest to zero ({_factor(least.factor or 0.0)}), "
        f"{most.name} farthest from it ({_factor(most.factor or 0.0)})."
    )


def _factor(value: float) -> str:
    return fmt.decimal(value) if value else "0"
