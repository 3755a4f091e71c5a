"""Criteria that ask how much of the answer flows through a unit.

Layer-wise relevance propagation (Bach et al. 2015; AttnLRP for transformers, Achtibat et
al. 2024) hands the logit of a class back through the network, layer by layer. The map of
a unit is its relevance where it is consumed, averaged over the calibration samples; its
score is a statistic of that map. See ``docs/relevance.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.criteria.base import Context, Scores, criterion
from secateur.criteria.combine import AGGREGATIONS
from secateur.errors import InputError, unknown_name
from secateur.graph import Graph
from secateur.graph.modules import where_is
from secateur.relevance import Captured, Place, Settings, stream
from secateur.relevance.maps import STATISTICS, Average, unit_statistic
from secateur.relevance.schedule import Schedule


@dataclass(frozen=True)
class _Reading:
    """A place where units of a group are consumed: one unit for each position of ``dim``."""

    group: str
    place: Place
    dim: int
    units: Tensor


@criterion(
    "lrp",
    needs_calibration=True,
    leaves_out="groups that no relevance reaches, such as those read in train mode only",
)
def lrp(
    graph: Graph,
    context: Context,
    *,
    rule: str = "alpha-beta",
    alpha: float = 2.0,
    beta: float = 1.0,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    statistic: str = "mean",
    target: str = "predicted",
) -> Scores:
    """Relevance of the unit where it is consumed, over all samples.

    Options: ``rule`` "alpha-beta", "epsilon", "gamma" or "z-plus" with its ``alpha``,
    ``beta``, ``gamma`` and stabiliser ``epsilon``; ``statistic`` of the unit's map: "mean",
    "mean_abs", "max", "max_abs", "min" or "min_abs"; ``target`` "predicted" or "label".

    Raises:
        InputError: an unknown option, an operation without a relevance rule, or labels
            that do not fit.
    """
    assert context.calibration is not None
    settings = Settings(rule, alpha, beta, epsilon, gamma, target)
    if statistic not in STATISTICS:
        raise unknown_name("relevance statistic", statistic, STATISTICS)
    readings = _readings(graph)
    places = {(r.place, r.dim): Average(statistic) for r in readings}
    sizes = {(r.place, r.dim): len(r.units) for r in readings}
    dims: dict[Place, list[int]] = {}
    for place, dim in places:
        dims.setdefault(place, []).append(dim)

    def visit(plan: Schedule, found: Captured) -> None:
        where = where_is(found.place.op, found.place.module)
        for dim in dims[found.place]:
            # The right factor of a product is consumed along its second last dimension.
            at = -2 if found.place in plan.right else dim
            if found.relevance.shape[at] != sizes[found.place, dim]:
                raise InputError(
                    f"the network takes another path on the calibration data than when it was "
                    f"traced: {where} meets size "
                    f"{found.relevance.shape[at]}, not {sizes[found.place, dim]}"
                )
            samples = plan.recording.samples
            average = places[found.place, dim]
            average.add(found.relevance, at, plan.spans.get(found.key), samples, where)

    samples = stream(graph.model, context.calibration, set(dims), settings, visit)
    scores: Scores = {}
    for group in graph.groups:
        rows = [
            unit_statistic(average.total / samples, reading.units, group.size, statistic)
            for reading in readings
            if reading.group == group.name
            for average in [places[reading.place, reading.dim]]
            if average.total is not None
        ]
        if rows:
            scores[group.name] = AGGREGATIONS[context.aggregation](torch.stack(rows))
    return scores


def _readings(graph: Graph) -> list[_Reading]:
    """Return where each group is contracted, or normalised or averaged if nowhere contracted."""
    found: dict[str, list[_Reading]] = {"mask": [], "gather": []}
    for consumer in graph.layout.met():
        axis = graph.layout.axes[consumer.axis]
        place = Place(consumer.op, consumer.module, consumer.turn, consumer.arg)
        for group in graph.groups:
            first = graph.layout.offsets[group.name]
            for column in axis.T:
                mine = (column >= first) & (column < first + group.size)
                if mine.any():
                    units = torch.from_numpy(mine * (column - first + 1) - 1)
                    found[consumer.how].append(_Reading(group.name, place, consumer.dim, units))
    contracted = {reading.group for reading in found["mask"]}
    rest = [reading for reading in found["gather"] if reading.group not in contracted]
    return found["mask"] + rest
