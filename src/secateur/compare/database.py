"""The trials that are done, in an Optuna study in SQLite: one transaction a trial.

A trial is written when it is over, whole, with its state, its parameters, its values and its
record. What was running when a process was killed is simply not there, and is done again.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from secateur.comparison import Trial
from secateur.errors import CheckpointError
from secateur.files import atomic_file
from secateur.optuna_logging import quiet_optuna
from secateur.results import build_record

NAME = "compare"
FORMAT = 1
PARAMETERS = (
    "criterion", "granularity", "scope", "target", "value", "recovery", "epochs", "schedule",
    "seed",
)  # fmt: skip

RECORD = "record"


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
    _check_file(path)
    try:
        study = optuna.load_study(study_name=NAME, storage=_storage(path))
    except (SQLAlchemyError, RuntimeError, KeyError) as error:
        raise _unusable(path, f"cannot be read by Optuna {optuna.__version__}: {error}") from error
    _check_study(path, study, len(trials))
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
            RECORD: json.dumps(dataclasses.asdict(trial)),
            **({"error": trial.error} if trial.error else {}),
        },
    )
    now = datetime.now()
    done.datetime_start, done.datetime_complete = now - timedelta(seconds=trial.seconds), now
    database.study.add_trial(done)


def recorded(database: Database) -> dict[int, Trial]:
    """Return the trials that are done, by number; of several, the last."""
    found: dict[int, Trial] = {}
    for one in database.study.get_trials(deepcopy=False):
        try:
            trial = build_record(Trial, json.loads(one.user_attrs[RECORD]))
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(
                database.path, f"holds a trial ({one.number}) without a whole record"
            ) from error
        found[trial.number] = trial
    return found


def _create(path: Path, size: int) -> None:
    with atomic_file(path) as written:
        study = optuna.create_study(
            study_name=NAME, storage=_storage(written), directions=["maximize", "minimize"]
        )
        study.set_user_attr("format", FORMAT)
        study.set_user_attr("size", size)
        _dispose(study)


def _storage(path: Path) -> optuna.storages.RDBStorage:
    # An absolute path has four slashes; as_posix keeps Windows' drives readable.
    return optuna.storages.RDBStorage(f"sqlite:///{path.absolute().as_posix()}")


def _dispose(study: optuna.Study) -> None:
    storage: Any = study._storage
    backend = getattr(storage, "_backend", storage)
    storage.remove_session()
    backend.engine.dispose()


def _check_file(path: Path) -> None:
    """Refuse what SQLite finds damaged."""
    try:
        connection = sqlite3.connect(path)
        try:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise _unusable(path, f"is damaged ({error})") from error
    if found != "ok":
        raise _unusable(path, f"is damaged ({found})")


def _check_study(path: Path, study: optuna.Study, size: int) -> None:
    attributes = study.user_attrs
    if attributes.get("format") != FORMAT:
        raise _unusable(
            path, f"has format {attributes.get('format')!r} where this version writes {FORMAT}"
        )
    if attributes.get("size") != size:
        raise _unusable(path, f"is of {attributes.get('size')} trials where {size} were asked")


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {why}; move it away to measure all trials again (scores are kept), "
        "or choose another --output"
    )
