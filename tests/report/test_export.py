from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest

from secateur.errors import InputError
from secateur.report import write_tables
from secateur.results import Result


def test_every_table_is_written_twice(result: Result, tmp_path: Path) -> None:
    written = write_tables(result, tmp_path / "new" / "tables")
    assert [path.name for path in written][:4] == [
        "results.csv",
        "results.json",
        "points.csv",
        "points.json",
    ]
    assert all(path.is_file() for path in written)
    assert len(written) == 26


def test_values_are_unrounded_and_bounded(result: Result, tmp_path: Path) -> None:
    write_tables(result, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    accuracy = content["rows"][0]
    assert accuracy["pruned"] == result.pruned.quality.accuracy
    assert (accuracy["pruned_low"], accuracy["pruned_high"]) == (0.9462, 0.9828)
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["pruned"]) == result.pruned.quality.accuracy
    assert rows[1]["pruned_low"] == ""
    points = json.loads((tmp_path / "points.json").read_text(encoding="utf-8"))["rows"]
    assert [point["accuracy"] for point in points] == [one.accuracy for one in result.points]
    assert sum(point["chosen"] for point in points) == 1


def test_both_formats_survive_odd_values(result: Result, tmp_path: Path) -> None:
    point = dataclasses.replace(result.points[0], criterion='a, "b"\nc', loss=math.nan)
    write_tables(dataclasses.replace(result, points=(point,)), tmp_path)
    (row,) = json.loads((tmp_path / "points.json").read_text(encoding="utf-8"))["rows"]
    assert (row["criterion"], row["loss"]) == ('a, "b"\nc', None)
    with (tmp_path / "points.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["criterion"], line["loss"]) == ('a, "b"\nc', "")


def test_a_file_is_no_folder(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="folder must be a folder"):
        write_tables(result, path)
    assert path.read_text(encoding="utf-8") == "mine"
