"""What a run folder holds, read by what its files are named, and drawn again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.comparison import Comparison, load_comparison
from secateur.errors import InputError
from secateur.report.comparison_page import write_comparison, write_comparison_tables
from secateur.report.export import write_tables
from secateur.report.page import write_report
from secateur.report.sensitivity_page import write_sensitivity, write_sensitivity_tables
from secateur.report.tuning_page import write_tuning, write_tuning_tables
from secateur.results import Result, load_result
from secateur.sensitivity_results import FILE as SENSITIVITY
from secateur.sensitivity_results import Sensitivity, load_sensitivity
from secateur.tuning_results import FILE as TUNING
from secateur.tuning_results import Tuning, load_tuning

Record = Result | Comparison | Tuning | Sensitivity


@dataclass(frozen=True)
class _Kind:
    load: Callable[[Path], Any]
    page: Callable[[Any, Path], Path]
    tables: Callable[[Any, Path], tuple[Path, ...]]


_KINDS = {
    "comparison.json": _Kind(load_comparison, write_comparison, write_comparison_tables),
    TUNING: _Kind(load_tuning, write_tuning, write_tuning_tables),
    SENSITIVITY: _Kind(load_sensitivity, write_sensitivity, write_sensitivity_tables),
    "result.json": _Kind(load_result, write_report, write_tables),
}


def load_run(folder: Path) -> Record:
    """Read the record of a run folder.

    Raises:
        InputError: the folder holds none; says which files would be one.
        CheckpointError: the record is half-written or of another format.
    """
    found: Record = _kind(folder).load(folder / _name(folder))
    return found


def draw_again(folder: Path) -> Path:
    """Draw ``report.html`` of a run folder again, with its tables as CSV and JSON beside it.

    Raises:
        InputError: the folder holds no record.
        CheckpointError: the record is half-written or of another format.
    """
    kind, record = _kind(folder), load_run(folder)
    kind.tables(record, folder)
    return kind.page(record, folder / "report.html")


def write_run_tables(record: Record, folder: Path) -> tuple[Path, ...]:
    """Write every table of a record as CSV and JSON."""
    kinds: dict[type, _Kind] = {
        Comparison: _KINDS["comparison.json"],
        Tuning: _KINDS[TUNING],
        Sensitivity: _KINDS[SENSITIVITY],
        Result: _KINDS["result.json"],
    }
    return kinds[type(record)].tables(record, folder)


def _kind(folder: Path) -> _Kind:
    return _KINDS[_name(folder)]


def _name(folder: Path) -> str:
    for name in _KINDS:
        if (folder / name).is_file():
            return name
    raise InputError(
        f"folder must hold a finished run ({', '.join(_KINDS)}), but {folder} holds none"
    )
