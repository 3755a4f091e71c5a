"""Sizes computed from several attributes: as free as the same arithmetic written otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur

X = torch.randn(2, 8, dtype=torch.float64)


class Parts(nn.Module):
    """Splits a width into parts of ``size(self, y)`` and reads each by a layer of its own."""

    def __init__(self, size: Callable[[Any, Tensor], int], width: int, parts: int) -> None:
        super().__init__()
        self.size, self.width, self.parts = size, width, parts
        self.part, self.extra, self.less = width // parts, width // parts // 2, width // 4
        self.a = nn.Linear(8, width)
        self.p = nn.ModuleList(nn.Linear(width // parts, 6) for _ in range(parts))
        self.o = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        pieces = torch.split(y, self.size(self, y), 1)
        return self.o(sum(p(v) for p, v in zip(self.p, pieces, strict=True)).relu())


WAYS: dict[str, Callable[[Any, Tensor], int]] = {
    "one": lambda s, y: s.part,
    "a // b": lambda s, y: s.width // s.parts,
    "shape // b": lambda s, y: y.shape[1] // s.parts,
    "a * b": lambda s, y: s.extra * 2,
    "a + b": lambda s, y: s.extra + s.extra,
    "a - b": lambda s, y: s.width - s.part * (s.parts - 1),
    "a // b // c": lambda s, y: s.width * 2 // s.parts // 2,
}


def exact(model: nn.Module, pruned: nn.Module, columns: dict[str, list[int]], x: Tensor) -> bool:
    """Compare with the dense network whose reading columns are zero, by hand."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, positions in columns.items():
            reference.get_parameter(name)[:, positions] = 0
        return torch.allclose(pruned(x), reference(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_size_made_of_attributes_is_solved(way: str, parts: int) -> None:
    torch.manual_seed(0)
    model = Parts(WAYS[way], 32, parts).double().eval()
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    assert plan.given_back == {}
    pruned = secateur.cut(model, plan)
    assert pruned.a.weight.shape == (16, 8)
    columns = {f"p.{i}.weight": list(plan.cuts[f"p.{i}.weight"][1]) for i in range(parts)}
    assert all(len(positions) == 16 // parts for positions in columns.values())
    columns["o.weight"] = list(plan.removed["p.0"])
    assert exact(model, pruned, columns, X)


def test_the_channels_change_and_not_the_number_of_parts() -> None:
    model = Parts(WAYS["a // b"], 32, 2).double().eval()
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    assert plan.attributes == {"width": 16}
    halves = Parts(lambda s, y: s.width // 2, 32, 2).double().eval()
    graph = secateur.trace(halves, X)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    assert plan.attributes == {"width": 16}  # and not 17, although 17 // 2 is 8


class Two(nn.Module):
    """Two widths from one number: both quotients must follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.two, self.four = 32, 2, 4
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        one = self.a(x) + torch.ones(n, self.width // self.two, dtype=x.dtype)
        other = self.b(x) + torch.ones(n, self.width // self.four, dtype=x.dtype)
        return self.c(one.relu()) + self.d(other.relu())


@pytest.mark.parametrize("gone", [(8, 4), (8, 0), (3, 2), (15, 7), (4, 7)])
def test_quotients_of_one_number_keep_to_it_or_change_their_divisors(gone: tuple[int, int]) -> None:
    model = Two().double().eval()
    graph = secateur.trace(model, X)
    wanted = {g.name: tuple(range(n)) for g, n in zip(graph.groups, gone, strict=True)}
    plan = secateur.planning.make_plan(graph, wanted)
    pruned = secateur.cut(model, plan)
    assert pruned.width // pruned.two == pruned.a.out_features
    assert pruned.width // pruned.four == pruned.b.out_features
    columns = {
        f"{reader}.weight": list(plan.removed.get(name, ()))
        for name, reader in (("a", "c"), ("b", "d"))
    }
    assert exact(model, pruned, columns, X)
    if gone == (8, 4):
        assert plan.given_back == {}
