"""What a network offers to pruning, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from secateur.errors import InputError
from secateur.graph import Graph, Group, Slot, trace
from secateur.graph.attributes import owner_of
from secateur.models import load_inputs, load_model
from secateur.study.stages import EXAMPLES, build


def inspected(
    reference: str,
    arguments: Mapping[str, Any],
    weights: str | None,
    shape: Sequence[int] | None = None,
    *,
    tokens: int | None = None,
    inputs: str | None = None,
    meta: bool = False,
) -> dict[str, Any]:
    """Trace a network and describe its groups and what is pinned.

    The example input is told by exactly one of ``shape``, ``tokens`` and ``inputs``.

    Args:
        reference: ``package.module:callable``, ``file.py:callable`` or ``hf:NAME``.
        arguments: keyword arguments of the callable.
        weights: a safetensors file, or None.
        shape: of one sample, without the batch dimension.
        tokens: length of a sequence of token numbers.
        inputs: ``package.module:callable`` or ``file.py:callable`` that returns a tensor, a
            tuple of arguments or a dict of keyword arguments.
        meta: build the network without its weights; needs next to no memory.

    Returns:
        JSON-ready: ``model``, ``input``, ``params``, ``macs``, ``groups``, ``pinned``, ``notes``.
        A group's ``slots`` are all of its places; ``out_of`` and ``into`` name the modules whose
        weights make and read its units; ``params_share`` and ``macs_share`` go when one unit
        stays.

    Raises:
        InputError: the model cannot be built, the weights do not fit, or not exactly one
            example input is given.
        TraceError: the model fails on that input.
    """
    given = {"input": shape, "tokens": tokens, "inputs": inputs}
    told = [name for name, value in given.items() if value is not None]
    if len(told) != 1:
        raise InputError(
            "exactly one of input, tokens and inputs must be given, "
            f"but got {', '.join(told) or 'none'}"
        )
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens must be at least 1, but got {tokens}")
    if meta and weights is not None:
        raise InputError(f"weights must not be given with meta, but got {weights!r}")
    example = load_inputs(inputs) if inputs is not None else None
    if meta:
        model = load_model(reference, arguments, meta=True)
    else:
        model = build(reference, arguments, weights, seed=0)
    if shape is not None:
        example = torch.zeros(EXAMPLES, *shape)
    elif tokens is not None:
        example = token_inputs(model, tokens)
    graph = trace(model, example)
    whole = graph.cost()
    said = "x".join(str(side) for side in shape or ())
    return {
        "model": reference,
        "input": said or inputs or f"{tokens} tokens",
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


def token_inputs(model: nn.Module, length: int) -> Any:
    """Return token numbers in the form that ``model`` takes them.

    A model whose forward pass knows ``input_ids`` gets keyword arguments: the decoder's
    tokens where it has a decoder of its own, and no cache, which would be an output and pin
    what it holds. Any other gets one tensor [2, length].
    """
    config = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
        size = min(tables, default=2)
    ids = (torch.arange(EXAMPLES * length) % size).reshape(EXAMPLES, length)
    known = signature(model.forward).parameters
    if "input_ids" not in known:
        return ids
    found: dict[str, Any] = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = ids
    if "use_cache" in known:
        found["use_cache"] = False
    return found


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
    modules = dict(model.named_modules())
    owner, name = owner_of(modules, slot.name)
    module = modules[owner]
    tensor = module._parameters.get(name, module._buffers.get(name))
    if tensor is None or tensor.ndim < 2:
        return None
    makes = 1 if isinstance(module, _ConvTransposeNd | nn.Embedding) else 0
    return owner or name, slot.dim == makes
