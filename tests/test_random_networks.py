"""Random small networks: whatever is cut, the cut is exact; what cannot be cut is pinned.

Blocks are drawn one after another; each takes the running tensors and their
shapes, and adds a layer, a view, a join or a split as a network's author would
write it: with attributes, with shapes, or with literals. Nothing here says what
couples: the masked reference and plain counting judge.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import count, differences, relative_error, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.planning import make_plan

LIMIT = 1e-10
Step = Callable[[nn.Module, list[Tensor]], Tensor]


class Drawn(nn.Module):
    """A network of random steps; each appends a tensor that later steps may read."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[Step] = []
        self.story: list[str] = []
        self.shapes: list[tuple[int, ...]] = [(3, 4, 4)]
        self.read: set[int] = {0}
        self._stem()
        for _ in range(length):
            self._grow()
        self._finish()

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for step in self.steps:
            made.append(step(self, made))
        return made[-1]

    # --- growing ---

    def _add(self, name: str, shape: tuple[int, ...], step: Step) -> None:
        self.story.append(f"{len(self.steps) + 1}: {name} -> {shape}")
        self.steps.append(step)
        self.shapes.append(shape)

    def _layer(self, layer: nn.Module) -> str:
        name = f"l{len(self.layers)}"
        self.layers[name] = layer
        return name

    def _number(self, value: int) -> str:
        """Store a number as an attribute of the network, as authors do."""
        name = f"n{len(self.steps)}"
        setattr(self, name, value)
        return name

    def _recent(self, rank: int | None = None) -> int | None:
        """Choose a tensor, a late one most of the time."""
        good = [i for i, s in enumerate(self.shapes) if rank is None or len(s) == rank]
        good = good[1:] if len(good) > 1 and self.draw.random() < 0.9 else good
        if not good:
            return None
        return self._reads(good[-1] if self.draw.random() < 0.6 else self.draw.choice(good))

    def _reads(self, i: int) -> int:
        self.read.add(i)
        return i

    def _grow(self) -> None:
        block = self.draw.choice(
            [
                self._conv, self._conv, self._norm, self._act, self._linear, self._add_two,
                self._add_two, self._mul_gate, self._cat, self._split, self._slice, self._permute,
                self._heads, self._pool, self._pad, self._shuffle, self._flatten, self._layer_norm,
            ]
        )  # fmt: skip
        block()

    def _stem(self) -> None:
        name = self._layer(nn.Conv2d(3, self.draw.choice([6, 8]), 3, padding=1))
        out = self.layers[name].out_channels
        self._add("stem", (out, 4, 4), lambda m, t: m.layers[name](t[0]))

    def _conv(self) -> None:
        i = self._recent(3)
        if i is None:
            return
        channels, height, width = self.shapes[i]
        if height < 3:
            return
        out = self.draw.choice([4, 6, 8])
        groups = self.draw.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        out = channels if groups == channels else out
        conv = nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=self.draw.random() < 0.7)
        name = self._layer(conv)
        self._add(
            f"conv {i} groups {groups}", (out, height, width), lambda m, t: m.layers[name](t[i])
        )

    def _norm(self) -> None:
        i = self._recent(3)
        if i is None:
            return
        channels = self.shapes[i][0]
        kinds: list[nn.Module] = [nn.BatchNorm2d(channels), nn.InstanceNorm2d(channels)]
        kinds += [nn.GroupNorm(g, channels) for g in (1, 2) if channels % g == 0]
        layer = self.draw.choice(kinds)
        name = self._layer(layer)
        self._add(f"{type(layer).__name__} {i}", self.shapes[i], lambda m, t: m.layers[name](t[i]))

    def _layer_norm(self) -> None:
        i = self._recent(2) or self._recent(1)
        if not i:
            return
        name = self._layer(nn.LayerNorm(self.shapes[i][-1]))
        self._add(f"layer norm {i}", self.shapes[i], lambda m, t: m.layers[name](t[i]))

    def _act(self) -> None:
        i = self._recent()
        act = self.draw.choice([torch.tanh, F.gelu, torch.sigmoid, F.silu])
        self._add(f"{act.__name__} {i}", self.shapes[i], lambda m, t: act(t[i]))

    def _linear(self) -> None:
        i = self._recent(2) or self._recent(1)
        if not i:
            return
        out = self.draw.choice([4, 6, 8])
        name = self._layer(nn.Linear(self.shapes[i][-1], out))
        shape = (*self.shapes[i][:-1], out)
        self._add(f"linear {i}", shape, lambda m, t: m.layers[name](t[i]))

    def _add_two(self) -> None:
        i = self._recent()
        same = [j for j, shape in enumerate(self.shapes) if shape == self.shapes[i]]
        j = self._reads(self.draw.choice(same))
        self._add(f"add {i} {j}", self.shapes[i], lambda m, t: t[i] + 0.5 * t[j])

    def _mul_gate(self) -> None:
        i = self._recent(3)
        if i is None:
            return
        channels = self.shapes[i][0]
        name = self._layer(nn.Conv2d(channels, channels, 1))
        self._add(
            f"gate {i}",
            self.shapes[i],
            lambda m, t: t[i] * torch.sigmoid(m.layers[name](t[i].mean((2, 3), keepdim=True))),
        )

    def _cat(self) -> None:
        i = self._recent()
        rest = self.shapes[i][1:]
        alike = [j for j, shape in enumerate(self.shapes) if shape[1:] == rest]
        j = self._reads(self.draw.choice(alike))
        shape = (self.shapes[i][0] + self.shapes[j][0], *rest)
        if shape[0] <= 16:
            self._add(f"cat {i} {j}", shape, lambda m, t: torch.cat([t[i], t[j]], 1))

    def _split(self) -> None:
        i = self._recent()
        size = self.shapes[i][0]
        if size % 2:
            return
        way = self.draw.choice(["chunk", "attribute", "shape", "literal"])
        half = self._number(size // 2)
        literal = size // 2

        def step(m: nn.Module, t: list[Tensor]) -> Tensor:
            by: dict[str, Callable[[], Any]] = {
                "chunk": lambda: t[i].chunk(2, 1),
                "literal": lambda: t[i].split(literal, 1),
                "attribute": lambda: t[i].split(getattr(m, half), 1),
                "shape": lambda: t[i].split(t[i].shape[1] // 2, 1),
            }
            left, right = by[way]()
            return left * torch.tanh(right)

        self._add(f"split {i} by {way}", (size // 2, *self.shapes[i][1:]), step)

    def _slice(self) -> None:
        i = self._recent()
        size = self.shapes[i][0]
        if size < 4:
            return
        literal = self.draw.randrange(1, size - 1)
        name = self._number(literal)
        if self.draw.random() < 0.7:
            step: Step = lambda m, t: t[i][:, : getattr(m, name)]  # noqa: E731
        else:
            step = lambda m, t: t[i][:, :literal]  # noqa: E731
        self._add(f"slice {i} :{literal}", (literal, *self.shapes[i][1:]), step)

    def _permute(self) -> None:
        i = self._recent(3)
        if i is None:
            return
        channels, height, width = self.shapes[i]
        out = self.draw.choice([4, 6])
        name = self._layer(nn.Linear(channels, out))
        self._add(
            f"linear over channels {i}",
            (out, height, width),
            lambda m, t: m.layers[name](t[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        )

    def _heads(self) -> None:
        i = self._recent(3)
        if i is None or self.shapes[i][0] % 2:
            return
        channels, height, width = self.shapes[i]
        heads = self._number(2)
        literal = self.draw.random() < 0.3

        def step(m: nn.Module, t: list[Tensor]) -> Tensor:
            n, c, h, w = t[i].shape
            parts = 2 if literal else getattr(m, heads)
            x = t[i].view(n, parts, c // parts, h * w)
            scores = (x @ x.transpose(2, 3)).softmax(-1)
            return (scores @ x).reshape(n, c, h, w)

        self._add(f"attention over channels {i}", (channels, height, width), step)

    def _shuffle(self) -> None:
        i = self._recent(3)
        if i is None or self.shapes[i][0] % 2:
            return

        def step(m: nn.Module, t: list[Tensor]) -> Tensor:
            n, c, h, w = t[i].shape
            return t[i].view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

        self._add(f"shuffle {i}", self.shapes[i], step)

    def _pool(self) -> None:
        i = self._recent(3)
        if i is None or self.shapes[i][1] < 4:
            return
        channels, height, width = self.shapes[i]
        shape = (channels, height // 2, width // 2)
        self._add(f"pool {i}", shape, lambda m, t: F.max_pool2d(t[i], 2))

    def _pad(self) -> None:
        i = self._recent(3)
        if i is None or self.shapes[i][0] > 8:
            return
        channels, height, width = self.shapes[i]
        name = self._number(1)
        way = self.draw.random() < 0.5

        def step(m: nn.Module, t: list[Tensor]) -> Tensor:
            amount = getattr(m, name) if way else 1
            return F.pad(t[i], (0, 0, 0, 0, amount, amount))

        self._add(f"pad {i}", (channels + 2, height, width), step)

    def _flatten(self) -> None:
        i = self._recent(3)
        if i is None:
            return
        size = self.shapes[i][0] * self.shapes[i][1] * self.shapes[i][2]
        name = self._layer(nn.Linear(size, 6))
        if self.draw.random() < 0.5:
            step: Step = lambda m, t: m.layers[name](torch.flatten(t[i], 1))  # noqa: E731
        else:
            step = lambda m, t: m.layers[name](t[i].reshape(t[i].size(0), -1))  # noqa: E731
        self._add(f"flatten and linear {i}", (6,), step)

    def _finish(self) -> None:
        """Every tensor that nothing reads yet is pooled, mixed and summed into the output."""
        ends = [i for i in range(1, len(self.shapes)) if i not in self.read]
        ends = ends or [len(self.shapes) - 1]
        names = [self._layer(nn.Linear(self.shapes[i][0], 3)) for i in ends]

        def step(m: nn.Module, t: list[Tensor]) -> Tensor:
            total: Any = 0
            for i, name in zip(ends, names, strict=True):
                x = t[i]
                total = total + m.layers[name](x.flatten(2).mean(2) if x.dim() > 2 else x)
            return total

        self._add("sum of heads", (3,), step)


def build(seed: int, length: int) -> Drawn:
    torch.manual_seed(seed)
    model = Drawn(seed, length).double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * (0.5 if tensor.dim() > 1 else 1))
    return model


def example(batch: int) -> Tensor:
    torch.manual_seed(batch)
    return torch.randn(batch, 3, 4, 4, dtype=torch.float64)


def check(model: Drawn, graph: secateur.Graph, removed: dict[str, tuple[int, ...]]) -> bool:
    """Hold one removal to the contract; False where it is refused."""
    try:
        plan = make_plan(graph, removed)
        pruned = secateur.cut(model, plan)
    except PlanError:
        return False
    for batch in (2, 3):
        proof = secateur.verify(model, pruned, plan, example(batch))
        assert proof.max_error <= LIMIT, model.story
    assert count(pruned) == plan.pruned.params == graph.cost(plan.removed).params
    assert pruned(example(1)).shape == (1, 3)
    assert secateur.trace(pruned, example(2)).cost() == plan.pruned
    return True


@settings(max_examples=45, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**32), length=st.integers(2, 12))
def test_every_random_network_is_cut_exactly_or_pinned(seed: int, length: int) -> None:
    model = build(seed, length)
    before = snapshot(model)
    graph = secateur.trace(model, example(2))
    if not graph.groups:
        assert graph.pinned
        return
    for sparsity in (0.3, 0.6, 0.9):
        wanted = {g.name: tuple(range(int(sparsity * g.size + 1e-9))) for g in graph.groups}
        if graph.mend(wanted).removed or not any(wanted.values()):
            check(model, graph, wanted)
            continue
        with pytest.raises(PlanError, match="allows none of these units to go"):
            make_plan(graph, wanted)
    assert differences(before, snapshot(model)) == []


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**32), length=st.integers(2, 8))
def test_single_units_of_random_networks_are_cut_exactly_or_given_back(
    seed: int, length: int
) -> None:
    model = build(seed, length)
    graph = secateur.trace(model, example(2))
    for group in graph.groups:
        wanted = {group.name: (group.size // 2,)}
        if graph.mend(wanted).removed:
            check(model, graph, wanted)
            continue
        with pytest.raises(PlanError, match="allows none of these units to go"):
            make_plan(graph, wanted)


def test_the_drawn_networks_are_worth_testing() -> None:
    """Most have several groups, a plan that changes the output, and many kinds of blocks."""
    told: set[str] = set()
    groups = changed = removed = 0
    for seed in range(40):
        model = build(seed, 8)
        told |= {line.split(": ")[1].split()[0] for line in model.story}
        graph = secateur.trace(model, example(2))
        groups += len(graph.groups) > 2
        if not graph.groups:
            continue
        plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
        removed += count(secateur.cut(model, plan)) < 0.8 * count(model)
        assert check(model, graph, plan.removed)
        with torch.no_grad():
            found, wanted = secateur.cut(model, plan)(example(2)), model(example(2))
        changed += relative_error([found], [wanted]) > 1e-3
    assert groups > 12
    assert changed > 25
    assert removed > 25
    assert len(told) >= 15
