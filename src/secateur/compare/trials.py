"""The grid of a comparison: every trial as plain data, in one order that never changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from secateur.compare.config import CompareConfig
from secateur.compare.entries import ONE_SHOT, CriterionEntry, ScheduleEntry
from secateur.comparison import Trial
from secateur.criteria import CRITERIA, Criterion, delta, interleave


@dataclass(frozen=True)
class Rule:
    """A criterion as the settings give it; a mixture is of ``parts``."""

    label: str
    kind: str = "name"
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Rule, ...] = ()
    share: float | None = None

    @property
    def mixed(self) -> bool:
        """Whether its scores are places in one order."""
        return self.kind != "name"

    def criterion(self, scope: str, normalisation: str) -> Criterion:
        """Build the criterion for channels; a mixture needs to know what competes."""
        if not self.mixed:
            return CRITERIA[self.name].with_options(**self.options)
        parts = [part.criterion(scope, normalisation) for part in self.parts]
        if self.share is None:
            return interleave(*parts, scope=scope, normalisation=normalisation)
        first, second = parts
        return delta(first, second, self.share, scope=scope, normalisation=normalisation)


@dataclass(frozen=True)
class Spec:
    """One trial before it runs."""

    trial: Trial
    rule: Rule
    schedule: ScheduleEntry = field(default_factory=ScheduleEntry)


def rules(config: CompareConfig) -> tuple[Rule, ...]:
    """List the criteria; every share of a mixture is one."""
    return tuple(rule for entry in config.criteria for rule in _rules(entry))


def grid(config: CompareConfig) -> tuple[Spec, ...]:
    """List all trials: by seed last, so that one score serves neighbours."""
    targets = [
        (name, value)
        for name, values in (
            ("sparsity", config.sparsities),
            ("macs", config.macs),
            ("params", config.params),
        )
        for value in values
    ]
    every = product(
        config.granularities, config.scopes, rules(config), config.seeds, targets,
        config.recoveries, config.epochs, config.schedules,
    )  # fmt: skip
    return tuple(
        Spec(
            Trial(
                number=number,
                criterion=rule.label,
                granularity=granularity,
                scope=scope,
                target=target,
                value=value,
                recovery=recovery,
                epochs=epochs,
                seed=seed,
                share=rule.share,
                schedule=schedule.label,
            ),
            rule,
            schedule,
        )
        for number, (
            granularity,
            scope,
            rule,
            seed,
            (target, value),
            recovery,
            epochs,
            schedule,
        ) in enumerate(every)
    )


def said(trial: Trial) -> str:
    """Name a trial in a few words."""
    words = [
        trial.criterion,
        *([] if trial.granularity == "channel" else [trial.granularity]),
        trial.scope,
        f"{trial.target} {trial.value:g}",
        *([] if trial.recovery == "none" else [trial.recovery]),
        *([f"{trial.epochs} epoch{'s' * (trial.epochs > 1)}"] if trial.epochs else []),
        *([] if trial.schedule == ONE_SHOT else [trial.schedule]),
        f"seed {trial.seed}",
    ]
    return ", ".join(words)


def _rules(entry: CriterionEntry) -> Iterator[Rule]:
    labels = entry.labels()
    if entry.name:
        yield Rule(labels[0], name=entry.name, options=entry.options)
        return
    kind = "interleave" if entry.interleave else "delta"
    parts = tuple(rule for part in (*entry.interleave, *entry.delta) for rule in _rules(part))
    for label, share in zip(labels, entry.share or (None,), strict=True):
        yield Rule(label, kind, parts=parts, share=share)
