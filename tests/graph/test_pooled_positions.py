"""Pooling hands positions in space to unpooling: channels on both sides are the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import masked_outputs, outputs, relative_error
from torch import Tensor, nn

import secateur

Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class Segmenter(nn.Module):
    """Encode, pool, convolve at the lower resolution, unpool by the positions, decode."""

    def __init__(self, rank: int, pool: Step, unpool: Callable[..., Tensor]) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.encode, self.middle = conv(3, 8, 3, padding=1), conv(8, 8, 3, padding=1)
        self.inner, self.decode = conv(8, 6, 3, padding=1), conv(6, 8, 3, padding=1)
        self.out, self.pool, self.unpool = conv(8, 2, 3, padding=1), pool, unpool

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.encode(x))
        small, where = self.pool(h)
        small = torch.relu(self.middle(small))
        small = self.decode(torch.relu(self.inner(small)))
        return self.out(self.unpool(small, where, h))


def scattered(small: Tensor, where: Tensor, like: Tensor) -> Tensor:
    space = torch.zeros_like(like).flatten(2)
    return space.scatter(2, where.flatten(2), small.flatten(2)).view(like.shape)


def added(small: Tensor, where: Tensor, like: Tensor) -> Tensor:
    space = like.new_zeros(like.shape[0], like.shape[1], like[0, 0].numel())
    return space.scatter_add(2, where.flatten(2), small.flatten(2)).view_as(like)


def gathered(small: Tensor, where: Tensor, like: Tensor) -> Tensor:
    found = like.flatten(2).gather(2, where.flatten(2)).view_as(small)
    return found * small


KINDS: dict[str, tuple[int, Step, Callable[..., Tensor]]] = {
    "1d": (
        1,
        lambda h: F.max_pool1d(h, 2, return_indices=True),
        lambda s, i, h: F.max_unpool1d(s, i, 2),
    ),
    "2d": (2, nn.MaxPool2d(2, 2, return_indices=True), lambda s, i, h: F.max_unpool2d(s, i, 2, 2)),
    "2d_sized": (
        2,
        nn.MaxPool2d(3, 2, return_indices=True),
        lambda s, i, h: F.max_unpool2d(s, i, 3, 2, output_size=h.shape),
    ),
    "3d": (
        3,
        lambda h: F.max_pool3d(h, 2, return_indices=True),
        lambda s, i, h: F.max_unpool3d(s, i, 2),
    ),
    "adaptive": (2, lambda h: F.adaptive_max_pool2d(h, 3, return_indices=True), scattered),
    "adaptive_1d": (1, lambda h: F.adaptive_max_pool1d(h, 3, return_indices=True), scattered),
    "adaptive_3d": (3, lambda h: F.adaptive_max_pool3d(h, 2, return_indices=True), scattered),
    "added": (2, lambda h: F.max_pool2d(h, 3, 1, 1, return_indices=True), added),
    "gathered": (2, lambda h: F.max_pool2d(h, 2, return_indices=True), gathered),
}


@pytest.mark.parametrize("name", KINDS)
def test_pooled_and_unpooled_channels_go_together(name: str) -> None:
    rank, pool, unpool = KINDS[name]
    torch.manual_seed(0)
    model: Any = Segmenter(rank, pool, unpool).double().eval()
    x = torch.randn(2, 3, *[8] * rank, dtype=torch.float64)
    graph = secateur.trace(model, x)
    found = {frozenset(s.name for s in group.slots) for group in graph.groups}
    assert found == {
        frozenset({"encode.weight", "encode.bias", "middle.weight", "decode.weight",
                   "decode.bias", "out.weight"}),
        frozenset({"middle.weight", "middle.bias", "inner.weight"}),
        frozenset({"inner.weight", "inner.bias", "decode.weight"}),
    }  # fmt: skip
    for seed in range(3):
        scores = secateur.score(graph, "random", seed=seed)
        plan = secateur.allocate(graph, scores, sparsity=0.5)
        pruned = secateur.cut(model, plan)
        reference = masked_outputs(model, graph, plan, x)
        assert relative_error(outputs(pruned, x), reference) <= 1e-12
        assert secateur.verify(model, pruned, plan, x).ok
        assert plan.given_back == {}
        assert relative_error(outputs(model, x), reference) > 1e-3


class Attended(nn.Module):
    """Convolutions with channel and spatial attention (Woo et al. 2018), any widths."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.space, self.out = nn.Conv2d(2, 1, 5, padding=2), nn.Linear(width, 5)
        self.how = how

    def largest(self, x: Tensor) -> Tensor:
        if self.how == "max":
            return torch.max(x, dim=1, keepdim=True)[0]
        if self.how == "median":
            return x.median(1, keepdim=True).values
        if self.how == "unsqueezed":
            return torch.max(x, 1)[0].unsqueeze(1)
        return torch.amax(x, dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        pools = F.adaptive_avg_pool2d(h, 1), F.adaptive_max_pool2d(h, 1)
        h = h * torch.sigmoid(sum(self.up(torch.relu(self.down(p))) for p in pools))
        maps = torch.cat([torch.mean(h, dim=1, keepdim=True), self.largest(h)], 1)
        return self.out((h * torch.sigmoid(self.space(maps))).mean((2, 3)))


@pytest.mark.parametrize("how", ["max", "unsqueezed", "amax", "median"])
def test_attention_over_the_largest_channel_is_cut_as_by_hand(how: str) -> None:
    torch.manual_seed(0)
    model = Attended(16, 6, how).double().eval()
    for buffer in model.norm.running_mean, model.norm.running_var:
        buffer.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(model, x)
    assert [(g.name, g.size) for g in graph.groups] == [("a", 16), ("down", 6)]
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    outer = [i for i in range(16) if i not in plan.removed["a"]]
    inner = [i for i in range(6) if i not in plan.removed["down"]]
    small = Attended(8, 3, how).double().eval()
    state = model.state_dict()
    for name, dims in {
        "a.weight": (outer,), "a.bias": (outer,), "norm.weight": (outer,), "norm.bias": (outer,),
        "norm.running_mean": (outer,), "norm.running_var": (outer,),
        "down.weight": (inner, outer), "down.bias": (inner,),
        "up.weight": (outer, inner), "up.bias": (outer,), "out.weight": (None, outer),
    }.items():  # fmt: skip
        for dim, kept in enumerate(dims):
            if kept is not None:
                state[name] = state[name].index_select(dim, torch.tensor(kept))
    small.load_state_dict(state)
    pruned = secateur.cut(model, plan)
    with torch.no_grad():
        assert torch.allclose(pruned(x), small(x), rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(x), small(x), rtol=1e-12, atol=1e-12)


def test_as_much_goes_with_max_as_with_amax() -> None:
    """Half of all channels leave about a quarter of what two layers with free sides have."""

    def left(how: str) -> tuple[float, float]:
        block = nn.Sequential(nn.Conv2d(3, 3, 1), Attended(32, 8, how)).eval()
        plan = secateur.prune(block, torch.randn(2, 3, 8, 8), sparsity=0.5).plan
        return plan.pruned.params / plan.dense.params, plan.pruned.macs / plan.dense.macs

    assert left("max") == left("unsqueezed") == left("amax")
