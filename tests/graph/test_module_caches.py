"""Dictionaries in which modules keep tensors: caches are made anew, tables stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

HEADS, WIDTH, LENGTH = 4, 16, 5


class Attention(nn.Module):
    """LeViT's: biases of heads are looked up once, and kept."""

    def __init__(self, key: Callable[[Tensor], Any], how: str) -> None:
        super().__init__()
        self.heads, self.size, self.key, self.how = HEADS, WIDTH // HEADS, key, how
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.biases = nn.Parameter(torch.randn(HEADS, LENGTH))
        places = torch.arange(LENGTH)
        self.register_buffer("places", (places[:, None] - places).abs())
        self.kept: dict[Any, Any] = {}
        self.kept_pairs: dict[Any, Any] = {}

    def made(self) -> Tensor:
        return self.biases[:, self.places]

    def bias(self, x: Tensor) -> Tensor:
        key = self.key(x)
        if self.how == "in":
            if key not in self.kept:
                self.kept[key] = self.made()
            return self.kept[key]
        if self.how == "get":
            found = self.kept.get(key)
            if found is None:
                found = self.kept[key] = self.made()
            return found
        if self.how == "error":
            try:
                return self.kept[key]
            except KeyError:
                return self.kept.setdefault(key, self.made())
        if self.how == "pair":
            if key not in self.kept_pairs:
                self.kept_pairs[key] = (self.made(), self.made() * 0.5)
            return self.kept_pairs[key][0] + self.kept_pairs[key][1]
        return self.made()

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) + self.bias(x)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, self.heads * self.size))


KEYS: dict[str, Callable[[Tensor], Any]] = {
    "device": lambda x: str(x.device),
    "length": lambda x: int(x.shape[1]),
    "shape": lambda x: (x.shape[1], x.shape[1]),
}
X = torch.randn(2, LENGTH, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(key: str = "device", how: str = "in") -> nn.Sequential:
    torch.manual_seed(0)
    attention = Attention(KEYS[key], how)
    return nn.Sequential(nn.Linear(6, WIDTH), attention, nn.Linear(WIDTH, 3)).double().eval()


def described(graph: secateur.Graph) -> list[Any]:
    return [(g.name, g.size, g.kind, {slot.name for slot in g.slots}) for g in graph.groups]


@pytest.mark.parametrize("how", ["in", "get", "error", "pair"])
@pytest.mark.parametrize("key", KEYS)
def test_a_network_that_ran_before_is_traced_as_a_fresh_one(key: str, how: str) -> None:
    net = network(key, how)
    fresh = described(secateur.trace(net, X))
    assert {size for name, size, kind, _ in fresh if kind == "head"} == {HEADS}
    assert fresh == described(secateur.trace(network(key, "none"), X))
    with torch.no_grad():
        wanted = net(X)
    kept = [dict(net[1].kept), dict(net[1].kept_pairs)]
    graph = secateur.trace(net, X)
    assert described(graph) == fresh
    name = next(group.name for group in graph.groups if group.kind == "head")
    plan = secateur.Plan.from_json(make_plan(graph, {name: (1, 2)}).to_json())
    small = secateur.cut(net, plan)
    check = secateur.verify(net, small, plan, X)
    assert check.ok
    assert check.changed
    assert all(
        a is b[k]
        for b, c in zip(kept, (net[1].kept, net[1].kept_pairs), strict=True)
        for k, a in c.items()
    )
    with torch.no_grad():
        assert torch.equal(net(X), wanted)
        small(X)
        plain = secateur.cut(network(key, "none"), plan)
        scale = 1.5 if how == "pair" else 1.0
        plain[1].biases.mul_(scale)
        torch.testing.assert_close(small(X), plain(X))


def test_what_a_pass_after_the_trace_leaves_is_not_cut_along() -> None:
    net = network("length")
    graph = secateur.trace(net, X)
    net(X)
    name = next(group.name for group in graph.groups if group.kind == "head")
    small = secateur.cut(net, make_plan(graph, {name: (0,)}))
    assert small(X).shape == (2, LENGTH, 3)
    assert [tuple(kept.shape) for kept in small[1].kept.values()] == [(3, LENGTH, LENGTH)]
    masked = secateur.mask(net, make_plan(graph, {name: (0,)}))
    torch.testing.assert_close(masked(X), small(X))


TABLES = {
    "by key": "h * self.table['a']",
    "by get": "h * self.table.get('a', 2.0)",
    "by in": "h * self.table['a'] if 'a' in self.table else h",
    "each": "h * sum(value for value in self.table.values())",
    "counted": "h * len(self.table)",
    "popped": "h * self.table.copy().pop('a', 3.0)",
    "if there": "h * 2 if self.table else h",
    "and a cache": "h * self.table['a'] * self.made.setdefault(1, self.b.bias[:1] * 2)",
}


class Scaled(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.table = {"a": torch.tensor(0.25, dtype=torch.float64), "b": torch.ones(())}
        self.made: dict[int, Tensor] = {}
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(eval(self.text, {}, {"h": h, "self": self}))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_no_cache(name: str) -> None:
    torch.manual_seed(0)
    net = Scaled(TABLES[name]).double().eval()
    graph = secateur.trace(net, X)
    assert described(graph) == [("a", 8, "neuron", {"a.weight", "a.bias", "b.weight"})]
    plan = make_plan(graph, {"a": (0, 3, 4)})
    small = secateur.cut(net, plan)
    assert small.table.keys() == net.table.keys()
    assert secateur.verify(net, small, plan, X).ok
    with torch.no_grad():
        net.b.weight[:, [0, 3, 4]] = 0
        torch.testing.assert_close(small(X), net(X))
