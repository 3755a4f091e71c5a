"""Which units of a run's network go."""

from __future__ import annotations

import dataclasses

from secateur.data import batches
from secateur.plan import Plan
from secateur.rounds import judge
from secateur.study import kept
from secateur.study.config import RunConfig
from secateur.study.dividing import Curves, divided, judge_of, read_curves
from secateur.study.kept import Run
from secateur.study.stages import Subject


def curves_of(config: RunConfig, subject: Subject) -> Curves | None:
    """Read the curves that the run was given, if it was.

    Raises:
        CheckpointError: the file is missing or damaged.
        InputError: they are of another network or order.
    """
    if config.curves is None:
        return None
    ordering = (config.criterion, config.options)
    return read_curves(config.curves, subject.graph, [ordering], config.aggregation)


def chosen(run: Run, config: RunConfig, subject: Subject) -> Plan:
    """Score the units, and divide the target over the groups.

    Raises:
        PlanError: nothing can be cut, or the target is out of reach.
    """
    assert config.target is not None
    scores = judge(
        subject.graph,
        config.criterion,
        batches(subject.data.calibration, config.data.batch_size),
        seed=config.seed,
        scoring=kept.scoring(config),
        progress=run.progress,
    )

    validation = batches(subject.data.validation, config.data.batch_size)
    threads = config.threads or config.timing.threads
    return divided(
        subject.graph,
        scores,
        config.target.given,
        scope=config.scope,
        normalisation=config.normalisation,
        curves=curves_of(config, subject),
        search=config.search,
        accuracy=judge_of(subject.model, validation),
        record=run.stage("search.json"),
        seed=config.seed,
        progress=run.progress,
        round_to=config.round_to,
        protect=config.protect,
        limits=config.limits,
        max_sparsity=config.max_sparsity,
        timing=dataclasses.replace(config.timing, threads=threads),
    )
