"""Numbers that a model's code derives from its own shapes, and how a cut keeps them true.

Attention divides its scores by the root of the head dimension. Where the code
computes that number while it runs, a cut changes it in silence. The cut network
is therefore traced once more (shapes only), its numbers are compared with the
dense network's, operation by operation, and the quotient is folded into the
weights that feed the operation: dense x * a, cut x * b, so x must be scaled by
a / b.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.cutting import cut
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.graph.copies import copy_model, meta_like
from secateur.graph.flow import refs_of
from secateur.graph.program import Node, Program, Ref
from secateur.graph.tracing import record
from secateur.plan import Plan, Scale

Source: TypeAlias = "tuple[str, int, tuple[int, ...]]"

_FACTORS = {"aten.mul": 1, "aten.mul_": 1, "aten.div": -1, "aten.div_": -1}
_CONSTANTS = ("aten.full", "aten.scalar_tensor")
_SUMS = ("aten.add", "aten.sub", "aten.add_", "aten.sub_", "aten.rsub", "aten.pow", "aten.pow_")


class DriftError(PlanError):
    """A number drifts that no weight can take."""

    def __init__(self, node: Node) -> None:
        super().__init__(
            f"{node.op} in {node.module or 'the model'} uses a number that the code derives "
            "from a size that the plan changes, and no weight can take the factor"
        )
        self.module = node.module


def keep_numbers(graph: Graph, plan: Plan) -> Plan:
    """Return ``plan`` with the scales that undo drifting numbers.

    Raises:
        DriftError: a number drifts where no weight can take its factor.
    """
    if not graph.program.numbers and not any(_numbers(node) for node in graph.program.nodes):
        return plan
    if graph.program.way == "real":
        twin = cut(graph.model, plan)
    else:
        twin = cut(copy_model(graph.model, lambda _, t: meta_like(t)), plan, inplace=True)
    after = record(twin, graph.example_inputs)
    scales: dict[tuple[str, int, tuple[int, ...]], float] = {}
    for index, factor in _drifts(graph.program, after):
        for key in _merged(_sources(graph.program, index)):
            scales[key] = scales.get(key, 1.0) * factor
    found = tuple(Scale(*key, factor) for key, factor in scales.items())
    return dataclasses.replace(plan, scales=found)


def _merged(sources: list[Source]) -> list[Source]:
    """Join the positions that several paths found in one weight: each is scaled once."""
    places: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, dim, positions in sources:
        places[name, dim].update(positions)
    return [(name, dim, tuple(sorted(found))) for (name, dim), found in places.items()]


def _numbers(node: Node) -> dict[int, float]:
    """Return the plain numbers among a node's arguments that enter its arithmetic."""
    if node.op not in _FACTORS and node.op not in _CONSTANTS and node.op not in _SUMS:
        return {}
    return {
        place: float(value)
        for place, value in enumerate(node.args)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _drifts(before: Program, after: Program) -> list[tuple[int, float]]:
    """List (node, factor that its other operand must be scaled by)."""
    olds = [index for index, node in enumerate(before.nodes) if _numbers(node)]
    partners = [node for node in after.nodes if _numbers(node)]
    if [before.nodes[index].op for index in olds] != [node.op for node in partners]:
        return []  # another path: nothing to compare; verification decides
    partner = dict(zip(olds, partners, strict=True))
    singles = _singles(before)
    pairs = zip(singles.items(), _singles(after).values(), strict=False)
    constants = {key: old / new for (key, old), new in pairs if old != new and old and new}
    found = []
    for index, old in enumerate(before.nodes):
        if old.outs[0] in singles:
            continue
        news = _numbers(partner[index]) if index in partner else {}
        for place, value in _numbers(old).items():
            if news.get(place, value) == value or not news[place] or not value:
                continue
            ratio = value / news[place]
            if old.op in _CONSTANTS:
                constants[old.outs[0]] = ratio
            elif old.op in _FACTORS:
                found.append((index, ratio ** _FACTORS[old.op]))
            else:
                raise DriftError(old)
        for place, ref in enumerate(old.args):
            if isinstance(ref, Ref) and ref.key in constants:
                if old.op not in _FACTORS or ("div" in old.op and place == 0):
                    raise DriftError(old)
                found.append((index, constants[ref.key] ** _FACTORS[old.op]))
    return found


def _singles(program: Program) -> dict[int, float]:
    """Compute the tensors of one element that are made from plain numbers alone, in order."""
    values = {
        key: torch.tensor(number, dtype=program.tensors[key].dtype)
        for key, number in program.numbers.items()
        if program.tensors[key].shape == ()
    }
    for node in program.nodes:
        refs = refs_of(node)
        known = all(ref.key in values for ref in refs) if refs else node.op in _CONSTANTS
        if known and len(node.outs) == 1 and program.tensors[node.outs[0]].shape == ():
            args = [values[a.key] if isinstance(a, Ref) else a for a in node.args]
            named = {name: v for name, v in node.kwargs.items() if name != "device"}
            if not any(isinstance(value, (Ref, tuple)) for value in named.values()):
                packet = getattr(torch.ops.aten, node.op.removeprefix("aten."))
                values[node.outs[0]] = getattr(packet, node.overload)(*args, **named)
    return {key: float(value) for key, value in values.items() if value.is_floating_point()}


def _sources(program: Program, index: int) -> list[Source]:
    """Return the weights whose scaling scales what node ``index`` multiplies."""
    node = program.nodes[index]
    for ref in node.args:
        if isinstance(ref, Ref) and program.shape(ref):
            walk = _Walk(program, {index}, {})
            found = walk.back(ref.key, torch.ones(program.shape(ref), dtype=torch.bool), index)
            if found is not None and walk.alone():
                return found
    raise DriftError(node)


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
_SAME_ORDER = frozenset(
    f"aten.{name}"
    for name in ("view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "detach",
                 "_to_copy")
)  # fmt: skip
_REORDERS = ("aten.repeat", "aten.roll", "aten.flip", "aten.constant_pad_nd")
_NORMS = {"aten.native_layer_norm": (2, 3), "aten._fused_rms_norm": (2,)}


@dataclass
class _Walk:
    """Walks from a tensor back to the weights that it is proportional to.

    ``wanted`` masks hold which elements of a tensor must be scaled; ``nodes`` and
    ``scaled`` remember the operations and tensors on the way.
    """

    program: Program
    nodes: set[int]
    scaled: dict[int, Tensor]

    def alone(self) -> bool:
        """Tell whether nothing off the way reads what would be scaled."""
        for index, node in enumerate(self.program.nodes):
            if index in self.nodes or node.op in _SHAPE_ONLY:
                continue
            for place, ref in enumerate(refs_of(node)):
                wanted = self.scaled.get(ref.key)
                if wanted is None:
                    continue
                if node.op not in _MOVES or node.op in _JOINS or place > 0:
                    return False
                result = _move(node, wanted)
                parts = result if isinstance(result, (tuple, list)) else (result,)
                for key, touched in zip(node.outs, parts, strict=True):
                    known = self.scaled.get(key)
                    beyond = touched if known is None else touched & ~known
                    if beyond.any() and not self._unread(key, beyond):
                        return False
        return True

    def _unread(self, key: int, touched: Tensor) -> bool:
        """Tell whether the touched elements of a moved tensor go nowhere."""
        return _Walk(self.program, self.nodes, {key: touched}).alone()

    def back(self, key: int, wanted: Tensor, before: int) -> list[Source] | None:
        """Return the weights to scale, None where there are none."""
        nodes, scaled = set(self.nodes), dict(self.scaled)
        found = self._back(key, wanted, before)
        if found is None:  # a way that leads nowhere leaves no trace
            self.nodes, self.scaled = nodes, scaled
        return found

    def _back(self, key: int, wanted: Tensor, before: int) -> list[Source] | None:
        info = self.program.tensors[key]
        known = self.scaled.get(key)
        self.scaled[key] = wanted if known is None else known | wanted
        if info.kind in ("parameter", "buffer"):
            return self._parameter(info.name, wanted)
        for index in range(before - 1, -1, -1):
            node = self.program.nodes[index]
            if key in node.outs:
                self.nodes.add(index)
                return self._through(node, node.outs.index(key), wanted, index)
        return None

    def _is_weight(self, key: int, before: int) -> bool:
        """Tell whether a tensor is a parameter, moved about at most."""
        if self.program.tensors[key].kind == "parameter":
            return True
        for index in range(before - 1, -1, -1):
            node = self.program.nodes[index]
            if key in node.outs:
                source = node.args[0] if node.op in _MOVES - set(_JOINS) else None
                return isinstance(source, Ref) and self._is_weight(source.key, index)
        return False

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
        if node.op in ("aten.add", "aten.sub", "aten.add_", "aten.sub_"):
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
