"""Spaces from plain data: every problem named, conditions kept."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from secateur.errors import InputError
from secateur.training import TrainSettings
from secateur.tuning.space import SPACES, active, build_space, settings_with, suggest


def test_the_source_searches_learning_rates_from_1e_12_to_0_1() -> None:
    distribution: Any = build_space("source")["lr"].distribution
    assert (distribution.low, distribution.high, distribution.log) == (1e-12, 0.1, True)


@pytest.mark.parametrize("name", SPACES)
def test_suggestions_fit_the_settings_and_the_conditions(name: str) -> None:
    space = build_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        values = suggest(study.ask(), space)
        settings, size = settings_with(TrainSettings(), values, 7)
        assert settings.lr == values["lr"]
        assert size == values.get("batch_size", 7)
        if "momentum" in space:
            assert ("momentum" in values) == (values["optimizer"] == "sgd")
        seen.add(values.get("optimizer"))
    assert len(seen) == (3 if name == "wide" else 1)


def test_values_of_dimensions_that_do_not_exist_are_dropped() -> None:
    space = build_space("wide")
    assert "momentum" not in active(space, {"optimizer": "adam", "momentum": 0.9})
    assert active(space, {"optimizer": "sgd", "momentum": 0.9})["momentum"] == 0.9


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        build_space(
            {
                "lr": {"type": "log", "low": 0.1, "high": 0.001},
                "weight_decay": {"type": "log", "low": 0, "high": 1},
                "optimizer": {"type": "choice", "choices": ["sgd", "lion"]},
                "learning_rate": {"type": "log", "low": 1, "high": 2},
                "momentum": {"type": "uniform", "low": 0.5, "high": 1.5},
                "batch_size": {"type": "integer", "low": 0, "high": 8},
            }
        )
    said = str(caught.value)
    assert "space.lr: low must be below high, but got low=0.1 and high=0.001" in said
    assert "space.weight_decay: low must be above 0" in said
    assert "'lion'" in said
    assert "space.learning_rate: name must be one of" in said
    assert "momentum must be in [0, 1), but got 1.5" in said
    assert "batch_size must be a whole number from 1, but got 0" in said


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (3, "keys and values"),
        ({"low": 1, "high": 2}, "type must be one of"),
        ({"type": "log", "low": "1e-3", "high": 1}, "1.0e-3, not 1e-3"),
        ({"type": "log", "low": 1e-3, "high": float("nan")}, "high must be a number"),
        ({"type": "log", "low": 1e-3, "high": 1, "step": 2}, "step: unknown key"),
        ({"type": "uniform", "low": 1e-3, "high": 1, "log": True}, "only be given for"),
        ({"type": "uniform", "low": 1e-3, "high": 1, "choices": [1, 2]}, "choices must not"),
        ({"type": "choice", "choices": [1e-3]}, "at least two"),
        ({"type": "choice", "choices": [1e-3, 1e-3]}, "must differ"),
        ({"type": "choice", "choices": [1e-3, [1]]}, "numbers, texts"),
        ({"type": "choice", "choices": ["a", "b"]}, "lr"),
        ({"type": "choice", "choices": [0.1, 0.2], "low": 1}, "low must not"),
        ({"type": "uniform", "low": 0.1, "high": 1, "when": {"optimizer": ["sgd"]}}, "above lr"),
        ({"type": "uniform", "low": 0.1, "high": 1, "when": 3}, "when must hold"),
    ],
)
def test_bad_dimensions_are_refused(entry: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_space({"lr": entry})


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ({"optimiser": ["sgd"]}, "optimizer"),
        ({"lr": [0.1]}, "must name a choice"),
        ({"optimizer": "sgd"}, "must list values"),
        ({"optimizer": ["lion"]}, "must be among"),
    ],
)
def test_bad_conditions_are_refused(when: Any, told: str) -> None:
    raw = {
        "lr": {"type": "log", "low": 0.1, "high": 1},
        "optimizer": {"type": "choice", "choices": ["sgd", "adam"]},
        "momentum": {"type": "uniform", "low": 0.1, "high": 0.9, "when": when},
    }
    with pytest.raises(InputError, match=told):
        build_space(raw)


def test_unknown_and_empty_spaces_are_refused() -> None:
    with pytest.raises(InputError, match="space must be one of source, wide"):
        build_space("wider")
    with pytest.raises(InputError, match="at least one dimension"):
        build_space({})
