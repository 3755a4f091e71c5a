"""Sizes in the model's own code: solve attributes, keep equations, mend plans.

A pure attribute (``num_heads`` used as a size) takes the size that the cut
needs. Any other expression is an equation that a plan must satisfy; where one
does not hold, the fewest units are given back, highest scores first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from secateur.graph.cost import Sizes, alive_units
from secateur.graph.groups import Group, Layout, Removed, Rule
from secateur.graph.sizes import Attr, evaluate, leaves


@dataclass(frozen=True)
class Mended:
    """Units that may go, what was given back by group, and the new attribute values."""

    removed: dict[str, tuple[int, ...]]
    given_back: dict[str, int]
    attributes: dict[str, int]


def solve(
    layout: Layout, sizes: Sizes, rules: Sequence[Rule]
) -> tuple[dict[Attr, int], list[Rule]]:
    """Return the value of every attribute, and which of ``rules`` do not hold with them."""
    values = dict(layout.attributes)
    needed: dict[Attr, set[int]] = {}
    for rule in rules:
        if isinstance(rule.expr, Attr):
            needed.setdefault(rule.expr, set()).add(sizes[rule.axis])
    for attr, wanted in needed.items():
        values[attr] = min(wanted)
    for rule in rules:
        unknown = [v for v in leaves(rule.expr) if isinstance(v, Attr) and v not in needed]
        if unknown and not _holds(rule, sizes, values):
            _search(layout, sizes, rules, values, _together(rules, unknown, set(needed)))
    return values, [rule for rule in rules if not _holds(rule, sizes, values)]


def _holds(rule: Rule, sizes: Sizes, values: Mapping[Attr, int]) -> bool:
    result = evaluate(rule.expr, lambda dim: sizes[dim.tensor], values)
    return result == sizes[rule.axis]


def _together(rules: Sequence[Rule], some: Sequence[Attr], known: set[Attr]) -> list[Attr]:
    """Return the unknown attributes that expressions tie to ``some``, by name."""
    found = set(some)
    while True:
        more = {
            v
            for rule in rules
            if found & set(leaves(rule.expr))
            for v in leaves(rule.expr)
            if isinstance(v, Attr) and v not in known
        }
        if more <= found:
            return sorted(found, key=str)
        found |= more


def _search(
    layout: Layout,
    sizes: Sizes,
    rules: Sequence[Rule],
    values: dict[Attr, int],
    attrs: Sequence[Attr],
) -> None:
    """Give attributes that only occur in expressions values that satisfy all of them.

    The fewest change, large ones before small ones: of ``channels // parts`` the channels. What
    keeps the proportion to a size that changed comes first, then any smaller value of one.
    """
    using = [rule for rule in rules if set(attrs) & set(leaves(rule.expr))]
    before = {attr: layout.attributes[attr] for attr in attrs}
    large_first = sorted(attrs, key=lambda attr: -before[attr])
    ratios = {
        Fraction(sizes[rule.axis], len(layout.axes[rule.axis]))
        for rule in using
        if len(layout.axes[rule.axis]) and sizes[rule.axis]
    }

    def fits(changed: Mapping[Attr, int]) -> bool:
        trial = {**values, **before, **changed}
        return all(_holds(rule, sizes, trial) for rule in using)

    scaled = {
        attr: sorted({int(r * n) for r in ratios if (r * n).denominator == 1 and r != 1})
        for attr, n in before.items()
    }
    proportional = (
        dict(zip(chosen, combination, strict=True))
        for count in range(1, len(attrs) + 1)
        for chosen in itertools.combinations(large_first, count)
        for combination in itertools.product(*(scaled[attr] for attr in chosen))
    )
    smaller = ({attr: n} for attr in large_first for n in range(before[attr], 0, -1))
    for changed in itertools.chain(itertools.islice(proportional, _COMBINATIONS), smaller):
        if fits(changed):
            values.update({**before, **changed})
            return


_COMBINATIONS = 256


def mend(layout: Layout, groups: Sequence[Group], removed: Removed) -> Mended:
    """Give units back until every size in the model's code is right.

    Args:
        layout: of the graph.
        groups: of the graph.
        removed: units to remove by group, the least important first; units are
            given back from the end.
    """
    current = {name: list(dict.fromkeys(units)) for name, units in removed.items() if len(units)}
    values: dict[Attr, int] = {}
    while True:
        sizes = Sizes(layout, alive_units(layout, current))
        values, broken = solve(layout, sizes, layout.rules)
        empty = next((axis for axis in _weights(layout) if not sizes[axis]), None)
        if empty is not None:
            _refill(layout, groups, current, empty)
            continue
        if not broken or not any(current.values()):
            break
        _repair(layout, groups, current, broken[0])
    given_back = {
        name: len(set(units)) - len(current.get(name, ()))
        for name, units in removed.items()
        if len(set(units)) > len(current.get(name, ()))
    }
    changed = {str(a): v for a, v in values.items() if v != layout.attributes[a]}
    kept = {name: tuple(units) for name, units in current.items() if units}
    return Mended(kept, given_back, changed)


def _weights(layout: Layout) -> list[int]:
    """Return the axes of all parameters that have positions, each once."""
    numbers = {axis for axes in layout.parameters.values() for axis in axes}
    return [axis for axis in sorted(numbers) if len(layout.axes[axis])]


def _refill(
    layout: Layout, groups: Sequence[Group], current: dict[str, list[int]], axis: int
) -> None:
    """Give a unit back, of the group that lost most among those that emptied a dimension."""
    here = layout.axes[axis]
    emptied = [
        group
        for group in groups
        if current.get(group.name)
        and ((here >= layout.offsets[group.name])
             & (here < layout.offsets[group.name] + group.size)).any()
    ]  # fmt: skip
    most = max(emptied, key=lambda group: len(current[group.name]) / group.size)
    current[most.name].pop()


def _repair(
    layout: Layout, groups: Sequence[Group], current: dict[str, list[int]], rule: Rule
) -> None:
    """Give back the fewest units of one group that settle ``rule``, else one of each."""
    attrs = {leaf for leaf in leaves(rule.expr) if isinstance(leaf, Attr)}
    related = [r for r in layout.rules if r is rule or attrs & set(leaves(r.expr))]
    involved = _involved(layout, groups, related)
    cut = [name for name in involved if current.get(name)]
    if not cut:
        cut = [name for name, units in current.items() if units]
    alive = alive_units(layout, current)
    best: tuple[int, str] | None = None
    for name in cut:
        units = current[name]
        trial = alive.copy()
        limit = len(units) if best is None else min(len(units), best[0] - 1)
        for back in range(1, limit + 1):
            trial[layout.offsets[name] + units[-back]] = True
            _, broken = solve(layout, Sizes(layout, trial), related)
            if rule not in broken:
                best = (back, name)
                break
    if best is None:
        for name in cut:
            current[name].pop()
    else:
        back, name = best
        del current[name][len(current[name]) - back :]


def _involved(layout: Layout, groups: Sequence[Group], rules: Sequence[Rule]) -> list[str]:
    """Return the groups that have units in the axes of ``rules``."""
    present = np.zeros(layout.units + 1, dtype=bool)
    for axis in {axis for rule in rules for axis in rule.axes()}:
        present[layout.axes[axis]] = True
    starts = {group.name: layout.offsets[group.name] for group in groups}
    return [g.name for g in groups if present[starts[g.name] : starts[g.name] + g.size].any()]
