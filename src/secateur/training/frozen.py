"""Zeros that stay zero while the rest is trained.

A mask is a bool tensor of its parameter's shape: True keeps, False holds at zero. Two things are
done at every step. Before it, the gradients of the removed weights are cleared, so that they count
neither in the norm that clipping looks at nor in the optimiser's moments. After it, the removed
weights are set to zero again. The second alone makes the zeros exact whatever the optimiser has
done: momentum or Adam's moments from before the mask came may still push a removed weight, but the
push is undone before the next forward pass reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepHook:
    """What happens between optimiser steps: masks that tighten, weights that are kept.

    Attributes:
        after: called with (model, steps done, masks) before the first step (0 steps done)
            and after each one; returns new masks, or None where nothing changes. It must
            depend on its arguments alone, or a resumed training ends otherwise.
        until: the step after which nothing changes any more; masks that change later are
            refused. The best epoch is looked for among the epochs that end there or later.
        asked: what tells this hook from another, ready for JSON; a resume must ask the same.
    """

    after: Callable[[nn.Module, int, Masks], Masks | None]
    until: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)


def check_masks(model: nn.Module, masks: Masks) -> None:
    """Refuse masks that do not fit the model.

    Raises:
        InputError: names the first mask that fits no parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, kept in masks.items():
        if name not in parameters:
            raise InputError(f"masks name {name!r}, which is no parameter of the model")
        if kept.dtype != torch.bool or kept.shape != parameters[name].shape:
            raise InputError(
                f"mask of {name!r} must be bool of shape {tuple(parameters[name].shape)}, "
                f"but got {kept.dtype} of {tuple(kept.shape)}"
            )


class Frozen:
    """Holds the masked weights of a model at zero; made once, told of each step.

    Args:
        model: its masked weights become zero at once.
        masks: {parameter name: bool tensor}, True keeps.

    Raises:
        InputError: a mask fits no parameter.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        check_masks(model, masks)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._removed = [
            (parameters[name], (~kept).to(parameters[name].device)) for name, kept in masks.items()
        ]
        self.after_step()

    @torch.no_grad()
    def before_step(self) -> None:
        """Clear the gradients of the removed weights."""
        for parameter, removed in self._removed:
            if parameter.grad is not None:
                # Filled and not multiplied: a gradient may be infinite, and zero is never negative.
                parameter.grad.masked_fill_(removed, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Set the removed weights to zero."""
        for parameter, removed in self._removed:
            parameter.masked_fill_(removed, 0.0)
