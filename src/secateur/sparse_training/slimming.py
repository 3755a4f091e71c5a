"""Network slimming: an L1 penalty on the scales of batch norms.

Follows Liu et al. 2017, "Learning efficient convolutional networks through network
slimming": the subgradient strength x sign(scale) joins the loss's gradient. Afterwards the
scales are the scores to cut by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.sparse_training.loop import NOT_KEPT, Keeping, check_strength, train


def slim(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    strength: float = 1e-4,
    keeping: Keeping = NOT_KEPT,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train ``model`` in place with a penalty on its batch norms' scales.

    Args:
        model: a classifier with batch norms.
        loader: batches of (inputs, labels).
        settings: of the training.
        strength: of the penalty.
        keeping: where to leave what a stopped call needs to go on.
        progress: where to show how far it is.

    Returns:
        The mean loss of every epoch, without the penalty.

    Raises:
        InputError: a value breaks its rule, or no batch norm has scales.
        CheckpointError: what the folder holds is damaged.
        SecateurError: the loss is not finite.
    """
    check_strength("strength", strength)
    scales = [m.weight for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
    if not scales:
        raise InputError("model must have a batch norm with scales, but has none")

    def penalise(lr: float, step: int) -> None:
        with torch.no_grad():
            for scale in scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.sign(), alpha=strength)

    return train(
        model,
        loader,
        settings,
        before_step=penalise,
        asked={"strength": strength},
        keeping=keeping,
        description="Slimming",
        progress=progress,
    )
