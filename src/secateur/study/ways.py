"""The ways in which a run makes a network smaller, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from secateur.allocation import SCOPES
from secateur.criteria import CRITERIA
from secateur.criteria.elements import ELEMENTWISE
from secateur.errors import InputError, unknown_name
from secateur.finetune import TrainSettings
from secateur.recovery import METHODS
from secateur.rounds import RECONSTRUCTION
from secateur.schedule import Cubic, kept, sparsities
from secateur.sparse_training.loop import check_settings, check_strength
from secateur.study.dividing import division_problems
from secateur.training.devices import check_tracker

if TYPE_CHECKING:
    from secateur.study.config import RunConfig

GRANULARITIES = ("structure", "weight")
RECOVERIES = ("none", *METHODS)

SPARSE_METHODS = {
    "select": ("strength", "blocks", "factor_lr", "momentum"),
    "slim": ("strength",),
    "grow": ("grow", "every", "ceiling"),
    "l1": ("strength",),
}
"""Methods of sparse training, and the settings that each has beside ``train``."""


SPARSE_EPOCHS = 10


class _Settings(BaseModel):
    """Unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RoundSettings(_Settings):
    """In how many turns of cutting and finetuning the target is reached, and by what steps.

    See :func:`secateur.schedule.sparsities`; each round trains as ``finetune`` says.
    """

    schedule: str = "one-shot"
    number: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _known(self) -> RoundSettings:
        sparsities(self.schedule, 0.5, self.number)
        return self

    def targets(self, name: str, value: float) -> tuple[float, ...]:
        """Return the target of each round, the last one as it was asked."""
        if name == "sparsity":
            return sparsities(self.schedule, value, self.number)
        return (*kept(sparsities(self.schedule, 1 - value, self.number))[:-1], value)


class GradualSettings(_Settings):
    """Single weights go while finetuning runs, by the cubic schedule over optimiser steps.

    Attributes:
        begin: the first step that may remove anything.
        end: the last one; None takes three quarters of the training's steps.
        frequency: steps between.
    """

    begin: int = Field(default=0, ge=0)
    end: int | None = Field(default=None, ge=1)
    frequency: int = Field(default=100, ge=1)

    def schedule(self, sparsity: float, steps: int) -> Cubic:
        """Return the schedule for a training of so many steps.

        Raises:
            InputError: it ends after the training, or before it begins.
        """
        end = self.end if self.end is not None else max(self.begin + 1, math.floor(0.75 * steps))
        if end > steps:
            raise InputError(
                f"gradual.end must be at most {steps} (the training's steps), but got {end}"
            )
        return Cubic(sparsity, begin=self.begin, end=end, frequency=self.frequency)


class SparseSettings(_Settings):
    """A training that teaches the network what it can do without, before anything is cut.

    Attributes:
        method: "select" (factors on units and blocks), "slim" (L1 on batch-norm scales), "grow"
            (a growing penalty on what the plan removes) or "l1" (on single weights).
        train: how; its loop knows no patience, accumulation, teacher or mixed precision.
        strength: of the penalty; of the factors of units in "select", where null has none.
        blocks: of the factors of whole residual branches, for "select"; null has none.
        factor_lr: learning rate of the factors; null takes that of ``train``.
        momentum: of the factors.
        grow: how much the penalty grows at a time ...
        every: ... after so many steps ...
        ceiling: ... up to this.
    """

    method: str
    train: TrainSettings = TrainSettings(epochs=SPARSE_EPOCHS)
    strength: float | None = None
    blocks: float | None = None
    factor_lr: float | None = None
    momentum: float | None = Field(default=None, ge=0, lt=1)
    grow: float | None = None
    every: int | None = Field(default=None, ge=1)
    ceiling: float | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _long(cls, value: Any) -> Any:
        return {"epochs": SPARSE_EPOCHS, **value} if isinstance(value, Mapping) else value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in SPARSE_METHODS:
            raise unknown_name("method", value, SPARSE_METHODS)
        return value

    @field_validator("strength", "blocks", "factor_lr", "grow", "ceiling")
    @classmethod
    def _above_zero(cls, value: float | None, info: Any) -> float | None:
        if value is not None:
            check_strength(info.field_name, value)
        return value

    @field_validator("train")
    @classmethod
    def _supported(cls, value: TrainSettings) -> TrainSettings:
        check_settings(value)
        if value.epochs < 1:
            raise InputError(f"epochs must be at least 1, but got {value.epochs}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> SparseSettings:
        own = SPARSE_METHODS[self.method]
        for name in dict.fromkeys(name for names in SPARSE_METHODS.values() for name in names):
            if name not in own and getattr(self, name) is not None:
                raise InputError(
                    f"{name} must be left out with method {self.method!r}, which has "
                    f"{', '.join(own)}, but got {getattr(self, name)}"
                )
        if self.method == "select" and self.strength is None and self.blocks is None:
            raise InputError(
                "strength must be given with method 'select', or blocks, but got neither"
            )
        return self

    @property
    def given(self) -> dict[str, Any]:
        """The method's own settings that were given."""
        every = {name: getattr(self, name) for name in SPARSE_METHODS[self.method]}
        return {name: value for name, value in every.items() if value is not None}


def known_criterion(granularity: str, name: str) -> str:
    """Return the full name of a criterion of a granularity.

    Raises:
        InputError: there is none of that name; lists those that there are.
    """
    if granularity == "weight":
        return ELEMENTWISE[name].name
    if name == RECONSTRUCTION:
        return name
    if name not in CRITERIA:
        raise unknown_name("criterion", name, [*CRITERIA, RECONSTRUCTION])
    return CRITERIA[name].name


def check_ways(config: RunConfig) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: names every argument, with its rule and its value.
    """
    told = [f"{name} must be {rule}, but got {value!r}" for name, rule, value in _broken(config)]
    if told:
        raise InputError("; ".join(told))


def _broken(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    """Yield (argument, rule, value) of all that is asked in vain."""
    turns = config.rounds.number > 1
    method = None if config.sparse is None else config.sparse.method
    target = None if config.target is None else config.target.given
    yield from _of_weights(config) if config.granularity == "weight" else _of_structures(config)
    if turns and config.recover != "none":
        yield "recover", "none with rounds", config.recover
    if turns and method in ("select", "grow"):
        yield "rounds", f"1 with sparse.method {method!r}", config.rounds.number
    if method == "select":
        if target is not None:
            yield "target", "left out with sparse.method 'select', whose zeros go", target
        if config.recover != "none":
            yield "recover", "none with sparse.method 'select'", config.recover
    elif target is None and config.pattern is None:
        yield "target", "one of sparsity, macs, params, latency", None
    if turns and target is not None and "latency" in target:
        yield "rounds", "1 with a target of latency", config.rounds.number
    if config.trackers and not config.finetune.epochs:
        yield "trackers", "left out without finetuning (finetune.epochs 0)", list(config.trackers)


def _of_structures(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    if config.pattern is not None:
        yield "pattern", "left out with granularity 'structure'", config.pattern
    if config.gradual is not None:
        told = "left out with granularity 'structure', which has rounds: {schedule: cubic, ...}"
        yield "gradual", told, config.gradual.model_dump()
    if config.sparse is not None and config.sparse.method == "l1":
        yield "sparse.method", "select, slim or grow with granularity 'structure'", "l1"
    yield from _of_division(config)
    if config.criterion == RECONSTRUCTION:
        if config.aggregation != "sum":
            yield "aggregation", "sum with criterion 'reconstruction'", config.aggregation
        if config.options:
            yield "options", "left out with criterion 'reconstruction'", config.options


def _of_division(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    """Yield what does not go with a target that is divided by measuring."""
    fields = type(config).model_fields
    names = ("round_to", "limits", "max_sparsity")
    usual = {n: fields[n].get_default(call_default_factory=True) for n in names}
    given = {n: getattr(config, n) for n in names if getattr(config, n) != usual[n]}
    targets = [] if config.target is None else list(config.target.given)
    scopes = (config.scope,)
    yield from division_problems(scopes, config.curves, config.search, targets, given)
    if config.scope in SCOPES:
        return
    where = f"with scope {config.scope!r}"
    if config.normalisation != "mean":
        yield "normalisation", f"left out {where}", config.normalisation
    if config.rounds.number > 1:
        yield "rounds", f"1 {where}", config.rounds.number
    if config.sparse is not None:
        yield "sparse", f"left out {where}", config.sparse.method


def _of_weights(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    where = "with granularity 'weight'"
    fields = type(config).model_fields
    for name in ("aggregation", "normalisation", "round_to", "max_sparsity"):
        if getattr(config, name) != fields[name].default:
            yield name, f"left out {where}", getattr(config, name)
    if config.limits:
        yield "limits", f"left out {where}", config.limits
    if config.scope not in ("local", "global"):
        yield "scope", f"local or global {where}", config.scope
    for name in ("curves", "search"):
        if getattr(config, name) is not None:
            yield name, f"left out {where}", getattr(config, name)
    if config.recover != "none":
        yield "recover", f"none {where}", config.recover
    if config.sparse is not None and config.sparse.method != "l1":
        yield "sparse.method", f"l1 {where}", config.sparse.method
    target = {} if config.target is None else config.target.given
    if target and "sparsity" not in target:
        yield "target", f"sparsity {where}", target
    if config.pattern is not None and target:
        yield "target", "left out with a pattern", target
    turns = config.rounds.number > 1
    if config.pattern is not None and turns:
        yield "rounds", "1 with a pattern", config.rounds.number
    if config.gradual is None:
        if turns and config.options:
            yield "options", "left out with rounds of weights", config.options
        return
    if config.pattern is not None:
        yield "gradual", "left out with a pattern", config.gradual.model_dump()
    if turns:
        yield "rounds", "1 with gradual", config.rounds.number
    if config.options:
        yield "options", "left out with gradual", config.options
    if not config.finetune.epochs:
        yield "gradual", "left out without finetuning", config.gradual.model_dump()


def known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of trackers, once they can be had.

    Raises:
        InputError: accelerate has none of that name, or its package is not installed.
    """
    for name in names:
        check_tracker(name)
    return names
