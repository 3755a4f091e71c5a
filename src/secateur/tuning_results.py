"""Records of a tuning run: what was tried on the proxy and what the dense network made of it.

A :class:`Tuning` is the content of ``tuning.json``. Plain data, no torch. Shares are in [0, 1];
times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.results import CheckRecord, Epoch, Measured, Quality, load_record, save_record

FORMAT = 1
FILE = "tuning.json"


@dataclass(frozen=True)
class Tried:
    """One setting on the proxy.

    Attributes:
        number: of the trial in the study.
        values: the setting.
        state: "complete", "stopped" (early) or "diverged" (its loss is no number).
        value: what the objective made of it; a diverged one has the worst there is.
        pir: as the source prints it; None without any precision before training.
        zeta: precision after over precision before; None where the trial diverged.
        quality: on validation at the epoch that counts; None where the trial diverged.
        curve: the objective's metric after each epoch.
        seconds: of training and measuring.
        note: why a trial diverged.
    """

    number: int
    values: dict[str, Any]
    state: str
    value: float
    pir: float | None
    zeta: float | None
    quality: Quality | None
    curve: tuple[float, ...]
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Retrained:
    """The dense network trained with one of the best settings; qualities None if it diverged."""

    number: int
    values: dict[str, Any]
    validation: Quality | None
    test: Quality | None
    history: tuple[Epoch, ...]
    seconds: float
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Band:
    """The surrogate along one dimension, the others as in the best trial: mean and deviation."""

    name: str
    log: bool
    places: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval; all None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Pair:
    """One setting trained on the proxy and on the dense network, higher is better on both."""

    values: dict[str, Any]
    proxy: float
    dense: float
    proxy_seconds: float
    dense_seconds: float


@dataclass(frozen=True)
class Transfer:
    """How far one proxy can be trusted.

    Attributes:
        sparsity: what the proxy's target was: "90 % of the units removed" and so on.
        params: share of the dense network's parameters that the proxy has.
        metric: what both networks were judged by.
        pairs: the settings.
        kendall: tau-b of the two orders.
        spearman: rho of the two orders.
        chance: how often chance alone gives a tau-b as far from 0 (permutation test, two-sided).
        regret: what the proxy's best setting loses on the dense network against its own best.
        rank: of the proxy's best setting on the dense network, from 1.
        speedup: seconds on the dense network over seconds on the proxy, all settings together.
        overlap: settings that are good on both over those that are good on either (Jaccard).
        tolerance: a setting is good within this share of the way from the worst to the best.
    """

    sparsity: str
    params: float
    metric: str
    pairs: tuple[Pair, ...]
    kendall: Estimate
    spearman: Estimate
    chance: float | None
    regret: Estimate
    rank: int
    speedup: Estimate
    overlap: Estimate
    tolerance: float


@dataclass(frozen=True)
class Tuning:
    """All that a tuning run asked and found.

    Attributes:
        before: the proxy on validation before any trial.
        dense: the dense network before, measured on test.
        proxy: the proxy before any trial, measured on test.
        check: the proof that the proxy was cut right.
        search_seconds: of all trials together.
    """

    title: str
    asked: dict[str, Any]
    command: str
    environment: dict[str, str]
    metric: str
    at: str
    before: Quality
    dense: Measured
    proxy: Measured
    check: CheckRecord
    tried: tuple[Tried, ...]
    retrained: tuple[Retrained, ...]
    search_seconds: float
    band: Band | None = None
    transfers: tuple[Transfer, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT


def ranked(tried: tuple[Tried, ...], metric: str) -> tuple[Tried, ...]:
    """Return the complete trials, best first; equal ones by precision, then loss, then number."""
    sign = 1.0 if metric == "loss" else -1.0
    there = [(one, one.quality) for one in tried if one.state == "complete" and one.quality]
    there.sort(
        key=lambda pair: (sign * pair[0].value, -pair[1].precision, pair[1].loss, pair[0].number)
    )
    return tuple(one for one, _ in there)


def save_tuning(tuning: Tuning, path: Path) -> None:
    """Write ``tuning`` as JSON, whole or not at all."""
    save_record(tuning, path)


def load_tuning(path: Path) -> Tuning:
    """Read a tuning run back.

    Raises:
        CheckpointError: the file is missing, half-written or of another format.
    """
    return load_record(Tuning, path, FORMAT)
