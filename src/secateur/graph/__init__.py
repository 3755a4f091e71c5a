"""Trace a network, describe every dimension, find what must be cut together."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from secateur.graph import (
    rules_experts,
    rules_layers,
    rules_lookup,
    rules_reductions,
    rules_sequences,
    rules_slices,
    rules_spatial,
    rules_views,
    rules_windows,
)
from secateur.graph.construction import SizeAttribute
from secateur.graph.cost import Cost, Sizes, alive_units, check_removed, cost
from secateur.graph.flow import Flow
from secateur.graph.groups import Analysis, Group, Layout, Pinned, Removed, Slot, analyse
from secateur.graph.mend import Mended, mend
from secateur.graph.normal_mode import normal_mode
from secateur.graph.program import Program
from secateur.graph.reach import ENOUGH, reach
from secateur.graph.rules_layers import has_grouped_convolutions
from secateur.graph.tracing import record
from secateur.graph.training import TrainOnly, couple, train_only

__all__ = ["Cost", "Graph", "Group", "Mended", "Pinned", "Slot", "trace"]

_RULE_ROOMS = (
    rules_experts,
    rules_layers,
    rules_lookup,
    rules_reductions,
    rules_sequences,
    rules_slices,
    rules_spatial,
    rules_views,
    rules_windows,
)


@dataclass(frozen=True)
class Graph:
    """A traced network: its groups, what is pinned, and the costs of any plan.

    Attributes:
        model: the network that was traced, as it was.
        groups: what must be cut together, in the order of the parameters.
        pinned: dimensions that must not be cut, with the reason.
        notes: what a user should know of the trace.
        layout: the arrays that plans are computed from.
        program: the traced operations.
        example_inputs: what the network was traced with.
        size_attributes: attributes that say a size and that the pass does not read, once found.
    """

    model: nn.Module = field(repr=False)
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    notes: tuple[str, ...]
    layout: Layout = field(repr=False)
    program: Program = field(repr=False)
    example_inputs: Any = field(repr=False)
    size_attributes: list[tuple[SizeAttribute, ...]] = field(
        default_factory=list, repr=False, compare=False
    )

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    def cost(self, removed: Removed | None = None) -> Cost:
        """Count parameters and MACs of one sample with ``removed`` units gone.

        Raises:
            InputError: ``removed`` names what the graph does not have.
        """
        check_removed(self.groups, removed or {})
        return cost(self.layout, self.sizes(removed))

    def sizes(self, removed: Removed | None = None) -> Sizes:
        """Return the sizes of all axes with ``removed`` units gone."""
        return Sizes(self.layout, alive_units(self.layout, removed or {}))

    def mend(self, removed: Removed) -> Mended:
        """Give back what the model's own code does not allow to go.

        Args:
            removed: units by group, the least important first.

        Raises:
            InputError: ``removed`` names what the graph does not have.
        """
        check_removed(self.groups, removed)
        return mend(self.layout, self.groups, removed)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Hold the garbage collector: it would walk many small objects that all stay, again and again.

    On EfficientNet-B7 that is a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@normal_mode()
def _analysed(program: Program, learnt: TrainOnly | None) -> Analysis:
    """Find groups and pins; with whole groups of convolutions where that frees more."""

    def flowed(*, whole_groups: bool) -> Analysis:
        flow = Flow(program, whole_groups=whole_groups)
        flow.run(None if learnt is None else partial(couple, learnt=learnt))
        return analyse(flow)

    found = flowed(whole_groups=False)
    reached = reach(found)
    if reached.share < ENOUGH and has_grouped_convolutions(program):
        other = flowed(whole_groups=True)
        if reach(other).stuck < reached.stuck:
            found, reached = other, reach(other)
    return replace(found, notes=(*found.notes, *reached.notes()))


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """Trace ``model`` and find what must be cut together.

    Args:
        model: any network; it is left exactly as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        InputError: the arguments are of the wrong kind.
        TraceError: the model fails on its example input.
    """
    with _uncollected():
        program = record(model, example_inputs)
        found = _analysed(program, train_only(model, example_inputs, program))
    return Graph(
        model, found.groups, found.pinned, found.notes, found.layout, program, example_inputs
    )
