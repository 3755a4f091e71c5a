"""The weighted layers as PyTorch runs them: convolutions and products with fixed weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.relevance.contraction import Layer

CONVOLUTIONS = ("aten.convolution", "aten.convolution_overrideable")


def convolution_layer(args: tuple[Any, ...]) -> Layer:
    """Return a convolution, plain, grouped or transposed, as a :class:`Layer`.

    Args:
        args: of ``aten.convolution``: x, weight, bias, stride, padding, dilation,
            transposed, output padding, groups.
    """
    x, weight, bias = args[:3]
    rest = [list(a) if isinstance(a, tuple) else a for a in args[3:9]]
    transposed, groups = args[6], args[8]

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = torch.ops.aten.convolution.default(x, weight, bias, *rest)
        return found

    def back(share: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        mask = [True, False, False]
        found: Tensor = torch.ops.aten.convolution_backward.default(
            share, x, weight, None, *rest, mask
        )[0]
        return found

    unit_dim = 1 if x.dim() == weight.dim() else 0
    out_dim, times = (1, groups) if transposed else (0, 1)
    return Layer(apply, back, weight, bias, out_dim, unit_dim, groups == 1, times)


def matrix_layer(weight: Tensor, bias: Tensor | None) -> Layer:
    """Return x -> x W^T + b for a weight [outputs, inputs]."""

    def back(share: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return share @ weight

    return Layer(F.linear, back, weight, bias, 0, 1)


def batched_layer(weight: Tensor, bias: Tensor | None) -> Layer:
    """Return x -> x W^T for a weight [batch, outputs, inputs]; ``bias`` is added outside."""

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.bmm(x, weight.mT)
        return y if bias is None else y + bias

    def back(share: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(share, weight)

    return Layer(apply, back, weight, bias, 1, 2)
