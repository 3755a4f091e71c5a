"""Criteria that look at the weights alone.

Over a unit u with the elements w of all weights (tensors of two or more
dimensions) in its group's slots: l1 is the sum of |w|, l2 the square root of the
sum of w^2 (Li et al. 2017, "Pruning filters for efficient ConvNets", taken over
the whole group).
"""

from __future__ import annotations

import torch

from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import SlotSums
from secateur.graph import Graph


@criterion("l1")
def l1(graph: Graph, context: Context) -> Scores:
    """Sum of absolute weights over the group's slots."""
    sums = SlotSums(graph, weights_only=True, aggregation=context.aggregation)
    with torch.no_grad():
        return sums({name: p.abs() for name, p in graph.model.named_parameters()})


@criterion("l2")
def l2(graph: Graph, context: Context) -> Scores:
    """Euclidean norm of the weights over the group's slots."""
    sums = SlotSums(graph, weights_only=True, aggregation=context.aggregation)
    with torch.no_grad():
        squares = sums({name: p * p for name, p in graph.model.named_parameters()})
    return {name: value.sqrt() for name, value in squares.items()}


@criterion("random")
def random(graph: Graph, context: Context) -> Scores:
    """Uniform draws in [0, 1), fixed by the seed: the baseline of every comparison."""
    draw = torch.Generator().manual_seed(context.seed)
    return {
        group.name: torch.rand(group.size, generator=draw, dtype=torch.float64)
        for group in graph.groups
    }
