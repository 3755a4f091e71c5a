"""Work out what the removal of units means for every tensor of a network."""

from __future__ import annotations

import numpy as np

from secateur.drift import keep_numbers
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.graph.groups import Removed
from secateur.plan import MaskPoint, Plan


def make_plan(graph: Graph, removed: Removed) -> Plan:
    """Work out what the removal of units means; give back what the model's code needs.

    Args:
        graph: of the model.
        removed: units to remove by group name, the least important first.

    Raises:
        InputError: an unknown group or unit, or no unit left of a group.
        PlanError: every unit had to be given back.
    """
    mended = graph.mend(removed)
    if mended.given_back and not mended.removed:
        names = ", ".join(sorted(mended.given_back)[:3])
        raise PlanError(f"the model's code allows none of these units to go (groups {names})")
    layout, sizes = graph.layout, graph.sizes(mended.removed)
    gone: dict[int, tuple[int, ...]] = {}

    def lost(axis: int) -> tuple[int, ...]:
        if axis not in gone:
            gone[axis] = tuple(np.flatnonzero(~sizes.kept(axis)).tolist())
        return gone[axis]

    cuts = {
        name: {dim: lost(axis) for dim, axis in enumerate(axes) if lost(axis)}
        for name, axes in (*layout.parameters.items(), *layout.buffers.items())
    }
    points: list[MaskPoint] = []
    consumers: dict[tuple[str, int], None] = {}
    for read in layout.consumers:
        if not lost(read.axis):
            continue
        if read.how == "mask" and read.parameter is not None:
            consumers[read.parameter] = None
        else:
            points.append(
                MaskPoint(read.op, read.ordinal, read.arg, read.dim,
                          len(layout.axes[read.axis]), lost(read.axis), read.how)
            )  # fmt: skip
    plan = Plan(
        removed=mended.removed,
        sizes={group.name: group.size for group in graph.groups},
        cuts={name: dims for name, dims in cuts.items() if dims},
        attributes=mended.attributes,
        consumers=tuple(consumers),
        masks=tuple(points),
        given_back=mended.given_back,
        dense=graph.cost(),
        pruned=graph.cost(mended.removed),
        lengths=tuple(norm for norm in layout.lengths if cuts[norm[1]]),
    )
    return keep_numbers(graph, plan)
