"""Prune a network as asked, from settings to a finished folder; a stopped run goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.progress import Progress

from secateur.allocation import allocate, check_patterns
from secateur.criteria import score
from secateur.data import batches, load_data
from secateur.plan import Plan
from secateur.results import CheckRecord, Epoch, Result
from secateur.study import kept, stages, store
from secateur.study.config import RunConfig, to_plain, to_yaml
from secateur.study.kept import Run
from secateur.study.stages import Subject, say, share


def prune_run(
    config: RunConfig, *, resume: bool = False, progress: Progress | None = None, command: str = ""
) -> Result:
    """Prune a network as ``config`` asks and leave everything in its run folder.

    Args:
        config: what is asked.
        resume: go on with the run that the folder holds.
        progress: where to show how far it is.
        command: how to repeat it, for the record.

    Raises:
        InputError: the folder holds another run, or anything that was given does not fit.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or the target is out of reach.
        SecateurError: training or measuring meets a number that is none.
    """
    config = store.with_output(config, "prune")
    folder = Path(config.output or "")
    store.check_folder(folder, to_plain(config), resume)
    if (done := store.finished(folder)) is not None:
        return kept.reported(folder, done)
    run = Run(folder, config.data.batch_size, progress, command)
    with stages.threads_set(config.threads):
        return _prune(run, config)


def _prune(run: Run, config: RunConfig) -> Result:
    model = stages.build(config.model, config.arguments, config.weights, config.seed)
    options = config.data.model_dump(exclude={"batch_size", "augment"})
    data = load_data(**options, seed=config.seed, progress=run.progress)
    subject = stages.inspect_subject(model, data)
    check_patterns(subject.graph, config.protect, config.limits)
    factory = kept.factory_for(config.model, model)
    store.claim(run.folder, to_yaml(config))
    if data.skipped:
        say(run.progress, f"{data.skipped} unreadable images are left out")
    dense = kept.judged(run, "dense-validation", model, data, "validation")
    say(run.progress, f"dense: {dense.accuracy:.2%} on validation")
    told = [f"dense {dense.accuracy:.2%}"]
    shrink = _at_once if config.rounds.number == 1 else _in_rounds
    plan, check, history = shrink(run, config, subject, factory, told)
    notes = [f"Accuracy on validation: {', '.join(told)}."]
    if data.skipped:
        notes.append(f"{data.skipped} unreadable images were left out.")
    if stages.from_file(config.model):
        notes.append(
            f"Call secateur.models.load_model({config.model!r}) before secateur.load in a new "
            "process: the network's class is in a file, which Python does not find by itself."
        )
    return kept.concluded(
        run,
        config,
        subject,
        plan,
        check,
        title=f"{config.model.rpartition(':')[2]} pruned by {config.criterion}",
        history=history,
        notes=notes,
    )


def _at_once(
    run: Run, config: RunConfig, subject: Subject, factory: str | None, told: list[str]
) -> tuple[Plan, CheckRecord, tuple[Epoch, ...]]:
    """Cut, store, train and store again."""
    data = subject.data
    plan = kept.planned(run, lambda: _plan(run, config, subject))
    pruned, check = stages.cut_and_verify(subject, plan)
    # Saved before it is trained: what cannot be saved must not be found out after hours.
    kept.stored(run, pruned, factory, config.arguments)
    after = kept.judged(run, "cut-validation", pruned, data, "validation")
    told.append(f"cut {after.accuracy:.2%}")
    say(
        run.progress,
        f"cut: {after.accuracy:.2%} on validation, {share(plan)}, "
        f"largest error against the masked network {check.max_error:.1e}",
    )
    history = kept.trained(
        run, pruned, data, config.finetune, "finetune", config.data.augment, subject.model
    )
    if history:
        kept.stored(run, pruned, factory, config.arguments)
        best = max(entry.val_accuracy for entry in history)
        told.append(f"finetuned {best:.2%}")
        say(run.progress, f"finetuned: {best:.2%} on validation")
    return plan, check, history


def _in_rounds(
    run: Run, config: RunConfig, subject: Subject, factory: str | None, told: list[str]
) -> tuple[Plan, CheckRecord, tuple[Epoch, ...]]:
    """Cut and train in turns; the proof is of all cuts as one."""
    outcome = kept.in_rounds(run, config, subject)
    plan = kept.planned(run, lambda: outcome.plan)
    _, check = stages.cut_and_verify(subject, plan)
    kept.stored(run, outcome.model, factory, config.arguments)
    after = kept.judged(run, "cut-validation", outcome.model, subject.data, "validation")
    told.append(f"after {config.rounds.number} rounds {after.accuracy:.2%}")
    say(run.progress, f"pruned: {after.accuracy:.2%} on validation, {share(plan)}")
    return plan, check, tuple(entry for one in outcome.rounds for entry in one.history)


def _plan(run: Run, config: RunConfig, subject: Subject) -> Plan:
    scores = score(
        subject.graph,
        config.criterion,
        batches(subject.data.calibration, config.data.batch_size),
        seed=config.seed,
        aggregation=config.aggregation,
        options=config.options,
        progress=run.progress,
    )
    threads = config.threads or config.timing.threads
    return allocate(
        subject.graph,
        scores,
        **config.target.given,
        scope=config.scope,
        normalisation=config.normalisation,
        round_to=config.round_to,
        protect=config.protect,
        limits=config.limits,
        max_sparsity=config.max_sparsity,
        timing=dataclasses.replace(config.timing, threads=threads),
        measure=None,
        progress=run.progress,
    )
