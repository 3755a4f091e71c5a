"""Growing regularisation: an L2 penalty on chosen units that grows until they are nothing.

Follows Wang et al. 2021, "Neural pruning via growing regularization" (GReg-1): the units
to remove are chosen first; every ``every`` steps the penalty on their weights grows by
``grow``, up to ``ceiling``; the gradient of each of their weights gains penalty x weight.
The network has time to move what they did elsewhere before they are cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.cutting import check_fit
from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.plan import Plan
from secateur.sparse_training.loop import NOT_KEPT, Keeping, check_strength, train


def grown(step: int, *, grow: float, every: int, ceiling: float) -> float:
    """Return the penalty at a step, counted from 0."""
    return min(grow * (step // every + 1), ceiling)


def shrink_units(
    model: nn.Module,
    plan: Plan,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    grow: float = 1e-4,
    every: int = 10,
    ceiling: float = 1.0,
    keeping: Keeping = NOT_KEPT,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train ``model`` in place while the units of ``plan`` fade; then cut them with ``cut``.

    Args:
        model: a classifier, whole.
        plan: the units to fade.
        loader: batches of (inputs, labels).
        settings: of the training.
        grow: how much the penalty grows at a time.
        every: steps between.
        ceiling: the most that the penalty becomes.
        keeping: where to leave what a stopped call needs to go on.
        progress: where to show how far it is.

    Returns:
        The mean loss of every epoch, without the penalty.

    Raises:
        InputError: a value breaks its rule.
        PlanError: the plan does not fit the model.
        CheckpointError: what the folder holds is damaged.
        SecateurError: the loss is not finite.
    """
    for name, value in {"grow": grow, "ceiling": ceiling}.items():
        check_strength(name, value)
    if every < 1:
        raise InputError(f"every must be at least 1, but got {every}")
    check_fit(model, plan)
    doomed = [
        (parameter, _places(parameter, plan.cuts[name]))
        for name, parameter in model.named_parameters()
        if name in plan.cuts
    ]

    def penalise(lr: float, step: int) -> None:
        penalty = grown(step, grow=grow, every=every, ceiling=ceiling)
        with torch.no_grad():
            for parameter, places in doomed:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter * places, alpha=penalty)

    return train(
        model,
        loader,
        settings,
        before_step=penalise,
        asked={
            "grow": grow,
            "every": every,
            "ceiling": ceiling,
            "removed": {name: list(units) for name, units in plan.removed.items()},
        },
        keeping=keeping,
        description="Growing",
        progress=progress,
    )


def _places(parameter: Tensor, cuts: dict[int, tuple[int, ...]]) -> Tensor:
    """Return 1 where an element goes with the cut, else 0."""
    places = torch.zeros_like(parameter)
    for dim, positions in cuts.items():
        places.index_fill_(dim, torch.tensor(positions, device=parameter.device), 1.0)
    return places
