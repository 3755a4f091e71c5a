"""Work out what the removal of units means for every tensor of a network."""

from __future__ import annotations

import numpy as np

from secateur.cutting import shapes_of
from secateur.drift import DriftError, keep_numbers
from secateur.errors import PlanError
from secateur.graph import Graph, Mended
from secateur.graph.groups import Removed
from secateur.huggingface import keep_configs
from secateur.plan import MaskPoint, Plan, TracedPass, sealed
from secateur.size_attributes import keep_sizes


def make_plan(graph: Graph, removed: Removed) -> Plan:
    """Work out what the removal of units means; give back what the model's code needs.

    Args:
        graph: of the model.
        removed: units to remove by group name, the least important first.

    Raises:
        InputError: an unknown group or unit, or no unit left of a group.
        PlanError: every unit had to be given back.
    """
    wanted = {name: tuple(units) for name, units in removed.items()}
    back: dict[str, int] = {}
    while True:
        mended = graph.mend(wanted)
        given_back = {**back, **mended.given_back}
        if given_back and not mended.removed:
            names = ", ".join(sorted(given_back)[:3])
            raise PlanError(f"the model's code allows none of these units to go (groups {names})")
        plan = _lay_out(graph, mended, given_back)
        try:
            return sealed(keep_sizes(graph, keep_configs(graph, keep_numbers(graph, plan))))
        except DriftError as error:
            name = _culprit(graph, mended, error.module)
            if name is None:
                raise
            back[name] = len(wanted.pop(name))


def _culprit(graph: Graph, mended: Mended, module: str) -> str | None:
    """Return a cut group near the module whose number drifts: a head dimension before others."""
    while True:
        prefix = f"{module}." if module else ""
        inside = [
            group
            for group in graph.groups
            if group.name in mended.removed
            and any(slot.name.startswith(prefix) for slot in group.slots)
        ]
        if inside:
            inside.sort(key=lambda group: (group.kind != "head_dim", len(group.slots)))
            return inside[0].name
        if not module:
            return None
        module = module.rpartition(".")[0]


def _lay_out(graph: Graph, mended: Mended, given_back: dict[str, int]) -> Plan:
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
    every = {path for _, path in graph.passes}
    points: list[MaskPoint] = []
    consumers: dict[tuple[str, int], None] = {}
    for read in layout.consumers:
        if not lost(read.axis):
            continue
        if read.how == "mask" and read.parameter is not None:
            name, dim = read.parameter
            if dim in cuts[name]:  # else whole groups of a convolution go, and nothing reads them
                consumers[read.parameter] = None
        else:
            points.append(
                MaskPoint(read.op, read.module, read.turn, read.arg, read.dim,
                          len(layout.axes[read.axis]), lost(read.axis), read.how,
                          () if set(read.paths) == every else read.paths, read.everywhere)
            )  # fmt: skip
    return Plan(
        removed=mended.removed,
        sizes={group.name: group.size for group in graph.groups},
        cuts={name: dims for name, dims in cuts.items() if dims},
        attributes=mended.attributes,
        consumers=tuple(consumers),
        masks=tuple(points),
        given_back=given_back,
        dense=graph.cost(),
        pruned=graph.cost(mended.removed),
        lengths=tuple(norm for norm in layout.lengths if cuts[norm[1]]),
        passes=tuple(
            TracedPass(one.example, one.method, one.training, path) for one, path in graph.passes
        ),
        notes=graph.notes,
        caches=graph.caches,
        shapes=shapes_of(graph.model, {name for name, dims in cuts.items() if dims}),
    )
