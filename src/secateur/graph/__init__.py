"""Trace a network, describe every dimension, find what must be cut together."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

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
from secateur.graph.input_sizes import find_lengths, pin_size_dependent, resized_inputs
from secateur.graph.mend import Mended, mend
from secateur.graph.module_caches import empty_caches
from secateur.graph.normal_mode import normal_mode
from secateur.graph.passes import FORWARD, Pass
from secateur.graph.paths import Paths, record_another_size, record_paths
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
        reads_mode: whether the network's code may tell train mode from eval mode.
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
    reads_mode: bool = field(repr=False)
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


def _analysed(model: nn.Module, program: Program, base: Flow | None = None) -> _Found:
    """Find groups and pins; with whole groups of convolutions where that frees more.

    ``base`` is what the program's passes gave before its last, one at another size of the inputs.
    """
    size_dependent = False

    def flowed(*, whole_groups: bool) -> tuple[Analysis, Flow]:
        flow = Flow(program, whole_groups=whole_groups)
        unreached: list[str] = []

        def hold(flow: Flow) -> None:
            nonlocal size_dependent
            unreached.extend(hold_unreached(flow, model))
            if base is not None:
                size_dependent |= pin_size_dependent(flow, base)

        flow.run(hold)
        return analyse(flow, unreached), flow

    found, flow = flowed(whole_groups=False)
    reached = reach(found)
    if reached.share < ENOUGH and has_grouped_convolutions(program):
        other, whole = flowed(whole_groups=True)
        if reach(other).stuck < reached.stuck:
            found, flow, reached = other, whole, reach(other)
    found = replace(found, notes=(*found.notes, *reached.notes()))
    return _Found(found, flow, size_dependent)


class _Found(NamedTuple):
    """An analysis, what it comes from, and whether anything depends on the inputs' sizes."""

    analysis: Analysis
    flow: Flow
    size_dependent: bool


def _at_other_sizes(
    model: nn.Module, example_inputs: Any, paths: Paths, found: _Found
) -> tuple[Paths, Analysis]:
    """Trace another size where views may depend on it; where they do, it is a further pass."""
    lengths = find_lengths(found.flow)
    if not lengths:
        return paths, found.analysis
    other = record_another_size(model, paths, resized_inputs(example_inputs, lengths))
    if other is None:
        notes = (*found.analysis.notes, _ONE_SIZE)
        return paths, replace(found.analysis, notes=notes)
    again = _analysed(model, other.joined(), found.flow)
    return (other, again.analysis) if again.size_dependent else (paths, found.analysis)


_ONE_SIZE = (
    "what a view parts depends on the size of the inputs, and the network took no other size that "
    "was tried: proved at the example's size; add another with also=[...]"
)


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
        paths, found = _at_other_sizes(bare, example_inputs, paths, _analysed(bare, paths.joined()))
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
        paths.reads_mode,
        caches | paths.programs[0].caches,
    )
