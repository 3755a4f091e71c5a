"""Criteria that look at the weights alone.

Over a unit u with the elements w of all weights (tensors of two or more
dimensions) in its group's slots: l1 is the sum of |w|, l2 the square root of the
sum of w^2 (Li et al. 2017, "Pruning filters for efficient ConvNets", taken over
the whole group).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import Place, SlotSums, fold, places
from secateur.criteria.curvature import wide_weights
from secateur.criteria.elements import over_those_not_smaller
from secateur.errors import unknown_name
from secateur.graph import Graph

STATISTICS = ("mean", "mean_abs", "max", "max_abs", "min", "min_abs")


@criterion("l1")
def l1(graph: Graph, context: Context) -> Scores:
    """Sum of absolute weights over the group's slots."""
    sums = SlotSums(graph, weights_only=True, aggregation=context.aggregation)
    with torch.no_grad():
        return sums({name: p.abs() for name, p in wide_weights(graph.model)})


@criterion("l2")
def l2(graph: Graph, context: Context) -> Scores:
    """Euclidean norm of the weights over the group's slots."""
    sums = SlotSums(graph, weights_only=True, aggregation=context.aggregation)
    with torch.no_grad():
        squares = sums({name: p.square() for name, p in wide_weights(graph.model)})
    return {name: value.sqrt() for name, value in squares.items()}


@criterion("lamp")
def lamp(graph: Graph, context: Context) -> Scores:
    """Squared norm over the sum of those in the group that are not smaller.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning",
    with a unit's squared norm in place of a weight's square and the
    group in place of the layer: the scores of groups can be compared as they are.
    """
    sums = SlotSums(graph, weights_only=True, aggregation=context.aggregation)
    with torch.no_grad():
        squares = sums({name: p.square() for name, p in wide_weights(graph.model)})
    return {name: over_those_not_smaller(value) for name, value in squares.items()}


@criterion("weight_statistic")
def weight_statistic(graph: Graph, context: Context, *, statistic: str = "mean_abs") -> Scores:
    """A statistic of the unit's weights in each slot; then the aggregation over slots.

    ``statistic`` is "mean", "mean_abs", "max", "max_abs", "min" or "min_abs". The
    minimum and maximum are over all of a unit's weights in the slot.
    """
    if statistic not in STATISTICS:
        raise unknown_name("statistic", statistic, STATISTICS)
    kind, _, absolute = statistic.partition("_")
    parameters = {
        name: p.detach().abs() if absolute else p.detach()
        for name, p in graph.model.named_parameters()
    }
    sizes = {group.name: group.size for group in graph.groups}
    return {
        name: fold(
            (_statistic(parameters[slot.parameter], slot, sizes[name], kind) for slot in slots),
            context.aggregation,
        )
        for name, slots in places(graph, weights_only=True).items()
    }


def _statistic(values: Tensor, slot: Place, size: int, kind: str) -> Tensor:
    """Reduce a parameter to one number a unit: "mean", "max" or "min"."""
    others = [d for d in range(values.dim()) if d != slot.dim]
    mine = slot.units >= 0
    if kind == "mean":
        sums = values.mean(dim=others, dtype=torch.float64) if others else values
    elif others:
        sums = values.amax(dim=others) if kind == "max" else values.amin(dim=others)
    else:
        sums = values
    result = torch.zeros(size, dtype=torch.float64)
    return result.scatter_reduce_(
        0,
        slot.units[mine],
        sums.to("cpu", torch.float64)[mine],
        "mean" if kind == "mean" else f"a{kind}",
        include_self=False,
    )


@criterion("fpgm")
def fpgm(graph: Graph, context: Context) -> Scores:
    """Sum of the distances to the weights of the group's other units.

    He et al. 2019, "Filter pruning via geometric median for deep neural networks
    acceleration": what lies near the geometric median of all units can
    be replaced by the others. A unit's vector joins its weights in all slots (the
    aggregation acts on squared distances in each).
    """
    parameters = {name: p.detach() for name, p in graph.model.named_parameters()}
    sizes = {group.name: group.size for group in graph.groups}

    def squares(name: str, slots: list[Place]) -> Iterator[Tensor]:
        for slot in slots:
            rows = unit_rows(parameters[slot.parameter], slot, sizes[name])
            yield squared_distances(rows)

    return {
        name: fold(squares(name, slots), context.aggregation).sqrt().sum(dim=1)
        for name, slots in places(graph, weights_only=True).items()
    }


def squared_distances(rows: Tensor) -> Tensor:
    """Return the squared distances [n, n] of rows [n, d], exactly zero between equal rows.

    Products are many times faster than differences, but cancel between rows that lie
    close together: those are gone over by differences.
    """
    centred = rows - rows.mean(dim=0)
    squares = centred.square().sum(dim=1)
    sums = squares[:, None] + squares
    found = sums - 2 * (centred @ centred.T)
    close = found <= 1e-8 * sums
    for unit, others in enumerate(close):
        found[unit, others] = (rows[others] - rows[unit]).square().sum(dim=1)
    return found


def unit_rows(values: Tensor, slot: Place, size: int) -> Tensor:
    """Return the elements of every unit in a slot as rows [size, n], in float64 on the CPU.

    A unit with fewer positions than another has zeros at its end.
    """
    flat = values.movedim(slot.dim, 0).reshape(len(slot.units), -1).to("cpu", torch.float64)
    positions = (slot.units >= 0).nonzero().squeeze(1)
    positions = positions[slot.units[positions].argsort(stable=True)]
    units = slot.units[positions]
    counts = torch.bincount(units, minlength=size)
    nth = torch.arange(len(units)) - (counts.cumsum(0) - counts)[units]
    rows = torch.zeros(size, int(counts.max()), flat.shape[1], dtype=torch.float64)
    rows[units, nth] = flat[positions]
    return rows.flatten(1)


@criterion("random")
def random(graph: Graph, context: Context) -> Scores:
    """Uniform draws in [0, 1), fixed by the seed: the baseline of every comparison."""
    draw = torch.Generator().manual_seed(context.seed)
    return {
        group.name: torch.rand(group.size, generator=draw, dtype=torch.float64)
        for group in graph.groups
    }
