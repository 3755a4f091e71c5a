"""What a network offers to pruning, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from secateur.graph import Graph, Group, Slot, trace
from secateur.study.stages import EXAMPLES, build


def inspected(
    reference: str, arguments: Mapping[str, Any], weights: str | None, shape: Sequence[int]
) -> dict[str, Any]:
    """Trace a network and describe its groups and what is pinned.

    Args:
        reference: ``package.module:callable`` or ``file.py:callable``.
        arguments: keyword arguments of the callable.
        weights: a safetensors file, or None.
        shape: of one sample, without the batch dimension.

    Returns:
        JSON-ready: ``model``, ``input``, ``params``, ``macs``, ``groups``, ``pinned``, ``notes``.
        A group's ``slots`` are all of its places; ``out_of`` and ``into`` name the modules whose
        weights make and read its units; ``params_share`` and ``macs_share`` go when one unit
        stays.

    Raises:
        InputError: the model cannot be built, or the weights do not fit.
        TraceError: the model fails on an input of that shape.
    """
    model = build(reference, arguments, weights, seed=0)
    graph = trace(model, torch.zeros(EXAMPLES, *shape))
    whole = graph.cost()
    return {
        "model": reference,
        "input": "x".join(str(side) for side in shape),
        "params": whole.params,
        "macs": whole.macs,
        "groups": [_group(graph, group) for group in graph.groups],
        "pinned": [
            {
                "name": pin.name,
                "dim": pin.dim,
                "where": f"{pin.name}[{pin.dim}]",
                "reason": pin.reason,
            }
            for pin in graph.pinned
        ],
        "notes": list(graph.notes),
    }


def _group(graph: Graph, group: Group) -> dict[str, Any]:
    whole, least = graph.cost(), graph.cost({group.name: tuple(range(1, group.size))})
    sides = [side for slot in group.slots if (side := _side(graph.model, slot)) is not None]
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "slots": [f"{slot.name}[{slot.dim}]" for slot in group.slots],
        "out_of": list(dict.fromkeys(owner for owner, out in sides if out)),
        "into": list(dict.fromkeys(owner for owner, out in sides if not out)),
        "params_share": (whole.params - least.params) / max(whole.params, 1),
        "macs_share": (whole.macs - least.macs) / max(whole.macs, 1),
    }


def _side(model: nn.Module, slot: Slot) -> tuple[str, bool] | None:
    """Return the module whose weight holds the slot, and whether it makes the units there."""
    owner, _, name = slot.name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, name)
    if tensor.ndim < 2:
        return None
    makes = 1 if isinstance(module, _ConvTransposeNd | nn.Embedding) else 0
    return owner or name, slot.dim == makes
