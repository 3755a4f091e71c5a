"""Data-driven sparse structure selection: factors on structures, driven to zero while training.

Follows Huang & Wang 2018, "Data-driven sparse structure selection for deep neural
networks". A factor multiplies each unit of the chosen groups, wherever it is read; the
weights are trained by the optimiser, the factors by accelerated proximal gradient on the
loss plus gamma times the sum of their absolutes. What ends at exactly zero can be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.func import functional_call

from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.graph import Graph
from secateur.sparse_training.factors import fold, readers, scaled, zeros
from secateur.sparse_training.loop import check_strength, train
from secateur.sparse_training.proximal import accelerated_step


@dataclass(frozen=True)
class Selected:
    """What training with factors found.

    Attributes:
        factors: by group, [size]; zeros are exact.
        removed: the units with factor zero, ready for a plan; one of each group stays.
        losses: mean training loss of every epoch.
    """

    factors: dict[str, Tensor]
    removed: dict[str, list[int]]
    losses: tuple[float, ...]


def select_structures(
    graph: Graph,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    strength: float | Mapping[str, float],
    factor_lr: float | None = None,
    momentum: float = 0.9,
    progress: Progress | None = None,
) -> Selected:
    """Train the graph's model in place together with factors; fold them into its weights.

    Args:
        graph: of the model that is trained.
        loader: batches of (inputs, labels).
        settings: of the weights' training.
        strength: gamma, for all groups that can have factors, or by group for those named.
        factor_lr: learning rate of the factors; None takes the weights'. It follows the
            same schedule.
        momentum: mu of the accelerated steps.
        progress: where to show how far it is.

    Raises:
        InputError: a value breaks its rule, or a group cannot have factors.
        SecateurError: the loss is not finite.
    """
    named = strength if isinstance(strength, Mapping) else None
    places = readers(graph, named)
    strengths = dict(named) if named else dict.fromkeys(places, float(strength))  # type: ignore[arg-type]
    for value in strengths.values():
        check_strength("strength", value)
    if factor_lr is not None:
        check_strength("factor_lr", factor_lr)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), but got {momentum}")
    model = graph.model
    device = next(model.parameters()).device
    ahead = {n: torch.ones(graph.by_name[n].size, device=device) for n in places}
    for point in ahead.values():
        point.requires_grad_(True)
    velocity = {name: torch.zeros_like(point) for name, point in ahead.items()}
    factors = {name: point.detach().clone() for name, point in ahead.items()}
    relative = (factor_lr or settings.lr) / settings.lr

    def forward(inputs: Any) -> Any:
        return functional_call(model, scaled(model, places, ahead), (inputs,))

    def step(lr: float) -> None:
        with torch.no_grad():
            for name, point in ahead.items():
                assert point.grad is not None
                moved, velocity[name], factors[name] = accelerated_step(
                    point,
                    velocity[name],
                    point.grad,
                    lr=lr * relative,
                    strength=strengths[name],
                    momentum=momentum,
                )
                point.copy_(moved)
                point.grad = None

    losses = train(
        model,
        loader,
        settings,
        forward=forward,
        before_step=step,
        description="Selecting structures",
        progress=progress,
    )
    fold(model, places, factors)
    return Selected({n: f.cpu() for n, f in factors.items()}, zeros(factors), losses)
