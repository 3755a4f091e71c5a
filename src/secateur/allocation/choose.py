"""Choose the units to remove: the public function, and the checks of what it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from rich.progress import Progress
from torch import Tensor

from secateur.allocation.budget import meet_count
from secateur.allocation.factors import note_of, spared_factors
from secateur.allocation.limits import Limit, ceilings, check_limits, check_protect, protected
from secateur.allocation.order import SCOPES, Queue, classes, queue
from secateur.allocation.timed import Measure, meet_latency
from secateur.criteria.combine import check_normalisation
from secateur.errors import InputError, PlanError
from secateur.graph import Graph
from secateur.latency import Timing
from secateur.plan import Plan
from secateur.planning import make_plan

TARGETS = ("sparsity", "macs", "params", "latency")

NO_LIMITS: Mapping[str, Limit] = MappingProxyType({})


def allocate(
    graph: Graph,
    scores: Mapping[str, Tensor],
    *,
    sparsity: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    scope: str = "local",
    normalisation: str = "mean",
    round_to: int = 1,
    protect: Sequence[str] = (),
    limits: Mapping[str, Limit] = NO_LIMITS,
    max_sparsity: float | None = None,
    timing: Timing = Timing(),  # noqa: B008 (frozen)
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Choose the units to remove.

    Exactly one target is given. Units leave in order until it is met:

    - local scope: each group gives up its lowest scores, all groups at the same
      pace; at sparsity s a group of n units loses floor(s x n), never the last one.
    - global scope: all units compete.
    - isomorphic scope: groups of equal structure compete, all classes of them at
      the same pace; at sparsity s a class of n units loses floor(s x n).

    Args:
        graph: from ``trace``.
        scores: from ``score``; groups left out are not cut.
        sparsity: share of units to remove, 0 <= s < 1; of the groups that have
            scores and are not protected. Of the groups of a group norm and the channels
            within them one is cut, and the plan's notes say which; the other, too, where
            ``limits`` has its name.
        macs: share of multiply-accumulates to keep, 0 < m <= 1; met from below
            within one unit (or one step of ``round_to``) of the group cut last.
        params: share of parameters to keep, likewise.
        latency: share of the dense network's time to keep, measured on this machine
            with the graph's example inputs; met within ``timing.tolerance``.
        scope: "local", "global" or "isomorphic".
        normalisation: what a group's scores are divided by before groups compete:
            "none" (scores count as they are: places in one order, say), "mean",
            "max" or "l2" (of absolute values), or "rank" (places within the group).
        round_to: keep a multiple of this many units in every group that is cut.
        protect: patterns of groups that stay whole: names of groups, parameters or
            buffers, or ``kind:head``; see :mod:`secateur.allocation.limits`.
        limits: pattern of group names -> the largest share that may go (a float), or
            the fewest units that stay (an int); of several, the strictest holds.
        max_sparsity: the largest share that may go from groups without such a limit.
        timing: how latency is measured.
        measure: (dense, pruned) -> pruned time / dense time, in place of the clock.
        progress: where to show how far the search for a latency is.

    Raises:
        InputError: a target out of range, none or several, an unknown scope, scores that
            do not fit, a pattern that matches nothing.
        PlanError: nothing can be cut, or the target is out of reach.
    """
    given = {"sparsity": sparsity, "macs": macs, "params": params, "latency": latency}
    target, value = check_targets({n: v for n, v in given.items() if v is not None})
    check_options(scope, normalisation, round_to, protect, limits, max_sparsity)
    _check_scores(graph, scores)
    if not graph.groups:
        reasons = sorted({pin.reason for pin in graph.pinned})[:3]
        raise PlanError(f"nothing can be cut; pinned by: {'; '.join(reasons) or 'no parameters'}")
    spared = protected(graph, protect)
    judged = {name: values for name, values in scores.items() if name not in spared}
    if scores and not judged:
        raise PlanError(f"nothing can be cut: protect covers all {len(scores)} groups with scores")

    named = {pattern.removeprefix("group:") for pattern in limits}
    whole = spared_factors(graph, judged, named) if target == "sparsity" else []
    judged = {name: values for name, values in judged.items() if name not in whole}

    competing = classes(graph, scope, list(judged))
    sizes = {group.name: group.size for group in graph.groups}
    free = {name: size - 1 for name, size in sizes.items()}
    most = ceilings(graph, limits, max_sparsity)

    def leaving(ceiling: Mapping[str, int]) -> Queue:
        return queue(judged, competing, ceiling, normalisation=normalisation, round_to=round_to)

    found = leaving(most)
    if target == "sparsity":
        if scope != "local" and most != free:
            _check_reach(found, leaving(free), value)
        plan = make_plan(graph, found.taken(found.first(value)))
        return replace(plan, notes=(*plan.notes, note_of(whole))) if whole else plan
    if target == "latency":
        return meet_latency(graph, found, value, timing, measure, progress)
    return meet_count(graph, found, target, value)


def check_targets(given: Mapping[str, float]) -> tuple[str, float]:
    """Return the one target, by name, after its check.

    Raises:
        InputError: none or several are given, or it is out of its range.
    """
    if len(given) != 1:
        named = ", ".join(given) or "none"
        raise InputError(f"exactly one of {', '.join(TARGETS)} must be given, but got {named}")
    ((name, value),) = given.items()
    check_target(name, value)
    return name, value


def check_target(name: str, value: float) -> None:
    """Refuse a target out of its range.

    Raises:
        InputError: names the target, the rule and the value.
    """
    if name == "sparsity":
        if not 0 <= value < 1:
            raise InputError(f"sparsity must satisfy 0 <= sparsity < 1, but got {value}")
    elif not 0 < value <= 1:
        raise InputError(f"{name} must satisfy 0 < {name} <= 1, but got {value}")


def check_options(
    scope: str,
    normalisation: str,
    round_to: int,
    protect: Sequence[str],
    limits: Mapping[str, Limit],
    max_sparsity: float | None,
) -> None:
    """Refuse what is wrong whatever the network is; see :func:`allocate`.

    Raises:
        InputError: names the argument, the rule and the value.
    """
    if scope not in SCOPES:
        raise InputError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
    check_normalisation(normalisation)
    if round_to < 1:
        raise InputError(f"round_to must be at least 1, but got {round_to}")
    check_protect(protect)
    check_limits(limits, max_sparsity)


def _check_scores(graph: Graph, scores: Mapping[str, Tensor]) -> None:
    for name, values in scores.items():
        if name not in graph.by_name:
            raise InputError(f"scores name the group {name!r}, which the graph does not have")
        size = graph.by_name[name].size
        if tuple(values.shape) != (size,):
            raise InputError(
                f"scores of group {name!r} must have shape ({size},), but got {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"scores of group {name!r} must be finite")


def _check_reach(limited: Queue, free: Queue, sparsity: float) -> None:
    """Refuse limits that leave fewer units to take than were asked for, class by class."""
    for place, steps in enumerate(limited.steps):
        wanted = Queue(free.units, (free.steps[place],), (free.totals[place],)).first(sparsity)
        most = sum(number for _, number in steps)
        if most < sum(number for _, number in wanted):
            names = list(dict.fromkeys(name for name, _ in free.steps[place]))
            raise PlanError(
                f"sparsity={sparsity} cannot be met: the limits let {most} of "
                f"{limited.totals[place]} units go from {_few(names)}"
            )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more groups" if len(names) > 3 else shown
