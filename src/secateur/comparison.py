"""Records of a comparison study, and what follows from them; plain data, no torch.

A :class:`Comparison` is the content of ``comparison.json``. A trial is one network; trials that
differ in their seed alone make one setup, whose figures are means over the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from secateur import pareto
from secateur.results import Changes, Epoch, Facts, Measured, Quality, load_record, save_record

FORMAT = 1
COSTS = ("macs", "params", "bytes", "latency")


@dataclass(frozen=True)
class Trial:
    """One network of a study: how it was made, and what it does.

    Attributes:
        number: its place in the grid, from 0.
        criterion: name of the criterion with its options, or of the mixture.
        granularity: "channel" or "weight".
        scope: what competed.
        target: "sparsity" (share of units or weights removed), "macs" or "params" (share kept).
        value: of the target.
        recovery: "none" or the method that mended the network without training.
        epochs: of finetuning, all rounds together.
        seed: of scores, calibration images and finetuning.
        share: of a mixture of two orders, how much of the second; None for other criteria.
        schedule: when it went: "one-shot", in rounds or gradually, in a few words.
        state: "complete" or "failed".
        error: why it failed.
        quality: on validation; None where it failed.
        test: on the test split, for the trials that were reported there.
        params: parameters that are left; those that a mask takes are not counted.
        macs: multiply-accumulates for one input; zeros in weights save none.
        bytes: of the weights, gzipped.
        sparse: bytes of the weights in a sparse container; 0 in studies of before it was kept.
        latency: time as a share of the dense network's, where it was asked for.
        max_error: of the cut against its masked reference, relative; None for masked weights.
        seconds: that the trial took.
        history: every epoch of its finetuning; empty in studies of before it was kept.
    """

    number: int
    criterion: str
    granularity: str
    scope: str
    target: str
    value: float
    recovery: str
    epochs: int
    seed: int
    share: float | None = None
    schedule: str = "one-shot"
    state: str = "complete"
    error: str = ""
    quality: Quality | None = None
    test: Quality | None = None
    params: int = 0
    macs: int = 0
    bytes: int = 0
    sparse: int = 0
    latency: float | None = None
    max_error: float | None = None
    seconds: float = 0.0
    history: tuple[Epoch, ...] = ()

    @property
    def setup(self) -> tuple[Any, ...]:
        """All that was asked but the seed."""
        return (
            self.criterion, self.granularity, self.scope, self.target, self.value,
            self.recovery, self.epochs, self.schedule,
        )  # fmt: skip

    @property
    def line(self) -> tuple[Any, ...]:
        """All that was asked but the seed and how much to remove."""
        return (
            self.criterion, self.granularity, self.scope, self.recovery, self.epochs,
            self.schedule,
        )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All that a study asked and found.

    Attributes:
        title: of the report.
        asked: the settings.
        command: how to repeat it.
        environment: what the figures were taken with.
        dense: the dense network on the test split, with its sizes.
        validation: the dense network on validation.
        trials: in the order of the grid.
        chosen: number of the trial whose network the folder holds; None where none is good enough.
        within: accuracy that the chosen setup may lose against the dense network.
        cost: what the chosen setup has least of: "macs", "params" or "bytes".
        score: name of a score in :data:`secateur.pareto.SCORES`; empty for none.
        notes: for the reader.
        facts: the dense network and the chosen one side by side; None where none is chosen.
        changes: what became of the chosen one, layer by layer; None as there.
    """

    title: str
    asked: dict[str, Any]
    command: str
    environment: dict[str, str]
    dense: Measured
    validation: Quality
    trials: tuple[Trial, ...]
    chosen: int | None = None
    within: float = 0.01
    cost: str = "macs"
    score: str = ""
    notes: tuple[str, ...] = ()
    facts: Facts | None = None
    changes: Changes | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class Setup:
    """The complete trials that differ in their seed alone; figures are means over them.

    ``low`` and ``high`` are the least and the greatest accuracy; ``frontiers`` names the costs for
    which no other setup is at least as good in accuracy and cost and better in one.
    """

    trials: tuple[Trial, ...]
    accuracy: float
    low: float
    high: float
    loss: float
    params: float
    macs: float
    bytes: float
    latency: float | None
    frontiers: tuple[str, ...] = ()

    @property
    def first(self) -> Trial:
        """The trial of the first seed."""
        return self.trials[0]

    @property
    def test(self) -> float | None:
        """Mean accuracy on the test split; None where a trial was not measured there."""
        found = [trial.test.accuracy for trial in self.trials if trial.test is not None]
        return statistics.fmean(found) if len(found) == len(self.trials) else None

    def cost(self, name: str) -> float | None:
        """One of :data:`COSTS`."""
        return COST[name](self)


COST: Mapping[str, Callable[[Setup], float | None]] = MappingProxyType(
    {
        "macs": lambda setup: setup.macs,
        "params": lambda setup: setup.params,
        "bytes": lambda setup: setup.bytes,
        "latency": lambda setup: setup.latency,
    }
)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON, whole or not at all."""
    save_record(comparison, path)


def load_comparison(path: Path) -> Comparison:
    """Read a comparison back.

    Raises:
        CheckpointError: the file is missing, half-written or of another format.
    """
    return load_record(Comparison, path, FORMAT)


def setups(trials: Sequence[Trial]) -> tuple[Setup, ...]:
    """Gather complete trials by setup, in the order of the grid, and find the frontiers."""
    grouped: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        if trial.quality is not None:
            grouped.setdefault(trial.setup, []).append(trial)
    found = [_mean(members) for members in grouped.values()]
    on: list[list[str]] = [[] for _ in found]
    for cost in COSTS:
        known = [(i, value) for i, one in enumerate(found) if (value := one.cost(cost)) is not None]
        best = pareto.frontier([(found[i].accuracy, value) for i, value in known])
        for (i, _), good in zip(known, best, strict=True):
            if good:
                on[i].append(cost)
    return tuple(
        Setup(**{**vars(one), "frontiers": tuple(names)})
        for one, names in zip(found, on, strict=True)
    )


def choose(found: Sequence[Setup], dense: float, within: float, cost: str) -> Setup | None:
    """Return the setup with the least ``cost`` at most ``within`` below the dense accuracy."""
    points = [(setup.accuracy, float(setup.cost(cost) or 0)) for setup in found]
    place = pareto.smallest_within(points, dense, within)
    return None if place is None else found[place]


def scored(comparison: Comparison, setup: Setup) -> float | None:
    """Return the score that the study names, of one setup on validation; None for none."""
    if not comparison.score:
        return None
    sparsity = 1 - setup.params / comparison.dense.size.params
    return pareto.SCORES[comparison.score](setup.accuracy, sparsity)


def area(comparison: Comparison, found: Sequence[Setup], cost: str) -> float:
    """Return the hypervolume of the setups: 1 is dense accuracy (or 100 %) for nothing.

    Accuracy from 0 against the share of the dense network's parameters, MACs or gzipped bytes.
    """
    size = comparison.dense.size
    whole = {"macs": size.macs, "params": size.params, "bytes": size.bytes_gzip}[cost]
    points = [(setup.accuracy, float(setup.cost(cost) or 0) / whole) for setup in found]
    return pareto.hypervolume(points, (0.0, 1.0))


def _mean(trials: Sequence[Trial]) -> Setup:
    qualities = [trial.quality for trial in trials if trial.quality is not None]
    accuracies = [one.accuracy for one in qualities]
    times = [trial.latency for trial in trials if trial.latency is not None]
    return Setup(
        trials=tuple(trials),
        accuracy=statistics.fmean(accuracies),
        low=min(accuracies),
        high=max(accuracies),
        loss=statistics.fmean(one.loss for one in qualities),
        params=statistics.fmean(trial.params for trial in trials),
        macs=statistics.fmean(trial.macs for trial in trials),
        bytes=statistics.fmean(trial.bytes for trial in trials),
        latency=statistics.fmean(times) if len(times) == len(trials) else None,
    )
