"""Sparse weights: L1 while training, a threshold after, zeros that stay zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.checked import digest
from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.sparse_training.loop import NOT_KEPT, Keeping, check_strength, train
from secateur.sparse_training.proximal import shrink_


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of two or more dimensions: weights, not biases or scales."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def train_sparse(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    strength: float = 0.0,
    frozen: bool = True,
    keeping: Keeping = NOT_KEPT,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train in place with an L1 penalty on weights, by a proximal step after each step.

    Args:
        model: a classifier.
        loader: batches of (inputs, labels).
        settings: of the training.
        strength: of the penalty; 0 has none.
        frozen: weights that are zero at the start stay so.
        keeping: where to leave what a stopped call needs to go on; the model must then be as at
            the first call.
        progress: where to show how far it is.

    Returns:
        The mean loss of every epoch, without the penalty.

    Raises:
        InputError: a value breaks its rule.
        CheckpointError: what the folder holds is damaged.
        SecateurError: the loss is not finite.
    """
    if strength:
        check_strength("strength", strength)
    weights = matrices(model)
    keep = {name: (weight != 0) for name, weight in weights.items()} if frozen else {}

    def settle(lr: float, step: int) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                if strength:
                    shrink_(weight, lr * strength)
                if name in keep:
                    weight.mul_(keep[name])

    return train(
        model,
        loader,
        settings,
        after_step=settle,
        asked={"strength": strength, "frozen": digest(keep) if keep else None},
        keeping=keeping,
        description="Retraining",
        progress=progress,
    )


def zero_smallest(
    model: nn.Module, shares: float | Mapping[str, float], *, together: bool = False
) -> None:
    """Zero the weights of least magnitude, in place.

    Args:
        model: any network.
        shares: share of zeros, for all weights or by parameter name.
        together: one threshold for all weights, instead of one for each tensor.

    Raises:
        InputError: a share out of [0, 1), or an unknown name.
    """
    weights = matrices(model)
    wanted = shares if isinstance(shares, Mapping) else dict.fromkeys(weights, shares)
    for name, share in wanted.items():
        if name not in weights:
            raise InputError(f"shares must name weights of the model, but got {name!r}")
        if not 0 <= share < 1:
            raise InputError(f"shares must be in [0, 1), but got {share} for {name}")
    with torch.no_grad():
        if together:
            chosen = [weights[name] for name in wanted]
            whole = torch.cat([weight.abs().flatten() for weight in chosen])
            count = round(max(wanted.values(), default=0.0) * whole.numel())
            order = whole.argsort(stable=True)[:count]
            flags = torch.zeros(whole.numel(), dtype=torch.bool, device=whole.device)
            flags[order] = True
            for weight, flag in zip(chosen, flags.split([w.numel() for w in chosen]), strict=True):
                weight.masked_fill_(flag.view_as(weight), 0.0)
            return
        for name, share in wanted.items():
            flat = weights[name].view(-1)
            flat[flat.abs().argsort(stable=True)[: round(share * flat.numel())]] = 0.0


def weight_sparsity(model: nn.Module, of: int | None = None) -> float:
    """Return the share of parameters that are zero or gone.

    Args:
        model: any network.
        of: parameters of the network before cutting; None counts this one's.
    """
    kept = sum(int((p != 0).sum()) for p in model.parameters())
    whole = of if of is not None else sum(p.numel() for p in model.parameters())
    return 1 - kept / whole
