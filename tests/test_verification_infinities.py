"""The proof must fail when the cut is wrong, and must say when it proves nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan


class Speckled(nn.Module):
    """Its output has a NaN and an infinity wherever ``bad`` says so."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)
        self.register_buffer("bad", torch.zeros(4))
        self.bad[at] = math.nan
        self.bad[3] = math.inf

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))) + self.bad


def test_an_infinity_is_no_nan() -> None:
    torch.manual_seed(0)
    model, x = Speckled().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    pruned.bad[3] = -math.inf
    check = secateur.verify(model, pruned, plan, x)
    assert not check.ok


def test_an_infinity_for_a_nan_is_found() -> None:
    torch.manual_seed(0)
    model, x = Speckled().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    pruned.bad[0] = math.inf
    assert not secateur.verify(model, pruned, plan, x).ok
