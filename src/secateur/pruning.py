"""All of it in one call: trace, score, allocate, cut, verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from secateur.errors import VerificationError
from secateur.graph import trace
from secateur.graph.normal_mode import normal_mode
from secateur.latency import Timing
from secateur.plan import Plan
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
        VerificationError: the cut network differs from its masked reference.
    """
    if isinstance(criterion, str):
        criterion = CRITERIA[criterion]
    criterion = criterion.with_options(**(options or {}))
    targets = dict(zip(TARGETS, (sparsity, macs, params, latency), strict=True))
    target, value = check_targets({name: v for name, v in targets.items() if v is not None})
    check_options(scope, normalisation, round_to, protect, limits, max_sparsity)
    check_aggregation(aggregation)
    graph = trace(model, example_inputs)
    scores = score(
        graph, criterion, calibration, seed=seed, aggregation=aggregation, progress=progress
    )
    plan = allocate(
        graph,
        scores,
        **{target: value},
        scope=scope,
        normalisation=normalisation,
        round_to=round_to,
        protect=protect,
        limits=limits,
        max_sparsity=max_sparsity,
        timing=timing,
        measure=measure,
        progress=progress,
    )
    pruned = cut(model, plan)
    check = verify(model, pruned, plan, example_inputs)
    if not check.ok:
        raise VerificationError(
            f"the cut network differs from its masked reference by {check.max_error:.3g} "
            f"(tolerance {check.tolerance:.0e}); this is a defect, please report the model"
        )
    return Pruned(pruned, plan, check)
