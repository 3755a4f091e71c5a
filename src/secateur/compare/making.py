"""One trial: make its network, finetune and judge it; and make it again for the test split."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Sequence

from torch import Tensor

from secateur.checked import read_tensors, write_tensors
from secateur.compare.bench import (
    Bench,
    Made,
    calibrating,
    judging_batches,
    kept_tensors,
    scale_of,
    searching,
    training_batches,
    training_of,
    unit_scores,
    weights_of,
)
from secateur.compare.schedules import built_again, gradually, in_rounds, plan_text
from secateur.compare.trials import Spec
from secateur.comparison import Trial
from secateur.criteria.elements import element_scores
from secateur.errors import InputError
from secateur.files import make_folder, read_json, write_json
from secateur.finetune import finetune
from secateur.measure import quality, sparse_bytes, weight_bytes
from secateur.plan import Plan
from secateur.recovery import recalibrate, recover
from secateur.results import Epoch
from secateur.study import stages
from secateur.study.dividing import divided, judge_of
from secateur.study.fields import SEARCHED
from secateur.training_state import snapshot
from secateur.weight_masks import (
    apply_masks,
    competing_scores,
    input_dims,
    lowest_masked,
    zero_masks,
)


def run_trial(bench: Bench, spec: Spec) -> Trial:
    """Make, finetune and judge one network; what was trained stays on disk for the test.

    Raises:
        SecateurError: what was asked cannot be done for this network.
    """
    started = time.perf_counter()
    trial = spec.trial
    made = _made(bench, spec)
    found = quality(made.model, judging_batches(bench), "validation")
    if not _from_scores(spec):
        path = weights_of(bench, trial)
        make_folder(path.parent)
        write_tensors(path, snapshot(made.model))
        if not spec.schedule.at_once:
            write_json(path.with_suffix(".plan"), {"plan": plan_text(made)})
    return dataclasses.replace(
        trial,
        quality=found,
        params=left(made),
        macs=made.macs,
        bytes=weight_bytes(made.model)[1],
        sparse=sparse_bytes(made.model),
        max_error=made.max_error,
        seconds=time.perf_counter() - started,
        history=made.history,
    )


def made_again(bench: Bench, spec: Spec) -> Made:
    """Return the network of a trial that is done: chosen anew from the same scores, or read.

    Raises:
        InputError: what it was trained to is gone.
    """
    if _from_scores(spec):
        return make(bench, spec)
    path = weights_of(bench, spec.trial)
    wanted = [path] if spec.schedule.at_once else [path, path.with_suffix(".plan")]
    for one in wanted:
        if not one.is_file():
            raise InputError(f"{one} must hold what trial {spec.trial.number} left, but is gone")
    if spec.schedule.at_once:
        made = make(bench, spec, recovered=False)
    else:
        made = built_again(bench, read_json(wanted[1])["plan"])
    made.model.load_state_dict(read_tensors(path))
    if made.plan is None and made.masks is None:
        return dataclasses.replace(made, masks=zero_masks(made.model, protect=bench.config.protect))
    return made


def make(bench: Bench, spec: Spec, *, recovered: bool = True) -> Made:
    """Choose what goes at once, take it away, and mend what can be mended without training."""
    trial = spec.trial
    if trial.granularity == "weight":
        made = _masked(bench, spec)
    else:
        plan = planned(bench, spec)
        again = None if trial.scope == SEARCHED else functools.partial(planned, bench, spec)
        pruned, plan, check = stages.provable_cut(bench.subject, plan, again, bench.progress)
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


def planned(bench: Bench, spec: Spec, whole: Sequence[str] = ()) -> Plan:
    """Choose the units of one trial; ``whole`` are patterns of further groups that stay whole."""
    config, trial = bench.config, spec.trial
    searched = trial.scope == SEARCHED
    with searching(bench, spec) if searched else contextlib.nullcontext() as record:
        return divided(
            bench.subject.graph,
            unit_scores(bench, spec),
            {trial.target: trial.value},
            scope=trial.scope,
            normalisation=scale_of(config, spec),
            curves=bench.curves,
            search=config.search,
            accuracy=judge_of(bench.subject.model, judging_batches(bench)),
            record=record,
            seed=trial.seed,
            progress=bench.progress,
            round_to=config.round_to,
            protect=(*config.protect, *whole),
            max_sparsity=config.max_sparsity,
        )


def left(made: Made) -> int:
    """Count the parameters that are left: all of a cut network, those that no mask takes."""
    masked = sum(int((~mask).sum()) for mask in (made.masks or {}).values())
    return sum(parameter.numel() for parameter in made.model.parameters()) - masked


def _from_scores(spec: Spec) -> bool:
    """Whether scores alone make the network; else its weights are kept until the test."""
    trial = spec.trial
    return spec.schedule.at_once and not trial.epochs and trial.recovery == "none"


def _made(bench: Bench, spec: Spec) -> Made:
    if spec.schedule.gradual is not None:
        return gradually(bench, spec)
    if not spec.schedule.at_once:
        return in_rounds(bench, spec)
    made = make(bench, spec)
    if spec.trial.epochs:
        return dataclasses.replace(made, history=_train(bench, spec.trial, made))
    return made


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

    found = kept_tensors(bench, ["weight", dataclasses.asdict(spec.rule), trial.seed], compute)
    device = bench.subject.example.device
    names = input_dims(dense, protect=bench.config.protect)
    scores = competing_scores(dense, {name: found[name].to(device) for name in names})
    masks = lowest_masked(scores, trial.value, trial.scope)
    model = copy.deepcopy(dense)
    apply_masks(model, masks)
    return Made(model, bench.subject.graph.cost().macs, masks=masks)


def _train(bench: Bench, trial: Trial, made: Made) -> tuple[Epoch, ...]:
    """Finetune in place, on from the last epoch that an interrupted trial left."""
    settings = bench.config.training(trial.epochs, trial.seed)
    return finetune(
        made.model,
        training_batches(bench, trial.seed),
        judging_batches(bench),
        settings,
        folder=training_of(bench, trial),
        resume=True,
        teacher=bench.subject.model if settings.distill_weight else None,
        masks=made.masks,
        progress=bench.progress,
    )
