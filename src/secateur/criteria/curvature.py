"""Products of the loss's Hessian with vectors, by differentiating twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from secateur.calibration import Batches, Loss, losses
from secateur.errors import InputError
from secateur.graph.process_settings import plain_operations

Vector = dict[str, Tensor]


def hessian_products(
    model: nn.Module,
    calibration: Batches,
    loss: Loss,
    vectors: Callable[[], Iterator[Vector]],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Vector:
    """Sum ``combine(v, H v)`` over the vectors; the mean of that over batches.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.
        loss: from the model's outputs and the labels to a scalar.
        vectors: makes the vectors anew for every batch, by parameter name.
        combine: from a parameter's part of v and of H v to a tensor of its shape.

    Raises:
        InputError: as :func:`secateur.calibration.losses`, or the model has an operation
            that PyTorch cannot differentiate twice.
    """
    total = zeros(model)
    number = 0
    passes = losses(model, calibration, loss)
    with plain_operations(), _Smooth(), closing(passes):
        for value in passes:
            number += 1
            weights: Vector = {n: p for n, p in model.named_parameters() if n in total}
            for name, product in _products(value, weights, vectors, combine):
                total[name] += product
    return {name: value / number for name, value in total.items()}


def _products(
    value: Tensor,
    weights: Vector,
    vectors: Callable[[], Iterator[Vector]],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    tensors = list(weights.values())
    grads = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True)
    for vector in vectors():
        terms = [
            (grad * vector[name]).sum()
            for name, grad in zip(weights, grads, strict=True)
            if grad is not None and grad.requires_grad
        ]
        if not terms:
            return
        try:
            products = torch.autograd.grad(
                torch.stack(terms).sum(), tensors, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise InputError(
                f"the model must be differentiable twice for this criterion, but: {error}"
            ) from error
        for name, product in zip(weights, products, strict=True):
            if product is not None:
                yield name, combine(vector[name], product)


class _Smooth(TorchFunctionMode):
    """Writes out what PyTorch cannot differentiate twice."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.hardsigmoid:
            x = args[0] if args else kwargs["input"]
            return (x + 3).clamp(0, 6) / 6
        return func(*args, **kwargs)


def wide_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every floating-point parameter, float32 or wider."""
    for name, p in model.named_parameters():
        if p.is_floating_point():
            yield name, p.detach().to(torch.promote_types(p.dtype, torch.float32))


def zeros(model: nn.Module) -> Vector:
    """Return a vector of zeros, float32 or wider."""
    return {name: torch.zeros_like(p) for name, p in wide_weights(model)}
