"""Scaling factors on a group's units, placed where the units are read.

A factor multiplies the unit's columns in every weight that reads it. So a unit whose
factor is zero is exactly a unit that the masked reference has removed, and cutting it
changes nothing; and no class or module of the model has to be edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.graph import Graph


@dataclass(frozen=True)
class Reader:
    """A weight that reads a group: ``units`` [size of dim], -1 where it reads none of it."""

    parameter: str
    dim: int
    units: Tensor


def readers(graph: Graph, groups: Iterable[str] | None = None) -> dict[str, tuple[Reader, ...]]:
    """Find the weights that read each group.

    Args:
        graph: of the network.
        groups: which ones; None takes all that can have factors.

    Raises:
        InputError: an unknown group, one that something else than a weight reads
            (a norm over the units, attention scores), or no group at all.
    """
    names = list(graph.by_name) if groups is None else list(groups)
    found: dict[str, tuple[Reader, ...]] = {}
    for name in names:
        if name not in graph.by_name:
            raise InputError(f"groups must be among the graph's, but got {name!r}")
        mine, other = _read(graph, name)
        if mine and not other:
            found[name] = mine
        elif groups is not None:
            raise InputError(
                f"groups must be read by weights alone, but {name!r} is read by "
                f"{other or 'no weight at all'}"
            )
    if not found:
        raise InputError("the graph must have a group that weights alone read, but has none")
    return found


def _read(graph: Graph, name: str) -> tuple[tuple[Reader, ...], str]:
    group, layout = graph.by_name[name], graph.layout
    first = layout.offsets[name]
    slots = {(slot.name, slot.dim): slot.units for slot in group.slots}
    mine: dict[tuple[str, int], Reader] = {}
    for read in layout.consumers:
        axis = layout.axes[read.axis]
        if not bool(np.any((axis >= first) & (axis < first + group.size))):
            continue
        if read.how != "mask" or read.parameter is None or read.parameter not in slots:
            return (), read.op
        parameter, dim = read.parameter
        mine[read.parameter] = Reader(parameter, dim, torch.from_numpy(slots[read.parameter]))
    return tuple(mine.values()), ""


def scaled(
    model: nn.Module,
    places: Mapping[str, tuple[Reader, ...]],
    factors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the weights that read groups, times the groups' factors; gradients pass to both."""
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for name, where in places.items():
        for reader in where:
            weight = found.get(reader.parameter, parameters[reader.parameter])
            found[reader.parameter] = weight * _spread(factors[name], reader, weight)
    return found


def _spread(factors: Tensor, reader: Reader, weight: Tensor) -> Tensor:
    units = reader.units.to(weight.device)
    along = torch.where(units >= 0, factors[units.clamp_min(0)], torch.ones_like(factors[:1]))
    return along.reshape(-1, *[1] * (weight.dim() - 1 - reader.dim)).to(weight.dtype)


def fold(
    model: nn.Module,
    places: Mapping[str, tuple[Reader, ...]],
    factors: Mapping[str, Tensor],
) -> None:
    """Multiply the factors into the weights, in place: the network computes the same without."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in scaled(model, places, factors).items():
            parameters[name].copy_(weight)


def zeros(factors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """List the units whose factor is exactly zero; one of each group stays."""
    found = {}
    for name, values in factors.items():
        gone = (values == 0).nonzero().squeeze(1).tolist()
        gone = gone[: len(values) - 1]
        if gone:
            found[name] = gone
    return found
