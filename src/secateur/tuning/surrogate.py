"""The Gaussian process over settings, and where its upper confidence bound is highest.

UCB(x) = mean(x) + sqrt(beta) x deviation(x) (Srinivas et al. 2010). Points that others are still
working on are believed to come out at the mean (kriging believer; with UCB this is the batch
rule of Desautels et al. 2014): their deviation shrinks, so that the next point goes elsewhere.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from botorch.acquisition.analytic import UpperConfidenceBound
from botorch.exceptions.errors import ModelFittingError
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.optimize import optimize_acqf
from botorch.settings import validate_input_scaling
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

from secateur.errors import InputError
from secateur.tuning.encoding import decode, discrete_columns, encode, spread, width
from secateur.tuning.space import Space, Values, active

_LOG = logging.getLogger(__name__)

RAW = 512
STARTS = 6
AUTO, SCHEDULE = "auto", "schedule"


@dataclass(frozen=True)
class Surrogate:
    """A fitted process; values are standardised by ``centre`` and ``scale``, higher is better."""

    model: SingleTaskGP
    points: Tensor
    values: Tensor
    centre: float
    scale: float


def beta_at(beta: float | str, finished: int, dimensions: int) -> float:
    """Return the weight of the deviation: as given, "auto" or "schedule".

    "auto" is 4 / d^2 with d dimensions: one dimension is cheap to explore, many are not. It was
    found by trying on the functions of benchmarks/samplers.py, with other seeds. "schedule" is
    0.2 d log(2 t) with t finished trials, as Kandasamy, Schneider and Poczos (2015, section 4.3).

    Raises:
        InputError: ``beta`` is neither of the words nor a number from 0.
    """
    if beta == AUTO:
        return 4.0 / dimensions**2
    if beta == SCHEDULE:
        return 0.2 * dimensions * math.log(2 * max(finished, 1))
    if isinstance(beta, str) or not 0 <= beta < math.inf:
        raise InputError(f"beta must be at least 0, {AUTO!r} or {SCHEDULE!r}, but got {beta!r}")
    return beta


def design(space: Space, count: int, seed: int) -> list[Values]:
    """Return the first settings: evenly spread for one number, else a scrambled Sobol sequence."""
    if len(space) == 1 and width(space) == 1:
        shares = [[step / max(count - 1, 1)] for step in range(count)]
    else:
        shares = _sobol(len(space), count, seed).tolist()
    return [spread(space, share) for share in shares]


def fit(points: Tensor, values: Tensor, seed: int) -> Surrogate:
    """Fit a process with a Matern 5/2 kernel, one length for each column, and its own noise.

    Args:
        points: [n, d] in the unit cube.
        values: [n], higher is better; what is not finite counts as the worst of the others.
        seed: of the fit's second attempts.
    """
    points, values = points.double(), _finite(values.double())
    centre = float(values.mean())
    scale = float(values.std()) if len(values) > 1 else 0.0
    scale = scale if scale > 0 else 1.0
    model = _process(points, (values - centre) / scale)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", BotorchWarning)
        warnings.simplefilter("ignore", NumericalWarning)
        torch.manual_seed(seed)
        try:
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        except ModelFittingError as error:
            _LOG.warning("the surrogate keeps its first guess of lengths: %s", error)
    return Surrogate(model.eval(), points, values, centre, scale)


def believing(surrogate: Surrogate, pending: Tensor) -> Surrogate:
    """Return the surrogate as if each pending point [p, d] had come out at its mean."""
    if not len(pending):
        return surrogate
    mean, _ = band(surrogate, pending)
    points = torch.cat([surrogate.points, pending.double()])
    values = torch.cat([surrogate.values, mean])
    model = _process(points, (values - surrogate.centre) / surrogate.scale)
    model.load_state_dict(surrogate.model.state_dict())
    return Surrogate(model.eval(), points, values, surrogate.centre, surrogate.scale)


@torch.no_grad()
def band(surrogate: Surrogate, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [n] at points [n, d], in the values' own unit."""
    posterior = surrogate.model.posterior(points.double())
    mean, variance = posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)
    return mean * surrogate.scale + surrogate.centre, variance.sqrt() * surrogate.scale


def propose(
    space: Space,
    settings: Sequence[Values],
    values: Sequence[float],
    *,
    pending: Sequence[Values] = (),
    beta: float | str = AUTO,
    count: int = 1,
    seed: int = 0,
) -> list[Values]:
    """Return the next ``count`` settings to try.

    Args:
        space: what is searched.
        settings: the finished trials.
        values: what they came to, higher is better.
        pending: settings that others are working on.
        beta: see :func:`beta_at`.
        count: how many to propose together; each counts as pending for the next one.
        seed: of the points that the search for the highest bound starts from.
    """
    weight = beta_at(beta, len(settings), len(space))
    points = torch.tensor([encode(space, one) for one in settings], dtype=torch.double)
    surrogate = fit(points, torch.tensor(values, dtype=torch.double), seed)
    waiting = [encode(space, one) for one in pending]
    known = {repr(active(space, one)) for one in (*settings, *pending)}
    found: list[Values] = []
    for place in range(count):
        rows = torch.tensor(waiting, dtype=torch.double).reshape(-1, width(space))
        chosen = _highest(space, believing(surrogate, rows), weight, known, (seed, place))
        found.append(chosen)
        waiting.append(encode(space, chosen))
        known.add(repr(active(space, chosen)))
    return found


def _highest(
    space: Space,
    surrogate: Surrogate,
    beta: float,
    known: set[str],
    seed: tuple[int, int],
) -> Values:
    """Return the setting with the highest bound that is not known yet, if there is one."""
    shares = _sobol(len(space), RAW, seed[0] * 7919 + seed[1])
    best = surrogate.points[surrogate.values.argmax()].tolist()
    near = [_nudged(best, noise) for noise in _sobol(len(best), RAW // 4, seed[0] + 1).tolist()]
    tried = [*(spread(space, share) for share in shares.tolist()),
             *(decode(space, row) for row in near)]  # fmt: skip
    fresh = [one for one in tried if repr(active(space, one)) not in known] or tried
    rows = torch.tensor([encode(space, one) for one in fresh], dtype=torch.double)
    bound = UpperConfidenceBound(surrogate.model, beta=beta)
    with torch.no_grad():
        order = bound(rows.unsqueeze(1)).argsort(descending=True)
    starts = rows[order[:STARTS]]
    ends = torch.cat([*_climbed(bound, starts, discrete_columns(space)), starts])
    with torch.no_grad():
        ranked = ends[bound(ends.unsqueeze(1)).argsort(descending=True)].tolist()
    settings = [decode(space, row) for row in ranked]
    return next((s for s in settings if repr(active(space, s)) not in known), settings[0])


def _climbed(bound: UpperConfidenceBound, starts: Tensor, held: list[int]) -> list[Tensor]:
    """Follow the bound uphill from ``starts`` [k, d]; the ``held`` columns stay."""
    if len(held) == starts.shape[1]:
        return []
    together: dict[tuple[float, ...], list[Tensor]] = {}
    for start in starts:
        together.setdefault(tuple(start[held].tolist()), []).append(start)
    box = torch.stack([torch.zeros_like(starts[0]), torch.ones_like(starts[0])])
    found = []
    for values, alike in together.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BotorchWarning)
            end, _ = optimize_acqf(
                bound,
                box,
                q=1,
                num_restarts=len(alike),
                batch_initial_conditions=torch.stack(alike).unsqueeze(1),
                fixed_features=dict(zip(held, values, strict=True)) or None,
                options={"maxiter": 50},
                return_best_only=False,
                retry_on_optimization_warning=False,
            )
        found.append(end.reshape(-1, starts.shape[1]).clamp(0, 1))
    return found


def _process(points: Tensor, values: Tensor) -> SingleTaskGP:
    kernel = get_covar_module_with_dim_scaled_prior(points.shape[1], use_rbf_kernel=False)
    # Standardised by hand: believed points must not move the scale.
    with validate_input_scaling(False):
        return SingleTaskGP(
            points, values.unsqueeze(-1), covar_module=kernel, outcome_transform=None
        )


def _finite(values: Tensor) -> Tensor:
    good = values[torch.isfinite(values)]
    worst = float(good.min()) if len(good) else 0.0
    return torch.where(torch.isfinite(values), values, torch.full_like(values, worst))


def _nudged(row: Sequence[float], noise: Sequence[float]) -> list[float]:
    moved = (value + 0.1 * (draw - 0.5) for value, draw in zip(row, noise, strict=True))
    return [min(max(value, 0.0), 1.0) for value in moved]


def _sobol(dimensions: int, count: int, seed: int) -> Tensor:
    drawn: Tensor = SobolEngine(dimensions, scramble=True, seed=seed).draw(
        count, dtype=torch.double
    )
    return drawn
