"""Averages over classes and their bootstrap intervals, against slow and separate ways."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from secateur.averages import averages
from secateur.errors import InputError


def drawn(count: int, classes: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    wrong = rng.random(count) > share
    predicted = np.where(wrong, rng.integers(0, classes, count), labels)
    return labels, predicted


def test_averages_are_those_of_scikit_learn() -> None:
    labels, predicted = drawn(300, 7, 0.6)
    predicted[labels == 3] = 4  # never right, and class 3 is seldom predicted
    found = averages(labels, predicted)
    for average, figures in (
        ("macro", (found.precision, found.recall, found.f1)),
        ("weighted", (found.weighted_precision, None, found.weighted_f1)),
    ):
        for rule, value in zip((precision_score, recall_score, f1_score), figures, strict=True):
            if value is not None:
                wanted = rule(labels, predicted, average=average, zero_division=0)
                assert value == pytest.approx(wanted, abs=1e-12)


def test_intervals_are_those_of_drawing_images() -> None:
    """The slow way draws images one by one, and asks scikit-learn each time."""
    labels, predicted = drawn(120, 4, 0.7)
    found = averages(labels, predicted, draws=4000)
    rng = np.random.default_rng(5)
    slow = []
    for _ in range(1000):
        rows = rng.integers(0, len(labels), len(labels))
        slow.append(f1_score(labels[rows], predicted[rows], average="macro", zero_division=0))
    low, high = np.percentile(slow, (2.5, 97.5))
    # The end of an interval from 1,000 draws has a standard error of about 0.003 here.
    assert found.f1_span == pytest.approx((low, high), abs=0.015)


def test_one_class_alone_and_two_equal_ones_are_known() -> None:
    all_right = averages(np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64))
    assert all_right.f1_span == all_right.precision_span == (1.0, 1.0)
    never = averages(np.zeros(5, dtype=np.int64), np.ones(5, dtype=np.int64))
    assert never.f1 == 0.0
    assert never.recall_span == (0.0, 0.0)


def test_recall_of_one_class_is_binomial() -> None:
    """One class of labels, half of them hit: macro recall is half of the share that is right."""
    labels = np.zeros(400, dtype=np.int64)
    predicted = np.repeat([0, 1], 200)
    low, high = averages(labels, predicted, draws=4000).recall_span
    deviation = 0.5 * np.sqrt(0.25 / 400)
    assert (0.25 - low, high - 0.25) == pytest.approx((1.96 * deviation,) * 2, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples from one distribution, about 95 % have intervals around its own F1."""
    labels, predicted = drawn(200_000, 3, 0.7, seed=9)
    truth = f1_score(labels, predicted, average="macro")
    rng = np.random.default_rng(1)
    inside = 0
    for number in range(200):
        rows = rng.integers(0, len(labels), 300)
        low, high = averages(labels[rows], predicted[rows], draws=400, seed=number).f1_span
        inside += low <= truth <= high
    assert 180 <= inside <= 198


def test_many_classes_are_drawn_in_parts_and_the_seed_decides() -> None:
    labels, predicted = drawn(5000, 1000, 0.8)
    one, again = (averages(labels, predicted, draws=50) for _ in range(2))
    assert one == again
    assert one != averages(labels, predicted, draws=50, seed=1)
    low, high = one.f1_span
    assert low < one.f1 + 0.02
    assert high - low < 0.1


def test_what_does_not_fit_is_refused() -> None:
    some = np.zeros(3, dtype=np.int64)
    with pytest.raises(InputError, match="3 and 0"):
        averages(some, some[:0])
    with pytest.raises(InputError, match="0 and 0"):
        averages(some[:0], some[:0])
