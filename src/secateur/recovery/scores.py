"""Score units by what least squares cannot make up for, once they are gone.

Symbols: for a layer that reads a group, H is the covariance of its inputs [k, k] over the
calibration data and W its weights [k, outputs]. With the inputs C of a unit taken away and
the rest solved anew by least squares, the layer's squared error grows by
tr(W_C^T ((H^-1)_CC)^-1 W_C) (Hassibi & Stork 1993, "Second order derivatives for network
pruning: optimal brain surgeon", for blocks of weights). Units go one by one, the cheapest
first, and H^-1 and W follow; a unit's score is what its going costs then, as a share of the
variance of the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateur.calibration import Batches, device_of, to_device
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.graph.copies import stand_in
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.process_settings import plain_operations
from secateur.graph.tracing import run_model
from secateur.planning import make_plan
from secateur.recovery.equations import Equations
from secateur.recovery.least_squares import rows_of, slope_of
from secateur.recovery.running import inputs_of
from secateur.recovery.sites import Site, find_sites


def reconstruction_scores(
    graph: Graph, calibration: Batches, groups: Iterable[str] | None = None, *, ridge: float = 1e-4
) -> dict[str, Tensor]:
    """Score the units of groups that one ungrouped convolution or dense layer reads.

    Args:
        graph: of the dense network.
        calibration: (inputs, labels) batches; one pass.
        groups: names; None takes all that fit.
        ridge: added to the diagonal of H, relative to its mean.

    Returns:
        {group: float64 [size]}, never falling in the order in which units go.

    Raises:
        InputError: no batch, or no group that fits.
    """
    readers = _readers(graph, groups)
    if not readers:
        raise InputError("groups must hold one that a single layer reads, but none does")
    model = stand_in(graph.model).eval()
    sums = {name: Equations() for name in readers}
    count = 0
    with shared_variables_put_back(model), torch.no_grad(), plain_operations():
        hooks = [
            model.get_submodule(site.name).register_forward_hook(_watch(sums[name]))
            for name, site in readers.items()
        ]
        try:
            for inputs in inputs_of(calibration):
                count += 1
                run_model(model, to_device(inputs, device_of(model)))
        finally:
            for hook in hooks:
                hook.remove()
        if not count:
            raise InputError("calibration must hold at least one batch, but it is empty")
        return {name: _costs(graph, name, readers[name], sums[name], ridge) for name in readers}


def _readers(graph: Graph, groups: Iterable[str] | None) -> dict[str, Site]:
    found = {}
    for name in graph.by_name if groups is None else groups:
        plan = make_plan(graph, {name: [0]})
        sites, left = find_sites(graph, plan, every=False)
        if len(sites) != 1 or left or plan.masks:
            continue
        if getattr(graph.model.get_submodule(sites[0].name), "groups", 1) == 1:
            found[name] = sites[0]
    return found


def _watch(sums: Equations) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def after(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        assert isinstance(module, nn.Linear | _ConvNd)
        for x, y in rows_of(module, args[0], result):
            sums.add(x, y)

    return after


def _costs(graph: Graph, name: str, site: Site, sums: Equations, ridge: float) -> Tensor:
    """Take units away greedily; return each one's cost, never below an earlier one's."""
    layer = graph.model.get_submodule(site.name)
    assert isinstance(layer, nn.Linear | _ConvNd)
    assert sums.gram is not None
    gram = sums.gram[0].cpu()
    rows = gram[-1, -1]
    mean = gram[-1, :-1] / rows
    covariance = gram[:-1, :-1] / rows - mean[:, None] * mean
    covariance += ridge * covariance.diagonal().mean() * torch.eye(len(covariance))
    weight = layer.weight.detach().cpu().double().flatten(1).T.clone()
    norm = graph.model.get_submodule(site.norm) if site.norm else None
    if isinstance(norm, _BatchNorm):
        weight = weight * slope_of(norm).cpu().double()
    slots = {(slot.name, slot.dim): slot.units for slot in graph.by_name[name].slots}
    each = len(weight) // layer.weight.shape[1]
    units = torch.from_numpy(slots[f"{site.name}.weight", 1]).repeat_interleave(each)
    whole = float((weight * (covariance @ weight)).sum())
    inverse = torch.linalg.inv(covariance)
    left = list(range(graph.by_name[name].size))
    places = {unit: (units == unit).nonzero().squeeze(1) for unit in left}
    scores = torch.zeros(len(left), dtype=torch.float64)
    highest = 0.0
    while left:
        costs = []
        for unit in left:
            at = places[unit]
            block = torch.linalg.solve(inverse[at][:, at], weight[at])
            costs.append(float((weight[at] * block).sum()))
        cheapest = min(range(len(left)), key=costs.__getitem__)
        unit = left.pop(cheapest)
        highest = max(highest, costs[cheapest])
        scores[unit] = highest / (whole or 1.0)
        at = places[unit]
        pulled = torch.linalg.solve(inverse[at][:, at], inverse[at])
        weight = weight - pulled.T @ weight[at]
        inverse = inverse - inverse[:, at] @ pulled
        # What is gone must not come back by rounding.
        weight[at] = 0
        inverse[at], inverse[:, at] = 0, 0
    return scores
