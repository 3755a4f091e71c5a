"""Settings that several kinds of runs have, each with its check."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from secateur.allocation import SCOPES
from secateur.allocation.searched import SAMPLERS
from secateur.criteria.combine import check_aggregation, check_normalisation
from secateur.errors import unknown_name


def _aggregation(value: str) -> str:
    check_aggregation(value)
    return value


def _normalisation(value: str) -> str:
    check_normalisation(value)
    return value


SENSITIVE, SEARCHED = "sensitivity", "search"
DIVISIONS = (*SCOPES, SENSITIVE, SEARCHED)


def _sampler(value: str) -> str:
    if value not in SAMPLERS:
        raise unknown_name("sampler", value, SAMPLERS)
    return value


def _division(value: str) -> str:
    if value not in DIVISIONS:
        raise unknown_name("scope", value, DIVISIONS)
    return value


def _scope(value: str) -> str:
    if value not in SCOPES:
        raise unknown_name("scope", value, SCOPES)
    return value


Aggregation = Annotated[str, AfterValidator(_aggregation)]
"""How a unit's values in its group's slots become one."""

Normalisation = Annotated[str, AfterValidator(_normalisation)]
"""What a group's scores are divided by before groups compete."""

Scope = Annotated[str, AfterValidator(_scope)]
"""What competes for staying."""

Division = Annotated[str, AfterValidator(_division)]
"""What competes; or that measured sensitivity, or a search, divides the target over groups."""


class ShareSearch(BaseModel):
    """How shares of groups are searched; see :mod:`secateur.allocation.searched`.

    Attributes:
        trials: divisions that are tried.
        sampler: "nsga2" or "tpe".
        most: the largest share of a group that may go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int = Field(default=100, ge=1)
    sampler: Annotated[str, AfterValidator(_sampler)] = "nsga2"
    most: float = Field(default=0.9, ge=0.05, lt=1)
