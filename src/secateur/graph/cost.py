"""Sizes, parameters and MACs of any plan, counted without cutting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError
from secateur.graph.groups import Group, Layout, Removed


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates of one sample."""

    params: int
    macs: int


def check_removed(groups: Sequence[Group], removed: Removed) -> None:
    """Refuse units that do not exist and the removal of a whole group.

    Raises:
        InputError: an unknown group, a unit out of range, or no unit left.
    """
    sizes = {group.name: group.size for group in groups}
    for name, units in removed.items():
        if name not in sizes:
            raise InputError(f"removed names the group {name!r}, which the graph does not have")
        wrong = [u for u in units if not 0 <= u < sizes[name]]
        if wrong:
            raise InputError(
                f"units of group {name!r} must be in 0..{sizes[name] - 1}, but got {wrong[0]}"
            )
        if len(set(units)) >= sizes[name]:
            raise InputError(
                f"removed must leave a unit of group {name!r}, but takes all {sizes[name]}"
            )


def alive_units(layout: Layout, removed: Removed) -> NDArray[np.bool_]:
    """Return bool [1 + units]: which units stay; entry 0 stands for "none" and stays."""
    alive = np.ones(layout.units + 1, dtype=bool)
    for name, units in removed.items():
        if len(units):
            alive[layout.offsets[name] + np.asarray(units, dtype=np.int64)] = False
    return alive


class Sizes:
    """Sizes of the axes under a set of kept units, computed when asked for."""

    def __init__(self, layout: Layout, alive: NDArray[np.bool_]) -> None:
        self._layout = layout
        self._alive = alive
        self._found: dict[int, int] = {}

    def __getitem__(self, axis: int) -> int:
        size = self._found.get(axis)
        if size is None:
            size = int(self.kept(axis).sum())
            self._found[axis] = size
        return size

    def kept(self, axis: int) -> NDArray[np.bool_]:
        """Return bool [size]: which positions of an axis survive."""
        array = self._layout.axes[axis]
        return np.asarray(self._alive[array].all(axis=1), dtype=np.bool_)


def cost(layout: Layout, sizes: Sizes) -> Cost:
    """Count parameters and MACs for one sample of the example input."""
    params = sum(math.prod(sizes[axis] for axis in axes) for axes in layout.parameters.values())
    macs = sum(factor * math.prod(sizes[axis] for axis in axes) for _, factor, axes in layout.work)
    return Cost(params, macs // layout.batch)
