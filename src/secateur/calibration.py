"""Passes that collect statistics and never change the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.graph.copies import map_tensors
from secateur.graph.generators import ONE_AT_A_TIME
from secateur.graph.normal_mode import normal_tensor
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model
from secateur.progress import track

Batches = Iterable[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]


def logits_of(outputs: Any) -> Tensor:
    """Return the logits: the outputs themselves, their ``.logits``, or the first tensor in them."""
    logits = getattr(outputs, "logits", outputs)
    return logits if isinstance(logits, Tensor) else tensor_leaves(logits)[0]


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of a model's logits [batch, classes].

    ``outputs`` may be the logits, a record with ``.logits``, or hold them first.
    """
    return F.cross_entropy(logits_of(outputs), labels)


class Watched:
    """Calibration batches under a progress bar; an iterator that is read twice is an error."""

    def __init__(self, batches: Batches, description: str, progress: Progress | None) -> None:
        self._batches = batches
        self._description = description
        self._progress = progress
        self._spent = False
        self.once = isinstance(batches, Iterator)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.once and self._spent:
            raise _read_twice("")
        self._spent = True
        return track(self._batches, self._description, self._progress)


def watched(batches: Batches | None, description: str, progress: Progress | None) -> Any:
    """Wrap calibration batches; None and what is wrapped already stay as they are.

    Raises:
        InputError: ``batches`` cannot be looped over.
    """
    if batches is None or isinstance(batches, Watched):
        return batches
    if not isinstance(batches, Iterable):
        raise InputError(
            "calibration must be an iterable of (inputs, labels) batches, "
            f"but got {type(batches).__name__}"
        )
    return Watched(batches, description, progress)


def check_repeatable(calibration: Batches, who: str) -> None:
    """Refuse batches that can be read once only.

    Raises:
        InputError: ``calibration`` is an iterator; ``who`` needs to read it again.
    """
    if isinstance(calibration, Iterator) or (isinstance(calibration, Watched) and calibration.once):
        raise _read_twice(f" by {who}")


def _read_twice(who: str) -> InputError:
    return InputError(
        f"calibration must be a list or a data loader, as it is read more than once{who}, "
        "but got an iterator"
    )


@contextlib.contextmanager
def untouched(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Run a block in eval mode and put modes, gradients and buffers back after it.

    Args:
        model: the network.
        gradients: let every floating-point parameter collect a gradient inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    places = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
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
        for module, held in places:
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, before in buffers:
                # PyTorch compares no sparse tensors.
                if buffer.layout is not torch.strided or not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextlib.contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Run a block with torch's global generators at ``seed``, and put their states back."""
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


def passes(model: nn.Module, calibration: Batches) -> Generator[Any, None, None]:
    """Yield the outputs of batch after batch, in eval mode and without gradients.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.

    Raises:
        InputError: no batch.
    """
    device = device_of(model)
    with untouched(model), torch.no_grad():
        for _, batch in _numbered(calibration):
            yield run_model(model, to_device(pair_of(batch)[0], device))


def losses(
    model: nn.Module,
    calibration: Batches,
    loss: Loss = cross_entropy,
    *,
    each_sample: bool = False,
) -> Generator[Tensor, None, None]:
    """Yield the loss of batch after batch, with the graph that it can be differentiated by.

    While the loop runs the model is in eval mode and every floating-point parameter
    collects gradients; close the iterator to have the model as it was.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.
        loss: from the model's outputs and the labels to a scalar.
        each_sample: yield the loss of every sample by itself; every tensor of a batch
            whose first dimension has the size of the first input's holds samples.

    Raises:
        InputError: no batch, or a loss that is not finite.
    """
    device = device_of(model)
    with untouched(model, gradients=True), torch.enable_grad():
        for number, batch in _numbered(calibration):
            for inputs, labels in _samples(batch, number) if each_sample else [pair_of(batch)]:
                value = loss(run_model(model, to_device(inputs, device)), to_device(labels, device))
                _check_loss(value)
                if not bool(torch.isfinite(value)):
                    raise InputError(
                        f"the loss on calibration batch {number} must be finite, "
                        f"but is {value.item()}"
                    )
                yield value


def gradients(
    model: nn.Module,
    calibration: Batches,
    loss: Loss = cross_entropy,
    *,
    each_sample: bool = False,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield, batch by batch, the gradient of the mean loss by parameter name.

    Args:
        model: the network; it is left as it was.
        calibration: (inputs, labels) batches.
        loss: from the model's outputs and the labels to a scalar.
        each_sample: yield the gradient of every sample by itself, as :func:`losses` does.

    Raises:
        InputError: no batch, or a loss that is not finite.
    """
    with contextlib.closing(losses(model, calibration, loss, each_sample=each_sample)) as values:
        for value in values:
            model.zero_grad(set_to_none=True)
            value.backward()
            yield {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _numbered(calibration: Batches) -> Iterator[tuple[int, Any]]:
    number = -1
    for number, batch in enumerate(calibration):
        yield number, batch
    if number < 0:
        raise InputError("calibration must hold at least one batch, but it is empty")


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss must return a tensor of one number, but got {what}")
    if not value.requires_grad:
        raise InputError("loss must depend on the model's parameters, but has no gradient")


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Return (inputs, labels).

    Raises:
        InputError: the batch is no such pair.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InputError(
            f"calibration must give (inputs, labels) batches, but gave {type(batch).__name__}"
        )
    return batch[0], batch[1]


def _samples(batch: Any, number: int) -> Iterator[tuple[Any, Any]]:
    inputs, labels = pair_of(batch)
    first, marks = tensor_leaves(inputs)[0], tensor_leaves(labels)
    size = len(first) if first.dim() else 0
    if not size or any(mark.dim() == 0 or len(mark) != size for mark in marks):
        shapes = [tuple(t.shape) for t in (first, *marks)]
        raise InputError(
            "calibration that is read sample by sample must have the samples along the first "
            f"dimension of inputs and labels, but batch {number} has shapes {shapes}"
        )
    for n in range(size):

        def own(tensor: Tensor, n: int = n) -> Tensor:
            return tensor[n : n + 1] if tensor.dim() and len(tensor) == size else tensor

        yield map_tensors(inputs, own), map_tensors(labels, own)


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested containers."""
    if isinstance(value, Tensor):
        return normal_tensor(value.to(device))
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_device(item, device) for item in value)
    return value
