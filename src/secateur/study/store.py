"""The run folder: who owns it, and what each stage has left in it.

A run is claimed by writing ``config.yaml``. Until ``result.json`` is there, ``stages/`` holds
what is finished, so that a stopped run goes on and does nothing twice; after that it is gone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from secateur.errors import CheckpointError, InputError
from secateur.results import Result, load_result, save_result
from secateur.study.reading import differences, read_mapping

CONFIG = "config.yaml"
PLAN = "plan.json"
RESULT = "result.json"
REPORT = "report.html"
STAGES = "stages"

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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output must be a new or empty folder, but {folder} holds something else")


def claim(folder: Path, text: str) -> None:
    """Make the folder this run's own; ``text`` is its ``config.yaml``.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        (folder / STAGES).mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, text)
    except OSError as error:
        raise InputError(f"output must be writable, but got {folder}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def remembered(path: Path, make: Callable[[], str]) -> str:
    """Return the text of ``path``, made and written first where it is not there."""
    if not path.is_file():
        write_text(path, make())
    return path.read_text(encoding="utf-8")


def remembered_records(path: Path, kind: type[T], make: Callable[[], Sequence[T]]) -> tuple[T, ...]:
    """Return the flat records (``kind`` is their dataclass) of ``path``, made where missing.

    Raises:
        CheckpointError: the file holds something else.
    """
    text = remembered(path, lambda: dump_records(make()))
    return load_records(path, text, kind)


def dump_records(records: Sequence[Any]) -> str:
    """Write flat records as a JSON list."""
    return json.dumps([dataclasses.asdict(record) for record in records], indent=1) + "\n"


def load_records(path: Path, text: str, kind: type[T]) -> tuple[T, ...]:
    """Read what :func:`dump_records` wrote.

    Raises:
        CheckpointError: the text holds something else.
    """
    try:
        return tuple(kind(**entry) for entry in json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to make it again") from error


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
