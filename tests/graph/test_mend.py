"""Sizes in the model's own code: attributes follow, equations hold, and no more is given back."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.graph.groups import Rule
from secateur.graph.mend import mend
from secateur.planning import make_plan


class Halves(nn.Module):
    """``chunk`` cuts in the middle: the left half keeps as many as the right, or one more."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2 * width)
        self.b, self.c = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, dim=1)
        return self.b(left.tanh()) + self.c(right.relu())


class Heads(nn.Module):
    """Heads by attribute; the width of a head is computed from the channels."""

    def __init__(self, channels: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.a, self.b = nn.Linear(5, channels), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = (h := self.a(x)).shape
        h = h.view(n, t, self.heads, c // self.heads).transpose(1, 2)
        return self.b(h.tanh().transpose(1, 2).reshape(n, t, c))


class Prefix(nn.Module):
    """Three parts; the last one starts at a sum of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.extra = 4, 3
        self.a = nn.Linear(5, 9)
        self.b, self.c, self.d = nn.Linear(4, 2), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        end = self.width + self.extra
        left, middle, right = h[:, : self.width], h[:, self.width : end], h[:, end:]
        return self.b(left.tanh()) + self.c(middle.relu()) + self.d(right)


class Compares(nn.Module):
    """The model's own check of a size must stay true after the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 6
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.shape[1] != self.channels:
            raise ValueError("unexpected number of channels")
        return self.b(h.relu())


class ComparesWithLiteral(Compares):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.shape[1] != 6:
            raise ValueError("unexpected number of channels")
        return self.b(h.relu())


SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "halves": (Halves, (2, 3)),
    "heads": (Heads, (2, 4, 5)),
    "prefix": (Prefix, (2, 5)),
    "compares": (Compares, (2, 5)),
}


def traced(name: str) -> tuple[nn.Module, Tensor, secateur.Graph]:
    torch.manual_seed(0)
    kind, shape = SHAPES[name]
    model, x = kind().double().eval(), torch.randn(shape, dtype=torch.float64)
    return model, x, secateur.trace(model, x)


def runs(model: nn.Module, x: Tensor, plan: secateur.Plan) -> bool:
    return secateur.verify(model, secateur.cut(model, plan), plan, x).ok


@pytest.mark.parametrize("name", SHAPES)
def test_every_count_of_units_gives_a_network_that_runs(name: str) -> None:
    model, x, graph = traced(name)
    ranges = [range(group.size) for group in graph.groups]
    for counts in itertools.product(*ranges):
        wanted = {g.name: tuple(range(n)) for g, n in zip(graph.groups, counts, strict=True)}
        mended = graph.mend(wanted)
        for group in graph.groups:
            left = mended.removed.get(group.name, ())
            assert left == wanted[group.name][: len(left)]  # the end comes back first
            back = mended.given_back.get(group.name, 0)
            assert back == len(wanted[group.name]) - len(left)
        if mended.removed:
            plan = make_plan(graph, wanted)
            assert (plan.removed, plan.given_back) == (mended.removed, mended.given_back)
            assert runs(model, x, plan)


def halves(graph: secateur.Graph) -> tuple[str, str]:
    """Return the names of the groups that b and c read."""
    readers = {s.name: g.name for g in graph.groups for s in g.slots}
    return readers["b.weight"], readers["c.weight"]


@pytest.mark.parametrize("wanted", list(itertools.product(range(6), repeat=2)))
def test_uneven_halves_give_back_the_fewest_units(wanted: tuple[int, int]) -> None:
    _, _, graph = traced("halves")
    names = halves(graph)
    mended = graph.mend({n: tuple(range(c)) for n, c in zip(names, wanted, strict=True)})
    found = [len(mended.removed.get(name, ())) for name in names]
    best = max(
        left + right
        for left, right in itertools.product(range(wanted[0] + 1), range(wanted[1] + 1))
        if torch.zeros(12 - left - right).chunk(2)[0].numel() == 6 - left
    )
    assert sum(found) == best


def test_even_removals_give_nothing_back() -> None:
    for name in SHAPES:
        _, _, graph = traced(name)
        removed = {group.name: (0,) for group in graph.groups}
        assert graph.mend(removed).given_back == {}


def test_attributes_take_the_size_that_the_cut_needs() -> None:
    _, _, graph = traced("heads")
    by_size = {group.size: group.name for group in graph.groups}
    assert sorted(by_size) == [3, 4]
    assert graph.mend({by_size[3]: (1,)}).attributes == {"heads": 2}
    assert graph.mend({by_size[4]: (1, 2)}).attributes == {}
    model, x, graph = traced("heads")
    pruned = secateur.cut(model, make_plan(graph, {by_size[3]: (1,), by_size[4]: (0,)}))
    assert (model.heads, pruned.heads) == (3, 2)
    assert pruned.a.out_features == pruned.b.in_features == 6
    assert pruned(x).shape == model(x).shape


def test_attributes_of_a_sum_are_both_solved() -> None:
    model, x, graph = traced("prefix")
    by_size = {group.size: group.name for group in graph.groups}
    plan = make_plan(graph, {by_size[4]: (0, 3), by_size[3]: (1,)})
    assert plan.given_back == {}
    pruned = secateur.cut(model, plan)
    assert (pruned.width, pruned.extra, pruned.d.in_features) == (2, 2, 2)
    assert runs(model, x, plan)


def test_a_number_that_the_code_compares_follows() -> None:
    model, x, graph = traced("compares")
    plan = make_plan(graph, {"a": (0, 1)})
    assert secateur.cut(model, plan).channels == 4
    assert runs(model, x, plan)


def test_a_literal_that_the_code_compares_with_pins() -> None:
    graph = secateur.trace(ComparesWithLiteral(), torch.zeros(2, 5))
    assert graph.groups == ()
    (reason,) = {p.reason for p in graph.pinned if (p.name, p.dim) == ("a.weight", 0)}
    assert "a comparison in the model: size 6 is fixed" in reason


def test_nothing_left_to_remove_is_an_error_that_names_the_group() -> None:
    _, _, graph = traced("halves")
    name, _ = halves(graph)
    with pytest.raises(PlanError, match=f"allows none of these units to go.*{name}"):
        make_plan(graph, {name: (2,)})


def test_units_named_twice_count_once() -> None:
    _, _, graph = traced("compares")
    mended = graph.mend({"a": (3, 1, 3)})
    assert mended.removed == {"a": (3, 1)}
    assert mended.given_back == {}


def test_nothing_removed_changes_nothing() -> None:
    for name in SHAPES:
        _, _, graph = traced(name)
        mended: Any = graph.mend({})
        assert (mended.removed, mended.given_back, mended.attributes) == ({}, {}, {})


def test_an_equation_that_never_held_ends_with_everything_back() -> None:
    """It comes from a mistaken rule: giving back cannot settle it, and must not go on for ever."""
    graph = secateur.trace(Halves().eval(), torch.randn(2, 3))
    name = graph.groups[0].name
    axis = graph.layout.parameters["a.weight"][0]
    never = Rule(len(graph.layout.axes[axis]) + 1, axis, "nowhere")
    layout = dataclasses.replace(graph.layout, rules=(*graph.layout.rules, never))
    mended = mend(layout, graph.groups, {name: (0, 1)})
    assert mended.removed == {}
    assert mended.given_back == {name: 2}
