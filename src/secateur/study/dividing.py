"""How a target is divided over groups: by competing scores, by measured sensitivity, by search.

Both ways beyond the scopes of :func:`secateur.allocate` judge networks on validation images: a
sensitivity run did so before (its curves are read here), a search does so now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.allocation import allocate
from secateur.allocation.limits import protected
from secateur.allocation.predicted import loss_scores
from secateur.allocation.searched import plan_of, search_allocation
from secateur.cutting import cut
from secateur.errors import InputError, PlanError
from secateur.graph import Graph
from secateur.measure import answers
from secateur.plan import Plan
from secateur.sensitivity_results import FILE, Sensitivity, load_sensitivity
from secateur.study.fields import SEARCHED, SENSITIVE, ShareSearch

Ordering = tuple[str, Mapping[str, Any]]
Curves = Mapping[str, list[tuple[int, float]]]


def division_problems(
    scopes: Sequence[str],
    curves: str | None,
    search: ShareSearch | None,
    targets: Sequence[str],
    limits: Mapping[str, Any],
) -> Iterator[tuple[str, str, Any]]:
    """Yield (argument, rule, value) of what does not go together.

    ``limits`` are the restrictions that differ from their defaults: a search knows none.
    """
    if (curves is not None) != (SENSITIVE in scopes):
        yield "curves", f"given exactly with scope {SENSITIVE!r}", curves
    if search is not None and SEARCHED not in scopes:
        yield "search", f"left out without scope {SEARCHED!r}", search.model_dump()
    if SEARCHED not in scopes:
        return
    for name in targets:
        if name != "macs":
            yield "target", f"macs with scope {SEARCHED!r}", name
    for name, value in limits.items():
        yield name, f"left out with scope {SEARCHED!r}", value


def read_curves(
    path: str | Path, graph: Graph, criteria: Sequence[Ordering], aggregation: str
) -> Curves:
    """Read what a sensitivity run has measured, for the order that it was measured with.

    Args:
        path: its folder, or its ``sensitivity.json``.
        graph: of the network that is to be cut.
        criteria: names and options of those that will order the units.
        aggregation: of their scores.

    Raises:
        CheckpointError: the file is missing or damaged.
        InputError: it is of another network, criterion or aggregation.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    found = load_sensitivity(file)
    for ordering in criteria:
        _check_order(file, found, *ordering, aggregation)
    sizes = {group.name: group.size for group in graph.groups}
    for entry in found.groups:
        if sizes.get(entry.name) != entry.size:
            here = sizes.get(entry.name)
            raise InputError(
                f"curves must be of this network: {file} has {entry.name!r} with {entry.size} "
                f"units, but here it has {here or 'no such group'}"
            )
    return found.curves()


def divided(
    graph: Graph,
    scores: Mapping[str, Tensor],
    target: Mapping[str, float],
    *,
    scope: str,
    normalisation: str,
    curves: Curves | None = None,
    search: ShareSearch | None = None,
    accuracy: Callable[[Plan], float] | None = None,
    record: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **limits: Any,
) -> Plan:
    """Choose the units to remove, by any of :data:`secateur.study.fields.DIVISIONS`.

    Args:
        graph: from ``trace``.
        scores: from ``score``.
        target: one of ``allocate``'s, by name.
        scope: one of ``allocate``'s, "sensitivity" or "search".
        normalisation: of the scores; for ``allocate``'s scopes.
        curves: for "sensitivity", from :func:`read_curves`.
        search: for "search"; its defaults where None.
        accuracy: for "search": of a plan's network on validation.
        record: for "search": keeps what was judged.
        seed: for "search".
        progress: where to show how far it is.
        limits: further arguments of ``allocate``.

    Raises:
        InputError: what ``allocate`` refuses.
        PlanError: the target is out of reach.
    """
    asked: dict[str, Any] = {**target, **limits, "progress": progress}
    if scope == SENSITIVE and curves is not None:
        ((name, _),) = target.items()
        saving = {"sparsity": "units", "params": "params"}.get(name, "macs")
        mine = {group: scores[group] for group in curves if group in scores}
        worth = loss_scores(graph, mine, {group: curves[group] for group in mine}, saving)
        return allocate(graph, worth, scope="global", normalisation="none", **asked)
    if scope == SEARCHED and accuracy is not None:
        return _searched(
            graph, scores, target["macs"], search or ShareSearch(), accuracy,
            limits.get("protect", ()), record, seed, progress,
        )  # fmt: skip
    return allocate(graph, scores, scope=scope, normalisation=normalisation, **asked)


def judge_of(model: nn.Module, validation: DataLoader[Any]) -> Callable[[Plan], float]:
    """Return what judges a plan: the accuracy of its network on validation, without training."""

    def accuracy(plan: Plan) -> float:
        return float(answers(cut(model, plan), validation, "validation").right.mean())

    return accuracy


def _searched(
    graph: Graph,
    scores: Mapping[str, Tensor],
    macs: float,
    search: ShareSearch,
    accuracy: Callable[[Plan], float],
    protect: Sequence[str],
    record: Path | None,
    seed: int,
    progress: Progress | None,
) -> Plan:
    spared = protected(graph, protect)
    free = {name: values for name, values in scores.items() if name not in spared}
    known = [allocate(graph, free, macs=macs, scope=scope) for scope in ("local", "global")]
    front = search_allocation(
        graph,
        free,
        accuracy,
        trials=search.trials,
        sampler=search.sampler,
        most=search.most,
        begin=[{name: len(plan.removed.get(name, ())) for name in free} for plan in known],
        seed=seed,
        record=record,
        progress=progress,
    )
    small = [one for one in front if one.macs <= macs]
    best = max(small, key=lambda one: one.accuracy, default=None)
    plan = None if best is None else plan_of(graph, free, best.removed)
    if plan is None:
        least = min(one.macs for one in front)
        raise PlanError(
            f"none of {search.trials} divisions has at most {macs:.1%} of the MACs; the smallest "
            f"has {least:.1%}: raise search.trials or search.most ({search.most:g})"
        )
    return plan


def _check_order(
    file: Path, found: Sensitivity, name: str, options: Mapping[str, Any], aggregation: str
) -> None:
    """Refuse curves that were measured with units in another order."""
    mine = {"criterion": name, "options": dict(options), "aggregation": aggregation}
    for key, value in mine.items():
        if found.asked.get(key) != value:
            raise InputError(
                f"{key} must be {found.asked.get(key)!r}, with which {file} was measured, but "
                f"got {value!r}"
            )
