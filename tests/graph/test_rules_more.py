"""Each is certain: cut network crashes, or freedom is lost that the issue's op list promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur
from secateur.planning import make_plan


class Two(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 6, 3), act, nn.Conv2d(6, 4, 3)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


@pytest.mark.parametrize("act", [nn.Hardswish(), nn.PReLU(6), nn.RReLU(inplace=True)], ids=str)
def test_activations_pass_channels(act) -> None:
    model, x = Two(act).eval(), torch.randn(2, 3, 8, 8)
    graph = secateur.trace(model, x)
    assert [g.size for g in graph.groups] == [6]
    plan = make_plan(graph, {graph.groups[0].name: (0, 4)})
    assert secateur.verify(model, secateur.cut(model, plan), plan, x).ok


def test_rms_norm_module_is_cut() -> None:
    """cut() returns a network that raises: normalized_shape stays 6 while weight has 5."""
    model = nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Linear(6, 4)).eval()
    x = torch.randn(2, 3, 5)
    graph = secateur.trace(model, x)
    plan = make_plan(graph, {"0": (2,)})
    assert secateur.verify(model, secateur.cut(model, plan), plan, x).ok


class HalfByFloat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(3, 4)

    def forward(self, x):
        h = self.a(x)
        return self.b(h[:, : int(h.shape[1] * 0.5)])


class HalfByFloatView(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(3, 4)

    def forward(self, x):
        h = self.a(x)
        return self.b(h.view(x.shape[0], int(h.shape[1] * 0.5), -1).mean(2))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (HalfByFloat(), torch.randn(2, 5)),
        (HalfByFloatView(), torch.randn(2, 3, 6, 6)),
    ],
)
def test_sizes_that_pass_through_floats_are_safe(model, x) -> None:
    """int(C * 0.5) is taken as a literal although it moves with C; the cut network crashes."""
    graph = secateur.trace(model.eval(), x)
    for group in graph.groups:
        for unit in range(group.size):
            plan = make_plan(graph, {group.name: (unit,)})
            assert secateur.verify(model, secateur.cut(model, plan), plan, x).ok
