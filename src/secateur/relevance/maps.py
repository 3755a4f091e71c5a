"""Maps of relevance averaged over samples as they come, and the statistics of units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.relevance.positions import Span

STATISTICS = ("mean", "mean_abs", "max", "max_abs", "min", "min_abs")


@dataclass
class Average:
    """Sum over samples of the relevance at one place, [size, positions] in float64.

    For the statistic "mean" the positions are summed as they come, so that it takes one
    number a channel; the others need the whole map of one sample.
    """

    statistic: str
    total: Tensor | None = None
    positions: int = 0

    def add(self, relevance: Tensor, dim: int, span: Span | None, samples: int, where: str) -> None:
        """Add a batch.

        Args:
            relevance: of the whole batch.
            dim: the dimension that holds the units.
            span: where the samples are.
            samples: in the batch.
            where: the place, for errors.

        Raises:
            InputError: the samples cannot be told apart, or maps differ in size.
        """
        dim %= relevance.dim()
        if self.statistic == "mean":
            others = [d for d in range(relevance.dim()) if d != dim]
            found = (relevance.sum(others) if others else relevance).to("cpu", torch.float64)
            per_sample = relevance.numel() // (relevance.shape[dim] * samples)
            found = found[:, None] / max(1, per_sample)
        else:
            if samples > 1 and (span is None or span.dim == dim):
                raise InputError(
                    f"statistic {self.statistic!r} needs a map of every sample, but the samples "
                    f"cannot be told apart at {where}; use 'mean'"
                )
            # The relevance itself may be written to once it was seen: keep a copy.
            found = _sample_sum(relevance, dim, span, samples).to("cpu", torch.float64, copy=True)
        if self.total is None:
            self.total = found
        elif self.total.shape != found.shape:
            raise InputError(
                f"statistic {self.statistic!r} needs inputs of one size, but the maps at {where} "
                f"are {tuple(self.total.shape)} and {tuple(found.shape)}; use 'mean'"
            )
        else:
            self.total += found


def _sample_sum(relevance: Tensor, dim: int, span: Span | None, samples: int) -> Tensor:
    """Sum over the samples of a batch; return [size of ``dim``, all other positions]."""
    if samples == 1 or span is None:
        return relevance.movedim(dim, 0).reshape(relevance.shape[dim], -1)
    shape = relevance.shape
    split = (shape[span.dim] // (samples * span.inner), samples, span.inner)
    parts = relevance.reshape(*shape[: span.dim], *split, *shape[span.dim + 1 :])
    summed = parts.sum(span.dim + 1)  # dimension span.dim is now two: outer and inner
    return summed.movedim(dim if dim < span.dim else dim + 1, 0).reshape(shape[dim], -1)


def unit_statistic(average: Tensor, units: Tensor, size: int, statistic: str) -> Tensor:
    """Return the statistic of every unit's part of a map.

    Args:
        average: [positions along the dimension, all others].
        units: int [positions along the dimension], -1 for none of these units.
        size: number of units.
        statistic: one of ``STATISTICS``.
    """
    values = average.abs() if statistic.endswith("_abs") else average
    mine = units >= 0
    where, values = units[mine], values[mine]
    if statistic.startswith("mean"):
        sums = torch.zeros(size, dtype=torch.float64).index_add_(0, where, values.mean(1))
        return sums / torch.bincount(where, minlength=size).clamp(min=1)
    high = statistic.startswith("max")
    best = values.amax(1) if high else values.amin(1)
    start = torch.zeros(size, dtype=torch.float64)
    return start.scatter_reduce_(0, where, best, "amax" if high else "amin", include_self=False)
