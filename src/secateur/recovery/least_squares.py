"""Solve each layer that reads removed units for the weights that best do without them.

Symbols: X, the inputs of the layer in the pruned network, whose layers before it
are already recovered; Y, its output in the dense network at the kept positions.
Solved is min over W, b of sum |X W + b - Y|^2, as in channel pruning (He et al.
2017, "Channel pruning for accelerating very deep neural networks", section 3.1)
and ThiNet (Luo et al. 2017). Where a skip path S is added to the layer's output,
the target also makes up for what the skip path has already lost: with S' the
pruned network's, Y + (S - S') / a, where a is the slope of the batch norm between
the two (He et al., section 3.3), so that errors do not add up along a residual network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateur.plan import Plan
from secateur.recovery.equations import Equations
from secateur.recovery.lockstep import Arguments
from secateur.recovery.records import LayerRecord
from secateur.recovery.running import catch
from secateur.recovery.sites import Site

# Elements of the matrix of inputs that is laid out at a time.
_CHUNK = 2**23
# A channel that the norm nearly wipes out cannot make up for the skip path's loss.
_LEAST_SLOPE = 0.01


def solve_site(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    site: Site,
    arguments: Iterator[tuple[Arguments, Arguments]],
    *,
    ridge: float,
    weights: bool,
) -> LayerRecord | str:
    """Recover one layer in place; return the reason where it cannot be.

    Args:
        dense: the network before, in eval mode.
        pruned: the network after, in eval mode, recovered up to this layer.
        plan: what was removed.
        site: the layer.
        arguments: what ``site.scope`` is called with in both networks, batch by batch.
        ridge: relative strength of the pull towards the weights that the cut left.
        weights: solve for the weights too, or for the bias alone.
    """
    layer = pruned.get_submodule(site.name)
    assert isinstance(layer, nn.Linear | _ConvNd)
    norm = pruned.get_submodule(site.norm) if site.norm else None
    slope = slope_of(norm) if isinstance(norm, _BatchNorm) else None
    rows = _kept(plan.cuts.get(f"{site.name}.weight", {}), dense.get_submodule(site.name))
    equations = Equations()
    for for_dense, for_pruned in arguments:
        there = catch(dense, for_dense, site, output=True)
        here = catch(pruned, for_pruned, site, output=False)
        if there.y is None or here.x is None:
            return "its module is not called by itself"
        channel = there.y.dim() - 1 if isinstance(layer, nn.Linear) else 1
        y = there.y.index_select(channel, rows.to(there.y.device)).to(here.x.device)
        if there.skip is not None and here.skip is not None:
            y = _made_up(y, there.skip, here.skip, slope, channel, rows)
        for x_rows, y_rows in rows_of(layer, here.x, y):
            equations.add(x_rows, y_rows)
    if equations.gram is None:
        return "its module is not called by itself"
    groups = getattr(layer, "groups", 1)
    start = _solution(layer, groups).to(equations.cross.device)
    intercept = layer.bias is not None or norm is not None
    found = equations.solve(start, ridge=ridge, weights=weights, intercept=intercept)
    shift = (found - start)[:, -1].reshape(-1)
    found = _rounded(found, layer.weight.dtype)
    scale = torch.ones(rows.numel()) if slope is None else slope.square().cpu()
    scale = scale.double().reshape(groups, -1).to(start.device)
    whole = float((equations.spread() * scale).sum()) or 1.0
    before = float((equations.errors(start) * scale).sum()) / whole
    after = float((equations.errors(found) * scale).sum()) / whole
    if not after < before:
        return LayerRecord(site.name, before, before, False)
    _write(layer, found, shift, norm)
    return LayerRecord(site.name, before, after, True)


def _kept(cuts: Mapping[int, tuple[int, ...]], layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    gone = set(cuts.get(0, ()))
    return torch.tensor([i for i in range(weight.shape[0]) if i not in gone])


def slope_of(norm: _BatchNorm) -> Tensor:
    """Return by how much a batch norm multiplies each channel."""
    assert norm.running_var is not None
    slope = (norm.running_var.detach() + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * norm.weight.detach()


def _made_up(
    y: Tensor, skip: Tensor, pruned_skip: Tensor, slope: Tensor | None, channel: int, rows: Tensor
) -> Tensor:
    """Add to the target what the skip path has lost; ``y`` has the kept channels alone."""
    skip = skip.to(y.device)
    if skip.dim() == y.dim() and skip.shape[channel] != y.shape[channel]:
        if skip.shape[channel] <= int(rows.max()):
            return y
        skip = skip.index_select(channel, rows.to(y.device))
    if skip.shape != y.shape or pruned_skip.shape != y.shape:
        return y
    lost = skip - pruned_skip
    if slope is not None:
        able = slope.abs() >= _LEAST_SLOPE * slope.abs().max()
        factor = torch.where(able, 1 / torch.where(able, slope, torch.ones_like(slope)), 0.0)
        lost = lost * factor.reshape(-1, *[1] * (y.dim() - 1 - channel))
    return y + lost


def rows_of(layer: nn.Linear | _ConvNd, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs [n, groups, k] and targets [n, groups, o] of one product each, in pieces."""
    if isinstance(layer, nn.Linear):
        flat, targets = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        step = max(1, _CHUNK // flat.shape[1])
        for i in range(0, len(flat), step):
            yield flat[i : i + step, None], targets[i : i + step, None]
        return
    per_image = y[0, 0].numel() * layer.weight[0].numel() * layer.groups
    step = max(1, _CHUNK // per_image)
    for i in range(0, len(x), step):
        patches = _patches(layer, x[i : i + step])
        targets = y[i : i + step].movedim(1, -1).reshape(len(patches), layer.groups, -1)
        yield patches, targets


def _patches(layer: _ConvNd, x: Tensor) -> Tensor:
    """Lay out what each output position of a convolution reads: [n, groups, k]."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, stride, gap) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(dim, (size - 1) * gap + 1, stride)[..., ::gap]
    spatial = len(layer.kernel_size)
    x = x.movedim(1, spatial + 1)  # [N, positions ..., C, kernel ...]
    count = x.shape[: spatial + 1].numel()
    return x.reshape(count, layer.groups, -1)


def _solution(layer: nn.Linear | _ConvNd, groups: int) -> Tensor:
    """Return the layer's weights as [groups, k+1, outputs of a group], float64."""
    weight = layer.weight.detach().double()
    weight = weight.reshape(groups, weight.shape[0] // groups, -1).mT
    bias = weight.new_zeros(groups, 1, weight.shape[2])
    if layer.bias is not None:
        bias = layer.bias.detach().double().reshape(groups, 1, -1)
    return torch.cat([weight, bias], dim=1)


def _rounded(solution: Tensor, dtype: torch.dtype) -> Tensor:
    return solution.to(dtype).double()


def _write(
    layer: nn.Linear | _ConvNd, solution: Tensor, shift: Tensor, norm: nn.Module | None
) -> None:
    with torch.no_grad():
        layer.weight.copy_(solution[:, :-1].mT.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(solution[:, -1].reshape(-1))
        elif isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean.sub_(shift.to(norm.running_mean))
