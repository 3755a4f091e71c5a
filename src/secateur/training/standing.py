"""Where a training stands: what an epoch adds, and what a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.errors import InputError
from secateur.results import Epoch
from secateur.training.frozen import Frozen, Masks, StepHook
from secateur.training.modes import still_modules
from secateur.training.rates import flat_epochs
from secateur.training.settings import TrainSettings
from secateur.training_state import TrainState, snapshot


@dataclass
class Standing:
    """Changes as the training goes on.

    Attributes:
        model: as it is between steps.
        settings: how it is trained.
        hook: what happens between steps.
        masks: what is held at zero.
        history: the epochs that are over.
        best: the epoch that ``best_weights`` are of; 0 for the weights from before.
        steps: optimiser steps done.
        still: modules that training leaves in eval mode.
        settled: the first epoch at whose end the hook changes nothing any more; 0 for none yet.
    """

    model: nn.Module
    settings: TrainSettings
    hook: StepHook | None
    masks: Masks
    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    settled: int = 0
    frozen: Frozen = field(init=False)
    still: tuple[nn.Module, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.still = still_modules(self.model)

    def begin(self, state: TrainState | None) -> None:
        """Start from the model's weights, or where ``state`` left off."""
        if state is None:
            self.frozen = Frozen(self.model, self.masks)
            self._ask_hook()
            self.best_weights = snapshot(self.model)
            return
        self.history = list(state.history)
        self.best, self.best_weights = state.best, state.best_weights
        self.steps, self.settled = state.steps, state.settled
        if self.hook is not None:
            self.masks = state.masks
        self.frozen = Frozen(self.model, self.masks)

    def step_done(self) -> None:
        """Hold the zeros after an optimiser step and let the hook act."""
        self.frozen.after_step()
        self.steps += 1
        self._ask_hook()

    def epoch_done(self, entry: Epoch) -> dict[str, Tensor]:
        """Judge an epoch; return the weights at its end."""
        self.history.append(entry)
        if not self.settled and (self.hook is None or self.steps >= self.hook.until):
            self.settled = entry.epoch
        weights = snapshot(self.model)
        if not self.settled or _best(self.judged, self.settings.best_by) == entry.epoch:
            self.best, self.best_weights = entry.epoch, weights
        return weights

    @property
    def judged(self) -> list[Epoch]:
        """The epochs that may be the best one."""
        return self.history[self.settled - 1 :] if self.settled else []

    @property
    def over(self) -> bool:
        """Whether the patience has run out."""
        patience = self.settings.patience
        losses = [entry.val_loss for entry in self.judged]
        return patience is not None and flat_epochs(losses, self.settings.min_delta) >= patience

    def state(
        self, weights: dict[str, Tensor], optimizer: dict[str, Any], scaler: dict[str, Any]
    ) -> TrainState:
        """Return what a checkpoint keeps."""
        return TrainState(
            history=tuple(self.history),
            best=self.best,
            weights=weights,
            best_weights=self.best_weights,
            optimizer=optimizer,
            steps=self.steps,
            settled=self.settled,
            masks=dict(self.masks) if self.hook is not None else {},
            scaler=scaler,
        )

    def _ask_hook(self) -> None:
        if self.hook is None:
            return
        masks = self.hook.after(self.model, self.steps, self.masks)
        if masks is not None:
            if self.steps > self.hook.until:
                # The best epoch may be one from before: its weights would not be masked.
                raise InputError(
                    f"hook must change no mask after its step until={self.hook.until}, "
                    f"but did at step {self.steps}"
                )
            self.masks = masks
            self.frozen = Frozen(self.model, masks)


def _best(epochs: list[Epoch], by: str) -> int:
    if by == "loss":
        return min(epochs, key=lambda entry: entry.val_loss).epoch
    return max(epochs, key=lambda entry: (entry.val_accuracy, -entry.val_loss)).epoch
