"""Criteria that look at weights and gradients of the loss.

Taylor, first order (Molchanov et al. 2019, "Importance estimation for neural
network pruning", equations 6 to 8): for a unit u with parameters w and gradients
g, the loss change of removing all of them together is (sum of g w)^2, here over
the whole group, averaged over calibration batches. Fisher is the same sample by
sample: the changes in all layers of a group are summed before they are squared, as
in Liu et al. 2021, "Group Fisher pruning for practical network compression", with
the factor 1/2 of Theis et al. 2018 (see :mod:`secateur.criteria.elements`). The
others are sums over the unit of the scores of single weights there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch

from secateur.calibration import gradients
from secateur.criteria import elements
from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import SlotSums
from secateur.graph import Graph


@criterion("taylor", needs_calibration=True)
def taylor(graph: Graph, context: Context) -> Scores:
    """Squared first-order loss change of removing the unit from its whole group."""
    return _mean_squared_change(graph, context, each_sample=False)


@criterion("fisher", needs_calibration=True)
def fisher(graph: Graph, context: Context) -> Scores:
    """Half the squared first-order loss change of removing the unit, mean over samples."""
    found = _mean_squared_change(graph, context, each_sample=True)
    return {name: value / 2 for name, value in found.items()}


def _mean_squared_change(graph: Graph, context: Context, *, each_sample: bool) -> Scores:
    assert context.calibration is not None
    sums = SlotSums(graph, aggregation=context.aggregation)
    parameters = {name: p.detach() for name, p in graph.model.named_parameters()}
    totals: Scores = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in graph.groups}
    passes = gradients(graph.model, context.calibration, context.loss, each_sample=each_sample)
    number = 0
    with closing(passes):
        for found in passes:
            number += 1
            products = {name: parameters[name] * grad for name, grad in found.items()}
            for name, value in sums(products).items():
                totals[name] += value.square()
    return {name: value / number for name, value in totals.items()}


@criterion("snip", needs_calibration=True)
def snip(graph: Graph, context: Context) -> Scores:
    """Sum of |w g| over the unit: how strongly the loss feels its connections."""
    return _sums(graph, context, elements.snip)


@criterion("grasp", needs_calibration=True)
def grasp(graph: Graph, context: Context) -> Scores:
    """Sum of w (H g) over the unit: how much its removal lowers the gradient's norm."""
    return _sums(graph, context, elements.grasp)


@criterion("hessian", needs_calibration=True)
def hessian(graph: Graph, context: Context, *, draws: int = 8) -> Scores:
    """Sum of w^2 h / 2 over the unit, h the diagonal of the Hessian from random draws."""
    return _sums(graph, context, lambda *given: elements.hessian(*given, draws=draws))


@criterion("synflow")
def synflow(graph: Graph, context: Context) -> Scores:
    """Sum of w dR/dw over the unit: the flow through it where all weights are absolute."""
    return _sums(graph, context, elements.synflow)


def _sums(graph: Graph, context: Context, function: Callable[..., elements.Elements]) -> Scores:
    sums = SlotSums(graph, aggregation=context.aggregation)
    return sums(function(graph.model, context))
