"""From scores and a target to a plan: who goes, and how many."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.errors import InputError, PlanError
from secateur.graph import Graph
from secateur.plan import Plan
from secateur.planning import make_plan

SCOPES = ("local", "global")

# A product such as 0.7 x 10 may fall just short of its whole number.
_SLACK = 1e-9


def allocate(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    sparsity: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    scope: str = "local",
    round_to: int = 1,
) -> Plan:
    """Choose the units to remove.

    Exactly one target is given. Units leave in order until it is met:

    - local scope: each group gives up its lowest scores, all groups at the same
      pace; at sparsity s a group of n units loses floor(s x n), never the last one.
    - global scope: all units compete, each group's scores divided by their mean.

    Args:
        graph: from ``trace``.
        scores: from ``score``; groups left out are not cut.
        sparsity: share of units to remove, 0 <= s < 1.
        macs: share of multiply-accumulates to keep, 0 < m <= 1; met from below
            within one unit (or one step of ``round_to``) of the group cut last.
        params: share of parameters to keep, likewise.
        scope: "local" or "global".
        round_to: keep a multiple of this many units in every group that is cut.

    Raises:
        InputError: a target out of range, none or several, unknown scope, scores that do not fit.
        PlanError: nothing can be cut, or the target is out of reach.
    """
    targets = {"sparsity": sparsity, "macs": macs, "params": params}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        named = ", ".join(given) or "none"
        raise InputError(f"exactly one of sparsity, macs, params must be given, but got {named}")
    (target, value), *_ = given.items()
    check_target(target, value)
    if scope not in SCOPES:
        raise InputError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
    if round_to < 1:
        raise InputError(f"round_to must be at least 1, but got {round_to}")
    _check_scores(graph, scores)
    if not graph.groups:
        reasons = sorted({pin.reason for pin in graph.pinned})[:3]
        raise PlanError(f"nothing can be cut; pinned by: {'; '.join(reasons) or 'no parameters'}")

    order = {name: torch.argsort(values, stable=True).tolist() for name, values in scores.items()}
    if target == "sparsity" and scope == "local":
        return make_plan(graph, _local(order, value, round_to))
    steps = _steps(scores, order, scope, round_to)
    if target == "sparsity":
        total = sum(graph.by_name[name].size for name in scores)
        count = (
            _first(len(steps), lambda n: sum(k for _, k in steps[:n]) > value * total + _SLACK) - 1
        )
        return make_plan(graph, _taken(order, steps[: max(count, 0)]))
    return _meet(graph, order, steps, target, value)


def check_target(name: str, value: float) -> None:
    """Refuse a target out of its range.

    Raises:
        InputError: names the target, the rule and the value.
    """
    if name == "sparsity":
        if not 0 <= value < 1:
            raise InputError(f"sparsity must satisfy 0 <= sparsity < 1, but got {value}")
    elif not 0 < value <= 1:
        raise InputError(f"{name} must satisfy 0 < {name} <= 1, but got {value}")


def _check_scores(graph: Graph, scores: Mapping[str, Tensor]) -> None:
    for name, values in scores.items():
        if name not in graph.by_name:
            raise InputError(f"scores name the group {name!r}, which the graph does not have")
        size = graph.by_name[name].size
        if tuple(values.shape) != (size,):
            raise InputError(
                f"scores of group {name!r} must have shape ({size},), but got {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"scores of group {name!r} must be finite")


def _allowed(size: int, wanted: int, round_to: int) -> int:
    """Return the most units, up to ``wanted``, that may go: some stay, in a round number."""
    most = min(wanted, size - 1)
    if round_to == 1:
        return most
    kept = math.ceil((size - most) / round_to) * round_to
    return max(0, size - kept)


def _local(order: Mapping[str, list[int]], sparsity: float, round_to: int) -> dict[str, list[int]]:
    return {
        name: units[: _allowed(len(units), math.floor(sparsity * len(units) + _SLACK), round_to)]
        for name, units in order.items()
    }


def _steps(
    scores: Mapping[str, Tensor],
    order: Mapping[str, list[int]],
    scope: str,
    round_to: int,
) -> list[tuple[str, int]]:
    """List (group, number of units) in the order in which they leave."""
    heap: list[tuple[float, int, str, int]] = []

    def next_step(rank: int, name: str, gone: int) -> None:
        units = order[name]
        size = len(units)
        after = gone + 1
        while after < size and _allowed(size, after, round_to) <= gone:
            after += 1
        if after >= size:
            return
        if scope == "local":
            when = after / size
        else:
            values = scores[name].to(torch.float64)
            mean = float(values.abs().mean()) or 1.0
            when = float(values[units[gone:after]].mean()) / mean
        heapq.heappush(heap, (when, rank, name, after))

    gone = dict.fromkeys(order, 0)
    for rank, name in enumerate(order):
        next_step(rank, name, 0)
    steps = []
    while heap:
        _, rank, name, after = heapq.heappop(heap)
        steps.append((name, after - gone[name]))
        gone[name] = after
        next_step(rank, name, after)
    return steps


def _taken(order: Mapping[str, list[int]], steps: list[tuple[str, int]]) -> dict[str, list[int]]:
    counts: dict[str, int] = {}
    for name, number in steps:
        counts[name] = counts.get(name, 0) + number
    return {name: order[name][:count] for name, count in counts.items()}


def _first(length: int, holds: Callable[[int], bool]) -> int:
    """Return the least n in 0..length for which ``holds(n)``, or length + 1; by bisection."""
    low, high = 0, length + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _meet(
    graph: Graph,
    order: Mapping[str, list[int]],
    steps: list[tuple[str, int]],
    target: str,
    share: float,
) -> Plan:
    """Take the fewest steps that bring the cost down to its share."""
    limit = share * float(getattr(graph.cost(), target))

    def met(count: int) -> bool:
        removed = graph.mend(_taken(order, steps[:count])).removed
        found = int(getattr(graph.cost(removed), target))
        return found <= limit

    count = _first(len(steps), met)
    if count > len(steps):
        least = getattr(graph.cost(graph.mend(_taken(order, steps)).removed), target)
        whole = getattr(graph.cost(), target)
        raise PlanError(
            f"{target}={share} cannot be met: with one unit left in every group "
            f"{least / whole:.3f} of the {target} remain"
        )
    return make_plan(graph, _taken(order, steps[:count]))
