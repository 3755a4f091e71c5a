"""The run folder: who owns it, and what each stage has left in it.

A run is claimed by writing ``config.yaml``. Until ``result.json`` is there, ``stages/`` holds
what is finished, so that a stopped run goes on and does nothing twice; after that it is gone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from secateur.errors import CheckpointError, InputError, StorageError
from secateur.files import (
    is_leftover,
    make_folder,
    read_bytes,
    read_json,
    write_json,
    write_text,
)
from secateur.plan import Plan
from secateur.results import Result, build_record, load_result, save_result
from secateur.study.reading import differences, read_mapping

CONFIG = "config.yaml"
PLAN = "plan.json"
RESULT = "result.json"
REPORT = "report.html"
STAGES = "stages"

_VALUE = "value"
_CHECKSUM_LINE = "# sha256 of the lines above: "

T = TypeVar("T")


class _Placed(Protocol):
    """Settings that say where a run is left."""

    @property
    def output(self) -> str | None: ...

    def model_copy(self: S, *, update: Mapping[str, Any] | None = None) -> S: ...


S = TypeVar("S", bound=_Placed)


def free_folder(wanted: Path) -> Path:
    """Return ``wanted``, or the first of ``wanted-2``, ``wanted-3`` ... that is not there."""
    folder, number = wanted, 2
    while folder.exists():
        folder = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return folder


def with_output(config: S, name: str) -> S:
    """Give settings without an output folder the first free ``runs/NAME``."""
    if config.output is not None:
        return config
    return config.model_copy(update={"output": free_folder(Path("runs") / name).as_posix()})


def check_folder(folder: Path, config: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that a run must not write into.

    Raises:
        InputError: without ``resume``, the folder holds anything; with it, the folder holds no
            run, or one that was asked something else.
    """
    claimed = (folder / CONFIG).is_file()
    if resume:
        if not claimed:
            raise InputError(f"resume needs a folder that holds a run, but got {folder}")
        _check_claim(folder / CONFIG)
        other = list(
            differences(_without_output(read_mapping(folder / CONFIG)), _without_output(config))
        )
        if other:
            raise InputError(
                f"resume needs the settings of the run in {folder}: {'; '.join(other)}"
            )
        return
    if claimed:
        raise InputError(
            f"output must be a new or empty folder, but {folder} holds another run "
            "(--resume goes on with it)"
        )
    if folder.exists() and not (folder.is_dir() and all(map(is_leftover, folder.iterdir()))):
        raise InputError(f"output must be a new or empty folder, but {folder} holds something else")


def claim(folder: Path, text: str) -> None:
    """Make the folder this run's own; ``text`` is its ``config.yaml``, filed with a checksum.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        make_folder(folder)
        write_text(folder / CONFIG, f"{text}{_CHECKSUM_LINE}{_text_checksum(text)}\n")
        make_folder(folder / STAGES)
    except StorageError as error:
        raise InputError(f"output must be writable, but {error}") from error


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """Return the plain value of ``path``, made and written first where it is not there.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        make_folder(path.parent)
        write_json(path, {_VALUE: make()})
    return read_value(path)


def read_value(path: Path) -> Any:
    """Read what :func:`remembered` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return read_json(path)[_VALUE]
    except (CheckpointError, KeyError) as error:
        raise _damaged(path, error) from error


def remembered_records(path: Path, kind: type[T], make: Callable[[], Sequence[T]]) -> tuple[T, ...]:
    """Return the records (``kind`` is their dataclass) of ``path``, made where missing.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    if not path.is_file():
        make_folder(path.parent)
        write_records(path, make())
    return read_records(path, kind)


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Write records (dataclasses) as JSON with a checksum."""
    write_json(path, {_VALUE: [dataclasses.asdict(record) for record in records]})


def read_records(path: Path, kind: type[T]) -> tuple[T, ...]:
    """Read what :func:`write_records` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
    try:
        return tuple(build_record(kind, entry) for entry in read_json(path)[_VALUE])
    except (CheckpointError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def remembered_plan(path: Path, choose: Callable[[], Plan]) -> Plan:
    """Return the plan of ``path``, chosen and written first where it is not there.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        write_plan(path, choose())
    try:
        return Plan.from_json(read_bytes(path).decode("utf-8"))
    except (CheckpointError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan, whole or not at all."""
    write_text(path, plan.to_json() + "\n")


def finished(folder: Path) -> Result | None:
    """Return the result of a run that is over, else None."""
    return load_result(folder / RESULT) if (folder / RESULT).is_file() else None


def finish(folder: Path, result: Result) -> None:
    """File the result and drop what only a stopped run would need."""
    save_result(result, folder / RESULT)
    shutil.rmtree(folder / STAGES, ignore_errors=True)


def _without_output(config: dict[str, Any]) -> dict[str, Any]:
    """The same folder may be reached by another path."""
    return {key: value for key, value in config.items() if key != "output"}


def _check_claim(path: Path) -> None:
    """Refuse a ``config.yaml`` that is not as the run wrote it."""
    text, mark, checksum = read_bytes(path).decode("utf-8", "replace").rpartition(_CHECKSUM_LINE)
    if not mark or checksum != f"{_text_checksum(text)}\n":
        raise CheckpointError(
            f"{path} is not as the run wrote it (its checksum differs): put it back as it was, or "
            "begin another run with a new output"
        )


def _text_checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _damaged(path: Path, error: Exception) -> CheckpointError:
    why = str(error).removeprefix(f"{path} ").removeprefix("is damaged: ")
    return CheckpointError(f"{path} is damaged ({why}); delete it to make it again")
