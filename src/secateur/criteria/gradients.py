"""Criteria that look at weights and gradients of the loss.

Taylor, first order (Molchanov et al. 2019, "Importance estimation for neural
network pruning", equations 6 to 8): for a unit u with parameters w and gradients
g, the loss change of removing all of them together is (sum of g w)^2, here over
the whole group, averaged over calibration batches.
"""

from __future__ import annotations

import torch

from secateur.calibration import gradients
from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import SlotSums
from secateur.graph import Graph


@criterion("taylor", needs_calibration=True)
def taylor(graph: Graph, context: Context) -> Scores:
    """Squared first-order loss change of removing the unit from its whole group."""
    assert context.calibration is not None
    sums = SlotSums(graph, aggregation=context.aggregation)
    parameters = dict(graph.model.named_parameters())
    totals: Scores = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in graph.groups}
    batches = 0
    for found in gradients(graph.model, context.calibration, context.loss):
        batches += 1
        with torch.no_grad():
            products = {name: parameters[name] * grad for name, grad in found.items()}
        for name, value in sums(products).items():
            totals[name] += value.square()
    return {name: value / batches for name, value in totals.items()}
