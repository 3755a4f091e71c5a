"""Where the next trial looks: a Gaussian process, random, grid or TPE, all as Optuna samplers.

A sampler is made anew for each trial, with the trial's number in its seed. So what a trial tries
depends on the study alone, not on which worker asks or how often the search was stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from secateur.errors import InputError, unknown_name
from secateur.tuning.encoding import grid, width
from secateur.tuning.space import Space, Values
from secateur.tuning.surrogate import AUTO, beta_at, design, propose

SAMPLERS = ("gp", "grid", "random", "tpe")
GP_INITIAL = 10


def make_sampler(
    name: str,
    space: Space,
    *,
    seed: int,
    number: int,
    trials: int,
    beta: float | str = AUTO,
    initial: int | None = None,
) -> BaseSampler:
    """Make the sampler of one trial.

    Args:
        name: "gp" (Gaussian process, upper confidence bound), "grid", "random" or "tpe".
        space: what is searched.
        seed: of the whole search.
        number: of the trial.
        trials: how many there will be; the grid has about as many points.
        beta: of the bound, see :func:`secateur.tuning.surrogate.beta_at`.
        initial: how many trials come before the process is asked (gp) or before the density is
            (tpe); None takes :func:`initial_trials` and 10.

    Raises:
        InputError: the name is unknown, or ``initial`` or ``beta`` is out of its range.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    if initial is not None and initial < 1:
        raise InputError(f"initial must be at least 1, but got {initial}")
    beta_at(beta, 1, len(space))
    drawn = draw(seed, number)
    if name == "gp":
        first = initial_trials(space) if initial is None else initial
        return UpperConfidenceSampler(space, beta=beta, initial=first, seed=seed)
    if name == "grid":
        return PointsSampler(grid(space, trials))
    if name == "tpe":
        return TPESampler(seed=drawn, n_startup_trials=10 if initial is None else initial)
    return RandomSampler(seed=drawn)


def initial_trials(space: Space) -> int:
    """Return how many trials spread over the space before the process is asked."""
    return max(4, min(width(space), GP_INITIAL))


def draw(seed: int, number: int) -> int:
    """Mix a seed and a number into one seed."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class PointsSampler(BaseSampler):
    """The trials of a list, in order; trials that failed leave their place to the next."""

    def __init__(self, points: Sequence[Values]) -> None:
        self._points = list(points)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing: each value is looked up by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing: each value is looked up by itself."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Return the value that the trial's place in the list has.

        Raises:
            InputError: the list has come to its end.
        """
        place = _place(study, trial)
        if place >= len(self._points):
            raise InputError(f"trials must be at most {len(self._points)}, the points of the grid")
        return self._points[place][param_name]


class UpperConfidenceSampler(BaseSampler):
    """A Gaussian process asked for its highest upper confidence bound, through BoTorch.

    The first ``initial`` trials are a grid (one number) or a Sobol sequence. Trials that run at
    the same time count as done with the value that is expected of them, so several workers do
    not try the same. Trials that were stopped early count with their last value.
    """

    def __init__(
        self, space: Space, *, beta: float | str = AUTO, initial: int = GP_INITIAL, seed: int
    ) -> None:
        self._space = space
        self._beta = beta
        self._initial = initial
        self._seed = seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space, conditional dimensions included."""
        return {name: dimension.distribution for name, dimension in self._space.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a value for every dimension; those that do not exist are never asked for."""
        place = _place(study, trial)
        if place < self._initial:
            return dict(design(self._space, self._initial, self._seed)[place])
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        judged = [
            one
            for one in others
            if one.state in (TrialState.COMPLETE, TrialState.PRUNED) and one.values
        ]
        if not judged:
            (last,) = design(self._space, place + 1, self._seed)[place:]
            return dict(last)
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        running = [one.params for one in others if one.state == TrialState.RUNNING and one.params]
        (found,) = propose(
            self._space,
            [one.params for one in judged],
            [sign * float((one.values or [0.0])[0]) for one in judged],
            pending=running,
            beta=self._beta,
            seed=draw(self._seed, trial.number) % 2**31,
        )
        return dict(found)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Draw a parameter that is not in the space at random."""
        seed = draw(self._seed + zlib.crc32(param_name.encode()), trial.number)
        return RandomSampler(seed=seed).sample_independent(
            study, trial, param_name, param_distribution
        )


def _place(study: Study, trial: FrozenTrial) -> int:
    """Return how many trials came before this one and did not fail."""
    return sum(
        one.number < trial.number and one.state != TrialState.FAIL
        for one in study.get_trials(deepcopy=False)
    )
