"""What is searched: hyperparameters and their ranges.

A space is plain data, name -> dimension, as YAML gives it::

    lr: {type: log, low: 1.0e-12, high: 0.1}
    optimizer: {type: choice, choices: [sgd, adam]}
    momentum: {type: uniform, low: 0.5, high: 0.99, when: {optimizer: [sgd]}}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from secateur.errors import InputError, SecateurError, unknown_name, unmatched
from secateur.training import TrainSettings

TYPES = ("log", "uniform", "integer", "choice")
KEYS = ("type", "low", "high", "log", "choices", "when")
BATCH_SIZE = "batch_size"
# What the run decides, or what would make trials of unlike length.
FIXED = {"epochs", "seed", "patience", "best_by", "mixed_precision"}
TUNABLE = (
    BATCH_SIZE,
    *(one.name for one in dataclasses.fields(TrainSettings) if one.name not in FIXED),
)

Value = float | int | str | bool
Values = dict[str, Value]


@dataclass(frozen=True)
class Dimension:
    """One hyperparameter.

    Attributes:
        distribution: Optuna's word for type and range.
        when: {other name: values}; the dimension exists only where each other one has one of them.
    """

    distribution: BaseDistribution
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)


Space = dict[str, Dimension]

SOURCE_SPACE: dict[str, Any] = {"lr": {"type": "log", "low": 1e-12, "high": 1e-1}}
"""Learning rates as Moura et al. search them."""

WIDE_SPACE: dict[str, Any] = {
    "lr": {"type": "log", "low": 1e-6, "high": 1.0},
    "weight_decay": {"type": "log", "low": 1e-6, "high": 1e-2},
    "batch_size": {"type": "choice", "choices": [32, 64, 128, 256]},
    "optimizer": {"type": "choice", "choices": ["sgd", "adam", "adamw"]},
    "label_smoothing": {"type": "uniform", "low": 0.0, "high": 0.2},
    "momentum": {"type": "uniform", "low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}},
}
SPACES = {"source": SOURCE_SPACE, "wide": WIDE_SPACE}


def build_space(raw: str | Mapping[str, Any], base: TrainSettings | None = None) -> Space:
    """Build a space from plain data, or one of "source" and "wide" by name.

    Args:
        raw: name -> {type, low, high, log, choices, when}; an integer may be ``log``.
        base: the settings that values are put into; each end of each range is tried there.

    Raises:
        InputError: every problem there is, each on its own line.
    """
    if isinstance(raw, str):
        if raw not in SPACES:
            raise unknown_name("space", raw, SPACES)
        raw = SPACES[raw]
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"space must have at least one dimension, but got {raw!r}")
    problems: list[str] = []
    space: Space = {}
    for name, entry in raw.items():
        try:
            space[name] = _dimension(str(name), entry, space)
            _check_values(str(name), space[name].distribution, base or TrainSettings())
        except InputError as error:
            problems.append(f"space.{name}: {error}")
    if problems:
        raise InputError("; ".join(problems))
    return space


def suggest(trial: Trial, space: Space) -> Values:
    """Ask ``trial`` for every dimension that exists, parents first."""
    values: Values = {}
    for name, dimension in space.items():
        if exists(dimension, values):
            values[name] = _suggest_one(trial, name, dimension.distribution)
    return values


def exists(dimension: Dimension, values: Mapping[str, Value]) -> bool:
    """Tell whether the values so far let ``dimension`` exist."""
    return all(values.get(name) in allowed for name, allowed in dimension.when.items())


def active(space: Space, values: Mapping[str, Value]) -> Values:
    """Return the values of the dimensions that exist."""
    kept: Values = {}
    for name, dimension in space.items():
        if exists(dimension, kept) and name in values:
            kept[name] = values[name]
    return kept


def settings_with(
    base: TrainSettings, values: Mapping[str, Value], batch_size: int
) -> tuple[TrainSettings, int]:
    """Put values into the settings; return those and the batch size.

    Raises:
        InputError: the values do not go together.
    """
    rest: dict[str, Any] = {name: value for name, value in values.items() if name != BATCH_SIZE}
    if isinstance(rest.get("lr"), int | float):
        # A floor above the rate that is tried would make the rate the floor's.
        rest.setdefault("lr_min", min(base.lr_min, rest["lr"]))
    size = values.get(BATCH_SIZE, batch_size)
    return dataclasses.replace(base, **rest), int(size)


def _suggest_one(trial: Trial, name: str, distribution: BaseDistribution) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        return cast(Value, trial.suggest_categorical(name, distribution.choices))
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _dimension(name: str, entry: Any, before: Space) -> Dimension:
    if name not in TUNABLE:
        raise unknown_name("name", name, TUNABLE)
    if not isinstance(entry, Mapping):
        raise InputError(f"must hold keys and values, but got {entry!r}")
    problems = [f"{key}: unknown key; the keys are {', '.join(KEYS)}" for key in _strange(entry)]
    kind = entry.get("type")
    if kind not in TYPES:
        problems.append(f"type must be one of {', '.join(TYPES)}, but got {kind!r}")
    elif kind == "choice":
        problems += _choice_problems(entry)
    else:
        problems += _range_problems(entry, str(kind))
    when = entry.get("when", {})
    problems += _when_problems(name, when, before)
    if problems:
        raise InputError(", ".join(problems))
    return Dimension(_distribution(entry), {key: tuple(values) for key, values in when.items()})


def _strange(entry: Mapping[str, Any]) -> Iterator[str]:
    return (str(key) for key in entry if key not in KEYS)


def _range_problems(entry: Mapping[str, Any], kind: str) -> Iterator[str]:
    for key in ("low", "high"):
        value = entry.get(key)
        if not _number(value, whole=kind == "integer"):
            what = "a whole number" if kind == "integer" else "a number"
            # YAML 1.1 takes 1e-3 for a text; only 1.0e-3 is a number there.
            hint = " (YAML wants 1.0e-3, not 1e-3)" if isinstance(value, str) else ""
            yield f"{key} must be {what}, but got {value!r}{hint}"
            return
    low, high = entry["low"], entry["high"]
    if low >= high:
        yield f"low must be below high, but got low={low} and high={high}"
    if (kind == "log" or entry.get("log")) and low <= 0:
        yield f"low must be above 0 on a logarithmic scale, but got {low}"
    if "choices" in entry:
        yield f"choices must not be given for type {kind}"
    if kind != "integer" and "log" in entry:
        yield "log must only be given for type integer"


def _choice_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    choices = entry.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        yield f"choices must list at least two values, but got {choices!r}"
    elif not all(isinstance(one, bool | int | float | str) for one in choices):
        yield f"choices must be numbers, texts or true and false, but got {choices!r}"
    elif len({repr(one) for one in choices}) < len(choices):
        yield f"choices must differ, but got {choices!r}"
    for key in ("low", "high", "log"):
        if key in entry:
            yield f"{key} must not be given for type choice"


def _when_problems(name: str, when: Any, before: Space) -> Iterator[str]:
    if not isinstance(when, Mapping):
        yield f"when must hold names and lists of values, but got {when!r}"
        return
    for parent, values in when.items():
        if parent not in before:
            if before:
                yield str(unmatched("when", str(parent), before))
            else:
                yield f"when must name a dimension above {name}, but got {parent!r}"
            continue
        distribution = before[parent].distribution
        if not isinstance(distribution, CategoricalDistribution):
            yield f"when must name a choice, but {parent!r} is none"
        elif not isinstance(values, Sequence) or isinstance(values, str) or not values:
            yield f"when.{parent} must list values, but got {values!r}"
        elif strange := [one for one in values if one not in distribution.choices]:
            listed = list(distribution.choices)
            yield f"when.{parent} must be among {listed}, but got {strange}"


def _number(value: Any, *, whole: bool) -> bool:
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _distribution(entry: Mapping[str, Any]) -> BaseDistribution:
    if entry["type"] == "choice":
        return CategoricalDistribution(tuple(entry["choices"]))
    if entry["type"] == "integer":
        return IntDistribution(entry["low"], entry["high"], log=bool(entry.get("log", False)))
    return FloatDistribution(float(entry["low"]), float(entry["high"]), log=entry["type"] == "log")


def _check_values(name: str, distribution: BaseDistribution, base: TrainSettings) -> None:
    """Try the ends of a range, or each choice, in the settings."""
    if isinstance(distribution, CategoricalDistribution):
        tried: Sequence[Any] = distribution.choices
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        tried = (distribution.low, distribution.high)
    for value in tried:
        if name == BATCH_SIZE:
            if not _number(value, whole=True) or value < 1:
                raise InputError(f"batch_size must be a whole number from 1, but got {value!r}")
            continue
        try:
            settings_with(base, {name: value}, 1)
        except SecateurError as error:
            raise InputError(str(error)) from error
        except TypeError as error:
            raise InputError(f"{name} cannot be {value!r}: {error}") from error
