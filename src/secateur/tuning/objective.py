"""What a setting is worth: one number from the network's quality before and after each epoch.

Source: Moura et al., tuning on a pruned proxy. P_ISP is the proxy's precision before training,
P_OP the one after, zeta_T the multiple of P_ISP that is wished for and T_P = zeta_T x P_ISP.

Trap: the source prints PIR = 1 where P_OP >= T_P and (P_OP - P_ISP) / T_P below, but its Table 4
holds 0.981 at zeta 10.81 and 0.929 at zeta 10.29 with zeta_T = 10, where the equation gives 1.
The table follows min(1, (zeta - 1) / zeta_T). Both are here; below zeta_T they are the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from secateur.errors import InputError, unknown_name
from secateur.results import Quality

ZETA_TARGET = 10.0
PIR_METRICS = ("pir", "pir_tabulated")
QUALITY_METRICS = ("accuracy", "precision", "recall", "f1", "loss")
METRICS = (*PIR_METRICS, *QUALITY_METRICS)
MOMENTS = ("last", "best", "area")


def zeta(before: float, after: float) -> float:
    """Return how many times the precision before training the precision after it is.

    Infinite where there was none before and some after; 1 where there is none at all.

    Raises:
        InputError: a precision is not in [0, 1].
    """
    _check_shares(before, after)
    if before > 0:
        return after / before
    return math.inf if after > 0 else 1.0


def pir(before: float, after: float, target: float = ZETA_TARGET) -> float:
    """Return the precision improvement rate as the source's equation is printed.

    0 if P_OP < P_ISP; 1 if P_OP >= T_P; else (P_OP - P_ISP) / T_P. It jumps from 1 - 1 / zeta_T
    to 1 at T_P.

    Args:
        before: P_ISP, the precision before training, in (0, 1].
        after: P_OP, the precision after, in [0, 1].
        target: zeta_T, above 0.

    Raises:
        InputError: a value is out of its range; without any precision before there is no multiple.
    """
    wished = _wished(before, after, target)
    if after < before:
        return 0.0
    return 1.0 if after >= wished else (after - before) / wished


def pir_tabulated(before: float, after: float, target: float = ZETA_TARGET) -> float:
    """Return the precision improvement rate as the source's Table 4 has it.

    min(1, (zeta - 1) / zeta_T), and 0 where zeta is below 1. Arguments and errors are those of
    :func:`pir`; see the module for where the two differ.
    """
    wished = _wished(before, after, target)
    return min(1.0, max(0.0, (after - before) / wished))


@dataclass(frozen=True)
class Objective:
    """What is searched for.

    Attributes:
        metric: "precision", "pir", "pir_tabulated", "accuracy", "recall", "f1" or "loss"; all
            are maximised, only the loss is minimised. Precision orders settings as the PIRs do
            but knows no end, where they call all settings equal.
        at: the epoch that counts, from 1; or "last"; "best" of all; or "area", the area under the
            curve from before training to the last epoch, over the number of epochs.
        target: zeta_T of the two PIRs.

    Raises:
        InputError: a value breaks its rule.
    """

    metric: str = "precision"
    at: int | str = "last"
    target: float = ZETA_TARGET

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown_name("metric", self.metric, METRICS)
        # bool is an int: True would pass for the first epoch.
        whole = isinstance(self.at, int) and not isinstance(self.at, bool) and self.at >= 1
        if not whole and self.at not in MOMENTS:
            raise InputError(
                f"at must be an epoch from 1 or one of {', '.join(MOMENTS)}, but got {self.at!r}"
            )
        if not 0 < self.target < math.inf:
            raise InputError(f"target must be above 0, but got {self.target}")

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Optuna's word: "maximize" or "minimize"."""
        return "minimize" if self.metric == "loss" else "maximize"

    @property
    def worst(self) -> float:
        """What a training that ends in no number counts as."""
        return math.inf if self.metric == "loss" else 0.0

    def check_epochs(self, epochs: int) -> None:
        """Refuse an epoch that a trial never reaches.

        Raises:
            InputError: ``at`` is beyond ``epochs``.
        """
        if isinstance(self.at, int) and self.at > epochs:
            raise InputError(
                f"at must be at most {epochs}, the epochs of a trial, but got {self.at}"
            )

    def check_before(self, before: Quality) -> None:
        """Refuse a network that the metric cannot be computed for.

        Raises:
            InputError: a PIR is asked, and there is no precision before training.
        """
        if self.metric in PIR_METRICS and before.precision == 0:
            raise InputError(
                f"metric must be one of {', '.join(QUALITY_METRICS)} for a network without any "
                f"precision before training, but got {self.metric!r}"
            )

    def of(self, before: Quality, now: Quality) -> float:
        """Return the metric of one epoch."""
        if self.metric == "pir":
            return pir(before.precision, now.precision, self.target)
        if self.metric == "pir_tabulated":
            return pir_tabulated(before.precision, now.precision, self.target)
        return float(getattr(now, self.metric))

    def learnt(self, before: Quality, now: Quality, value: float) -> bool:
        """Tell whether a training has made the network any better in this metric."""
        if self.metric in PIR_METRICS:
            return value > 0
        then, after = (float(getattr(one, self.metric)) for one in (before, now))
        return after < then if self.metric == "loss" else after > then

    def value(self, before: Quality, curve: Sequence[Quality]) -> float:
        """Return what a finished training is worth.

        Args:
            before: the network before training.
            curve: the network after each epoch.

        Raises:
            InputError: the curve is shorter than ``at``, or empty.
        """
        if not curve:
            raise InputError("curve must have at least one epoch, but got none")
        self.check_epochs(len(curve))
        values = [self.of(before, now) for now in (before, *curve)]
        if isinstance(self.at, int):
            return values[self.at]
        if self.at == "area":
            steps = itertools.pairwise(values)
            return sum((low + high) / 2 for low, high in steps) / len(curve)
        if self.at == "best":
            return min(values[1:]) if self.metric == "loss" else max(values[1:])
        return values[-1]

    def epoch(self, curve: Sequence[Quality]) -> int:
        """Return the epoch, from 1, whose quality stands beside the value in tables."""
        if isinstance(self.at, int):
            return self.at
        if self.at != "best":
            return len(curve)
        name = self.metric if self.metric in QUALITY_METRICS else "precision"
        values = [float(getattr(one, name)) for one in curve]
        return values.index(min(values) if self.metric == "loss" else max(values)) + 1


def _wished(before: float, after: float, target: float) -> float:
    _check_shares(before, after)
    if before == 0:
        raise InputError(f"before must be above 0, but got {before}")
    if not 0 < target < math.inf:
        raise InputError(f"target must be above 0, but got {target}")
    return target * before


def _check_shares(before: float, after: float) -> None:
    for name, value in (("before", before), ("after", after)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], but got {value}")
