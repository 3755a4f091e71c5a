"""How far a proxy can be trusted: the three hypotheses of Moura et al. as measured answers.

(a) Settings transfer: Kendall's tau-b and Spearman's rho between the scores on the proxy and on
the dense network, and the regret of the proxy's choice. (b) Searching the proxy costs less: the
ratio of times. (c) The good ranges overlap: settings good on both over those good on either.

Intervals are 95 % percentile intervals of a bootstrap over the settings (Efron 1979). A resample
in which all scores are the same has no correlation and is left out. They speak of other settings
from the same space, not of other seeds of the training. Of a handful of settings a percentile
interval is too narrow, so a permutation test of tau-b stands beside it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from secateur.errors import InputError
from secateur.tuning_results import Estimate, Pair, Transfer

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats, Floats], float]
LEAST = 3


def transfer(
    pairs: Sequence[Pair],
    *,
    sparsity: str,
    params: float,
    metric: str,
    tolerance: float = 0.1,
    resamples: int = 2000,
    seed: int = 0,
) -> Transfer:
    """Compare settings on the proxy with the same ones on the dense network.

    Args:
        pairs: scores and times, higher scores are better; at least three. A score that is not
            finite counts as the worst of its network.
        sparsity: what the proxy is, in words.
        params: share of the dense network's parameters that it has.
        metric: what the scores are.
        tolerance: a setting is good within this share of the way from the worst to the best.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: there are fewer than three pairs.
    """
    if len(pairs) < LEAST:
        raise InputError(f"pairs must be at least {LEAST}, but got {len(pairs)}")
    proxy = _finite([one.proxy for one in pairs])
    dense = _finite([one.dense for one in pairs])
    spent = np.array([[one.proxy_seconds, one.dense_seconds] for one in pairs])

    def bounded(statistic: Statistic, first: Floats = proxy, second: Floats = dense) -> Estimate:
        return bootstrap(statistic, first, second, resamples, seed)

    choice = int(proxy.argmax())
    return Transfer(
        sparsity=sparsity,
        params=params,
        metric=metric,
        pairs=tuple(pairs),
        kendall=bounded(kendall),
        spearman=bounded(spearman),
        chance=permutation(kendall, proxy, dense, resamples, seed),
        regret=bounded(regret),
        rank=1 + int((dense > dense[choice]).sum()),
        speedup=bounded(_ratio, spent[:, 0], spent[:, 1]),
        overlap=bounded(lambda a, b: overlap(a, b, tolerance)),
        tolerance=tolerance,
    )


def kendall(first: Floats, second: Floats) -> float:
    """Return Kendall's tau-b; NaN where one side is all the same."""
    return _correlation(stats.kendalltau, first, second)


def spearman(first: Floats, second: Floats) -> float:
    """Return Spearman's rho; NaN where one side is all the same."""
    return _correlation(stats.spearmanr, first, second)


def regret(proxy: Floats, dense: Floats) -> float:
    """Return what the proxy's best setting loses on the dense network.

    Where several are the best on the proxy, the mean over them: any may be chosen.
    """
    best = proxy == proxy.max()
    return float(dense.max() - dense[best].mean())


def overlap(first: Floats, second: Floats, tolerance: float) -> float:
    """Return the settings good on both over those good on either (Jaccard); NaN if all are alike.

    Good is what scores at least best - tolerance x (best - worst).
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    good = [side >= side.max() - tolerance * np.ptp(side) for side in (first, second)]
    return float((good[0] & good[1]).sum() / (good[0] | good[1]).sum())


def bootstrap(
    statistic: Statistic, first: Floats, second: Floats, resamples: int, seed: int
) -> Estimate:
    """Return a statistic of pairs with its 95 % percentile interval."""
    value = statistic(first, second)
    if not math.isfinite(value):
        return Estimate(None, None, None)
    generator = np.random.default_rng(seed)
    found = []
    for rows in generator.integers(0, len(first), (resamples, len(first))):
        one = statistic(first[rows], second[rows])
        if math.isfinite(one):
            found.append(one)
    if not found:
        return Estimate(value, None, None)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def permutation(
    statistic: Statistic, first: Floats, second: Floats, resamples: int, seed: int
) -> float | None:
    """Return how often chance alone is as far from 0 as the statistic (two-sided); None if NaN.

    (1 + the number of permutations as far) / (1 + all permutations drawn).
    """
    value = statistic(first, second)
    if not math.isfinite(value):
        return None
    generator = np.random.default_rng([seed, 1])
    drawn = (statistic(first, generator.permutation(second)) for _ in range(resamples))
    return (1 + sum(abs(one) >= abs(value) - 1e-12 for one in drawn)) / (1 + resamples)


def _ratio(first: Floats, second: Floats) -> float:
    return float(second.sum() / first.sum()) if first.sum() > 0 else math.nan


def _correlation(kind: Callable[..., object], first: Floats, second: Floats) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(kind(first, second).statistic)  # type: ignore[attr-defined]


def _finite(values: Sequence[float]) -> Floats:
    found = np.array(values, dtype=float)
    good = np.isfinite(found)
    found[~good] = found[good].min() if good.any() else 0.0
    return found
