"""Samplers: reproducible, never the same trial twice, better than chance."""

from __future__ import annotations

import itertools
import math

import optuna
import pytest
import torch

from secateur.errors import InputError
from secateur.tuning.encoding import decode, encode, grid, width
from secateur.tuning.samplers import SAMPLERS, UpperConfidenceSampler, make_sampler
from secateur.tuning.space import Space, Values, active, build_space, suggest
from secateur.tuning.surrogate import band, believing, beta_at, design, fit, propose

optuna.logging.set_verbosity(optuna.logging.WARNING)
RATES = build_space({"lr": {"type": "log", "low": 1e-6, "high": 1.0}})
MIXED = build_space(
    {
        "lr": {"type": "log", "low": 1e-6, "high": 1.0},
        "batch_size": {"type": "integer", "low": 8, "high": 128, "log": True},
        "optimizer": {"type": "choice", "choices": ["sgd", "adam"]},
        "momentum": {"type": "uniform", "low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd"]}},
    }
)


def hump(values: Values) -> float:
    return math.exp(-((math.log10(float(values["lr"])) + 2.7) ** 2))


def searched(name: str, space: Space, trials: int, seed: int = 0) -> list[Values]:
    study = optuna.create_study(direction="maximize")
    found = []
    for number in range(trials):
        study.sampler = make_sampler(name, space, seed=seed, number=number, trials=trials)
        trial = study.ask()
        found.append(suggest(trial, space))
        study.tell(trial, hump(found[-1]))
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_repeats_itself_and_no_setting(name: str) -> None:
    first = searched(name, MIXED, 9)
    assert first == searched(name, MIXED, 9)
    assert len({repr(one) for one in first}) == 9


def test_settings_survive_the_cube() -> None:
    for values in design(MIXED, 30, seed=1):
        row = encode(MIXED, values)
        assert len(row) == width(MIXED) == 5
        assert all(0 <= column <= 1 for column in row)
        again = active(MIXED, decode(MIXED, row))
        there = active(MIXED, values)
        assert again.keys() == there.keys()
        for name, value in there.items():
            expected = pytest.approx(value) if isinstance(value, float) else value
            assert again[name] == expected


def test_one_rate_starts_as_the_source_does_log_spread_with_both_ends() -> None:
    rates = [float(one["lr"]) for one in design(RATES, 7, seed=3)]
    assert (rates[0], rates[-1]) == (1e-6, 1.0)
    assert rates == pytest.approx([10.0**e for e in range(-6, 1)])
    assert rates == pytest.approx([float(one["lr"]) for one in grid(RATES, 7)])


def test_a_grid_counts_settings_that_differ_only_in_nothing_as_one() -> None:
    points = grid(MIXED, 12)
    # Two rates x two sizes, once with adam and twice with sgd.
    assert len(points) == 12
    assert len({repr(active(MIXED, one)) for one in points}) == 12


def test_the_process_finds_a_hump_that_its_first_trials_miss() -> None:
    assert max(hump(one) for one in design(RATES, 4, seed=0)) < 0.7
    assert max(hump(one) for one in searched("gp", RATES, 10)) > 0.97


def test_pending_settings_push_the_next_away_and_narrow_the_band() -> None:
    settings = design(RATES, 5, seed=0)
    values = [hump(one) for one in settings]
    batch = propose(RATES, settings, values, beta=4.0, count=3)
    spots = [encode(RATES, one)[0] for one in batch]
    assert min(abs(a - b) for i, a in enumerate(spots) for b in spots[:i]) > 0.01
    (second,) = propose(RATES, settings, values, pending=batch[:1], beta=4.0)
    assert encode(RATES, second)[0] == pytest.approx(spots[1], abs=0.02)

    points = torch.tensor([encode(RATES, one) for one in settings], dtype=torch.double)
    process = fit(points, torch.tensor(values), seed=0)
    here = torch.tensor([[spots[0]]], dtype=torch.double)
    mean, deviation = band(process, here)
    after, narrower = band(believing(process, here), here)
    assert after.item() == pytest.approx(mean.item(), abs=1e-3)
    assert narrower.item() < deviation.item()


def test_running_trials_count_as_pending() -> None:
    study = optuna.create_study(
        direction="maximize", sampler=UpperConfidenceSampler(RATES, initial=4, seed=0)
    )
    for _ in range(4):
        trial = study.ask()
        study.tell(trial, hump(suggest(trial, RATES)))
    rates = [float(suggest(study.ask(), RATES)["lr"]) for _ in range(3)]
    logs = sorted(math.log10(rate) for rate in rates)
    assert min(b - a for a, b in itertools.pairwise(logs)) > 0.05


def test_losses_are_minimised_and_infinite_ones_count_as_the_worst() -> None:
    study = optuna.create_study(direction="minimize")
    for number in range(12):
        study.sampler = make_sampler("gp", RATES, seed=0, number=number, trials=12)
        trial = study.ask()
        rate = float(suggest(trial, RATES)["lr"])
        study.tell(trial, math.inf if rate > 0.05 else (math.log10(rate) + 3) ** 2)
    assert study.best_value < 0.1


def test_a_process_lives_with_equal_values_and_with_none_that_is_finite() -> None:
    settings = design(RATES, 4, seed=0)
    for value in (0.0, math.inf):
        (found,) = propose(RATES, settings, [value] * 4)
        assert found not in settings


def test_beta_is_given_or_scheduled() -> None:
    assert beta_at(2.5, 10, 1) == 2.5
    assert beta_at("auto", 10, 2) == 1
    assert beta_at("schedule", 10, 3) == pytest.approx(0.6 * math.log(20))
    for beta in (-1.0, math.inf, "often"):
        with pytest.raises(InputError, match="beta"):
            beta_at(beta, 1, 1)


def test_bad_samplers_are_refused() -> None:
    with pytest.raises(InputError, match="sampler must be one of gp, grid, random, tpe"):
        make_sampler("grids", RATES, seed=0, number=0, trials=5)
    with pytest.raises(InputError, match="initial"):
        make_sampler("gp", RATES, seed=0, number=0, trials=5, initial=0)
