"""Make the tensors smaller: the cut itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.graph.attributes import change_held, set_held
from secateur.graph.copies import copy_model, every_tensor, meta_like, named_tensors, replica
from secateur.graph.module_caches import empty_caches
from secateur.graph.module_tree import modules_of
from secateur.graph.normal_mode import normal_mode
from secateur.plan import Plan, Scale, digest_of

M = TypeVar("M", bound=nn.Module)


@normal_mode()
def cut(model: M, plan: Plan, *, inplace: bool = False) -> M:
    """Remove the units of ``plan`` from the network.

    Args:
        model: the network that the plan was made for.
        plan: what to remove.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The network with smaller tensors, of the same class. Gradients are dropped.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_fit(model, plan)
    scales: dict[str, list[Scale]] = defaultdict(list)
    for scale in plan.scales:
        scales[scale.name].append(scale)
    before = dict(every_tensor(model)) if plan.lengths else {}
    if inplace:
        given = list(every_tensor(model))  # an id is reused once its object is gone
        made = {
            id(tensor): _kept(tensor, plan.cuts.get(name, {}), scales.get(name, ()))
            for name, tensor in given
            if name in plan.cuts or name in scales
        }
        for _, module in modules_of(model):
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and id(tensor) in made:
                        table[key] = made[id(tensor)]  # type: ignore[assignment]
        change_held(model, lambda _, value: made.get(id(value), value))
        pruned = model
    else:
        pruned = copy_model(
            model, lambda name, t: _kept(t, plan.cuts.get(name, {}), scales.get(name, ()))
        )  # type: ignore[assignment]
    if plan.lengths:
        _shorten(before, dict(every_tensor(pruned)), plan)
    _declare_plan(pruned, plan)
    return pruned


def planned_model(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the network that ``plan`` would make of ``model``, without memory, for a trace."""

    def planned(name: str, tensor: Tensor) -> Tensor:
        made = meta_like(tensor)
        for dim, positions in plan.cuts.get(name, {}).items():
            made = made.narrow(dim, 0, made.shape[dim] - len(positions))
        return torch.empty_like(made) if name in plan.cuts else made

    made = copy_model(model, planned, apart=True)
    _declare_plan(made, plan)
    return made


def _declare_plan(model: nn.Module, plan: Plan) -> None:
    set_held(model, plan.attributes)
    empty_caches(model, plan.caches)
    declare_sizes(model)


def check_fit(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that was made for another network, or edited since.

    Values may differ: a network that was trained on, a copy, another precision or device fit.

    Raises:
        PlanError: names the first tensor that the plan does not fit.
    """
    shapes = shapes_of(model, plan.shapes)
    for name, shape in plan.shapes.items():
        if name not in shapes:
            raise PlanError(
                f"plan is for another network: it knows {name!r} of shape {shape}, which this "
                "network does not have"
            )
        if shapes[name] != shape:
            raise PlanError(
                f"plan is for another network: {name!r} has shape {shape} there, and "
                f"{shapes[name]} in this network"
            )
    more = next((name for name in shapes if name not in plan.shapes), None)
    if more is not None:
        raise PlanError(
            f"plan is for another network: this one has {more!r} of shape {shapes[more]}, which "
            "the plan does not know"
        )
    for name, dims in plan.cuts.items():
        shape = plan.shapes.get(name, ())
        for dim, positions in dims.items():
            size = shape[dim] if dim < len(shape) else 0
            if not positions or max(positions) >= size or len(positions) >= size:
                raise PlanError(
                    f"plan removes {len(positions)} positions up to {max(positions, default=-1)} "
                    f"of dimension {dim} of {name!r}, but its shape is {shape}"
                )
    if plan.digest and digest_of(plan) != plan.digest:
        raise PlanError(
            "plan was edited: its units, positions, attributes and shapes do not belong together "
            "any more; choose other units with allocate or make_plan instead"
        )


def shapes_of(model: nn.Module, others: Container[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shapes that tell a network: of its parameters and saved buffers, by name.

    Args:
        model: any network.
        others: names of further tensors: buffers that are not saved, and plain attributes.
    """
    passing = {
        f"{name}.{key}" if name else key
        for name, module in modules_of(model)
        for key in module._non_persistent_buffers_set
    }
    own = {name for name, _ in named_tensors(model)} - passing
    return {
        name: tuple(tensor.shape)
        for name, tensor in every_tensor(model)
        if name in own or name in others
    }


def _kept(tensor: Tensor, cuts: Mapping[int, tuple[int, ...]], scales: Sequence[Scale]) -> Tensor:
    with torch.no_grad():
        data = tensor.detach()
        for scale in scales:
            factors = torch.ones(data.shape[scale.dim], dtype=data.dtype, device=data.device)
            factors[list(scale.positions)] = scale.factor
            rest = data.dim() - 1 - scale.dim
            data = data * factors.reshape(-1, *[1] * rest)
        for dim, positions in cuts.items():
            data = data.index_select(dim, _others(positions, data.shape[dim]).to(data.device))
        if not cuts and not scales:
            data = data.clone()
        return replica(tensor, data)


def _others(positions: tuple[int, ...], size: int) -> Tensor:
    """Return the positions that stay."""
    keep = np.ones(size, dtype=bool)
    keep[np.asarray(positions, dtype=np.int64)] = False
    return torch.from_numpy(np.flatnonzero(keep))


def _shorten(before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan) -> None:
    """Shrink the lengths of weight norms as their directions shrank: g |kept v| / |v|."""
    with torch.no_grad():
        for length, direction, dim in plan.lengths:
            whole, part = before[direction].detach(), after[direction].detach()
            removed = set(plan.cuts[direction].get(dim, ()))
            stay = [i for i in range(whole.shape[dim]) if i not in removed]
            index = torch.tensor(stay, device=whole.device)
            old = torch.norm_except_dim(whole.index_select(dim, index), 2, dim)
            after[length].mul_(torch.norm_except_dim(part, 2, dim) / old)


def declare_sizes(model: nn.Module) -> None:
    """Make the sizes that PyTorch's own modules declare agree with their tensors."""
    training = [module for _, module in modules_of(model) if module.training]
    for module in training:
        module.training = False  # looking at a spectral norm's weight would change its buffers
    try:
        _declare(model)
    finally:
        for module in training:
            module.training = True


def _declare(model: nn.Module) -> None:
    for _, module in modules_of(model):
        if isinstance(module, nn.modules.conv._ConvNd):
            inner, outer = (0, 1) if module.transposed else (1, 0)
            shape = module.weight.shape
            module.in_channels = shape[inner] * (1 if module.transposed else module.groups)
            module.out_channels = shape[outer] * (module.groups if module.transposed else 1)
            module.kernel_size = tuple(shape[2:])
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.weight, module.running_mean):
                if tensor is not None:
                    module.num_features = tensor.shape[0]
        elif isinstance(module, nn.GroupNorm) and module.weight is not None:
            module.num_channels = module.weight.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.shape[0]
        elif isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
        elif isinstance(module, nn.MultiheadAttention):
            module.head_dim = module.embed_dim // module.num_heads
        elif isinstance(module, nn.RNNBase):
            module._init_flat_weights()
