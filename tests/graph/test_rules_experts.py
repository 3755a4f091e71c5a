"""Mixtures whose tokens are sorted by expert: counts, offsets and grouped products.

The oracle runs every chosen expert token by token in float64, without the removed
experts, hidden units and widths; it knows neither sorting nor grouped products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import relative_error
from torch import Tensor, nn

import secateur
from secateur.graph.grouped_product import GroupedInFloat64, grouped_product
from secateur.planning import make_plan

WIDTH, HIDDEN, EXPERTS, CHOSEN = 16, 24, 4, 2


def histogram(experts: Tensor, count: int) -> Tensor:
    return torch.histc(experts.float(), bins=count, min=0, max=count - 1)


def bins(experts: Tensor, count: int) -> Tensor:
    return torch.bincount(experts, minlength=count)


def one_hot(experts: Tensor, count: int) -> Tensor:
    return F.one_hot(experts, count).sum(0)


def scattered(experts: Tensor, count: int) -> Tensor:
    ones = torch.ones_like(experts)
    return torch.zeros(count, dtype=torch.int64).scatter_add_(0, experts, ones)


def indexed(experts: Tensor, count: int) -> Tensor:
    ones = torch.ones_like(experts)
    return torch.zeros(count, dtype=torch.int64).index_add_(0, experts, ones)


COUNTS = {f.__name__: f for f in (histogram, bins, one_hot, scattered, indexed)}


class Mixture(nn.Module):
    """A dense front, gated experts behind a router, a dense head.

    ``turned`` holds the experts' weights as [E, in, out], with biases, as GPT-OSS does; else
    they are [E, out, in].
    """

    def __init__(
        self, count: str = "histogram", turned: bool = False, width: int = WIDTH, hidden: int = 24
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.count, self.turned, self.experts = COUNTS[count], turned, EXPERTS
        self.front = nn.Linear(5, width)
        self.router = nn.Linear(width, EXPERTS)
        wide, narrow = (EXPERTS, 2 * hidden, width), (EXPERTS, width, hidden)
        if turned:
            wide, narrow = (EXPERTS, width, 2 * hidden), (EXPERTS, hidden, width)
            self.wide_bias = nn.Parameter(torch.randn(EXPERTS, 2 * hidden))
            self.narrow_bias = nn.Parameter(torch.randn(EXPERTS, width))
        self.wide = nn.Parameter(torch.randn(wide) / math.sqrt(width))
        self.narrow = nn.Parameter(torch.randn(narrow) / math.sqrt(hidden))
        self.head = nn.Linear(width, 3)
        self.eval()

    def product(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        return torch._grouped_mm(x, weight if self.turned else weight.mT, offs=ends)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.front(x)
        weights, chosen = self.router(tokens).topk(CHOSEN, -1)
        weights = weights.softmax(-1).reshape(-1)
        experts, order = torch.sort(chosen.reshape(-1))
        ends = torch.cumsum(self.count(experts, self.experts), 0, dtype=torch.int32)
        out = self.product(tokens[order // CHOSEN], self.wide, ends)
        if self.turned:
            out = out + self.wide_bias[experts]
        gate, up = out.chunk(2, -1)
        out = self.product(F.silu(gate) * up, self.narrow, ends)
        if self.turned:
            out = out + self.narrow_bias[experts]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        out = (out * weights[order, None])[back].view(len(x), CHOSEN, -1).sum(1)
        return self.head(tokens + out)


def by_token(
    model: Mixture, x: Tensor, width: Any = (), hidden: Any = (), experts: Any = ()
) -> Tensor:
    """Compute what the dense mixture computes without some units, token by token."""
    dense = copy.deepcopy(model).double()
    results = []
    for row in x.double():
        token = dense.front(row)
        token[list(width)] = 0.0
        logits = dense.router(token)
        logits[list(experts)] = -math.inf
        weights, chosen = logits.topk(CHOSEN)
        total = token.clone()
        for weight, expert in zip(weights.softmax(0), chosen.tolist(), strict=True):
            wide, narrow = dense.wide[expert], dense.narrow[expert]
            out = token @ wide + dense.wide_bias[expert] if model.turned else wide @ token
            gate, up = out.chunk(2)
            inner = F.silu(gate) * up
            inner[list(hidden)] = 0.0
            out = inner @ narrow + dense.narrow_bias[expert] if model.turned else narrow @ inner
            total = total + weight * out
        total[list(width)] = 0.0
        results.append(dense.head(total))
    return torch.stack(results).detach()


def inputs(tokens: int = 9) -> Tensor:
    return torch.randn(tokens, 5, generator=torch.Generator().manual_seed(tokens))


KINDS = {
    ("width", WIDTH, "neuron"),
    ("hidden", HIDDEN, "neuron"),
    ("experts", EXPERTS, "expert"),
}
UNITS = {"width": range(3, 11), "hidden": range(1, 9), "experts": (2,)}


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("count", COUNTS)
def test_experts_hidden_units_and_widths_are_cut(count: str, turned: bool) -> None:
    model, x = Mixture(count, turned), inputs()
    graph = secateur.trace(model, x)
    names = {g.name: w for g in graph.groups for w, *key in KINDS if key == [g.size, g.kind]}
    assert sorted(names.values()) == sorted(UNITS)
    assert len(names) == len(graph.groups)
    for chosen in (*([what] for what in UNITS), list(UNITS)):
        removed = {what: UNITS[what] for what in chosen}
        plan = make_plan(graph, {n: removed[w] for n, w in names.items() if w in removed})
        assert plan.given_back == {}
        pruned = secateur.cut(model, plan)
        check = secateur.verify(model, pruned, plan, x)
        assert check.ok
        assert check.changed
        masked = secateur.mask(model, plan)
        for example in (x, inputs(4)):
            wanted = by_token(model, example, **removed)
            with torch.no_grad():
                assert relative_error([pruned(example).double()], [wanted]) < 1e-5
                assert relative_error([masked(example).double()], [wanted]) < 1e-5
                assert relative_error([model(example).double()], [wanted]) > 1e-2


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize(
    ("hidden", "left"), [(24, 16), (12, 8)], ids=["half_precision", "single_precision"]
)
def test_rows_stay_aligned_for_the_kernel(turned: bool, hidden: int, left: int) -> None:
    """PyTorch's kernel refuses rows that begin off a multiple of 16 bytes."""
    model, x = Mixture(turned=turned, hidden=hidden), inputs()
    graph = secateur.trace(model, x)
    name = next(group.name for group in graph.groups if group.size == hidden)
    plan = make_plan(graph, {name: range(hidden - left + 1)})
    assert plan.given_back == {name: 1}
    pruned = secateur.cut(model, plan)
    wanted = by_token(model, x, hidden=plan.removed[name])
    with torch.no_grad():
        assert relative_error([pruned(x).double()], [wanted]) < 1e-5
        if hidden % 8 == 0:
            half = pruned.to(torch.bfloat16)(x.to(torch.bfloat16))
            assert relative_error([half.double()], [wanted]) < 0.1


class Stacked(nn.Module):
    """As many rows for every expert: a grouped product without ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(5, 8)
        self.wide, self.narrow = (nn.Parameter(torch.randn(3, *s)) for s in ((16, 8), (8, 16)))
        self.head = nn.Linear(8, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        x = torch.relu(torch._grouped_mm(x, self.wide.mT))
        return self.head(torch._grouped_mm(x, self.narrow.mT))


def test_stacks_of_equal_size() -> None:
    model, x = Stacked(), torch.randn(3, 4, 5)
    graph = secateur.trace(model, x)
    assert {(g.name, g.size) for g in graph.groups} == {("front", 8), ("wide", 16), ("narrow", 8)}
    plan = make_plan(graph, {"wide": range(8)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, x).ok
    with torch.no_grad():
        wide = torch.relu(model.front(x) @ model.wide.mT)
        wide[..., :8] = 0.0
        assert relative_error([pruned(x)], [model.head(wide @ model.narrow.mT)]) < 1e-5


class Columns(nn.Module):
    """A grouped product that contracts by groups: a form that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.other = nn.Linear(5, 8), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([4, 8], dtype=torch.int32)
        return torch._grouped_mm(self.front(x).mT.contiguous(), self.other(x), offs=ends)


def test_a_product_that_splits_what_it_contracts_is_pinned() -> None:
    graph = secateur.trace(Columns().eval(), inputs(8))
    assert graph.groups == ()
    assert {pin.reason for pin in graph.pinned if pin.size == 8} == {
        "aten._grouped_mm in the model: it splits columns by groups"
    }


class Counted(nn.Module):
    """Choices that are counted in other bins than one a position, or weighted."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.router, self.head = how, nn.Linear(5, EXPERTS), nn.Linear(EXPERTS, 2)
        self.experts = EXPERTS

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        if self.how == "half as many":
            found = torch.histc(chosen.float(), bins=2, min=0, max=3).repeat(2)
        elif self.how == "from one":
            found = torch.histc(chosen.float(), bins=self.experts, min=1, max=4)
        elif self.how == "by the data":
            found = F.pad(torch.bincount(chosen), (0, 4))[: self.experts]
        else:
            found = torch.bincount(chosen, x[:, 0].contiguous(), minlength=self.experts)
        return self.head(found.float())


@pytest.mark.parametrize("how", ["half as many", "from one", "by the data", "weighted"])
def test_other_counts_pin_the_choice(how: str) -> None:
    graph = secateur.trace(Counted(how).eval(), inputs())
    assert graph.groups == ()


class Summed(nn.Module):
    """A running sum over channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.front(x).cumsum(-1))


def test_a_running_sum_goes_over_the_kept_units() -> None:
    model, x = Summed().double().eval(), inputs().double()
    graph = secateur.trace(model, x)
    plan = make_plan(graph, {"front": (0, 3, 4)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, x).ok
    kept = [1, 2, 5, 6, 7]
    with torch.no_grad():
        sums = model.front(x)[:, kept].cumsum(-1)
        wanted = F.linear(sums, model.head.weight[:, kept], model.head.bias)
        assert relative_error([pruned(x)], [wanted]) < 1e-12


def chosen_rows(left: Tensor, right: Tensor, ends: Collection[int]) -> Tensor:
    """Multiply row by row."""
    groups = [sum(row >= end for end in ends) for row in range(len(left))]
    return torch.stack(
        [
            row @ right[group] if group < len(right) else torch.zeros(right.shape[2]).to(row)
            for row, group in zip(left, groups, strict=True)
        ]
    )


def test_the_product_in_float64_has_values_and_gradients() -> None:
    torch.manual_seed(0)
    left = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)
    right = torch.randn(3, 8, 16, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    wanted = chosen_rows(left, right, ends.tolist())
    with GroupedInFloat64():
        found = torch._grouped_mm(left, right, offs=ends)
    torch.testing.assert_close(found, wanted)
    pull = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, (left, right), pull),
        torch.autograd.grad(wanted, (left, right), pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    native = torch._grouped_mm(left.float(), right.float(), offs=ends)
    torch.testing.assert_close(native[:7].double(), wanted[:7], atol=1e-5, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="splits its columns"):
        grouped_product(left, left, ends)


def test_synflow_scores_a_mixture() -> None:
    graph = secateur.trace(Mixture(), inputs())
    scores = secateur.score(graph, "synflow")
    assert set(scores) == {group.name for group in graph.groups}
    assert all(score.max() > 0 for score in scores.values())
