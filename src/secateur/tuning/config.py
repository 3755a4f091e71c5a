"""What ``secateur tune`` is asked to do: the settings, their defaults and their rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from secateur.allocation import check_target
from secateur.criteria import CRITERIA
from secateur.errors import InputError, unknown_name
from secateur.finetune import TrainSettings
from secateur.study.config import DataSettings, RunSettings, Target
from secateur.training.settings import BEST_BY
from secateur.tuning.objective import Objective
from secateur.tuning.samplers import SAMPLERS
from secateur.tuning.space import build_space
from secateur.tuning.surrogate import AUTO, beta_at

STARTS = ("trained", "initial")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EarlyStopping(_Part):
    """Successive halving: after ``first`` epochs, then ``factor`` times as many, and so on.

    Each time a trial goes on only if it is among the best 1 / ``factor`` of those that came so
    far.
    """

    first: int = Field(default=1, ge=1)
    factor: int = Field(default=3, ge=2)


class SearchSettings(_Part):
    """How settings are searched for on the proxy.

    Attributes:
        trials: how many; a grid may have fewer points.
        sampler: "gp", "random", "grid" or "tpe".
        beta: of the gp's bound, "auto" or "schedule".
        initial: trials before the gp is asked.
        space: "source", "wide" or the dimensions.
        objective: what a trial is worth.
        early_stopping: of hopeless trials; None lets all end.
    """

    trials: int = Field(default=30, ge=1)
    sampler: str = "gp"
    beta: float | str = AUTO
    initial: int | None = Field(default=None, ge=1)
    space: str | dict[str, Any] = "source"
    objective: Objective = Objective()
    early_stopping: EarlyStopping | None = None

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        if value not in SAMPLERS:
            raise unknown_name("sampler", value, SAMPLERS)
        return value

    @field_validator("beta")
    @classmethod
    def _valid_beta(cls, value: float | str) -> float | str:
        beta_at(value, 1, 1)
        return value


class RetrainSettings(_Part):
    """How the dense network is trained with each of the best settings.

    All else is as in ``finetune``, so that a setting means the same on both networks.
    """

    epochs: int = Field(default=100, ge=1)
    patience: int | None = Field(default=None, ge=1)
    best_by: str = "accuracy"

    @field_validator("best_by")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BEST_BY:
            raise unknown_name("best_by", value, BEST_BY)
        return value


class TrustSettings(_Part):
    """The measurement of the proxy: settings trained on it and on the dense network.

    Attributes:
        settings: how many, spread evenly over the space.
        epochs: of each; None takes those of a trial.
        sparsities: of the proxies; none takes the run's own proxy.
        tolerance: a setting is good within this share of the way from the worst to the best.
        resamples: of the bootstrap.
    """

    settings: int = Field(default=10, ge=4)
    epochs: int | None = Field(default=None, ge=1)
    sparsities: tuple[float, ...] = ()
    tolerance: float = Field(default=0.1, gt=0, lt=1)
    resamples: int = Field(default=2000, ge=100)

    @field_validator("sparsities")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for sparsity in value:
            check_target("sparsity", sparsity)
        if len(set(value)) < len(value):
            raise InputError(f"sparsities must differ, but got {list(value)}")
        return value


class TuneConfig(RunSettings):
    """Everything that ``secateur tune`` is asked.

    Attributes:
        model: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: safetensors file, or None for the weights that the callable gives.
        data: images to train, choose and judge with.
        train: how the dense network is trained first; 0 epochs take it as it is.
        criterion: which units go first.
        options: of the criterion, by name.
        target: how small the proxy is.
        finetune: how a trial trains the proxy; the search puts its values in.
        search: how the settings are chosen.
        top: how many of the best the dense network is trained with.
        retrain: for how long that is.
        start: the weights that this begins with: "trained" (those that were pruned) or "initial"
            (drawn anew from the seed, as the callable gives them).
        trust: how far the proxy can be trusted, measured; None does not.
    """

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataSettings
    train: TrainSettings = TrainSettings(epochs=0)
    criterion: str = "taylor"
    options: dict[str, Any] = Field(default_factory=dict)
    target: Target = Target(sparsity=0.9)
    finetune: TrainSettings = TrainSettings(epochs=3)
    search: SearchSettings = SearchSettings()
    top: int = Field(default=3, ge=1)
    retrain: RetrainSettings = RetrainSettings()
    start: str = "trained"
    trust: TrustSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _trial_epochs(cls, raw: Any) -> Any:
        """Three epochs are the default also where other settings of a trial are given."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("finetune", {}), Mapping):
            return raw
        filled = {**raw, "finetune": {"epochs": 3, **raw.get("finetune", {})}}
        if isinstance(raw.get("train"), Mapping) and "epochs" not in raw["train"]:
            raise InputError("train must say how many epochs")
        return filled

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, value: str) -> str:
        return CRITERIA[value].name

    @field_validator("start")
    @classmethod
    def _known_start(cls, value: str) -> str:
        if value not in STARTS:
            raise unknown_name("start", value, STARTS)
        return value

    @model_validator(mode="after")
    def _fits(self) -> TuneConfig:
        if self.finetune.epochs < 1:
            raise InputError(f"finetune.epochs must be at least 1, but got {self.finetune.epochs}")
        if self.finetune.distill_weight:
            raise InputError(
                "finetune.distill_weight must be 0 (the dense network has no teacher), "
                f"but got {self.finetune.distill_weight}"
            )
        CRITERIA[self.criterion].with_options(**self.options)
        build_space(self.search.space, self.finetune)
        self.search.objective.check_epochs(self.finetune.epochs)
        if self.trust is not None and self.trust.epochs is not None:
            self.search.objective.check_epochs(self.trust.epochs)
        if self.top > self.search.trials:
            raise InputError(f"top must be at most {self.search.trials} trials, but got {self.top}")
        return self

    def retraining(self, base: TrainSettings) -> TrainSettings:
        """Return how the dense network trains with a setting that is already in ``base``."""
        return dataclasses.replace(base, **self.retrain.model_dump())
