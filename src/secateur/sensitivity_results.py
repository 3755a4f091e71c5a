"""Records of a sensitivity run: what each group's cut alone does; plain data, no torch.

A :class:`Sensitivity` is the content of ``sensitivity.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.results import Quality, load_record, save_record

FORMAT = 1
FILE = "sensitivity.json"


@dataclass(frozen=True)
class GroupEntry:
    """One group: its units, and the shares of all MACs and parameters that go when one stays."""

    name: str
    kind: str
    size: int
    macs_share: float
    params_share: float


@dataclass(frozen=True)
class Cell:
    """One group cut alone.

    Attributes:
        group: its name.
        sparsity: that was asked.
        removed: units that went.
        accuracy: on validation.
        loss: on validation.
    """

    group: str
    sparsity: float
    removed: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Allocation:
    """One way to divide a target over the groups, and what it came to on validation.

    Attributes:
        rule: "sensitivity", "local" or "global".
        removed: units by group.
        macs: share that is left.
        params: share that is left.
        predicted: rise of the loss that the curves predict, added up.
        quality: on validation.
    """

    rule: str
    removed: dict[str, int]
    macs: float
    params: float
    predicted: float
    quality: Quality


@dataclass(frozen=True)
class Sensitivity:
    """All that was asked and found.

    Attributes:
        title: of the report.
        asked: the settings.
        command: how to repeat it.
        environment: what the figures were taken with.
        dense: the dense network on validation.
        groups: in the order of the network.
        sparsities: in rising order.
        cells: every group at every sparsity.
        max_error: largest relative error of a cut against its masked reference.
        allocations: divisions of the target, where one was asked for.
        notes: for the reader.
    """

    title: str
    asked: dict[str, Any]
    command: str
    environment: dict[str, str]
    dense: Quality
    groups: tuple[GroupEntry, ...]
    sparsities: tuple[float, ...]
    cells: tuple[Cell, ...]
    max_error: float
    allocations: tuple[Allocation, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def at(self, group: str, sparsity: float) -> Cell:
        """Return one cell."""
        return next(c for c in self.cells if (c.group, c.sparsity) == (group, sparsity))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return, of every group, units removed and rise of the loss."""
        found: dict[str, list[tuple[int, float]]] = {entry.name: [] for entry in self.groups}
        for cell in self.cells:
            found[cell.group].append((cell.removed, cell.loss - self.dense.loss))
        return found


def save_sensitivity(found: Sensitivity, path: Path) -> None:
    """Write a record as JSON, whole or not at all."""
    save_record(found, path)


def load_sensitivity(path: Path) -> Sensitivity:
    """Read a record back.

    Raises:
        CheckpointError: the file is missing, half-written or of another format.
    """
    return load_record(Sensitivity, path, FORMAT)
