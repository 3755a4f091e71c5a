"""Grouped convolutions whose groups do not meet, as in ShuffleNet: units go, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur


class Unit(nn.Module):
    """The unit of ShuffleNet v1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, a residual."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, way: str) -> None:
        super().__init__()
        self.stride, self.groups, self.way, self.middle = stride, groups, way, outputs // 4
        own = outputs - inputs if stride == 2 else outputs
        self.a = nn.Conv2d(inputs, self.middle, 1, groups=groups, bias=False)
        self.b = nn.Conv2d(self.middle, self.middle, 3, stride, 1, groups=self.middle, bias=False)
        self.c = nn.Conv2d(self.middle, own, 1, groups=groups, bias=False)
        self.na, self.nb, self.nc = (nn.BatchNorm2d(n) for n in (self.middle, self.middle, own))

    def shuffled(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.way == "transpose":
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2)
        elif self.way == "attributes":
            x = x.view(n, self.groups, self.middle // self.groups, h, w).transpose(1, 2)
        else:
            x = x.reshape(n, c // self.groups, self.groups, h, w).permute(0, 2, 1, 3, 4)
        return x.reshape(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffled(F.relu(self.na(self.a(x))))
        y = self.nc(self.c(self.nb(self.b(y))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    def __init__(self, groups: int, way: str, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.units = nn.Sequential(
            Unit(width, 2 * width, 2, groups, way), Unit(2 * width, 2 * width, 1, groups, way),
            Unit(2 * width, 4 * width, 2, groups, way), Unit(4 * width, 4 * width, 1, groups, way),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(F.relu(self.stem(x))).mean((2, 3)))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.double().eval()


def left(model: nn.Module, plan: secateur.Plan) -> float:
    return plan.pruned.params / plan.dense.params


@pytest.mark.parametrize("way", ["transpose", "attributes", "other order"])
@pytest.mark.parametrize(("groups", "most"), [(2, 0.4), (3, 0.62), (4, 0.62)])
def test_units_of_shufflenet_go(groups: int, most: float, way: str) -> None:
    torch.manual_seed(0)
    model = randomised(ShuffleNet(groups, way))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    assert left(model, plan) < most
    pruned = secateur.cut(model, plan)
    assert sum(p.numel() for p in pruned.parameters()) == plan.pruned.params
    # What reads channels is a convolution or the head: its own slices of the removed ones are
    # zero. A grouped weight's slice is one place in every group.
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, cuts in plan.cuts.items():
            weight = dict(reference.named_parameters()).get(name)
            if weight is not None and weight.dim() > 1 and 1 in cuts:
                weight[:, list(cuts[1])] = 0
        for name, module in reference.named_modules():
            # A depthwise convolution reads channel by channel: it is zero where its output is cut.
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
                rows = plan.cuts.get(f"{name}.weight", {}).get(0, ())
                module.weight[list(rows)] = 0
        assert torch.allclose(pruned(x), reference(x), rtol=1e-10, atol=1e-12)
    for module in pruned.modules():
        if isinstance(module, Unit):
            assert module.groups == groups


def test_where_groups_meet_both_they_and_the_channels_within_are_units() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    ).eval()  # fmt: skip
    graph = secateur.trace(model, torch.randn(1, 3, 6, 6))
    assert sorted(group.size for group in graph.groups) == [4, 4, 4]
