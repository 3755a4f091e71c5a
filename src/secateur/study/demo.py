"""The demo: train, compare, prune and prove on the handwritten digits, in about a minute."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from secateur.allocation import allocate
from secateur.criteria import Scores, score
from secateur.cutting import cut
from secateur.data import batches, load_data
from secateur.finetune import finetune
from secateur.measure import quality
from secateur.plan import Plan
from secateur.progress import say, track
from secateur.results import Point, Result
from secateur.study import kept, stages, store
from secateur.study.config import DemoConfig, to_plain, to_yaml
from secateur.study.kept import Run
from secateur.study.stages import Subject, share

MODEL = "secateur.models:digits_cnn"


def demo_run(
    config: DemoConfig, *, resume: bool = False, progress: Progress | None = None, command: str = ""
) -> Result:
    """Prune a small convolutional network, from its training to the report.

    Networks are compared on validation after a short finetuning. Chosen is the one with the
    fewest MACs among those at most ``tolerance`` below the dense network, else the most accurate.

    Args:
        config: what is asked.
        resume: go on with the run that the folder holds.
        progress: where to show how far it is.
        command: how to repeat it, for the record.

    Raises:
        InputError: the folder holds another run.
    """
    config = store.with_output(config, "demo")
    folder = Path(config.output or "")
    store.check_folder(folder, to_plain(config), resume)
    if (done := store.finished(folder)) is not None:
        return kept.reported(folder, done)
    with stages.threads_set(config.threads):
        return _demo(Run(folder, config.batch_size, progress, command), config)


def _demo(run: Run, config: DemoConfig) -> Result:
    data = load_data("digits", validation=config.validation, seed=config.seed)
    model = stages.build(MODEL, {}, None, config.seed)
    subject = stages.inspect_subject(model, data)
    store.claim(run.folder, to_yaml(config))
    say(run.progress, f"{len(data.train)} handwritten digits to train on")
    training = kept.trained(run, model, data, config.train, "train")
    dense = kept.judged(run, "dense-validation", model, data, "validation")
    say(run.progress, f"dense: {dense.accuracy:.2%} on validation")
    points = _compare(run, config, subject)
    chosen = choose(points, dense.accuracy - config.tolerance)
    best = points[chosen]
    say(
        run.progress,
        f"chosen of {len(points)}: {best.criterion} at {best.sparsity:.0%} sparsity, "
        f"{best.accuracy:.2%} on validation after {config.trial_epochs} epochs",
    )
    plan = kept.planned(
        run,
        lambda: _plan(
            config, subject, _scores(run, config, subject, best.criterion), best.sparsity
        ),
    )
    pruned, check = stages.cut_and_verify(subject, plan)
    say(
        run.progress,
        f"cut: {share(plan)}, largest error against the masked network {check.max_error:.1e}",
    )
    history = kept.trained(run, pruned, data, config.finetune, "finetune")
    kept.stored(run, pruned)
    return kept.concluded(
        run,
        config,
        subject,
        (plan.dense.macs, plan.pruned.macs),
        check,
        title="Handwritten digits",
        history=(*training, *history),
        given_back=plan.given_back,
        points=[dataclasses.replace(p, chosen=i == chosen) for i, p in enumerate(points)],
        notes=[
            f"Each of the {len(points)} networks compared was finetuned for "
            f"{config.trial_epochs} epochs and judged on validation.",
            f"Chosen: the fewest MACs at most {100 * config.tolerance:g} points below the dense "
            f"network ({dense.accuracy:.2%}); where none is, the most accurate.",
            "Random is the baseline: a criterion that does not beat it says little here.",
        ],
    )


def choose(points: Sequence[Point], least: float) -> int:
    """Return which point has the fewest MACs with an accuracy of at least ``least``.

    Where none has, the most accurate one; equal ones go by accuracy, then loss, then order.
    """
    good = [place for place, point in enumerate(points) if point.accuracy >= least]
    if good:
        return min(good, key=lambda i: (points[i].macs, -points[i].accuracy, points[i].loss))
    return min(range(len(points)), key=lambda i: (-points[i].accuracy, points[i].loss))


def _compare(run: Run, config: DemoConfig, subject: Subject) -> tuple[Point, ...]:
    """Cut, finetune shortly and judge each combination, on from the last one that was kept."""
    path = run.stage("points.json")
    points = list(store.read_records(path, Point)) if path.is_file() else []
    wanted = [(name, sparsity) for name in config.criteria for sparsity in config.sparsities]
    scores: dict[str, Scores] = {}
    for name, sparsity in track(wanted, "Comparing criteria", run.progress):
        if len(points) > wanted.index((name, sparsity)):
            continue
        if name not in scores:
            scores[name] = _scores(run, config, subject, name)
        points.append(_point(run, config, subject, name, scores[name], sparsity))
        store.write_records(path, points)
    return tuple(points)


def _scores(run: Run, config: DemoConfig, subject: Subject, criterion: str) -> Scores:
    calibration = batches(subject.data.calibration, run.batch_size)
    return score(subject.graph, criterion, calibration, seed=config.seed)


def _plan(config: DemoConfig, subject: Subject, scores: Scores, sparsity: float) -> Plan:
    return allocate(subject.graph, scores, sparsity=sparsity, scope=config.scope)


def _point(
    run: Run, config: DemoConfig, subject: Subject, name: str, scores: Scores, sparsity: float
) -> Point:
    plan = _plan(config, subject, scores, sparsity)
    model = cut(subject.model, plan)
    data = subject.data
    validation = batches(data.validation, run.batch_size)
    finetune(
        model,
        batches(data.train, run.batch_size, shuffle=True, seed=config.seed),
        validation,
        dataclasses.replace(config.finetune, epochs=config.trial_epochs),
    )
    found = quality(model, validation, "validation")
    return Point(
        criterion=name,
        scope=config.scope,
        sparsity=sparsity,
        split="validation",
        accuracy=found.accuracy,
        loss=found.loss,
        params=plan.pruned.params,
        macs=plan.pruned.macs,
    )
