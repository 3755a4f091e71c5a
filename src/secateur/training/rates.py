"""The learning rate as a pure function of the settings, the time and the losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.training.settings import TrainSettings


def learning_rate(settings: TrainSettings, when: float, losses: Sequence[float]) -> float:
    """Return the learning rate at time ``when``, in epochs since the start.

    Args:
        settings: what was asked.
        when: 0 at the first step, ``settings.epochs`` after the last.
        losses: validation losses of the epochs that are over.
    """
    low = settings.lr_min
    if when < settings.warmup:
        return low + (settings.lr - low) * when / settings.warmup
    if settings.schedule == "cosine":
        share = (when - settings.warmup) / max(settings.epochs - settings.warmup, 1e-9)
        return low + (settings.lr - low) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    drops = 0
    if settings.schedule == "step":
        drops = int(when) // settings.lr_every
    elif settings.schedule == "plateau":
        drops = _plateaus(losses, settings.lr_every, settings.min_delta)
    return max(low, settings.lr * settings.lr_factor**drops)


def flat_epochs(losses: Sequence[float], min_delta: float = 0.0) -> int:
    """Return how many epochs have passed since a loss was lower than all before it."""
    lowest, flat = math.inf, 0
    for loss in losses:
        lowest, flat = (loss, 0) if loss < lowest - min_delta else (lowest, flat + 1)
    return flat


def _plateaus(losses: Sequence[float], wait: int, min_delta: float) -> int:
    """Return how often ``wait`` epochs in a row brought no lower loss.

    As Keras's ReduceLROnPlateau without a cool-down counts them.
    """
    lowest, flat, drops = math.inf, 0, 0
    for loss in losses:
        lowest, flat = (loss, 0) if loss < lowest - min_delta else (lowest, flat + 1)
        if flat == wait:
            flat, drops = 0, drops + 1
    return drops
