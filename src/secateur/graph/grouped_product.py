"""Products of rows with the matrix of their group, as mixtures of experts compute them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROUPED = "aten._grouped_mm"


def grouped_product(left: Tensor, right: Tensor, offs: Tensor | None = None) -> Tensor:
    """Compute a grouped product in any precision: ``left[start:end] @ right[g]`` for each group.

    Args:
        left: [rows, K], rows sorted by group; or [G, rows, K].
        right: [G, K, N].
        offs: int [G]: end of each group's rows. Rows behind the last are zero.
    """
    if offs is None:
        return torch.bmm(left, right)
    if left.dim() != 2 or right.dim() != 3:
        raise NotImplementedError("a grouped product that splits its columns by groups")
    ends = [0, *offs.tolist()]
    parts = [
        left[start:end] @ matrix for (start, end), matrix in zip(pairwise(ends), right, strict=True)
    ]
    return torch.cat([*parts, left.new_zeros(len(left) - ends[-1], right.shape[2])])


class GroupedInFloat64(TorchFunctionMode):
    """Computes grouped products in float64, with gradients: PyTorch has no kernel for that."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("grouped_mm", "_grouped_mm") and args[0].dtype == torch.float64:
            return grouped_product(*args[:2], *args[2:3] or (named.get("offs"),))
        return func(*args, **named)
