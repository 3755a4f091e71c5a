"""A kernel that covers a dimension reads it as a dense layer does: the scores are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.read, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(torch.tanh(self.a(x)))
        return self.out(torch.relu(h).mean(1))


class Covered(Dense):
    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.load_state_dict(dense.state_dict())
        self.read = nn.Conv2d(1, 6, (1, 8))
        with torch.no_grad():
            self.read.weight.copy_(dense.read.weight[:, None, None])
            self.read.bias.copy_(dense.read.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(torch.tanh(self.a(x)).unsqueeze(1)).squeeze(3).transpose(1, 2)
        return self.out(torch.relu(h).mean(1))


@pytest.mark.parametrize(
    "criterion",
    ["l2", "activation_norm", "entropy", "wanda", "taylor", "taylor_activation", "lrp", "synflow"],
)
def test_scores_are_those_of_a_dense_layer(criterion: str) -> None:
    torch.manual_seed(0)
    dense = Dense().double()
    calibration = [
        (torch.randn(7, 4, 5, dtype=torch.float64), torch.randint(3, (7,))) for _ in range(2)
    ]
    found = [
        secateur.score(secateur.trace(model, calibration[0][0]), criterion, calibration)
        for model in (dense, Covered(dense).double())
    ]
    assert found[0].keys() == found[1].keys() == {"a", "read"}
    torch.testing.assert_close(found[1]["a"], found[0]["a"], rtol=1e-9, atol=1e-12)
