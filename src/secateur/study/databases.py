"""Optuna studies in SQLite files: any path, and errors of one line that name the file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from secateur.errors import CheckpointError, InputError, SecateurError, StorageError

LONGEST = 500
"""Bytes of a path that SQLite opens, its journal's name included, with some room to spare."""

WAIT = 60.0

_OF_THE_DISK = ("disk is full", "disk I/O error", "unable to open", "readonly", "is locked")
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, LookupError)


def open_storage(path: Path) -> RDBStorage:
    """Open the storage of a file, made where there is none.

    Raises:
        InputError: the path is too long for SQLite.
    """
    place = path.absolute()
    length = len(os.fsencode(place))
    if length > LONGEST:
        raise InputError(
            f"output must be a shorter path: the database {path.name} in it may have {LONGEST} "
            f"bytes, but has {length}"
        )

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(place, timeout=WAIT, check_same_thread=False)

    # Not the path itself: in a URL "%", "?" and "{" would mean something else.
    return RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def close_storage(storage: RDBStorage) -> None:
    """Let go of the file."""
    storage.remove_session()
    storage.engine.dispose()


def check_file(path: Path, cure: str) -> None:
    """Refuse what SQLite finds damaged; a file that is not there is fine.

    Raises:
        CheckpointError: says what to do (``cure``).
    """
    if not path.is_file():
        return
    with database_errors(path, cure):
        with contextlib.closing(sqlite3.connect(path.absolute())) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise CheckpointError(f"{path} is damaged ({found}); {cure}")


@contextlib.contextmanager
def database_errors(path: Path, cure: str) -> Iterator[None]:
    """Raise what SQLite, SQLAlchemy and Optuna's storage say in one line that names the file.

    Raises:
        StorageError: the disk is full or the file cannot be opened or written.
        CheckpointError: the file is damaged; says what to do (``cure``).
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        why = _reason(error)
        if any(words in why for words in _OF_THE_DISK):
            more = "; free some space and go on" if "full" in why else ""
            raise StorageError(f"{path} cannot be written: {why}{more}") from error
        raise CheckpointError(f"{path} is damaged ({why}); {cure}") from error


@contextlib.contextmanager
def readable(path: Path, cure: str) -> Iterator[None]:
    """Raise whatever Optuna stumbles over in a file's rows as damage of the file.

    Raises:
        CheckpointError: says what to do (``cure``).
    """
    try:
        yield
    except SecateurError:
        raise
    except _UNREADABLE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path} is damaged ({why}); {cure}") from error


def _reason(error: BaseException) -> str:
    """Return SQLite's own words, which stand at the end of the chain of causes."""
    found: BaseException = error
    while True:
        inner = getattr(found, "orig", None) or found.__cause__ or found.__context__
        if inner is None:
            return " ".join(str(found).split())[:200]
        found = inner
