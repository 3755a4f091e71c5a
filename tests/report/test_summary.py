from __future__ import annotations

import dataclasses

import pytest

from secateur.report.summary import proof, summary
from secateur.results import LayerZeros, Result


def lines(result: Result) -> dict[str, str]:
    return {line.label: line.text for line in summary(result)}


def test_five_lines_say_what_came_out(result: Result) -> None:
    said = lines(result)
    assert list(said) == ["Asked", "Chosen", "Accuracy", "Size and speed", "Proof"]
    assert said["Asked"] == (
        "model secateur.models:digits_cnn; data source digits; criteria l1, l2, taylor, random; "
        "scopes local, global; sparsities 0.1, 0.5, 0.9; finetune epochs 6; seed 0."
    )
    assert said["Chosen"].startswith("taylor, local scope, at 50.0 % sparsity (")
    assert said["Chosen"].endswith(" on validation), out of 72 networks compared.")
    assert said["Accuracy"] == (
        "97.50 % dense, 96.94 % pruned (-0.56 points) on 360 images of the test split; "
        "the 95 % intervals overlap."
    )
    assert said["Size and speed"] == (
        "Parameters 487 k to 127 k (-73.9 %); MACs 8.91 M to 2.51 M (-71.8 %); "
        "speed x1.38 at batch 1; speed x2.53 at batch 64."
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"target": {"macs": 0.5, "sparsity": None}}, "target macs 0.5 kept."),
        ({"target": {"macs": None, "sparsity": 0.5}}, "target sparsity 0.5."),
        ({"colour": "red", "depth": 3}, "colour red; depth 3."),
        ({"weights": "w" * 80}, "weights " + "w" * 57 + "...."),
        ({}, "No settings were recorded."),
    ],
)
def test_what_was_asked_is_short(result: Result, asked, expected: str) -> None:
    assert lines(dataclasses.replace(result, asked=asked))["Asked"] == expected


def test_intervals_that_are_apart_are_said_to_be(result: Result) -> None:
    quality = dataclasses.replace(result.pruned.quality, accuracy=0.5, low=0.45, high=0.55)
    pruned = dataclasses.replace(result.pruned, quality=quality)
    said = lines(dataclasses.replace(result, pruned=pruned))["Accuracy"]
    assert said.endswith("the 95 % intervals do not overlap.")


def test_different_images_are_not_like_for_like(result: Result) -> None:
    quality = dataclasses.replace(result.pruned.quality, count=100)
    pruned = dataclasses.replace(result.pruned, quality=quality)
    said = lines(dataclasses.replace(result, pruned=pruned))["Accuracy"]
    assert said.endswith("not like for like.")


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (lambda point: False, "Nothing was compared"),
        (lambda point: not point.chosen, "None of the 71 networks compared was marked"),
    ],
)
def test_a_choice_is_never_invented(result: Result, keep, expected: str) -> None:
    points = tuple(point for point in result.points if keep(point))
    assert lines(dataclasses.replace(result, points=points))["Chosen"].startswith(expected)


def test_many_chosen_are_counted(result: Result) -> None:
    points = tuple(dataclasses.replace(point, chosen=True) for point in result.points[:8])
    said = lines(dataclasses.replace(result, points=points))["Chosen"]
    assert "and 5 more, out of 8 networks" in said


@pytest.mark.parametrize(
    ("ok", "changed", "start"),
    [
        (True, True, "The cut network computes what its masked reference computes"),
        (False, True, "FAILED"),
        (False, False, "FAILED"),
        (True, False, "Says nothing"),
    ],
)
def test_only_a_real_check_is_a_proof(result: Result, ok, changed, start: str) -> None:
    check = dataclasses.replace(result.check, ok=ok, changed=changed)
    assert proof(check).startswith(start)
    assert "4.4e-15" in proof(check)


def test_a_run_of_single_weights_never_speaks_of_a_cut(result: Result) -> None:
    zeros = (LayerZeros("conv", 100, 50),)
    said = lines(dataclasses.replace(result, zeros=zeros))["Proof"]
    assert said.startswith("The saved network computes what its masked reference computes")
    for ok in (False, True):
        check = dataclasses.replace(result.check, ok=ok, changed=False)
        assert "cut" not in proof(check, zeroed=True)
