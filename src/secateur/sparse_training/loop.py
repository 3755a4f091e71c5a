"""The training loop that methods of learned sparsity share; each adds what it does at a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.calibration import cross_entropy
from secateur.data import set_epoch
from secateur.errors import InputError, SecateurError
from secateur.finetune import TrainSettings, learning_rate
from secateur.progress import track

Forward = Callable[[Any], Any]
Hook = Callable[[float], None]


def _nothing(lr: float) -> None:
    """Do nothing at a step."""


def train(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    forward: Forward | None = None,
    before_step: Hook = _nothing,
    after_step: Hook = _nothing,
    description: str = "Training",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train ``model`` in place, and leave it in eval mode.

    Args:
        model: a classifier.
        loader: batches of (inputs, labels).
        settings: epochs, learning rate and its schedule, optimiser, seed; there is no
            early stopping here, and a plateau schedule sees the training loss.
        forward: from inputs to outputs, where that is not the model itself.
        before_step: called with the learning rate when gradients are there.
        after_step: called with the learning rate when the weights have moved.
        description: the words beside the bar.
        progress: where to show it.

    Returns:
        The mean loss of every epoch.

    Raises:
        InputError: the loader is empty.
        SecateurError: the loss is not finite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, settings)
    device = next(model.parameters()).device
    batches = len(loader) if isinstance(loader, Sized) else None
    losses: list[float] = []
    run = forward or model
    with torch.random.fork_rng():
        for epoch in range(settings.epochs):
            torch.manual_seed(settings.seed * 1_000_003 + epoch + 1)
            if isinstance(loader, torch.utils.data.DataLoader):
                set_epoch(loader, epoch + 1)
            model.train()
            total, count = 0.0, 0
            what = f"{description}: epoch {epoch + 1}/{settings.epochs}"
            for step, (inputs, labels) in enumerate(track(loader, what, progress, batches)):
                lr = learning_rate(settings, epoch + step / (batches or step + 1), losses)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad(set_to_none=True)
                loss = cross_entropy(run(inputs.to(device)), labels.to(device))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise SecateurError(
                        f"{description}: the loss is {value} at step {step + 1} of epoch "
                        f"{epoch + 1} (learning rate {lr:g})"
                    )
                loss.backward()
                before_step(lr)
                optimizer.step()
                after_step(lr)
                total, count = total + value * len(labels), count + len(labels)
            if not count:
                raise InputError("loader must hold at least one batch, but it is empty")
            losses.append(total / count)
    model.eval()
    return tuple(losses)


def _optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    if not parameters:
        raise InputError("model must have a parameter that requires grad, but got none")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def check_strength(name: str, value: float) -> None:
    """Refuse a penalty that is none.

    Raises:
        InputError: names the argument, the rule and the value.
    """
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be above 0 and finite, but got {value}")
