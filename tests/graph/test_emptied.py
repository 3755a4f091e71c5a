"""Two groups together must not take every position that a layer reads.

Heads x width is 2 x 4; ``b`` reads the first five, that is head 0 and one position of head 1:
without head 0 and width 0 nothing is left.
"""

from __future__ import annotations

import torch
from torch import nn

import secateur
from secateur.planning import make_plan


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.width, self.keep = 2, 4, 5
        self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x).view(-1, self.heads, self.width).tanh().flatten(1)
        return self.b(h[:, : self.keep])


def test_no_reader_is_left_without_inputs() -> None:
    model, x = Net().eval(), torch.randn(2, 5)
    graph = secateur.trace(model, x)
    by_size = {g.size: g.name for g in graph.groups}
    plan = make_plan(graph, {by_size[2]: (0,), by_size[4]: (0,)})
    assert plan.given_back
    assert secateur.verify(model, secateur.cut(model, plan), plan, x).ok
