"""Scores by the name of a criterion, those of reconstruction included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import Progress
from torch import Tensor

from secateur.calibration import Batches
from secateur.criteria import CRITERIA, Criterion, score
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.recovery import reconstruction_scores

RECONSTRUCTION = "reconstruction"
"""The criterion that judges a unit by what least squares cannot make up for without it.

It is none of the registry's, because it takes units away one after the other.
"""


def criterion_name(criterion: str | Criterion) -> str:
    """Return the full name of a criterion of units.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(criterion, Criterion):
        return criterion.name
    return criterion if criterion == RECONSTRUCTION else CRITERIA[criterion].name


def judge(
    graph: Graph,
    criterion: str | Criterion,
    calibration: Batches | None,
    *,
    seed: int = 0,
    scoring: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Score the units of a graph; ``scoring`` are further arguments of :func:`secateur.score`.

    Raises:
        InputError: an unknown criterion, or one that needs data without any.
    """
    if criterion != RECONSTRUCTION:
        more = scoring or {}
        return score(graph, criterion, calibration, seed=seed, progress=progress, **more)
    if calibration is None:
        raise InputError("calibration must be given with criterion 'reconstruction', but got None")
    return reconstruction_scores(graph, calibration)
