"""A network that ran before is pruned as a fresh one: what its modules keep is computed again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

X = torch.randn(2, 9, 8, dtype=torch.float64)


class Attention(nn.Module):
    """Biases of relative positions, gathered once and kept; ``way`` says where."""

    def __init__(self, way: str, width: int = 32, heads: int = 4, length: int = 9) -> None:
        super().__init__()
        self.way, self.heads = way, heads
        self.i, self.qkv = nn.Linear(8, width), nn.Linear(width, 3 * width)
        self.p, self.o = nn.Linear(width, width), nn.Linear(width, 3)
        self.biases = nn.Parameter(torch.randn(heads, length))
        index = torch.arange(length)[:, None] - torch.arange(length)[None]
        self.register_buffer("index", index.abs(), persistent=False)
        self.cache: Any = [] if way == "list" else {}
        self.last: Tensor | None = None

    def bias(self, x: Tensor) -> Tensor:
        made = self.biases[:, self.index]
        if self.way == "none" or self.training:
            return made
        if self.way == "attribute":
            if self.last is None:
                self.last = made
            return self.last
        if self.way == "late":
            if not hasattr(self, "late"):
                self.late = made
            return self.late
        if self.way == "list":
            if not self.cache:
                self.cache.append(made)
            return self.cache[0]
        keys = {"device": x.device, "name": str(x.device), "size": tuple(x.shape[1:])}
        key = keys[self.way]
        if key not in self.cache:
            self.cache[key] = made
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, t, _ = x.shape
        q, k, v = (
            part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        weights = (q @ k.transpose(-1, -2) + self.bias(x)).softmax(-1)
        return self.o(x + self.p((weights @ v).transpose(1, 2).flatten(2))).mean(1)


def built(way: str) -> Attention:
    torch.manual_seed(0)
    return Attention(way).double().eval()


WAYS = ["attribute", "late", "list", "device", "name", "size"]


@pytest.mark.parametrize("ran", ["before the trace", "after the trace", "never"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_kept_changes_nothing(way: str, ran: str) -> None:
    model, plain = built(way), built("none")
    if ran == "before the trace":
        with torch.no_grad():
            model(X)
    graph, wanted = secateur.trace(model, X), secateur.trace(plain, X)
    assert [(g.name, g.size) for g in graph.groups] == [(g.name, g.size) for g in wanted.groups]
    assert graph.notes == wanted.notes
    if ran == "after the trace":
        with torch.no_grad():
            model(X)
    removed = {g.name: tuple(range(g.size // 2)) for g in graph.groups}
    plan = make_plan(graph, removed)
    assert plan.removed == make_plan(wanted, removed).removed
    assert secateur.Plan.from_json(plan.to_json()) == plan
    expected = secateur.cut(plain, make_plan(wanted, removed))
    for inplace in (False, True):
        dense = copy.deepcopy(model)
        pruned = secateur.cut(dense, plan, inplace=inplace)
        for _ in range(2):  # the second pass reads what the first one kept
            assert torch.equal(pruned(X), expected(X))
        assert torch.equal(pruned.train()(X), expected(X))
    assert secateur.verify(model, secateur.cut(model, plan), plan, X).ok


def test_the_network_that_is_traced_keeps_what_it_kept() -> None:
    model = built("name")
    with torch.no_grad():
        model(X)
    kept = model.cache["cpu"]
    secateur.prune(model, X, sparsity=0.5)
    assert model.cache == {"cpu": kept}
    assert model.cache["cpu"] is kept


class Memory(nn.Module):
    """A state that the next pass goes on from is no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.state is not None:
            h = h + self.state
        self.state = h.mean((0, 1))
        return self.b(h.relu())


class Tables(nn.Module):
    """Tables that nobody can compute again."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = {"a": torch.randn(16)}
        self.unused = [torch.randn(5)]
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for table in self.tables.values():
            h = h * table.to(x.dtype)
        return self.b(h.relu())


def test_a_state_goes_on_and_tables_stay() -> None:
    memory = Memory().double().eval()
    with torch.no_grad():
        memory(X)
    graph = secateur.trace(memory, X)
    assert graph.caches == {}
    plan = make_plan(graph, {"a": (1, 5)})
    pruned = secateur.cut(memory, plan)
    assert torch.equal(pruned.state, memory.state[[i for i in range(16) if i not in (1, 5)]])
    tables = Tables().double().eval()
    graph = secateur.trace(tables, X)
    assert graph.caches == {}
    pruned = secateur.cut(tables, make_plan(graph, {"a": (1, 5)}))
    assert pruned.tables["a"].shape == (14,)
    assert torch.equal(pruned.unused[0], tables.unused[0])


def test_a_network_without_such_tensors_is_not_run() -> None:
    class Counts(nn.Module):
        runs = 0

        def __init__(self) -> None:
            super().__init__()
            self.a, self.sizes, self.names = nn.Linear(8, 3), {"a": 3}, ["x"]

        def forward(self, x: Tensor) -> Tensor:
            type(self).runs += not x.is_meta
            return self.a(x)

    secateur.trace(Counts(), X.float())
    assert Counts.runs == 0
