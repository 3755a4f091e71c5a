"""Views that part positions from channels by sizes of the input hold at every size, or are pinned.

The judge is a dense network masked by hand in float64: cut channels are zero where they are read.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.graph.input_sizes import resized_inputs, with_shapes
from secateur.plan import Plan


class PositionAttention(nn.Module):
    """Attention over positions whose result is taken for channels first, as in MAnet."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.in_channels = c
        self.stem = nn.Conv2d(3, c, 3, stride=4, padding=1)
        self.top, self.center = nn.Conv2d(c, 8, 1), nn.Conv2d(c, 8, 1)
        self.bottom, self.out = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, _, h, w = x.size()
        top = self.top(x).flatten(2)
        center = self.center(x).flatten(2).transpose(1, 2)
        bottom = self.bottom(x).flatten(2).transpose(1, 2)
        scores = torch.softmax((center @ top).view(b, -1), 1).view(b, h * w, h * w)
        return self.out(x + (scores @ bottom).reshape(b, self.in_channels, h, w))


class Between(nn.Module):
    """A view, or several, between two convolutions with strides."""

    def __init__(self, view: Callable[[Tensor], Tensor], read: int = 8, **out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, stride=out.pop("stride", 4))
        self.view = view
        self.last = nn.Conv2d(read, 4, 3, padding=1) if read else nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.view(self.first(x).tanh())
        return self.last(x)


def wrong_order(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, h * w, c).transpose(1, 2).reshape(b, c, h, w)


def swapped(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, c, h, w)


def literal_positions(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 4).sum(1)[:, None, None].expand(-1, 16, 4, -1)


def literal_of_flat(x: Tensor) -> Tensor:
    return x.flatten(1).unflatten(1, (-1, 4)).sum(1)[:, None, None].expand(-1, 16, 4, -1)


def first_channels(x: Tensor) -> Tensor:
    height = x.shape[2]
    return torch.cat([x[:, :height] * 2, x[:, height:]], 1)


def one_position(x: Tensor) -> Tensor:
    """Right at one position, a mixture at more."""
    b, c, h, w = x.shape
    return x.flatten(2).transpose(1, 2).reshape(b, c, h, w)


def compared(x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > x.shape[2] else x.tanh()


def shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)


def normalised_by_hand(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    flat = x.view(b, 4, -1)
    return (flat * 2).view(b, c, h, w)


def pixels_shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    parts = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(b, c // 4, h * 2, w * 2)


def windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x, (0, -w % 2, 0, -h % 2))
    hh, ww = x.shape[2:]
    x = x.permute(0, 2, 3, 1).view(b, hh // 2, 2, ww // 2, 2, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    x = x.view(b, hh // 2, ww // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, hh, ww)[:, :, :h, :w]


def pooled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h * w).mean(2).view(b, c, 1, 1)


def heads(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q = x.view(b * 4, c // 4, h * w)
    return (q @ (q.transpose(1, 2) @ q).softmax(-1)).view(b, c, h, w)


class Masked(nn.Module):
    """The dense network, whose removed channels are zero where the views read them."""

    def __init__(self, model: Between, plan: Plan) -> None:
        super().__init__()
        self.model = model
        self.gone = list(plan.cuts.get("first.weight", {}).get(0, ()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.first(x).tanh().index_fill(1, torch.tensor(self.gone, dtype=torch.long), 0)
        return self.model.last(self.model.view(x))


def hold_at(model: Between, side: int) -> dict[str, int]:
    """Cut half of every group, traced at one size, and compare at others; return the groups."""
    model = model.double().eval()
    graph = secateur.trace(model, torch.randn(2, 3, side, side, dtype=torch.float64))
    groups = {group.name: group.size for group in graph.groups}
    if not groups:
        assert graph.pinned
        return groups
    try:
        plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    except PlanError:
        return {}
    pruned, reference = secateur.cut(model, plan), Masked(model, plan)
    for other in (side, 4, 8, 12, 16, 20, 32, 64):
        x = torch.randn(3, 3, other, other, dtype=torch.float64)
        try:
            with torch.no_grad():
                model(x)
        except RuntimeError:
            continue
        with torch.no_grad():
            torch.testing.assert_close(pruned(x), reference(x), rtol=1e-10, atol=1e-10)
    return groups


def test_positions_taken_for_channels_are_pinned_and_another_size_is_proved() -> None:
    torch.manual_seed(0)
    model = PositionAttention().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = secateur.prune(model, x, criterion="l2", sparsity=0.5)
    assert list(result.plan.removed) == ["top:head_dim"]
    assert [one.label for one in result.check.passes] == ["", "another size"]
    for side in (8, 12, 16, 24):
        y = torch.randn(2, 3, side, side, dtype=torch.float64)
        assert secateur.verify(model, result.model, result.plan, y).max_error < 1e-12
        with torch.no_grad():
            masked = secateur.mask(model, result.plan)(x)
        torch.testing.assert_close(result.model(x), masked)
    again = Plan.from_json(result.plan.to_json())
    assert secateur.verify(model, result.model, again, x).passes == result.check.passes


@pytest.mark.parametrize("side", [8, 16, 64])
@pytest.mark.parametrize(
    ("view", "read"),
    [
        (wrong_order, 16), (swapped, 16), (literal_positions, 16), (literal_of_flat, 16),
        (first_channels, 16), (one_position, 16), (compared, 16),
    ],
)  # fmt: skip
def test_what_depends_on_the_size_is_pinned(
    view: Callable[[Tensor], Tensor], read: int, side: int
) -> None:
    torch.manual_seed(0)
    groups = hold_at(Between(view, read), side)
    assert groups in ({}, {"first": 16})


@pytest.mark.parametrize("side", [8, 16, 64])
@pytest.mark.parametrize(
    ("view", "read", "units"),
    [
        (shuffled, 16, 4), (normalised_by_hand, 16, 4), (pixels_shuffled, 4, 4), (windows, 16, 16),
        (pooled, 16, 16), (heads, 16, 4),
    ],
)  # fmt: skip
def test_what_does_not_stays_free(
    view: Callable[[Tensor], Tensor], read: int, units: int, side: int
) -> None:
    torch.manual_seed(0)
    groups = hold_at(Between(view, read), side)
    assert units in groups.values()


def test_other_sizes_repeat_the_example() -> None:
    ids = {"ids": torch.arange(10).view(2, 5), "mask": torch.ones(2, 1, 5, 5), "n": 3}
    found = next(iter(resized_inputs(ids, {5})))
    assert found["ids"].shape == (3, 6)
    assert found["mask"].shape == (3, 1, 6, 6)
    assert found["n"] == 3
    assert found["ids"].max() == 9
    image = torch.randn(2, 3, 8, 8)
    assert next(tuple(x.shape) for x in resized_inputs(image, {2})) == (3, 3, 12, 12)
    assert with_shapes(image, [(3, 3, 12)]) is None
    assert torch.equal(with_shapes(image, [(3, 3, 12, 8)])[:2, :, :8], image)
