"""What a comparison would do and about how long it would take; nothing is left on the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration import device_of
from secateur.compare.bench import Bench, set_up
from secateur.compare.config import CompareConfig
from secateur.compare.schedules import check_schedules
from secateur.compare.trials import Spec, grid, said
from secateur.comparison import Trial
from secateur.data import batches
from secateur.errors import InputError
from secateur.measure import evaluating
from secateur.study import stages
from secateur.study.fields import SEARCHED, ShareSearch

PASSES = 3
"""Batches that are timed, after one that is not."""
TRAINING = 3.0
"""A training step costs about three forward passes: one forward, two backward."""
SCORED = 4.0
"""Forward passes that a criterion with data may need of its calibration images, generously."""


@dataclass(frozen=True)
class DryRun:
    """The trials by name, and the estimate for one process.

    Attributes:
        trials: what each does.
        least: seconds, where time falls as MACs do.
        seconds: where every network is as slow as the dense one.
        per_image: seconds of the dense network's forward pass.
    """

    trials: tuple[str, ...]
    least: float
    seconds: float
    per_image: float


def dry_run(config: CompareConfig, progress: Progress | None = None) -> DryRun:
    """List the trials and estimate their time from a few batches of the dense network.

    Raises:
        InputError: what was asked does not fit the data or the network.
    """
    specs = grid(config)
    with stages.threads_set(config.threads):
        bench, test = set_up(config, Path(), progress)
        check_schedules(bench)
        each = _seconds_per_image(bench)
    # Which setups will be on the frontier is not known; one trial then stands for them.
    tested = {"all": len(specs), "none": 0}.get(config.test, 1) / len(specs) * len(test)
    shared = _scoring(bench, specs) + _searching(bench, specs)
    images = [_images(bench, spec) + tested for spec in specs]
    small = sum(n * _share(spec.trial) for n, spec in zip(images, specs, strict=True))
    return DryRun(
        tuple(said(spec.trial) for spec in specs),
        (small + shared) * each,
        (sum(images) + shared) * each,
        each,
    )


def _share(trial: Trial) -> float:
    """About what share of its MACs the network keeps: inputs and outputs of a layer both go."""
    if trial.granularity == "weight":
        return 1.0
    return (1 - trial.value) ** 2 if trial.target == "sparsity" else trial.value


def _images(bench: Bench, spec: Spec) -> float:
    """Count the forward passes of one trial: judging, training, mending."""
    data, trial = bench.data, spec.trial
    epoch = TRAINING * len(data.train) + len(data.validation)
    mending = 0 if trial.recovery == "none" else SCORED * len(data.calibration)
    return len(data.validation) + trial.epochs * epoch + mending


def _searching(bench: Bench, specs: Sequence[Spec]) -> float:
    asked = ((one.rule.label, one.trial) for one in specs if one.trial.scope == SEARCHED)
    searches = {(label, trial.target, trial.value, trial.seed) for label, trial in asked}
    divisions = (bench.config.search or ShareSearch()).trials
    return len(searches) * divisions * len(bench.data.validation)


def _scoring(bench: Bench, specs: Sequence[Spec]) -> float:
    scored = {(one.rule.label, one.trial.granularity, one.trial.seed) for one in specs}
    return SCORED * len(scored) * len(bench.data.calibration)


def _seconds_per_image(bench: Bench) -> float:
    images = bench.data.calibration
    loader = batches(images, min(bench.config.data.batch_size, len(images)))
    inputs, labels = next(iter(loader))
    model = bench.subject.model
    inputs = inputs.to(device_of(model))
    with evaluating(model):
        _pass(model, inputs, labels)
        start = time.perf_counter()
        for _ in range(PASSES):
            _pass(model, inputs, labels)
    return (time.perf_counter() - start) / (PASSES * len(inputs))


def _pass(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    # The loss is read, so that a device that answers late has answered.
    output = model(inputs)
    logits = getattr(output, "logits", output)
    if getattr(logits, "ndim", 0) != 2:
        raise InputError("model must return logits [N, classes]")
    float(functional.cross_entropy(logits.cpu(), labels))
