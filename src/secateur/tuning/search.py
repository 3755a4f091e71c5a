"""The search on the proxy: an Optuna study that several workers share and that survives them.

Under one lock a worker either takes up a trial whose worker is gone, or asks for a new one; it
then holds the trial's own lock as long as it lives. So no trial is done by two, none is lost, and
there are never more than asked for.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from secateur.errors import CheckpointError, SecateurError
from secateur.files import with_checksum, without_checksum
from secateur.optuna_logging import quiet_optuna
from secateur.progress import counted, line_teller, say
from secateur.results import Quality, build_record
from secateur.study import store
from secateur.study.databases import (
    check_file,
    close_storage,
    database_errors,
    open_storage,
    readable,
)
from secateur.tuning.attempts import CURVE, Attempt, Bench, Stopped, attempt, clear
from secateur.tuning.config import SearchSettings
from secateur.tuning.encoding import grid
from secateur.tuning.objective import PIR_METRICS, Objective, pir, zeta
from secateur.tuning.samplers import make_sampler
from secateur.tuning.sharing import WAIT, alone, lock_of, taken
from secateur.tuning.space import Space, Values, suggest
from secateur.tuning_results import Tried

STUDY = "study.db"
NAME = "tune"
TRIED = "tried"
ASKED = "asked"
RUNG = "completed_rung_"
"""Before the number of a rung, in what Optuna's successive halving notes of a trial."""
CURE = "move it away to try all settings again, or choose another --output"


@dataclass(frozen=True)
class Hunt:
    """A search: where its study is, what is searched, and what a trial is worth."""

    folder: Path
    study: Study
    space: Space
    objective: Objective
    settings: SearchSettings
    seed: int
    before: Quality

    @property
    def trials(self) -> int:
        """How many trials there are to be; a grid may have fewer points than were asked for."""
        asked = self.settings.trials
        return len(grid(self.space, asked)) if self.settings.sampler == "grid" else asked


@contextlib.contextmanager
def opened(
    folder: Path, settings: SearchSettings, space: Space, seed: int, before: Quality
) -> Iterator[Hunt]:
    """Open the study of a run folder, made where there is none; close it afterwards."""
    path = folder / STUDY
    halving = settings.early_stopping
    pruner = (
        SuccessiveHalvingPruner(min_resource=halving.first, reduction_factor=halving.factor)
        if halving
        else NopPruner()
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_optuna())
        stack.enter_context(database_errors(path, CURE))
        check_file(path, CURE)
        with readable(path, CURE):
            storage = open_storage(path)
            stack.callback(close_storage, storage)
            study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                direction=settings.objective.direction,
                load_if_exists=True,
                pruner=pruner,
            )
            study.get_trials(deepcopy=False)
        yield Hunt(folder, study, space, settings.objective, settings, seed, before)


def search(hunt: Hunt, bench: Bench, proxy: nn.Module) -> tuple[Tried, ...]:
    """Do trials until all are done, by this worker or another; return them in order.

    Raises:
        SecateurError: no setting trains the proxy at all.
    """
    task = bench.progress.add_task("Trials", total=hunt.trials) if bench.progress else None
    tell = line_teller(bench.progress)
    while (taken_up := _next(hunt)) is not None:
        trial, values, lock = taken_up
        try:
            _carry_out(hunt, bench, proxy, trial, values)
        finally:
            lock.release()
        if bench.progress and task is not None:
            done = len(finished(hunt.study))
            bench.progress.update(task, completed=done)
            tell(counted, "Trials", done, hunt.trials)
    if bench.progress and task is not None:
        bench.progress.remove_task(task)
    tried = finished(hunt.study)
    check_trained(tried, hunt.objective, hunt.before)
    return tried


def finished(study: Study) -> tuple[Tried, ...]:
    """Return the finished trials of a study, in order.

    Raises:
        CheckpointError: a trial has no whole record, or the database says something else.
    """
    return tuple(
        _tried(one)
        for one in study.get_trials(deepcopy=False)
        if one.state in (TrialState.COMPLETE, TrialState.PRUNED)
    )


def _tried(one: FrozenTrial) -> Tried:
    what = f"trial {one.number} of {STUDY}"
    try:
        found = build_record(
            Tried, without_checksum(json.loads(one.user_attrs[TRIED]), f"the record of {what}")
        )
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{what} is damaged ({error}); {CURE}") from error
    # What samplers and early stopping read, held against the record, which has a checksum.
    same = (
        found.number == one.number
        and all(found.values.get(name, value) == value for name, value in one.params.items())
        and all(
            epoch <= len(found.curve) and found.curve[epoch - 1] == value
            for epoch, value in one.intermediate_values.items()
        )
        and (one.state != TrialState.COMPLETE or one.value == found.value)
    )
    if not same:
        raise CheckpointError(f"{what} is damaged (it is not as recorded); {CURE}")
    return found


def check_trained(tried: tuple[Tried, ...], objective: Objective, before: Quality) -> None:
    """Refuse to go on from a search in which nothing was learnt.

    Raises:
        SecateurError: says so, and what to try.
    """
    done = [one for one in tried if one.state == "complete" and one.quality is not None]
    if any(one.quality and objective.learnt(before, one.quality, one.value) for one in done):
        return
    diverged = sum(one.state == "diverged" for one in tried)
    raise SecateurError(
        f"no setting of {len(tried)} trains the proxy at all: every {objective.metric} is "
        f"{'zero' if objective.metric in PIR_METRICS else 'no better than before training'} "
        f"({diverged} ended in a loss that is no number; precision before training "
        f"{before.precision:.4f}). Try a lower sparsity, more epochs per trial, other ranges in "
        "the space, or a dense network that is trained first"
    )


def saturated(tried: tuple[Tried, ...], objective: Objective) -> str:
    """Say where the PIR was at its end for half of the settings or more; "" elsewhere."""
    full = sum(one.value == 1 for one in tried)
    if objective.metric not in PIR_METRICS or 2 * full < len(tried):
        return ""
    return (
        f"The PIR is 1, its end, for {full} of {len(tried)} settings, so the search could hardly "
        "tell them apart (the order among them is by precision): ask for the metric precision, or "
        f"raise search.objective.target ({objective.target:g})."
    )


def _next(hunt: Hunt) -> tuple[Trial, Values, FileLock] | None:
    """Take up what a dead worker left, or start a new trial; None when all are over."""
    while True:
        with alone(hunt.folder, "ask"):
            every = hunt.study.get_trials(deepcopy=False)
            running = [one for one in every if one.state == TrialState.RUNNING]
            for one in running:
                lock = _lock(hunt, one.number)
                if taken(lock):
                    return _prepared(hunt, Trial(hunt.study, one._trial_id), lock)
            if sum(one.state != TrialState.FAIL for one in every) < hunt.trials:
                _set_sampler(hunt, len(every))
                trial = hunt.study.ask()
                lock = _lock(hunt, trial.number)
                lock.acquire()
                return _prepared(hunt, trial, lock)
        if not running:
            return None
        time.sleep(WAIT)


def _prepared(hunt: Hunt, trial: Trial, lock: FileLock) -> tuple[Trial, Values, FileLock]:
    try:
        _set_sampler(hunt, trial.number)
        values = suggest(trial, hunt.space)
        _check_asked(hunt, trial, values)
        return trial, values, lock
    except BaseException:
        lock.release()
        raise


def _check_asked(hunt: Hunt, trial: Trial, values: Values) -> None:
    """Keep what a trial tries; refuse one that a stopped worker began with something else."""
    known = trial.user_attrs.get(ASKED)
    if known is None:
        trial.set_user_attr(ASKED, dict(values))
    elif known != dict(values):
        raise CheckpointError(
            f"{hunt.folder / STUDY} is damaged (trial {trial.number} began with {known}, but is "
            f"now {dict(values)}); {CURE}"
        )


def _lock(hunt: Hunt, number: int) -> FileLock:
    return lock_of(hunt.folder, f"trial-{number:04d}")


def _set_sampler(hunt: Hunt, number: int) -> None:
    settings = hunt.settings
    hunt.study.sampler = make_sampler(
        settings.sampler,
        hunt.space,
        seed=hunt.seed,
        number=number,
        trials=settings.trials,
        beta=settings.beta,
        initial=settings.initial,
    )


def _carry_out(hunt: Hunt, bench: Bench, proxy: nn.Module, trial: Trial, values: Values) -> None:
    folder = hunt.folder / store.STAGES / f"trial-{trial.number:04d}"
    began = time.perf_counter()

    def tell(epoch: int, now: Quality) -> None:
        past = hunt.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if epoch not in past:
            trial.report(hunt.objective.of(hunt.before, now), epoch)
        over = epoch == bench.base.epochs
        newest = epoch >= max(past, default=0)
        if newest and not over and _hopeless(hunt, trial, epoch):
            raise Stopped

    try:
        found, _ = attempt(bench, proxy, values, folder, f"trial {trial.number}", tell=tell)
        state = "diverged" if found.note else "complete"
    except Stopped:
        curve = store.read_records(folder / CURVE, Quality)
        found = Attempt(curve, (), time.perf_counter() - began)
        state = "stopped"
    tried = judge(hunt, trial.number, values, found, state)
    trial.set_user_attr(TRIED, json.dumps(with_checksum(dataclasses.asdict(tried))))
    if state == "stopped":
        # Without a value of its own it keeps the last one that was reported.
        hunt.study.tell(trial, state=TrialState.PRUNED)
    else:
        hunt.study.tell(trial, tried.value)
    clear(folder)
    shown = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
    say(bench.progress, f"trial {trial.number}: {shown}: {_told(hunt, tried)}")


def _hopeless(hunt: Hunt, trial: Trial, epoch: int) -> bool:
    """Decide by the others whether a trial ends after an epoch, the same however often asked.

    Optuna notes the rung that a trial has reached before it decides, and then does not decide
    again: a worker that was killed in between would leave a hopeless trial running.
    """
    halving = hunt.settings.early_stopping
    if halving is None:
        return False
    now = copy.deepcopy(hunt.study.get_trials(deepcopy=False)[trial.number])
    for name in list(now.system_attrs):
        rung = name.removeprefix(RUNG)
        if rung != name and halving.first * halving.factor ** int(rung) >= epoch:
            del now.system_attrs[name]
    return hunt.study.pruner.prune(hunt.study, now)


def judge(hunt: Hunt, number: int, values: Values, found: Attempt, state: str) -> Tried:
    """Put together what is known of a trial."""
    objective, before = hunt.objective, hunt.before
    curve = tuple(objective.of(before, one) for one in found.curve)
    if state == "diverged":
        return Tried(number, values, state, objective.worst, None, None, None, curve,
                     found.seconds, found.note)  # fmt: skip
    now = found.curve[-1 if state == "stopped" else objective.epoch(found.curve) - 1]
    value = curve[-1] if state == "stopped" else objective.value(before, found.curve)
    rate = pir(before.precision, now.precision, objective.target) if before.precision else None
    multiple = zeta(before.precision, now.precision)
    return Tried(number, values, state, value, rate, multiple, now, curve, found.seconds)


def _told(hunt: Hunt, tried: Tried) -> str:
    if tried.state == "diverged":
        return f"diverged ({tried.note})"
    name = "PIR" if hunt.objective.metric in PIR_METRICS else hunt.objective.metric
    early = ", stopped early" if tried.state == "stopped" else ""
    return f"{name} {tried.value:.4f}, zeta {tried.zeta:.2f}{early}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
