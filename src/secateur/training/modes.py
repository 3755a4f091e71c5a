"""What stays in eval mode while a network is trained: frozen norms, and what its user put there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def still_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules that training must leave in eval mode.

    Norms all of whose parameters have ``requires_grad`` False, and what is in eval mode in a model
    that is itself in train mode.
    """
    return tuple(
        module
        for module in model.modules()
        if (model.training and not module.training) or _is_frozen_norm(module)
    )


def train_mode(model: nn.Module, still: Sequence[nn.Module]) -> None:
    """Put a model into train mode, but not the modules of ``still``."""
    model.train()
    for module in still:
        module.training = False


def _is_frozen_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    return isinstance(module, _NormBase) and frozen
