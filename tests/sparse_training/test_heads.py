"""Factors on attention heads: one step by hand, and heads at zero that can be cut."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur.finetune import TrainSettings
from secateur.planning import make_plan
from secateur.sparse_training import select_structures, soft_threshold

HEADS, WIDTH = 4, 3


class Attention(nn.Module):
    """Tokens that look at each other through four heads, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.first = nn.Linear(5, 12)
        self.qkv = nn.Linear(12, 3 * HEADS * WIDTH)
        self.out = nn.Linear(HEADS * WIDTH, 12)
        self.last = nn.Linear(12, 3)

    def mixed(self, x: Tensor) -> Tensor:
        """Return what the heads give, [batch, tokens, heads, width]."""
        batch, tokens, _ = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.out(self.mixed(x).flatten(2))
        return self.last(x.mean(1))


def task(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """The class is how many of the first two tokens have a one in front."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        bits = torch.randint(0, 2, (16, 2), generator=generator)
        inputs = 0.2 * torch.randn(16, 4, 5, generator=generator)
        inputs[:, :2, 0] += bits
        found.append((inputs, bits.sum(1)))
    return found


def heads_of(graph: secateur.Graph) -> secateur.Group:
    (group,) = (group for group in graph.groups if group.kind == "head")
    assert group.size == HEADS
    return group


def test_one_step_of_a_heads_factor_by_hand() -> None:
    torch.manual_seed(0)
    net, data = Attention(), task(1)
    x, labels = data[0]
    group = heads_of(secateur.trace(net, x))
    twin, factor = copy.deepcopy(net), torch.ones(HEADS, requires_grad=True)
    hidden = torch.relu(twin.first(x))
    hidden = hidden + twin.out((twin.mixed(hidden) * factor[:, None]).flatten(2))
    F.cross_entropy(twin.last(hidden.mean(1)), labels).backward()
    assert factor.grad is not None
    assert twin.out.weight.grad is not None
    moved = soft_threshold(1 - 0.05 * factor.grad, 0.05 * 0.3)
    once = TrainSettings(epochs=1, lr=0.05, optimizer="sgd", schedule="constant", momentum=0.0)
    graph = secateur.trace(net, x)
    found = select_structures(graph, data, once, strength={group.name: 0.3})
    assert torch.allclose(found.factors[group.name], moved, atol=1e-6)
    # Each head's factor is folded into its three columns of the output projection.
    columns = moved.repeat_interleave(WIDTH)
    wanted = (twin.out.weight - 0.05 * twin.out.weight.grad) * columns
    assert torch.allclose(net.out.weight, wanted, atol=1e-6)


def test_heads_at_zero_are_cut_and_nothing_changes() -> None:
    torch.manual_seed(0)
    net, data = Attention(), task()
    graph = secateur.trace(net, data[0][0])
    group = heads_of(graph)
    settings = TrainSettings(epochs=40, lr=0.03, optimizer="sgd", schedule="constant")
    found = select_structures(graph, data, settings, strength={group.name: 0.1})
    gone = found.removed[group.name]
    assert 1 <= len(gone) < HEADS
    assert found.losses[-1] < 0.6 * found.losses[0]
    plan = make_plan(graph, found.removed)
    small = secateur.cut(net, plan)
    assert small.heads == HEADS - len(gone)
    assert small.out.weight.shape == (12, WIDTH * (HEADS - len(gone)))
    assert small.qkv.weight.shape == (3 * WIDTH * (HEADS - len(gone)), 12)
    for x, _ in data:
        assert torch.allclose(small(x), net(x), atol=1e-5)
    assert secateur.verify(net, small, plan, data[0][0]).ok
