"""Sizes that a model's own methods read and its forward pass does not, kept true by a plan.

``num_features``, ``hidden``, ``embed_dim``: the trace does not see them, yet whoever gives the
pruned network a new head, or asks it how wide it is, does. Where the code that constructs the
network sizes layers by such an attribute, it takes the new size of those layers.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

from secateur.errors import TraceError
from secateur.graph import Graph
from secateur.graph.attributes import named_field, owner_of, set_held
from secateur.graph.construction import Home, SizeAttribute, equal_fields, parts_of, sized_by
from secateur.graph.copies import cloned, copy_model, integer_attributes, meta_like, named_tensors
from secateur.graph.module_caches import empty_caches
from secateur.graph.module_tree import modules_of
from secateur.graph.program import Program
from secateur.graph.tracing import record
from secateur.plan import Plan

Place: TypeAlias = "tuple[str, int]"
"""A tensor's name and dimension."""


def keep_sizes(graph: Graph, plan: Plan) -> Plan:
    """Return ``plan`` with the new values of attributes that say a size and nothing computes with.

    Those whose dimensions come out at different sizes stay, and the plan's notes name them.
    """
    if not plan.cuts:
        return plan
    after = {name: list(tensor.shape) for name, tensor in named_tensors(graph.model)}
    for name, dims in plan.cuts.items():
        for dim, positions in dims.items():
            if name in after:
                after[name][dim] -= len(positions)
    values: dict[str, int] = {}
    unclear: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for found in size_attributes(graph):
        sizes = {after[name][dim] for name, dim in found.places}
        if sizes == {found.value}:
            continue
        if len(sizes) == 1:
            values[found.path] = sizes.pop()
        else:
            unclear.setdefault((found.value, tuple(sorted(sizes))), []).append(found.path)
    notes = [_told(paths, *sizes) for sizes, paths in unclear.items()]
    return dataclasses.replace(
        plan, attributes={**plan.attributes, **values}, notes=(*plan.notes, *notes)
    )


def _told(paths: list[str], value: int, sizes: tuple[int, ...]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return (
        f"{', '.join(paths[:3])}{more} {'stay' if len(paths) > 1 else 'stays'} {value}: what was "
        f"of that size has {' and '.join(map(str, sizes))} now"
    )


def size_attributes(graph: Graph) -> tuple[SizeAttribute, ...]:
    """Return the attributes that size layers by the model's code and that its pass does not read.

    Found once for a graph.
    """
    if not graph.size_attributes:
        graph.size_attributes.append(tuple(_unread(graph, _find(graph))))
    return graph.size_attributes[0]


def _find(graph: Graph) -> list[SizeAttribute]:
    model = graph.model
    modules = dict(modules_of(model))
    of_size: dict[int, list[Place]] = defaultdict(list)
    for name, tensor in named_tensors(model):
        for dim, size in enumerate(tensor.shape):
            of_size[size].append((name, dim))
    ruled = {str(attr) for attr in graph.layout.attributes}
    parts = {name: parts_of(module) for name, module in modules.items()}
    found = []
    for path, value in integer_attributes(model).items():
        home, rest = owner_of(modules, path)
        # Layers of PyTorch's own declare the sizes of their tensors; see ``declare_sizes``.
        if (
            value not in of_size
            or value < 2
            or path in ruled
            or type(modules[home]).__module__.startswith("torch.")
        ):
            continue
        below = {name: module for name, module in modules.items() if _inside(name, home)}
        name, field = named_field(rest)
        users = below if field else {home: modules[home]}
        fields = () if field else equal_fields(type(modules[home]), name)
        found_by = [
            (user, home)
            for user, module in users.items()
            for home in sized_by(type(module), name, parts[user], field=field)
        ] or [
            (user, home)
            for user, module in below.items()
            for other in fields
            for home in sized_by(type(module), other, parts[user], field=True)
        ]
        # What the code makes by its own hand is of that size; what other code makes of it, and
        # what lies elsewhere, may be of that size by chance.
        homes = [
            home._replace(name=_join(user, home.name)) for user, home in found_by if home.name
        ] or [home._replace(name=user) for user, home in found_by]
        places = _below(of_size[value], [home for home in homes if not home.by_others])
        places = places or _below(of_size[value], homes)
        if places:
            found.append(SizeAttribute(path, value, places))
    return found


def _below(places: Sequence[Place], homes: Sequence[Home]) -> tuple[Place, ...]:
    """Return the places in homes; where a home's dimension is known, those of that dimension."""
    return tuple(
        (name, dim)
        for name, dim in places
        if any(home.dim in (None, dim) and _inside(name, home.name) for home in homes)
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _unread(graph: Graph, found: list[SizeAttribute]) -> list[SizeAttribute]:
    """Leave out what the forward pass computes with: a change of it would change the network."""
    if not found or _runs_alike(graph, found):
        return found
    if len(found) == 1:
        return []
    half = len(found) // 2
    return [*_unread(graph, found[:half]), *_unread(graph, found[half:])]


def _runs_alike(graph: Graph, changed: list[SizeAttribute]) -> bool:
    """Tell whether the dense network runs the same with other values in these attributes."""
    real = graph.program.way == "real"
    twin = copy_model(graph.model, lambda _, t: cloned(t) if real else meta_like(t))
    empty_caches(twin, graph.caches)
    set_held(twin, {found.path: 2 * found.value for found in changed})
    try:
        program = record(twin, graph.example_inputs)
    except TraceError:
        return False
    return _operations(program) == _operations(graph.program)


def _operations(program: Program) -> list[Any]:
    nodes = [(node.op, node.args, node.kwargs) for node in program.nodes]
    return [nodes, [info.shape for info in program.tensors], program.numbers]
