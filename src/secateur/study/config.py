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

from secateur.allocation import (
    SCOPES,
    TARGETS,
    check_limits,
    check_target,
    check_targets,
)
from secateur.criteria import CRITERIA
from secateur.criteria.combine import check_aggregation, check_normalisation
from secateur.data import Augment
from secateur.errors import InputError, unknown_name
from secateur.finetune import TrainSettings
from secateur.latency import Timing
from secateur.schedule import kept, sparsities


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
    scope: str = "local"
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
        return filled

    @field_validator("scope")
    @classmethod
    def _known_scope(cls, value: str) -> str:
        if value not in SCOPES:
            raise unknown_name("scope", value, SCOPES)
        return value


class RunConfig(RunSettings):
    """Everything that ``secateur prune`` is asked.

    Attributes:
        model: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: safetensors file, or None for the weights that the callable gives.
        data: images to calibrate, train and judge with.
        criterion: which units go first.
        target: how many go.
        options: of the criterion, by name.
        aggregation: how a unit's values in its group's slots become one.
        scope: what competes: "local", "global" or "isomorphic".
        normalisation: what a group's scores are divided by before groups compete.
        protect: patterns of groups, parameters and kinds that stay whole.
        limits: pattern of group names -> the largest share that may go, or the fewest units
            that stay.
        max_sparsity: the largest share that may go from groups without such a limit.
        timing: how a target of latency is measured; ``threads`` of the run go before its own.
        round_to: keep a multiple of this many units in every group that is cut.
        rounds: how often cutting and finetuning take turns.
        finetune: how to get the accuracy back; 0 epochs leave the cut network as it is. With a
            ``distill_weight``, the dense network is the teacher.
        speed: how inferences per second are measured.
        output: the run folder; None takes the first free ``runs/prune``, ``runs/prune-2`` ...
        seed: of all that is drawn.
        threads: that PyTorch may use; None leaves its choice, and measures speed with one.
    """

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataSettings
    criterion: str = "taylor"
    options: dict[str, Any] = Field(default_factory=dict)
    aggregation: str = "sum"
    target: Target
    normalisation: str = "mean"
    protect: tuple[str, ...] = ()
    limits: dict[str, int | float] = Field(default_factory=dict)
    max_sparsity: float | None = None
    timing: Timing = Timing()
    round_to: int = Field(default=1, ge=1)
    rounds: RoundSettings = RoundSettings()

    @model_validator(mode="after")
    def _rounds_of_shares(self) -> RunConfig:
        if self.rounds.number > 1 and self.target.latency is not None:
            raise InputError(
                f"rounds must be 1 with a target of latency, but got {self.rounds.number}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_target(cls, raw: Any) -> Any:
        # An empty target says which there are; a missing one would only be "required".
        return {"target": {}, **raw} if isinstance(raw, Mapping) else raw

    @field_validator("criterion")
    @classmethod
    def _known_criterion(cls, value: str) -> str:
        return CRITERIA[value].name

    @field_validator("options")
    @classmethod
    def _known_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "criterion" in info.data:
            CRITERIA[info.data["criterion"]].with_options(**value)
        return value

    @field_validator("aggregation")
    @classmethod
    def _known_aggregation(cls, value: str) -> str:
        check_aggregation(value)
        return value

    @field_validator("normalisation")
    @classmethod
    def _known_normalisation(cls, value: str) -> str:
        check_normalisation(value)
        return value

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
        plain["target"] = config.target.given
    return plain


def to_yaml(config: BaseModel) -> str:
    """Write the settings, defaults included."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
