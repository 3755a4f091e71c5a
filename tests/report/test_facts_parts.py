"""What the page says of dense and pruned side by side."""

from __future__ import annotations

import dataclasses

from secateur.report.facts_parts import (
    classes_table,
    confusion_figure,
    confusion_table,
    facts_sections,
    images_table,
    layers_table,
    paired_text,
)
from secateur.report.page import render
from secateur.results import ClassQuality, Facts, Paired, Result


def facts_of(result: Result) -> Facts:
    assert result.facts is not None
    return result.facts


def test_the_test_is_told_as_it_is(result: Result) -> None:
    text = paired_text(facts_of(result).paired)
    assert "5 were right before and are wrong after, 3 the other way round" in text
    assert "p = 0.73; chance alone may explain" in text
    assert "by more than chance" in paired_text(Paired(360, 30, 2, 2.5e-7))


def test_images_add_up(result: Result) -> None:
    rows = {row[0].value: row[1].value for row in images_table(facts_of(result)).rows}
    assert rows == {
        "Right in both": 346,
        "Right before, wrong after": 5,
        "Wrong before, right after": 3,
        "Wrong in both": 6,
    }


def test_classes_have_both_sides(result: Result) -> None:
    table = classes_table(facts_of(result))
    row = dict(zip([column.key for column in table.columns], table.rows[3], strict=True))
    assert row["class"].value == "3"
    assert (row["dense_recall"].value, row["pruned_recall"].value) == (35 / 36, 34 / 36)
    assert row["dense_recall"].bounds is not None


def test_a_class_without_images_has_no_recall(result: Result) -> None:
    nothing = ClassQuality("none", 0, None, None, None, None, None)
    facts = dataclasses.replace(
        facts_of(result), dense_classes=(nothing,), pruned_classes=(nothing,), confusion=()
    )
    assert [cell.text for cell in classes_table(facts).rows[0][2:]] == ["none"] * 6


def test_confusions_are_the_most_frequent_first(result: Result) -> None:
    facts = facts_of(result)
    shown = confusion_table(facts)
    assert len(shown.rows) == 11
    assert all(row[0].value != row[1].value for row in shown.rows)
    whole = confusion_table(facts, of=None)
    assert sum(int(row[3].value or 0) for row in whole.rows) == 360
    figure = confusion_figure(facts)
    assert figure is not None
    drawn = figure.spec["data"][0]
    assert drawn["text"][3][8] == ("3 taken for 8<br>0 images dense, 1 pruned (2.8 % of the class)")
    assert drawn["z"][3][8] == 100 / 36
    assert drawn["z"][9][9] is None


def test_many_classes_are_not_drawn(result: Result) -> None:
    facts = facts_of(result)
    classes = facts.dense_classes * 11
    assert confusion_figure(dataclasses.replace(facts, dense_classes=classes)) is None


def test_layers_that_take_no_time_are_left_out(result: Result) -> None:
    names = [row[0].value for row in layers_table(facts_of(result)).rows]
    assert "dropout" not in names
    assert names[-1] == "classifier.out"


def test_the_page_shows_them_and_old_results_have_none(result: Result) -> None:
    page = render(result)
    for text in ("The same images", "Class by class", "What is taken for what", "Time layer"):
        assert text in page
    assert facts_sections(None) == ()
    assert "Class by class" not in render(dataclasses.replace(result, facts=None))
