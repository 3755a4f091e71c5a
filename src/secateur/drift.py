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
from collections.abc import Sequence

import torch

from secateur.errors import PlanError
from secateur.graph.modules import where_is
from secateur.graph.program import Node, Program, Ref
from secateur.plan import Plan, Scale
from secateur.plan_check import CONSTANTS, FACTORS, SLACK, Retraced, same_number
from secateur.proportion import Source, Walk, Ways


class DriftError(PlanError):
    """A number drifts that no weight can take."""

    def __init__(self, index: int, node: Node) -> None:
        self.node = index
        self.module = node.module
        self.reason = (
            f"{where_is(node.op, node.module)} uses a number that the code derives from a size "
            "that the plan changes, and no weight can take the factor"
        )
        super().__init__(self.reason)


def keep_numbers(plan: Plan, traced: Sequence[Retraced]) -> Plan:
    """Return ``plan`` with the scales that undo drifting numbers.

    Args:
        plan: what is removed.
        traced: for every pass the planned network's trace beside the dense one's, all operations
            in pairs.

    Raises:
        DriftError: a number drifts where no weight can take its factor, or where passes that
            read one weight ask for different factors.
    """
    found = [_scales(each) for each in traced]
    scales = {key: factor for each in found for key, (factor, _, _) in each.items()}
    for each, one in zip(found, traced, strict=True):
        read = {one.before.tensors[key].name for node in one.before.nodes for key in _read(node)}
        for key, factor in scales.items():
            mine = each.get(key, (1.0, None, None))[0]
            if key[0] in read and not math.isclose(mine, factor, rel_tol=SLACK):
                _, index, node = next(other[key] for other in found if key in other)
                raise DriftError(index, node)
    return dataclasses.replace(
        plan, scales=tuple(Scale(*k, factor) for k, factor in scales.items())
    )


def _read(node: Node) -> list[int]:
    return [ref.key for ref in node.refs]


def _scales(
    traced: Retraced,
) -> dict[tuple[str, int, tuple[int, ...]], tuple[float, int, Node]]:
    """Return the factors of a pass's weights, and an operation that each is for."""
    scales: dict[tuple[str, int, tuple[int, ...]], tuple[float, int, Node]] = {}
    ways: Ways | None = None
    for index, factor in _drifts(traced):
        ways = ways or Ways(traced.before)
        try:
            sources = _merged(_sources(ways, index))
        except DriftError as error:
            raise DriftError(traced.first + index, ways.program.nodes[index]) from error
        for key in sources:
            known = scales.get(key, (1.0,))[0]
            scales[key] = known * factor, traced.first + index, ways.program.nodes[index]
    return scales


def _merged(sources: list[Source]) -> list[Source]:
    """Join the positions that several paths found in one weight: each is scaled once."""
    places: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, dim, positions in sources:
        places[name, dim].update(positions)
    return [(name, dim, tuple(sorted(found))) for (name, dim), found in places.items()]


def _numbers(node: Node) -> dict[int, float]:
    """Return the plain numbers among a node's arguments whose factor a weight can take."""
    if node.op not in FACTORS and node.op not in CONSTANTS:
        return {}
    return {
        place: float(value)
        for place, value in enumerate(node.args)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _drifts(traced: Retraced) -> list[tuple[int, float]]:
    """List (number of a dense operation, factor that its other operand must be scaled by)."""
    before, after = _singles(traced.before), _singles(traced.after)
    same = dict(zip(traced.before.numbers, traced.after.numbers, strict=False))
    for old, new in traced.pairs:
        same.update(zip(old.node.outs, new.node.outs, strict=False))
    ratios: dict[int, float | None] = {}
    for key, value in before.items():
        now = after.get(same.get(key, -1), value)
        if not same_number(traced.before, value, now):
            ratios[key] = value / now if value and now else None
    found = []
    used = traced.before.used()  # what only checks something changes no output
    for old, new in traced.pairs:
        node = old.node
        if node.outs[0] in before or not used.intersection(node.outs):
            continue
        news = _numbers(new.node)
        for place, value in _numbers(node).items():
            if same_number(traced.before, value, news.get(place, value)):
                continue
            ratio = value / news[place] if value and news[place] else None
            if node.op in CONSTANTS:
                ratios[node.outs[0]] = ratio
            elif ratio is None:
                raise DriftError(traced.first + old.index, node)
            else:
                found.append((old.index, ratio ** FACTORS[node.op]))
        for place, ref in enumerate(node.refs):
            if ref.key in ratios:
                ratio = ratios[ref.key]
                plain = place < len(node.args) and node.args[place] == ref
                if ratio is None or not plain or not _takes_factor(node, place):
                    raise DriftError(traced.first + old.index, node)
                found.append((old.index, ratio ** FACTORS[node.op]))
    return found


def _takes_factor(node: Node, place: int) -> bool:
    """Tell whether an operand of a product or the divisor of a quotient is at ``place``."""
    return node.op in FACTORS and not (FACTORS[node.op] < 0 and place == 0)


def _singles(program: Program) -> dict[int, float]:
    """Compute the tensors of one element that are made from plain numbers alone, in order."""
    values = {
        key: torch.tensor(number, dtype=program.tensors[key].dtype)
        for key, number in program.numbers.items()
        if program.tensors[key].shape == ()
    }
    for node in program.nodes:
        refs = node.refs
        known = all(ref.key in values for ref in refs) if refs else node.op in CONSTANTS
        if known and len(node.outs) == 1 and program.tensors[node.outs[0]].shape == ():
            args = [values[a.key] if isinstance(a, Ref) else a for a in node.args]
            named = {name: v for name, v in node.kwargs.items() if name != "device"}
            if not any(isinstance(value, (Ref, tuple)) for value in named.values()):
                packet = getattr(torch.ops.aten, node.op.removeprefix("aten."))
                values[node.outs[0]] = getattr(packet, node.overload)(*args, **named)
    return {key: float(value) for key, value in values.items() if not value.is_complex()}


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
    raise DriftError(index, node)
