"""Residual branches that could go: what the page and the files say of them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from secateur.report import write_tables
from secateur.report.branches_parts import branches_figure, branches_table, branches_text
from secateur.report.page import render
from secateur.report.summary import summary
from secateur.results import Branch, Result, load_result, save_result

BRANCHES = (
    Branch("layer1.0", False, -0.75, 4672),
    Branch("layer1.1", True, 0.0, 4672),
    Branch("<i>2</i>", False, 0.0004, 18560),
)
WITHOUT = Branch("gate", False, reason="its branch ends with aten.sigmoid")


@pytest.fixture
def fewer(result: Result) -> Result:
    return dataclasses.replace(result, branches=(*BRANCHES, WITHOUT))


@pytest.mark.parametrize(
    ("branches", "told"),
    [
        ((), ""),
        (
            BRANCHES,
            "1 of 3 residual branches with a factor is gone: layer1.1, with 4,672 parameters of "
            "the dense network.",
        ),
        (
            (BRANCHES[0], WITHOUT),
            "0 of 1 residual branches with a factor are gone. 1 branch had no factor and stays.",
        ),
        (
            [Branch(f"b{n}", True, 0.0) for n in range(7)] + [WITHOUT, WITHOUT],
            "7 of 7 residual branches with a factor are gone: b0, b1, b2, b3, b4 and 2 more. "
            "2 branches had no factor and stay.",
        ),
    ],
)
def test_what_went_is_told(branches: tuple[Branch, ...], told: str) -> None:
    assert branches_text(branches) == told


def test_every_branch_has_a_row(fewer: Result) -> None:
    rows = [[cell.text for cell in row] for row in branches_table(fewer.branches).rows]
    assert rows == [
        ["layer1.0", "kept", "-0.750", "4,672", ""],
        ["layer1.1", "gone", "0", "4,672", ""],
        ["<i>2</i>", "kept", "0.000", "18,560", ""],
        ["gate", "kept", "none", "", "its branch ends with aten.sigmoid"],
    ]
    # Nobody wonders why, where every branch had a factor.
    assert [one.key for one in branches_table(BRANCHES).columns][-1] == "params"


def test_bars_are_the_factors_of_those_kept(fewer: Result) -> None:
    figure = branches_figure(fewer.branches)
    assert figure is not None
    kept, gone = figure.spec["data"]
    assert kept["x"] == [-0.75, None, 0.0004]
    assert gone["x"] == [None, 0, None]
    assert "nearest to zero (0.000), layer1.0 farthest from it (-0.750)" in figure.caption
    assert "<i>" not in json.dumps(figure.spec["layout"])


@pytest.mark.parametrize("branches", [(), (BRANCHES[1],), (WITHOUT,)])
def test_nothing_to_compare_draws_nothing(branches: tuple[Branch, ...]) -> None:
    assert branches_figure(branches) is None


def test_the_page_has_the_chapter(fewer: Result, result: Result) -> None:
    page = render(fewer)
    assert 'id="branches"' in page
    assert 'id="plot-branches"' in page
    assert 'id="widths"' in page
    assert "<i>2" not in page
    assert "Branches" in [line.label for line in summary(fewer)]
    assert 'id="branches"' not in render(result)


def test_files_hold_factors_unrounded(fewer: Result, tmp_path: Path) -> None:
    write_tables(fewer, tmp_path)
    with (tmp_path / "branches.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["factor"] for row in rows] == ["-0.75", "0.0", "0.0004", ""]
    assert [row["gone"] for row in rows] == ["False", "True", "False", "False"]
    last = json.loads((tmp_path / "branches.json").read_text())["rows"][-1]
    assert last == {
        "branch": "gate",
        "gone": False,
        "factor": None,
        "params": None,
        "reason": "its branch ends with aten.sigmoid",
    }


def test_a_record_comes_back(fewer: Result, tmp_path: Path) -> None:
    save_result(fewer, tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == fewer
