"""Groups of a group norm and channels within them: one of both is cut unless both are asked for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Network(nn.Module):
    def __init__(self, groups: int, width: int = 32) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.o = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.a(x)))
        return self.o(torch.relu(self.m(self.b(x))).mean((2, 3)))


def built(groups: int) -> nn.Module:
    torch.manual_seed(0)
    model = Network(groups).double().eval()
    for parameter in (model.n.weight, model.n.bias, model.m.weight, model.m.bias):
        nn.init.normal_(parameter)
    return model


def counted(width: int) -> int:
    return 3 * 9 * width + 9 * width**2 + 2 * 3 * width + 10 * width + 10


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16, 32])
def test_at_half_a_quarter_of_the_weights_is_left(groups: int, sparsity: float) -> None:
    result = secateur.prune(built(groups), X, sparsity=sparsity)
    width = int(32 * (1 - sparsity))
    assert result.plan.pruned.params == counted(width)
    both = groups not in (1, 32)
    assert (len(result.plan.removed), len(result.plan.notes)) == (2, int(both))
    if both:
        whole = {g.name for g in secateur.trace(built(groups), X).groups} - set(result.plan.removed)
        assert all(name in result.plan.notes[0] for name in whole)


def test_whole_groups_of_a_norm_leave_the_others_as_they_were() -> None:
    """By hand: the norm of the kept groups is the dense one's, so the rest is zeroed columns."""
    model = built(16)
    result = secateur.prune(model, X, sparsity=0.5, criterion="random")
    assert result.model.n.num_groups == result.model.m.num_groups == 8
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.b.weight[:, list(result.plan.cuts["b.weight"][1])] = 0
        reference.o.weight[:, list(result.plan.cuts["o.weight"][1])] = 0
        assert torch.allclose(result.model(X), reference(X), rtol=0, atol=1e-12)


def test_the_channels_within_few_groups_go_evenly() -> None:
    model = built(2)
    result = secateur.prune(model, X, sparsity=0.5, criterion="random")
    assert result.model.n.num_groups == 2
    kept = [i for i in range(32) if i not in result.plan.cuts["a.weight"][0]]
    assert [i % 16 for i in kept[:8]] == [i % 16 for i in kept[8:]]
    again = [i for i in range(32) if i not in result.plan.cuts["b.weight"][0]]
    with torch.no_grad():
        h = F.group_norm(model.a(X)[:, kept], 2, model.n.weight[kept], model.n.bias[kept]).relu()
        h = F.conv2d(h, model.b.weight[again][:, kept], model.b.bias[again], padding=1)
        h = F.group_norm(h, 2, model.m.weight[again], model.m.bias[again]).relu().mean((2, 3))
        wanted = h @ model.o.weight[:, again].T + model.o.bias
    assert torch.allclose(result.model(X), wanted, rtol=0, atol=1e-12)


def test_what_limits_name_is_cut_too() -> None:
    graph = secateur.trace(built(8), X)
    scores = secateur.score(graph, "l2")
    plan = secateur.allocate(graph, scores, sparsity=0.5)
    whole = [group.name for group in graph.groups if group.name not in plan.removed]
    assert len(whole) == 2
    named = secateur.allocate(graph, scores, sparsity=0.5, limits={whole[0]: 1.0})
    assert set(named.removed) == set(plan.removed) | {whole[0]}
    asked = {f"group:{name}": 1.0 for name in whole}
    both = secateur.allocate(graph, scores, sparsity=0.5, limits=asked)
    assert both.pruned.params == counted(8)
    assert both.notes == ()
    wide = secateur.allocate(graph, scores, sparsity=0.5, limits={"*": 0.9})
    assert set(wide.removed) == set(plan.removed)


def test_a_factor_whose_partner_stays_is_cut() -> None:
    graph = secateur.trace(built(8), X)
    scores = secateur.score(graph, "l2")
    chosen = secateur.allocate(graph, scores, sparsity=0.5)
    other = secateur.allocate(graph, scores, sparsity=0.5, protect=list(chosen.removed))
    assert set(other.removed).isdisjoint(chosen.removed)
    assert other.pruned.params == counted(16)


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_every_scope_spares_the_same(scope: str) -> None:
    graph = secateur.trace(built(8), X)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5, scope=scope)
    sizes = {group.name: group.size for group in graph.groups}
    assert {sizes[name] for name in plan.removed} == {8}
    assert math.isclose(sum(map(len, plan.removed.values())), 8)


def test_budgets_take_both() -> None:
    graph = secateur.trace(built(8), X)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), params=0.05)
    assert plan.pruned.params <= 0.05 * plan.dense.params
    assert len(plan.removed) == 4


class Heads(nn.Module):
    """A norm over heads, as retention has: heads and their dimensions both go, as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b * t, -1)
        return self.o(self.norm(y)).view(b, t, -1)


def test_heads_and_their_dimensions_both_go() -> None:
    model = Heads().double().eval()
    graph = secateur.trace(model, torch.randn(2, 5, 32, dtype=torch.float64))
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert not any("group norm" in note for note in plan.notes)
