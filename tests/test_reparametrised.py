"""Weights that other tensors make: the zeros that are told are there, and nothing is no number."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import secateur
from secateur.rounds import MaskRule
from secateur.rounds.weights import next_masks
from secateur.weight_masks import find_masks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.o = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module)


def pruned_by_torch(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.5)


MAKERS: dict[str, Callable[[nn.Module], object]] = {
    "torch prune, nothing gone": lambda module: prune.identity(module, "weight"),
    "torch prune, half gone": pruned_by_torch,
    "weight norm": parametrizations.weight_norm,
    "weight norm of inputs": lambda module: parametrizations.weight_norm(module, dim=1),
    "weight norm, old": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": nn.utils.spectral_norm,
    "of one's own": lambda module: parametrize.register_parametrization(
        module, "weight", Doubled()
    ),
}


def zeros(model: nn.Module) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in (model.a, model.b, model.o))


@pytest.mark.parametrize("layer", ["a", "b", "o"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_sparsity_that_is_told_is_there(name: str, layer: str, scope: str) -> None:
    torch.manual_seed(0)
    model = Net()
    MAKERS[name](getattr(model, layer))
    found = secateur.sparsify(model, "l1", 0.9, scope=scope)
    whole = 16 * 27 + 32 * 144 + 32 * 5
    assert found.maskable == whole
    assert found.left_out == ()
    # Of 32 inputs that are divided by their lengths each keeps one weight, which is more than 10 %.
    assert found.sparsity == pytest.approx(0.9, abs=0.004)
    assert zeros(found.model) == found.removed
    x = torch.randn(2, 3, 8, 8)
    assert bool(torch.isfinite(found.model(x)).all())
    assert zeros(found.model) == found.removed  # a forward pass makes the weights anew
    assert zeros(model) == (
        0 if "half gone" not in name else getattr(model, layer).weight.eq(0).sum()
    )


@pytest.mark.parametrize("name", MAKERS)
def test_patterns_and_rounds_reach_them(name: str) -> None:
    torch.manual_seed(0)
    model = Net()
    MAKERS[name](model.b)
    runs = secateur.sparsify(model, "l1", pattern="2:4").model.b.weight
    assert int(((runs.movedim(1, -1).reshape(-1, 4) != 0).sum(1) <= 2).all())
    masks = next_masks(model, MaskRule(), 0.5, {})
    assert len(masks) == 3
    masked = copy.deepcopy(secateur.sparsify(model, "l1", 0.5).model)
    assert len(find_masks(masked)) == 3


def test_what_no_zeros_come_through_is_named_and_counted() -> None:
    torch.manual_seed(0)
    model = Net()
    parametrizations.orthogonal(model.o)
    found = secateur.sparsify(model, "l1", 0.9)
    whole = 16 * 27 + 32 * 144 + 32 * 5
    assert found.left_out == ("o",)
    assert found.maskable == whole
    assert found.removed == zeros(found.model)
    assert found.sparsity == found.removed / whole
    assert found.sparsity < 0.9
