"""Data-driven sparse structure selection: factors on structures, driven to zero while training.

Follows Huang & Wang 2018, "Data-driven sparse structure selection for deep neural
networks". A factor multiplies each unit of the chosen groups, wherever it is read, and each
chosen residual branch; the weights are trained by the optimiser, the factors by accelerated
proximal gradient on the loss plus gamma times the sum of their absolutes. What ends at exactly
zero can be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.func import functional_call

from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.graph import Graph
from secateur.sparse_training.absent import removable, remove_blocks
from secateur.sparse_training.blocks import Block, block_readers, residual_blocks
from secateur.sparse_training.factors import Reader, fold, readers, scaled, zeros
from secateur.sparse_training.loop import NOT_KEPT, Keeping, check_strength, train
from secateur.sparse_training.proximal import accelerated_step

Strength = float | Mapping[str, float]


@dataclass(frozen=True)
class Selected:
    """What training with factors found.

    Attributes:
        factors: by group, [size]; zeros are exact.
        removed: the units with factor zero, ready for a plan; one of each group stays.
        losses: mean training loss of every epoch.
        blocks: the factor of each residual block that had one.
        gone: the blocks with factor zero, ready for
            :func:`secateur.sparse_training.remove_blocks`.
        left: residual sums that could have none, with the reason.
    """

    factors: dict[str, Tensor]
    removed: dict[str, list[int]]
    losses: tuple[float, ...]
    blocks: dict[str, float] = field(default_factory=dict)
    gone: tuple[Block, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


def select_structures(
    graph: Graph,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    strength: Strength | None = None,
    blocks: Strength | None = None,
    factor_lr: float | None = None,
    momentum: float = 0.9,
    keeping: Keeping = NOT_KEPT,
    progress: Progress | None = None,
) -> Selected:
    """Train the graph's model in place together with factors; fold them into its weights.

    Args:
        graph: of the model that is trained.
        loader: batches of (inputs, labels).
        settings: of the weights' training.
        strength: gamma, for all groups that can have factors, or by group for those named.
        blocks: gamma of whole residual branches: for all that can have a factor and go, or by
            name for those named; see :func:`secateur.sparse_training.residual_blocks`.
        factor_lr: learning rate of the factors; None takes the weights'. It follows the
            same schedule.
        momentum: mu of the accelerated steps.
        keeping: where to leave what a stopped call needs to go on; the model must then be as at
            the first call.
        progress: where to show how far it is.

    Raises:
        InputError: neither ``strength`` nor ``blocks``, a value breaks its rule, or a group or
            block cannot have factors.
        PlanError: a block that was named cannot go.
        CheckpointError: what the folder holds is damaged.
        SecateurError: the loss is not finite.
    """
    if strength is None and blocks is None:
        raise InputError("strength or blocks must be given, but got neither")
    if factor_lr is not None:
        check_strength("factor_lr", factor_lr)
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), but got {momentum}")
    _check_strengths("strength", strength)
    _check_strengths("blocks", blocks)
    named = strength if isinstance(strength, Mapping) else None
    places = {} if strength is None else readers(graph, named)
    strengths = _each(strength, places)
    sizes = {name: graph.by_name[name].size for name in places}
    branches, left = _branches(graph, blocks)
    marks = {_mark(name): block_readers(graph, block) for name, block in branches.items()}
    strengths |= {_mark(name): value for name, value in _each(blocks, branches).items()}
    sizes |= dict.fromkeys(marks, 1)
    factors, losses = _trained(
        graph, {**places, **marks}, sizes, strengths, loader, settings,
        relative=(factor_lr or settings.lr) / settings.lr,
        momentum=momentum, keeping=keeping, progress=progress,
    )  # fmt: skip
    units = {name: factors[name] for name in places}
    found = {name: float(factors[_mark(name)]) for name in branches}
    gone = tuple(block for name, block in branches.items() if found[name] == 0)
    return Selected(units, zeros(units), losses, found, gone, left)


def _trained(
    graph: Graph,
    places: Mapping[str, tuple[Reader, ...]],
    sizes: Mapping[str, int],
    strengths: Mapping[str, float],
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    relative: float,
    momentum: float,
    keeping: Keeping,
    progress: Progress | None,
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Train weights and factors, and fold the factors in."""
    model = graph.model
    device = next(model.parameters()).device
    ahead = {name: torch.ones(sizes[name], device=device, requires_grad=True) for name in places}
    velocity = {name: torch.zeros(sizes[name], device=device) for name in places}
    factors = {name: torch.ones(sizes[name], device=device) for name in places}

    def forward(inputs: Any) -> Any:
        return functional_call(model, scaled(model, places, ahead), (inputs,))

    def step(lr: float, _: int) -> None:
        with torch.no_grad():
            for name, point in ahead.items():
                assert point.grad is not None
                moved, speed, now = accelerated_step(
                    point,
                    velocity[name],
                    point.grad,
                    lr=lr * relative,
                    strength=strengths[name],
                    momentum=momentum,
                )
                point.copy_(moved)
                velocity[name].copy_(speed)
                factors[name].copy_(now)
                point.grad = None

    tables = {"ahead": ahead, "velocity": velocity, "factors": factors}
    losses = train(
        model,
        loader,
        settings,
        forward=forward,
        before_step=step,
        moving={f"{kind}/{n}": t for kind, table in tables.items() for n, t in table.items()},
        asked={"strengths": dict(strengths), "relative": relative, "factor_momentum": momentum},
        keeping=keeping,
        description="Selecting structures",
        progress=progress,
    )
    fold(model, places, factors)
    return {name: found.cpu() for name, found in factors.items()}, losses


def _branches(graph: Graph, blocks: Strength | None) -> tuple[dict[str, Block], dict[str, str]]:
    """Return the blocks that get factors, and why the others get none."""
    if blocks is None:
        return {}, {}
    known = residual_blocks(graph)
    if isinstance(blocks, Mapping):
        chosen = known.named(blocks)
        remove_blocks(graph.model, chosen, graph.example_inputs)
        return {block.name: block for block in chosen}, {}
    known = removable(graph, known)
    if not known.found:
        reasons = "; ".join(f"{name}: {why}" for name, why in known.left.items())
        raise InputError(f"blocks need a residual branch that can go, but got {reasons or 'none'}")
    return {block.name: block for block in known.found}, known.left


def _each(strength: Strength | None, names: Iterable[str]) -> dict[str, float]:
    if strength is None:
        return {}
    return dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(names, strength)


def _check_strengths(what: str, strength: Strength | None) -> None:
    values = strength.values() if isinstance(strength, Mapping) else [strength]
    for value in values:
        if value is not None:
            check_strength(what, float(value))


def _mark(block: str) -> str:
    """Keep a block apart from a group of the same name."""
    return f"block:{block}"
