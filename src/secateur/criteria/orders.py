"""Criteria made of other criteria, by mixing the orders in which those remove units.

An order lists units, the least important first. Two ways to mix orders of the same units, both
from relevance-based pruning of VGG-16:

- interleaved: the orders take turns; a unit that comes twice is dropped the second time.
- delta-mixed: one accumulator an order grows by the order's weight each turn; where it reaches
  1 the order emits its next unit that is not out yet, and the accumulator drops by 1. Of orders
  that emit in the same turn the first named comes first. With two orders the weights are
  1 - delta and delta: delta 0 is the first order alone, delta 1 the second alone.

Weights are taken by their decimal text and counted in whole numbers: ten times 0.1 is 1.

The scores of a mixture are places in the mixed order, 0 for the unit that leaves first. Global
scope mixes one order of all units, so let ``allocate(..., scope="global", normalisation="none")``
compare places as they are; local scope mixes the orders of each group by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from itertools import chain
from typing import TypeVar

import torch

from secateur.criteria.base import CRITERIA, Context, Criterion, Scores, score
from secateur.criteria.combine import check_normalisation
from secateur.errors import InputError
from secateur.graph import Graph

H = TypeVar("H", bound=Hashable)
Number = Fraction | float | str
Mix = Callable[[Sequence[Sequence[tuple[str, int]]]], list[tuple[str, int]]]

SCOPES = ("global", "local")


def interleave_lists(orders: Sequence[Sequence[H]]) -> list[H]:
    """Take the first of each order, then the second of each, and so on; the first of twins stays.

    Raises:
        InputError: no order, or orders that do not list the same things once each.
    """
    _check_orders(orders)
    return list(dict.fromkeys(chain.from_iterable(zip(*orders, strict=True))))


def delta_lists(first: Sequence[H], second: Sequence[H], delta: Number) -> list[H]:
    """Mix two orders by accumulators that grow by 1 - delta and delta a turn.

    Args:
        first: all of the result where ``delta`` is 0.
        second: all of the result where ``delta`` is 1.
        delta: 0 to 1, by its decimal text; a fraction, such as "1/3", is exact too.

    Raises:
        InputError: ``delta`` is out of range, or the orders do not list the same things.
    """
    share = _exact("delta", delta)
    return weighted_lists((first, second), (1 - share, share))


def weighted_lists(orders: Sequence[Sequence[H]], weights: Sequence[Number]) -> list[H]:
    """Mix any number of orders, each with an accumulator that grows by its weight a turn.

    Args:
        orders: of the same things.
        weights: one an order, 0 to 1, that sum to 1.

    Raises:
        InputError: weights that do not fit, or orders that do not list the same things.
    """
    _check_orders(orders)
    shares = _check_weights(len(orders), weights)
    whole = math.lcm(*(share.denominator for share in shares))
    steps = [int(share * whole) for share in shares]
    held = [0] * len(orders)
    rest = [iter(order) for order in orders]
    out: dict[H, None] = {}
    size = len(orders[0])
    while len(out) < size:
        for place, step in enumerate(steps):
            held[place] += step
            if held[place] >= whole and len(out) < size:
                held[place] -= whole
                out[next(item for item in rest[place] if item not in out)] = None
    return list(out)


def interleave(
    *criteria: str | Criterion, scope: str = "global", normalisation: str = "mean"
) -> Criterion:
    """Return the criterion whose units leave in the interleaved order of several criteria.

    Args:
        criteria: two or more, names or :class:`Criterion`; the first has the first turn.
        scope: "global" (one order of all units) or "local" (an order for each group).
        normalisation: what a group's scores are divided by before units of several groups
            stand in one order, as in ``score``; global scope only.

    Raises:
        InputError: fewer than two criteria, or an unknown name.
    """
    return _mixture("interleave", criteria, interleave_lists, scope, normalisation)


def delta(
    a: str | Criterion,
    b: str | Criterion,
    delta: Number,
    *,
    scope: str = "global",
    normalisation: str = "mean",
) -> Criterion:
    """Return the criterion whose units leave in the delta-mixed order of two criteria.

    Args:
        a: decides alone where ``delta`` is 0 (the source's order by parameters).
        b: decides alone where ``delta`` is 1 (the source's order by relevance).
        delta: the share of ``b``, 0 to 1.
        scope: as in :func:`interleave`.
        normalisation: as in :func:`interleave`.

    Raises:
        InputError: ``delta`` is out of range, or an unknown name.
    """
    share = _exact("delta", delta)
    return weighted((a, b), (1 - share, share), scope=scope, normalisation=normalisation)


def weighted(
    criteria: Sequence[str | Criterion],
    weights: Sequence[Number],
    *,
    scope: str = "global",
    normalisation: str = "mean",
) -> Criterion:
    """Return the criterion that mixes the orders of any number of criteria by weights.

    Args:
        criteria: two or more, names or :class:`Criterion`.
        weights: one a criterion, 0 to 1, that sum to 1: :func:`delta` has 1 - delta and delta.
        scope: as in :func:`interleave`.
        normalisation: as in :func:`interleave`.

    Raises:
        InputError: weights that do not fit, fewer than two criteria, or an unknown name.
    """
    shares = _check_weights(len(criteria), weights)
    name = "weighted " + ":".join(str(share) for share in shares)
    return _mixture(
        name, criteria, lambda orders: weighted_lists(orders, shares), scope, normalisation
    )


def _mixture(
    name: str, criteria: Sequence[str | Criterion], mix: Mix, scope: str, normalisation: str
) -> Criterion:
    if len(criteria) < 2:
        raise InputError(f"a mixture takes at least two criteria, but got {len(criteria)}")
    _check_scope(scope, normalisation)
    rules = [CRITERIA[rule] if isinstance(rule, str) else rule for rule in criteria]

    def mixed(
        graph: Graph, context: Context, *, scope: str = "global", normalisation: str = "mean"
    ) -> Scores:
        return _places(graph, context, rules, mix, scope, normalisation)

    return Criterion(
        f"{name} ({', '.join(rule.name for rule in rules)})",
        mixed,
        any(rule.needs_calibration for rule in rules),
        leaves_out="; ".join(dict.fromkeys(r.leaves_out for r in rules if r.leaves_out)),
    ).with_options(scope=scope, normalisation=normalisation)


def _places(
    graph: Graph,
    context: Context,
    rules: Sequence[Criterion],
    mix: Mix,
    scope: str,
    normalisation: str,
) -> Scores:
    """Score by the places in the mixed order; groups that a criterion leaves out are left out."""
    _check_scope(scope, normalisation)
    scored = [
        score(
            graph,
            rule,
            context.calibration,
            loss=context.loss,
            seed=context.seed,
            aggregation=context.aggregation,
            normalisation=normalisation,
        )
        for rule in rules
    ]
    names = [g.name for g in graph.groups if all(g.name in scores for scores in scored)]
    classes = [names] if scope == "global" else [[name] for name in names]
    found = {name: torch.zeros(graph.by_name[name].size, dtype=torch.float64) for name in names}
    for members in classes:
        orders = [order_of({name: scores[name] for name in members}) for scores in scored]
        for place, (name, unit) in enumerate(mix(orders)):
            found[name][unit] = place
    return found


def order_of(scores: Scores) -> list[tuple[str, int]]:
    """List (group, unit) by score, the lowest first; ties in the order of groups and units."""
    ranked = [
        (value, place, unit)
        for place, values in enumerate(scores.values())
        for unit, value in enumerate(values.tolist())
    ]
    names = list(scores)
    return [(names[place], unit) for _, place, unit in sorted(ranked)]


def _check_scope(scope: str, normalisation: str) -> None:
    if scope not in SCOPES:
        raise InputError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
    check_normalisation(normalisation)


def _check_orders(orders: Sequence[Sequence[H]]) -> None:
    if not orders:
        raise InputError("orders must hold at least one order, but it is empty")
    wanted = set(orders[0])
    for place, order in enumerate(orders):
        if len(set(order)) != len(order):
            raise InputError(f"orders must list each unit once, but order {place} repeats one")
        if set(order) != wanted:
            raise InputError(f"orders must list the same units, but order {place} lists others")


def _check_weights(number: int, weights: Sequence[Number]) -> list[Fraction]:
    shares = [_exact("weights", weight) for weight in weights]
    if len(shares) != number:
        raise InputError(f"weights must be one an order, but got {len(shares)} for {number}")
    if sum(shares) != 1:
        raise InputError(
            f"weights must sum to 1 exactly, but sum to {float(sum(shares))!r}; "
            'thirds and the like are written as "1/3"'
        )
    return shares


def _exact(what: str, value: Number) -> Fraction:
    """Read a number by its decimal text, never by its binary value."""
    try:
        share = value if isinstance(value, Fraction) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{what} must be a number from 0 to 1, but got {value!r}") from None
    if not 0 <= share <= 1:
        raise InputError(f"{what} must satisfy 0 <= {what} <= 1, but got {value}")
    return share
