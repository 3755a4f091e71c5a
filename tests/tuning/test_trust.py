"""Trust: correlations, regret and overlap on settings whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.errors import InputError
from secateur.report.tuning_page import hypotheses
from secateur.tuning.trust import bootstrap, kendall, overlap, regret, spearman, transfer
from secateur.tuning_results import Estimate, Pair, Transfer


def measured(proxy: list[float], dense: list[float]) -> Transfer:
    pairs = [
        Pair({"lr": 10.0**-place}, small, big, 1.0, 3.0)
        for place, (small, big) in enumerate(zip(proxy, dense, strict=True))
    ]
    return transfer(pairs, sparsity="90 %", params=0.01, metric="accuracy", resamples=400)


def test_a_proxy_with_the_same_order_is_trusted() -> None:
    found = measured([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.4, 0.6, 0.7, 0.75, 0.76])
    assert found.kendall.value == pytest.approx(1)
    assert found.spearman.value == pytest.approx(1)
    assert found.kendall.low == pytest.approx(1)
    assert (found.regret.value, found.rank) == (0, 1)
    assert (found.speedup.value, found.speedup.low, found.speedup.high) == (
        pytest.approx(3),
        pytest.approx(3),
        pytest.approx(3),
    )
    # Good on the proxy: 0.6 alone. Good on the dense one: 0.7, 0.75 and 0.76.
    assert found.overlap.value == pytest.approx(1 / 3)


def test_a_proxy_with_the_opposite_order_is_not() -> None:
    found = measured([0.6, 0.5, 0.4, 0.3], [0.1, 0.2, 0.3, 0.9])
    assert found.kendall.value == pytest.approx(-1)
    assert (found.regret.value, found.rank) == (pytest.approx(0.8), 4)
    assert found.overlap.value == 0


def test_few_settings_have_a_wide_interval() -> None:
    generator = np.random.default_rng(0)
    dense = generator.random(60)
    noisy = dense + 0.3 * generator.standard_normal(60)
    many, few = measured(list(noisy), list(dense)), measured(list(noisy[:8]), list(dense[:8]))

    def length(one: Estimate) -> float:
        assert one.low is not None
        assert one.high is not None
        return one.high - one.low

    assert many.kendall.value is not None
    assert many.kendall.low is not None
    assert 0 < many.kendall.low < many.kendall.value
    assert length(few.kendall) > 1.5 * length(many.kendall)


def test_correlations_agree_with_their_definitions() -> None:
    first, second = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert kendall(first, second) == pytest.approx((5 - 1) / 6)
    assert spearman(first, second) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_ties_on_the_proxy_count_with_their_mean() -> None:
    assert regret(np.array([1.0, 1, 0]), np.array([0.5, 0.9, 0.7])) == pytest.approx(0.2)


def test_scores_that_are_all_the_same_say_nothing() -> None:
    found = measured([0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4])
    assert found.kendall == Estimate(None, None, None)
    assert math.isnan(overlap(np.zeros(3), np.arange(3.0), 0.1))


def test_diverged_trainings_are_the_worst_of_their_network() -> None:
    found = measured([-math.inf, 0.2, 0.5], [0.1, 0.3, 0.6])
    assert found.kendall.value == pytest.approx(0.8164965809)  # two of the proxy's are tied
    assert found.rank == 1


def test_the_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        sample = generator.normal(2.0, 1.0, 40)
        one = bootstrap(lambda a, b: float(a.mean()), sample, sample, 300, seed)
        assert one.low is not None
        assert one.high is not None
        hits += one.low <= 2.0 <= one.high
    assert 50 <= hits <= 60


def test_a_handful_of_settings_shows_nothing_however_well_they_agree() -> None:
    found = measured([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    # 2 of the 24 orders are as far from 0.
    assert found.chance == pytest.approx(2 / 24, abs=0.05)
    assert "is not shown" in hypotheses(found)
    ten = [place / 10 for place in range(10)]
    assert measured(ten, ten).chance == pytest.approx(0, abs=0.01)
    assert "(a) settings transfer:" in hypotheses(measured(ten, ten))


def test_two_settings_are_too_few() -> None:
    with pytest.raises(InputError, match="at least 3"):
        measured([0.1, 0.2], [0.1, 0.2])
