"""From values of elements to values of units: over a slot, over a group's slots, within a group."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import unknown_name
from secateur.graph import Graph

# From values [slots, size] of one group to [size].
AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda values: values.sum(dim=0),
    "mean": lambda values: values.mean(dim=0),
    "max": lambda values: values.amax(dim=0),
    "first": lambda values: values[0],
}
NORMALISATIONS = ("none", "mean", "max", "l2", "rank")


def fold(values: Iterable[Tensor], aggregation: str) -> Tensor:
    """Aggregate one tensor a slot, all of one shape, with one of them in memory at a time."""
    total, count = torch.zeros(0), 0
    for value in values:
        count += 1
        if count == 1:
            total = value
        elif aggregation == "max":
            total = torch.maximum(total, value)
        else:
            total = total + value
        if aggregation == "first":
            break
    return total / count if aggregation == "mean" else total


def check_aggregation(name: str) -> None:
    """Refuse an unknown aggregation.

    Raises:
        InputError: lists the choices.
    """
    if name not in AGGREGATIONS:
        raise unknown_name("aggregation", name, AGGREGATIONS)


def check_normalisation(name: str) -> None:
    """Refuse an unknown normalisation.

    Raises:
        InputError: lists the choices.
    """
    if name not in NORMALISATIONS:
        raise unknown_name("normalisation", name, NORMALISATIONS)


def normalise(values: Tensor, how: str) -> Tensor:
    """Return the scores [size] of one group on a scale that groups share.

    "mean", "max" and "l2" divide by that figure of the absolute values (all zeros
    stay so); "rank" gives each unit its place in ascending order over size - 1,
    ties in the order of the units.
    """
    if how == "none" or not len(values):
        return values
    if how == "rank":
        places = torch.empty_like(values, dtype=torch.float64)
        order = torch.argsort(values, stable=True)
        places[order] = torch.arange(len(values), dtype=torch.float64)
        return places / max(1, len(values) - 1)
    size = values.abs()
    scale = size.mean() if how == "mean" else size.max() if how == "max" else size.norm()
    return values / scale if scale > 0 else values


class Place(NamedTuple):
    """A slot in a parameter: ``units`` [size of ``dim``] tells the unit of each position."""

    parameter: str
    dim: int
    units: Tensor


def places(
    graph: Graph, *, weights_only: bool = False, among: Container[str] | None = None
) -> dict[str, list[Place]]:
    """Return the slots of every group that lie in parameters; groups without any are left out.

    Args:
        graph: the groups.
        weights_only: tensors of one dimension do not count where there are others.
        among: names of the parameters that count; None for all.
    """
    ranks = {name: p.dim() for name, p in graph.model.named_parameters()}
    found = {}
    for group in graph.groups:
        slots = [
            slot
            for slot in group.slots
            if slot.name in ranks and (among is None or slot.name in among)
        ]
        matrices = [slot for slot in slots if ranks[slot.name] > 1]
        if slots:
            found[group.name] = [
                Place(slot.name, slot.dim, torch.from_numpy(slot.units))
                for slot in (matrices if weights_only and matrices else slots)
            ]
    return found


class SlotSums:
    """Sums an element-wise statistic of every parameter over the units of every group.

    For a unit u of a group and one of the group's slots, the sum runs over all
    elements whose position along the slot's dimension belongs to u; the slots'
    sums become one number by the aggregation.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        weights_only: bool = False,
        among: Container[str] | None = None,
        aggregation: str = "sum",
    ) -> None:
        self._aggregate = AGGREGATIONS[aggregation]
        sizes = {group.name: group.size for group in graph.groups}
        self._slots = {
            name: [(slot.parameter, slot.dim, _spread(slot.units, sizes[name])) for slot in slots]
            for name, slots in places(graph, weights_only=weights_only, among=among).items()
        }
        self._zeros = {name: torch.zeros(size) for name, size in sizes.items()}

    def __call__(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum ``values`` (by parameter name, shaped like it); names left out count as zero."""
        along: dict[tuple[str, int], Tensor] = {}
        totals: dict[str, Tensor] = {}
        for name, slots in self._slots.items():
            rows = []
            for parameter, dim, spread in slots:
                if parameter not in values:
                    rows.append(self._zeros[name])
                    continue
                if (parameter, dim) not in along:
                    along.update(_sums(parameter, values[parameter], dim))
                rows.append(spread(along[parameter, dim]))
            totals[name] = self._aggregate(torch.stack(rows).double())
        return totals


def _spread(units: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    """Return the function from a sum for every position to one for every unit."""
    if torch.equal(units, torch.arange(size)):
        return lambda sums: sums
    mine = units >= 0
    own = units[mine]
    return lambda sums: torch.zeros(size, dtype=torch.float64).index_add_(
        0, own, sums[mine].double()
    )


def _sums(name: str, value: Tensor, dim: int) -> dict[tuple[str, int], Tensor]:
    """Sum over every dimension but ``dim``, in float32 or wider, on the CPU.

    Kernels are summed once for both dimensions of a weight.
    """
    value = value.detach()
    wide = torch.promote_types(value.dtype, torch.float32)
    if value.dim() < 2:
        found = {dim: value.to(wide)}
    elif dim > 1:
        others = [d for d in range(value.dim()) if d != dim]
        found = {dim: value.sum(dim=others, dtype=wide)}
    else:
        plane = value if value.dim() == 2 else value.flatten(2).sum(dim=2, dtype=wide)
        found = {d: plane.sum(dim=1 - d, dtype=wide) for d in (0, 1)}
    return {(name, d): sums.cpu() for d, sums in found.items()}
