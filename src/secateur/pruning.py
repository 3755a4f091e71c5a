"""All of it in one call: trace, score, allocate, cut, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from typing import Any, Generic, TypeVar

from rich.progress import Progress
from torch import nn

from secateur.allocation import (
    NO_LIMITS,
    TARGETS,
    Limit,
    Measure,
    allocate,
    check_options,
    check_targets,
)
from secateur.calibration import Batches
from secateur.criteria import CRITERIA, Criterion, score
from secateur.criteria.combine import check_aggregation
from secateur.cutting import cut
from secateur.errors import PlanError, VerificationError
from secateur.graph import Graph, trace
from secateur.graph.normal_mode import normal_mode
from secateur.latency import Timing
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.progress import say
from secateur.verification import Check, verify

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Pruned(Generic[M]):
    """A pruned network, what was removed, and the proof."""

    model: M
    plan: Plan
    check: Check


@normal_mode()
def prune(
    model: M,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    criterion: str | Criterion = "l2",
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
    calibration: Batches | None = None,
    seed: int = 0,
    aggregation: str = "sum",
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Pruned[M]:
    """Prune a network and prove that the cut is right; ``model`` is left as it was.

    Args:
        model: any network.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        also: further examples, for code that takes another path by its input, its arguments or
            the method called; see :func:`secateur.trace`.
        criterion: a registered name or a :class:`Criterion`.
        sparsity: share of units to remove; exactly one of this and the next three is given,
            see :func:`secateur.allocate`.
        macs: share of multiply-accumulates to keep.
        params: share of parameters to keep.
        latency: share of the dense network's time to keep, as measured here.
        scope: "local", "global" or "isomorphic".
        normalisation: what a group's scores are divided by before groups compete.
        round_to: keep a multiple of this many units.
        protect: patterns of groups, parameters or kinds that stay whole.
        limits: pattern of group names -> the largest share that may go, or the fewest units
            that stay.
        max_sparsity: the largest share that may go from groups without such a limit.
        timing: how latency is measured.
        measure: in place of the clock, for latency.
        calibration: (inputs, labels) batches, for criteria that need data.
        seed: for criteria that draw.
        aggregation: how a unit's values in its group's slots become one; see
            :func:`secateur.score`.
        options: of the criterion, by name.
        progress: where to show how far scoring and the search for a latency are.

    Raises:
        InputError: an argument breaks its rule.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or the target is out of reach.
        VerificationError: no cut that meets the target can be proved; groups whose cut cannot be
            proved stay whole as long as it can be met without them.
    """
    if isinstance(criterion, str):
        criterion = CRITERIA[criterion]
    criterion = criterion.with_options(**(options or {}))
    targets = dict(zip(TARGETS, (sparsity, macs, params, latency), strict=True))
    target, value = check_targets({name: v for name, v in targets.items() if v is not None})
    check_options(scope, normalisation, round_to, protect, limits, max_sparsity)
    check_aggregation(aggregation)
    graph = trace(model, example_inputs, also)
    scores = score(
        graph, criterion, calibration, seed=seed, aggregation=aggregation, progress=progress
    )

    def choose(kept: Sequence[str]) -> Plan:
        return allocate(
            graph,
            scores,
            **{target: value},
            scope=scope,
            normalisation=normalisation,
            round_to=round_to,
            protect=(*protect, *kept),
            limits=limits,
            max_sparsity=max_sparsity,
            timing=timing,
            measure=measure,
            progress=progress,
        )

    return proved_cut(graph, choose(()), choose, progress=progress)


def proved_cut(
    graph: Graph,
    plan: Plan,
    choose: Callable[[Sequence[str]], Plan] | None = None,
    *,
    progress: Progress | None = None,
) -> Pruned[Any]:
    """Cut and prove; groups whose cut cannot be proved stay whole, and the plan's notes say so.

    Args:
        graph: of the dense network.
        plan: what to cut.
        choose: makes another plan for the same target, from patterns of groups that must stay
            whole; without it the other groups are cut as they were planned.
        progress: where a protected group is told.

    Raises:
        VerificationError: nothing can be proved, or the target is out of reach without the groups
            that cannot.
    """
    faults: dict[str, str] = {}
    while True:
        pruned = cut(graph.model, plan)
        check = verify(graph.model, pruned, plan, graph.example_inputs, also=graph.also)
        if check.ok:
            notes = [f"group {name} stays whole: {reason}" for name, reason in faults.items()]
            return Pruned(pruned, replace(plan, notes=(*plan.notes, *notes)), check)
        found = _faults(graph, plan, check)
        faults |= found
        for name, reason in found.items():
            say(progress, f"group {name} stays whole: {reason}")
        plan = _without(graph, plan, faults, choose)


def _faults(graph: Graph, plan: Plan, check: Check) -> dict[str, str]:
    """Bisect the groups of a plan for those whose cut cannot be proved; return why not.

    Raises:
        VerificationError: it is no group's fault.
    """
    if _agrees(check):
        raise unproved(check.reason, plan)
    if not _agrees(nothing := _proof(graph, plan, ())):
        raise unproved(nothing.reason, plan)
    names, faults = list(plan.removed), dict[str, str]()
    while not _agrees(failed := _proof(graph, plan, names)):
        holds, fails = 0, len(names)
        while fails - holds > 1:
            middle = (holds + fails) // 2
            tried = _proof(graph, plan, names[:middle])
            if _agrees(tried):
                holds = middle
            else:
                fails, failed = middle, tried
        faults[names.pop(holds)] = failed.reason
    if not faults:
        raise unproved(check.reason, plan)
    return faults


def _proof(graph: Graph, plan: Plan, names: Sequence[str]) -> Check:
    """Prove the cut of some groups of a plan by themselves."""
    try:
        part = make_plan(graph, {name: plan.removed[name] for name in names})
    except PlanError:  # they cannot go without the others
        part = make_plan(graph, {})
    pruned = cut(graph.model, part)
    return verify(graph.model, pruned, part, graph.example_inputs, also=graph.also)


def _agrees(check: Check) -> bool:
    """Tell whether nothing speaks against a cut, shown or not."""
    return check.max_error <= check.tolerance


def _without(
    graph: Graph,
    plan: Plan,
    faults: Mapping[str, str],
    choose: Callable[[Sequence[str]], Plan] | None,
) -> Plan:
    """Return a plan that leaves the groups of ``faults`` whole."""
    reason = list(faults.values())[-1]
    try:
        if choose is not None:
            return choose([f"group:{escape(name)}" for name in faults])
        left = {name: units for name, units in plan.removed.items() if name not in faults}
        if left:
            return make_plan(graph, left)
    except PlanError as error:
        raise unproved(reason, plan, faults) from error
    raise unproved(reason, plan, faults)


def unproved(reason: str, plan: Plan, faults: Iterable[str] = ()) -> VerificationError:
    """Return the error of a plan whose cut cannot be proved: why, which groups, and what to do."""
    names = list(faults) or list(plan.removed)
    shown = ", ".join(repr(f"group:{name}") for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return VerificationError(
        f"the cut cannot be proved: {reason}; it concerns the groups {', '.join(names[:5])}{more}: "
        f"protect=[{shown}] leaves them whole, and another example input may show more"
    )
