"""What a figure shows, in words: for everybody below it, and for who cannot see it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.report import format as fmt
from secateur.report.curves import Curve
from secateur.results import Epoch, Point, Width

# More lines than this are left to the data table.
SPOKEN_LINES = 12
CHOSEN_NAMES = 3


def explain_curves(chosen: Sequence[Point], scopes: Sequence[str], *, legend: bool) -> str:
    """How to read the lines, and which network was chosen."""
    dashes = ("solid", "dashed", "dotted", "dash-dotted")
    drawn = [f"{scope} is {dash}" for scope, dash in zip(scopes, dashes, strict=False)]
    lines = f"scope {' and '.join(drawn)}" if len(scopes) > 1 else f"all in {scopes[0]} scope"
    text = f"One colour and marker for each criterion; {lines}."
    if not legend:
        text += " There are too many lines for a legend: point at one, or open the table."
    if chosen:
        names = "; ".join(
            f"{point.criterion}, {point.scope} at {fmt.percent(point.sparsity, 1)}"
            for point in chosen[:CHOSEN_NAMES]
        )
        more = f"; and {len(chosen) - CHOSEN_NAMES} more" if len(chosen) > CHOSEN_NAMES else ""
        text += f" The ring marks what was chosen: {names}{more}."
    return text


def say_curves(lines: Sequence[Curve], split: str) -> str:
    """Where each line begins and ends."""
    said = [
        f"{line.name}: {fmt.percent(line.points[0].accuracy)} at "
        f"{fmt.percent(line.points[0].sparsity, 1)} sparsity, "
        f"{fmt.percent(line.points[-1].accuracy)} at {fmt.percent(line.points[-1].sparsity, 1)}"
        for line in lines[:SPOKEN_LINES]
    ]
    if len(lines) > SPOKEN_LINES:
        said.append(f"and {len(lines) - SPOKEN_LINES} more lines in the table below")
    return f"Accuracy on the {split} split as units are removed. {'; '.join(said)}."


def say_widths(widths: Sequence[Width]) -> str:
    """How much remains, and the layers that were cut most and least."""
    dense, pruned = sum(one.dense for one in widths), sum(one.pruned for one in widths)
    layers = "1 layer" if len(widths) == 1 else f"{len(widths)} layers"
    text = f"{fmt.count(pruned)} of {fmt.count(dense)} channels and neurons remain in {layers}."
    counted = [one for one in widths if one.dense]
    if not counted:
        return text
    most = min(counted, key=lambda one: one.pruned / one.dense)
    least = max(counted, key=lambda one: one.pruned / one.dense)
    return (
        f"{text} Cut most: {most.layer}, {most.dense} to {most.pruned}; "
        f"cut least: {least.layer}, {least.dense} to {least.pruned}."
    )


def say_training(history: Sequence[Epoch]) -> str:
    """How the loss moved in each phase, and its best epoch."""
    said = []
    for phase in dict.fromkeys(one.phase for one in history):
        epochs = [one for one in history if one.phase == phase]
        finite = [one for one in epochs if math.isfinite(one.val_accuracy)]
        count = "1 epoch" if len(epochs) == 1 else f"{len(epochs)} epochs"
        text = (
            f"{phase}: {count}, validation loss {fmt.decimal(epochs[0].val_loss)} to "
            f"{fmt.decimal(epochs[-1].val_loss)}"
        )
        if finite:
            best = max(finite, key=lambda one: one.val_accuracy)
            text += f", best accuracy {fmt.percent(best.val_accuracy)} in epoch {best.epoch}"
        said.append(text)
    return f"Loss and validation accuracy by epoch. {'; '.join(said)}."
