"""One relevance pass over one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.relevance.calls import Call, Pull
from secateur.relevance.contraction import plain_layer
from secateur.relevance.folds import fold
from secateur.relevance.layers import CONVOLUTIONS, convolution_layer
from secateur.relevance.operations import run_call
from secateur.relevance.schedule import Place, Schedule, Task
from secateur.relevance.settings import Settings

__all__ = ["Captured", "Place", "propagate"]


class Captured(NamedTuple):
    """Relevance of what arrives at a place, shaped like it; ``key`` is the tensor's number."""

    place: Place
    key: int
    relevance: Tensor


def propagate(
    schedule: Schedule,
    inputs: Sequence[Tensor],
    labels: Tensor | None,
    settings: Settings,
    visit: Callable[[Captured], None],
) -> Tensor:
    """Run the network forward, then relevance backward; ``visit`` sees what is captured.

    Args:
        schedule: for batches of this shape.
        inputs: the tensor leaves of the model's inputs.
        labels: class numbers, for ``settings.target`` "label".
        settings: the rule and the start.
        visit: called for each place, last places first; the tensor may be reused after.

    Returns:
        The relevance started from, shaped like the logits.

    Raises:
        InputError: an operation without a rule, or labels that do not fit.
    """
    with torch.no_grad():
        values = dict(zip(schedule.recording.inputs, inputs, strict=True))
        tape: list[tuple[Task, Pull]] = []
        for task in schedule.tasks:
            _forward(task, values, schedule, settings, tape)
        logits = values.pop(schedule.start)
        started = start_relevance(logits, labels, settings)
        values.clear()
        relevances = {schedule.start: started}
        while tape:
            task, pull = tape.pop()
            _backward(task, pull, relevances, visit)
            del pull
        return started


def _forward(
    task: Task,
    values: dict[int, Tensor],
    schedule: Schedule,
    settings: Settings,
    tape: list[tuple[Task, Pull]],
) -> None:
    fixed = schedule.recording.fixed
    step = task.step
    tensors = [values[k] if k in values else fixed[k].detach() for k in step.refs()]
    call = Call(step, tensors, task.active, task.want, settings, task.fold, task.overwrite)
    if task.want:
        outs, pull = run_call(call)
        tape.append((task, pull))
    else:
        outs = _run_plain(call)
    for key, out in zip(step.outs, outs, strict=False):
        if key >= 0:
            values[key] = out
    for key in task.done:
        values.pop(key, None)


def _run_plain(call: Call) -> tuple[object, ...]:
    """Run a step that no relevance passes."""
    if call.fold is None:
        return call.run()
    if call.step.op in CONVOLUTIONS:
        args, _ = call.arguments()
        return (plain_layer(fold(convolution_layer(tuple(args)), call.fold), call.tensors[0]),)
    outs, _ = run_call(call)
    return outs


def _backward(
    task: Task,
    pull: Pull,
    relevances: dict[int, Tensor],
    visit: Callable[[Captured], None],
) -> None:
    given = [relevances.pop(key, None) if key >= 0 else None for key in task.step.outs]
    if all(relevance is None for relevance in given):
        return
    found = pull(given)
    del given
    refs = task.step.refs()
    for i, place in task.captures:
        if i in found:
            visit(Captured(place, refs[i], found[i]))
    for i in sorted(found):
        key = refs[i]
        before = relevances.get(key)
        relevances[key] = found[i] if before is None else before + found[i]


def start_relevance(logits: Tensor, labels: Tensor | None, settings: Settings) -> Tensor:
    """Return relevance that is the chosen class's logit, and zero elsewhere.

    Classes are the last dimension of one to three, the second of more (as of images).

    Raises:
        InputError: labels are missing or do not fit the logits.
    """
    if logits.dim() < 2:
        return logits.clone()
    dim = 1 if logits.dim() > 3 else logits.dim() - 1
    if settings.target == "predicted":
        chosen = logits.argmax(dim, keepdim=True)
    else:
        chosen = _checked(labels, logits, dim).unsqueeze(dim)
    return torch.zeros_like(logits).scatter_(dim, chosen, logits.gather(dim, chosen))


def _checked(labels: Tensor | None, logits: Tensor, dim: int) -> Tensor:
    shape = (*logits.shape[:dim], *logits.shape[dim + 1 :])
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != shape:
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"target 'label' needs class numbers of shape {shape}, but got {got}")
    count = logits.shape[dim]
    if labels.numel() and not bool(((labels >= 0) & (labels < count)).all()):
        raise InputError(f"target 'label' needs class numbers from 0 to {count - 1}")
    return labels.to(logits.device, torch.int64)
