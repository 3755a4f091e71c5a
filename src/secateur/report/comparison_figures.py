"""Figures of a comparison: frontiers, accuracy against what was removed, and mixtures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from secateur.comparison import Comparison, Setup, Trial
from secateur.report import format as fmt
from secateur.report.comparison_tables import COST_WORDS, asked_of, name_of, said, varying
from secateur.report.figures import (
    DASHES,
    GREY,
    LEGEND_LINES,
    PALETTE,
    SYMBOLS,
    VERMILLION,
    Figure,
    finished,
    finite,
    safe,
    unique,
)

SPOKEN = 8
"""Setups or lines that are read aloud; the table has all."""


def pareto_figure(comparison: Comparison, setups: Sequence[Setup], cost: str) -> Figure | None:
    """Accuracy against one cost: the frontier joined by a line, what is dominated faint.

    Marks tell criteria apart, or the first thing that varies where there is one criterion alone.
    """
    known = [setup for setup in setups if setup.cost(cost) is not None]
    if not known:
        return None
    shown = varying([setup.first for setup in known])
    by, _ = _told_by(known)
    kinds: dict[str, list[Setup]] = {}
    for setup in known:
        kinds.setdefault(said(setup.first, by), []).append(setup)
    figure = go.Figure()
    best = sorted((s for s in known if cost in s.frontiers), key=lambda s: float(s.cost(cost) or 0))
    figure.add_scatter(
        name="frontier",
        mode="lines",
        line={"color": GREY, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
        x=[_share(comparison, setup, cost) for setup in best],
        y=[100 * setup.accuracy for setup in best],
    )
    for rank, (kind, mine) in enumerate(kinds.items()):
        on = [cost in setup.frontiers for setup in mine]
        figure.add_scatter(
            name=safe(kind),
            mode="markers",
            marker={
                "color": PALETTE[rank % len(PALETTE)],
                "symbol": SYMBOLS[rank % len(SYMBOLS)],
                "size": [11 if good else 7 for good in on],
                "opacity": [1.0 if good else 0.5 for good in on],
            },
            **_points(comparison, mine, cost, shown),
        )
    figure.add_scatter(
        name="dense",
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": GREY},
        x=[100],
        y=[100 * comparison.validation.accuracy],
        hovertemplate="dense, %{y:.2f} %<extra></extra>",
    )
    chosen = [setup for setup in known if comparison.chosen in [t.number for t in setup.trials]]
    if chosen:
        ring = {"symbol": "circle-open", "size": 20, "color": VERMILLION, "line": {"width": 3}}
        figure.add_scatter(
            name="chosen", mode="markers", marker=ring, **_points(comparison, chosen, cost, shown)
        )
    what = {
        "latency": "Time of a pass",
        "bytes": "Weight file, gzipped",
        "params": "Parameters",
        "macs": "MACs",
    }[cost]
    figure.update_layout(
        xaxis={
            "title": {"text": f"{what}, share of the dense network"},
            "ticksuffix": " %",
            "rangemode": "tozero",
        },
        yaxis={"title": {"text": "Accuracy on validation"}, "ticksuffix": " %"},
        showlegend=len(kinds) <= LEGEND_LINES,
        hovermode="closest",
        legend={"itemsizing": "constant"},
    )
    caption = (
        "Large marks joined by the dotted line are the frontier: no other setup is as accurate for "
        "as little. Faint marks are dominated. The star is the dense network."
    )
    if chosen:
        caption += " The ring marks what was chosen."
    spoken = "; ".join(
        f"{name_of(setup.first, shown)}: {fmt.percent(setup.accuracy)} at "
        f"{_share(comparison, setup, cost):.1f} %"
        for setup in best[:SPOKEN]
    )
    more = f"; and {len(best) - SPOKEN} more in the table" if len(best) > SPOKEN else ""
    title = f"Accuracy against {COST_WORDS[cost]}"
    drawn = finished(f"pareto-{cost}", title, caption, 500, figure)
    return dataclasses.replace(drawn, details=f"On the frontier: {spoken}{more}.")


def _told_by(setups: Sequence[Setup]) -> tuple[str, tuple[str, ...]]:
    """What colours and markers stand for, and what is left to dashes.

    The criterion, or the first setting that varies where there is one criterion alone.
    """
    shown = varying([setup.first for setup in setups])
    if shown and len({setup.first.criterion for setup in setups}) == 1:
        return shown[0], shown[1:]
    return "criterion", shown


def _others(trial: Trial, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(said(trial, key) for key in keys)


def curves_figure(
    setups: Sequence[Setup], target: str, measure: str = "accuracy", *, mixed: bool = False
) -> Figure | None:
    """Accuracy or loss against how much was asked to go, one line for all that is else the same.

    With ``mixed``, the mixtures by share are drawn, in colours from the first order alone to the
    second alone; without, everything else is.
    """
    mine = [
        setup
        for setup in setups
        if setup.first.target == target and (setup.first.share is not None) == mixed
    ]
    if not mine:
        return None
    shown = varying([setup.first for setup in setups])
    lines: dict[tuple[Any, ...], list[Setup]] = {}
    for setup in mine:
        lines.setdefault(setup.first.line, []).append(setup)
    by, others = _told_by(setups)
    kinds = unique(said(members[0].first, by) for members in lines.values())
    rests = list(dict.fromkeys(_others(members[0].first, others) for members in lines.values()))
    share = measure == "accuracy"
    figure = go.Figure()
    for unsorted in lines.values():
        members = sorted(unsorted, key=lambda setup: _gone(setup))
        first = members[0].first
        rank, dash = kinds.index(said(first, by)), rests.index(_others(first, others))
        color = PALETTE[rank % len(PALETTE)]
        if mixed:
            color = _between(first.share or 0.0)
        figure.add_scatter(
            name=safe(_line_name(members[0], shown)),
            mode="lines+markers",
            line={"color": color, "dash": DASHES[dash % len(DASHES)]},
            marker={"symbol": SYMBOLS[rank % len(SYMBOLS)], "size": 7},
            x=[100 * _gone(setup) for setup in members],
            y=[100 * setup.accuracy if share else finite(setup.loss) for setup in members],
            customdata=[
                [safe(name_of(setup.first, shown)), fmt.percent(setup.accuracy),
                 fmt.decimal(setup.loss)]
                for setup in members
            ],
            hovertemplate=(
                "<b>%{customdata[0]}</b><br>accuracy %{customdata[1]}, loss %{customdata[2]}"
                "<extra></extra>"
            ),
            **(_spread(members) if share else {}),
        )  # fmt: skip
    what = "Sparsity (removed)" if target == "sparsity" else f"{COST_WORDS[target]} to go"
    kind = "Accuracy" if share else "Loss"
    figure.update_layout(
        xaxis={
            "title": {"text": what[0].upper() + what[1:]},
            "ticksuffix": " %",
            "rangemode": "tozero",
        },
        yaxis={
            "title": {"text": f"{kind} on validation"},
            **({"ticksuffix": " %"} if share else {"rangemode": "tozero"}),
        },
        showlegend=len(lines) <= LEGEND_LINES,
    )
    caption = f"One colour and marker for each {by}."
    if mixed:
        caption = "One line for each share (delta), from the first order alone to the second alone."
    if len(rests) > 1:
        caption += f" Dashes tell the {', '.join(others)} apart."
    if share and any(len(setup.trials) > 1 for setup in mine):
        caption += " Bars reach from the least to the greatest accuracy over the seeds."
    if len(lines) > LEGEND_LINES:
        caption += " There are too many lines for a legend: point at one, or open the table."
    return _with_words(figure, lines, shown, caption, measure, target, mixed)


def _with_words(
    figure: go.Figure,
    lines: Mapping[tuple[Any, ...], Sequence[Setup]],
    shown: Sequence[str],
    caption: str,
    measure: str,
    target: str,
    mixed: bool,
) -> Figure:
    """Name a figure of curves, and say where each line begins and ends."""

    def value(setup: Setup) -> str:
        return fmt.percent(setup.accuracy) if measure == "accuracy" else fmt.decimal(setup.loss)

    ordered = [sorted(members, key=_gone) for members in lines.values()]
    spoken = "; ".join(
        f"{_line_name(members[0], shown)}: {value(members[0])} to {value(members[-1])}"
        for members in ordered[:SPOKEN]
    )
    against = "sparsity" if target == "sparsity" else COST_WORDS[target]
    title = f"{measure.capitalize()} against {against} asked" + (", by share" if mixed else "")
    name = {"accuracy": "curves", "loss": "losses"}[measure] + ("-mixed" if mixed else "")
    drawn = finished(f"{name}-{target}", title, caption, 480, figure)
    return dataclasses.replace(drawn, details=f"From the least removed to the most. {spoken}.")


def _between(share: float) -> str:
    """A colour from blue over grey to orange: even in brightness, safe for colour-blind readers."""
    stops = ((0.0, (0, 114, 178)), (0.5, (150, 150, 150)), (1.0, (213, 94, 0)))
    low, high = (stops[0], stops[1]) if share <= 0.5 else (stops[1], stops[2])
    part = (share - low[0]) / (high[0] - low[0])
    mixed = (round(a + (b - a) * part) for a, b in zip(low[1], high[1], strict=True))
    return f"rgb({', '.join(map(str, mixed))})"


def mixtures_figure(setups: Sequence[Setup]) -> Figure | None:
    """Accuracy against the share of the second order in a mixture, one line a target."""
    mine = [setup for setup in setups if setup.first.share is not None]
    lines: dict[tuple[Any, ...], list[Setup]] = {}
    for setup in mine:
        first = setup.first
        lines.setdefault(
            (_without_share(first), first.target, first.value, *first.line[1:]), []
        ).append(setup)
    if not any(len(members) > 1 for members in lines.values()):
        return None
    shown = varying([setup.first for setup in mine])
    several = len({key[0] for key in lines}) > 1
    figure = go.Figure()
    for rank, members in enumerate(lines.values()):
        members = sorted(members, key=lambda setup: setup.first.share or 0)
        label = _mixture_name(members[0], shown, several)
        figure.add_scatter(
            name=safe(label),
            mode="lines+markers",
            line={"color": PALETTE[rank % len(PALETTE)], "dash": DASHES[rank // 6 % len(DASHES)]},
            marker={"symbol": SYMBOLS[rank % len(SYMBOLS)], "size": 7},
            x=[setup.first.share for setup in members],
            y=[100 * setup.accuracy for setup in members],
            hovertemplate=f"{safe(label)}<br>share %{{x}}, accuracy %{{y:.2f}} %<extra></extra>",
            **_spread(members),
        )
    figure.update_layout(
        xaxis={"title": {"text": "Share of the second order (delta)"}},
        yaxis={"title": {"text": "Accuracy on validation"}, "ticksuffix": " %"},
        showlegend=len(lines) <= LEGEND_LINES,
    )
    caption = "At 0 the first criterion decides alone, at 1 the second; one line for each target."
    return finished("mixtures", "Mixtures of two orders", caption, 460, figure)


def _points(
    comparison: Comparison, setups: Sequence[Setup], cost: str, shown: Sequence[str]
) -> dict[str, Any]:
    return {
        "x": [round(_share(comparison, setup, cost), 4) for setup in setups],
        "y": [round(100 * setup.accuracy, 4) for setup in setups],
        "customdata": [
            [
                safe(name_of(setup.first, shown)),
                fmt.short(setup.params),
                fmt.short(setup.macs),
                "on the frontier" if cost in setup.frontiers else "dominated",
            ]
            for setup in setups
        ],
        "hovertemplate": (
            "<b>%{customdata[0]}</b><br>accuracy %{y:.2f} % at %{x:.1f} %<br>"
            "%{customdata[1]} parameters, %{customdata[2]} MACs; %{customdata[3]}<extra></extra>"
        ),
    }


def _share(comparison: Comparison, setup: Setup, cost: str) -> float:
    """The cost in per cent of the dense network's."""
    size = comparison.dense.size
    whole = {"macs": size.macs, "params": size.params, "bytes": size.bytes_gzip, "latency": 1}[cost]
    return 100 * float(setup.cost(cost) or 0) / whole if whole else 0.0


def _gone(setup: Setup) -> float:
    value = setup.first.value
    return value if setup.first.target == "sparsity" else 1 - value


def _line_name(setup: Setup, shown: Sequence[str]) -> str:
    return name_of(setup.first, shown).rpartition(", ")[0]


def _without_share(trial: Trial) -> str:
    """The name of a mixture, which says its share: "delta 0.3 (l1, lrp)" or "own label 0.3"."""
    share = re.escape(f" {trial.share:g}")
    return re.sub(rf"{share}(?= \(|$)", "", trial.criterion, count=1)


def _mixture_name(setup: Setup, shown: Sequence[str], pair: bool) -> str:
    """What is the same along one line of mixtures."""
    trial = setup.first
    parts = [said(trial, key) for key in shown]
    if pair:
        parts.insert(0, _without_share(trial))
    return ", ".join([*parts, asked_of(trial)])


def _spread(setups: Sequence[Setup]) -> dict[str, Any]:
    if all(len(setup.trials) == 1 for setup in setups):
        return {}
    bars = {
        "type": "data",
        "array": [100 * (setup.high - setup.accuracy) for setup in setups],
        "arrayminus": [100 * (setup.accuracy - setup.low) for setup in setups],
        "thickness": 1,
        "width": 3,
    }
    return {"error_y": bars}
