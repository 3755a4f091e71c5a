"""Single weights that were set to zero, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.report.figures import BLUE, GREY, Figure, finished, row_of, safe
from secateur.report.parts import Section, with_rows
from secateur.results import LayerZeros

_NAMED = 5


def zeros_section(zeros: Sequence[LayerZeros]) -> Section:
    """The part of the page; without content where no weights were set to zero one by one."""
    return Section(
        "zeros",
        "Zeros layer by layer",
        texts=(zeros_text(zeros), *_emptied(zeros)) if zeros else (),
        figure=zeros_figure(zeros),
        tables=with_rows(zeros_table(zeros), folded=True),
    )


def zeros_text(zeros: Sequence[LayerZeros]) -> str:
    """How many weights are zero in all; empty without layers."""
    if not zeros:
        return ""
    gone, whole = sum(one.zeros for one in zeros), sum(one.weights for one in zeros)
    layers = "1 layer" if len(zeros) == 1 else f"{len(zeros)} layers"
    return (
        f"{fmt.count(gone)} of {fmt.count(whole)} weights that may be masked are zero "
        f"({fmt.percent(gone / whole)}), in {layers}."
    )


def zeros_table(zeros: Sequence[LayerZeros]) -> Table:
    """Weights, zeros and their share in every layer, in the order of the network."""
    columns = (
        Column("layer", "Layer"),
        Column("weights", "Weights", True),
        Column("zeros", "Zeros", True),
        Column("share", "Share", True),
    )
    rows = tuple(
        (
            _text(one.layer),
            Cell(one.weights, fmt.count(one.weights)),
            Cell(one.zeros, fmt.count(one.zeros)),
            Cell(_share(one), fmt.percent(_share(one))),
        )
        for one in zeros
    )
    caption = (
        "Zeros among the weights of each layer, in the order of the network. Biases, norms and "
        "what the run protects are not masked, and not counted."
    )
    return Table("zeros", caption, columns, rows)


def zeros_figure(zeros: Sequence[LayerZeros]) -> Figure | None:
    """The share of each layer's weights that is left; None without layers."""
    if not zeros:
        return None
    figure = go.Figure()
    row = row_of([one.layer for one in zeros], "Layer, in the order of the network")
    left = [100 * (1 - _share(one)) for one in zeros]
    for name, values, color, thickness in (
        ("all weights", [100.0] * len(zeros), GREY, 0.8),
        ("not zero", left, BLUE, 0.45),
    ):
        figure.add_bar(
            **row.bars(values),
            name=name,
            width=thickness,
            marker={"color": color, "line": {"width": 0}},
            opacity=0.55 if color == GREY else 1,
            customdata=[
                [
                    safe(one.layer),
                    fmt.count(one.zeros),
                    fmt.count(one.weights),
                    fmt.percent(_share(one)),
                ]
                for one in zeros
            ],
            hovertemplate=(
                "%{customdata[0]}<br>%{customdata[1]} of %{customdata[2]} weights are zero, "
                "%{customdata[3]}<extra></extra>"
            ),
        )
    size = {"title": {"text": "Share of the layer's weights"}, "ticksuffix": " %"}
    figure.update_layout(barmode="overlay", hovermode="closest", **row.axes(size))
    most, least = max(zeros, key=_share), min(zeros, key=_share)
    caption = (
        f"What is left of each layer's weights. Most zeros: {most.layer}, "
        f"{fmt.percent(_share(most), 1)}; fewest: {least.layer}, {fmt.percent(_share(least), 1)}."
    )
    return finished("zeros", "Weights left in each layer", caption, row.height, figure)


def _emptied(zeros: Sequence[LayerZeros]) -> tuple[str, ...]:
    """Name the layers that have no weight left, which is rarely what was meant."""
    names = [one.layer for one in zeros if one.zeros == one.weights]
    if not names:
        return ()
    return (f"No weight is left in {fmt.listed(names, _NAMED)}.",)


def _share(one: LayerZeros) -> float:
    return one.zeros / one.weights if one.weights else 0.0
