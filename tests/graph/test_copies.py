"""Copies of networks that hold more than parameters and buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.graph.copies import clone_model, copy_model, meta_like

HOLD: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tensor": lambda h, k: h,
    "a list": lambda h, k: [h, k],
    "a tuple": lambda h, k: (h, k),
    "a dictionary": lambda h, k: {"h": h},
    "nested": lambda h, k: [{"h": (h, [k])}],
    "a set": lambda h, k: {h, k},
    "a deque": lambda h, k: deque([h, k]),
    "an object": lambda h, k: SimpleNamespace(h=h, k=k),
}


class Remembers(nn.Module):
    """Keeps the activations of its last pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        k = torch.relu(self.b(h))
        self.seen = HOLD[self.how](h, k)
        return self.c(k)


@pytest.mark.parametrize("how", HOLD)
def test_what_a_network_remembers_of_a_training_pass_is_no_obstacle(how: str) -> None:
    torch.manual_seed(0)
    model, x = Remembers(how), torch.randn(4, 8)
    model(x).sum().backward()
    seen, before = model.seen, snapshot(model)
    result = secateur.prune(model, x, sparsity=0.5)
    assert {g.name: g.size for g in secateur.trace(model, x).groups} == {"a": 16, "b": 12}
    assert result.check.ok
    assert model.seen is seen
    assert differences(before, snapshot(model)) == []


def test_a_held_tensor_is_replaced_wherever_it_is_and_once() -> None:
    module = nn.Linear(2, 2)
    held = torch.ones(3)
    module.list, module.deque = [held, [held]], deque([held])  # type: ignore[assignment]
    copied: Any = copy_model(module, lambda _, tensor: meta_like(tensor))
    assert copied.list[0].is_meta
    assert copied.list[0] is copied.list[1][0] is copied.deque[0]


def test_a_shared_container_is_shared_in_the_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    cache: dict[str, Tensor] = {}
    for layer in model:
        layer.cache = cache  # type: ignore[assignment]
    cache["x"] = torch.ones(1)
    copied: Any = clone_model(model)
    assert copied[0].cache is copied[1].cache
    assert copied[0].cache is not cache


def test_a_clone_has_its_own_tensors_and_keeps_ties() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    copied = clone_model(model)
    assert copied[0].weight is copied[1].weight
    assert torch.equal(copied[0].weight, model[0].weight)
    assert copied[0].weight is not model[0].weight
    assert [p.requires_grad for p in copied.parameters()] == [True, False, True]
