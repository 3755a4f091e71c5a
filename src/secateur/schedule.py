"""How much is gone when: sparsity over progress, as pure functions.

A sparsity here is a share of the dense network, 0 to 1, of whatever is removed: weights, units,
parameters or MACs. The same numbers serve weights and structures. Shares that are kept instead
(``params``, ``macs``) come from :func:`kept`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from secateur.errors import InputError
from secateur.registry import Registry

Rounds = Callable[[float, int, float], tuple[float, ...]]

SCHEDULES: Registry[Rounds] = Registry("schedule")


def sparsities(
    schedule: str, final: float, rounds: int = 1, initial: float = 0.0
) -> tuple[float, ...]:
    """Return the sparsity at the end of each round; the last one is ``final`` to the bit.

    Args:
        schedule: "one-shot", "linear", "geometric" or "cubic".
        final: sparsity after the last round.
        rounds: how many there are; one-shot has one.
        initial: sparsity before the first round.

    Raises:
        InputError: not 0 <= initial <= final < 1, no round, an unknown schedule, or
            several rounds of one-shot.
    """
    rule = SCHEDULES[schedule]
    _check(final, initial)
    if rounds < 1:
        raise InputError(f"rounds must be at least 1, but got {rounds}")
    return rule(final, rounds, initial)


def kept(removed: tuple[float, ...]) -> tuple[float, ...]:
    """Return what stays, for targets that say how much to keep."""
    return tuple(1 - share for share in removed)


@SCHEDULES.register("one-shot")
def one_shot(final: float, rounds: int = 1, initial: float = 0.0) -> tuple[float, ...]:
    """Remove everything at once."""
    if rounds != 1:
        raise InputError(f"rounds must be 1 with the schedule 'one-shot', but got {rounds}")
    return (final,)


@SCHEDULES.register("linear")
def linear(final: float, rounds: int, initial: float = 0.0) -> tuple[float, ...]:
    """Remove the same number in each round."""
    return tuple(
        final + (initial - final) * (1 - round_ / rounds) for round_ in range(1, rounds + 1)
    )


@SCHEDULES.register("geometric")
def geometric(final: float, rounds: int, initial: float = 0.0) -> tuple[float, ...]:
    """Remove the same share of what is left in each round.

    As in the lottery ticket experiments of Frankle and Carbin (2019), where p^(1/n) per cent
    of the surviving weights go in each of n rounds.
    """
    step = (1 - final) / (1 - initial)
    early = (1 - (1 - initial) * step ** (round_ / rounds) for round_ in range(1, rounds))
    return (*(min(share, final) for share in early), final)


@SCHEDULES.register("cubic")
def cubic_rounds(final: float, rounds: int, initial: float = 0.0) -> tuple[float, ...]:
    """Remove much at first and little at the end: :func:`cubic` sampled at each round's end."""
    rule = Cubic(final, begin=0, end=rounds, initial=initial)
    return tuple(cubic(rule, round_) for round_ in range(1, rounds + 1))


@dataclass(frozen=True)
class Cubic:
    """Gradual pruning over optimiser steps (Zhu and Gupta 2017).

    Attributes:
        final: sparsity from step ``end`` on (s_f).
        begin: the first step that may remove anything (t_0).
        end: the last one (t_0 + n x frequency).
        frequency: steps between removals (Delta t). Where it does not divide end - begin,
            the last one comes early, at ``end``.
        initial: sparsity at ``begin`` (s_i).

    Raises:
        InputError: a value breaks its rule.
    """

    final: float
    begin: int
    end: int
    frequency: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.final, self.initial)
        if self.begin < 0:
            raise InputError(f"begin must be at least 0, but got {self.begin}")
        if self.end <= self.begin:
            raise InputError(f"end must be above begin ({self.begin}), but got {self.end}")
        if self.frequency < 1:
            raise InputError(f"frequency must be at least 1, but got {self.frequency}")

    @property
    def updates(self) -> tuple[int, ...]:
        """The steps at which something is removed."""
        return (*range(self.begin, self.end, self.frequency), self.end)


def cubic(rule: Cubic, step: int) -> float:
    """Return the sparsity in force after ``step`` optimiser steps.

    Equation 1 of Zhu and Gupta (2017), "To prune, or not to prune":
    s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Delta t))^3, at the update at or before
    ``step``; 0 before the first one.
    """
    if step < rule.begin:
        return 0.0
    if step >= rule.end:
        return rule.final
    last = step - (step - rule.begin) % rule.frequency
    progress = (last - rule.begin) / (rule.end - rule.begin)
    return rule.final + (rule.initial - rule.final) * (1 - progress) ** 3


def _check(final: float, initial: float) -> None:
    if not 0 <= final < 1 or math.isnan(final):
        raise InputError(f"final must satisfy 0 <= final < 1, but got {final}")
    if not 0 <= initial <= final:
        raise InputError(f"initial must satisfy 0 <= initial <= {final} (final), but got {initial}")
