"""Convolutions and pools of kernel 1 along a dimension leave it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

WIDTH, TOKENS, HIDDEN = 8, 5, 6
GONE = (1, 4, 6)
KEEP = [0, 2, 3, 5, 7]


class Mixer(nn.Module):
    """Tokens [N, 5, 3] embedded in 8 dimensions, mixed by ``mix`` over the tokens, read out."""

    def __init__(self, mix: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.embed, self.out, self.mix = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 4), mix
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(self, self.embed(x)))


def convolved(m: Any, h: Tensor) -> Tensor:
    return h + m.down(F.gelu(m.up(h)))


def as_image(m: Any, h: Tensor) -> Tensor:
    return h + m.down(F.gelu(m.up(h[..., None])))[..., 0]


def beside_a_kernel(m: Any, h: Tensor) -> Tensor:
    """A kernel of 3 along one spatial dimension, of 1 along the other."""
    rows = h.view(h.shape[0], 1, TOKENS, h.shape[2])
    return h + m.down(F.gelu(m.up(rows)))[:, 0]


def transposed(m: Any, h: Tensor) -> Tensor:
    return h + m.down(F.gelu(m.up(h)))


def pooled(m: Any, h: Tensor) -> Tensor:
    return h + F.avg_pool2d(F.max_pool2d(h, (3, 1), 1, (1, 0)), (3, 1), 1, (1, 0))


def pooled_to_one(m: Any, h: Tensor) -> Tensor:
    """The largest, and the mean of three parts of the tokens, over all dimensions."""
    means = F.adaptive_avg_pool2d(h[:, None], (TOKENS, 1))[:, 0]
    return h - F.adaptive_max_pool1d(h, 1) * means


def padded(m: Any, h: Tensor) -> Tensor:
    longer = F.pad(h[:, None], (0, 0, 1, 1), mode="reflect")
    return h + F.pad(longer, (0, 0, 1, 1), mode="replicate")[:, 0, 2:-2].sin()


MIXERS: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, nn.Module]], int]] = {
    # (mix, its layers, multiply-accumulates of one dimension)
    "conv1d": (
        convolved,
        lambda: {"up": nn.Conv1d(TOKENS, HIDDEN, 1), "down": nn.Conv1d(HIDDEN, TOKENS, 1)},
        2 * TOKENS * HIDDEN,
    ),
    "conv2d": (
        as_image,
        lambda: {"up": nn.Conv2d(TOKENS, HIDDEN, 1), "down": nn.Conv2d(HIDDEN, TOKENS, 1)},
        2 * TOKENS * HIDDEN,
    ),
    "kernel_of_3_by_1": (
        beside_a_kernel,
        lambda: {
            "up": nn.Conv2d(1, HIDDEN, (3, 1), padding=(1, 0)),
            "down": nn.Conv2d(HIDDEN, 1, (3, 1), padding=(1, 0)),
        },
        2 * 3 * TOKENS * HIDDEN,
    ),
    "transposed": (
        transposed,
        lambda: {
            "up": nn.ConvTranspose1d(TOKENS, HIDDEN, 1),
            "down": nn.ConvTranspose1d(HIDDEN, TOKENS, 1),
        },
        2 * TOKENS * HIDDEN,
    ),
    "pools": (pooled, dict, 0),
    "pads": (padded, dict, 0),
    "pools_to_one": (pooled_to_one, dict, 0),
}


def network(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    mix, parts, _ = MIXERS[name]
    return Mixer(mix, **parts()).double().eval(), torch.randn(2, TOKENS, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", MIXERS)
def test_dimensions_pass_and_are_cut_as_by_hand(name: str) -> None:
    model, x = network(name)
    graph = secateur.trace(model, x)
    width = next(g for g in graph.groups if g.name == "embed")
    assert width.size == WIDTH
    assert {s.name for s in width.slots} == {"embed.weight", "embed.bias", "out.weight"}
    plan = make_plan(graph, {"embed": GONE})
    pruned = secateur.cut(model, plan)
    with torch.no_grad():
        h = F.linear(x, model.embed.weight[KEEP], model.embed.bias[KEEP])
        wanted = F.linear(model.mix(model, h), model.out.weight[:, KEEP], model.out.bias)
        assert torch.allclose(pruned(x), wanted, rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(x), wanted, rtol=1e-12, atol=1e-12)
    assert secateur.verify(model, pruned, plan, x).ok


@pytest.mark.parametrize("name", MIXERS)
def test_multiply_accumulates_follow(name: str) -> None:
    model, x = network(name)
    graph = secateur.trace(model, x)
    each = TOKENS * (3 + 4) + MIXERS[name][2]
    assert graph.cost().macs == WIDTH * each
    assert graph.cost({"embed": GONE}).macs == len(KEEP) * each


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(TOKENS, TOKENS, 1, padding=1),
        nn.Conv1d(TOKENS, TOKENS, 1, stride=2),
        nn.Conv1d(TOKENS, TOKENS, 3, padding=1),
        nn.Conv1d(TOKENS, TOKENS, 1, padding=1, padding_mode="circular"),
        nn.ConvTranspose1d(TOKENS, TOKENS, 1, stride=2),
        nn.MaxPool1d(3, 1, 1),
        nn.AvgPool1d(1, 2),
        nn.AdaptiveMaxPool1d(8),
    ],
    ids=str,
)
def test_what_slides_over_a_dimension_pins_it(layer: nn.Module) -> None:
    def mix(m: Any, h: Tensor) -> Tensor:
        y = m.layer(h)
        return y[..., :1] * torch.ones(WIDTH, dtype=h.dtype)

    model = Mixer(mix, layer=layer).double().eval()
    x = torch.randn(2, TOKENS, 3, dtype=torch.float64)
    pins = [p for p in secateur.trace(model, x).pinned if (p.name, p.dim) == ("embed.weight", 0)]
    assert [p.count for p in pins] == [WIDTH]
    assert "slides" in pins[0].reason or "a spatial" in pins[0].reason or "fixed" in pins[0].reason


def test_positions_that_a_pool_returns_pin_what_they_count() -> None:
    def mix(m: Any, h: Tensor) -> Tensor:
        values, where = F.max_pool2d(h[:, None], (5, 1), return_indices=True)
        return values[:, 0] + where[:, 0]

    x = torch.randn(2, TOKENS, 3)
    assert all(g.name != "embed" for g in secateur.trace(Mixer(mix), x).groups)


class TextNet(nn.Module):
    """Kim 2014: kernels of three widths as wide as the embedding, the largest of each kept."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(11, width), nn.Linear(width, width)
        self.convs = nn.ModuleList(nn.Conv2d(1, inner, (k, width)) for k in (2, 3, 4))
        self.out = nn.Linear(3 * inner, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.project(self.embed(x))).unsqueeze(1)
        rows = [F.relu(conv(h)).squeeze(3) for conv in self.convs]
        return self.out(torch.cat([F.max_pool1d(r, r.size(2)).squeeze(2) for r in rows], 1))


def test_kernels_that_cover_a_dimension_contract_it() -> None:
    torch.manual_seed(0)
    model, x = TextNet(8, 4).double().eval(), torch.randint(11, (2, 9))
    graph = secateur.trace(model, x)
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes == {"embed": 8, "project": 8, "convs.0": 4, "convs.1": 4, "convs.2": 4}
    width, gone = [0, 2, 3, 5, 7], (1, 4, 6)
    plan = make_plan(graph, {"embed": (0, 3), "project": gone, "convs.1": (2,)})
    pruned = secateur.cut(model, plan)
    inner, narrow = [1, 2, 4, 5, 6, 7], [0, 1, 3]
    with torch.no_grad():
        h = F.linear(
            model.embed.weight[:, inner][x],
            model.project.weight[width][:, inner],
            model.project.bias[width],
        )
        h = torch.tanh(h).unsqueeze(1)
        found = []
        for k, rows in enumerate(([0, 1, 2, 3], narrow, [0, 1, 2, 3])):
            weight = model.convs[k].weight[rows][..., width]
            found.append(F.relu(F.conv2d(h, weight, model.convs[k].bias[rows])).amax((2, 3)))
        columns = [p for p in range(12) if p != 4 + 2]
        wanted = F.linear(torch.cat(found, 1), model.out.weight[:, columns], model.out.bias)
        assert torch.allclose(pruned(x), wanted, rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(x), wanted, rtol=1e-12, atol=1e-12)
    assert [conv.kernel_size for conv in pruned.convs] == [(2, 5), (3, 5), (4, 5)]
    taps = sum(k * (9 - k + 1) * n for k, n in ((2, 4), (3, 3), (4, 4)))
    assert plan.pruned.macs == 9 * 6 * 5 + 5 * taps + 11 * 3


@pytest.mark.parametrize("options", [{"padding": (0, 1)}, {"dilation": (1, 1), "stride": 2}])
def test_a_padded_kernel_covers_nothing(options: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(3, 8), nn.Conv2d(1, 4, (2, 8), **options)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.c(self.a(x).unsqueeze(1)).amax((2, 3)))

    graph = secateur.trace(Net(), torch.randn(2, 6, 3))
    assert any(g.name == "a" for g in graph.groups) == ("padding" not in options)
