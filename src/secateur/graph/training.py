"""Modules that run in train mode alone, such as auxiliary classifiers.

The eval-mode trace does not see them, yet a cut must fit them too. Where the trace
leaves parameters untouched, the model is traced in train mode as well, and what that
trace couples with such parameters is coupled in the graph; what it couples in ways that
do not carry over is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.errors import TraceError
from secateur.graph.axes import Axis
from secateur.graph.flow import Flow, refs_of
from secateur.graph.program import Program, Ref
from secateur.graph.sizes import Dim, leaves
from secateur.graph.tracing import record

Place: TypeAlias = tuple[str, int]
Positions: TypeAlias = NDArray[np.int64]
NAMED = ("parameter", "buffer")


@dataclass(frozen=True)
class TrainOnly:
    """What the train-mode pass adds to the graph; a place is a tensor's name and dimension.

    Attributes:
        equal: (place, positions, place, positions) that must be cut together.
        pinned: positions that must stay.
        readers: places of weights that are contracted.
    """

    equal: tuple[tuple[Place, Positions, Place, Positions], ...]
    pinned: tuple[tuple[Place, Positions], ...]
    readers: tuple[Place, ...]


def train_only(model: nn.Module, example_inputs: Any, program: Program) -> TrainOnly | None:
    """Return what only train mode knows of the parameters, None where it knows no more."""
    names = {info.name for info in program.tensors if info.kind == "parameter"}
    unseen = names - _touched(program)
    if not unseen:
        return None
    try:
        other = record(model, example_inputs, training=True)
    except TraceError as error:
        program.notes.append(f"train mode could not be traced: {error}")
        return None
    alone = unseen & _touched(other)
    if not alone:
        return None
    flow = Flow(other)
    flow.run()
    return _learn(flow, alone)


def _learn(flow: Flow, alone: set[str]) -> TrainOnly:
    """Describe how the positions that ``alone`` parameters share atoms with hang together."""
    axes: dict[Place, Axis] = {
        (info.name, dim): flow.axes.expand(axis)
        for key, info in enumerate(flow.program.tensors)
        if info.kind in NAMED
        for dim, axis in enumerate(flow.dims(Ref(key)))
    }
    needed = np.zeros(flow.axes.count, dtype=bool)
    for (name, _), axis in axes.items():
        if name in alone:
            needed[axis] = True
    needed[0] = False
    pins = flow.axes.is_pinned(np.arange(flow.axes.count))
    stuck = pins.copy()
    for axis in (*axes.values(), *_stated(flow)):
        several = (axis > 0).sum(axis=1) > 1
        stuck[axis[several]] = True
    for axis in _stated(flow):
        stuck[axis] = True

    first: dict[int, tuple[Place, int]] = {}
    equal, pinned = [], []
    for place, axis in sorted(axes.items(), key=lambda item: item[0][0] in alone):
        if place[0] not in alone:
            # What a pinned dimension reads is pinned without being joined to it.
            pinned.append((place, np.flatnonzero(pins[axis].any(axis=1))))
        rows = np.flatnonzero(needed[axis].any(axis=1))
        if not len(rows):
            continue
        held = stuck[axis[rows]].any(axis=1)
        if held.any():
            pinned.append((place, rows[held]))
        pairs: dict[Place, list[tuple[int, int]]] = {}
        for row in rows[~held].tolist():
            atom = int(axis[row].max())
            home, position = first.setdefault(atom, (place, row))
            if (home, position) != (place, row):
                pairs.setdefault(home, []).append((row, position))
        for home, found in pairs.items():
            mine, theirs = np.array(found, dtype=np.int64).T
            equal.append((place, mine, home, theirs))
    readers = dict.fromkeys(
        read.parameter for read in flow.reads if read.parameter and read.parameter[0] in alone
    )
    return TrainOnly(tuple(equal), tuple(pinned), tuple(readers))


def _stated(flow: Flow) -> list[Axis]:
    """Return the axes whose sizes the model's code states."""
    found = []
    for requirement in flow.requirements:
        found.append(flow.axes.expand(requirement.axis))
        for leaf in leaves(requirement.expr):
            if isinstance(leaf, Dim):
                found.append(flow.axes.expand(flow.dims(Ref(leaf.tensor))[leaf.dim]))
    return found


def couple(flow: Flow, learnt: TrainOnly) -> None:
    """Make the axes of ``flow`` hold to what the train-mode pass taught."""
    axes: dict[Place, Axis] = {
        (info.name, dim): axis
        for key, info in enumerate(flow.program.tensors)
        if info.kind in NAMED
        for dim, axis in enumerate(flow.dims(Ref(key)))
    }
    why = "a module that runs in train mode alone reads it"
    for place, mine, home, theirs in learnt.equal:
        flow.axes.unify(axes[place][mine], axes[home][theirs], why)
    for place, rows in learnt.pinned:
        flow.axes.pin(axes[place][rows], why)
    for name, dim in learnt.readers:
        flow.read_by_weight(name, dim, axes[name, dim])


def _touched(program: Program) -> set[str]:
    """Return the parameters that an operation reads."""
    keys = {ref.key for node in program.nodes for ref in refs_of(node)}
    return {program.tensors[key].name for key in keys if program.tensors[key].kind == "parameter"}
