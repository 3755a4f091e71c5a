"""The workbench of a study: what all trials share, and the steps of one trial.

A bench knows train, calibration and validation images. Where its test images would be stands a
:class:`Sealed`, so that no trial can be judged by them, whatever its code does.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from filelock import FileLock
from rich.progress import Progress
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from secateur.allocation import allocate, check_patterns
from secateur.calibration import Batches
from secateur.compare.config import CompareConfig
from secateur.compare.trials import Spec
from secateur.comparison import Trial
from secateur.criteria import score
from secateur.criteria.elements import element_scores
from secateur.data import ImageData, batches, load_data
from secateur.data.images import ImageSet
from secateur.data.splits import stratified
from secateur.errors import InputError
from secateur.finetune import finetune
from secateur.measure import quality, sparse_bytes, weight_bytes
from secateur.plan import Plan
from secateur.recovery import recalibrate, recover
from secateur.study import stages
from secateur.study.stages import Subject
from secateur.weight_masks import Masks, apply_masks, input_dims, lowest_masked

SCORES = "scores"
WEIGHTS = "weights"
TRAINING = "training"


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

    @property
    def data(self) -> ImageData:
        """All images but those of the test split."""
        return self.subject.data


@dataclass(frozen=True)
class Made:
    """A network of one trial, before it is finetuned; a plan or masks say what went."""

    model: nn.Module
    macs: int
    plan: Plan | None = None
    masks: Masks | None = None
    max_error: float | None = None


def set_up(
    config: CompareConfig, stage: Path, progress: Progress | None = None
) -> tuple[Bench, ImageSet]:
    """Build, load and trace, once a process; return the bench and the test images beside it.

    Raises:
        InputError: what was asked does not fit the data or the network.
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
    return Bench(config, subject, stage, progress), data.test


def run_trial(bench: Bench, spec: Spec) -> Trial:
    """Make, finetune and judge one network; what was trained stays on disk for the test.

    Raises:
        SecateurError: what was asked cannot be done for this network.
    """
    started = time.perf_counter()
    trial = spec.trial
    made = make(bench, spec)
    trained = _train(bench, trial, made)
    found = quality(made.model, batches(bench.data.validation, _size(bench)), "validation")
    if trained or trial.recovery != "none":
        _write(_weights_of(bench, trial), lambda path: _save(made.model, path))
    shutil.rmtree(_training_of(bench, trial), ignore_errors=True)
    return dataclasses.replace(
        trial,
        quality=found,
        params=left(made),
        macs=made.macs,
        bytes=weight_bytes(made.model)[1],
        sparse=sparse_bytes(made.model),
        max_error=made.max_error,
        seconds=time.perf_counter() - started,
    )


def made_again(bench: Bench, spec: Spec) -> Made:
    """Return the network of a trial that is done: chosen anew from the same scores, or read."""
    made = make(bench, spec, recovered=False)
    path = _weights_of(bench, spec.trial)
    if path.is_file():
        load_model(made.model, path)
    elif spec.trial.epochs or spec.trial.recovery != "none":
        raise InputError(f"{path} must hold the weights of trial {spec.trial.number}, but is gone")
    return made


def make(bench: Bench, spec: Spec, *, recovered: bool = True) -> Made:
    """Choose what goes, take it away, and mend what can be mended without training."""
    trial = spec.trial
    if trial.granularity == "weight":
        made = _masked(bench, spec)
    else:
        plan = planned(bench, spec)
        pruned, check = stages.cut_and_verify(bench.subject, plan)
        made = Made(pruned, plan.pruned.macs, plan=plan, max_error=check.max_error)
    if not recovered or trial.recovery == "none":
        return made
    calibration = calibrating(bench, trial.seed)
    if made.plan is None:
        recalibrate(made.model, calibration)
    else:
        dense = bench.subject.model
        recover(dense, made.model, made.plan, calibration, trial.recovery, inplace=True)
    return made


def planned(bench: Bench, spec: Spec) -> Plan:
    """Choose the units of one trial."""
    config, trial = bench.config, spec.trial
    target: dict[str, Any] = {trial.target: trial.value}
    # Places of units in one order of all must not be scaled group by group.
    places = spec.rule.mixed and trial.scope == "global"
    return allocate(
        bench.subject.graph,
        unit_scores(bench, spec),
        **target,
        scope=trial.scope,
        normalisation="none" if places else config.normalisation,
        round_to=config.round_to,
        protect=config.protect,
        max_sparsity=config.max_sparsity,
    )


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

    return _kept(bench, ["unit", dataclasses.asdict(rule), scope, trial.seed], compute)


def left(made: Made) -> int:
    """Count the parameters that are left: all of a cut network, those that no mask takes."""
    masked = sum(int((~mask).sum()) for mask in (made.masks or {}).values())
    return sum(parameter.numel() for parameter in made.model.parameters()) - masked


def calibrating(bench: Bench, seed: int) -> Batches:
    """Return calibration batches; another seed draws other training images, as many."""
    data = bench.data
    images = data.calibration
    if seed != bench.config.seed:
        labels = data.train.labels.numpy()
        rows = torch.from_numpy(stratified(labels, len(images), seed=(seed, 2)))
        images = copy.copy(data.train)
        images.places, images.labels = data.train.places[rows], data.train.labels[rows]
    loader: Batches = batches(images, _size(bench))
    return loader


def _masked(bench: Bench, spec: Spec) -> Made:
    trial, dense = spec.trial, bench.subject.model

    def compute() -> dict[str, Tensor]:
        return element_scores(
            dense,
            spec.rule.name,
            calibrating(bench, trial.seed),
            seed=trial.seed,
            example_inputs=bench.subject.example,
            options=spec.rule.options,
            progress=bench.progress,
        )

    found = _kept(bench, ["weight", dataclasses.asdict(spec.rule), trial.seed], compute)
    device = bench.subject.example.device
    names = input_dims(dense, protect=bench.config.protect)
    masks = lowest_masked({n: found[n].to(device) for n in names}, trial.value, trial.scope)
    model = copy.deepcopy(dense)
    apply_masks(model, masks)
    return Made(model, bench.subject.graph.cost().macs, masks=masks)


def _train(bench: Bench, trial: Trial, made: Made) -> bool:
    """Finetune in place, on from the last epoch that an interrupted trial left."""
    if not trial.epochs:
        return False
    settings = bench.config.training(trial.epochs, trial.seed)
    data, size = bench.data, _size(bench)
    augment = bench.config.data.augment
    finetune(
        made.model,
        batches(data.train, size, shuffle=True, seed=trial.seed, augment=augment),
        batches(data.validation, size),
        settings,
        folder=_training_of(bench, trial),
        resume=True,
        teacher=bench.subject.model if settings.distill_weight else None,
        masks=made.masks,
        progress=bench.progress,
    )
    return True


def _kept(
    bench: Bench, key: list[Any], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return tensors from disk; made there first, by one process, where they are not."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = bench.stage / SCORES / f"{name}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                _write(path, lambda to: save_file(_loose(compute()), to))
    return load_file(path)


def _loose(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)


def _save(model: nn.Module, path: Path) -> None:
    save_model(model, str(path))


def _weights_of(bench: Bench, trial: Trial) -> Path:
    return bench.stage / WEIGHTS / f"{trial.number}.safetensors"


def _training_of(bench: Bench, trial: Trial) -> Path:
    return bench.stage / TRAINING / str(trial.number)


def _size(bench: Bench) -> int:
    return bench.config.data.batch_size
