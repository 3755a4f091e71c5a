"""Weights that other tensors make: which parameter holds a weight's zeros, if any does.

Weight norm, spectral norm and ``torch.nn.utils.prune`` compute a layer's weight from parameters.
A parameter carries the weight's zeros where the weight is zero exactly at its zeros; that is tried
out on the layer itself, so that a parametrisation of anyone's own counts, too.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor | None:
    """Return the layer's weight as its parameters make it now; None if it has none."""
    refresh(module)
    weight = getattr(module, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def refresh(module: nn.Module) -> None:
    """Compute the weight where PyTorch's own hooks do so before a forward pass."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            with torch.no_grad():
                hook(module, ())


def zeros_carrier(module: nn.Module) -> nn.Parameter | None:
    """Return the parameter whose zeros are those of the layer's weight.

    Args:
        module: a layer without a parameter called "weight".
    """
    weight = weight_of(module)
    if weight is None:
        return None
    for name, parameter in module.named_parameters():
        if parameter.shape == weight.shape and _carries(module, name):
            return parameter
    return None


def undivided_dims(module: nn.Module, carrier: nn.Parameter) -> tuple[int, ...]:
    """Return the dimensions of the parameter of which no slice may be zero altogether.

    The weight would then be no number: it is divided by the slice's length.
    """
    name = next(name for name, one in module.named_parameters() if one is carrier)
    dims = []
    for dim in range(carrier.dim()):
        gone = torch.zeros_like(carrier, dtype=torch.bool)
        gone.select(dim, 0).fill_(True)
        weight = _without(module, name, gone)
        if not bool(torch.isfinite(weight).all()):
            dims.append(dim)
    return tuple(dims)


def _carries(module: nn.Module, name: str) -> bool:
    """Set half of a parameter to zero and see whether that half of the weight is."""
    shape = dict(module.named_parameters())[name].shape
    draw = torch.Generator().manual_seed(0)
    gone = torch.rand(shape, generator=draw) < 0.5
    before = _without(module, name, torch.zeros_like(gone))
    after = _without(module, name, gone)
    gone = gone.to(after.device)
    there = (before != 0) & ~gone
    # A slice that went altogether may be no number: see undivided_dims.
    zero = not bool(after[gone].nan_to_num(0).any())
    return zero and bool((after[there] != 0).all())


def _without(module: nn.Module, name: str, gone: Tensor) -> Tensor:
    """Return the weight of a copy of the layer, a parameter's elements set to zero."""
    twin = copy.deepcopy(_detached(module)).eval()
    parameter = dict(twin.named_parameters())[name]
    with torch.no_grad():
        parameter.masked_fill_(gone.to(parameter.device), 0)
    weight = weight_of(twin)
    assert weight is not None
    return weight


def _detached(module: nn.Module) -> nn.Module:
    """Return the layer with computed tensors that can be copied."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and not value.is_leaf:
            setattr(module, name, value.detach())
    return module
