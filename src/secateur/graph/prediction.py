"""What the algebra says of every traced tensor once units are gone: its shape and positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.graph.axes import Axis
from secateur.graph.flow import Flow
from secateur.graph.program import Ref


class Prediction:
    """The axes of all tensors of a trace, in unit numbers.

    Args:
        flow: the flowed trace.
        number: int [atoms]: the unit that each atom is, 0 for none.
    """

    def __init__(self, flow: Flow, number: NDArray[np.int64]) -> None:
        self._flow = flow
        self._number = number
        self._units: dict[int, Axis] = {}

    def axes(self, key: int) -> list[Axis]:
        """Return the axes of traced tensor number ``key``, as the algebra holds them."""
        return self._flow.dims(Ref(key))

    def described(self, key: int) -> bool:
        """Tell whether a rule described a tensor; a norm's statistics, say, nobody reads."""
        return key not in self._flow.undescribed

    def used(self, key: int) -> bool:
        """Tell whether the values of a tensor reach the outputs, or may."""
        return key in self._flow.used

    def stated(self, node: int) -> dict[int, tuple[Axis, int]]:
        """Return the arguments of an operation that must be the size of an axis, less a number."""
        return self._flow.stated.get(node, {})

    def units(self, axis: Axis) -> Axis:
        """Return ``axis`` with unit numbers in place of atoms; what cannot go is 0."""
        found = self._units.get(id(axis))
        if found is None:
            found = self._number[self._flow.axes.canon(axis)]
            found = found[:, found.any(axis=0)]
            self._units[id(axis)] = found
        return found

    def under(self, alive: NDArray[np.bool_]) -> PlannedAxes:
        """Return the axes' sizes where only the units of ``alive`` (entry 0: none) stay."""
        return PlannedAxes(self, alive)


class PlannedAxes:
    """Sizes and kept positions of traced axes under a plan."""

    def __init__(self, prediction: Prediction, alive: NDArray[np.bool_]) -> None:
        self._prediction = prediction
        self._alive = alive
        self._before: dict[int, NDArray[np.int64]] = {}

    def shape(self, key: int, before: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a traced tensor, of shape ``before`` now, will have."""
        return tuple(
            self.size(axis) if self._prediction.units(axis).shape[1] else size
            for axis, size in zip(self._prediction.axes(key), before, strict=True)
        )

    def size(self, axis: Axis) -> int:
        """Return how many positions of ``axis`` stay."""
        return self.position(axis, len(axis))

    def position(self, axis: Axis, index: int) -> int:
        """Return how many positions before number ``index`` of ``axis`` stay."""
        before = self._before.get(id(axis))
        if before is None:
            kept = self._alive[self._prediction.units(axis)].all(axis=1)
            before = np.concatenate([[0], np.cumsum(kept)])
            self._before[id(axis)] = before
        return int(before[index])

    def removed(self, axis: Axis) -> NDArray[np.int64]:
        """Return the removed units that ``axis`` depends on."""
        units = np.unique(self._prediction.units(axis))
        return units[~self._alive[units]]
