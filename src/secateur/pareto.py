"""Which of many networks to prefer: frontiers, their area, scores and choices.

A point is (gain, cost): more gain is better, less cost is better. A point dominates another where
it is at least as good in both and better in one; the frontier is what nothing dominates. Plain
numbers in, plain numbers out: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from secateur.errors import InputError

Point = tuple[float, float]


def frontier(points: Sequence[Point]) -> tuple[bool, ...]:
    """Tell for each (gain, cost) whether nothing dominates it; equal points stand together.

    Raises:
        InputError: a number is NaN.
    """
    _check(points)
    best = -math.inf
    found = [False] * len(points)
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
    place = 0
    while place < len(order):
        gain, cost = points[order[place]]
        if gain > best:
            best = gain
            while place < len(order) and points[order[place]] == (gain, cost):
                found[order[place]] = True
                place += 1
        else:
            place += 1
    return tuple(found)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate, up to ``reference`` = (least gain, most cost).

    The hypervolume indicator of Zitzler and Thiele (1998) in two dimensions, exactly: a sweep
    over the frontier by rising cost. Points beyond the reference add nothing.

    Raises:
        InputError: a number is NaN, or the reference is not finite.
    """
    _check(points)
    least, most = reference
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(f"reference must be finite, but got {reference}")
    inside = sorted({(cost, gain) for gain, cost in points if gain > least and cost < most})
    area, height = 0.0, least
    for cost, gain in inside:
        if gain > height:
            area += (gain - height) * (most - cost)
            height = gain
    return area


def course_score(accuracy: float, sparsity: float) -> float:
    """Return (accuracy + sparsity) / 2 where accuracy is above 0.6, else 0; both in [0, 1]."""
    return (accuracy + sparsity) / 2 if accuracy > 0.6 else 0.0


SCORES: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {"course-project": course_score}
)
"""Name -> one number for an accuracy and the share of parameters that is zero or gone."""


def smallest_within(points: Sequence[Point], dense: float, margin: float) -> int | None:
    """Return which point costs least with a gain of at least ``dense`` - ``margin``.

    Of equal costs the highest gain, of equal points the first; None where no point is so good.

    Raises:
        InputError: a number is NaN, or the margin is negative.
    """
    _check(points)
    if not margin >= 0:
        raise InputError(f"margin must be at least 0, but got {margin}")
    # What a decimal margin loses to binary must not shut out a point that lies on the line.
    good = [i for i, (gain, _) in enumerate(points) if gain >= dense - margin - 1e-12]
    return min(good, key=lambda i: (points[i][1], -points[i][0], i), default=None)


def _check(points: Sequence[Point]) -> None:
    for place, point in enumerate(points):
        if any(math.isnan(value) for value in point):
            raise InputError(f"points must be numbers, but point {place} is {point}")
