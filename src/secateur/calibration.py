"""Passes that collect statistics and never change the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model

Batches = Iterable[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of a model's logits [batch, classes].

    ``outputs`` may be the logits, a record with ``.logits``, or hold them first.
    """
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        logits = tensor_leaves(logits)[0]
    return F.cross_entropy(logits, labels)


@contextlib.contextmanager
def untouched(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Run a block in eval mode and put modes, gradients and buffers back after it.

    Args:
        model: the network.
        gradients: let every floating-point parameter collect a gradient inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        model.eval()
        for parameter, _, _ in grads:
            parameter.grad = None
            if gradients and parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad, requires_grad in grads:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def gradients(
    model: nn.Module, calibration: Batches, loss: Loss = cross_entropy
) -> Iterator[dict[str, Tensor]]:
    """Yield, batch by batch, the gradient of the mean loss by parameter name.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.
        loss: from the model's outputs and the labels to a scalar.

    Raises:
        InputError: no batch, or a loss that is not finite.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    number = -1
    with untouched(model, gradients=True), torch.enable_grad():
        for number, batch in enumerate(calibration):
            inputs, labels = _pair(batch)
            value = loss(run_model(model, _move(inputs, device)), _move(labels, device))
            if not bool(torch.isfinite(value)):
                raise InputError(
                    f"the loss on calibration batch {number} must be finite, but is {value.item()}"
                )
            model.zero_grad(set_to_none=True)
            value.backward()
            yield {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if number < 0:
        raise InputError("calibration must hold at least one batch, but it is empty")


def _pair(batch: Any) -> tuple[Any, Any]:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InputError(
            f"calibration must give (inputs, labels) batches, but gave {type(batch).__name__}"
        )
    return batch[0], batch[1]


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_move(item, device) for item in value)
    return value
