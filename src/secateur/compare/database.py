"""The trials that are done, in an Optuna study in SQLite: one transaction a trial.

A trial is written when it is over, whole, with its state, its parameters, its values and its
record. What was running when a process was killed is simply not there, and is done again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial

from secateur.comparison import Trial
from secateur.errors import CheckpointError
from secateur.files import atomic_file, with_checksum, without_checksum
from secateur.optuna_logging import quiet_optuna
from secateur.results import build_record
from secateur.study.databases import (
    check_file,
    close_storage,
    database_errors,
    open_storage,
    readable,
)

NAME = "compare"
FORMAT = 1
PARAMETERS = (
    "criterion", "granularity", "scope", "target", "value", "recovery", "epochs", "schedule",
    "seed",
)  # fmt: skip

RECORD = "record"
CURE = "move it away to measure all trials again (scores are kept), or choose another --output"


@dataclasses.dataclass(frozen=True)
class Database:
    """An open study; ``choices`` are the values of each parameter in the grid."""

    path: Path
    study: optuna.Study
    choices: dict[str, BaseDistribution]


@quiet_optuna()
def open_database(path: Path, trials: Sequence[Trial]) -> Database:
    """Open the study of a grid, or make it, whole or not at all.

    Raises:
        CheckpointError: the file is damaged, half-written, of another version or another grid;
            the message says what to do.
    """
    if not path.is_file():
        _create(path, len(trials))
    check_file(path, CURE)
    try:
        with database_errors(path, CURE), readable(path, CURE):
            study = optuna.load_study(study_name=NAME, storage=open_storage(path))
            _check_study(path, study, len(trials))
    except RuntimeError as error:
        raise _unusable(path, f"cannot be read by Optuna {optuna.__version__}: {error}") from error
    choices: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(list(dict.fromkeys(getattr(one, name) for one in trials)))
        for name in PARAMETERS
    }
    return Database(path, study, choices)


def close_database(database: Database) -> None:
    """Let go of the file."""
    _dispose(database.study)


def add(database: Database, trial: Trial) -> None:
    """Write one finished trial, in one transaction."""
    quality = trial.quality
    done = create_trial(
        state=TrialState.COMPLETE if quality is not None else TrialState.FAIL,
        values=None if quality is None else [quality.accuracy, float(trial.macs)],
        params={name: getattr(trial, name) for name in PARAMETERS},
        distributions=database.choices,
        user_attrs={
            "number": trial.number,
            RECORD: json.dumps(with_checksum(dataclasses.asdict(trial))),
            **({"error": trial.error} if trial.error else {}),
        },
    )
    now = datetime.now()
    done.datetime_start, done.datetime_complete = now - timedelta(seconds=trial.seconds), now
    with database_errors(database.path, CURE):
        database.study.add_trial(done)


def recorded(database: Database) -> dict[int, Trial]:
    """Return the trials that are done, by number; of several, the last."""
    found: dict[int, Trial] = {}
    with database_errors(database.path, CURE), readable(database.path, CURE):
        every = database.study.get_trials(deepcopy=False)
    for one in every:
        try:
            content = without_checksum(json.loads(one.user_attrs[RECORD]), "the record")
            trial = build_record(Trial, content)
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            raise _unusable(
                database.path, f"holds a trial ({one.number}) without a whole record"
            ) from error
        found[trial.number] = trial
    return found


def _create(path: Path, size: int) -> None:
    with atomic_file(path) as written, database_errors(path, CURE):
        study = optuna.create_study(
            study_name=NAME, storage=open_storage(written), directions=["maximize", "minimize"]
        )
        study.set_user_attr("format", FORMAT)
        study.set_user_attr("size", size)
        _dispose(study)


def _dispose(study: optuna.Study) -> None:
    storage: Any = study._storage
    close_storage(getattr(storage, "_backend", storage))


def _check_study(path: Path, study: optuna.Study, size: int) -> None:
    attributes = study.user_attrs
    if attributes.get("format") != FORMAT:
        raise _unusable(
            path, f"has format {attributes.get('format')!r} where this version writes {FORMAT}"
        )
    if attributes.get("size") != size:
        raise _unusable(path, f"is of {attributes.get('size')} trials where {size} were asked")


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} {why}; {CURE}")
