"""Which operand of a running contraction is the activation and which the weight, and how they meet.

Positions are those of the contracted dimension, as the activation has it: the channels of a
convolution's input, the columns of the rows of a product.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.program import PRODUCTS

CONVOLUTION = "aten.convolution"


@dataclass(frozen=True)
class Weight:
    """The parameter, or a view of it, that a contraction multiplies activations with.

    Attributes:
        place: name of the parameter, and its dimension that is contracted; None for a
            convolution's kernel that is computed anew in each pass.
        tensor: the operand.
        dim: its contracted dimension.
        groups: of a convolution whose activation has ``groups`` times as many positions.
        batched: whether dimension 0 runs along with the activation's (a stack of experts).
        images: whether it is a convolution's.
    """

    place: tuple[str, int] | None
    tensor: Tensor
    dim: int
    groups: int = 1
    batched: bool = False
    images: bool = False

    def squares(self, values: Tensor) -> Tensor:
        """Sum the squares of [observations, positions, within] to [(batch,) positions]."""
        found = values.square().sum(2)
        if not self.batched:
            return found.sum(0)
        return found.reshape(len(self.tensor), -1, found.shape[1]).sum(1)

    def sums(self) -> Tensor:
        """Sum absolute weights over all that read a position: [(batch,) positions]."""
        size = wide(self.tensor.detach()).abs()
        if self.groups > 1:
            rows, each = size.shape[:2]
            return size.reshape(self.groups, rows // self.groups, each, -1).sum((1, 3)).reshape(-1)
        kept = (0, self.dim) if self.batched else (self.dim,)
        others = [d for d in range(size.dim()) if d not in kept]
        return size.sum(others) if others else size

    def spread(self, values: Tensor) -> Tensor:
        """Lay values [(batch,) positions] beside the weights that meet them."""
        shape = [1] * self.tensor.dim()
        if self.groups > 1:
            rows, each = self.tensor.shape[:2]
            laid = values.reshape(self.groups, 1, each).expand(-1, rows // self.groups, -1)
            shape[:2] = [rows, each]
            return laid.reshape(shape)
        shape[self.dim] = values.shape[-1]
        if self.batched:
            shape[0] = len(values)
        return values.reshape(shape)


class Weights:
    """Tells which tensors are parameters of a model, or views of them."""

    def __init__(self, model: nn.Module) -> None:
        self._by_storage: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.numel():
                self._by_storage[_storage(parameter)].append((name, parameter))

    def find(self, tensor: Tensor, dim: int) -> tuple[str, int] | None:
        """Return the parameter that ``tensor`` shows, and which of its dimensions ``dim`` is."""
        if not tensor.numel():
            return None
        start = tensor.storage_offset()
        for name, parameter in self._by_storage.get(_storage(tensor), ()):
            if 0 <= start - parameter.storage_offset() < parameter.numel():
                for d, size in enumerate(parameter.shape):
                    if (size, parameter.stride(d)) == (tensor.shape[dim], tensor.stride(dim)):
                        return name, d
        return None


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def contracted(
    packet: str, args: tuple[Any, ...], weights: Weights
) -> tuple[int, int, Weight | None]:
    """Return which argument of a contraction is the activation, its dimension, and the weight.

    Where both operands of a product are activations, it is the left one.

    Args:
        packet: ``aten.convolution`` or a key of ``PRODUCTS``.
        args: of the operation.
        weights: of the model.
    """
    if packet == CONVOLUTION:
        x, tensor, transposed, groups = args[0], args[1], bool(args[6]), int(args[8])
        dim = 1 if x.dim() == tensor.dim() else 0
        inner = 0 if transposed else 1
        place = weights.find(tensor, inner)
        return 0, dim, Weight(place, tensor, inner, 1 if transposed else groups, images=True)
    arg = PRODUCTS[packet]
    left, right = args[arg], args[arg + 1]
    inner = max(0, right.dim() - 2)
    place = weights.find(right, inner)
    if place is not None:
        return arg, left.dim() - 1, _factor(place, right, inner)
    place = weights.find(left, left.dim() - 1)
    if place is not None:
        return arg + 1, inner, _factor(place, left, left.dim() - 1)
    return arg, left.dim() - 1, None


def _factor(place: tuple[str, int], tensor: Tensor, dim: int) -> Weight:
    if tensor.dim() < 3:
        return Weight(place, tensor, dim)
    if tensor.stride(0) == 0:  # one matrix for the whole batch
        return Weight(place, tensor[0], dim - 1)
    return Weight(place, tensor, dim, batched=True)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, or float32 on a device without that."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
