"""Entries of a study's lists that are more than a word: criteria and their mixtures, schedules."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from secateur.errors import InputError
from secateur.study.ways import GradualSettings, RoundSettings

ONE_SHOT = "one-shot"
GRADUAL = "gradual"


class _Settings(BaseModel):
    """Unknown keys are errors, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CriterionEntry(_Settings):
    """A criterion by name, with its options; or a mixture of the orders of several.

    Attributes:
        name: of a criterion.
        options: of the criterion.
        interleave: criteria whose orders take turns.
        delta: two criteria whose orders are mixed by ``share``.
        share: how much of the second criterion; each makes an entry of its own.
        label: what tables and figures call it; None spells it out.
    """

    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    interleave: tuple[CriterionEntry, ...] = ()
    delta: tuple[CriterionEntry, ...] = ()
    share: tuple[float, ...] = ()
    label: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _one_kind(self) -> CriterionEntry:
        kinds = [key for key in ("name", "interleave", "delta") if getattr(self, key)]
        if len(kinds) != 1:
            raise InputError(
                "exactly one of name, interleave, delta must be given, but got "
                f"{', '.join(kinds) or 'none'}"
            )
        if self.options and not self.name:
            raise InputError("options must stand beside a name")
        if self.interleave and len(self.interleave) < 2:
            raise InputError("interleave must hold at least two criteria, but got 1")
        if self.delta and len(self.delta) != 2:
            raise InputError(f"delta must hold two criteria, but got {len(self.delta)}")
        if bool(self.delta) != bool(self.share):
            raise InputError("share must list numbers from 0 to 1 beside delta, and only there")
        if any(not 0 <= share <= 1 for share in self.share):
            raise InputError(f"share must be from 0 to 1, but got {list(self.share)}")
        if any(part.delta or part.interleave for part in (*self.interleave, *self.delta)):
            raise InputError("a mixture must be of criteria with names, not of mixtures")
        return self

    def labels(self) -> tuple[str, ...]:
        """Return what each criterion of this entry is called: one, or one a share."""
        if self.name:
            shown = ", ".join(f"{key}={value}" for key, value in self.options.items())
            return (self.label or (f"{self.name} ({shown})" if shown else self.name),)
        parts = (*self.interleave, *self.delta)
        names = ", ".join(label for part in parts for label in part.labels())
        if self.interleave:
            return (self.label or f"interleave ({names})",)
        spelled = self.label is None
        return tuple(
            f"delta {share:g} ({names})" if spelled else f"{self.label} {share:g}"
            for share in self.share
        )

    @model_serializer
    def _short(self) -> Any:
        if self.name and not self.options and self.label is None:
            return self.name
        every = {key: getattr(self, key) for key in type(self).model_fields}
        return {
            key: [part._short() if isinstance(part, CriterionEntry) else part for part in value]
            if isinstance(value, tuple)
            else value
            for key, value in every.items()
            if value
        }


class ScheduleEntry(RoundSettings):
    """When what goes: at once, in rounds, or (single weights) while finetuning goes on.

    Attributes:
        schedule: of the rounds; see :func:`secateur.schedule.sparsities`.
        number: of rounds.
        gradual: the cubic schedule over optimiser steps.
    """

    gradual: GradualSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, raw: Any) -> Any:
        if raw == GRADUAL:
            return {"gradual": {}}
        if isinstance(raw, str):
            return {"schedule": raw}
        if isinstance(raw, Mapping) and "gradual" in raw and len(raw) > 1:
            raise InputError("gradual must stand alone, without rounds")
        return raw

    @model_serializer
    def _short(self) -> Any:
        if self.gradual is not None:
            return {"gradual": self.gradual.model_dump()}
        return ONE_SHOT if self.at_once else {"schedule": self.schedule, "number": self.number}

    @property
    def at_once(self) -> bool:
        """Whether everything goes before any finetuning."""
        return self.number == 1 and self.gradual is None

    @property
    def label(self) -> str:
        """A few words for tables."""
        if self.gradual is None:
            return ONE_SHOT if self.at_once else f"{self.number} rounds, {self.schedule}"
        begin, end, every = self.gradual.begin, self.gradual.end, self.gradual.frequency
        return f"gradual from {begin}{'' if end is None else f' to {end}'}, every {every}"

    def epochs(self, total: int) -> tuple[int, ...]:
        """Share the epochs of a trial out over its rounds, the later ones at least as many."""
        ends = [total * done // self.number for done in range(self.number + 1)]
        return tuple(after - before for before, after in itertools.pairwise(ends))
