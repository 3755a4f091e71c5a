"""What a run is asked to do: the settings, their defaults and their rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from secateur.allocation import TARGETS, check_limits, check_target, check_targets
from secateur.criteria import CRITERIA
from secateur.criteria.elements import ELEMENTWISE
from secateur.data import Augment
from secateur.errors import InputError, unknown_name
from secateur.finetune import TrainSettings
from secateur.latency import Timing
from secateur.rounds import RECONSTRUCTION
from secateur.study.fields import Aggregation, Division, Normalisation, Scope, ShareSearch
from secateur.study.ways import (
    GRANULARITIES,
    RECOVERIES,
    GradualSettings,
    RoundSettings,
    SparseSettings,
    check_ways,
    known_criterion,
    known_trackers,
)
from secateur.weight_masks import check_pattern


class _Settings(BaseModel):
    """Unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Settings):
    """Where the images come from; see :func:`secateur.data.load_data`."""

    source: str
    test_source: str | None = None
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = Field(default=0.1, gt=0, lt=1)
    calibration: int = Field(default=512, ge=1)
    limit: int | None = Field(default=None, ge=1)
    label: str | None = None
    skip_unreadable: bool = False
    batch_size: int = Field(default=128, ge=1)
    augment: Augment | None = None


class Target(_Settings):
    """How much to remove (``sparsity``) or to keep (the others): exactly one."""

    sparsity: float | None = None
    macs: float | None = None
    params: float | None = None
    latency: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The one target, by name."""
        every = {name: getattr(self, name) for name in TARGETS}
        return {name: value for name, value in every.items() if value is not None}

    @model_validator(mode="after")
    def _one(self) -> Target:
        check_targets(self.given)
        return self


class SpeedSettings(_Settings):
    """How inferences per second are measured; see :func:`secateur.latency.paired`."""

    batches: tuple[int, ...] = (1, 32)
    repeats: int = Field(default=20, ge=1)
    seconds: float = Field(default=5.0, gt=0)

    @field_validator("batches")
    @classmethod
    def _above_zero(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(batch < 1 for batch in value):
            raise InputError(f"batches must be at least 1 each, but got {list(value)}")
        return value


class RunSettings(_Settings):
    """What every run has. The run's seed is also the training's, unless that has its own."""

    output: str | None = None
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    scope: Scope = "local"
    finetune: TrainSettings = TrainSettings()
    speed: SpeedSettings = SpeedSettings()

    @model_validator(mode="before")
    @classmethod
    def _seeds(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("seed"), int):
            return raw
        filled = dict(raw)
        for name in ("finetune", "train"):
            if name in cls.model_fields:
                part = raw.get(name, {})
                if isinstance(part, Mapping):
                    default = cls.model_fields[name].default
                    whole = {} if name in raw else dataclasses.asdict(default)
                    filled[name] = {**whole, "seed": raw["seed"], **part}
        sparse = raw.get("sparse")
        if isinstance(sparse, Mapping) and isinstance(sparse.get("train", {}), Mapping):
            filled["sparse"] = {**sparse, "train": {"seed": raw["seed"], **sparse.get("train", {})}}
        return filled


class RunConfig(RunSettings):
    """Everything that ``secateur prune`` is asked.

    Attributes:
        model: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: safetensors file, or None for the weights that the callable gives.
        data: images to calibrate, train and judge with.
        granularity: "structure" (channels, neurons, heads: tensors get smaller) or "weight"
            (single weights become zero and stay so).
        criterion: which units or weights go first; by default "taylor", for weights "l1".
        target: how many go; None with a ``pattern`` and with ``sparse.method`` "select".
        pattern: "N:M", for weights: N of each M along the input dimension stay.
        options: of the criterion, by name.
        aggregation: how a unit's values in its group's slots become one.
        scope: what competes: "local", "global" or "isomorphic"; or "sensitivity", where measured
            ``curves`` divide the target, or "search", where Optuna does.
        curves: folder or ``sensitivity.json`` of ``secateur sensitivity``, for that scope.
        search: how shares are searched, for that scope.
        normalisation: what a group's scores are divided by before groups compete.
        protect: patterns of groups, parameters and kinds (of parameters and modules, for weights)
            that stay whole.
        limits: pattern of group names -> the largest share that may go, or the fewest units
            that stay.
        max_sparsity: the largest share that may go from groups without such a limit.
        timing: how a target of latency is measured; ``threads`` of the run go before its own.
        round_to: keep a multiple of this many units in every group that is cut.
        sparse: a training before the cut that teaches the network what it can do without.
        rounds: how often removing and finetuning take turns.
        gradual: weights go while finetuning runs.
        recover: what is done without training after the cut: none, bias, recalibrate or
            least_squares.
        finetune: how to get the accuracy back; 0 epochs leave the network as it is. With a
            ``distill_weight``, the dense network is the teacher.
        trackers: of accelerate, told of finetuning ("tensorboard"); they write into ``logs``.
        speed: how inferences per second are measured.
        output: the run folder; None takes the first free ``runs/prune``, ``runs/prune-2`` ...
        seed: of all that is drawn.
        threads: that PyTorch may use; None leaves its choice, and measures speed with one.
    """

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataSettings
    granularity: str = "structure"
    criterion: str = "taylor"
    options: dict[str, Any] = Field(default_factory=dict)
    aggregation: Aggregation = "sum"
    target: Target | None = None
    pattern: str | None = None
    scope: Division = "local"
    curves: str | None = None
    search: ShareSearch | None = None
    normalisation: Normalisation = "mean"
    protect: tuple[str, ...] = ()
    limits: dict[str, int | float] = Field(default_factory=dict)
    max_sparsity: float | None = None
    timing: Timing = Timing()
    round_to: int = Field(default=1, ge=1)
    sparse: SparseSettings | None = None
    rounds: RoundSettings = RoundSettings()
    gradual: GradualSettings | None = None
    recover: str = "none"
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> RunConfig:
        check_ways(self)
        return self

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        if raw.get("granularity") == "weight":
            filled.setdefault("criterion", "l1")
        sparse = raw.get("sparse")
        selects = isinstance(sparse, Mapping) and sparse.get("method") == "select"
        if raw.get("pattern") is None and not selects and raw.get("target") is None:
            # An empty target says which there are; a missing one would only be "required".
            filled["target"] = {}
        return filled

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        if value not in GRANULARITIES:
            raise unknown_name("granularity", value, GRANULARITIES)
        return value

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, value: str, info: ValidationInfo) -> str:
        return known_criterion(info.data.get("granularity", "structure"), value)

    @field_validator("options")
    @classmethod
    def _known_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("criterion", RECONSTRUCTION)
        if name != RECONSTRUCTION:
            known = ELEMENTWISE if info.data.get("granularity") == "weight" else CRITERIA
            known[name].with_options(**value)
        return value

    @field_validator("pattern")
    @classmethod
    def _valid_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            check_pattern(value)
        return value

    @field_validator("recover")
    @classmethod
    def _known_recovery(cls, value: str) -> str:
        if value not in RECOVERIES:
            raise unknown_name("recover", value, RECOVERIES)
        return value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_trackers(value)

    @field_validator("limits")
    @classmethod
    def _valid_limits(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        check_limits(value, None)
        return value

    @field_validator("max_sparsity")
    @classmethod
    def _a_share(cls, value: float | None) -> float | None:
        check_limits({}, value)
        return value


class DemoConfig(RunSettings):
    """Everything that ``secateur demo`` does, on the handwritten digits.

    Attributes:
        train: how the dense network is trained.
        criteria: what is compared ...
        sparsities: ... and at which shares removed.
        trial_epochs: finetuning of each network that is compared.
        tolerance: accuracy on validation that the chosen network may lose against the dense one.
    """

    # Networks this small get slower with a second thread, not faster.
    threads: int | None = Field(default=1, ge=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    batch_size: int = Field(default=64, ge=1)
    train: TrainSettings = TrainSettings(epochs=10, lr=3e-3)
    finetune: TrainSettings = TrainSettings(epochs=12, lr=3e-3)
    speed: SpeedSettings = SpeedSettings(seconds=3.0)
    criteria: tuple[str, ...] = ("l1", "l2", "random", "taylor")
    sparsities: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    trial_epochs: int = Field(default=2, ge=0)
    tolerance: float = Field(default=0.01, ge=0)

    @field_validator("criteria")
    @classmethod
    def _known_criteria(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(CRITERIA[name].name for name in value)

    @field_validator("sparsities")
    @classmethod
    def _in_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for sparsity in value:
            check_target("sparsity", sparsity)
        return value


def to_plain(config: BaseModel) -> dict[str, Any]:
    """Return the settings as JSON would hold them."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    if isinstance(config, RunConfig):
        plain["target"] = None if config.target is None else config.target.given
    return plain


def to_yaml(config: BaseModel) -> str:
    """Write the settings, defaults included."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
