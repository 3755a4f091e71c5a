"""Work out what the removal of units means for every tensor of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from secateur.cutting import shapes_of
from secateur.drift import DriftError, keep_numbers
from secateur.errors import PlanError
from secateur.graph import Graph, Group, Mended
from secateur.graph.groups import Removed
from secateur.huggingface import keep_configs
from secateur.plan import MaskPoint, Plan, TracedPass, sealed
from secateur.plan_check import Departure, check_trace
from secateur.size_attributes import keep_sizes


def make_plan(graph: Graph, removed: Removed) -> Plan:
    """Work out what the removal of units means; restore what the model's code needs.

    Before it is returned, the plan is held against a trace of the network that it describes
    (see :mod:`secateur.plan_check`); groups that this shows to be wrong stay whole, and the
    plan's notes say why.

    Args:
        graph: of the model.
        removed: units to remove by group name, the least important first.

    Raises:
        InputError: an unknown group or unit, or no unit left of a group.
        PlanError: every unit had to be restored.
    """
    wanted = {name: tuple(units) for name, units in removed.items()}
    whole: dict[str, int] = {}
    notes: list[str] = []
    while True:
        mended = graph.mend(wanted)
        given_back = {**whole, **mended.given_back}
        if given_back and not mended.removed:
            names = ", ".join(sorted(given_back)[:3])
            why = f": {notes[-1]}" if notes else ""
            raise PlanError(
                f"the model's code allows none of these units to go (groups {names}){why}"
            )
        found = _checked(graph, _lay_out(graph, mended, given_back))
        if isinstance(found, Plan):
            return sealed(dataclasses.replace(found, notes=(*notes, *found.notes)))
        for name in _guilty(graph, wanted, mended, found):
            whole[name] = len(wanted.pop(name))
            notes.append(f"{name} stays whole: {found.reason}")


def _checked(graph: Graph, plan: Plan) -> Plan | Departure:
    """Return the plan with all sizes and numbers kept true, or where it goes wrong.

    Sizes that only the network's other methods read are left as they were where its forward
    pass computes with them after all.
    """
    if not plan.cuts:
        return plan
    full = keep_sizes(graph, keep_configs(graph, plan))
    found = _held_against_trace(graph, full)
    if isinstance(found, Departure) and full.attributes != plan.attributes:
        alone = _held_against_trace(graph, plan)
        if isinstance(alone, Plan):
            paths = [p for p in full.attributes if full.attributes[p] != plan.attributes.get(p)]
            named = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" * (len(paths) > 3))
            note = f"not changed, as the forward pass computes with them: {named}"
            return dataclasses.replace(alone, notes=(*alone.notes, note))
    return found


def _held_against_trace(graph: Graph, plan: Plan) -> Plan | Departure:
    """Return the plan with the numbers that it changes made up for, or where it goes wrong."""
    traced = check_trace(graph, plan)
    if isinstance(traced, Departure):
        return traced
    try:
        return keep_numbers(plan, traced)
    except DriftError as error:
        return Departure(error.node, error.module, error.reason, np.zeros(0, dtype=np.int64))


def _guilty(graph: Graph, wanted: Removed, mended: Mended, found: Departure) -> list[str]:
    """Return the groups to leave whole so that the network no longer departs at this place."""

    def departs(names: Collection[str]) -> bool:
        trial = graph.mend({name: wanted[name] for name in names})
        still = _checked(graph, _lay_out(graph, trial, {}))
        return isinstance(still, Departure) and still.node <= found.node

    names = [name for name in wanted if name in mended.removed]
    suspects = _suspects(graph, names, found)
    for suspect in suspects:
        if not departs([name for name in names if name != suspect]):
            return [suspect]
    while len(names) > 1:
        half = len(names) // 2
        parts = [part for part in (names[:half], names[half:]) if departs(part)]
        if not parts:  # several together
            return [next((name for name in suspects if name in names), names[0])]
        names = parts[0]
    return names


def _suspects(graph: Graph, names: Sequence[str], found: Departure) -> list[str]:
    """Return groups that may make the network depart at a place, the likeliest first.

    They are those that its tensors depend on, and those of the module that it is in: of
    these a head dimension before others, as the number that drifts is often its root.
    """
    offsets = graph.layout.offsets
    here = [
        name
        for name in names
        if any(offsets[name] <= u < offsets[name] + graph.by_name[name].size for u in found.units)
    ]
    module: str | None = found.module
    inside: list[Group] = []
    while module is not None and not inside:
        prefix = f"{module}." if module else ""
        inside = [
            graph.by_name[name]
            for name in names
            if any(slot.name.startswith(prefix) for slot in graph.by_name[name].slots)
        ]
        module = module.rpartition(".")[0] if module else None
    inside.sort(key=lambda group: (group.kind != "head_dim", len(group.slots)))
    return list(dict.fromkeys([*here, *(group.name for group in inside[:_NEAREST])]))


_NEAREST = 2


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
            TracedPass(one.example, one.method, one.training, path, one.shapes)
            for one, path in graph.passes
        ),
        notes=graph.notes,
        caches=graph.caches,
        shapes=shapes_of(graph.model, {name for name, dims in cuts.items() if dims}),
    )
