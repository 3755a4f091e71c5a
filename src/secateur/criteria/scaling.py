"""Criteria that look at the learned scales of norms."""

from __future__ import annotations

from torch import nn

from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import SlotSums
from secateur.graph import Graph

_NAMES = ("weight", "scale", "gamma")


@criterion("norm_scale", leaves_out="groups that no norm with a learned scale runs over")
def norm_scale(graph: Graph, context: Context) -> Scores:
    """Sum of |gamma| over the norms that run over the unit.

    Liu et al. 2017, "Learning efficient convolutional networks through network
    slimming", there for batch norms; here for every norm.
    """
    scales = norm_scales(graph.model)
    held = {name: p.detach().abs() for name, p in graph.model.named_parameters() if name in scales}
    # Slots elsewhere must not weigh in a mean or be the first: only those of norms are judged.
    sums = SlotSums(graph, among=scales, aggregation=context.aggregation)
    return sums(held)


def norm_scales(model: nn.Module) -> set[str]:
    """Return the names of all scales of norms.

    They are the vectors called weight, scale or gamma of modules whose class or a
    base class of it has "Norm" in its name, as those of PyTorch and of other libraries.
    """
    found = set()
    for path, module in model.named_modules():
        if any("norm" in kind.__name__.lower() for kind in type(module).__mro__):
            for name, parameter in module.named_parameters(recurse=False):
                if name in _NAMES and parameter.dim() == 1:
                    found.add(f"{path}.{name}" if path else name)
    return found
