"""A masked network made by hand, in train mode too, by none of the package's code.

What is known of a plan is which positions of which parameter go. All of them are zero, in every
dimension, so that a removed unit neither makes nor reads anything but zeros, whatever runs in
between: dense layers, convolutions, products, gates, attention. What counts the units (a norm, a
mean, a choice among them) is run on those that stay, module by module; :func:`untold` names what
nobody has written that for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from exactness import LIMIT, UNCHANGED, relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

Cuts = Mapping[str, Mapping[int, Sequence[int]]]
"""Removed positions by the name of a tensor and a dimension, as ``Plan.cuts``."""


def hand_masked(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Return a copy of ``model`` that computes as if the removed positions were not there."""
    masked = copy.deepcopy(model)
    for name, module in masked.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            _mask_made_weight(module, f"{name}.parametrizations.weight.", cuts)
        gone = _own_cuts(module, name, cuts)
        if gone and _counts_units(module):
            module.forward = _on_kept(module, gone)  # type: ignore[method-assign]
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            _blank(parameter, cuts.get(name, {}))
    return masked


def _mask_made_weight(module: Any, prefix: str, cuts: Cuts) -> None:
    """Mask the weight that a convolution makes: what makes it, such as a norm, stays whole."""
    weight = module.weight.detach().clone()
    for name, dims in cuts.items():
        if name.startswith(prefix):
            _blank(weight, dims)
    module.forward = lambda x: module._conv_forward(x, weight, module.bias)


def _blank(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> None:
    for dim, positions in dims.items():
        tensor.index_fill_(dim, torch.tensor(list(positions), dtype=torch.long), 0.0)


def untold(model: nn.Module) -> str:
    """Return the class of a module that counts units without a weight to tell which; "" if none."""
    for module in model.modules():
        if _counts_units(module) and not any(True for _ in module.parameters(recurse=False)):
            return type(module).__name__
    return ""


def training(model: nn.Module) -> nn.Module:
    """Return a copy in train mode, dropout off, batch norms by their running statistics."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        still = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if still or "Drop" in type(module).__name__ or "StochasticDepth" in type(module).__name__:
            module.eval()
    return twin


class NoDropout(TorchFunctionMode):
    """Switches off the dropout that code asks for by a function."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (functional.dropout, torch.dropout):
            return args[0] if args else kwargs["input"]
        if func is functional.multi_head_attention_forward:
            kwargs["training"] = False
        if func is functional.scaled_dot_product_attention:
            args, kwargs = args[:4], {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


def train_outputs(model: nn.Module, call: Callable[[nn.Module], list[Tensor]]) -> list[Tensor]:
    """Return the outputs of a network in train mode, without dropout."""
    torch.manual_seed(0)
    np.random.seed(0)  # transformers draws the layers to drop so
    with torch.no_grad(), NoDropout():
        return call(training(model))


def train_problem(
    model: nn.Module, pruned: nn.Module, cuts: Cuts, call: Callable[[nn.Module], list[Tensor]]
) -> str:
    """Say how a cut network in train mode is not the dense one masked by hand; "" where it is."""
    wanted = train_outputs(hand_masked(model, cuts), call)
    error = relative_error(train_outputs(pruned, call), wanted)
    if not error <= LIMIT:
        kind = untold(model)
        return f"no reference for {kind}" if kind else f"outputs differ by {error:.1e}"
    return "" if relative_error(train_outputs(model, call), wanted) > LIMIT else UNCHANGED


def _own_cuts(module: nn.Module, path: str, cuts: Cuts) -> dict[str, Mapping[int, Sequence[int]]]:
    names = [name for name, _ in module.named_parameters(recurse=False)]
    full = {name: f"{path}.{name}" if path else name for name in names}
    return {name: cuts[key] for name, key in full.items() if key in cuts}


def _counts_units(module: nn.Module) -> bool:
    """Tell norms over units, global response norms and routers to experts by their classes."""
    kind = type(module).__name__
    return (
        isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
        or kind.endswith(("RMSNorm", "LayerNorm", "GRN", "TopKRouter"))
    )  # fmt: skip


def _on_kept(module: nn.Module, gone: dict[str, Mapping[int, Sequence[int]]]) -> Callable[..., Any]:
    """Return a forward pass of a norm or router that looks at the units that stay."""
    if isinstance(module, nn.GroupNorm):
        return _group_norm(module, gone["weight"][0])
    if type(module).__name__.endswith("TopKRouter"):
        return _router(module, gone["weight"])
    name, dims = next(iter(gone.items()))
    dim, positions = next(iter(dims.items()))
    kept = _kept(getattr(module, name).shape[dim], positions)
    small = _sliced(module, gone)
    images = getattr(module, "data_format", "") == "channels_first"
    axis = 1 if images or type(module).__name__ == "LayerNorm2d" else -1

    def forward(x: Tensor) -> Tensor:
        result = small(x.index_select(axis, kept))
        return torch.zeros_like(x).index_copy(axis, kept, result)

    return forward


def _group_norm(module: nn.GroupNorm, positions: Sequence[int]) -> Callable[..., Any]:
    width = module.num_channels // module.num_groups
    kept = _kept(module.num_channels, positions)
    parts = [part for g in range(module.num_groups) if len(part := kept[kept // width == g])]
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()

    def forward(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for part in parts:
            one = functional.group_norm(
                x.index_select(1, part), 1, weight[part], bias[part], module.eps
            )
            result = result.index_copy(1, part, one)
        return result

    return forward


def _router(module: nn.Module, cuts: Mapping[int, Sequence[int]]) -> Callable[..., Any]:
    """Choose among the experts that stay, and call them by their numbers in the dense network."""
    weight: Any = module.weight
    small = copy.deepcopy(module)
    kept = _kept(weight.shape[0], cuts.get(0, ()))
    with torch.no_grad():
        _blank(weight, {dim: positions for dim, positions in cuts.items() if dim})
        small.weight = nn.Parameter(weight[kept])
    small.num_experts = len(kept)  # type: ignore[assignment]

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        logits, scores, chosen = small(x)
        return logits, scores, kept[chosen]

    return forward


def _sliced(module: nn.Module, gone: dict[str, Mapping[int, Sequence[int]]]) -> nn.Module:
    """Return a copy of a norm with the positions that stay alone."""
    small = copy.deepcopy(module)
    for name, dims in gone.items():
        weight = getattr(module, name).detach()
        for dim, positions in dims.items():
            weight = weight.index_select(dim, _kept(weight.shape[dim], positions))
        setattr(small, name, nn.Parameter(weight))
        if hasattr(small, "normalized_shape"):
            small.normalized_shape = tuple(weight.shape)
    return small


def _kept(size: int, positions: Sequence[int]) -> Tensor:
    gone = set(positions)
    return torch.tensor([p for p in range(size) if p not in gone], dtype=torch.long)
