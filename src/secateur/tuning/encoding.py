"""Settings as points of the unit cube, and back.

A number takes one column (its logarithm where the range is logarithmic, an integer the middle of
its own step), a choice one column for each of its values. What does not exist for a setting (a
condition that fails) stands in the middle of its range, or at zero for a choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from secateur.tuning.space import Dimension, Space, Value, Values, active

Row = list[float]


def width(space: Space) -> int:
    """Return how many columns a point has."""
    return sum(_columns(dimension) for dimension in space.values())


def discrete_columns(space: Space) -> list[int]:
    """Return the columns that cannot move freely: those of choices and integers."""
    found: list[int] = []
    place = 0
    for dimension in space.values():
        wide = _columns(dimension)
        if not isinstance(dimension.distribution, FloatDistribution):
            found += range(place, place + wide)
        place += wide
    return found


def encode(space: Space, values: Mapping[str, Value]) -> Row:
    """Return the point of a setting, [width]."""
    there = active(space, values)
    row: Row = []
    for name, dimension in space.items():
        distribution = dimension.distribution
        if isinstance(distribution, CategoricalDistribution):
            row += [float(name in there and one == there[name]) for one in distribution.choices]
        else:
            row.append(_place(dimension, there[name]) if name in there else 0.5)
    return row


def decode(space: Space, row: Sequence[float]) -> Values:
    """Return the nearest setting to a point: every dimension, also those that do not exist."""
    values: Values = {}
    place = 0
    for name, dimension in space.items():
        distribution = dimension.distribution
        if isinstance(distribution, CategoricalDistribution):
            part = list(row[place : place + len(distribution.choices)])
            values[name] = distribution.choices[part.index(max(part))]  # type: ignore[assignment]
        else:
            values[name] = _number(dimension, row[place])
        place += _columns(dimension)
    return values


def spread(space: Space, shares: Sequence[float]) -> Values:
    """Return the setting at one share in [0, 1] of each dimension, choices included."""
    values: Values = {}
    for (name, dimension), share in zip(space.items(), shares, strict=True):
        distribution = dimension.distribution
        if isinstance(distribution, CategoricalDistribution):
            count = len(distribution.choices)
            chosen = distribution.choices[min(int(share * count), count - 1)]
            values[name] = chosen  # type: ignore[assignment]
        else:
            values[name] = _number(dimension, share)
    return values


def grid(space: Space, most: int) -> list[Values]:
    """Return at most ``most`` settings on a regular grid, both ends of each range included.

    A choice has all its values. The numbers share what is left: equally many levels each, at
    least two (so that a wide space may have more than ``most``; the first ``most`` are returned).
    Settings that differ only in what does not exist for them are one.
    """
    free = [d for d in space.values() if not isinstance(d.distribution, CategoricalDistribution)]
    taken = math.prod(
        len(d.distribution.choices)
        for d in space.values()
        if isinstance(d.distribution, CategoricalDistribution)
    )
    levels = 2
    while free and taken * (levels + 1) ** len(free) <= most:
        levels += 1
    points: dict[str, Values] = {}
    for combination in itertools.product(*(_levels(one, levels) for one in space.values())):
        point = dict(zip(space, combination, strict=True))
        points.setdefault(repr(active(space, point)), point)
        if len(points) == most:
            break
    return list(points.values())


def _levels(dimension: Dimension, count: int) -> list[Value]:
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # type: ignore[arg-type]
    found = [_number(dimension, step / (count - 1)) for step in range(count)]
    return list(dict.fromkeys(found))


def _columns(dimension: Dimension) -> int:
    distribution = dimension.distribution
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1


def _ends(dimension: Dimension) -> tuple[float, float, bool]:
    distribution = dimension.distribution
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
    low, high = distribution.low - half, distribution.high + half
    if distribution.log:
        return math.log(low), math.log(high), True
    return low, high, False


def _place(dimension: Dimension, value: Value) -> float:
    low, high, log = _ends(dimension)
    number = float(value)
    return ((math.log(number) if log else number) - low) / (high - low)


def _number(dimension: Dimension, share: float) -> Value:
    low, high, log = _ends(dimension)
    value = low + (high - low) * min(max(share, 0.0), 1.0)
    value = math.exp(value) if log else value
    distribution = dimension.distribution
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    # Rounding may leave the range by a hair; the ends themselves must come out exactly.
    value = min(max(value, distribution.low), distribution.high)
    if share in (0, 1):
        value = distribution.high if share else distribution.low
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
