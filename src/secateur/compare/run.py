"""Carry out a comparison: trials on validation, then one look at the test split, then the report.

The folder holds ``config.yaml``, ``study.db`` (an Optuna study), in the end ``comparison.json``,
``report.html``, the tables as CSV and JSON, and the chosen network as ``prune`` leaves it. While
the study goes on, ``stages/`` holds scores, weights that were trained and what was measured.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.progress import Progress
from torch import nn

from secateur import comparison as records
from secateur.compare.bench import Bench, Made, set_up, training_of
from secateur.compare.config import CompareConfig, plain, to_yaml
from secateur.compare.database import Database, add, close_database, open_database, recorded
from secateur.compare.making import made_again
from secateur.compare.schedules import check_schedules
from secateur.compare.trials import Spec, grid, said
from secateur.compare.workers import one_by_one, side_by_side
from secateur.comparison import Comparison, Trial
from secateur.data.images import ImageSet
from secateur.errors import InputError, SecateurError
from secateur.facts import facts_from
from secateur.latency import relative_time
from secateur.measure import Answers, environment, judged
from secateur.progress import say, track
from secateur.report import write_comparison, write_comparison_tables
from secateur.results import Changes, Facts, Measured, Quality
from secateur.study import kept, stages, store

DATABASE = "study.db"
COMPARISON = "comparison.json"
OPENED = "test.json"
LOCK = "lock"


def compare_run(
    config: CompareConfig,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Make and judge every network of the grid, and leave everything in one folder.

    Args:
        config: what is asked.
        resume: go on with the study that the folder holds.
        retry_failed: do the trials again that have failed.
        workers: processes that run trials.
        progress: where to show how far it is.
        command: how to repeat it, for the record.

    Raises:
        InputError: the folder holds another run or is in use, or what was given does not fit.
        CheckpointError: the folder's database or records are damaged or of another version.
        SecateurError: not one trial is complete.
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, but got {workers}")
    config = store.with_output(config, "compare")
    folder = Path(config.output or "")
    store.check_folder(folder, plain(config), resume)
    if (folder / COMPARISON).is_file():
        return _reported(folder, records.load_comparison(folder / COMPARISON))
    with stages.threads_set(config.threads):
        stage = folder / store.STAGES
        bench, test = set_up(config, stage, progress)
        check_schedules(bench)
        factory = kept.factory_for(config.model, config.arguments, bench.subject.model)
        store.claim(folder, to_yaml(config))
        lock = FileLock(stage / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(f"output must not be in use, but {folder} is by a process") from error
        try:
            return _study(
                bench, test, folder, factory, retry_failed=retry_failed, workers=workers,
                command=command,
            )  # fmt: skip
        finally:
            lock.release()


def _study(
    bench: Bench,
    test: ImageSet,
    folder: Path,
    factory: str | None,
    *,
    retry_failed: bool,
    workers: int,
    command: str,
) -> Comparison:
    config = bench.config
    specs = grid(config)
    dense = judged(_answered(bench, folder, "validation"))
    say(bench.progress, f"dense: {dense.accuracy:.2%} on validation; {len(specs)} trials")
    database = open_database(folder / DATABASE, [spec.trial for spec in specs])
    try:
        _run_missing(bench, database, specs, workers, retry_failed)
        trials = list(recorded(database).values())
    finally:
        close_database(database)
    trials.sort(key=lambda trial: trial.number)
    if all(trial.quality is None for trial in trials):
        raise SecateurError(f"not one of {len(trials)} trials is complete: {trials[0].error}")
    trials = [_timed(bench, specs[trial.number], trial) for trial in _tracked(bench, trials)]
    found = _concluded(bench, folder, test, specs, trials, dense, command)
    _keep_chosen(bench, folder, specs, found, factory)
    records.save_comparison(found, folder / COMPARISON)
    shutil.rmtree(folder / store.STAGES, ignore_errors=True)
    return _reported(folder, found)


def _run_missing(
    bench: Bench, database: Database, specs: Sequence[Spec], workers: int, retry_failed: bool
) -> None:
    """Run what is not recorded yet, each trial recorded before the next is shown."""
    done = {
        number
        for number, trial in recorded(database).items()
        if trial.quality is not None or not retry_failed
    }
    missing = [spec for spec in specs if spec.trial.number not in done]
    if done:
        say(bench.progress, f"{len(done)} of {len(specs)} trials are done already")
    if workers == 1:
        results: Iterable[Trial] = one_by_one(bench, missing)
    else:
        results = side_by_side(bench.config, bench.stage, missing, workers)
    for trial in track(results, "Trials", bench.progress, len(missing)):
        add(database, trial)
        # Only now: a study that is killed before would train all epochs of the trial again.
        shutil.rmtree(training_of(bench, trial), ignore_errors=True)
        if trial.error:
            say(bench.progress, f"failed: {said(trial)}: {trial.error}")


def _tracked(bench: Bench, trials: Sequence[Trial]) -> Iterable[Trial]:
    if bench.config.latency is None:
        return trials
    return track(trials, "Measuring speed", bench.progress, len(trials))


def _timed(bench: Bench, spec: Spec, trial: Trial) -> Trial:
    """Measure a network's time against the dense network's: here, with no trial running."""
    timing = bench.config.latency
    if timing is None or trial.quality is None:
        return trial

    def measure() -> float:
        assert timing is not None
        pruned = made_again(bench, spec).model
        return relative_time(bench.subject.model, pruned, bench.subject.example, timing)

    path = bench.stage / "latency" / f"{trial.number}.json"
    return dataclasses.replace(trial, latency=store.remembered(path, measure))


def _concluded(
    bench: Bench,
    folder: Path,
    test: ImageSet,
    specs: Sequence[Spec],
    trials: Sequence[Trial],
    dense: Quality,
    command: str,
) -> Comparison:
    """Choose by validation, then read the test split for what is reported."""
    config = bench.config
    setups = records.setups(trials)
    chosen = records.choose(setups, dense.accuracy, config.choose.within, config.choose.cost)
    numbers = _opened(bench, _reported_numbers(config.test, setups, chosen))
    # From here on the test split is read; what is read for is written down already.
    seen = dataclasses.replace(
        bench, subject=dataclasses.replace(
            bench.subject, data=dataclasses.replace(bench.data, test=test)
        )
    )  # fmt: skip
    on_test = judged(_answered(seen, folder, "test"))
    tested = {
        number: judged(_answered(seen, folder, "test", specs[number]))
        for number in track(numbers, "Measuring on test", bench.progress)
    }
    cost = bench.subject.graph.cost()
    number = None if chosen is None else chosen.first.number
    # Where the chosen network is not measured on test, it is not looked at there either.
    side = (seen, "test") if number in tested else (bench, "validation")
    facts = changes = None
    if number is not None:
        made = made_again(bench, specs[number])
        facts = _facts(*side, folder, specs[number], made.model)
        changes = _changes(bench, made, trials[number])
    return Comparison(
        title=f"{config.model.rpartition(':')[2]}: {len(trials)} networks compared",
        asked=plain(config),
        command=command,
        environment=environment(),
        dense=Measured(quality=on_test, size=stages.size(bench.subject.model, cost.macs)),
        validation=dense,
        trials=tuple(dataclasses.replace(trial, test=tested.get(trial.number)) for trial in trials),
        chosen=number,
        within=config.choose.within,
        cost=config.choose.cost,
        score=config.score or "",
        notes=tuple(bench.subject.graph.notes),
        facts=facts,
        changes=changes,
    )


def _reported_numbers(
    which: str, setups: Sequence[records.Setup], chosen: records.Setup | None
) -> list[int]:
    wanted = {
        "all": setups,
        "frontier": [one for one in setups if one.frontiers or one == chosen],
        "chosen": [] if chosen is None else [chosen],
        "none": [],
    }[which]
    return sorted(trial.number for setup in wanted for trial in setup.trials)


def _opened(bench: Bench, numbers: Sequence[int]) -> list[int]:
    """Write down which trials the test split is read for; what is written stays."""
    found: list[int] = store.remembered(bench.stage / OPENED, lambda: list(numbers))
    return found


def _answered(bench: Bench, folder: Path, split: str, spec: Spec | None = None) -> Answers:
    """Classify every image by the dense network or a trial's, once; the study keeps the answers."""
    model = bench.subject.model if spec is None else made_again(bench, spec).model
    name = f"{'dense' if spec is None else spec.trial.number}-{split}"
    return kept.answered(_own(bench, folder), name, model, bench.data, split)


def _own(bench: Bench, folder: Path, command: str = "") -> kept.Run:
    # A bar for each of many networks would hide the one that counts them.
    return kept.Run(folder, bench.config.data.batch_size, None, command)


def _facts(bench: Bench, split: str, folder: Path, spec: Spec, model: nn.Module) -> Facts:
    """Put the dense network and a trial's side by side, once."""

    def measure() -> list[Facts]:
        found = facts_from(
            bench.subject.model,
            model,
            (_answered(bench, folder, split), _answered(bench, folder, split, spec)),
            bench.data.classes,
            bench.subject.example,
            threads=bench.config.threads,
        )
        return [found]

    (facts,) = store.remembered_records(bench.stage / "facts.json", Facts, measure)
    return facts


def _changes(bench: Bench, made: Made, trial: Trial) -> Changes:
    """Say what became of a trial's network, layer by layer."""
    return Changes(
        widths=stages.widths(bench.subject.model, made.model),
        zeros=stages.zeros(made.masks or {}),
        history=trial.history,
        pinned=stages.pinned(bench.subject.graph),
        given_back={} if made.plan is None else dict(made.plan.given_back),
    )


def _keep_chosen(
    bench: Bench, folder: Path, specs: Sequence[Spec], found: Comparison, factory: str | None
) -> None:
    """Leave the chosen network in the folder, as ``prune`` does."""
    if found.chosen is None:
        return
    made = made_again(bench, specs[found.chosen])
    if made.plan is not None:
        store.write_plan(folder / store.PLAN, made.plan)
    run = _own(bench, folder, found.command)
    kept.stored(run, made.model, factory, bench.config.arguments)


def _reported(folder: Path, found: Comparison) -> Comparison:
    """Draw the report of a finished study, and hand the study on."""
    write_comparison(found, folder / store.REPORT)
    write_comparison_tables(found, folder)
    return found
