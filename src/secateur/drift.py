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
import math
from collections import defaultdict

import torch

from secateur.cutting import cut
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.graph.copies import copy_model, meta_like
from secateur.graph.flow import refs_of
from secateur.graph.program import Node, Program, Ref
from secateur.graph.tracing import record
from secateur.plan import Plan, Scale
from secateur.proportion import Source, Walk, Ways

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
    ways = Ways(graph.program)
    for index, factor in _drifts(graph.program, after):
        for key in _merged(_sources(ways, index)):
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
    constants = {key: old / new for (key, old), new in pairs if old and new and not _same(old, new)}
    found = []
    used = before.used()  # what only checks something changes no output
    for index, old in enumerate(before.nodes):
        if old.outs[0] in singles or not used.intersection(old.outs):
            continue
        news = _numbers(partner[index]) if index in partner else {}
        for place, value in _numbers(old).items():
            if _same(news.get(place, value), value) or not news[place] or not value:
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


def _same(one: float, other: float) -> bool:
    """Tell whether a number did not drift; one that is none (NaN) does not."""
    return one == other or (math.isnan(one) and math.isnan(other))


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


def _sources(ways: Ways, index: int) -> list[Source]:
    """Return the weights whose scaling scales what node ``index`` multiplies."""
    program = ways.program
    node = program.nodes[index]
    for ref in node.args:
        if isinstance(ref, Ref) and program.shape(ref):
            walk = Walk(ways, {index}, {})
            found = walk.back(ref.key, torch.ones(program.shape(ref), dtype=torch.bool), index)
            if found is not None and walk.alone():
                return found
    raise DriftError(node)
