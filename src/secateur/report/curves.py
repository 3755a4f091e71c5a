"""The lines of a comparison: its networks by criterion and scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.results import Point


@dataclass(frozen=True)
class Curve:
    """The compared networks of one criterion and scope, by rising sparsity."""

    criterion: str
    scope: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """How the legend calls it."""
        return f"{self.criterion}, {self.scope}"


def curves(points: Sequence[Point]) -> tuple[Curve, ...]:
    """Group ``points`` by criterion and scope, in the order of their first appearance."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.criterion, point.scope), []).append(point)
    return tuple(
        Curve(criterion, scope, tuple(sorted(members, key=lambda one: one.sparsity)))
        for (criterion, scope), members in found.items()
    )
