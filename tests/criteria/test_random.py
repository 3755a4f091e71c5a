"""The random criterion: fixed by its seed, spread over [0, 1), blind to the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur


@pytest.fixture
def graph() -> secateur.Graph:
    model = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 50), nn.Linear(50, 2))
    return secateur.trace(model.eval(), torch.randn(2, 3))


def test_the_seed_repeats_and_another_seed_differs(graph: secateur.Graph) -> None:
    first, again, other = (secateur.score(graph, "random", seed=seed) for seed in (3, 3, 4))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_global_generator_is_neither_used_nor_moved(graph: secateur.Graph) -> None:
    torch.manual_seed(0)
    first = secateur.score(graph, "random", seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    second = secateur.score(graph, "random", seed=3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_draws_are_uniform_and_unlike_between_groups(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "random", seed=0)
    assert {name: len(values) for name, values in scores.items()} == {"0": 400, "2": 50}
    values = scores["0"]
    assert values.dtype == torch.float64
    assert 0 <= values.min() < 0.05
    assert 0.95 < values.max() < 1
    assert abs(float(values.mean()) - 0.5) < 0.06
    assert not torch.equal(values[:50], scores["2"])


def test_weights_do_not_matter(graph: secateur.Graph) -> None:
    before = secateur.score(graph, "random", seed=0)
    with torch.no_grad():
        for parameter in graph.model.parameters():
            parameter.zero_()
    after = secateur.score(graph, "random", seed=0)
    assert all(torch.equal(before[name], after[name]) for name in before)
