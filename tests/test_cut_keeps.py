"""What a cut leaves as it was beside the numbers: layout, classes, attributes, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur

X = torch.randn(2, 8, 12, 12)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 3)
    ).eval()


def halved(model: nn.Module, x: Tensor, *, inplace: bool = False) -> nn.Module:
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    return secateur.cut(model, plan, inplace=inplace)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(layout: torch.memory_format, inplace: bool) -> None:
    model = convolutions().to(memory_format=layout)
    wanted = [dim for dim, _ in sorted(enumerate(model[0].weight.stride()), key=lambda i: -i[1])]
    pruned = halved(model, X.to(memory_format=layout), inplace=inplace)
    for layer in (pruned[0], pruned[2], pruned[4]):
        assert layer.weight.is_contiguous(memory_format=layout)
    strides = pruned[0].weight.stride()
    assert sorted(range(4), key=lambda dim: -strides[dim]) == wanted
    assert pruned[0].weight.shape == (8, 8, 3, 3)


def test_a_turned_weight_stays_turned() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model[0].weight = nn.Parameter(torch.randn(6, 8).t())
    pruned = halved(model, torch.randn(2, 6))
    assert pruned[0].weight.shape == (4, 6)
    assert pruned[0].weight.stride() == (1, 4)


class Marked(nn.Parameter):
    """A parameter of a class of its own."""


def with_subclass(model: nn.Sequential) -> None:
    model[0].weight = Marked(model[0].weight.data)
    model[2].weight = Marked(model[2].weight.data, requires_grad=False)


def with_attributes(model: nn.Sequential) -> None:
    model[0].weight._no_weight_decay = True
    model[0].weight.labels = ["a"]
    model[4].bias._no_weight_decay = True  # nothing of it goes


COPIES: dict[str, Callable[[nn.Module, secateur.Plan], nn.Module]] = {
    "cut": secateur.cut,
    "cut in place": lambda model, plan: secateur.cut(model, plan, inplace=True),
    "mask": secateur.mask,
}


@pytest.mark.parametrize("name", COPIES)
def test_parameters_keep_their_class_attributes_and_gradients(name: str) -> None:
    model = convolutions()
    with_subclass(model)
    with_attributes(model)
    labels = model[0].weight.labels
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    made = COPIES[name](model, plan)
    assert type(made[0].weight) is Marked
    assert made[0].weight.requires_grad
    assert type(made[2].weight) is Marked
    assert not made[2].weight.requires_grad
    assert type(made[4].weight) is nn.Parameter
    assert made[0].weight._no_weight_decay
    assert made[4].bias._no_weight_decay
    assert made[0].weight.labels == ["a"]
    assert name == "cut in place" or made[0].weight.labels is not labels
    assert all(p.is_leaf for p in made.parameters())
    assert len(list(made.parameters())) == 6


def test_buffers_keep_what_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.shift = nn.Buffer(torch.randn(8), persistent=False)
            self.register_buffer("gain", torch.ones(8, requires_grad=True))
            self.register_buffer("steps", torch.arange(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) + self.shift) * self.gain + self.steps)

    pruned = halved(Net().eval(), torch.randn(2, 5))
    assert pruned.shift.shape == pruned.gain.shape == pruned.steps.shape == (4,)
    assert isinstance(pruned.shift, nn.Buffer)
    assert set(pruned.state_dict()) >= {"gain", "steps"}
    assert "shift" not in pruned.state_dict()
    assert pruned.gain.requires_grad
    assert pruned.steps.dtype is torch.int64
