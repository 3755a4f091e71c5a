from __future__ import annotations

import dataclasses
import json
import math

import pytest

from secateur.report import figures
from secateur.report.curves import curves
from secateur.results import Result, Width


def test_curves_group_and_sort(result: Result) -> None:
    lines = curves(result.points[::-1])
    assert [line.name for line in lines][:2] == ["random, global", "random, local"]
    assert len(lines) == 8
    for line in lines:
        assert {(one.criterion, one.scope) for one in line.points} == {(line.criterion, line.scope)}
        assert [one.sparsity for one in line.points] == sorted(one.sparsity for one in line.points)


def test_accuracy_has_a_line_each_and_marks_the_chosen(result: Result) -> None:
    figure = figures.accuracy_figure(result)
    assert figure is not None
    *lines, ring = figure.spec["data"]
    assert [line["name"] for line in lines] == [line.name for line in curves(result.points)]
    assert (ring["name"], ring["x"]) == ("chosen", [50.0])
    assert "taylor, local at 50.0 %" in figure.caption
    assert "l1, global: " in figure.details
    looks = {
        (line["line"]["color"], line["marker"]["symbol"], line["line"]["dash"]) for line in lines
    }
    assert len(looks) == len(lines)


def test_too_many_lines_have_no_legend(result: Result) -> None:
    points = tuple(
        dataclasses.replace(point, criterion=f"{point.criterion}{place % 5}")
        for place, point in enumerate(result.points)
    )
    figure = figures.accuracy_figure(dataclasses.replace(result, points=points))
    assert figure is not None
    assert figure.spec["layout"]["showlegend"] is False
    assert "too many lines" in figure.caption
    assert "more lines in the table below" in figure.details


def test_widths_name_few_layers_and_number_many(result: Result) -> None:
    few = figures.widths_figure(result.widths)
    assert few is not None
    assert few.spec["layout"]["yaxis"]["ticktext"] == [one.layer for one in result.widths]
    assert few.spec["data"][1]["x"] == [one.pruned for one in result.widths]
    many = tuple(Width(f"layer{place}", 64, 64 - place) for place in range(54))
    figure = figures.widths_figure(many)
    assert figure is not None
    assert figure.spec["data"][1]["y"] == [one.pruned for one in many]
    assert "Cut most: layer53, 64 to 11; cut least: layer0, 64 to 64." in figure.caption


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv1", "fc"], ["conv1", "fc"]),
        (
            ["backbone.encoder.stage1.conv", "backbone.encoder.stage10.conv"],
            ["stage1.conv", "stage10.conv"],
        ),
        (["a" * 30, "b"], ["..." + "a" * 25, "b"]),
        (["x" + "a" * 30, "y" + "a" * 30], ["1 ..." + "a" * 25, "2 ..." + "a" * 25]),
        (["one.name.that.nobody.wants.to.read"], ["read"]),
    ],
)
def test_long_names_keep_what_tells_them_apart(names: list[str], expected: list[str]) -> None:
    assert figures.short_names(names) == expected


def test_training_runs_through_the_phases(result: Result) -> None:
    figure = figures.training_figure(result.history)
    assert figure is not None
    layout = figure.spec["layout"]
    assert [one["text"] for one in layout["annotations"]] == ["train", "finetune"]
    assert [one["x0"] for one in layout["shapes"]] == [12.5]
    assert figure.spec["data"][0]["x"] == list(range(1, 19))
    assert "best accuracy 96.34 % in epoch 12" in figure.caption


def test_numbers_that_are_not_finite_leave_a_gap(result: Result) -> None:
    broken = dataclasses.replace(result.history[3], val_loss=math.nan, val_accuracy=math.nan)
    history = (*result.history[:3], broken)
    figure = figures.training_figure(history)
    assert figure is not None
    json.dumps(figure.spec, allow_nan=False)
    assert figure.spec["data"][1]["y"][3] is None
    assert "validation loss 1.152 to NaN" in figure.caption


def test_tags_in_names_stay_text(result: Result) -> None:
    points = tuple(
        dataclasses.replace(point, criterion="<a href='https://example.org'>x</a>")
        for point in result.points
    )
    figure = figures.accuracy_figure(dataclasses.replace(result, points=points))
    assert "<a" not in json.dumps(figure.spec if figure else None)


def test_nothing_to_draw_draws_nothing(result: Result) -> None:
    assert figures.accuracy_figure(dataclasses.replace(result, points=())) is None
    assert figures.widths_figure(()) is None
    assert figures.training_figure(()) is None
