"""Figures of a tuning run: the surrogate, the trials in order, and how settings transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from secateur.report import format as fmt
from secateur.report.figures import (
    BLUE,
    GREEN,
    GREY,
    SYMBOLS,
    VERMILLION,
    Figure,
    finished,
    finite,
    safe,
)
from secateur.report.tuning_tables import interval, metric_title, said, title_of
from secateur.tuning_results import Tried, Tuning, ranked

_LOOKS = {
    "complete": (BLUE, "circle"),
    "stopped": ("#E69F00", "square"),
    "diverged": (VERMILLION, "x"),
}
_COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")


def surrogate_figure(tuning: Tuning) -> Figure | None:
    """Mean and band of the surrogate along one dimension, with the trials; None without it."""
    band = tuning.band
    if band is None:
        return None
    low = [mean - 2 * spread for mean, spread in zip(band.mean, band.deviation, strict=True)]
    high = [mean + 2 * spread for mean, spread in zip(band.mean, band.deviation, strict=True)]
    places = list(band.places)
    figure = go.Figure()
    figure.add_scatter(
        x=[*places, *reversed(places)], y=[*high, *reversed(low)], fill="toself",
        fillcolor="rgba(86,180,233,0.3)", line={"width": 0}, mode="lines",
        name="mean and two deviations", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=places, y=list(band.mean), mode="lines", name="mean", line={"color": BLUE},
        hovertemplate="%{x:.3g}: %{y:.4g}<extra>mean</extra>",
    )  # fmt: skip
    _add_trials(figure, tuning, [one.values.get(band.name) for one in tuning.tried])
    title = title_of(band.name)
    axis: dict[str, Any] = {"title": {"text": safe(title)}, "zeroline": False}
    if band.log:
        axis |= {"type": "log", "exponentformat": "power", "dtick": _decades(places)}
    value = metric_title(tuning.metric)
    figure.update_layout(xaxis=axis, yaxis={"title": {"text": safe(value)}})
    best = places[_place_of_best(band.mean, tuning.metric)]
    others = len({key for one in tuning.tried for key in one.values}) > 1
    text = (
        f"What the Gaussian process expects of {value} along the {title.lower()}, fitted to all "
        f"{len(tuning.tried)} trials; the mean is best at {said(best)}."
    )
    if others:
        text += " The other dimensions are as in the best trial; the trials differ in them too."
    return finished("surrogate", f"{value} along the {title.lower()}", text, 460, figure)


def trials_figure(tuning: Tuning) -> Figure | None:
    """What each trial came to, in order, and the best so far; None without trials."""
    if not tuning.tried:
        return None
    figure = go.Figure()
    numbers = [one.number for one in tuning.tried]
    better = min if tuning.metric == "loss" else max
    so_far: list[float | None] = []
    for one in tuning.tried:
        known = [value for value in (*so_far[-1:], _value(one)) if value is not None]
        so_far.append(better(known) if known else None)
    figure.add_scatter(
        x=numbers, y=so_far, mode="lines", name="best so far",
        line={"color": GREY, "shape": "hv", "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    _add_trials(figure, tuning, numbers)
    value = metric_title(tuning.metric)
    figure.update_layout(
        xaxis={"title": {"text": "Trial"}, "zeroline": False},
        yaxis={"title": {"text": safe(value)}, "rangemode": "tozero"},
    )
    best = next(iter(ranked(tuning.tried, tuning.metric)), None)
    told = f" The best is trial {best.number} with {best.value:.4g}." if best else ""
    text = f"{value} of every trial, in the order in which they were asked for.{told}"
    return finished("trials", "Trials in order", text, 420, figure)


def transfer_figure(tuning: Tuning) -> Figure | None:
    """Each setting on the proxy and on the dense network; None where it was not measured."""
    if not tuning.transfers:
        return None
    figure = go.Figure()
    for place, one in enumerate(tuning.transfers):
        figure.add_scatter(
            x=[finite(pair.proxy) for pair in one.pairs],
            y=[finite(pair.dense) for pair in one.pairs],
            mode="markers",
            name=safe(one.sparsity),
            marker={
                "symbol": SYMBOLS[place % len(SYMBOLS)],
                "color": _COLOURS[place % len(_COLOURS)],
                "size": 9,
            },
            customdata=[[safe(_setting(pair.values))] for pair in one.pairs],
            hovertemplate="%{customdata[0]}<br>proxy %{x:.4g}, dense %{y:.4g}<extra></extra>",
        )
    metric = metric_title(tuning.transfers[0].metric)
    figure.update_layout(
        showlegend=True,
        xaxis={"title": {"text": f"{safe(metric)} on the proxy"}, "zeroline": False},
        yaxis={"title": {"text": f"{safe(metric)} on the dense network"}, "zeroline": False},
    )
    told = "; ".join(
        f"{one.sparsity}: tau-b {interval(one.kendall)}, rho {interval(one.spearman)}"
        for one in tuning.transfers
    )
    text = f"Each point is one setting, trained on both networks (validation). {told}."
    return finished("transfer", "Do settings transfer?", text, 460, figure)


def _add_trials(figure: go.Figure, tuning: Tuning, along: Sequence[Any]) -> None:
    for state, (color, symbol) in _LOOKS.items():
        chosen = [
            (place, one)
            for place, one in zip(along, tuning.tried, strict=True)
            if one.state == state and place is not None
        ]
        if not chosen:
            continue
        figure.add_scatter(
            x=[place for place, _ in chosen],
            y=[_value(one) if state != "diverged" else _floor(tuning) for _, one in chosen],
            mode="markers",
            name=f"{state} trials",
            marker={"color": color, "symbol": symbol, "size": 8},
            customdata=[[one.number, safe(_setting(one.values)), _zeta(one)] for _, one in chosen],
            hovertemplate=(
                "trial %{customdata[0]}: %{y:.4g}<br>%{customdata[1]}<br>zeta %{customdata[2]}"
                "<extra></extra>"
            ),
        )


def _value(one: Tried) -> float | None:
    return finite(one.value) if one.state != "diverged" else None


def _floor(tuning: Tuning) -> float | None:
    """Where trials without a number are drawn: at the worst of the others."""
    values = [one.value for one in tuning.tried if math.isfinite(one.value)]
    if not values:
        return None
    return max(values) if tuning.metric == "loss" else min(values)


def _zeta(one: Tried) -> str:
    return "n/a" if one.zeta is None else fmt.decimal(one.zeta, 2)


def _setting(values: dict[str, Any]) -> str:
    return ", ".join(f"{title_of(name).lower()} {said(value)}" for name, value in values.items())


def _place_of_best(mean: Sequence[float], metric: str) -> int:
    best = min(mean) if metric == "loss" else max(mean)
    return list(mean).index(best)


def _decades(places: Sequence[float]) -> int:
    """Ticks every so many powers of ten, so that a phone has room for them."""
    return max(1, math.ceil(math.log10(places[-1] / places[0]) / 6))
