"""Targets that are counted: the fewest steps that bring a cost down to its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.allocation.order import Queue, Step
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.plan import Plan
from secateur.planning import make_plan


def share_left(graph: Graph, queue: Queue, steps: Sequence[Step], cost: str) -> float:
    """Return the share of a cost ("macs" or "params") that is left after ``steps``."""
    removed = graph.mend(queue.taken(steps)).removed
    return float(getattr(graph.cost(removed), cost)) / float(getattr(graph.cost(), cost))


def meet_count(graph: Graph, queue: Queue, cost: str, share: float) -> Plan:
    """Take the fewest steps that bring ``cost`` down to ``share``.

    Raises:
        PlanError: it is out of reach; says what is left at the least.
    """
    steps = queue.merged()
    limit = share * float(getattr(graph.cost(), cost))

    def met(count: int) -> bool:
        removed = graph.mend(queue.taken(steps[:count])).removed
        return int(getattr(graph.cost(removed), cost)) <= limit

    count = first(len(steps), met)
    if count > len(steps):
        least = share_left(graph, queue, steps, cost)
        raise PlanError(
            f"{cost}={share} cannot be met: with as few units in every group as may stay "
            f"{least:.3f} of the {cost} remain"
        )
    return make_plan(graph, queue.taken(steps[:count]))


def first(length: int, holds: Callable[[int], bool]) -> int:
    """Return the least n in 0..length for which ``holds(n)``, or length + 1; by bisection."""
    low, high = 0, length + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
