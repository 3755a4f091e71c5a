"""Recompute what batch norms know of their inputs; nothing else changes.

Every batch norm normalises with the statistics of each batch, as in training, while
the mean and variance of its input over all batches are summed up in float64 (the
parallel form of Chan et al. 1983, so that batches of any size count by their values).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.calibration import Batches, device_of, to_device
from secateur.errors import InputError
from secateur.graph.copies import stand_in
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.normal_mode import normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.tracing import run_model
from secateur.recovery.running import inputs_of


class Moments:
    """Count, mean and sum of squared deviations per channel, merged batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in x [N, C, ...]."""
        others = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.detach(), others, correction=0)
        mean, deviation = mean.cpu().double(), variance.cpu().double() * count
        if self.mean is None:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total, gap = self.count + count, mean - self.mean
        self.mean = self.mean + gap * (count / total)
        self.deviation = self.deviation + deviation + gap.square() * (self.count * count / total)
        self.count = total

    def variance(self) -> Tensor:
        """Return the unbiased variance, which is what batch norms keep."""
        return self.deviation / max(self.count - 1, 1)


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms that keep statistics, by path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@normal_mode()
def recalibrate(model: nn.Module, calibration: Batches) -> int:
    """Recompute the running mean and variance of every batch norm, in place.

    Args:
        model: any network; its weights and modes stay as they are.
        calibration: (inputs, labels) batches, read once.

    Returns:
        How many batch norms were recalibrated; 0 where the network has none.

    Raises:
        InputError: no batch, or one with a single value in a channel.
    """
    model = stand_in(model, buffers=True).eval()
    norms = batch_norms(model)
    if not norms:
        return 0
    moments = {name: Moments() for name in norms}
    count = 0
    with shared_variables_put_back(model), _normalising_by_batch(norms, moments), torch.no_grad():
        for inputs in inputs_of(calibration):
            count += 1
            with plain_operations():
                run_model(model, to_device(inputs, device_of(model)))
    if not count:
        raise InputError("calibration must hold at least one batch, but it is empty")
    for name, norm in norms.items():
        write_moments(norm, moments[name])
    return sum(found.count > 0 for found in moments.values())


def write_moments(norm: _BatchNorm, found: Moments) -> None:
    """Make ``found`` the running statistics; a norm that never ran keeps its own."""
    if found.mean is None:
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(found.mean)
        norm.running_var.copy_(found.variance())


@contextlib.contextmanager
def _normalising_by_batch(
    norms: dict[str, _BatchNorm], moments: dict[str, Moments]
) -> Iterator[None]:
    """Let batch norms use each batch's statistics and keep their own as they are."""
    kept = [(n, n.momentum, n.num_batches_tracked) for n in norms.values()]

    def watch(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].numel() // max(args[0].shape[1], 1) < 2:
                raise InputError(
                    "every batch of calibration must give a batch norm two values a channel, "
                    f"but {name} gets one"
                )
            moments[name].add(args[0])

        return before

    handles = []
    try:
        for name, norm in norms.items():
            handles.append(norm.register_forward_pre_hook(watch(name)))
            norm.train()
            norm.momentum = 0.0
            norm.num_batches_tracked = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum, tracked in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = tracked
