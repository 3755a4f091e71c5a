"""Results: what was written is what is read, and anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.errors import CheckpointError
from secateur.files import with_checksum
from secateur.results import (
    CheckRecord,
    Epoch,
    Measured,
    PinnedDim,
    Point,
    Quality,
    Result,
    Size,
    Speed,
    Width,
    load_result,
    save_result,
)


def measured(accuracy: float, params: int) -> Measured:
    return Measured(
        Quality("test", 100, accuracy, accuracy - 0.1, accuracy + 0.1, 0.7, 0.6, 0.65, 0.5),
        Size(params, 10 * params, 4 * params, 3 * params),
        (Speed(1, 1, 20, 100.0, 90.0, 110.0), Speed(32, 2, 20, 900.0, 800.0, 1000.0)),
    )


RESULT = Result(
    title="digits",
    asked={"sparsity": 0.5, "scope": "local", "layers": [1, None, {"a": True}]},
    command="secateur demo",
    environment={"torch": "2"},
    dense=measured(0.9, 1000),
    pruned=measured(0.8, 400),
    check=CheckRecord(1e-15, 1e-10, True, True, "float64"),
    points=(Point("l2", "local", 0.5, "validation", 0.8, 0.4, 400, 4000, True),),
    widths=(Width("a", 8, 4),),
    history=(Epoch("finetune", 1, 1e-3, 0.5, 0.4, 0.9, 2.5),),
    pinned=(PinnedDim("head.weight", 0, "the model's output"),),
    given_back={"a": 1},
    notes=("a note with ünicode",),
)


def test_a_result_reads_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(RESULT, path)
    assert load_result(path) == RESULT
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_records_come_back_as_records_and_not_as_dicts(tmp_path: Path) -> None:
    save_result(RESULT, tmp_path / "result.json")
    found = load_result(tmp_path / "result.json")
    assert isinstance(found.dense.speeds[1], Speed)
    assert isinstance(found.points[0], Point)
    assert isinstance(found.check, CheckRecord)
    assert isinstance(found.notes, tuple)


def test_what_may_be_left_out_has_a_value(tmp_path: Path) -> None:
    small = Result("t", {}, "c", {}, RESULT.dense, RESULT.pruned, RESULT.check)
    save_result(small, tmp_path / "result.json")
    found = load_result(tmp_path / "result.json")
    assert found == small
    assert (found.points, found.given_back, found.format) == ((), {}, 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e-320, 0.1 + 0.2])
def test_every_float_survives(tmp_path: Path, value: float) -> None:
    check = dataclasses.replace(RESULT.check, max_error=value)
    save_result(dataclasses.replace(RESULT, check=check), tmp_path / "r.json")
    found = load_result(tmp_path / "r.json").check.max_error
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(RESULT, path)
    save_result(dataclasses.replace(RESULT, title="second"), path)
    assert load_result(path).title == "second"


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(RESULT, path)
    with pytest.raises(TypeError):
        save_result(dataclasses.replace(RESULT, asked={"model": object()}), path)
    assert load_result(path) == RESULT


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json does not exist"):
        load_result(tmp_path / "nowhere.json")


def other(text: str, old: str, new: str) -> str:
    """Return a record of another version, which is whole."""
    return json.dumps(with_checksum(json.loads(text.replace(f'"{old}', f'"{new}'))))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: "", "is not valid JSON"),
        (lambda text: "[]", "is damaged: it has no 'checksum'"),
        (lambda text: "{}", "is damaged: it has no 'checksum'"),
        (lambda text: text.replace('"accuracy": 0', '"accuracy": 1'), "its checksum differs"),
        (lambda text: other(text, "format", "form"), "format must be 1, but got None"),
        (lambda text: other(text, 'format": 1', 'format": 2'), "format must be 1, but got 2"),
        (lambda text: other(text, "title", "name"), "does not hold a whole result"),
        (lambda text: other(text, "params", "weights"), "does not hold a whole result"),
        (lambda text: other(text, "max_error", "error"), "does not hold a whole result"),
    ],
)
def test_what_is_no_whole_result_is_refused(
    tmp_path: Path, damage: Callable[[str], str], words: str
) -> None:
    path = tmp_path / "result.json"
    save_result(RESULT, path)
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(CheckpointError, match=words):
        load_result(path)
