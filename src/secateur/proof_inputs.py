"""Inputs of a proof beside the example: of its shapes and types, with other values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.graph.copies import map_tensors
from secateur.graph.program import tensor_leaves


def drawn_inputs(example_inputs: Any, seed: int) -> Any | None:
    """Return inputs with drawn values; None where nothing can be drawn.

    Floating tensors get normal numbers of their mean and spread, or standard ones where all are
    equal; an empty batch gets two samples. Masks (of zeros and ones, or with infinities) stay.
    Integers stay, too, as only the network knows which it takes; but where no tensor is floating
    they are drawn from the range of the example's.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    leaves = tensor_leaves(example_inputs)
    floating = any(_may_vary(tensor) for tensor in leaves)
    if not floating and not any(_has_range(tensor) for tensor in leaves):
        return None

    def change(tensor: Tensor) -> Tensor:
        shape = [size or _SAMPLES for size in tensor.shape]
        if _may_vary(tensor):
            return _normal(tensor.detach(), shape, generator)
        if not floating and _has_range(tensor):
            low, high = int(tensor.min()), int(tensor.max())
            drawn = torch.randint(low, high + 1, shape, generator=generator, device="cpu")
            return drawn.to(tensor.device, tensor.dtype)
        return tensor.detach() if tensor.numel() else tensor.new_zeros(shape)

    return map_tensors(example_inputs, change)


_SAMPLES = 2


def _has_range(tensor: Tensor) -> bool:
    """Tell integers that are not all the same."""
    other = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
    return not other and tensor.numel() > 0 and int(tensor.min()) < int(tensor.max())


def _may_vary(tensor: Tensor) -> bool:
    """Tell floating numbers from integers and masks."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if not bool(tensor.isfinite().all()):
        return False
    is_mask = bool(((tensor == 0) | (tensor == 1)).all())
    return not is_mask or not tensor.numel() or bool((tensor == tensor.flatten()[0]).all())


def _normal(tensor: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    values = tensor.cpu().to(wide)
    drawn = torch.randn(shape, dtype=wide, generator=generator, device="cpu")
    spread = float((values - values.mean()).abs().square().mean().sqrt()) if tensor.numel() else 0
    if spread > 0:
        drawn = values.mean() + spread * drawn
    return drawn.to(tensor.device, tensor.dtype)
