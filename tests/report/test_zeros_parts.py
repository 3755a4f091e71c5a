"""Single weights that were set to zero: what the page and the files say of them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from secateur.files import write_json
from secateur.report import write_tables
from secateur.report.page import render
from secateur.report.summary import summary
from secateur.report.zeros_parts import zeros_figure, zeros_section, zeros_table, zeros_text
from secateur.results import LayerZeros, Result, Width, load_result, save_result

ZEROS = (
    LayerZeros("stem", 40, 10),
    LayerZeros("<b>body</b>", 160, 160),
    LayerZeros("head", 200, 30),
)


@pytest.fixture
def zeroed(result: Result) -> Result:
    """A run that cut nothing: widths are as they were."""
    return dataclasses.replace(result, zeros=ZEROS, widths=(Width("stem", 8, 8),))


def test_the_whole_is_told() -> None:
    assert zeros_text(ZEROS) == (
        "200 of 400 weights that may be masked are zero (50.00 %), in 3 layers."
    )
    assert zeros_text(()) == ""


def test_every_layer_has_its_share() -> None:
    rows = [[cell.value for cell in row] for row in zeros_table(ZEROS).rows]
    assert rows == [["stem", 40, 10, 0.25], ["<b>body</b>", 160, 160, 1.0], ["head", 200, 30, 0.15]]


def test_bars_show_what_is_left() -> None:
    figure = zeros_figure(ZEROS)
    assert figure is not None
    whole, left = figure.spec["data"]
    assert whole["x"] == [100, 100, 100]
    assert left["x"] == pytest.approx([75, 0, 85])
    assert "<b>" not in json.dumps(figure.spec["layout"])
    assert "Most zeros: <b>body</b>, 100.0 %; fewest: head, 15.0 %." in figure.caption
    assert zeros_figure(()) is None


def test_many_layers_are_numbered() -> None:
    figure = zeros_figure([LayerZeros(f"layer{n}", 10, n % 10) for n in range(40)])
    assert figure is not None
    assert figure.spec["data"][1]["y"][:3] == pytest.approx([100, 90, 80])
    assert "ticktext" not in figure.spec["layout"]["xaxis"]


def test_a_layer_without_a_weight_is_named() -> None:
    assert zeros_section(ZEROS).texts[1:] == ("No weight is left in <b>body</b>.",)
    many = [LayerZeros(f"l{n}", 1, 1) for n in range(7)]
    assert zeros_section(many).texts[1] == "No weight is left in l0, l1, l2, l3, l4 and 2 more."
    assert len(zeros_section(ZEROS[::2]).texts) == 1


def test_the_page_has_the_chapter_in_place_of_widths(zeroed: Result, result: Result) -> None:
    page = render(zeroed)
    assert 'id="zeros"' in page
    assert 'id="plot-zeros"' in page
    assert "<b>body" not in page
    assert 'id="widths"' not in page
    # Nothing was cut, so nothing is said of units that could not be.
    assert 'id="kept"' not in page
    assert ("Zeros", zeros_text(ZEROS)) in [(line.label, line.text) for line in summary(zeroed)]
    assert 'id="zeros"' not in render(result)


def test_widths_that_changed_are_shown_beside(zeroed: Result) -> None:
    assert 'id="widths"' in render(dataclasses.replace(zeroed, widths=(Width("stem", 8, 4),)))


def test_files_hold_the_counts(zeroed: Result, tmp_path: Path) -> None:
    write_tables(zeroed, tmp_path)
    with (tmp_path / "zeros.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["zeros"]) for row in rows] == [10, 160, 30]
    (first, *_) = json.loads((tmp_path / "zeros.json").read_text())["rows"]
    assert first == {"layer": "stem", "weights": 40, "zeros": 10, "share": 0.25}


def test_a_record_comes_back_and_an_older_one_has_none(zeroed: Result, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(zeroed, path)
    assert load_result(path) == zeroed
    older = json.loads(path.read_text())
    del older["zeros"], older["branches"]
    write_json(path, older)
    assert load_result(path) == dataclasses.replace(zeroed, zeros=())
