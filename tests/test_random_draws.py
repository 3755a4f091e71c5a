"""Proofs of networks that draw random numbers in eval mode."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.graph.generators import seeded_generators
from secateur.planning import make_plan
from secateur.random_draws import Draws, uneven


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        self.noise, self.width = noise, 16
        self.torch = torch.Generator().manual_seed(3)
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.noise(self, torch.relu(self.a(x)))
        return self.c(torch.relu(self.b(h)))


SAME_SHAPE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "rows dropped": lambda net, h: h * torch.empty(4, 1).bernoulli_(0.5),
    "rows shuffled": lambda net, h: h[torch.randperm(4)],
    "rows chosen": lambda net, h: h[torch.multinomial(torch.ones(4), 4)],
    "a branch": lambda net, h: h if torch.rand(1).item() < 0.5 else 2 * h,
    "NumPy": lambda net, h: h * float(np.random.rand()),
    "NumPy's own generator": lambda net, h: h * float(net.numpy.random()),
    "Python": lambda net, h: h * random.random(),
    "Python's own generator": lambda net, h: h * net.python.random(),
    "Dirichlet": lambda net, h: h * torch.distributions.Beta(1.0, 1.0).sample(),
}
CUT_SHAPE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda net, h: F.dropout(h, 0.5),
    "dropout in place": lambda net, h: F.dropout(h, 0.5, inplace=True),
    "alpha dropout": lambda net, h: F.alpha_dropout(h, 0.3, training=True),
    "randn_like": lambda net, h: h + torch.randn_like(h),
    "rand of the shape": lambda net, h: h * torch.rand(h.shape),
    "rand of the width": lambda net, h: h * torch.rand(len(h), net.width),
    "its own generator": lambda net, h: h * torch.rand(h.shape, generator=net.torch),
    "bernoulli": lambda net, h: h * torch.bernoulli(torch.sigmoid(h)),
    "bernoulli by a number": lambda net, h: h * torch.bernoulli(h, 0.5),
    "rrelu": lambda net, h: F.rrelu(h - 1, training=True),
    "uniform": lambda net, h: h * torch.distributions.Uniform(0, 1).sample(h.shape),
}


def example() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8)


def network(noise: Callable[[Any, Tensor], Tensor]) -> Any:
    torch.manual_seed(0)
    return Noisy(noise).eval()


def cut_both(model: Any) -> tuple[Any, secateur.Plan]:
    plan = make_plan(secateur.trace(model, example()), {"a": (1, 5, 7), "b": (0, 3)})
    return secateur.cut(model, plan), plan


@pytest.mark.parametrize("what", [*SAME_SHAPE, *CUT_SHAPE])
def test_both_networks_draw_the_same_and_a_wrong_cut_is_found(what: str) -> None:
    model = network({**SAME_SHAPE, **CUT_SHAPE}[what])
    pruned, plan = cut_both(model)
    check = secateur.verify(model, pruned, plan, example())
    assert check.ok
    assert check.changed
    assert check.max_error < 1e-13
    with torch.no_grad():
        pruned.a.weight[2] += 0.01
    assert not secateur.verify(model, pruned, plan, example()).ok


@pytest.mark.parametrize("what", CUT_SHAPE)
def test_the_proof_says_that_the_network_draws(what: str) -> None:
    check = secateur.prune(network(CUT_SHAPE[what]), example(), sparsity=0.5).check
    assert check.ok
    assert "the network draws random numbers in eval mode (aten." in check.notes[0]


def test_a_network_without_draws_says_nothing_of_them() -> None:
    model = network(lambda net, h: F.dropout(h, 0.5, training=False))
    assert secateur.prune(model, example(), sparsity=0.5).check.notes == ()


def test_a_choice_of_units_has_no_draw_that_is_even() -> None:
    """A permutation of what is left is no part of a permutation of all: told by name."""

    def shuffled(net: Any, h: Tensor) -> Tensor:
        return h + 0 * torch.randperm(int(h.shape[1])).float()

    model = network(shuffled)
    pruned, plan = cut_both(network(lambda net, h: h))
    pruned.noise = shuffled
    check = secateur.verify(model, pruned, plan, example())
    assert check.ok  # its values do not matter here
    pruned.noise = model.noise = lambda net, h: h + torch.randperm(int(h.shape[1])).float()
    check = secateur.verify(model, pruned, plan, example())
    assert not check.ok
    assert "draws random numbers in eval mode (aten.randperm in the model)" in check.reason
    assert "in a shape that the plan cuts" in check.reason


def test_a_network_that_never_computes_the_same_is_told_as_that() -> None:
    model = network(lambda net, h: h + int.from_bytes(os.urandom(4), "big") / 2**32)
    pruned, plan = cut_both(network(lambda net, h: h))
    pruned.noise = model.noise
    check = secateur.verify(model, pruned, plan, example())
    assert not check.ok
    assert "the network does not compute the same twice" in check.reason


def test_every_generator_is_left_as_it_was() -> None:
    model = network(lambda net, h: h * torch.rand(h.shape, generator=net.torch) * random.random())
    x = example()
    before = torch.get_rng_state(), random.getstate(), model.torch.get_state()
    numpy = np.random.get_state()[1].copy()  # type: ignore[index]
    secateur.prune(model, x, sparsity=0.5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert torch.equal(before[2], model.torch.get_state())
    assert np.array_equal(numpy, np.random.get_state()[1])  # type: ignore[index]


def test_a_variational_network_is_proved() -> None:
    class Variational(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mean, self.spread = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)
            self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            h = torch.relu(self.a(x))
            mean, spread = self.mean(h), self.spread(h)
            z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
            return self.c(torch.relu(self.b(z))), mean, spread

    torch.manual_seed(0)
    result = secateur.prune(Variational().eval(), example(), sparsity=0.5)
    assert result.check.ok
    assert set(result.plan.removed) == {"a", "b"}


def test_draws_depend_on_where_they_are_and_not_on_what_was_drawn_before() -> None:
    class Two(nn.Module):
        def forward(self, first: bool) -> Tensor:
            if first:
                torch.multinomial(torch.ones(3), 1)
            return torch.stack([torch.rand(3), torch.rand(3)])

    found = []
    for first in (False, True):
        net = Two()
        draws = Draws(net, 0, {})
        with draws.watch():
            found.append(net(first))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][0], found[0][1])


def test_shapes_that_differ_are_named_by_their_dimensions() -> None:
    a, b, c = ("x", "", 0), ("y", "", 0), ("z", "", 0)
    dims, unlike = uneven({a: (2, 8, 3), b: (4,)}, {a: (2, 5, 3), b: (4,), c: (1,)})
    assert dims == {a: (1,)}
    assert unlike == {c}
    assert uneven({a: (2,)}, {a: (2, 1)}) == ({}, {a})


def test_generators_are_seeded_alike_and_put_back() -> None:
    states = torch.get_rng_state(), random.getstate()
    drawn = []
    for _ in range(2):
        with seeded_generators(7):
            drawn.append((torch.rand(1).item(), random.random(), float(np.random.rand())))
    assert drawn[0] == drawn[1]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_proofs_in_threads_draw_alike() -> None:
    state = torch.get_rng_state()
    found: list[bool] = []

    def work() -> None:
        model = network(lambda net, h: F.dropout(h, 0.5) + torch.randn_like(h))
        x = torch.linspace(-1, 1, 32).view(4, 8)
        found.extend(secateur.prune(model, x, sparsity=0.5).check.ok for _ in range(4))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 12
    torch.set_rng_state(state)
