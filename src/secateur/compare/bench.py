"""The workbench of a study: what all trials share.

A bench knows train, calibration and validation images. Where its test images would be stands a
:class:`Sealed`, so that no trial can be judged by them, whatever its code does.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from filelock import FileLock
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.allocation import check_patterns
from secateur.calibration import Batches
from secateur.checked import read_tensors, write_tensors
from secateur.compare.config import CompareConfig
from secateur.compare.trials import Spec
from secateur.comparison import Trial
from secateur.criteria import score
from secateur.data import ImageData, batches, load_data
from secateur.data.images import ImageSet
from secateur.data.splits import stratified
from secateur.errors import InputError
from secateur.files import make_folder
from secateur.plan import Plan
from secateur.results import Epoch
from secateur.study import stages
from secateur.study.dividing import Curves, read_curves
from secateur.study.stages import Subject
from secateur.weight_masks import Masks

SCORES = "scores"
WEIGHTS = "weights"
TRAINING = "training"
SEARCHES = "searches"


class Sealed:
    """Stands in for the test split until every trial is done."""

    def _refuse(self) -> NoReturn:
        raise InputError("the test split must not be read before every trial is done")

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, row: int) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()


@dataclass(frozen=True)
class Bench:
    """The dense network, its data without the test split, and where things are kept."""

    config: CompareConfig
    subject: Subject
    stage: Path
    progress: Progress | None = None
    curves: Curves | None = None

    @property
    def data(self) -> ImageData:
        """All images but those of the test split."""
        return self.subject.data


@dataclass(frozen=True)
class Made:
    """A network of one trial; a plan or masks say what went, the history how it was trained."""

    model: nn.Module
    macs: int
    plan: Plan | None = None
    masks: Masks | None = None
    max_error: float | None = None
    history: tuple[Epoch, ...] = ()


def set_up(
    config: CompareConfig, stage: Path, progress: Progress | None = None
) -> tuple[Bench, ImageSet]:
    """Build, load and trace, once a process; return the bench and the test images beside it.

    Raises:
        InputError: what was asked does not fit the data or the network, or curves are of others.
        CheckpointError: curves are missing or damaged.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut.
    """
    model = stages.build(config.model, config.arguments, config.weights, config.seed)
    options = config.data.model_dump(exclude={"batch_size", "augment"})
    data = load_data(**options, seed=config.seed, progress=progress)
    sealed = dataclasses.replace(data, test=cast(ImageSet, Sealed()))
    subject = stages.inspect_subject(model, sealed)
    limits: Mapping[str, Any] = {}
    check_patterns(subject.graph, config.protect, limits)
    curves = None
    if config.curves is not None:
        orderings = [(entry.name or "a mixture", entry.options) for entry in config.criteria]
        curves = read_curves(config.curves, subject.graph, orderings, config.aggregation)
    return Bench(config, subject, stage, progress, curves), data.test


def unit_scores(bench: Bench, spec: Spec) -> dict[str, Tensor]:
    """Score every unit, once for all trials that share criterion and seed."""
    config, trial, rule = bench.config, spec.trial, spec.rule
    scope = trial.scope if rule.mixed else "any"

    def compute() -> dict[str, Tensor]:
        return score(
            bench.subject.graph,
            rule.criterion(trial.scope, config.normalisation),
            calibrating(bench, trial.seed),
            seed=trial.seed,
            aggregation=config.aggregation,
            progress=bench.progress,
        )

    return kept_tensors(bench, ["unit", dataclasses.asdict(rule), scope, trial.seed], compute)


def scale_of(config: CompareConfig, spec: Spec) -> str:
    """Return what scores are divided by before groups compete."""
    # Places of units in one order of all must not be scaled group by group.
    places = spec.rule.mixed and spec.trial.scope == "global"
    return "none" if places else config.normalisation


def calibrating(bench: Bench, seed: int) -> Batches:
    """Return calibration batches; another seed draws other training images, as many."""
    data = bench.data
    images = data.calibration
    if seed != bench.config.seed:
        labels = data.train.labels.numpy()
        rows = torch.from_numpy(stratified(labels, len(images), seed=(seed, 2)))
        images = copy.copy(data.train)
        images.places, images.labels = data.train.places[rows], data.train.labels[rows]
    loader: Batches = batches(images, batch_size(bench))
    return loader


def kept_tensors(
    bench: Bench, key: list[Any], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return tensors from disk; made there first, by one process, where they are not."""
    path = bench.stage / SCORES / f"{_named(key)}.safetensors"
    if not path.is_file():
        make_folder(path.parent)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                write_tensors(path, compute())
    return read_tensors(path)


def _named(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_of(bench: Bench, trial: Trial) -> Path:
    """Where what was trained stays until the study ends."""
    return bench.stage / WEIGHTS / f"{trial.number}.safetensors"


def training_of(bench: Bench, trial: Trial) -> Path:
    """Where a training leaves its checkpoints."""
    return bench.stage / TRAINING / str(trial.number)


@contextlib.contextmanager
def searching(bench: Bench, spec: Spec) -> Iterator[Path]:
    """Where a search of shares keeps its divisions, until the study ends.

    Trials that differ in their training alone share one search, one process at a time.
    """
    trial = spec.trial
    key = [dataclasses.asdict(spec.rule), trial.target, trial.value, trial.seed]
    path = bench.stage / SEARCHES / f"{_named(key)}.json"
    make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        yield path


def training_batches(bench: Bench, seed: int) -> DataLoader[Any]:
    """Return what finetuning goes through, in a new order each epoch."""
    augment = bench.config.data.augment
    return batches(bench.data.train, batch_size(bench), shuffle=True, seed=seed, augment=augment)


def judging_batches(bench: Bench) -> DataLoader[Any]:
    """Return the validation images."""
    return batches(bench.data.validation, batch_size(bench))


def batch_size(bench: Bench) -> int:
    """Return the study's own."""
    return bench.config.data.batch_size
