"""Train a network, or get the accuracy back after a cut: one loop on Hugging Face accelerate.

The learning rate is a pure function of the settings, the time and the validation losses so
far, and every epoch draws its random numbers from (seed, epoch) alone. So the epochs that are
already on disk are all that a resumed training needs to end with the same weights, bit for bit
on a CPU.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.errors import InputError, SecateurError
from secateur.progress import track
from secateur.results import Epoch
from secateur.training_state import (
    TrainState,
    has_checkpoint,
    prepare_folder,
    read_state,
    snapshot,
    write_state,
)

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step", "plateau")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The batch size belongs to the loader.

    Attributes:
        epochs: passes over the training data; 0 trains nothing.
        lr: learning rate at the start.
        optimizer: adam, adamw (decoupled weight decay) or sgd.
        momentum: of sgd; Adam has its own.
        weight_decay: L2 penalty (adam, sgd) or decay (adamw).
        schedule: constant; cosine (from ``lr`` to ``lr_min``, step by step); step (times
            ``lr_factor`` every ``lr_every`` epochs); plateau (times ``lr_factor`` after
            ``lr_every`` epochs without a lower validation loss).
        lr_factor: what step and plateau multiply by.
        lr_every: epochs between drops (step) or flat epochs before one (plateau).
        lr_min: the rate never falls below it.
        patience: stop after that many epochs without a lower validation loss; None never.
        label_smoothing: share of each label spread over all classes, in training only.
        seed: of dropout and of what the loader draws.

    Raises:
        InputError: a value breaks its rule; all that do are named.
    """

    epochs: int = 1
    lr: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    lr_factor: float = 0.1
    lr_every: int = 1
    lr_min: float = 0.0
    patience: int | None = None
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs must be at least 0": self.epochs >= 0,
            "lr must be above 0": 0 < self.lr < math.inf,
            f"optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay must be at least 0": 0 <= self.weight_decay < math.inf,
            f"schedule must be one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            "lr_factor must be in (0, 1]": 0 < self.lr_factor <= 1,
            "lr_every must be at least 1": self.lr_every >= 1,
            "lr_min must be in [0, lr]": 0 <= self.lr_min <= self.lr,
            "patience must be at least 1 or null": self.patience is None or self.patience >= 1,
            "label_smoothing must be in [0, 1)": 0 <= self.label_smoothing < 1,
        }
        broken = [
            f"{rule}, but got {getattr(self, rule.split()[0])!r}"
            for rule, kept in rules.items()
            if not kept
        ]
        if broken:
            raise InputError("; ".join(broken))


def learning_rate(settings: TrainSettings, when: float, losses: Sequence[float]) -> float:
    """Return the learning rate at time ``when``, in epochs since the start.

    Args:
        settings: what was asked.
        when: 0 at the first step, ``settings.epochs`` after the last.
        losses: validation losses of the epochs that are over.
    """
    low = settings.lr_min
    if settings.schedule == "cosine":
        share = when / max(settings.epochs, 1)
        return low + (settings.lr - low) * 0.5 * (1 + math.cos(math.pi * share))
    drops = 0
    if settings.schedule == "step":
        drops = int(when) // settings.lr_every
    elif settings.schedule == "plateau":
        drops = _plateaus(losses, settings.lr_every)
    return max(low, settings.lr * settings.lr_factor**drops)


def finetune(
    model: nn.Module,
    train_loader: DataLoader[Any],
    validation_loader: DataLoader[Any],
    settings: TrainSettings,
    *,
    phase: str = "finetune",
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Train ``model`` in place and leave the best weights in it, in eval mode.

    The best epoch has the highest validation accuracy, then the lowest validation loss. A last
    batch of one sample is left out, because batch norm cannot normalise it.

    Args:
        model: a classifier; on return it is on the device that it came from.
        train_loader: batches of (inputs, labels). Where its sampler or dataset has
            ``set_epoch``, that is called; its generators are seeded anew each epoch.
        validation_loader: batches to choose the best epoch by; never the test split.
        settings: how to train.
        phase: the word used in progress and in the returned records.
        folder: where to leave a checkpoint each epoch; it belongs to this training alone.
        resume: go on from the newest whole checkpoint of ``folder``.
        progress: where to show loss, accuracy and time left.

    Returns:
        One record per epoch, those from before a stop included.

    Raises:
        InputError: the folder cannot be written, or holds a training and ``resume`` is False,
            or ``resume`` is asked under other settings.
        CheckpointError: all checkpoints of the folder are damaged.
        SecateurError: the loss is not a number; the best weights so far are in the model.
    """
    asked = {**dataclasses.asdict(settings), "phase": phase}
    state = _start(folder, resume, asked)
    devices = {parameter.device for parameter in model.parameters()}
    accelerator = Accelerator()
    optimizer = _optimizer(model, settings)
    if state is not None:
        model.load_state_dict(state.weights)
        optimizer.load_state_dict(state.optimizer)
    prepared, accelerated, batches, checks = accelerator.prepare(
        model, optimizer, train_loader, validation_loader
    )
    history = list(state.history) if state else []
    best, best_weights = (state.best, state.best_weights) if state else (0, snapshot(model))
    try:
        for epoch in range(len(history) + 1, settings.epochs + 1):
            if _flat(history) >= (settings.patience or math.inf):
                break
            began = time.perf_counter()
            with _seeded(batches, settings.seed, epoch):
                train_loss = _train_epoch(
                    prepared, accelerated, batches, accelerator, settings, history, phase, progress
                )
                loss, accuracy = _evaluate(
                    prepared, checks, accelerator, f"{phase}: validation", progress
                )
            history.append(
                Epoch(
                    phase=phase,
                    epoch=epoch,
                    lr=float(optimizer.param_groups[0]["lr"]),
                    train_loss=train_loss,
                    val_loss=loss,
                    val_accuracy=accuracy,
                    seconds=time.perf_counter() - began,
                )
            )
            weights = snapshot(model)
            if _best(history) == epoch:
                best, best_weights = epoch, weights
            if folder is not None and accelerator.is_main_process:
                state = TrainState(
                    tuple(history), best, weights, best_weights, optimizer.state_dict()
                )
                write_state(folder, state, asked)
    except _NotANumber as error:
        model.load_state_dict(best_weights)
        kept = f"the weights of epoch {best} are" if best else "the weights from before are"
        raise SecateurError(f"{phase}: {error}; {kept} back in the model") from None
    finally:
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        if len(devices) == 1:
            model.to(next(iter(devices)))
    model.load_state_dict(best_weights)
    model.eval()
    return tuple(history)


class _NotANumber(Exception):
    """The loss is NaN or infinite."""


def _start(folder: Path | None, resume: bool, asked: dict[str, Any]) -> TrainState | None:
    if folder is None:
        if resume:
            raise InputError("resume needs a folder to resume from, but got None")
        return None
    prepare_folder(folder)
    if not resume:
        if has_checkpoint(folder):
            raise InputError(
                f"folder must be empty, but {folder} holds a training; resume goes on with it"
            )
        return None
    state, notes = read_state(folder, asked)
    for note in notes:
        _LOG.warning("%s", note)
    return state


def _train_epoch(
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    accelerator: Accelerator,
    settings: TrainSettings,
    history: Sequence[Epoch],
    phase: str,
    progress: Progress | None,
) -> float:
    """Train one epoch and return the mean loss of its samples."""
    losses = [entry.val_loss for entry in history]
    epoch, steps = len(history) + 1, len(loader)
    what = f"{phase}: epoch {epoch}/{settings.epochs}"
    if history:
        last = history[-1]
        what += f" (so far loss {last.train_loss:.3f}, accuracy {last.val_accuracy:.1%})"
    total, count = 0.0, 0
    model.train()
    for step, (inputs, labels) in enumerate(track(loader, what, progress)):
        if len(labels) == 1 and steps > 1:
            continue
        rate = learning_rate(settings, epoch - 1 + step / steps, losses)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = nn.functional.cross_entropy(
            _logits(model(inputs)), labels, label_smoothing=settings.label_smoothing
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _NotANumber(
                f"the loss is {value} at step {step + 1} of epoch {epoch} (learning rate {rate:g})"
            )
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        total, count = total + value * len(labels), count + len(labels)
    return total / max(count, 1)


@torch.no_grad()
def _evaluate(
    model: nn.Module, loader: Any, accelerator: Accelerator, what: str, progress: Progress | None
) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    model.eval()
    total, hits, count = 0.0, 0, 0
    for inputs, labels in track(loader, what, progress):
        logits = _logits(model(inputs)).float()
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise InputError("validation_loader must hold at least one sample, but got none")
    return total / count, hits / count


def _logits(output: Any) -> Tensor:
    """Return the logits of a model's output: a tensor, a record with ``logits``, or a tuple."""
    if isinstance(output, Tensor):
        return output
    found = output.logits if hasattr(output, "logits") else output[0]
    assert isinstance(found, Tensor)
    return found


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("model must have a parameter that requires grad, but got none")
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=decay
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=settings.lr, weight_decay=decay)


@contextmanager
def _seeded(loader: Any, seed: int, epoch: int) -> Iterator[None]:
    """Make all that an epoch draws depend on (seed, epoch) alone; restore the generator after."""
    drawn = (seed * 1_000_003 + epoch) % 2**63
    samplers = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    for owner in samplers:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(drawn)
    loader.set_epoch(epoch)
    with torch.random.fork_rng():
        torch.manual_seed(drawn)
        yield


def _best(history: Sequence[Epoch]) -> int:
    return max(history, key=lambda entry: (entry.val_accuracy, -entry.val_loss)).epoch


def _flat(history: Sequence[Epoch]) -> int:
    """Return how many epochs have passed since the lowest validation loss."""
    if not history:
        return 0
    return len(history) - min(history, key=lambda entry: entry.val_loss).epoch


def _plateaus(losses: Sequence[float], wait: int) -> int:
    """Return how often ``wait`` epochs in a row brought no lower loss."""
    lowest, flat, drops = math.inf, 0, 0
    for loss in losses:
        flat = 0 if loss < lowest else flat + 1
        lowest = min(lowest, loss)
        if flat == wait:
            flat, drops = 0, drops + 1
    return drops
