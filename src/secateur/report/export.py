"""The tables of a result as files for other programs: CSV and JSON, values unrounded."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from secateur.errors import InputError
from secateur.files import make_folder, write_text
from secateur.report.cells import Table, Value
from secateur.report.tables import tables
from secateur.results import Result


def write_tables(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write every table of ``result`` into ``folder`` as ``NAME.csv`` and ``NAME.json``.

    Shares are in [0, 1], sizes in bytes, times in seconds. In the main table the change
    of a quality is a difference, of a size a share of the dense one, of a speed a factor.
    A value that is missing or not finite is an empty field in CSV and null in JSON.

    Args:
        result: the result to read.
        folder: made when it does not exist.

    Returns:
        The files written.

    Raises:
        InputError: ``folder`` is a file.
    """
    return write_each(tables(result), folder)


def write_each(every: Sequence[Table], folder: Path) -> tuple[Path, ...]:
    """Write tables into ``folder`` as ``NAME.csv`` and ``NAME.json``.

    Raises:
        InputError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder must be a folder, but {folder} is a file")
    make_folder(folder)
    written: list[Path] = []
    for table in every:
        for suffix, text in ((".csv", _csv(table)), (".json", _json(table))):
            path = folder / f"{table.name}{suffix}"
            write_text(path, text)
            written.append(path)
    return tuple(written)


def _plain(value: Value) -> Value:
    """``value``, or None where it is not a finite number: neither format has a word for NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _records(table: Table) -> tuple[list[str], list[list[Value]]]:
    """Names and values of the columns; a column with intervals gets one more for each bound."""
    names: list[str] = []
    values: list[list[Value]] = [[] for _ in table.rows]
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        bounded = any(cell.bounds for cell in cells)
        names += [column.key, *([f"{column.key}_low", f"{column.key}_high"] if bounded else [])]
        for line, cell in zip(values, cells, strict=True):
            low_high = (cell.bounds or (None, None)) if bounded else ()
            line += [_plain(cell.value), *(_plain(bound) for bound in low_high)]
    return names, values


def _csv(table: Table) -> str:
    names, values = _records(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(values)
    return text.getvalue()


def _json(table: Table) -> str:
    names, values = _records(table)
    rows = [dict(zip(names, line, strict=True)) for line in values]
    content = {"name": table.name, "caption": table.caption, "rows": rows}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
