"""Paired comparisons and figures by class, against scipy, scikit-learn and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from secateur.errors import InputError
from secateur.measure import Answers, calibration_error, wilson
from secateur.pairing import EXACT, by_class, confusion, mcnemar


def answers(labels: list[int], predicted: list[int], split: str = "test") -> Answers:
    return Answers(
        split, np.array(labels), np.array(predicted), np.ones(len(labels)), None, loss=0.0
    )


def pair(lost: int, won: int, both: int = 3) -> tuple[Answers, Answers]:
    labels = [0] * (lost + won + both)
    before = [0] * lost + [1] * won + [0] * both
    after = [1] * lost + [0] * won + [0] * both
    return answers(labels, before), answers(labels, after)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 5), (9, 2), (1, 30), (400, 460)])
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    found = mcnemar(*pair(lost, won))
    assert (found.count, found.lost, found.won) == (lost + won + 3, lost, won)
    wanted = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert found.p_value == pytest.approx(wanted)
    assert found.change == pytest.approx((won - lost) / (lost + won + 3))


def test_beyond_a_thousand_it_is_nearly_the_same() -> None:
    lost, won = EXACT // 2 - 20, EXACT // 2 + 60
    found = mcnemar(*pair(lost, won))
    assert found.p_value == pytest.approx(binomtest(lost, lost + won).pvalue, rel=0.01)


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="the same images in the same order"):
        mcnemar(answers([0, 1], [0, 1]), answers([1, 0], [0, 1]))
    with pytest.raises(InputError, match="same images"):
        mcnemar(answers([0], [0]), answers([0], [0], "validation"))


def test_classes_are_counted() -> None:
    found = answers([0, 0, 0, 1, 1], [0, 0, 1, 1, 0])
    first, second, third = by_class(found, ["a", "b", "c"])
    assert (first.count, first.recall, first.precision) == (3, 2 / 3, 2 / 3)
    assert (first.low, first.high) == wilson(2, 3)
    assert (second.recall, second.precision) == (0.5, 0.5)
    assert (third.count, third.recall, third.low, third.precision) == (0, None, None, None)
    wanted = confusion_matrix(found.labels, found.predicted, labels=[0, 1, 2])
    assert np.array_equal(confusion(found, 3), wanted)
    with pytest.raises(InputError, match="names must hold one a class"):
        by_class(found, ["a"])


def test_the_calibration_error_is_that_of_the_bins() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0, 1, 500)
    right = generator.uniform(0, 1, 500) < confidence**2
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(total)
    assert calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0
    assert calibration_error(np.ones(4), np.zeros(4, dtype=bool)) == 1
