"""The order in which units leave, whatever the target: what competes, and at which pace.

Groups that compete form a class. Within a class the lowest score leaves first; classes give up
their units at the same pace, each the same share of what it has. Local scope makes every group a
class, global scope makes one class of all, and isomorphic scope puts groups of equal structure
together (Fang et al. 2024, "Isomorphic pruning for vision models", arXiv 2407.04616).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.allocation.limits import SLACK
from secateur.criteria.combine import normalise
from secateur.graph import Graph, Group
from secateur.graph.attributes import owner_of
from secateur.graph.copies import every_tensor

SCOPES = ("local", "global", "isomorphic")

Structure = tuple[str, tuple[tuple[str, str, int, int, str], ...]]
Step = tuple[str, int]
"""A group, and how many of its units leave next."""


def classes(graph: Graph, scope: str, names: Sequence[str]) -> list[list[str]]:
    """Divide groups into those that compete with each other, in the order of ``names``."""
    if scope == "global":
        return [list(names)] if names else []
    if scope == "local":
        return [[name] for name in names]
    found: dict[Structure, list[str]] = {}
    modules, tensors = dict(graph.model.named_modules()), dict(every_tensor(graph.model))
    for name in names:
        found.setdefault(structure(graph.by_name[name], modules, tensors), []).append(name)
    return list(found.values())


def structure(
    group: Group, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> Structure:
    """Describe what a group is made of; equal for isomorphic groups, whatever their sizes.

    Its kind and, for every slot, the layer's type, the tensor's own name, the dimension, the rank,
    and whether a convolution is grouped or depthwise, as a sorted multiset.
    """
    parts = []
    for slot in group.slots:
        owner, leaf = owner_of(modules, slot.name)
        module = modules[owner]
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        parts.append((kind, leaf, slot.dim, tensors[slot.name].dim(), _ways(module)))
    return group.kind, tuple(sorted(parts))


def _ways(module: nn.Module) -> str:
    ways = getattr(module, "groups", 1)
    if ways == 1:
        return "dense"
    return "depthwise" if ways == getattr(module, "in_channels", None) else "grouped"


@dataclass(frozen=True)
class Queue:
    """Everything about who leaves when.

    Attributes:
        units: the units of every group, the lowest score first.
        steps: of every class, its steps in the order in which they are taken.
        totals: how many units every class has.
    """

    units: dict[str, list[int]]
    steps: tuple[tuple[Step, ...], ...]
    totals: tuple[int, ...]

    def merged(self) -> list[Step]:
        """Return the steps of all classes, so that all classes keep the same pace."""
        paced = []
        for place, (steps, total) in enumerate(zip(self.steps, self.totals, strict=True)):
            gone = 0
            for step in steps:
                gone += step[1]
                paced.append((gone / total, place, step))
        return [step for _, _, step in sorted(paced, key=lambda entry: entry[:2])]

    def first(self, sparsity: float) -> list[Step]:
        """Return the steps that stay within floor(sparsity x units) of every class."""
        taken: list[Step] = []
        for steps, total in zip(self.steps, self.totals, strict=True):
            left = math.floor(sparsity * total + SLACK)
            for step in steps:
                if step[1] > left:
                    break
                left -= step[1]
                taken.append(step)
        return taken

    def taken(self, steps: Sequence[Step]) -> dict[str, list[int]]:
        """Return the units that ``steps`` take."""
        counts: dict[str, int] = {}
        for name, number in steps:
            counts[name] = counts.get(name, 0) + number
        return {name: self.units[name][:count] for name, count in counts.items()}


def queue(
    scores: Mapping[str, Tensor],
    competing: Sequence[Sequence[str]],
    most: Mapping[str, int],
    *,
    normalisation: str,
    round_to: int,
) -> Queue:
    """Put the units of all groups in the order in which they leave.

    Args:
        scores: by group.
        competing: the classes of groups.
        most: how many units each group may give up.
        normalisation: what scores are divided by where groups compete.
        round_to: keep a multiple of this many units in every group that is cut.
    """
    units: dict[str, list[int]] = {}
    keys: dict[str, list[float]] = {}
    for name, values in scores.items():
        plain = values.detach().to("cpu").double()
        order = plain.argsort(stable=True)
        units[name] = order.tolist()
        keys[name] = normalise(plain, normalisation)[order].tolist()
    return Queue(
        units,
        tuple(_class_steps(names, keys, most, round_to) for names in competing),
        tuple(sum(len(units[name]) for name in names) for names in competing),
    )


def _class_steps(
    names: Sequence[str],
    keys: Mapping[str, Sequence[float]],
    most: Mapping[str, int],
    round_to: int,
) -> tuple[Step, ...]:
    """Take the lowest again and again; several units that leave at once count by their mean."""
    heap: list[tuple[float, int, int]] = []

    def offer(rank: int, gone: int) -> None:
        values = keys[names[rank]]
        after = _next(len(values), gone, most[names[rank]], round_to)
        if after is not None:
            heapq.heappush(heap, (math.fsum(values[gone:after]) / (after - gone), rank, after))

    gone = [0] * len(names)
    for rank in range(len(names)):
        offer(rank, 0)
    steps = []
    while heap:
        _, rank, after = heapq.heappop(heap)
        steps.append((names[rank], after - gone[rank]))
        gone[rank] = after
        offer(rank, after)
    return tuple(steps)


def _next(size: int, gone: int, most: int, round_to: int) -> int | None:
    """Return how many units are gone after the next step; None where no more may go."""
    kept = size - gone - 1
    after = size - kept // round_to * round_to
    return after if kept >= round_to and after <= most else None
