"""The network masked by hand is the one without its removed units, and tells a wrong cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import call
from hand_masked import hand_masked, train_outputs, train_problem, untold
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import secateur

X = torch.randn(5, 8, dtype=torch.float64)
GONE = (1, 4, 5)
KEPT = (0, 2, 3)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.a(x)))
        return self.o(nn.functional.dropout(hidden, 0.5, self.training))


CUTS: dict[str, Any] = {
    "a.weight": {0: GONE}, "a.bias": {0: GONE}, "norm.weight": {0: GONE}, "norm.bias": {0: GONE},
    "o.weight": {1: GONE},
}  # fmt: skip


def network(kind: type[nn.Module] = Normed) -> Any:
    torch.manual_seed(0)
    model = kind().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def run(model: nn.Module) -> list[Tensor]:
    return call(model, X)


def test_a_norm_runs_over_the_units_that_stay() -> None:
    model = network()
    kept = torch.tensor(KEPT)
    hidden = model.a(X)[:, kept]
    away = hidden - hidden.mean(1, keepdim=True)
    normed = away / (away.square().mean(1, keepdim=True) + model.norm.eps).sqrt()
    normed = normed * model.norm.weight[kept] + model.norm.bias[kept]
    wanted = normed @ model.o.weight[:, kept].T + model.o.bias
    for masked in (hand_masked(model, CUTS), hand_masked(model, CUTS).train()):
        assert torch.allclose(train_outputs(masked, run)[0], wanted, rtol=0, atol=1e-12)
    assert model.a.weight.abs().min() > 0


def test_a_wrong_cut_is_told() -> None:
    model = network()
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    pruned = secateur.cut(model, plan)
    assert train_problem(model, pruned, plan.cuts, run) == ""
    with torch.no_grad():
        pruned.o.weight[0, 0] += 1e-3
    assert "outputs differ" in train_problem(model, pruned, plan.cuts, run)
    assert train_problem(model, model, {}, run) == "the output did not change"


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.o = nn.Conv1d(1, 6, 3), nn.GroupNorm(2, 6), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.norm(self.a(x[:, None])))


def test_groups_of_a_norm_keep_their_own_units() -> None:
    model = network(Groups)
    masked = hand_masked(model, {**CUTS, "a.weight": {0: GONE}})
    hidden = model.a(X[:, None])
    parts = []
    for kept in ([0, 2], [3]):
        part = hidden[:, kept]
        away = part - part.mean((1, 2), keepdim=True)
        normed = away / (away.square().mean((1, 2), keepdim=True) + model.norm.eps).sqrt()
        parts.append(normed * model.norm.weight[kept][:, None] + model.norm.bias[kept][:, None])
    weight = model.o.weight[:, [0, 2, 3], 0]
    wanted = torch.einsum("oc,bcl->bol", weight, torch.cat(parts, 1)) + model.o.bias[:, None]
    assert torch.allclose(masked(X), wanted, rtol=0, atol=1e-12)


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(1, 6, 3)
        self.b = weight_norm(nn.Conv1d(6, 2, 3), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[:, None]))


def test_a_weight_that_is_made_keeps_its_length() -> None:
    model = network(Parametrised)
    made = "b.parametrizations.weight.original1"
    masked = hand_masked(model, {"a.weight": {0: GONE}, "a.bias": {0: GONE}, made: {1: GONE}})
    kept = list(KEPT)
    wanted = nn.functional.conv1d(
        model.a(X[:, None])[:, kept], model.b.weight[:, kept], model.b.bias
    )
    assert torch.allclose(masked(X), wanted, rtol=0, atol=1e-12)
    assert model.b.weight.abs().min() > 0


@pytest.mark.parametrize(("affine", "said"), [(True, ""), (False, "LayerNorm")])
def test_a_norm_without_weights_cannot_say_what_went(affine: bool, said: str) -> None:
    assert untold(nn.Sequential(nn.LayerNorm(4, elementwise_affine=affine))) == said
