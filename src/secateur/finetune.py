"""Train a network, or get the accuracy back after a cut: one loop on Hugging Face accelerate.

The learning rate is a pure function of the settings, the time and the validation losses so
far, and every epoch draws its random numbers from (seed, epoch) alone. So the epochs that are
already on disk are all that a resumed training needs to end with the same weights, bit for bit
on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader

from secateur.checked import digest
from secateur.classification import class_logits, pair_of
from secateur.errors import InputError, SecateurError
from secateur.graph.tracing import run_model
from secateur.progress import line_teller, track
from secateur.results import Epoch
from secateur.training import Masks, StepHook, TrainSettings, learning_rate, training_loss
from secateur.training.devices import Teacher, accelerator_for, at_home, tracked
from secateur.training.frozen import check_masks
from secateur.training.modes import train_mode
from secateur.training.shown import Tell, told, training_bar
from secateur.training.standing import Standing
from secateur.training_state import (
    TrainState,
    check_space,
    has_checkpoint,
    prepare_folder,
    read_state,
    snapshot,
    write_state,
)

__all__ = ["StepHook", "TrainSettings", "finetune", "learning_rate", "steps_per_epoch"]

_LOG = logging.getLogger(__name__)


def finetune(
    model: nn.Module,
    train_loader: DataLoader[Any],
    validation_loader: DataLoader[Any],
    settings: TrainSettings,
    *,
    phase: str = "finetune",
    folder: Path | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    masks: Masks | None = None,
    hook: StepHook | None = None,
    trackers: Sequence[Any] = (),
    logs: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Train ``model`` in place and leave the best weights in it, in eval mode.

    The best epoch has the highest validation accuracy, then the lowest validation loss, or
    what ``settings.best_by`` says. A last batch of one sample is left out, because batch norm
    cannot normalise it. What is frozen stays so: norms all of whose parameters have
    ``requires_grad`` False, and whatever is in eval mode in a model that is in train mode, are not
    put into train mode.

    Args:
        model: a classifier; on return it is on the device that it came from.
        train_loader: batches of (inputs, labels), the inputs a tensor, or a tuple or dict of the
            model's arguments, the labels whole numbers [N]. Where its sampler or dataset has
            ``set_epoch``, that is called; its generators are seeded anew each epoch.
        validation_loader: batches to choose the best epoch by; never the test split.
        settings: how to train.
        phase: the word used in progress and in the returned records.
        folder: where to leave a checkpoint each epoch; it belongs to this training alone.
        resume: go on from the newest whole checkpoint of ``folder``.
        teacher: the network to learn from (the dense one), with ``settings.distill_weight``;
            it is left as it was.
        masks: {parameter name: bool tensor}, True keeps; the rest is zero from the start to
            the end, whatever the optimiser does.
        hook: what happens between steps, such as masks that tighten.
        trackers: names of accelerate's trackers ("tensorboard") or tracker objects.
        logs: where trackers write; None for ``folder``.
        progress: where to show loss, accuracy and time left.

    Returns:
        One record per epoch, those from before a stop included.

    Raises:
        InputError: labels or outputs are not those of a classifier (regression, segmentation,
            several labels ...); the folder cannot be written, has too little space, or holds a
            training and ``resume`` is False, or ``resume`` is asked under other settings; a mask
            fits no parameter; ``teacher`` and ``distill_weight`` do not go together; the hook goes
            on longer than the training or changes masks later than it says; the device lacks the
            precision, or a tracker cannot be had.
        CheckpointError: all checkpoints of the folder are damaged.
        SecateurError: the loss is not a number; the best weights so far are in the model.
    """
    if (teacher is None) != (settings.distill_weight == 0):
        raise InputError(
            "teacher must be given exactly where distill_weight is above 0, but got "
            f"{'none' if teacher is None else 'one'} and {settings.distill_weight}"
        )
    check_masks(model, masks or {})
    accelerator = accelerator_for(settings.mixed_precision, trackers, logs or folder)
    _check_hook(hook, settings, steps_per_epoch(train_loader, settings, accelerator.num_processes))
    optimizer = _optimizer(model, settings)
    asked = _asked(settings, phase, teacher, masks, hook)
    state = _start(folder, resume, asked, model, settings)
    standing = Standing(model, settings, hook, masks or {})
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_home(model))
        guide = stack.enter_context(Teacher(teacher, accelerator)) if teacher else None
        if state is not None:
            model.load_state_dict(state.weights)
            optimizer.load_state_dict(state.optimizer)
        prepared, accelerated, batches, checks = accelerator.prepare(
            model, optimizer, train_loader, validation_loader
        )
        stack.callback(accelerator.unwrap_model, prepared, keep_fp32_wrapper=False)
        if state is not None and state.scaler and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        standing.begin(state)
        stack.enter_context(tracked(accelerator, phase, asked))
        passed, total = (n * len(batches) for n in (len(standing.history), settings.epochs))
        tell = stack.enter_context(training_bar(progress, phase, total, passed))
        line = line_teller(progress)
        try:
            for epoch in range(len(standing.history) + 1, settings.epochs + 1):
                if standing.over:
                    break
                with _seeded(batches, settings.seed, epoch):
                    entry = _epoch(
                        standing, prepared, accelerated, (batches, checks), accelerator,
                        guide, phase, tell, progress,
                    )  # fmt: skip
                weights = standing.epoch_done(entry)
                if folder is not None and accelerator.is_main_process:
                    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
                    kept = standing.state(weights, optimizer.state_dict(), scaler)
                    write_state(folder, kept, asked)
                accelerator.log(_figures(entry), step=epoch)
                line(told, standing.history, settings.epochs)
        except _NotANumber as error:
            model.load_state_dict(standing.best_weights)
            best = f"of epoch {standing.best}" if standing.best else "from before"
            raise SecateurError(
                f"{phase}: {error}; the weights {best} are back in the model"
            ) from None
        model.load_state_dict(standing.best_weights)
    if hook is not None and settings.epochs and not standing.settled:
        raise SecateurError(
            f"{phase}: training ended after {standing.steps} steps, before step {hook.until}"
        )
    model.eval()
    return tuple(standing.history)


def steps_per_epoch(loader: DataLoader[Any], settings: TrainSettings, processes: int = 1) -> int:
    """Return how many optimiser steps an epoch has; processes share its batches."""
    return math.ceil(math.ceil(len(loader) / processes) / settings.accumulate)


class _NotANumber(Exception):
    """The loss is NaN or infinite."""


def _check_hook(hook: StepHook | None, settings: TrainSettings, steps: int) -> None:
    if hook is not None and settings.epochs and hook.until > settings.epochs * steps:
        raise InputError(
            f"the hook must end within the training's {settings.epochs * steps} steps "
            f"({settings.epochs} epochs of {steps}), but got {hook.until}"
        )


def _asked(
    settings: TrainSettings,
    phase: str,
    teacher: nn.Module | None,
    masks: Masks | None,
    hook: StepHook | None,
) -> dict[str, Any]:
    """Return all that decides how the training ends, ready for JSON."""
    return {
        **dataclasses.asdict(settings),
        "phase": phase,
        "teacher": digest(snapshot(teacher)) if teacher is not None else None,
        "masks": digest(masks) if masks else None,
        "hook": dict(hook.asked) if hook is not None else None,
    }


def _start(
    folder: Path | None,
    resume: bool,
    asked: dict[str, Any],
    model: nn.Module,
    settings: TrainSettings,
) -> TrainState | None:
    if folder is None:
        if resume:
            raise InputError("resume needs a folder to resume from, but got None")
        return None
    prepare_folder(folder)
    if not resume and has_checkpoint(folder):
        raise InputError(
            f"folder must be empty, but {folder} holds a training; resume goes on with it"
        )
    state, notes = read_state(folder, asked) if resume else (None, ())
    for note in notes:
        _LOG.warning("%s", note)
    if state is None or len(state.history) < settings.epochs:
        moments = {"sgd": int(settings.momentum > 0)}.get(settings.optimizer, 2)
        check_space(folder, model, moments)
    return state


def _epoch(
    standing: Standing,
    model: nn.Module,
    optimizer: Any,
    loaders: tuple[Any, Any],
    accelerator: Accelerator,
    guide: Teacher | None,
    phase: str,
    tell: Tell,
    progress: Progress | None,
) -> Epoch:
    """Train and judge one epoch."""
    began = time.perf_counter()
    train, checks = loaders
    train_loss = _train_epoch(standing, model, optimizer, train, accelerator, guide, tell)
    loss, accuracy = _evaluate(model, checks, accelerator, f"{phase}: validation", progress)
    epoch, rate = len(standing.history) + 1, float(optimizer.param_groups[0]["lr"])
    if not math.isfinite(loss):
        raise _NotANumber(
            f"the loss on validation is {loss} after epoch {epoch} "
            f"(step {standing.steps}, learning rate {rate:g})"
        )
    seconds = time.perf_counter() - began
    return Epoch(phase, epoch, rate, train_loss, loss, accuracy, seconds)


def _train_epoch(
    standing: Standing,
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    accelerator: Accelerator,
    guide: Teacher | None,
    tell: Tell,
) -> float:
    """Train one epoch and return the mean loss of its samples."""
    settings, history = standing.settings, standing.history
    losses = [entry.val_loss for entry in history]
    epoch, length = len(history) + 1, len(loader)
    before = f", accuracy {history[-1].val_accuracy:.1%}" if history else ""
    total, count = 0.0, 0
    train_mode(model, standing.still)
    for first, window in _windows(loader, settings.accumulate):
        rate = learning_rate(settings, epoch - 1 + first / length, losses)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        samples = sum(len(labels) for _, labels in window)
        for place, (inputs, labels) in enumerate(window):
            last = place == len(window) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                taught = guide.logits(inputs, labels) if guide else None
                logits = class_logits(run_model(model, inputs), labels)
                loss = training_loss(logits, labels.long(), settings, taught)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise _NotANumber(
                        f"the loss is {value} at step {first + place + 1} of epoch {epoch} "
                        f"(learning rate {rate:g})"
                    )
                # The mean over all samples of the window, also where its batches differ in size.
                accelerator.backward(loss * (len(labels) / samples))
            total, count = total + value * len(labels), count + len(labels)
        standing.frozen.before_step()
        if settings.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        standing.step_done()
        tell(f"epoch {epoch}/{settings.epochs}, loss {total / count:.3f}{before}", len(window))
    return total / max(count, 1)


def _windows(loader: Any, size: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the place of the first batch and the batches of each optimiser step."""
    lone = len(loader) > 1
    window: list[Any] = []
    first = 0
    for place, batch in enumerate(loader):
        if place % size == 0:
            first = place
        inputs, labels = pair_of(batch)
        if not (lone and len(labels) == 1):
            window.append((inputs, labels))
        if window and (place % size == size - 1 or place == len(loader) - 1):
            yield first, window
            window = []


@torch.no_grad()
def _evaluate(
    model: nn.Module, loader: Any, accelerator: Accelerator, what: str, progress: Progress | None
) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    model.eval()
    total, hits, count = 0.0, 0, 0
    for batch in track(loader, what, progress):
        inputs, labels = pair_of(batch)
        logits = class_logits(run_model(model, inputs), labels).float()
        labels = labels.long()
        logits, labels = accelerator.gather_for_metrics((logits, labels))
        total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise InputError("validation_loader must hold at least one sample, but got none")
    return total / count, hits / count


def _figures(entry: Epoch) -> Mapping[str, float]:
    return {
        "loss/train": entry.train_loss,
        "loss/validation": entry.val_loss,
        "accuracy/validation": entry.val_accuracy,
        "learning rate": entry.lr,
    }


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("model must have a parameter that requires grad, but got none")
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=decay,
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, weight_decay=decay)


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
