"""The relative difference of two networks' outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_error(
    result: list[Tensor], reference: list[Tensor], dense: list[Tensor] | None = None
) -> float:
    """Return the largest relative difference; infinite where shapes or NaNs differ.

    It is relative to the largest magnitude in the same output of ``reference``. With the outputs
    of the dense network at hand, large values that are the same in all three (a constant that
    fills masked places) do not count, down to 1.
    """
    if len(result) != len(reference):
        return float("inf")
    before: list[Tensor | None] = [None] * len(result)
    if dense is not None and len(dense) == len(reference):
        before = list(dense)
    return max(map(_error, result, reference, before), default=0.0)


def _error(a: Tensor, b: Tensor, dense: Tensor | None) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    infinite = a.isinf()
    if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(infinite, b.isinf()):
        return float("inf")
    if not torch.equal(a[infinite], b[infinite]):
        return float("inf")
    finite = a.isfinite()
    if not bool(finite.any()):
        return 0.0
    sizes = b[finite].abs()
    scale = float(sizes.max())
    if dense is not None and dense.shape == b.shape and dense.dtype == b.dtype:
        moved = (dense[finite] != b[finite]) | (a[finite] != b[finite])
        if bool(moved.any()):
            scale = max(float(sizes[moved].max()), min(scale, 1.0))
    away = float((a[finite] - b[finite]).abs().max())
    return away / max(scale, torch.finfo(torch.float64).tiny)
