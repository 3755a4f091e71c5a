"""Least squares from sums alone, so that memory does not grow with the data.

Symbols: rows x of k inputs and a 1 (the intercept), targets y of o outputs, per
group g of a grouped convolution. Kept are G = sum x x^T [g, k+1, k+1],
C = sum x y^T [g, k+1, o] and the sums of y^2 and y [g, o], all in float64. The
squared error of weights t [g, k+1, o] is then sum y^2 - 2 t.C + t.G t, per output.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Equations:
    """The sums of one layer."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in rows x [n, g, k] and targets y [n, g, o]."""
        device = torch.device("cpu") if x.device.type == "mps" else x.device
        rows = x.to(device, torch.float64).transpose(0, 1)
        rows = torch.cat([rows, torch.ones_like(rows[:, :, :1])], dim=2)
        targets = y.to(device, torch.float64).transpose(0, 1)
        gram, cross = rows.mT @ rows, rows.mT @ targets
        squares = targets.square().sum(1)
        if self.gram is None:
            self.gram, self.cross, self.squares = gram, cross, squares
        else:
            self.gram += gram
            self.cross += cross
            self.squares += squares

    def errors(self, solution: Tensor) -> Tensor:
        """Return the squared error [g, o], summed over rows, of weights [g, k+1, o]."""
        assert self.gram is not None
        quadratic = (solution * (self.gram @ solution)).sum(1)
        return (self.squares - 2 * (solution * self.cross).sum(1) + quadratic).clamp_min(0)

    def spread(self) -> Tensor:
        """Return the sum of (y - mean y)^2 [g, o]."""
        assert self.gram is not None
        count = self.gram[:, -1, -1:]
        return (self.squares - self.cross[:, -1].square() / count).clamp_min(0)

    def solve(self, start: Tensor, *, ridge: float, weights: bool, intercept: bool) -> Tensor:
        """Return the weights of least squares [g, k+1, o].

        The ridge pulls towards ``start``: so the error is never above the start's.

        Args:
            start: the weights now [g, k+1, o], the intercept last.
            ridge: relative to the mean of the diagonal of G.
            weights: whether the weights may change.
            intercept: whether the intercept may change.
        """
        assert self.gram is not None
        first = 0 if weights else start.shape[1] - 1
        last = start.shape[1] - (0 if intercept else 1)
        free = slice(first, last)
        if first >= last:
            return start
        gram = self.gram[:, free, free].clone()
        rest = (self.cross - self.gram @ start)[:, free]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        scale = diagonal.mean(1, keepdim=True)
        # A mean shift is no weight: it is never pulled back.
        pull = torch.ones_like(diagonal)
        if intercept:
            pull[:, -1] = 0
        weight = max(ridge, torch.finfo(torch.float64).eps)
        while True:
            damped = gram + torch.diag_embed(
                weight * scale * pull + torch.finfo(torch.float64).tiny
            )
            factor, failed = torch.linalg.cholesky_ex(damped)
            if not bool(failed.any()):
                break
            weight *= 10  # inputs that are always zero, or nearly copies of each other
        change = torch.cholesky_solve(rest, factor)
        solution = start.clone()
        solution[:, free] += change
        return solution
