"""How descriptions flow: the state that the op rules read and write.

A :class:`Flow` holds, for every traced tensor, one axis a dimension (see
``axes``). Rules call a handful of verbs: ``dims``, ``set``, ``unify``, ``pin``,
``require``, ``read`` and ``work``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from secateur.graph.axes import Axes, Axis, fixed
from secateur.graph.modules import where_is
from secateur.graph.program import Node, Program, Ref, family
from secateur.graph.sizes import Apply, Dim, Expr, Sized, expr_of
from secateur.registry import Registry

Rule = Callable[["Flow", Node], None]
RULES: Registry[Rule] = Registry("op rule")


def rule(*names: str, namespace: str = "aten") -> Callable[[Rule], Rule]:
    """Register one rule for several operations of a namespace."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES.register(f"{namespace}.{name}")(function)
        return function

    return add


def _aten(*names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names)


# Operations that hand numbers of positions on as they are, those that know what they mean, and
# those that do not look at them.
_CARRY = _aten(
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t",
    "expand", "clone", "contiguous", "alias", "detach", "slice", "select", "unbind", "split",
    "_to_copy", "to",
)  # fmt: skip
_LOOK_UP = _aten(
    "index", "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_",
    "index_add", "index_add_", "sort", "histc", "bincount",
)  # fmt: skip
_SHAPE_ALONE = _aten(
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
)  # fmt: skip
# Of these, the ones that keep all numbers in order: positions of all still are.
_WHOLE = _CARRY - _aten("slice", "select", "unbind", "split")
_ONE_HOT = _aten("aminmax", "_local_scalar_dense", "eq")


# What a rule raises on a form of its operation that it was not written for.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, StopIteration,
            TypeError, ValueError)  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """``expr``, as the model's code computes it, must equal the size of ``axis``."""

    expr: Expr
    axis: Axis
    where: str


@dataclass(frozen=True)
class Read:
    """A place where a dimension is consumed rather than passed on.

    ``how`` is "mask" (a removed position must contribute nothing: a contraction
    or a sum) or "gather" (the operation runs over the kept positions alone: a
    mean, a norm, a softmax). ``parameter`` names the weight and dimension that
    is contracted, where it is one; ``path`` is the number of the pass.
    """

    op: str
    module: str
    turn: int
    arg: int
    dim: int
    axis: Axis
    how: str
    parameter: tuple[str, int] | None
    path: int


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one operation: ``factor`` times the sizes of ``axes``."""

    node: int
    factor: int
    axes: tuple[Axis, ...]


class Flow:
    """Axes of every tensor of a program, and what the rules learned on the way.

    With ``whole_groups`` no group of a grouped convolution is a unit, only the channels within
    the groups are. That couples more, but channels that several divisions into groups share, as
    in ShuffleNet, are then coupled where they are else pinned.
    """

    def __init__(self, program: Program, *, whole_groups: bool = False) -> None:
        self.program = program
        self.whole_groups = whole_groups
        self.axes = Axes()
        self.requirements: list[Requirement] = []
        self.reads: list[Read] = []
        self.work: list[Work] = []
        self.lengths: list[tuple[str, str, int]] = []
        self.roles: list[tuple[str, Axis]] = []
        self.kernels: set[int] = set()
        self.group_norms: list[Axis] = []
        self.attentions: list[tuple[Axis, tuple[Axis, ...]]] = []
        self.positions: dict[int, Axis] = {}
        self._ranges: set[int] = set()
        self._repeated: dict[int, frozenset[int]] = {}
        self.stated: dict[int, dict[int, tuple[Axis, int]]] = defaultdict(dict)
        self.undescribed: set[int] = set()
        self.used = program.used()
        self._written = program.written()
        self._dims: list[list[Axis] | None] = [None] * len(program.tensors)
        self._origin: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._pinned: dict[tuple[int, str], Axis] = {}
        self._index = 0

    def run(self, more: Callable[[Flow], None] | None = None) -> None:
        """Apply the rule of every operation, in order; pin the model's outputs.

        ``more`` may pin further axes before the result is final.
        """
        for key, info in enumerate(self.program.tensors):
            if info.kind in ("parameter", "buffer"):
                self._dims[key] = [self._new(n) for n in info.shape]
                self._origin[key] = (info.name, tuple(range(len(info.shape))))
            elif info.kind in ("input", "constant"):
                what = "the model's input" if info.kind == "input" else "a constant tensor"
                self._dims[key] = [self.pinned(n, what) for n in info.shape]
        for index, node in enumerate(self.program.nodes):
            self._index = index
            self._apply(node)
        for key in self.program.outputs:
            for axis in (*self.dims(Ref(key)), self.positions.get(key, fixed(0))):
                self.axes.pin(axis, "the model's output")
        for key, module in self.program.read:
            for axis in (*self.dims(Ref(key)), self.positions.get(key, fixed(0))):
                self.axes.pin(axis, f"{where_is('the code', module)} reads its values")
        for (op, left, right, outcome), module in self.program.comparisons.items():
            where = where_is("a comparison", module)
            if op == "==" and outcome:
                self._hold(left, right, where)
            else:
                same = Apply("-", Apply(op, left, right), int(outcome))
                self.requirements.append(Requirement(same, fixed(0), where))
        if more is not None:
            more(self)
        self._pin_unread()
        self.axes.freeze()

    def _hold(self, left: Expr, right: Expr, where: str) -> None:
        """Keep two sizes equal that the model's code compared and found equal."""
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Dim) and self._dims[one.tensor] is not None:
                axis = self.dims(Ref(one.tensor))[one.dim]
                if isinstance(other, int):
                    self.axes.pin(axis, f"{where}: size {other} is fixed in the model's code")
                else:
                    self.requirements.append(Requirement(other, axis, where))
                return
        self.requirements.append(Requirement(Apply("-", left, right), fixed(0), where))

    def _pin_unread(self) -> None:
        """Pin what no operation consumes: removing it would change no computation."""
        read = np.zeros(self.axes.count, dtype=bool)
        for place in self.reads:
            read[self.axes.canon(place.axis)] = True
        for key, info in enumerate(self.program.tensors):
            if info.kind in ("parameter", "buffer"):
                for axis in self.dims(Ref(key)):
                    atoms = self.axes.canon(axis)
                    unread = np.unique(atoms[~read[atoms] & (atoms > 0)])
                    if len(unread):
                        self.axes.pin(unread[:, None], "no operation reads it")

    def _new(self, size: int) -> Axis:
        return self.axes.fresh(size) if size > 1 else fixed(size)

    def pinned(self, size: int, reason: str) -> Axis:
        """Return an axis that cannot be cut, and remembers why."""
        known = self._pinned.get((size, reason))
        if known is None:
            known = np.repeat(self.axes.fresh(1), size, axis=0) if size else fixed(0)
            self.axes.pin(known, reason)
            self._pinned[size, reason] = known
        return known

    def _apply(self, node: Node) -> None:
        known = all(self.known(ref) for ref in node.refs)
        if not known:
            self.give_up(node, "it reads a tensor that nothing produced")
        elif node.op in RULES or node.pointwise:
            self._check_positions(node)
            try:
                RULES[node.op if node.op in RULES else "aten.add"](self, node)
            except _MISFITS as error:
                # A form of the operation that its rule does not know: what was coupled stays so.
                self.give_up(node, f"its rule does not cover this form ({error!r:.80})")
        else:
            self.give_up(node, "it has no rule")
        for key in node.outs:
            if key >= 0 and self._dims[key] is None:
                self.undescribed.add(key)
                self._dims[key] = [fixed(n) for n in self.program.tensors[key].shape]

    def _check_positions(self, node: Node) -> None:
        """Numbers of positions go on with what carries them; what would misread them pins."""
        for place, ref in enumerate(node.refs):
            axis = self.positions.get(ref.key)
            if axis is None:
                continue
            if place == 0 and (node.op in _CARRY or _wraps(node)):
                self.positions.update({key: axis for key in node.outs if key >= 0})
                if node.op in _WHOLE and ref.key in self._ranges:
                    self._ranges.update(node.outs)
            elif not (node.op in _LOOK_UP | _SHAPE_ALONE or self._understood(node, axis)):
                self.pin(node, [axis], "it computes with numbers of positions")

    def _understood(self, node: Node, axis: Axis) -> bool:
        """Tell whether ``node`` is part of a look-up that the rules follow."""
        name = node.call.name if node.call else ""
        if node.op in _ONE_HOT and name == "one_hot":
            return True
        if node.op == "aten.eq" and node.call and len(node.call.args) == 2:
            return self._compared(node, axis, node.call.args[1])
        return node.op == "aten._local_scalar_dense" and name == "__getitem__"

    def _compared(self, node: Node, axis: Axis, value: Any) -> bool:
        """Follow a comparison with one position, such as the one behind the last."""
        if not isinstance(value, Sized) or not 0 <= int.__index__(value) <= len(axis):
            return False
        position = int.__index__(value)
        self.require(node, axis[:position], value)
        self.pin(node, [axis[position : position + 1]], "it is told by its number")
        return True

    def hold_positions(self, key: int, axis: Axis, *, every: bool = False) -> None:
        """Note that a tensor holds numbers of positions of ``axis``; of every one, in order."""
        self.positions[key] = axis
        if every:
            self._ranges.add(key)

    def repeated(self, key: int, dims: Iterable[int]) -> None:
        """Note the dimensions along which a tensor says the same at every position."""
        self._repeated[key] = frozenset(dims)

    def constant_dims(self, ref: Ref) -> frozenset[int]:
        """Return the dimensions along which a tensor is known to be the same everywhere."""
        single = (d for d, n in enumerate(self.shape(ref)) if n == 1)
        return self._repeated.get(ref.key, frozenset()).union(single)

    def range_dim(self, ref: Ref) -> int | None:
        """Return the dimension along which a tensor counts all positions in order, if it does."""
        long = [d for d, n in enumerate(self.shape(ref)) if n > 1]
        return long[0] if ref.key in self._ranges and len(long) == 1 else None

    def look_up(self, node: Node, axis: Axis, ref: Ref) -> bool:
        """Couple ``axis`` with the one whose positions ``ref`` holds; False where it holds none."""
        held = self.positions.get(ref.key)
        if held is None:
            return False
        both = min(len(axis), len(held))
        self.unify(node, axis[:both], held[:both])
        self.pin(node, [axis[both:]], "no number leads there")
        if ref.key not in self._ranges:
            self.roles.append(("expert", held))
        return True

    def give_up(self, node: Node, why: str) -> None:
        """Pin everything that ``node`` touches."""
        reason = f"{self.where(node)}: {why}"
        for ref in node.refs:
            if ref.key in self.positions:
                self.axes.pin(self.positions[ref.key], reason)
            if self.known(ref):
                for axis in self.dims(ref):
                    self.axes.pin(axis, reason)
        for key in node.outs:
            if key >= 0 and self._dims[key] is None:
                shape = self.program.tensors[key].shape
                self._dims[key] = [self.pinned(n, reason) for n in shape]

    def where(self, node: Node) -> str:
        """Say which operation this is, for a person."""
        path = self.program.path(self._index)
        label = self.program.labels[path] if self.program.labels else ""
        return where_is(node.op, node.module) + (f" ({label})" if label else "")

    def known(self, ref: Ref) -> bool:
        """Tell whether the axes of a tensor are known."""
        return self._dims[ref.key] is not None

    def dims(self, ref: Ref) -> list[Axis]:
        """Return the axes of a tensor, one a dimension."""
        found = self._dims[ref.key]
        assert found is not None
        return found

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the traced shape of a tensor."""
        return self.program.tensors[ref.key].shape

    def out_shape(self, node: Node, index: int = 0) -> tuple[int, ...]:
        """Return the traced shape of what ``node`` returned."""
        return self.program.tensors[node.outs[index]].shape

    def set(self, node: Node, dims: Sequence[Axis], index: int = 0) -> None:
        """Describe output ``index`` of ``node``; an output that is its input is unified."""
        key = node.outs[index]
        if key < 0:
            return
        shape = self.program.tensors[key].shape
        # No assertion: python -O would let a wrong rule pass.
        if tuple(len(axis) for axis in dims) != shape:
            raise ValueError(f"the rule of {node.op} gives other sizes than {shape}")
        before = self._dims[key]
        if before is None:
            self._dims[key] = list(dims)
        else:
            for old, new in zip(before, dims, strict=True):
                self.unify(node, old, new)

    def unify(self, node: Node, left: Axis, right: Axis) -> None:
        """Couple two axes position by position."""
        if left is not right:
            self.axes.unify(left, right, self.where(node))

    def pin(self, node: Node, axes: Sequence[Axis], why: str) -> None:
        """Forbid cutting ``axes``."""
        for axis in axes:
            if axis.shape[1]:
                self.axes.pin(axis, f"{self.where(node)}: {why}")

    def require(self, node: Node, axis: Axis, value: Any) -> None:
        """Note that the code states the size of ``axis`` as ``value``; a literal pins it."""
        expr = expr_of(value)
        if isinstance(expr, int):
            self.pin(node, [axis], f"size {expr} is fixed in the model's code")
        else:
            self.requirements.append(Requirement(expr, axis, self.where(node)))

    def state(self, place: int, axis: Axis, less: int = 0) -> None:
        """Note that argument ``place`` of the current operation is ``axis``'s size less some."""
        self.stated[self._index][place] = axis, less

    def at_least(self, node: Node, ref: Ref, dims: Iterable[int], least: int) -> None:
        """Note that a tensor must keep ``least`` positions, counted over ``dims`` together."""
        free = [d for d in dims if self.dims(ref)[d].shape[1]]
        if free:
            sizes: list[Expr] = [Dim(ref.key, d) for d in dims]
            size = reduce(partial(Apply, "*"), sizes)
            self.equal(node, Apply("<=", least, size), 1)

    def constant(self, node: Node, value: Any) -> None:
        """Note that a number in the code must stay ``value``, whatever sizes it is made from."""
        self.equal(node, expr_of(value), int.__index__(value))

    def equal(self, node: Node, expr: Expr, number: int) -> None:
        """Note that what the code computes from sizes must stay ``number``."""
        if not isinstance(expr, int):
            same = Apply("-", expr, number)
            self.requirements.append(Requirement(same, fixed(0), self.where(node)))

    def sized(self, node: Node, size: int, value: Any) -> Axis:
        """Return an axis for a new dimension whose size the code states as ``value``."""
        expr = expr_of(value)
        if isinstance(expr, Dim) and self._dims[expr.tensor] is not None:
            axis = self.dims(Ref(expr.tensor))[expr.dim]
            if len(axis) == size:
                return axis
        if isinstance(expr, int):
            return self.pinned(size, f"{self.where(node)}: size {size} is fixed in the code")
        axis = self._new(size)
        self.require(node, axis, value)
        return axis

    def read(self, node: Node, arg: int, dim: int, axis: Axis, how: str) -> None:
        """Note that ``node`` consumes dimension ``dim`` of its argument ``arg``."""
        if axis.shape[1]:
            self._note_read(node, arg, dim, axis, how, None)

    def contract(self, node: Node, left: tuple[int, int], right: tuple[int, int]) -> None:
        """Unify and note the contraction of two arguments: (argument, dimension) each."""
        axes = [self.dims(node.args[arg])[dim] for arg, dim in (left, right)]
        self.unify(node, axes[0], axes[1])
        self.consume(node, left, right, axes[0])

    def consume(
        self, node: Node, left: tuple[int, int], right: tuple[int, int], axis: Axis
    ) -> None:
        """Note a contraction; where one side is a weight, its positions are named."""
        if not axis.shape[1]:
            return
        for arg, dim in (right, left):
            origin = self._origin.get(node.args[arg].key)
            if origin is None or origin[0] in self._written:  # the reference's zeros would go
                continue
            if origin[1][dim] >= 0:
                place = (origin[0], origin[1][dim])
                self._note_read(node, left[0], left[1], axis, "mask", place)
                return
        self.read(node, left[0], left[1], axis, "mask")

    def _note_read(
        self, node: Node, arg: int, dim: int, axis: Axis, how: str, place: tuple[str, int] | None
    ) -> None:
        op = family(node.op)
        if op != node.op:
            arg, dim = 0, -1  # the left operand's last dimension, whatever the layout
        path = self.program.path(self._index)
        self.reads.append(Read(op, node.module, node.turn, arg, dim, axis, how, place, path))

    def name(self, ref: Ref) -> str | None:
        """Return the name of a tensor that is a parameter, as it is."""
        info = self.program.tensors[ref.key]
        return info.name if info.kind == "parameter" else None

    def is_weight(self, ref: Ref) -> bool:
        """Tell whether a tensor is a parameter or buffer, moved about or looked up at most."""
        return ref.key in self._origin

    def moved(self, node: Node, source: Ref, order: Sequence[int]) -> None:
        """Note that an output is ``source`` with its dimensions in ``order``; -1 is a new one."""
        origin = self._origin.get(source.key)
        if origin is not None:
            dims = tuple(origin[1][d] if d >= 0 else -1 for d in order)
            self._origin[node.outs[0]] = (origin[0], dims)

    def count(self, factor: int, axes: Sequence[Axis]) -> None:
        """Note the multiply-accumulates of the current operation."""
        self.work.append(Work(self._index, factor, tuple(axes)))


def _wraps(node: Node) -> bool:
    """Tell whether ``take_along_dim`` wraps negative numbers: a position is none."""
    name = node.call.name if node.call else ""
    return node.op == "aten.remainder" and name == "take_along_dim"
