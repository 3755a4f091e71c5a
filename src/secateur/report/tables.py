"""Typed tables of a result: computed here, drawn by the page, printed by the command line.

A :class:`Cell` keeps the value beside the text that people read, so that a page
can sort by it and a file can hold it unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report import format as fmt
from secateur.report.branches_parts import branches_table
from secateur.report.cells import Cell, Column, Row, Table
from secateur.report.cells import text_cell as _text
from secateur.report.facts_parts import facts_tables
from secateur.report.main_table import main_table
from secateur.report.zeros_parts import zeros_table
from secateur.results import Epoch, PinnedDim, Result, Width

SIDES = (Column("dense", "Dense", True), Column("pruned", "Pruned", True))


def table(result: Result) -> list[Row]:
    """The main table as plain text rows: dense, pruned and the change."""
    return [
        Row(label.text, dense.full, pruned.full, change.text)
        for label, dense, pruned, change in main_table(result).rows
    ]


def tables(result: Result) -> tuple[Table, ...]:
    """Every table of the result that has rows, in the order of the page."""
    every = (
        main_table(result),
        points_table(result),
        widths_table(result.widths),
        zeros_table(result.zeros),
        branches_table(result.branches),
        history_table(result.history),
        *facts_tables(result.facts),
        given_back_table(result.given_back),
        pinned_table(result.pinned),
        proof_table(result),
        asked_table(result.asked),
        environment_table(result.environment),
    )
    return tuple(one for one in every if one.rows)


def points_table(result: Result) -> Table:
    """Every network that was compared."""
    columns = (
        Column("criterion", "Criterion"),
        Column("scope", "Scope"),
        Column("sparsity", "Sparsity", True),
        Column("split", "Split"),
        Column("accuracy", "Accuracy", True),
        Column("loss", "Loss", True),
        Column("params", "Parameters", True),
        Column("macs", "MACs", True),
        Column("chosen", "Chosen"),
    )
    rows = tuple(
        (
            _text(point.criterion),
            _text(point.scope),
            Cell(point.sparsity, fmt.percent(point.sparsity, 1)),
            _text(point.split),
            Cell(point.accuracy, fmt.percent(point.accuracy)),
            Cell(point.loss, fmt.decimal(point.loss)),
            Cell(point.params, fmt.count(point.params)),
            Cell(point.macs, fmt.short(point.macs)),
            Cell(point.chosen, "chosen" if point.chosen else ""),
        )
        for point in result.points
    )
    return Table("points", "Every network that was compared.", columns, rows)


def widths_table(widths: Sequence[Width]) -> Table:
    """Output width of every layer, in the order of the network."""
    columns = (
        Column("layer", "Layer"),
        *SIDES,
        Column("removed", "Removed", True),
    )
    rows = tuple(
        (
            _text(width.layer),
            Cell(width.dense, fmt.count(width.dense)),
            Cell(width.pruned, fmt.count(width.pruned)),
            _removed(width.dense, width.pruned),
        )
        for width in widths
    )
    caption = "Output channels or neurons of each layer, in the order of the network."
    return Table("widths", caption, columns, rows)


def history_table(history: Sequence[Epoch]) -> Table:
    """Every epoch of training."""
    columns = (
        Column("phase", "Phase"),
        Column("epoch", "Epoch", True),
        Column("lr", "Learning rate", True),
        Column("train_loss", "Training loss", True),
        Column("val_loss", "Validation loss", True),
        Column("val_accuracy", "Validation accuracy", True),
        Column("seconds", "Time", True),
    )
    rows = tuple(
        (
            _text(epoch.phase),
            Cell(epoch.epoch, fmt.count(epoch.epoch)),
            Cell(epoch.lr, fmt.tiny(epoch.lr)),
            Cell(epoch.train_loss, fmt.decimal(epoch.train_loss)),
            Cell(epoch.val_loss, fmt.decimal(epoch.val_loss)),
            Cell(epoch.val_accuracy, fmt.percent(epoch.val_accuracy)),
            Cell(epoch.seconds, fmt.duration(epoch.seconds)),
        )
        for epoch in history
    )
    return Table("history", "Every epoch of training.", columns, rows)


def pinned_table(pinned: Sequence[PinnedDim]) -> Table:
    """Dimensions that could not be cut."""
    columns = (
        Column("name", "Parameter"),
        Column("dim", "Dimension", True),
        Column("reason", "Reason"),
    )
    rows = tuple(
        (_text(pin.name), Cell(pin.dim, str(pin.dim)), _text(pin.reason)) for pin in pinned
    )
    return Table("pinned", "Dimensions that were not cut, and why.", columns, rows)


def given_back_table(given_back: Mapping[str, int]) -> Table:
    """Units that a criterion chose and the plan could not honour."""
    columns = (Column("group", "Group"), Column("units", "Units given back", True))
    rows = tuple(
        (_text(group), Cell(units, fmt.count(units))) for group, units in sorted(given_back.items())
    )
    caption = "Units that were marked for removal and kept, so that the network stays valid."
    return Table("given_back", caption, columns, rows)


def proof_table(result: Result) -> Table:
    """The comparison of the cut network with its masked reference."""
    check = result.check
    caption = "The cut network against its masked reference, on the same inputs."
    return _pairs(
        "proof",
        caption,
        ("Check", "Value"),
        {
            "Largest relative error": Cell(check.max_error, fmt.tiny(check.max_error)),
            "Tolerance": Cell(check.tolerance, fmt.tiny(check.tolerance)),
            "Computed in": _text(check.dtype),
            "Within tolerance": _yes(check.ok),
            "The cut changed the output": _yes(check.changed),
        },
    )


def asked_table(asked: Mapping[str, Any]) -> Table:
    """Every setting of the run, nested ones as dotted names."""
    settings = {key: _text(value) for key, value in flatten(asked)}
    caption = "Every setting of the run, defaults included."
    return _pairs("asked", caption, ("Setting", "Value"), settings)


def environment_table(environment: Mapping[str, str]) -> Table:
    """Where the run took place."""
    found = {key: _text(value) for key, value in sorted(environment.items())}
    return _pairs("environment", "Where it ran.", ("Part", "Version or name"), found)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs, in the order given; empty ones stay visible."""
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{name}.")
        else:
            pairs.append((name, _say(value)))
    return pairs


def _say(value: Any) -> str:
    """One setting as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_say(one)}" for key, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_say(one) for one in value) or "none"
    return str(value)


def _yes(value: bool) -> Cell:
    return Cell(value, "yes" if value else "no")


def _pairs(name: str, caption: str, titles: tuple[str, str], rows: Mapping[str, Cell]) -> Table:
    """A table of names and values."""
    columns = (Column("name", titles[0]), Column("value", titles[1]))
    body = tuple((_text(key), cell) for key, cell in rows.items())
    return Table(name, caption, columns, body, sortable=False)


def _removed(dense: int, pruned: int) -> Cell:
    if not dense:
        return Cell(None, "n/a")
    share = 1 - pruned / dense
    return Cell(share, fmt.percent(share, 1))
