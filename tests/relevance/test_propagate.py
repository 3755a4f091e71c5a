"""Relevance of small things worked out by hand, and what must hold of any pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from passes import ours
from torch import Tensor, nn

from secateur.calibration import untouched
from secateur.errors import InputError
from secateur.relevance import Captured, Place, Settings, propagate
from secateur.relevance.recording import record_steps
from secateur.relevance.schedule import schedule

TINY = 1e-13


def captured(model: nn.Module, x: Tensor, settings: Settings) -> tuple[dict[Place, Tensor], Tensor]:
    """Return relevance wherever a tensor is read, and what it started from."""
    with untouched(model):
        plan = schedule(record_steps(model, x), None, overwrite=True)
    found: dict[Place, Tensor] = {}

    def visit(seen: Captured) -> None:
        found[seen.place] = seen.relevance.clone()

    return found, propagate(plan, [x], None, settings, visit)


def dense() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[2.0, -0.5], [-1.0, 0.25]]))
    return model


# Of x = (1, 2): hidden (3 - 2, 1 + 2 - 1) = (1, 2), logits (2 - 1, -1 + 0.5) = (1, -0.5).
BY_HAND = {
    # 1 x (2 x 2/2, -1 x 1/1); then 2 x (2 x 3/3, -2/2) and -1 x (2 x 1/3, 2 x 2/3), and the
    # bias keeps the rest of the second
    "alpha-beta": ([2, -1], [4 - 2 / 3, -2 - 4 / 3]),
    # (2/2, 0), then 1 x (3/3, 0)
    "z-plus": ([1, 0], [1, 0]),
    # (2/1, -1/1), then 2 x (3/1, -2/1) and -1 x (1/2, 2/2)
    "epsilon": ([2, -1], [6 - 1 / 2, -4 - 1]),
    # y + P = 3: (2 x 2/3, -1/3); then y + P = 4: 4/3 x (6/4, -2/4), 2 + 3 = 5: -1/3 x (2/5, 4/5)
    "gamma": ([4 / 3, -1 / 3], [2 - 2 / 15, -2 / 3 - 4 / 15]),
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_a_dense_network_worked_out_by_hand(rule: str) -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found, started = ours(dense(), x, Settings(rule=rule, epsilon=TINY, gamma=1.0))
    hidden, first = BY_HAND[rule]
    assert started[0].tolist() == pytest.approx([1, 0])
    assert found["2"][0].tolist() == pytest.approx(hidden, abs=1e-9)
    assert found["0"][0].tolist() == pytest.approx(first, abs=1e-9)


def test_a_label_chooses_the_logit() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    _, started = ours(dense(), x, Settings(target="label"), torch.tensor([1, 0]))
    expected = torch.tensor([[0, -0.5], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(started, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(None, "NoneType"), (torch.tensor([2]), "from 0 to 1"), (torch.tensor([[0]]), r"\(1, 1\)")],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor | None, words: str) -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    with pytest.raises(InputError, match=words):
        ours(dense(), x, Settings(target="label"), labels)


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1) @ torch.tensor([[4.0], [8 / 3]], dtype=x.dtype)


def test_the_softmax_rule_worked_out_by_hand() -> None:
    # a = (1/4, 3/4), y = 1 + 2: relevance (1, 2) of a; then x (R - a sum R)
    x = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    found, _ = captured(Softmax(), x, Settings(rule="epsilon", epsilon=TINY))
    expected = [0, math.log(3) * (2 - 3 / 4 * 3)]
    assert found[Place("aten._softmax", "", 0, 0)][0].tolist() == pytest.approx(expected, abs=1e-9)


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x[:, :1], x[:, 1:]
        return (left @ right.mT).flatten(1)


def test_the_product_rule_worked_out_by_hand() -> None:
    # 1 x 3 + 2 x 4 = 11: half of each product to each factor
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    found, started = captured(Product(), x, Settings(epsilon=TINY))
    assert started.item() == 11
    assert found[Place("product", "", 0, 0)].flatten().tolist() == pytest.approx([1.5, 4])
    assert found[Place("product", "", 0, 1)].flatten().tolist() == pytest.approx([1.5, 4])


class Attention(nn.Module):
    """A pre-norm block without any bias: attention, with softmax or linear, and a gated MLP."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.soft = soft
        self.norm = nn.RMSNorm(8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.out = nn.Linear(8, 8, bias=False)
        self.gate, self.up, self.down = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 2
        mixed = (scores.softmax(-1) if self.soft else scores) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(1))


def attention(soft: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Attention(soft).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)


def arriving(found: dict[Place, Tensor]) -> float:
    """Sum the relevance of the input, which the first norm and the first sum read."""
    norms = [
        p for p in found if p.op in ("aten._fused_rms_norm", "aten.mul") and p.module == "norm"
    ]
    first = found[min(norms, key=lambda place: place.turn)]
    sums = [place for place in found if place.op == "aten.add" and found[place].dim() == 3]
    skip = found[min(sums, key=lambda place: (place.turn, place.arg))]
    return float(first.sum() + skip.sum())


def test_attention_without_softmax_and_bias_keeps_all_relevance() -> None:
    model, x = attention(soft=False)
    found, started = captured(model, x, Settings(rule="epsilon", epsilon=TINY))
    assert arriving(found) == pytest.approx(float(started.sum()), rel=1e-6)


def test_only_the_softmax_of_attention_keeps_relevance_to_itself() -> None:
    model, x = attention(soft=True)
    found, started = captured(model, x, Settings(rule="epsilon", epsilon=TINY))
    products = sorted(place for place in found if place.op == "product")
    mixing = next(p for p in products if p.arg == 0 and found[p].shape == (4, 5, 5))
    soft = found[Place("aten._softmax", "", 0, 0)]
    absorbed = float(found[mixing].sum() - soft.sum())
    assert abs(absorbed) > 1e-3
    assert arriving(found) + absorbed == pytest.approx(float(started.sum()), rel=1e-6)


@pytest.mark.parametrize("rule", ["alpha-beta", "epsilon", "gamma", "z-plus"])
def test_a_network_without_bias_keeps_all_relevance_at_every_layer(rule: str) -> None:
    torch.manual_seed(0)
    sizes = ((3, 8), (8, 8), (8, 8))
    convs = [
        part
        for a, b in sizes
        for part in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2))
    ]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(8, 4, bias=False)).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    found, started = ours(model, x, Settings(rule=rule, epsilon=TINY))
    assert len(found) == 4
    for relevance in found.values():
        assert float(relevance.sum()) == pytest.approx(float(started.sum()), rel=1e-6)


def unpooled(h: Tensor) -> Tensor:
    values, where = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(values, where, 2)


def sampled(h: Tensor) -> Tensor:
    """Sampled at the centres of the pixels of a picture half as large."""
    theta = torch.eye(2, 3, dtype=h.dtype).expand(len(h), 2, 3)
    grid = F.affine_grid(theta, [len(h), 8, 4, 4], align_corners=False)
    return F.grid_sample(h, grid, align_corners=False)


@pytest.mark.parametrize(
    "middle",
    [
        unpooled,
        sampled,
        lambda h: h.median(2, keepdim=True).values,
        lambda h: h.nanmedian(2, keepdim=True)[0],
        lambda h: h.kthvalue(2, 2, keepdim=True)[0],
        lambda h: h.cummax(3).values,
        lambda h: h.index_fill(2, torch.tensor([1]), 0.0),
    ],
)
def test_what_picks_elements_keeps_all_relevance(middle: Callable[[Tensor], Tensor]) -> None:
    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.b = nn.Conv2d(8, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(middle(torch.relu(self.a(x)))).mean((2, 3))

    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    found, started = ours(Picking().double().eval(), x, Settings(rule="epsilon", epsilon=TINY))
    assert set(found) == {"a", "b"}
    for relevance in found.values():
        assert float(relevance.sum()) == pytest.approx(float(started.sum()), rel=1e-6)


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), _Transform())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class _Transform(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


def test_an_operation_without_a_rule_is_named_with_its_module() -> None:
    with pytest.raises(InputError, match=r"aten\._fft_r2c in inner\.1"):
        ours(Fourier(), torch.randn(2, 4), Settings())


class Overwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y[:, :2].mul_(2)
        return y


def test_writing_through_a_view_is_refused_rather_than_followed_wrongly() -> None:
    with pytest.raises(InputError, match=r"aten\.mul_ in 0 has since changed"):
        captured(nn.Sequential(Overwritten(), nn.Linear(4, 2)), torch.randn(2, 4), Settings())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rule": "deep"}, "deep"),
        ({"target": "best"}, "best"),
        ({"alpha": 2.0, "beta": 0.5}, "alpha - beta must be 1"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"gamma": -1.0}, "gamma must be finite"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**wrong)  # type: ignore[arg-type]
