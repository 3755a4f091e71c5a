"""What a criterion is: a function from a graph to one score a unit, higher means keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.calibration import Batches, Loss, cross_entropy
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.registry import Registry


@dataclass(frozen=True)
class Context:
    """What a criterion may use beside the graph.

    Attributes:
        calibration: (inputs, labels) batches, for criteria that need data.
        loss: from outputs and labels to a scalar.
        seed: for criteria that draw.
    """

    calibration: Batches | None = None
    loss: Loss = cross_entropy
    seed: int = 0


Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """A rule that judges units.

    Attributes:
        name: as users write it.
        function: from a graph and its context to {group: scores [size]}.
        needs_calibration: whether it cannot work without data.
    """

    name: str
    function: Callable[[Graph, Context], Scores]
    needs_calibration: bool = False


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, *, needs_calibration: bool = False
) -> Callable[[Callable[[Graph, Context], Scores]], Callable[[Graph, Context], Scores]]:
    """Return a decorator that registers a scoring function under ``name``."""

    def add(function: Callable[[Graph, Context], Scores]) -> Callable[[Graph, Context], Scores]:
        CRITERIA.register(name)(Criterion(name, function, needs_calibration))
        return function

    return add


def score(
    graph: Graph,
    criterion: str | Criterion,
    calibration: Batches | None = None,
    *,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Scores:
    """Score every unit of every group; higher means keep.

    Args:
        graph: from ``trace``.
        criterion: a registered name or a :class:`Criterion`.
        calibration: (inputs, labels) batches, for criteria that need data.
        loss: from the model's outputs and the labels to a scalar.
        seed: for criteria that draw.

    Returns:
        {group name: float64 tensor [size]} on the CPU.

    Raises:
        InputError: unknown name, missing calibration, or scores that are not finite.
    """
    rule = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    if rule.needs_calibration and calibration is None:
        raise InputError(f"criterion {rule.name!r} needs calibration batches, but got none")
    scores = rule.function(graph, Context(calibration, loss, seed))
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"criterion {rule.name!r} gives scores that are not finite in {name}")
    return scores


class SlotSums:
    """Sums an element-wise statistic of every parameter over the units of every group.

    For a unit u of a group, the sum runs over the group's slots and, in each, over
    all elements whose position along the slot's dimension belongs to u.
    """

    def __init__(self, graph: Graph, *, weights_only: bool) -> None:
        ranks = {name: p.dim() for name, p in graph.model.named_parameters()}
        self._slots = {}
        for group in graph.groups:
            slots = [slot for slot in group.slots if slot.name in ranks]
            matrices = [slot for slot in slots if ranks[slot.name] > 1]
            self._slots[group.name] = (
                group.size,
                [
                    (slot.name, slot.dim, torch.from_numpy(slot.units))
                    for slot in (matrices if weights_only and matrices else slots)
                ],
            )

    def __call__(self, values: dict[str, Tensor]) -> Scores:
        """Sum ``values`` (by parameter name, shaped like it); names left out count as zero."""
        along: dict[tuple[str, int], Tensor] = {}
        totals: Scores = {}
        for name, (size, slots) in self._slots.items():
            total = torch.zeros(size, dtype=torch.float64)
            for parameter, dim, units in slots:
                if parameter not in values:
                    continue
                if (parameter, dim) not in along:
                    along[parameter, dim] = _sum_to(values[parameter], dim)
                sums, mine = along[parameter, dim], units >= 0
                total.index_add_(0, units[mine], sums[mine])
            totals[name] = total
        return totals


def _sum_to(value: Tensor, dim: int) -> Tensor:
    """Sum over every dimension but ``dim``; in float64 on the CPU."""
    others = [d for d in range(value.dim()) if d != dim]
    small = value.sum(dim=others) if others else value
    return small.detach().to("cpu", torch.float64)
