"""Write into a plan what the configs of Hugging Face models say after the cut."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from secateur.cutting import cut
from secateur.graph import Graph
from secateur.graph.copies import copy_model, meta_like, named_tensors
from secateur.graph.tracing import record
from secateur.huggingface.configs import (
    Place,
    blueprint,
    changed,
    configs_of,
    integers,
    plain_of,
    pretrained_models,
    show,
)
from secateur.huggingface.solving import solve
from secateur.plan import Plan


def keep_configs(graph: Graph, plan: Plan) -> Plan:
    """Return ``plan`` with the configs' new integers among its attributes.

    A config stays as it is where no config of its class makes a model of the cut's sizes,
    or where the model's forward pass reads the numbers that would change; the plan's
    notes then say why.
    """
    if not plan.cuts:
        return plan
    notes: list[str] = []
    values: dict[str, int] = {}
    for path, module in pretrained_models(graph.model):
        found, reason = _new_values(graph, plan, path, module)
        values |= found
        if reason:
            where = f"{path}.config" if path else "config"
            notes.append(f"{where} stays as it was: {reason}")
    if values:
        kept = dataclasses.replace(plan, attributes={**plan.attributes, **values})
        if not _read(graph) & {_leaf(path) for path in values} or _runs_alike(graph, plan, kept):
            plan = kept
        else:
            notes.append("config stays as it was: the forward pass computes with its sizes")
    return dataclasses.replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _new_values(graph: Graph, plan: Plan, path: str, module: Any) -> tuple[dict[str, int], str]:
    """Return the integers to set, by path, or why there are none."""
    prefix = f"{path}." if path else ""
    of = blueprint(module)
    plain = plain_of(module.config)
    solution = solve(of, plain, _sizes_after(graph, plan, prefix, module))
    if solution.reason or not solution.values:
        return {}, solution.reason
    rebuilt = of.model(changed(plain, solution.values))
    values: dict[str, int] = {}
    for where, config in configs_of(module).items():
        owner, _, _ = where.rpartition("config")
        twin = rebuilt.get_submodule(owner.rstrip("."))
        before, after = integers(plain_of(config)), integers(plain_of(twin.config))
        values |= {
            f"{prefix}{where}.{show(field)}": value
            for field, value in after.items()
            if before.get(field) != value
        }
    return values, ""


def _sizes_after(graph: Graph, plan: Plan, prefix: str, module: nn.Module) -> dict[Place, int]:
    """Return the sizes of a part's tensors after the cut, and of the attributes in use."""
    first = {id(tensor): name for name, tensor in named_tensors(graph.model)}
    sizes: dict[Place, int] = {}
    for name, tensor in named_tensors(module):
        cuts = plan.cuts.get(first[id(tensor)], {})
        for dim, size in enumerate(tensor.shape):
            sizes[name, dim] = size - len(cuts.get(dim, ()))
    used = {str(attr): value for attr, value in graph.layout.attributes.items()}
    for name, value in (used | plan.attributes).items():
        if name.startswith(prefix):
            sizes[name.removeprefix(prefix), -1] = value
    return sizes


def _leaf(path: str) -> str:
    """Return the field's own name: hidden_sizes of config.hidden_sizes[1]."""
    return path.rpartition(".")[2].partition("[")[0]


def _read(graph: Graph) -> set[str]:
    """Return the names that the forward pass reads from the configs."""
    twin = copy_model(
        graph.model, lambda _, t: t if graph.program.way == "real" else meta_like(t), apart=True
    )
    found: set[str] = set()
    for config in configs_of(twin).values():
        config.__class__ = _watched(type(config), found)
    record(twin, graph.example_inputs)
    return found


def _watched(kind: Any, found: set[str]) -> Any:
    """Return a config class that notes which of its fields are read."""

    def get(self: Any, name: str) -> Any:
        found.add(kind.attribute_map.get(name, name))
        return kind.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": get})


def _runs_alike(graph: Graph, plan: Plan, kept: Plan) -> bool:
    """Tell whether the forward pass is the same under both plans: nothing reads the config."""
    programs = []
    for each in (plan, kept):
        if graph.program.way == "real":
            twin = cut(graph.model, each)
        else:
            twin = cut(copy_model(graph.model, lambda _, t: meta_like(t)), each, inplace=True)
        programs.append(record(twin, graph.example_inputs))
    one, two = ([(n.op, n.args, n.kwargs) for n in program.nodes] for program in programs)
    return one == two
