"""Norm scales against lists read off by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.criteria.scaling import norm_scales
from secateur.errors import InputError


class RootMeanSquareNorm(nn.Module):
    """A norm as libraries write their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Net(nn.Module):
    """Two norms over the sum, one over the inner units, none over the hidden ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.b = nn.Linear(4, 5)
        self.inner = nn.BatchNorm1d(5)
        self.c = nn.Linear(5, 4)
        self.last = RootMeanSquareNorm(4)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + self.c(torch.relu(self.inner(self.b(self.norm(h)))))
        return self.head(torch.relu(self.hidden(self.last(h))))


@pytest.fixture
def graph() -> secateur.Graph:
    model = Net().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
        model.last.scale.copy_(torch.tensor([0.25, 1.0, -1.0, 4.0]))
        model.inner.weight.copy_(torch.tensor([0.0, 1.0, -2.0, 3.0, -4.0]))
    return secateur.trace(model, torch.randn(2, 3))


def test_the_scales_of_a_units_norms_are_added(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "norm_scale")
    assert {name: values.tolist() for name, values in scores.items()} == {
        "a": [1.25, 3.0, 4.0, 4.5],
        "b": [0.0, 1.0, 2.0, 3.0, 4.0],
    }


@pytest.mark.parametrize(
    ("aggregation", "wanted"),
    [
        ("mean", [0.625, 1.5, 2.0, 2.25]),
        ("max", [1.0, 2.0, 3.0, 4.0]),
        ("first", [1.0, 2.0, 3.0, 0.5]),
    ],
)
def test_only_slots_in_norms_are_aggregated(
    graph: secateur.Graph, aggregation: str, wanted: list[float]
) -> None:
    scores = secateur.score(graph, "norm_scale", aggregation=aggregation)
    assert scores["a"].tolist() == wanted


def test_groups_without_a_norm_stay_whole(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "norm_scale")
    plan = secateur.allocate(graph, scores, sparsity=0.5)
    assert set(plan.removed) == {"a", "b"}
    assert "hidden" in graph.by_name


def test_a_network_without_norms_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = secateur.trace(model, torch.randn(1, 3))
    with pytest.raises(InputError, match="'norm_scale' finds nothing to judge in any group"):
        secateur.score(graph, "norm_scale")


def test_norms_are_known_by_their_class() -> None:
    class LayerNorm2d(nn.LayerNorm):
        pass

    class Wrapped(nn.GroupNorm):
        pass

    model = nn.ModuleDict(
        {
            "plain": nn.BatchNorm2d(4),
            "bare": nn.BatchNorm2d(4, affine=False),
            "own": LayerNorm2d(4),
            "sub": Wrapped(2, 4),
            "shape": nn.LayerNorm((4, 4)),
            "linear": nn.Linear(4, 4),
            "scale": RootMeanSquareNorm(4),
        }
    )
    assert norm_scales(model) == {"plain.weight", "own.weight", "sub.weight", "scale.scale"}
    assert norm_scales(nn.LayerNorm(3)) == {"weight"}
