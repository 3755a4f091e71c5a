"""From measured sensitivity to scores: which unit costs the least loss for what it saves.

The rule. Each group was cut alone at several sparsities, and the loss was measured
(Li et al. 2017, "Pruning filters for efficient ConvNets", section 3.2, who then set each layer's
share by hand). Here the losses are taken to add up, and the shares follow from a Lagrangian: of
all divisions that save as much, the one with the least summed loss takes the steps of the groups'
lower convex hulls in the order of loss over saving (Shoham and Gersho 1988, "Efficient bit
allocation for an arbitrary set of quantizers"). That is exact on the hulls where savings add up
(units do; MACs and parameters of neighbouring layers multiply, so the target itself is counted on
the whole network). NetAdapt (Yang et al. 2018) measures again after each step, and AMC (He et al.
2018) learns the shares by reinforcement; this asks for one measurement of each group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.graph import Graph

Curve = Sequence[tuple[int, float]]
"""(units removed, loss more than the dense network's), in any order; (0, 0) is added."""

SAVINGS = ("units", "macs", "params")


def loss_scores(
    graph: Graph, scores: Mapping[str, Tensor], curves: Mapping[str, Curve], saving: str = "macs"
) -> dict[str, Tensor]:
    """Score each unit by the loss that is predicted for its removal, over what that saves.

    For ``allocate(graph, ..., scope="global", normalisation="none")``: units of one group leave in
    the order of ``scores``, and groups take turns as the rule of this module says.

    Args:
        graph: from ``trace``.
        scores: from ``score``: the order within each group.
        curves: of each group, how much the loss rose when so many units, lowest scores first, were
            gone; groups without a curve get no score and stay whole.
        saving: "units", "macs" or "params": what the target counts.

    Returns:
        Float64 [size] for each group with a curve.

    Raises:
        InputError: an unknown saving, a curve of an unknown group, too many units, or a NaN.
    """
    if saving not in SAVINGS:
        raise InputError(f"saving must be one of {', '.join(SAVINGS)}, but got {saving!r}")
    for name, curve in curves.items():
        if name not in scores:
            raise InputError(f"curves name the group {name!r}, which has no scores")
        _check(name, curve, graph.by_name[name].size)
    found = {}
    for name, curve in curves.items():
        size = graph.by_name[name].size
        slopes = marginal(curve, size)
        worth = torch.tensor(slopes, dtype=torch.float64) / saved_by_one(graph, name, saving)
        order = scores[name].detach().to("cpu").double().argsort(stable=True)
        # The hull's steps are straight lines; a hair more for each keeps the order of the scores.
        hair = torch.arange(size, dtype=torch.float64) * (1e-12 * max(float(worth.max()), 1e-12))
        values = torch.empty(size, dtype=torch.float64)
        values[order] = worth + hair
        found[name] = values
    return found


def marginal(curve: Curve, size: int) -> list[float]:
    """Return the rise of the loss with each further unit, along the lower convex hull.

    What falls is taken as flat: a loss below the dense network's is noise as often as it is gain.
    Beyond the last point the last slope goes on.
    """
    worst: dict[int, float] = {0: 0.0}
    high = 0.0
    for removed, rise in sorted(curve):
        high = max(high, rise)
        worst[removed] = high
    hull: list[tuple[int, float]] = []
    for point in sorted(worst.items()):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    slopes: list[float] = []
    for first, second in itertools.pairwise(hull):
        slopes += [_slope(first, second)] * (second[0] - first[0])
    last = slopes[-1] if slopes else 0.0
    return [*slopes, *[last] * (size - len(slopes))]


def predicted_loss(curves: Mapping[str, Curve], removed: Mapping[str, int]) -> float:
    """Add up the rises of the loss that the curves predict, straight between measured points."""
    return math.fsum(_read(curves[name], count) for name, count in removed.items() if count)


def saved_by_one(graph: Graph, name: str, saving: str) -> float:
    """Return what one unit of a group saves when all but one are gone, on average."""
    size = graph.by_name[name].size
    if saving == "units" or size == 1:
        return 1.0
    whole, least = graph.cost(), graph.cost({name: tuple(range(1, size))})
    saved = getattr(whole, saving) - getattr(least, saving)
    return max(float(saved), 1.0) / (size - 1)


def _slope(first: tuple[int, float], second: tuple[int, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


def _read(curve: Curve, count: int) -> float:
    points = sorted({0: 0.0, **dict(curve)}.items())
    for first, second in itertools.pairwise(points):
        if first[0] <= count <= second[0]:
            return first[1] + _slope(first, second) * (count - first[0])
    last = points[-2:]
    return last[-1][1] + (_slope(last[0], last[-1]) if len(last) == 2 else 0.0) * (
        count - last[-1][0]
    )


def _check(name: str, curve: Curve, size: int) -> None:
    for removed, rise in curve:
        if not 0 <= removed < size:
            raise InputError(
                f"curves of {name!r} must be of 0 to {size - 1} units, but got {removed}"
            )
        if math.isnan(rise):
            raise InputError(f"curves of {name!r} must hold numbers, but got NaN")
