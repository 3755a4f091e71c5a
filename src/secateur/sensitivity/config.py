"""What a sensitivity run is asked."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from secateur.allocation import check_target
from secateur.criteria import CRITERIA
from secateur.errors import InputError
from secateur.study.config import DataSettings
from secateur.study.fields import Aggregation

TARGETS = ("sparsity", "macs", "params")


class Target(BaseModel):
    """What an allocation must meet: at most one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: float | None = None
    macs: float | None = None
    params: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The one target, by name; empty for none."""
        every = {name: getattr(self, name) for name in TARGETS}
        return {name: value for name, value in every.items() if value is not None}

    @model_validator(mode="after")
    def _one(self) -> Target:
        if len(self.given) > 1:
            raise InputError(
                f"at most one of {', '.join(TARGETS)} must be given, but got {list(self.given)}"
            )
        for name, value in self.given.items():
            check_target(name, value)
        return self


class SensitivityConfig(BaseModel):
    """Everything that ``secateur sensitivity`` is asked.

    Attributes:
        model: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: safetensors file, or None for the weights that the callable gives.
        data: images to calibrate and judge with; the test split is not read.
        criterion: which units of a group go first.
        options: of the criterion, by name.
        aggregation: how a unit's values in its group's slots become one.
        sparsities: shares of each group to remove.
        target: where given, an allocation that meets it is made, measured and kept.
        protect: patterns of groups, parameters and kinds that stay whole.
        output: the run folder; None takes the first free ``runs/sensitivity`` ...
        seed: of all that is drawn.
        threads: that PyTorch may use; None leaves its choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataSettings
    criterion: str = "taylor"
    options: dict[str, Any] = Field(default_factory=dict)
    aggregation: Aggregation = "sum"
    sparsities: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), min_length=1
    )
    target: Target = Target()
    protect: tuple[str, ...] = ()
    output: str | None = None
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)

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

    @field_validator("sparsities")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for one in value:
            check_target("sparsity", one)
        if list(value) != sorted(set(value)) or value[0] == 0:
            raise InputError(f"sparsities must rise from above 0, but got {list(value)}")
        return value


def plain(config: SensitivityConfig) -> dict[str, Any]:
    """Return the settings as JSON would hold them."""
    found: dict[str, Any] = config.model_dump(mode="json")
    found["target"] = config.target.given
    return found


def to_yaml(config: SensitivityConfig) -> str:
    """Write the settings, defaults included."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
