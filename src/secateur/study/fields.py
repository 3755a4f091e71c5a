"""Settings that several kinds of runs have, each with its check."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from secateur.allocation import SCOPES
from secateur.criteria.combine import check_aggregation, check_normalisation
from secateur.errors import unknown_name


def _aggregation(value: str) -> str:
    check_aggregation(value)
    return value


def _normalisation(value: str) -> str:
    check_normalisation(value)
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
