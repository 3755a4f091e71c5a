"""Memory at its peak and PyTorch's own count of MACs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.footprint import counted_macs, peak_memory
from secateur.models import digits_cnn

FLOAT = 4


class Chain(nn.Module):
    """Three tensors of n elements, of which at most two live beside each other."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = y * 2
        del y
        return z - 1


class Hoard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        kept = [x + place for place in range(4)]
        kept[0].add_(1)
        return kept[3].view(-1)


@pytest.mark.parametrize(("model", "alive"), [(Chain(), 2), (Hoard(), 4)])
def test_only_what_lives_is_counted(model: nn.Module, alive: int) -> None:
    assert peak_memory(model, torch.zeros(10, 100)) == alive * 1000 * FLOAT


def test_a_pruned_network_needs_less() -> None:
    model, x = digits_cnn(), torch.zeros(4, 1, 8, 8)
    pruned = secateur.prune(model, x, sparsity=0.5).model
    assert 0 < peak_memory(pruned, x) < 0.6 * peak_memory(model, x)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_macs_are_those_of_the_graph(sparsity: float) -> None:
    model, x = digits_cnn(), torch.zeros(2, 1, 8, 8)
    result = secateur.prune(model, x, sparsity=sparsity)
    assert counted_macs(result.model, x) == 2 * result.plan.pruned.macs


def test_macs_of_attention_are_those_of_the_graph() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.zeros(2, 5, 32)
    assert counted_macs(model, x) == 2 * secateur.trace(model, x).cost().macs
