"""Scores of single weights: each parameter gets a tensor of its shape, higher means keep.

Masks of granularity weight are cut from them, and several criteria of units are
their sums over a unit. With w a weight and g the gradient of the loss L:

    l1        |w|
    l2        w^2
    lamp      w^2 over the sum of all v^2 >= w^2 in the same tensor (Lee et al. 2021,
              "Layer-adaptive sparsity for the magnitude-based pruning", the LAMP score)
    random    uniform in [0, 1)
    taylor    (w g)^2, mean over batches (Molchanov et al. 2019, "Importance estimation
              for neural network pruning", equation 8)
    fisher    (w g)^2 / 2, mean over samples (Theis et al. 2018, "Faster gaze prediction
              with dense networks and Fisher pruning", the pruning signal of a parameter)
    snip      |w g|, g the mean over batches (Lee et al. 2019, "SNIP: single-shot network
              pruning based on connection sensitivity", without its constant divisor)
    grasp     w (H g), H and g means over batches (Wang et al. 2020, "Picking winning
              tickets before training by preserving gradient flow"; there the sign is the
              other one, as the highest go)
    hessian   w^2 (diagonal of H) / 2 (LeCun et al. 1989, "Optimal brain damage", the
              saliency), the diagonal estimated as the mean of z (H z) over draws of random
              signs z (Hutchinson's estimate)
    synflow   w dR/dw (Tanaka et al. 2020, "Pruning neural networks without any data by
              iteratively conserving synaptic flow"), R the sum of the outputs of the
              network with absolute weights on an input of ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.calibration import (
    Batches,
    Loss,
    check_repeatable,
    cross_entropy,
    device_of,
    gradients,
    logits_of,
    seeded,
    untouched,
    watched,
)
from secateur.criteria.base import Context, Criterion
from secateur.criteria.curvature import hessian_products, wide_weights, zeros
from secateur.errors import InputError
from secateur.graph.copies import copy_model, map_tensors, stand_in
from secateur.graph.grouped_product import GroupedInFloat64
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.tracing import run_model
from secateur.precision import Precision
from secateur.registry import Registry

Elements = dict[str, Tensor]
ELEMENTWISE: Registry[Criterion] = Registry("element-wise criterion")


def _elementwise(
    name: str, *, needs_calibration: bool = False
) -> Callable[[Callable[..., Elements]], Callable[..., Elements]]:
    """Register a function from a model and a context; options are keyword-only arguments."""

    def add(function: Callable[..., Elements]) -> Callable[..., Elements]:
        ELEMENTWISE.register(name)(Criterion(name, function, needs_calibration))
        return function

    return add


def element_scores(
    model: nn.Module,
    criterion: str,
    calibration: Batches | None = None,
    *,
    loss: Loss = cross_entropy,
    seed: int = 0,
    example_inputs: Any = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Elements:
    """Score every single weight; higher means keep.

    Args:
        model: the network; it is left as it was.
        criterion: a name in ``ELEMENTWISE``.
        calibration: (inputs, labels) batches, for criteria that need data.
        loss: from the model's outputs and the labels to a scalar.
        seed: for criteria that draw.
        example_inputs: for "synflow", what the model takes.
        options: of the criterion, by name.
        progress: where to show how far it is; None shows nothing.

    Returns:
        {parameter name: tensor of its shape, on its device, float32 or wider} for
        every floating-point parameter; zero where the loss does not depend on it.

    Raises:
        InputError: an unknown name, missing calibration or example inputs, scores that
            are not finite, or the same score for all weights.
    """
    rule = ELEMENTWISE[criterion].with_options(**(options or {}))
    if rule.needs_calibration and calibration is None:
        raise InputError(f"criterion {rule.name!r} needs calibration batches, but got none")
    batches = watched(calibration, f"Scoring by {rule.name}", progress)
    context = Context(batches, loss, seed, example_inputs=example_inputs)
    model = stand_in(model)
    with shared_variables_put_back(model), seeded(model, seed), untouched(model):
        scores: Elements = partial(rule.function, **rule.options)(model, context)
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"criterion {rule.name!r} gives scores that are not finite in {name}")
    if all(bool((values == values.reshape(-1)[:1]).all()) for values in scores.values()):
        raise InputError(
            f"criterion {rule.name!r} gives all weights of every parameter the same score: "
            "it cannot choose between them"
        )
    return scores


@_elementwise("l1")
def absolute(model: nn.Module, context: Context) -> Elements:
    """|w|."""
    return {name: p.abs() for name, p in wide_weights(model)}


@_elementwise("l2")
def squared(model: nn.Module, context: Context) -> Elements:
    """w^2: the order of |w|, on the scale of sums of squares."""
    return {name: p.square() for name, p in wide_weights(model)}


@_elementwise("lamp")
def lamp(model: nn.Module, context: Context) -> Elements:
    """w^2 over the sum of those in the same tensor that are not smaller."""
    return {
        name: over_those_not_smaller(p.double().square().reshape(-1)).reshape(p.shape)
        for name, p in wide_weights(model)
    }


def over_those_not_smaller(values: Tensor) -> Tensor:
    """Divide each of ``values`` [n] (not negative) by the sum of all that are not smaller.

    Equal values get equal results, and zeros zero.
    """
    ordered, order = values.sort(descending=True)
    sums = ordered.cumsum(0)
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1  # the last one that ties
    result = torch.empty_like(values)
    result[order] = torch.where(ordered > 0, ordered / sums[last].clamp_min(1e-300), 0.0)
    return result


@_elementwise("random")
def uniform(model: nn.Module, context: Context) -> Elements:
    """Uniform draws, fixed by the seed."""
    draw = torch.Generator().manual_seed(context.seed)
    return {
        name: torch.rand(p.shape, generator=draw, dtype=p.dtype).to(p.device)
        for name, p in wide_weights(model)
    }


@_elementwise("taylor", needs_calibration=True)
def taylor(model: nn.Module, context: Context) -> Elements:
    """(w g)^2, mean over batches."""
    return _mean_square(model, context, each_sample=False)


@_elementwise("fisher", needs_calibration=True)
def fisher(model: nn.Module, context: Context) -> Elements:
    """(w g)^2 / 2, mean over samples."""
    found = _mean_square(model, context, each_sample=True)
    return {name: value / 2 for name, value in found.items()}


def _mean_square(model: nn.Module, context: Context, *, each_sample: bool) -> Elements:
    weights = dict(wide_weights(model))
    total = zeros(model)
    passes = gradients(model, _batches(context), context.loss, each_sample=each_sample)
    number = 0
    with closing(passes):
        for found in passes:
            number += 1
            with torch.no_grad():
                for name, grad in found.items():
                    total[name] += (weights[name] * grad).square()
    return {name: value / number for name, value in total.items()}


@_elementwise("snip", needs_calibration=True)
def snip(model: nn.Module, context: Context) -> Elements:
    """|w g|, g the mean over batches."""
    grad = _mean_gradient(model, context)
    return {name: (p * grad[name]).abs() for name, p in wide_weights(model)}


def _mean_gradient(model: nn.Module, context: Context) -> Elements:
    total = zeros(model)
    passes = gradients(model, _batches(context), context.loss)
    number = 0
    with closing(passes):
        for found in passes:
            number += 1
            for name, grad in found.items():
                total[name] += grad
    return {name: value / number for name, value in total.items()}


@_elementwise("grasp", needs_calibration=True)
def grasp(model: nn.Module, context: Context) -> Elements:
    """W (H g): how much removing w lowers the gradient's squared norm, to first order."""
    check_repeatable(_batches(context), "criterion 'grasp'")
    direction = _mean_gradient(model, context)
    products = hessian_products(
        model, _batches(context), context.loss, lambda: iter([direction]), lambda _, hv: hv
    )
    return {name: p * products[name] for name, p in wide_weights(model)}


@_elementwise("hessian", needs_calibration=True)
def hessian(model: nn.Module, context: Context, *, draws: int = 8) -> Elements:
    """W^2 h / 2, h the Hessian's diagonal estimated from ``draws`` vectors of random signs."""
    if draws < 1:
        raise InputError(f"draws must be at least 1, but got {draws}")

    # The same signs for every batch: the estimate is then one of the mean Hessian,
    # whatever the order of the batches.
    def signs() -> Iterator[Elements]:
        draw = torch.Generator().manual_seed(context.seed)
        for _ in range(draws):
            yield {
                name: (torch.randint(0, 2, p.shape, generator=draw) * 2 - 1).to(p.device, p.dtype)
                for name, p in wide_weights(model)
            }

    products = hessian_products(model, _batches(context), context.loss, signs, lambda z, hz: z * hz)
    return {name: p.square() * products[name] / (2 * draws) for name, p in wide_weights(model)}


@_elementwise("synflow")
def synflow(model: nn.Module, context: Context) -> Elements:
    """W dR/dw in float64, on a copy of the model.

    As in the authors' code the network is in eval mode and the statistics of batch
    norms are made absolute too. Inputs of integers or booleans stay as they are.
    """
    if context.example_inputs is None:
        raise InputError("criterion 'synflow' needs example_inputs, but got none")
    statistics = {
        id(b) for m in model.modules() if isinstance(m, _NormBase) for b in m.buffers(recurse=False)
    }

    def positive(name: str, tensor: Tensor) -> Tensor:
        wide = tensor.detach().clone()
        if tensor.is_floating_point():
            wide = wide.double()
            if isinstance(tensor, nn.Parameter) or id(tensor) in statistics:
                wide = wide.abs()
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(wide, requires_grad=tensor.is_floating_point())
        return wide

    device = device_of(model)

    def ones(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        return torch.ones(tensor.shape, dtype=torch.float64, device=device)

    twin = copy_model(model, positive, apart=True).eval()
    with torch.enable_grad(), GroupedInFloat64(), Precision(torch.float64):
        outputs = run_model(twin, map_tensors(context.example_inputs, ones))
        logits_of(outputs).sum().backward()
    held = dict(twin.named_parameters())
    found = {}
    for name, _ in wide_weights(model):
        weight, grad = held[name].detach(), held[name].grad
        found[name] = torch.zeros_like(weight) if grad is None else weight * grad
    return found


def _batches(context: Context) -> Batches:
    assert context.calibration is not None
    return context.calibration
