"""Networks of trials that do not lose everything at once: in rounds, or while they learn."""

from __future__ import annotations

import copy
from typing import Any

from secateur.calibration import Batches
from secateur.compare.bench import (
    Bench,
    Made,
    calibrating,
    judging_batches,
    scale_of,
    training_batches,
    training_of,
)
from secateur.compare.trials import Spec
from secateur.errors import InputError
from secateur.finetune import finetune, steps_per_epoch
from secateur.plan import Plan
from secateur.rounds import MaskRule, all_epochs, gradual, structure_rounds, weight_rounds
from secateur.study import stages
from secateur.weight_masks import zero_masks


def check_schedules(bench: Bench) -> None:
    """Refuse, before any trial, a gradual schedule that ends after the training.

    Raises:
        InputError: names the schedule's end and the steps that there are.
    """
    config = bench.config
    for entry in config.schedules:
        for epochs in config.epochs:
            if entry.gradual is not None:
                entry.gradual.schedule(0.5, _steps(bench, epochs))


def in_rounds(bench: Bench, spec: Spec) -> Made:
    """Cut (or mask) and finetune in turns, on from the last epoch that was left."""
    trial = spec.trial
    sizes = spec.schedule.epochs(trial.epochs)
    settings = [bench.config.training(epochs, trial.seed) for epochs in sizes]
    targets = spec.schedule.targets(trial.target, trial.value)
    dense = bench.subject.model
    common: dict[str, Any] = {
        "folder": training_of(bench, trial),
        "resume": True,
        "teacher": dense if settings[0].distill_weight else None,
        "progress": bench.progress,
    }
    loaders = training_batches(bench, trial.seed), judging_batches(bench)
    if trial.granularity == "weight":
        model = copy.deepcopy(dense)
        masks, rounds = weight_rounds(
            model, *loaders, settings, targets, rule=_rule(bench, spec), **common
        )
        return Made(
            model,
            bench.subject.graph.cost().macs,
            masks=dict(masks),
            history=all_epochs(rounds),
        )
    config = bench.config
    outcome = structure_rounds(
        dense,
        bench.subject.example,
        *loaders,
        settings,
        targets,
        target=trial.target,
        criterion=spec.rule.criterion(trial.scope, config.normalisation),
        calibration=calibrating(bench, trial.seed),
        seed=trial.seed,
        scoring={"aggregation": config.aggregation},
        allocation={
            "scope": trial.scope,
            "normalisation": scale_of(config, spec),
            "round_to": config.round_to,
            "protect": config.protect,
            "max_sparsity": config.max_sparsity,
        },
        **common,
    )
    _, check = stages.cut_and_verify(bench.subject, outcome.plan)
    return Made(
        outcome.model,
        outcome.plan.pruned.macs,
        plan=outcome.plan,
        max_error=check.max_error,
        history=all_epochs(outcome.rounds),
    )


def gradually(bench: Bench, spec: Spec) -> Made:
    """Mask more and more weights while finetuning goes on."""
    trial, entry = spec.trial, spec.schedule.gradual
    if entry is None:
        raise InputError(f"schedule must be gradual, but got {spec.schedule.label}")
    settings = bench.config.training(trial.epochs, trial.seed)
    dense = bench.subject.model
    model = copy.deepcopy(dense)
    history = finetune(
        model,
        training_batches(bench, trial.seed),
        judging_batches(bench),
        settings,
        folder=training_of(bench, trial),
        resume=True,
        teacher=dense if settings.distill_weight else None,
        hook=gradual(entry.schedule(trial.value, _steps(bench, trial.epochs)), _rule(bench, spec)),
        progress=bench.progress,
    )
    return Made(
        model,
        bench.subject.graph.cost().macs,
        masks=zero_masks(model, protect=bench.config.protect),
        history=history,
    )


def plan_text(made: Made) -> str:
    """What must be kept beside the weights of a trial that was cut in rounds."""
    return "" if made.plan is None else made.plan.to_json()


def built_again(bench: Bench, text: str) -> Made:
    """Return the network of such a trial, before its weights are read."""
    if not text:
        return Made(copy.deepcopy(bench.subject.model), bench.subject.graph.cost().macs)
    plan = Plan.from_json(text)
    pruned, check = stages.cut_and_verify(bench.subject, plan)
    return Made(pruned, plan.pruned.macs, plan=plan, max_error=check.max_error)


def _rule(bench: Bench, spec: Spec) -> MaskRule:
    calibration: Batches = calibrating(bench, spec.trial.seed)
    return MaskRule(
        criterion=spec.rule.name,
        scope=spec.trial.scope,
        protect=bench.config.protect,
        calibration=calibration,
        seed=spec.trial.seed,
    )


def _steps(bench: Bench, epochs: int) -> int:
    settings = bench.config.training(epochs, 0)
    return epochs * steps_per_epoch(training_batches(bench, 0), settings)
