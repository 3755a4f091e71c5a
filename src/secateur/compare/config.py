"""What a comparison is asked: the settings, their defaults and their rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from secateur.allocation import SCOPES, check_target
from secateur.compare.entries import ONE_SHOT, CriterionEntry, ScheduleEntry
from secateur.criteria import CRITERIA
from secateur.criteria.elements import ELEMENTWISE
from secateur.criteria.orders import SCOPES as MIXED_SCOPES
from secateur.errors import InputError, unknown_name
from secateur.finetune import TrainSettings
from secateur.latency import Timing
from secateur.pareto import SCORES
from secateur.recovery import METHODS
from secateur.study.config import DataSettings
from secateur.study.dividing import division_problems
from secateur.study.fields import DIVISIONS, Aggregation, Normalisation, ShareSearch
from secateur.weight_masks import SCOPES as WEIGHT_SCOPES

GRANULARITIES = ("channel", "weight")
RECOVERIES = ("none", *METHODS)
CHOICE_COSTS = ("macs", "params", "bytes")
TESTED = ("frontier", "all", "chosen", "none")
OWN_KEYS = {"epochs": "epochs", "seed": "seeds"}


class _Settings(BaseModel):
    """Unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Settings):
    """Which network is kept: the one with the least ``cost`` that loses at most ``within``."""

    within: float = Field(default=0.01, ge=0, lt=1)
    cost: str = "macs"

    @field_validator("cost")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of("cost", value, CHOICE_COSTS)


class CompareConfig(_Settings):
    """Everything that ``secateur compare`` is asked; the lists span the grid of trials.

    Attributes:
        model: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: safetensors file, or None for the weights that the callable gives.
        data: images to calibrate, train and judge with.
        criteria: which units go first.
        sparsities: shares of units (or weights) to remove ...
        macs: ... or shares of multiply-accumulates to keep ...
        params: ... or shares of parameters to keep: at least one of the three.
        scopes: what competes; or "sensitivity", where measured ``curves`` divide each target, or
            "search", where Optuna does.
        curves: folder or ``sensitivity.json`` of ``secateur sensitivity``, for that scope.
        search: how shares are searched, for that scope.
        granularities: "channel" (all structures are cut) or "weight" (masked).
        recoveries: what mends the network without training.
        epochs: of finetuning, all rounds together.
        schedules: when it goes: at once, in rounds or gradually.
        seeds: of scores, the calibration images and finetuning.
        finetune: how to finetune; epochs and seed are listed above.
        aggregation: how a unit's values in its group's slots become one.
        normalisation: what a group's scores are divided by before groups compete.
        protect: patterns of groups, parameters and kinds that stay whole.
        round_to: keep a multiple of this many units in every group that is cut.
        max_sparsity: the largest share that may go from one group.
        latency: measure every network's time as a share of the dense one's, so; None for not.
        choose: which network is kept.
        test: which trials are measured on the test split at the end: those on a "frontier",
            "all", the "chosen" setup or "none".
        score: name of a score to show beside the accuracy.
        output: the run folder; None takes the first free ``runs/compare``, ``runs/compare-2`` ...
        seed: of weights that are drawn and of how the images are divided.
        threads: that PyTorch may use in each process.
    """

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataSettings
    criteria: tuple[CriterionEntry, ...] = Field(min_length=1)
    sparsities: tuple[float, ...] = ()
    macs: tuple[float, ...] = ()
    params: tuple[float, ...] = ()
    scopes: tuple[str, ...] = Field(default=("local",), min_length=1)
    curves: str | None = None
    search: ShareSearch | None = None
    granularities: tuple[str, ...] = Field(default=("channel",), min_length=1)
    recoveries: tuple[str, ...] = Field(default=("none",), min_length=1)
    epochs: tuple[int, ...] = Field(default=(0,), min_length=1)
    schedules: tuple[ScheduleEntry, ...] = Field(default=(ScheduleEntry(),), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    finetune: TrainSettings = TrainSettings()
    aggregation: Aggregation = "sum"
    normalisation: Normalisation = "mean"
    protect: tuple[str, ...] = ()
    round_to: int = Field(default=1, ge=1)
    max_sparsity: float | None = Field(default=None, gt=0, le=1)
    latency: Timing | None = None
    choose: Choice = Choice()
    test: str = "frontier"
    score: str | None = None
    output: str | None = None
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _listed_above(cls, raw: Any) -> Any:
        training = raw.get("finetune") if isinstance(raw, Mapping) else None
        if isinstance(training, Mapping):
            for key, listed in OWN_KEYS.items():
                if key in training:
                    raise InputError(f"finetune.{key} must not be given: {listed} lists them")
            # Rules such as that of the warm-up are checked against the longest training.
            asked = raw.get("epochs")
            known = [one for one in asked if isinstance(one, int)] if _listed(asked) else []
            return {**raw, "finetune": {**training, "epochs": max([1, *known])}}
        return raw

    @field_validator(
        "criteria", "sparsities", "macs", "params", "scopes", "granularities", "recoveries",
        "epochs", "schedules", "seeds",
    )  # fmt: skip
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = next((one for i, one in enumerate(value) if one in value[:i]), None)
        if twice is not None:
            shown = twice._short() if isinstance(twice, CriterionEntry | ScheduleEntry) else twice
            raise InputError(f"a list must name each thing once, but {shown!r} stands twice")
        return value

    @field_validator("sparsities", "macs", "params")
    @classmethod
    def _in_range(cls, value: tuple[float, ...], info: Any) -> tuple[float, ...]:
        for one in value:
            check_target("sparsity" if info.field_name == "sparsities" else info.field_name, one)
        return value

    @field_validator("scopes", "granularities", "recoveries")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        choices = {"scopes": DIVISIONS, "granularities": GRANULARITIES, "recoveries": RECOVERIES}
        return tuple(_one_of(info.field_name, one, choices[info.field_name]) for one in value)

    @field_validator("epochs", "seeds")
    @classmethod
    def _from_zero(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(one < 0 for one in value):
            raise InputError(f"a list must hold whole numbers from 0, but got {list(value)}")
        return value

    @field_validator("test")
    @classmethod
    def _known_test(cls, value: str) -> str:
        return _one_of("test", value, TESTED)

    @field_validator("score")
    @classmethod
    def _known_score(cls, value: str | None) -> str | None:
        return None if value is None else _one_of("score", value, tuple(SCORES))

    @model_validator(mode="after")
    def _fits(self) -> CompareConfig:
        problems = list(_problems(self))
        if problems:
            # One line each; the reader of settings splits where a new name "must be" something.
            raise InputError("; ".join(problems))
        return self

    def training(self, epochs: int, seed: int) -> TrainSettings:
        """Return how one trial finetunes."""
        return dataclasses.replace(self.finetune, epochs=epochs, seed=seed)


def plain(config: CompareConfig) -> dict[str, Any]:
    """Return the settings as JSON would hold them, and as they are read again."""
    found: dict[str, Any] = config.model_dump(mode="json")
    for key in OWN_KEYS:
        del found["finetune"][key]
    return found


def to_yaml(config: CompareConfig) -> str:
    """Write the settings, defaults included."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def _problems(config: CompareConfig) -> Iterator[str]:
    """Yield what single settings cannot know: what does not go together."""
    if not (config.sparsities or config.macs or config.params):
        yield "sparsities must list something, or macs or params must, but all are empty"
    for epochs in config.epochs:
        if epochs:
            try:
                config.training(epochs, 0)
            except InputError as error:
                yield f"finetune must fit {epochs} epochs: {error}"
    weights = "weight" in config.granularities
    channels = "channel" in config.granularities
    parts = [(part, entry) for entry in config.criteria for part in _parts(entry)]
    for part, _ in parts:
        name = part.name or ""
        for wanted, registry in ((channels, CRITERIA), (weights, ELEMENTWISE)):
            if wanted:
                try:
                    registry[name].with_options(**part.options)
                except InputError as error:
                    yield f"criteria must be known: {error}"
    labels = [label for entry in config.criteria for label in entry.labels()]
    for label in sorted({one for one in labels if labels.count(one) > 1}):
        yield f"criteria must have labels of their own, but {label!r} stands twice"
    mixed = [entry for entry in config.criteria if not entry.name]
    if mixed and any(scope not in MIXED_SCOPES for scope in config.scopes):
        yield f"scopes must be among {', '.join(MIXED_SCOPES)} where criteria are mixed"
    yield from _of_schedules(config)
    yield from _of_divisions(config)
    if not weights:
        return
    if mixed:
        yield "criteria must not be mixed where granularities hold weight"
    if config.macs or config.params:
        yield "sparsities must be the only target where granularities hold weight"
    if any(scope not in WEIGHT_SCOPES for scope in config.scopes):
        yield f"scopes must be among {', '.join(WEIGHT_SCOPES)} where granularities hold weight"
    if any(one not in ("none", "recalibrate") for one in config.recoveries):
        yield "recoveries must be none or recalibrate where granularities hold weight"


def _of_schedules(config: CompareConfig) -> Iterator[str]:
    """Yield what rounds and gradual pruning do not go with."""
    turns = any(one.number > 1 for one in config.schedules)
    gradual = any(one.gradual is not None for one in config.schedules)
    options = any(part.options for entry in config.criteria for part in _parts(entry))
    if (turns or gradual) and set(config.recoveries) != {"none"}:
        yield f"recoveries must be none with schedules but {ONE_SHOT}"
    if gradual and set(config.granularities) != {"weight"}:
        yield "granularities must be weight alone with gradual schedules"
    if gradual and 0 in config.epochs:
        yield "epochs must be above 0 with gradual schedules"
    if (turns or gradual) and options and "weight" in config.granularities:
        yield "criteria must have no options where weights go in rounds or gradually"


def _of_divisions(config: CompareConfig) -> Iterator[str]:
    """Yield what targets that are divided by measuring do not go with."""
    given: dict[str, Any] = {} if config.round_to == 1 else {"round_to": config.round_to}
    if config.max_sparsity is not None:
        given["max_sparsity"] = config.max_sparsity
    targets = [name for name in ("sparsities", "macs", "params") if getattr(config, name)]
    for name, rule, value in division_problems(
        config.scopes, config.curves, config.search, targets, given
    ):
        yield f"{name} must be {rule}, but got {value!r}"
    measured = [scope for scope in config.scopes if scope not in SCOPES]
    if measured and any(one.number > 1 for one in config.schedules):
        yield f"schedules must hold no rounds with scopes {', '.join(measured)}"


def _parts(entry: CriterionEntry) -> Sequence[CriterionEntry]:
    return (entry,) if entry.name else (*entry.interleave, *entry.delta)


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _one_of(what: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise unknown_name(what, value, choices)
    return value
