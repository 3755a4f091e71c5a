"""Relevance over calibration batches, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import nn

from secateur.calibration import Batches, device_of, pair_of, to_device, untouched
from secateur.errors import InputError
from secateur.graph.program import tensor_leaves
from secateur.relevance.propagate import Captured, Place, propagate
from secateur.relevance.recording import record_steps
from secateur.relevance.schedule import Schedule, schedule
from secateur.relevance.settings import Settings

Visit = Callable[[Schedule, Captured], None]


def stream(
    model: nn.Module,
    calibration: Batches,
    places: Collection[Place] | None,
    settings: Settings,
    visit: Visit,
) -> int:
    """Propagate relevance for every batch; return the number of samples.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.
        places: where relevance is wanted; None wants it wherever a tensor is read.
        settings: the rule and the start.
        visit: sees the schedule of the pass with every captured relevance.

    Raises:
        InputError: no batch, a batch that is no pair, or an operation without a rule.
    """
    device = device_of(model)
    schedules: dict[Any, Schedule] = {}
    samples = 0
    with untouched(model):
        for batch in calibration:
            inputs, labels = pair_of(batch)
            inputs, labels = to_device(inputs, device), to_device(labels, device)
            plan = _schedule(model, inputs, places, settings, schedules)
            propagate(plan, tensor_leaves(inputs), labels, settings, partial(visit, plan))
            samples += plan.recording.samples
    if not samples:
        raise InputError("calibration must hold at least one batch, but it is empty")
    return samples


def _schedule(
    model: nn.Module,
    inputs: Any,
    places: Collection[Place] | None,
    settings: Settings,
    known: dict[Any, Schedule],
) -> Schedule:
    """Return the schedule for batches of this shape, made when it comes up first."""
    key = tuple((t.shape, t.dtype) for t in tensor_leaves(inputs))
    if not key:
        raise InputError("calibration gave inputs that hold no tensor")
    if key not in known:
        recording = record_steps(model, inputs)
        made = schedule(recording, places, overwrite=settings.rule != "epsilon")
        if not recording.repeatable:
            return made
        known[key] = made
    return known[key]
