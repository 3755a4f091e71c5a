from __future__ import annotations

import dataclasses

import pytest

from secateur.report import Row, table
from secateur.report.main_table import main_table
from secateur.report.tables import flatten, tables
from secateur.results import Measured, Quality, Result, Speed


def test_main_table_compares_dense_and_pruned(result: Result) -> None:
    rows = {row.label: row for row in table(result)}
    assert list(rows) == [
        "Accuracy",
        "Precision",
        "Recall",
        "F1",
        "Loss",
        "Parameters",
        "MACs",
        "Weight file, raw",
        "Weight file, gzipped",
        "Weight file, sparse container",
        "Memory at its peak, batch 1",
        "Inferences per second, batch 1, 1 thread",
        "Inferences per second, batch 64, 1 thread",
        "Speed-up over MACs reduction, batch 1 (1 is the ideal)",
        "Speed-up over MACs reduction, batch 64 (1 is the ideal)",
    ]
    assert rows["Accuracy"] == Row(
        "Accuracy", "97.50 % (95.33 to 98.67 %)", "96.94 % (94.62 to 98.28 %)", "-0.56 points"
    )
    assert rows["Parameters"] == Row("Parameters", "486,607", "126,880", "-73.9 %")
    assert rows["Loss"].change == "+0.017"
    speed = rows["Inferences per second, batch 64, 1 thread"]
    assert speed.dense == "14,210 (14,000 to 14,301)"
    assert speed.change == "x2.53"
    # 35980 / 14210 times 2512000 / 8912345
    assert rows["Speed-up over MACs reduction, batch 64 (1 is the ideal)"].pruned == "0.71"


def test_speeds_pair_by_batch_and_threads(result: Result) -> None:
    only_dense = Speed(256, 2, 3, 20_000.0, 19_000.0, 21_000.0)
    dense = dataclasses.replace(result.dense, speeds=(only_dense, *result.dense.speeds[::-1]))
    rows = table(dataclasses.replace(result, dense=dense))[-5:-2]
    assert [row.label.partition(", ")[2] for row in rows] == [
        "batch 1, 1 thread",
        "batch 64, 1 thread",
        "batch 256, 2 threads",
    ]
    assert (rows[1].change, rows[2].pruned, rows[2].change) == ("x2.53", "not measured", "n/a")


def test_caption_says_when_the_splits_differ(result: Result) -> None:
    assert "on the test split (360 images)" in main_table(result).caption
    quality = dataclasses.replace(result.pruned.quality, split="validation")
    pruned = dataclasses.replace(result.pruned, quality=quality)
    assert "not like for like" in main_table(dataclasses.replace(result, pruned=pruned)).caption


def test_every_table_is_whole_and_named_once(result: Result) -> None:
    every = tables(result)
    assert [one.name for one in every] == [
        "results",
        "points",
        "widths",
        "history",
        "images",
        "classes",
        "confusion",
        "layers",
        "given_back",
        "pinned",
        "proof",
        "asked",
        "environment",
    ]
    for one in every:
        assert {len(row) for row in one.rows} == {len(one.columns)}
        assert len({column.key for column in one.columns}) == len(one.columns)


def test_tables_without_rows_are_left_out(result: Result) -> None:
    bare = dataclasses.replace(
        result,
        points=(),
        widths=(),
        history=(),
        pinned=(),
        given_back={},
        asked={},
        environment={},
        facts=None,
    )
    assert [one.name for one in tables(bare)] == ["results", "proof"]


def test_a_loss_that_is_not_finite_stays_visible(result: Result) -> None:
    quality: Quality = dataclasses.replace(result.pruned.quality, loss=float("nan"))
    pruned = dataclasses.replace(result.pruned, quality=quality)
    row = table(dataclasses.replace(result, pruned=pruned))[4]
    assert (row.pruned, row.change) == ("NaN", "NaN")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"a": 1, "b": {"c": [1, 2], "d": {}}}, [("a", "1"), ("b.c", "1, 2"), ("b.d", "none")]),
        ({"on": True, "off": None}, [("on", "yes"), ("off", "none")]),
        ({"list": [{"lr": 0.1}, "x"]}, [("list", "lr 0.1, x")]),
    ],
)
def test_settings_flatten_to_dotted_names(settings, expected) -> None:
    assert flatten(settings) == expected


def test_what_was_measured_later_has_rows_where_it_is_known(result: Result) -> None:
    old = [row.label for row in table(result)]
    assert not {"Top-5 accuracy", "Calibration error"} & set(old)

    def known(measured: Measured) -> Measured:
        found = dataclasses.replace(measured.quality, top5=0.99, ece=0.0)
        return dataclasses.replace(measured, quality=found)

    new = dataclasses.replace(result, dense=known(result.dense), pruned=known(result.pruned))
    rows = {row.label: row for row in table(new)}
    assert rows["Top-5 accuracy"].pruned == "99.00 %"
    assert rows["Calibration error"].dense == "0.00 %"
