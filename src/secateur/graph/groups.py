"""From flowed axes to groups, slots and pins: the graph that people and plans use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.graph.axes import Axis
from secateur.graph.flow import Flow, Requirement
from secateur.graph.modules import Address
from secateur.graph.prediction import Prediction
from secateur.graph.program import Ref, family
from secateur.graph.sizes import Attr, Dim, Expr, leaves, rename

Removed = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Slot:
    """One place of a group in a tensor.

    Attributes:
        name: parameter or buffer, as in ``model.named_parameters()``.
        dim: the dimension.
        units: int array [size of the dimension]; the unit that each position
            belongs to, -1 where it belongs to none of this group.
    """

    name: str
    dim: int
    units: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class Group:
    """What must be cut together: ``size`` units, each with positions in every slot."""

    name: str
    size: int
    kind: str
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Pinned:
    """A dimension with ``count`` of ``size`` positions that must not be cut, and why."""

    name: str
    dim: int
    reason: str
    count: int
    size: int


@dataclass(frozen=True)
class Rule:
    """A size that the model's code computes: ``expr`` must equal the size of ``axis``.

    ``axis`` is a number in ``Layout.axes``, and so is ``tensor`` of every
    :class:`~secateur.graph.sizes.Dim` in ``expr``.
    """

    expr: Expr
    axis: int
    where: str

    def axes(self) -> tuple[int, ...]:
        """Return the number of every axis that the rule speaks of."""
        return (self.axis, *(v.tensor for v in leaves(self.expr) if isinstance(v, Dim)))


@dataclass(frozen=True)
class Consumer:
    """A place where units are read; see :class:`secateur.graph.flow.Read`.

    ``paths`` are the distinct passes of the trace in which it is read; ``everywhere`` tells
    whether every pass that runs the operation reads the same there.
    """

    op: str
    module: str
    turn: int
    arg: int
    dim: int
    axis: int
    how: str
    parameter: tuple[str, int] | None
    paths: tuple[int, ...]
    everywhere: bool


@dataclass(frozen=True)
class Layout:
    """Everything that a plan is computed from, as arrays of unit numbers.

    Attributes:
        axes: the distinct axes, int [size, k]; entries are units numbered over all
            groups from 1, 0 for none.
        offsets: first number of each group's units.
        parameters: axes of every parameter, by name.
        buffers: axes of every buffer, by name.
        work: (module, factor, axes) of every contraction.
        rules: sizes in the model's own code.
        consumers: where units are read.
        lengths: (length, direction, dimension) of every weight norm.
        group_norms: axes of the channels that group norms normalise.
        attributes: the value of every integer attribute that a rule uses.
        batch: samples in the example input.
        ops: number of traced operations.
    """

    axes: tuple[Axis, ...]
    offsets: dict[str, int]
    units: int
    parameters: dict[str, tuple[int, ...]]
    buffers: dict[str, tuple[int, ...]]
    work: tuple[tuple[str, int, tuple[int, ...]], ...]
    rules: tuple[Rule, ...]
    consumers: tuple[Consumer, ...]
    lengths: tuple[tuple[str, str, int], ...]
    group_norms: tuple[int, ...]
    attributes: dict[Attr, int]
    batch: int
    ops: int

    def met(self) -> tuple[Consumer, ...]:
        """Return the consumers that the example input meets in eval mode."""
        return tuple(consumer for consumer in self.consumers if 0 in consumer.paths)


class _Table:
    """Collects distinct axes, in final unit numbers."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._number = np.zeros(flow.axes.count, dtype=np.int64)
        self._seen: dict[tuple[int, int, bytes], int] = {}
        self._by_id: dict[int, int] = {}
        self._kept: list[Axis] = []
        self.axes: list[Axis] = []

    def renumber(self, number: NDArray[np.int64]) -> None:
        """Switch from atoms to unit numbers; what has no unit becomes 0."""
        self._number = number

    def add(self, axis: Axis) -> int:
        """Return the number of ``axis`` in the table."""
        known = self._by_id.get(id(axis))
        if known is not None:
            return known
        canon = self._number[self._flow.axes.canon(axis)]
        canon = canon[:, canon.any(axis=0)]
        key = (*canon.shape, canon.tobytes())
        found = self._seen.setdefault((key[0], key[1], key[2]), len(self.axes))
        if found == len(self.axes):
            self.axes.append(canon)
        self._by_id[id(axis)] = found
        self._kept.append(axis)
        return found


@dataclass(frozen=True)
class Analysis:
    """What the analysis of one program gives."""

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    layout: Layout
    notes: tuple[str, ...]
    prediction: Prediction


def analyse(flow: Flow, notes: Sequence[str] = ()) -> Analysis:
    """Partition the free atoms into groups and lay everything out for plans.

    Atoms belong to one group when they occur in the same columns of the same
    dimensions of the same tensors.
    """
    program = flow.program
    named = [
        (key, info) for key, info in enumerate(program.tensors) if info.kind in _NAMED and info.name
    ]
    canon: dict[tuple[str, int], Axis] = {}
    for key, info in named:
        for dim, axis in enumerate(flow.dims(Ref(key))):
            canon[info.name, dim] = flow.axes.canon(axis)
    rules = _useful_rules(flow)
    occurrences = [*canon.values(), *(flow.axes.canon(r.axis) for r in rules)]
    atoms, labels = _partition(occurrences, flow.axes.count)
    kinds = _kinds(flow, canon.values())
    groups, number = _make_groups(flow, canon, atoms, labels, kinds)

    table = _Table(flow)
    table.renumber(number)
    layout = Layout(
        axes=(),
        offsets={g.name: offset for g, offset in groups},
        units=int(number.max(initial=0)),
        parameters={
            info.name: tuple(table.add(a) for a in flow.dims(Ref(key)))
            for key, info in named
            if info.kind == "parameter"
        },
        buffers={
            info.name: tuple(table.add(a) for a in flow.dims(Ref(key)))
            for key, info in named
            if info.kind == "buffer"
        },
        work=tuple(
            (program.nodes[w.node].module, w.factor, tuple(table.add(a) for a in w.axes))
            for w in flow.work
            if program.path(w.node) == 0
        ),
        rules=_make_rules(flow, table, rules),
        consumers=_make_consumers(flow, table),
        lengths=tuple(dict.fromkeys(flow.lengths)),
        group_norms=tuple(dict.fromkeys(table.add(axis) for axis in flow.group_norms)),
        attributes={
            leaf: program.attributes[str(leaf)]
            for requirement in rules
            for leaf in leaves(requirement.expr)
            if isinstance(leaf, Attr)
        },
        batch=max(1, program.batch),
        ops=program.ends[0] if program.ends else len(program.nodes),
    )
    object.__setattr__(layout, "axes", tuple(table.axes))
    return Analysis(
        groups=tuple(group for group, _ in groups),
        pinned=_find_pinned(flow, canon, named),
        layout=layout,
        notes=tuple(notes),
        prediction=Prediction(flow, number),
    )


_NAMED = ("parameter", "buffer")


def _useful_rules(flow: Flow) -> list[Requirement]:
    """Drop requirements that hold whatever is cut."""
    kept = []
    for requirement in flow.requirements:
        axis = flow.axes.canon(requirement.axis)
        found = leaves(requirement.expr)
        others = [flow.dims(Ref(v.tensor))[v.dim] for v in found if isinstance(v, Dim)]
        free = axis.shape[1] > 0 or any(flow.axes.canon(a).shape[1] for a in others)
        if free or any(isinstance(v, Attr) for v in found):
            kept.append(requirement)
    return kept


def _make_rules(flow: Flow, table: _Table, found: Sequence[Requirement]) -> tuple[Rule, ...]:
    """Put requirements in terms of the table's axes; each once, trivial ones dropped."""
    rules: dict[tuple[Expr, int], Rule] = {}
    for requirement in found:
        axis = table.add(requirement.axis)
        expr = rename(
            requirement.expr, lambda d: Dim(table.add(flow.dims(Ref(d.tensor))[d.dim]), 0)
        )
        if expr != Dim(axis, 0):
            rules.setdefault((expr, axis), Rule(expr, axis, requirement.where))
    return tuple(rules.values())


def _make_consumers(flow: Flow, table: _Table) -> tuple[Consumer, ...]:
    """Put reads in terms of the table's axes; each once, with the passes that it belongs to."""
    paths: dict[Address, set[int]] = {}
    for index, node in enumerate(flow.program.nodes):
        where = (family(node.op), node.module, node.turn)
        paths.setdefault(where, set()).add(flow.program.path(index))
    found: dict[tuple[Address, _Use], dict[int, None]] = {}
    acts: dict[Address, dict[int, set[_Use]]] = {}
    for read in flow.reads:
        if not flow.axes.canon(read.axis).shape[1]:
            continue
        where = (read.op, read.module, read.turn)
        use = (read.arg, read.dim, table.add(read.axis), read.how, read.parameter)
        found.setdefault((where, use), {})[read.path] = None
        if read.how != "mask" or read.parameter is None:
            acts.setdefault(where, {}).setdefault(read.path, set()).add(use)
    alike = {
        where: set(by_path) == paths[where] and len(set(map(frozenset, by_path.values()))) == 1
        for where, by_path in acts.items()
    }
    return tuple(
        Consumer(*where, arg, dim, axis, how, parameter, tuple(met), alike.get(where, True))
        for (where, (arg, dim, axis, how, parameter)), met in found.items()
    )


_Use: TypeAlias = "tuple[int, int, int, str, tuple[str, int] | None]"


def _partition(
    occurrences: Sequence[Axis], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the atoms that occur and a label each: equal where they occur alike."""
    marks = np.zeros(count, dtype=np.uint64)
    draw = np.random.default_rng(0)
    present = np.zeros(count, dtype=bool)
    for axis in occurrences:
        for column in axis.T:  # a sum of random numbers tells in which columns an atom occurs
            present[column] = True
            marks[column] += draw.integers(0, 2**63, dtype=np.uint64)
    present[0] = False
    atoms = np.flatnonzero(present)
    _, labels = np.unique(marks[atoms], return_inverse=True)
    return atoms, labels.reshape(-1)


_ROLES = ("kv_head", "head", "head_dim", "embedding", "expert")


def _kinds(flow: Flow, occurrences: Iterable[Axis]) -> Callable[[NDArray[np.int64]], str | None]:
    """Return a function that tells the attention role of a set of atoms, if any.

    Where several query heads share a key head, the query's rows are the product of two
    head factors; the one that the key's rows have alone is the key and value head.
    """
    marked = {role: np.zeros(flow.axes.count, dtype=bool) for role in _ROLES}
    for role, axis in flow.roles:
        marked[role][flow.axes.canon(axis)] = True
    for batch, contracted in flow.attentions:
        atoms, *inner = (flow.axes.canon(axis) for axis in (batch, *contracted))
        if not any((marked["expert"][axis] & (axis > 0)).any() for axis in (atoms, *inner)):
            marked["head"][atoms] = True
            for axis in inner:
                marked["head_dim"][axis] = True
    alone, paired = np.zeros((2, flow.axes.count), dtype=bool)
    for axis in occurrences:
        found = marked["head"][axis] & (axis > 0)
        for seen, rows in ((alone, found.sum(axis=1) == 1), (paired, found.sum(axis=1) > 1)):
            seen[axis[rows][found[rows]]] = True
    marked["kv_head"] = alone & paired

    def kind(atoms: NDArray[np.int64]) -> str | None:
        return next((role for role in _ROLES if marked[role][atoms].all()), None)

    return kind


def _make_groups(
    flow: Flow,
    canon: dict[tuple[str, int], Axis],
    atoms: NDArray[np.int64],
    labels: NDArray[np.int64],
    kinds: Callable[[NDArray[np.int64]], str | None],
) -> tuple[list[tuple[Group, int]], NDArray[np.int64]]:
    """Build the groups in the order of the parameters, and number their units."""
    label_of = np.full(flow.axes.count, -1, dtype=np.int64)
    label_of[atoms] = labels
    places: dict[int, list[tuple[str, int, int]]] = {}
    order: dict[int, list[int]] = {}
    for (name, dim), axis in canon.items():
        for column in range(axis.shape[1]):
            values = axis[:, column]
            found, first = np.unique(label_of[values], return_index=True)
            for label in found[np.argsort(first)].tolist():
                if label < 0:
                    continue
                places.setdefault(label, []).append((name, dim, column))
                if label not in order:
                    mine = values[(values > 0) & (label_of[values] == label)]
                    _, first = np.unique(mine, return_index=True)
                    order[label] = mine[np.sort(first)].tolist()
    number = np.zeros(flow.axes.count, dtype=np.int64)
    index = np.full(flow.axes.count, -1, dtype=np.int64)
    groups: list[tuple[Group, int]] = []
    names: set[str] = set()
    parameters = {i.name for i in flow.program.tensors if i.kind == "parameter"}
    ranks = Counter(name for name, _ in canon)
    # Weights of convolutions, and those of four dimensions that become one on the way.
    slid = {flow.program.tensors[key].name for key in flow.kernels}
    slid |= {name for name, rank in ranks.items() if rank > 3}
    for label, units in order.items():
        if len(units) < 2 or not any(name in parameters for name, _, _ in places[label]):
            continue
        index[units] = np.arange(len(units))
        offset = 1 + sum(group.size for group, _ in groups)
        number[units] = np.arange(offset, offset + len(units))
        slots = []
        for name, dim, column in places[label]:
            values = canon[name, dim][:, column]
            slots.append(Slot(name, dim, np.where(values > 0, index[values], -1)))
        index[units] = -1
        role = kinds(np.asarray(units))
        base = _base_name(slots, ranks, role) + (f":{role}" if role in _ROLES[:3] else "")
        name, n = base, 2
        while name in names:
            name, n = f"{base}#{n}", n + 1
        names.add(name)
        groups.append(
            (Group(name, len(units), role or _plain_kind(slots, slid), tuple(slots)), offset)
        )
    return groups, number


def _base_name(slots: Sequence[Slot], ranks: Mapping[str, int], role: str | None) -> str:
    """Name a group after the first layer that produces it."""
    produced = 1 if role == "embedding" else 0
    first = next((s for s in slots if s.dim == produced and ranks[s.name] > 1), slots[0])
    return first.name.rpartition(".")[0] or first.name


def _plain_kind(slots: Sequence[Slot], slid: set[str]) -> str:
    return "channel" if any(slot.name in slid for slot in slots) else "neuron"


def _find_pinned(
    flow: Flow, canon: dict[tuple[str, int], Axis], named: Sequence[tuple[int, object]]
) -> tuple[Pinned, ...]:
    """List the dimensions of parameters with positions that cannot be cut."""
    found = []
    for key, _ in named:
        info = flow.program.tensors[key]
        if info.kind != "parameter":
            continue
        for dim, axis in enumerate(flow.dims(Ref(key))):
            size = len(axis)
            stuck = size - int((canon[info.name, dim] > 0).any(axis=1).sum())
            if size < 2 or not stuck:
                continue
            reasons = flow.axes.reasons(axis)
            reason = next(iter(reasons), "no operation lets it go")
            if not reason.endswith("the kernel's extent"):
                found.append(Pinned(info.name, dim, reason, stuck, size))
    return tuple(found)
