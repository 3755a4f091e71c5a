"""A plan is held against a trace of the planned network: what departs from it stays whole."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.planning import make_plan

Code = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two branches of convolutions: code between the first two, nothing in the other."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.c, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.code = (code,)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.code[0](torch.tanh(self.a(x)))) + self.d(torch.relu(self.c(x)))


def halves(h: Tensor, k: int) -> Tensor:
    return torch.cat([h[:, :k] * 2, torch.tanh(h[:, k:])], 1)


UNSEEN: dict[str, Code] = {
    "gcd": lambda h: halves(h, math.gcd(h.shape[1], 12)),
    "range": lambda h: halves(h, len(range(0, h.shape[1], 2))),
    "tensor_split": lambda h: torch.cat(h.tensor_split(3, 1)[::-1], 1),
    "a slope": lambda h: F.leaky_relu(h, 1 / h.shape[1]),
    "an eps": lambda h: F.layer_norm(h.movedim(1, -1), (h.shape[1],), eps=1 / h.shape[1]).movedim(
        -1, 1
    ),
    "an alpha": lambda h: torch.add(h, h * h, alpha=1 / h.shape[1]),
    "a list": lambda h: torch.sin(h * torch.tensor([1 / h.shape[1]])),
    "a path": lambda h: torch.tanh(h) if math.gcd(h.shape[1], 12) > 2 else h,
    "an index": lambda h: h * h[:, math.gcd(8, h.shape[1]) - 1 :].mean(1, keepdim=True),
}


@pytest.mark.parametrize("form", UNSEEN)
def test_what_the_code_computes_unseen_stays_whole_and_the_rest_goes(form: str) -> None:
    torch.manual_seed(0)
    net, x = Net(UNSEEN[form]).eval(), torch.randn(2, 3, 6, 6)
    graph = secateur.trace(net, x)
    free = [name for name in ("a", "c") if name in graph.by_name]
    # An odd number stays: no code above computes with it as it did.
    plan = make_plan(graph, {name: {"a": (0, 1, 2), "c": (4, 5)}[name] for name in free})
    assert plan.removed == {"c": (4, 5)}
    if "a" in graph.by_name:
        assert plan.given_back == {"a": 3}
        assert any(note.startswith("a stays whole: aten.") for note in plan.notes)
    small = secateur.cut(net, plan)
    with torch.no_grad():
        net.d.weight[:, [4, 5]] = 0
        torch.testing.assert_close(small(x), net(x))


def test_the_error_says_why_nothing_may_go() -> None:
    net = Net(UNSEEN["a slope"]).eval()
    graph = secateur.trace(net, torch.randn(2, 3, 6, 6))
    with pytest.raises(
        PlanError, match=r"a stays whole: aten\.leaky_relu in the model: argument 1"
    ):
        make_plan(graph, {"a": (0,)})


class Divided(nn.Module):
    """A layer's results, divided by their width."""

    def __init__(self, divide: Code) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.divide = (divide,)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.divide[0](self.a(x))))


BY_WIDTH: tuple[Code, ...] = (
    lambda h: h / h.shape[1],
    lambda h: h / torch.tensor(h.shape[1]),
    lambda h: h * h.shape[1] ** -0.5,
)


@pytest.mark.parametrize("divide", BY_WIDTH)
def test_a_factor_from_a_size_is_folded_into_the_weights(divide: Code) -> None:
    torch.manual_seed(0)
    net, x = Divided(divide).double().eval(), torch.randn(5, 6, dtype=torch.float64)
    graph = secateur.trace(net, x)
    plan = make_plan(graph, {"a": (1, 5)})
    assert plan.scales
    small = secateur.cut(net, plan)
    with torch.no_grad():
        net.b.weight[:, [1, 5]] = 0
        torch.testing.assert_close(small(x), net(x))


class Squared(nn.Module):
    """The divided product has one and the same tensor on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b((h @ h.transpose(-1, -2)) / h.shape[-1])


def test_a_weight_on_both_sides_of_a_product_is_not_scaled() -> None:
    torch.manual_seed(0)
    net, x = Squared().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = secateur.trace(net, x)
    for group in graph.groups:
        try:
            plan = make_plan(graph, {group.name: (0, 1, 2)})
        except PlanError:
            continue
        small, reference = secateur.cut(net, plan), Squared().double().eval()
        reference.load_state_dict(net.state_dict())
        with torch.no_grad():
            reference.a.weight[list(plan.removed.get(group.name, ()))] = 0
            torch.testing.assert_close(small(x), reference(x))


class Loud(nn.Module):
    """Divides by a number that comes from data."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.g, self.c = None if own else nn.Conv2d(16, 8, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = self.b(x)
        return self.c(torch.relu(y / (y if self.g is None else self.g(x)).abs().sum().item()))


@pytest.mark.parametrize("own", [False, True])
def test_numbers_from_data_are_not_taken_for_numbers_from_sizes(own: bool) -> None:
    torch.manual_seed(0)
    net, x = Loud(own).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(net, x)
    plan = make_plan(graph, {"a": tuple(range(8))})
    assert plan.removed == {"a": tuple(range(8))}
    assert not plan.scales
    small = secateur.cut(net, plan)
    with torch.no_grad():
        for layer in (net.b, net.g):
            if layer is not None:
                layer.weight[:, :8] = 0
        torch.testing.assert_close(small(x), net(x))


def test_a_number_of_a_size_beside_one_from_data_is_still_found() -> None:
    class Both(Loud):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            x = F.leaky_relu(x - 1, 1 / math.gcd(x.shape[1], 16))
            return self.c(torch.relu(self.b(x) / x.abs().sum().item()))

    net, x = Both(True).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(net, x)
    plan = make_plan(graph, {"a": (0, 1), "b": (3, 4)})
    assert plan.removed == {"b": (3, 4)}
    assert plan.given_back == {"a": 2}


@functools.lru_cache
def table(size: int) -> Tensor:
    return torch.arange(size).add(1) * 0.5


def test_a_constant_that_code_keeps_from_a_later_pass_is_no_departure() -> None:
    table.cache_clear()

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) + table(x.shape[1])[:, None])

    net, x = Keeps().eval(), torch.randn(2, 5, 6)
    graph = secateur.trace(net, x)
    with torch.no_grad():
        expected = net(x)
    assert torch.equal(table(5), torch.arange(5).add(1) * 0.5)
    plan = make_plan(graph, {"a": (0, 3)})
    assert plan.removed == {"a": (0, 3)}
    assert secateur.cut(net, plan)(x).shape == expected.shape
