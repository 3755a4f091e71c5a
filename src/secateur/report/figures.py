"""Figures of a result: typed records first, then plotly.

Each figure carries a text alternative that says in words what the drawing shows.
Colours of text, axes and grid are left to the page, which knows light from dark;
the lines use the palette of Okabe and Ito (2008), which colour-blind readers can
tell apart, and differ in marker and dash as well.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from secateur.report import captions
from secateur.report import format as fmt
from secateur.report.curves import curves
from secateur.results import Epoch, Point, Result, Width

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8C8C8C"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")

# More layers than this have no room for their names beside the bars.
NAMED_LAYERS = 30
# More lines than this would make a legend that nobody follows.
LEGEND_LINES = 16


@dataclass(frozen=True)
class Figure:
    """A drawing: plotly's data and layout as plain data, and the same in words.

    The caption is for everybody; the details are read aloud to who cannot see the drawing.
    """

    name: str
    title: str
    caption: str
    height: int
    spec: dict[str, Any]
    details: str = ""


@dataclass(frozen=True)
class Places:
    """Where bars of named things stand: one below the other with their names, or in a numbered row.

    Attributes:
        along: the axis that counts the things.
        across: the axis of their values.
        axis: plotly's settings of ``along``.
        height: of a figure with them.
        count: of the things.
    """

    along: str
    across: str
    axis: dict[str, Any]
    height: int
    count: int

    def bars(self, values: Sequence[float | None]) -> dict[str, Any]:
        """Values as data of bars, one for each thing."""
        return {**self.at(values), "orientation": "h" if self.along == "y" else "v"}

    def at(self, values: Sequence[float | None]) -> dict[str, Any]:
        """Values as data of marks; None leaves a place empty."""
        return {self.along: list(range(1, self.count + 1)), self.across: values}

    def axes(self, values: dict[str, Any]) -> dict[str, Any]:
        """Both axes as parts of a layout, that of the values with these settings."""
        return {f"{self.along}axis": self.axis, f"{self.across}axis": values}


def row_of(names: Sequence[str], title: str) -> Places:
    """Find places for so many things; ``title`` is said where there is no room for names."""
    axis: dict[str, Any] = {"title": {"text": ""}, "showgrid": False, "zeroline": False}
    if len(names) > NAMED_LAYERS:
        numbered = axis | {"title": {"text": title}, **_steps(len(names))}
        return Places("x", "y", numbered, 420, len(names))
    labels = [safe(name) for name in short_names(names)]
    ticks = {"tickvals": list(range(1, len(names) + 1)), "ticktext": labels}
    named = axis | ticks | {"autorange": "reversed"}
    return Places("y", "x", named, 140 + 26 * len(names), len(names))


def accuracy_figure(result: Result) -> Figure | None:
    """Accuracy against sparsity, one line per criterion and scope; None without points."""
    lines = curves(result.points)
    if not lines:
        return None
    splits = unique(point.split for point in result.points)
    figure = go.Figure()
    criteria = unique(line.criterion for line in lines)
    scopes = unique(line.scope for line in lines)
    for line in lines:
        rank = criteria.index(line.criterion)
        look = {
            "color": PALETTE[rank % len(PALETTE)],
            "dash": DASHES[scopes.index(line.scope) % len(DASHES)],
        }
        marker = {"symbol": SYMBOLS[rank % len(SYMBOLS)], "size": 8}
        figure.add_scatter(
            name=safe(line.name),
            mode="lines+markers",
            line=look,
            marker=marker,
            **_point_data(line.points),
        )
    chosen = tuple(point for point in result.points if point.chosen)
    if chosen:
        ring = {"symbol": "circle-open", "size": 20, "color": VERMILLION, "line": {"width": 3}}
        figure.add_scatter(name="chosen", mode="markers", marker=ring, **_point_data(chosen))
    split = " and ".join(splits)
    figure.update_layout(
        xaxis={
            "title": {"text": "Sparsity (units removed)"},
            "ticksuffix": " %",
            "rangemode": "tozero",
        },
        yaxis={"title": {"text": f"Accuracy on {safe(split)}"}, "ticksuffix": " %"},
    )
    legend = len(lines) <= LEGEND_LINES
    figure.update_layout(showlegend=legend)
    caption = captions.explain_curves(chosen, scopes, legend=legend)
    drawn = finished("accuracy", "Accuracy against sparsity", caption, 480, figure)
    return dataclasses.replace(drawn, details=captions.say_curves(lines, split))


def widths_figure(widths: Sequence[Width]) -> Figure | None:
    """Width of each layer before and after; None without widths."""
    if not widths:
        return None
    figure = go.Figure()
    row = row_of([width.layer for width in widths], "Layer, in the order of the network")
    for name, values, color, thickness in (
        ("dense", [width.dense for width in widths], GREY, 0.8),
        ("pruned", [width.pruned for width in widths], BLUE, 0.45),
    ):
        figure.add_bar(
            **row.bars(values),
            name=name,
            width=thickness,
            marker={"color": color, "line": {"width": 0}},
            opacity=0.55 if name == "dense" else 1,
            customdata=[
                [safe(width.layer), fmt.count(width.dense), fmt.count(width.pruned)]
                for width in widths
            ],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]} to %{customdata[2]}<extra></extra>",
        )
    size = {"title": {"text": "Width"}, "rangemode": "tozero"}
    figure.update_layout(barmode="overlay", hovermode="closest", **row.axes(size))
    text = captions.say_widths(widths)
    return finished("widths", "Widths before and after", text, row.height, figure)


def training_figure(history: Sequence[Epoch]) -> Figure | None:
    """Losses and validation accuracy over all epochs of all phases; None without history."""
    if not history:
        return None
    figure = go.Figure()
    steps = list(range(1, len(history) + 1))
    customdata = [[safe(one.phase), one.epoch, fmt.tiny(one.lr)] for one in history]
    hover = "%{customdata[0]}, epoch %{customdata[1]}, rate %{customdata[2]}"
    for name, values, color, symbol, dash, axis in (
        ("training loss", [one.train_loss for one in history], VERMILLION, "square", "dash", "y2"),
        ("validation loss", [one.val_loss for one in history], BLUE, "circle", "solid", "y2"),
        (
            "validation accuracy",
            [100 * one.val_accuracy for one in history],
            GREEN,
            "diamond",
            "solid",
            "y",
        ),
    ):
        value = "%{y:.2f} %" if axis == "y" else "%{y:.4g}"
        figure.add_scatter(
            x=steps,
            y=[finite(one) for one in values],
            yaxis=axis,
            name=name,
            mode="lines+markers",
            line={"color": color, "dash": dash},
            marker={"symbol": symbol, "size": 6},
            customdata=customdata,
            hovertemplate=f"{name} {value}<br>{hover}<extra></extra>",
        )
    starts = _phase_starts(history)
    figure.update_layout(
        xaxis={
            "title": {"text": "Epoch, over all phases"},
            "anchor": "y2",
            "zeroline": False,
            **_steps(len(history)),
        },
        yaxis={"title": {"text": "Accuracy"}, "ticksuffix": " %", "domain": [0.56, 1]},
        yaxis2={"title": {"text": "Loss"}, "domain": [0, 0.48], "rangemode": "tozero"},
        shapes=[_divider(step) for step, _ in starts[1:]],
        annotations=[_phase_label(step, phase) for step, phase in starts],
    )
    return finished("training", "Training", captions.say_training(history), 540, figure)


def finished(name: str, title: str, text: str, height: int, figure: go.Figure) -> Figure:
    """Add what all figures share and turn plotly's object into plain data."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 36, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={
            "orientation": "h",
            "xref": "container",
            "yref": "container",
            "x": 0,
            "y": 0,
            "yanchor": "bottom",
        },
        # A dragging finger must scroll the page; zooming has its own button.
        dragmode=False,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return Figure(name, title, text, height, json.loads(figure.to_json()))


def safe(text: str) -> str:
    """``text`` with nothing that plotly would take for a tag."""
    return html.escape(text, quote=False)


def finite(value: float) -> float | None:
    """``value``, or None, which plotly leaves a gap for."""
    return value if math.isfinite(value) else None


def unique(names: Any) -> list[str]:
    """Every name once, in the order of their first appearance."""
    return list(dict.fromkeys(names))


def short_names(names: Sequence[str], longest: int = 28) -> list[str]:
    """Names that fit beside a bar: without the dotted parts all share, and the end of the rest.

    Where that leaves two names alike, each gets its number.
    """
    if all(len(name) <= longest for name in names):
        return list(names)
    parts = [name.split(".") for name in names]
    shared = 0
    # The last part always stays, so that no name becomes empty.
    while len({tuple(one[: shared + 1]) for one in parts}) == 1 and shared + 1 < min(
        map(len, parts)
    ):
        shared += 1
    rest = [".".join(one[shared:]) for one in parts]
    short = [name if len(name) <= longest else f"...{name[3 - longest :]}" for name in rest]
    if len(set(short)) < len(short):
        return [f"{number} {name}" for number, name in enumerate(short, start=1)]
    return short


def _steps(number: int) -> dict[str, Any]:
    """An axis that counts from 1 to ``number`` in whole steps, with at most a dozen ticks."""
    step = next((one for one in (1, 2, 5, 10, 20, 50, 100) if number <= 12 * one), number // 10)
    first = 1 if step == 1 else step
    return {"range": [0.4, number + 0.6], "tick0": first, "dtick": step}


def _point_data(points: Sequence[Point]) -> dict[str, Any]:
    return {
        "x": [100 * point.sparsity for point in points],
        "y": [finite(100 * point.accuracy) for point in points],
        "customdata": [
            [
                safe(f"{point.criterion}, {point.scope}"),
                fmt.percent(point.sparsity, 1),
                fmt.percent(point.accuracy),
                fmt.decimal(point.loss),
                fmt.short(point.params),
                fmt.short(point.macs),
            ]
            for point in points
        ],
        "hovertemplate": (
            "<b>%{customdata[0]}</b> at %{customdata[1]}<br>accuracy %{customdata[2]}, "
            "loss %{customdata[3]}<br>%{customdata[4]} parameters, %{customdata[5]} MACs"
            "<extra></extra>"
        ),
    }


def _phase_starts(history: Sequence[Epoch]) -> list[tuple[int, str]]:
    """The steps, counted from 1, at which a phase begins."""
    return [
        (step, epoch.phase)
        for step, epoch in enumerate(history, start=1)
        if step == 1 or epoch.phase != history[step - 2].phase
    ]


def _divider(step: int) -> dict[str, Any]:
    place = step - 0.5
    line = {"color": GREY, "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "x0": place,
        "x1": place,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def _phase_label(step: int, phase: str) -> dict[str, Any]:
    return {
        "x": step - 0.4,
        "y": 0.52,
        "yref": "paper",
        "text": safe(phase),
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "middle",
    }
