"""What a criterion is: a function from a graph to one score a unit, higher means keep."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from secateur.calibration import Batches, Loss, cross_entropy, seeded, untouched, watched
from secateur.criteria.combine import check_aggregation, check_normalisation, normalise
from secateur.errors import InputError, unknown_name
from secateur.graph import Graph
from secateur.graph.copies import stand_in
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.normal_mode import normal_mode
from secateur.registry import Registry


@dataclass(frozen=True)
class Context:
    """What a criterion may use beside the graph.

    Attributes:
        calibration: (inputs, labels) batches, for criteria that need data.
        loss: from outputs and labels to a scalar.
        seed: for criteria that draw.
        aggregation: how a unit's values in its group's slots become one:
            "sum", "mean", "max" or "first".
        example_inputs: what the model takes, for criteria that need no data but a pass.
    """

    calibration: Batches | None = None
    loss: Loss = cross_entropy
    seed: int = 0
    aggregation: str = "sum"
    example_inputs: Any = None


Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Criterion:
    """A rule that judges units.

    Attributes:
        name: as users write it.
        function: from a graph and its context to {group: scores [size]}.
        needs_calibration: whether it cannot work without data.
        options: keyword arguments of ``function`` that differ from its defaults.
        leaves_out: the groups that it cannot judge by design, in words; "" for none.
    """

    name: str
    function: Callable[..., Scores]
    needs_calibration: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    leaves_out: str = ""

    def choices(self) -> dict[str, Any]:
        """Return the options that the criterion has, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def with_options(self, **options: Any) -> Criterion:
        """Return the criterion with other options.

        Raises:
            InputError: it has no option of that name.
        """
        for name in options:
            if not self.choices():
                raise InputError(f"criterion {self.name!r} has no options, but got {name!r}")
            if name not in self.choices():
                raise unknown_name(f"option of criterion {self.name!r}", name, self.choices())
        return dataclasses.replace(self, options={**self.options, **options})


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str, *, needs_calibration: bool = False, leaves_out: str = ""
) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Return a decorator that registers a scoring function under ``name``.

    The function takes a graph and a context, and its options as keyword-only
    arguments with defaults. It may leave out groups that it cannot judge; they
    are then not cut, and ``leaves_out`` says which they are.
    """

    def add(function: Callable[..., Scores]) -> Callable[..., Scores]:
        CRITERIA.register(name)(Criterion(name, function, needs_calibration, leaves_out=leaves_out))
        return function

    return add


@normal_mode()
def score(
    graph: Graph,
    criterion: str | Criterion,
    calibration: Batches | None = None,
    *,
    loss: Loss = cross_entropy,
    seed: int = 0,
    aggregation: str = "sum",
    normalisation: str = "none",
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score every unit of every group; higher means keep.

    Args:
        graph: from ``trace``.
        criterion: a registered name or a :class:`Criterion`.
        calibration: (inputs, labels) batches, for criteria that need data.
        loss: from the model's outputs and the labels to a scalar.
        seed: for criteria that draw.
        aggregation: how a unit's values in the slots of its group become one:
            "sum", "mean", "max" or "first".
        normalisation: what a group's scores are divided by: "none", "mean", "max"
            or "l2" (of absolute values), or "rank" (each unit's place, from 0 to 1).
        options: of the criterion, by name.
        progress: where to show how far it is; None shows nothing.

    Returns:
        {group name: float64 tensor [size]} on the CPU.

    Raises:
        InputError: an unknown name, missing calibration, scores that are not finite,
            no group that the criterion can judge, or the same score for all units.
    """
    rule = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    rule = rule.with_options(**(options or {}))
    check_aggregation(aggregation)
    check_normalisation(normalisation)
    if rule.needs_calibration and calibration is None:
        raise InputError(f"criterion {rule.name!r} needs calibration batches, but got none")
    graph = dataclasses.replace(graph, model=stand_in(graph.model))
    batches = watched(calibration, f"Scoring by {rule.name}", progress)
    context = Context(batches, loss, seed, aggregation, graph.example_inputs)
    with shared_variables_put_back(graph.model), seeded(graph.model, seed), untouched(graph.model):
        scores: Scores = partial(rule.function, **rule.options)(graph, context)
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"criterion {rule.name!r} gives scores that are not finite in {name}")
    if graph.groups and not scores:
        raise InputError(f"criterion {rule.name!r} finds nothing to judge in any group")
    if scores and all(bool((values == values[0]).all()) for values in scores.values()):
        raise InputError(
            f"criterion {rule.name!r} gives all units of every group the same score: "
            "it cannot choose between them"
        )
    return {name: normalise(values, normalisation) for name, values in scores.items()}
