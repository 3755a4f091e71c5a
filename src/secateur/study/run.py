"""Prune a network as asked, from settings to a finished folder; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from secateur.data import load_data
from secateur.progress import say
from secateur.results import Result
from secateur.study import kept, stages, store
from secateur.study.config import RunConfig, to_plain, to_yaml
from secateur.study.kept import Run
from secateur.study.shrinking import Job, at_once, check_structures, in_rounds
from secateur.study.zeroing import check_weights, zeroed


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
    factory = kept.factory_for(config.model, config.arguments, model)
    if config.granularity == "weight":
        check_weights(config, subject, run.batch_size)
        shrink = zeroed
    else:
        check_structures(config, subject, factory)
        shrink = at_once if config.rounds.number == 1 else in_rounds
    store.claim(run.folder, to_yaml(config))
    if data.skipped:
        say(run.progress, f"{data.skipped} unreadable images are left out")
    job = Job(run, config, subject, factory)
    job.tell("dense", "dense", model)
    done = shrink(job)
    notes = [f"Accuracy on validation: {', '.join(job.told)}.", *done.notes]
    if data.skipped:
        notes.append(f"{data.skipped} unreadable images were left out.")
    if stages.from_file(config.model):
        notes.append(
            f"Call secateur.models.load_model({config.model!r}) before secateur.load in a new "
            "process: the network's class is in a file, which Python does not find by itself."
        )
    else:
        notes += kept.trust_note(model, factory)
    return kept.concluded(
        run,
        config,
        subject,
        done.macs,
        done.check,
        title=f"{config.model.rpartition(':')[2]} pruned by {_chooser(config)}",
        history=done.history,
        factory=factory,
        given_back=done.given_back,
        notes=notes,
        zeros=done.zeros,
        branches=done.branches,
    )


def _chooser(config: RunConfig) -> str:
    selects = config.sparse is not None and config.sparse.method == "select"
    return "structure selection" if selects else config.criterion
