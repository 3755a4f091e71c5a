"""Which weights a tensor is proportional to, so that scaling them scales it and nothing else."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.graph.program import Node, Program, Ref

Source: TypeAlias = "tuple[str, int, tuple[int, ...]]"

_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand",
        "slice", "select", "split", "split_with_sizes", "unbind", "alias", "clone", "detach",
        "_to_copy", "repeat", "roll", "flip", "constant_pad_nd", "cat", "stack", "unsafe_split",
    )
)  # fmt: skip
_SHAPE_ONLY = frozenset(
    f"aten.{name}"
    for name in ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones",
                 "new_empty", "new_full")
)  # fmt: skip
_JOINS = ("aten.cat", "aten.stack")
_SUMS = ("aten.add", "aten.sub", "aten.add_", "aten.sub_")
_SAME_ORDER = frozenset(
    f"aten.{name}"
    for name in ("view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "detach",
                 "_to_copy")
)  # fmt: skip
_REORDERS = ("aten.repeat", "aten.roll", "aten.flip", "aten.constant_pad_nd")
_NORMS = {"aten.native_layer_norm": (2, 3), "aten._fused_rms_norm": (2,)}


class Ways:
    """Who makes and who reads every tensor of a program, by the number of the operation."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._makers: dict[int, list[int]] = defaultdict(list)
        for index, node in enumerate(program.nodes):
            for place, ref in enumerate(node.refs):
                self.readers[ref.key].append((index, place))
            for key in node.outs:
                self._makers[key].append(index)

    def maker(self, key: int, before: int) -> int | None:
        """Return the last operation before number ``before`` that made or changed a tensor."""
        found = self._makers.get(key, [])
        place = bisect.bisect_left(found, before)
        return found[place - 1] if place else None


@dataclass
class Walk:
    """Walks from a tensor back to the weights that it is proportional to.

    ``wanted`` masks hold which elements of a tensor must be scaled; ``nodes``, ``scaled`` and
    ``taken`` remember the operations and tensors on the way, and which an operation was left by.
    """

    ways: Ways
    nodes: set[int]
    scaled: dict[int, Tensor]
    taken: set[tuple[int, int]] = field(default_factory=set)

    @property
    def program(self) -> Program:
        """The program that is walked."""
        return self.ways.program

    def alone(self) -> bool:
        """Tell whether nothing off the way reads what would be scaled."""
        for key, wanted in self.scaled.items():
            for index, place in self.ways.readers.get(key, ()):
                node = self.ways.program.nodes[index]
                if node.op in _SHAPE_ONLY:
                    continue
                if index in self.nodes:
                    if self._twice(index, key):
                        return False
                    continue
                if node.op not in _MOVES or node.op in _JOINS or place > 0:
                    return False
                result = _move(node, wanted)
                parts = result if isinstance(result, (tuple, list)) else (result,)
                for out, touched in zip(node.outs, parts, strict=True):
                    known = self.scaled.get(out)
                    beyond = touched if known is None else touched & ~known
                    if beyond.any() and not self._unread(out, beyond):
                        return False
        return True

    def _twice(self, index: int, key: int) -> bool:
        """Tell whether a product on the way reads a scaled tensor by a second operand, too."""
        node = self.program.nodes[index]
        if node.op in _SUMS or node.op in _MOVES:
            return False
        times = sum(ref.key == key for ref in node.refs)
        return times > 1 or (index, key) not in self.taken

    def _unread(self, key: int, touched: Tensor) -> bool:
        """Tell whether the touched elements of a moved tensor go nowhere."""
        return Walk(self.ways, self.nodes, {key: touched}, self.taken).alone()

    def back(self, key: int, wanted: Tensor, before: int) -> list[Source] | None:
        """Return the weights to scale, None where there are none."""
        nodes, scaled, taken = set(self.nodes), dict(self.scaled), set(self.taken)
        self.taken.add((before, key))
        found = self._back(key, wanted, before)
        if found is None:  # a way that leads nowhere leaves no trace
            self.nodes, self.scaled, self.taken = nodes, scaled, taken
        return found

    def _back(self, key: int, wanted: Tensor, before: int) -> list[Source] | None:
        info = self.program.tensors[key]
        known = self.scaled.get(key)
        self.scaled[key] = wanted if known is None else known | wanted
        if info.kind in ("parameter", "buffer"):
            return self._parameter(info.name, wanted)
        index = self.ways.maker(key, before)
        if index is None:
            return None
        self.nodes.add(index)
        node = self.program.nodes[index]
        return self._through(node, node.outs.index(key), wanted, index)

    def _is_weight(self, key: int, before: int) -> bool:
        """Tell whether a tensor is a parameter, moved about at most."""
        if self.program.tensors[key].kind == "parameter":
            return True
        index = self.ways.maker(key, before)
        if index is None:
            return False
        node = self.program.nodes[index]
        source = node.args[0] if node.op in _MOVES - set(_JOINS) else None
        return isinstance(source, Ref) and self._is_weight(source.key, index)

    @staticmethod
    def _parameter(name: str, wanted: Tensor) -> list[Source] | None:
        """Scale whole positions along one dimension; the first that fits."""
        for dim in range(wanted.dim()):
            others = [d for d in range(wanted.dim()) if d != dim]
            some = wanted.any(dim=others) if others else wanted
            every = wanted.all(dim=others) if others else wanted
            if torch.equal(some, every):
                return [(name, dim, tuple(some.nonzero().flatten().tolist()))]
        return None

    def _through(self, node: Node, out: int, wanted: Tensor, index: int) -> list[Source] | None:
        if node.op in _MOVES:
            return self._moved(node, out, wanted, index)
        if node.op in ("aten.neg", "aten.relu", "aten.native_dropout"):
            return self.back(node.args[0].key, wanted, index)
        if node.op in ("aten.mul", "aten.div", "aten.mul_", "aten.div_"):
            operands = node.args[:1] if "div" in node.op else node.args[:2]
            return self._first(operands, wanted, index)
        if node.op in _SUMS:
            return self._every(node.args[:2], wanted, index)
        if node.op == "aten.bmm":
            left = wanted.any(dim=2, keepdim=True).expand(self.program.shape(node.args[0]))
            right = wanted.any(dim=1, keepdim=True).expand(self.program.shape(node.args[1]))
            order = [(node.args[0], left), (node.args[1], right)]
            if self._is_weight(node.args[1].key, index):
                order.reverse()
            for ref, mask in order:
                found = self.back(ref.key, mask, index)
                if found is not None:
                    return found
            return None
        if node.op in ("aten.addmm", "aten.mm"):
            refs = [node.args[2], node.args[0]] if node.op == "aten.addmm" else [node.args[1]]
            columns = wanted.any(dim=0)
            masks = [columns.expand(self.program.shape(ref)) for ref in refs]
            return self._all(refs, masks, index)
        if node.op == "aten.convolution":
            others = [d for d in range(wanted.dim()) if d != 1]
            rows = wanted.any(dim=others)
            place = 1 if node.args[6] else 0
            shape = [1] * wanted.dim()
            shape[place] = -1
            weight = node.args[1]
            if place == 1 and node.args[8] != 1:
                return None
            refs = [weight]
            masks = [rows.reshape(shape).expand(self.program.shape(weight))]
            if node.args[2] is not None:
                refs.append(node.args[2])
                masks.append(rows)
            return self._all(refs, masks, index)
        if node.op in _NORMS and out == 0:
            refs = [node.args[p] for p in _NORMS[node.op] if isinstance(node.args[p], Ref)]
            if not refs:
                return None
            rank = len(self.program.shape(refs[0]))
            rows = wanted.flatten(0, wanted.dim() - rank - 1).any(dim=0)
            return self._all(refs, [rows] * len(refs), index)
        return None

    def _first(self, refs: Sequence[object], wanted: Tensor, index: int) -> list[Source] | None:
        """Scale one factor of a product: the first that leads to weights."""
        for ref in refs:
            if isinstance(ref, Ref):
                mask = _shrink(wanted, self.program.shape(ref))
                found = self.back(ref.key, mask, index)
                if found is not None:
                    return found
        return None

    def _every(self, refs: Sequence[object], wanted: Tensor, index: int) -> list[Source] | None:
        """Scale all terms of a sum."""
        tensors = [ref for ref in refs if isinstance(ref, Ref)]
        if len(tensors) < len(refs):
            return None
        masks = [_shrink(wanted, self.program.shape(ref)) for ref in tensors]
        return self._all(tensors, masks, index)

    def _all(self, refs: Sequence[Ref], masks: Sequence[Tensor], index: int) -> list[Source] | None:
        found: dict[Source, None] = {}
        for ref, mask in zip(refs, masks, strict=True):
            part = self.back(ref.key, mask, index)
            if part is None:
                return None
            found.update(dict.fromkeys(part))
        return list(found)

    def _moved(self, node: Node, out: int, wanted: Tensor, index: int) -> list[Source] | None:
        """Follow elements back through an operation that only moves them."""
        joined = node.op in _JOINS
        refs = [r for r in (node.args[0] if joined else node.args[:1]) if isinstance(r, Ref)]
        shapes = [self.program.shape(ref) for ref in refs]
        if node.op in _REORDERS:
            masks = _undo_by_numbers(node, wanted, shapes[0])
        elif node.op == "aten.cat":
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            masks = list(wanted.split([shape[dim] for shape in shapes], dim))
        elif node.op == "aten.stack":
            masks = list(wanted.unbind(node.args[1] if len(node.args) > 1 else 0))
        elif node.op == "aten.expand":
            masks = [_shrink(wanted, shapes[0])]
        elif node.op in _SAME_ORDER:
            masks = [wanted.reshape(shapes[0])]
        else:
            masks = [torch.zeros(shapes[0], dtype=torch.bool)]
            view = _move(node, masks[0])  # it shares its memory with the mask
            (view[out] if isinstance(view, (tuple, list)) else view).copy_(wanted)
        pairs = [(ref, mask) for ref, mask in zip(refs, masks, strict=True) if mask.any()]
        return self._all([ref for ref, _ in pairs], [mask for _, mask in pairs], index)


def _undo_by_numbers(node: Node, wanted: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Find where elements came from by moving their numbers, from 1; 0 came from nowhere."""
    count = int(torch.Size(shape).numel())
    moved = _move(node, torch.arange(1, count + 1).reshape(shape))
    hit = torch.zeros(count + 1, dtype=torch.bool)
    hit[moved[wanted].flatten()] = True
    return [hit[1:].reshape(shape)]


def _move(node: Node, tensor: Tensor) -> Any:
    """Run an operation that only moves elements on something else of the same shape."""
    packet = getattr(torch.ops.aten, node.op.removeprefix("aten."))
    keywords = {} if node.op == "aten._to_copy" else node.kwargs
    return getattr(packet, node.overload)(tensor, *node.args[1:], **keywords)


def _shrink(wanted: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo broadcasting: an element is wanted where any of its copies is."""
    while wanted.dim() > len(shape):
        wanted = wanted.any(dim=0)
    for dim, size in enumerate(shape):
        if size == 1 and wanted.shape[dim] != 1:
            wanted = wanted.any(dim=dim, keepdim=True)
    return wanted
