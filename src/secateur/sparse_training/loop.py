"""The training loop that methods of learned sparsity share; each adds what it does at a step.

An epoch draws its random numbers from (seed, epoch) alone, so that a training which goes on from
the epochs on disk ends with the same weights as an undisturbed one, bit for bit on a CPU.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.classification import class_logits, pair_of
from secateur.data import set_epoch
from secateur.errors import InputError, SecateurError
from secateur.finetune import TrainSettings, learning_rate
from secateur.progress import track
from secateur.results import Epoch
from secateur.training.losses import training_loss
from secateur.training.modes import still_modules, train_mode
from secateur.training_state import (
    TrainState,
    check_space,
    has_checkpoint,
    prepare_folder,
    read_state,
    snapshot,
    write_state,
)

Forward = Callable[[Any], Any]
Hook = Callable[[float, int], None]

# What this loop would ignore, and the value that means "not asked for".
_NOT_HERE = {
    "patience": None,
    "accumulate": 1,
    "distill_weight": 0.0,
    "mixed_precision": "no",
}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """Where a training leaves what a stopped call needs to go on.

    Attributes:
        folder: belongs to this training alone; a checkpoint each epoch. None keeps nothing.
        resume: go on with what the folder holds.
    """

    folder: Path | None = None
    resume: bool = False


NOT_KEPT = Keeping()


def _nothing(lr: float, step: int) -> None:
    """Do nothing at a step."""


def train(
    model: nn.Module,
    loader: Iterable[tuple[Any, Tensor]],
    settings: TrainSettings,
    *,
    forward: Forward | None = None,
    before_step: Hook = _nothing,
    after_step: Hook = _nothing,
    moving: Mapping[str, Tensor] | None = None,
    asked: Mapping[str, Any] | None = None,
    keeping: Keeping = NOT_KEPT,
    description: str = "Training",
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Train ``model`` in place, and leave it in eval mode.

    Args:
        model: a classifier.
        loader: batches of (inputs, labels), the same ones each time it is gone through.
        settings: epochs, learning rate and its schedule, optimiser, label smoothing, clipping,
            seed; a plateau schedule sees the training loss. The rest must be at its default.
        forward: from inputs to outputs, where that is not the model itself.
        before_step: called with the learning rate and the number of steps done when gradients
            are there.
        after_step: the same, when the weights have moved.
        moving: tensors that the hooks change in place; they are kept with the weights.
        asked: what else decides how the training ends, ready for JSON.
        keeping: where to leave what a stopped call needs to go on.
        description: the words beside the bar.
        progress: where to show it.

    Returns:
        The mean loss of every epoch.

    Raises:
        InputError: the loader is empty, a setting has no meaning here, or the folder cannot be
            used; the data or the outputs are not a classifier's.
        CheckpointError: what the folder holds is damaged.
        SecateurError: the loss is not finite.
    """
    check_settings(settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, settings)
    held = dict(moving or {})
    still = still_modules(model)
    whole = {**dataclasses.asdict(settings), **(asked or {}), "method": description}
    state = _begun(keeping, whole, model, settings)
    history: list[Epoch] = []
    steps = 0
    if state is not None:
        model.load_state_dict(state.weights)
        optimizer.load_state_dict(state.optimizer)
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(state.masks[name])
        history, steps = list(state.history), state.steps
    device = next(model.parameters()).device
    batches = len(loader) if isinstance(loader, Sized) else None
    run = forward or model
    for epoch in range(len(history) + 1, settings.epochs + 1):
        began = time.perf_counter()
        losses = [entry.train_loss for entry in history]
        total, count, lr = 0.0, 0, settings.lr
        what = f"{description}: epoch {epoch}/{settings.epochs}"
        train_mode(model, still)
        with _seeded(loader, settings.seed, epoch):
            for place, batch in enumerate(track(loader, what, progress, batches)):
                inputs, labels = pair_of(batch)
                lr = learning_rate(settings, epoch - 1 + place / (batches or place + 1), losses)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad(set_to_none=True)
                labels = labels.to(device).long()
                logits = class_logits(run(inputs.to(device)), labels)
                loss = training_loss(logits, labels, settings)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise SecateurError(
                        f"{description}: the loss is {value} at step {place + 1} of epoch "
                        f"{epoch} (learning rate {lr:g})"
                    )
                loss.backward()
                before_step(lr, steps)
                if settings.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, settings.clip)
                optimizer.step()
                after_step(lr, steps)
                steps += 1
                total, count = total + value * len(labels), count + len(labels)
        if not count:
            raise InputError("loader must hold at least one batch, but it is empty")
        seconds = time.perf_counter() - began
        mean = total / count
        history.append(Epoch(description, epoch, lr, mean, math.nan, math.nan, seconds))
        if keeping.folder is not None:
            weights = snapshot(model)
            tensors = {name: t.detach().to("cpu", copy=True) for name, t in held.items()}
            kept = TrainState(
                tuple(history), epoch, weights, weights, optimizer.state_dict(), steps, 0, tensors
            )
            write_state(keeping.folder, kept, whole)
    model.eval()
    return tuple(entry.train_loss for entry in history)


def check_settings(settings: TrainSettings) -> None:
    """Refuse settings that this loop would ignore.

    Raises:
        InputError: names the first.
    """
    for name, unasked in _NOT_HERE.items():
        value = getattr(settings, name)
        if value != unasked:
            told = "null" if unasked is None else repr(unasked)
            raise InputError(f"{name} must be {told} in sparse training, but got {value!r}")


def _begun(
    keeping: Keeping, asked: Mapping[str, Any], model: nn.Module, settings: TrainSettings
) -> TrainState | None:
    folder = keeping.folder
    if folder is None:
        if keeping.resume:
            raise InputError("resume needs a folder to resume from, but got None")
        return None
    prepare_folder(folder)
    if not keeping.resume and has_checkpoint(folder):
        raise InputError(
            f"folder must be empty, but {folder} holds a training; resume goes on with it"
        )
    state, notes = read_state(folder, asked) if keeping.resume else (None, ())
    for note in notes:
        _LOG.warning("%s", note)
    if state is None:
        check_space(folder, model, {"sgd": int(settings.momentum > 0)}.get(settings.optimizer, 2))
    return state


@contextmanager
def _seeded(loader: Any, seed: int, epoch: int) -> Iterator[None]:
    """Make all that an epoch draws depend on (seed, epoch) alone; restore the generator after."""
    drawn = (seed * 1_000_003 + epoch) % 2**63
    if isinstance(loader, DataLoader):
        sampler = loader.batch_sampler
        for owner in (loader, loader.sampler, getattr(sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(drawn)
        set_epoch(loader, epoch)
    with torch.random.fork_rng():
        torch.manual_seed(drawn)
        yield


def _optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    if not parameters:
        raise InputError("model must have a parameter that requires grad, but got none")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
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
