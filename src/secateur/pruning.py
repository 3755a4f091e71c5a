"""All of it in one call: trace, score, allocate, cut, verify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from secateur.allocation import allocate, check_target
from secateur.calibration import Batches
from secateur.criteria import CRITERIA, Criterion, score
from secateur.cutting import cut
from secateur.errors import VerificationError
from secateur.graph import trace
from secateur.plan import Plan
from secateur.verification import Check, verify

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Pruned(Generic[M]):
    """A pruned network, what was removed, and the proof."""

    model: M
    plan: Plan
    check: Check


def prune(
    model: M,
    example_inputs: Any,
    *,
    criterion: str | Criterion = "l2",
    sparsity: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    scope: str = "local",
    round_to: int = 1,
    calibration: Batches | None = None,
    seed: int = 0,
) -> Pruned[M]:
    """Prune a network and prove that the cut is right; ``model`` is left as it was.

    Args:
        model: any network.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        criterion: a registered name or a :class:`Criterion`.
        sparsity: see :func:`secateur.allocate`, as are the next four.
        macs: share of multiply-accumulates to keep.
        params: share of parameters to keep.
        scope: "local" or "global".
        round_to: keep a multiple of this many units.
        calibration: (inputs, labels) batches, for criteria that need data.
        seed: for criteria that draw.

    Raises:
        InputError: an argument breaks its rule.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or the target is out of reach.
        VerificationError: the cut network differs from its masked reference.
    """
    if isinstance(criterion, str):
        criterion = CRITERIA[criterion]
    for name, value in {"sparsity": sparsity, "macs": macs, "params": params}.items():
        if value is not None:
            check_target(name, value)
    graph = trace(model, example_inputs)
    scores = score(graph, criterion, calibration, seed=seed)
    plan = allocate(
        graph,
        scores,
        sparsity=sparsity,
        macs=macs,
        params=params,
        scope=scope,
        round_to=round_to,
    )
    pruned = cut(model, plan)
    check = verify(model, pruned, plan, example_inputs)
    if not check.ok:
        raise VerificationError(
            f"the cut network differs from its masked reference by {check.max_error:.3g} "
            f"(tolerance {check.tolerance:.0e}); this is a defect, please report the model"
        )
    return Pruned(pruned, plan, check)
