"""Samplers on known functions: regret after 30 trials, ours beside random and Optuna's own.

    python benchmarks/samplers.py            # writes results/samplers.md

Branin (2 dimensions), Hartmann (6) and a noisy curve over a learning rate (1, on a logarithmic
scale, flat almost everywhere as such curves are). The regret is the true value of the setting
that looked best, below the true maximum. Seeds decide initial designs and noise. One thread.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler

from secateur.tuning.samplers import UpperConfidenceSampler, initial_trials, make_sampler
from secateur.tuning.space import Dimension, Space

RESULTS = Path(__file__).resolve().parent / "results" / "samplers.md"
TRIALS, NOISE = 30, 0.03
# Ten seeds of a noisy function rank samplers by luck: the order changed from ten to ten.
SEEDS = {"Branin": 10, "Hartmann-6": 10, "noisy curve": 60}
SAMPLERS = ("gp", "random", "tpe", "optuna-gp")
Function = Callable[[list[float]], float]

ALPHA = (1.0, 1.2, 3.0, 3.2)
A = ((10, 3, 17, 3.5, 1.7, 8), (0.05, 10, 17, 0.1, 8, 14),
     (3, 3.5, 1.7, 10, 17, 8), (17, 8, 0.05, 10, 0.1, 14))  # fmt: skip
P = ((0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
     (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
     (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
     (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381))  # fmt: skip


def branin(x: list[float]) -> float:
    """Its minimum is 0.397887, at three points; here turned round."""
    a, b = x
    bow = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return -(bow**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10)


def hartmann(x: list[float]) -> float:
    """Its maximum is 3.32237."""
    far = (sum(a * (v - p) ** 2 for a, v, p in zip(A[i], x, P[i], strict=True)) for i in range(4))
    return sum(weight * math.exp(-one) for weight, one in zip(ALPHA, far, strict=True))


def curve(x: list[float]) -> float:
    """A learning rate's score: nothing below 1e-6, a peak of 0.9 near 4e-3, a cliff after 3e-2."""
    log = math.log10(x[0])
    rise = 1 / (1 + math.exp(-2.2 * (log + 4)))
    cliff = 1 / (1 + math.exp(8 * (log + 1.6)))
    return 0.95 * rise * cliff


def numbers(low: float, high: float, count: int, *, log: bool = False) -> Space:
    one = optuna.distributions.FloatDistribution(low, high, log=log)
    return {f"x{place}": Dimension(one) for place in range(count)}


def problems() -> dict[str, tuple[Space, Function, float, float]]:
    """Return {name: (space, function, maximum, deviation of the noise)}."""
    wide = numbers(-5, 10, 1) | {"x1": Dimension(optuna.distributions.FloatDistribution(0, 15))}
    top = max(curve([10.0**e]) for e in np.linspace(-12, -1, 200_001))
    return {
        "Branin": (wide, branin, -0.397887, 0.0),
        "Hartmann-6": (numbers(0, 1, 6), hartmann, 3.32237, 0.0),
        "noisy curve": (numbers(1e-12, 1e-1, 1, log=True), curve, top, NOISE),
    }


def sampler_for(name: str, space: Space, seed: int, number: int, beta: float | str) -> BaseSampler:
    if name == "gp":
        return UpperConfidenceSampler(space, beta=beta, initial=initial_trials(space), seed=seed)
    return make_sampler(name, space, seed=seed, number=number, trials=TRIALS)


def regret(problem: str, sampler: str, seed: int, beta: float | str) -> tuple[float, float]:
    """Return the regret after all trials, and the seconds that the sampler took."""
    space, function, top, noise = problems()[problem]
    draws = np.random.default_rng([seed, 17])
    study = optuna.create_study(direction="maximize")
    if sampler == "optuna-gp":
        # Neither is told whether there is noise.
        study.sampler = GPSampler(seed=seed)
    spent, seen, true = 0.0, [], []
    for number in range(TRIALS):
        if sampler != "optuna-gp":
            study.sampler = sampler_for(sampler, space, seed, number, beta)
        began = time.process_time()
        trial = study.ask({name: one.distribution for name, one in space.items()})
        spent += time.process_time() - began
        true.append(function([trial.params[name] for name in space]))
        seen.append(true[-1] + noise * draws.standard_normal())
        study.tell(trial, seen[-1])
    return top - true[seen.index(max(seen))], spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, help="for all functions; 10, the noisy one 60")
    parser.add_argument("--first", type=int, default=100, help="seed; auto was found with 0 to 7")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--problems", nargs="+", default=list(problems()))
    parser.add_argument("--beta", default="auto", help="a number, auto or schedule")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    beta = asked.beta if asked.beta in ("auto", "schedule") else float(asked.beta)
    lines = []
    for problem in asked.problems:
        seeds = asked.seeds or SEEDS[problem]
        for name in asked.samplers:
            found = [
                regret(problem, name, seed, beta)
                for seed in range(asked.first, asked.first + seeds)
            ]
            regrets = [one for one, _ in found]
            low, middle, high = np.quantile(regrets, [0.25, 0.5, 0.75])
            seconds = statistics.mean(spent for _, spent in found)
            lines.append(
                f"| {problem} | {seeds} | {name} | {middle:.4g} | {low:.4g} to {high:.4g} "
                f"| {seconds:.1f} |"
            )
            print(lines[-1], flush=True)
    words = [
        f"# Samplers: regret after {TRIALS} trials",
        "",
        "Median and quartiles over seeds; lower is better. `gp` is the Gaussian "
        f"process with the upper confidence bound (beta: {beta}), `optuna-gp` is Optuna's "
        f"GPSampler {optuna.__version__}. The noise of the curve has a deviation of {NOISE}; its "
        "regret is the true value of the setting that looked best.",
        "Processor seconds are those of 30 proposals, one thread. "
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| function | seeds | sampler | median regret | quartiles | seconds |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        "Repeat it: `python benchmarks/samplers.py`.",
    ]
    asked.out.write_text("\n".join(words) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
