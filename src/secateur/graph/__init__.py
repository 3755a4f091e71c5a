"""Trace a network, describe every dimension, find what must be cut together."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from secateur.graph.cache_search import find_caches
from secateur.graph.construction import SizeAttribute
from secateur.graph.copies import copy_model
from secateur.graph.cost import Cost, Sizes, alive_units, check_removed, cost
from secateur.graph.flow import Flow
from secateur.graph.groups import Analysis, Group, Layout, Pinned, Removed, Slot, analyse
from secateur.graph.mend import Mended, mend
from secateur.graph.module_caches import empty_caches
from secateur.graph.normal_mode import normal_mode
from secateur.graph.passes import FORWARD, Pass
from secateur.graph.paths import record_paths
from secateur.graph.prediction import Prediction
from secateur.graph.program import Program
from secateur.graph.reach import ENOUGH, reach
from secateur.graph.rules_layers import has_grouped_convolutions
from secateur.graph.tracing import check_inputs
from secateur.graph.unreached import hold_unreached

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
        program: the operations of the example input's pass in eval mode.
        example_inputs: what the network was traced with.
        prediction: what the algebra says of every traced tensor under a plan.
        caches: attributes that keep what the network computes again without them, and what they
            are before their first use: "empty", "None" or "absent".
        size_attributes: attributes that say a size and that the pass does not read, once found.
        passes: every pass that was traced, with the number of the distinct one that it equals.
        programs: the operations of the distinct passes.
    """

    model: nn.Module = field(repr=False)
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    notes: tuple[str, ...]
    layout: Layout = field(repr=False)
    program: Program = field(repr=False)
    example_inputs: Any = field(repr=False)
    passes: tuple[tuple[Pass, int], ...] = field(repr=False)
    programs: tuple[Program, ...] = field(repr=False)
    prediction: Prediction = field(repr=False)
    caches: dict[str, str] = field(default_factory=dict, repr=False)
    size_attributes: list[tuple[SizeAttribute, ...]] = field(
        default_factory=list, repr=False, compare=False
    )

    @property
    def also(self) -> tuple[Any, ...]:
        """The further examples that it was traced with."""
        return tuple(
            one.inputs if one.method == FORWARD else (one.method, one.inputs)
            for one, _ in self.passes
            if one.example and not one.training
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


def _analysed(model: nn.Module, program: Program) -> Analysis:
    """Find groups and pins; with whole groups of convolutions where that frees more."""

    def flowed(*, whole_groups: bool) -> Analysis:
        flow = Flow(program, whole_groups=whole_groups)
        unreached: list[str] = []
        flow.run(lambda flow: unreached.extend(hold_unreached(flow, model)))
        return analyse(flow, unreached)

    found = flowed(whole_groups=False)
    reached = reach(found)
    if reached.share < ENOUGH and has_grouped_convolutions(program):
        other = flowed(whole_groups=True)
        if reach(other).stuck < reached.stuck:
            found, reached = other, reach(other)
    return replace(found, notes=(*found.notes, *reached.notes()))


@normal_mode()
def trace(model: nn.Module, example_inputs: Any, also: Sequence[Any] = ()) -> Graph:
    """Trace ``model`` and find what must be cut together.

    Every example is traced in eval mode and in train mode (dropout off, batch norm by its running
    statistics), and what any of these passes couples is coupled.

    Args:
        model: any network; it is left exactly as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        also: further examples, for code that takes another path by its input, its arguments or
            the method called: each in the same forms, or ``("method", inputs)``.

    Raises:
        InputError: the arguments are of the wrong kind.
        TraceError: the model fails on an example.
    """
    with _uncollected():
        check_inputs(model, example_inputs)
        caches = find_caches(model, example_inputs)
        bare = model
        if caches:
            bare = copy_model(model, lambda _, tensor: tensor)
            empty_caches(bare, caches)
        paths = record_paths(bare, example_inputs, also)
        found = _analysed(bare, paths.joined())
    return Graph(
        model,
        found.groups,
        found.pinned,
        (*paths.notes, *found.notes),
        found.layout,
        paths.programs[0],
        example_inputs,
        paths.passes,
        paths.programs,
        found.prediction,
        caches | paths.programs[0].caches,
    )
