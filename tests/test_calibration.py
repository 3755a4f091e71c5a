"""Calibration passes: what they yield, and that they leave no trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.calibration import cross_entropy, gradients, untouched
from secateur.errors import InputError


class Net(nn.Module):
    """It has all that a pass could disturb; ``fail`` makes it raise in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout()
        self.b = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.drop(torch.relu(self.norm(self.a(x))))
        if self.fail:
            raise KeyError("inside")
        return self.b(h)


@pytest.fixture
def model() -> Net:
    """A network in a mixed state: some modes, gradients, frozen weights and a hook."""
    torch.manual_seed(0)
    model = Net().train()
    model.drop.eval()
    model.a.weight.requires_grad_(False)
    model.b.weight.grad = torch.ones_like(model.b.weight)
    model.b.register_forward_hook(lambda *args: None)
    return model


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def test_a_pass_leaves_the_model_bit_for_bit(model: Net) -> None:
    before = snapshot(model)
    gradient = model.b.weight.grad
    graph = secateur.trace(model, batch()[0])
    secateur.score(graph, "taylor", calibration=[batch(), batch(3)])
    assert differences(before, snapshot(model)) == []
    assert model.b.weight.grad is gradient


@pytest.mark.parametrize("where", ["forward", "loss", "data"])
def test_an_error_inside_leaves_the_model_bit_for_bit(model: Net, where: str) -> None:
    graph = secateur.trace(model, batch()[0])
    model.fail = where == "forward"
    before = snapshot(model)

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        if where == "loss":
            raise KeyError("inside")
        return cross_entropy(outputs, labels)

    def data() -> Any:
        yield batch()
        if where == "data":
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        secateur.score(graph, "taylor", calibration=data(), loss=loss)
    assert differences(before, snapshot(model)) == []


def test_a_pass_that_is_left_early_leaves_the_model(model: Net) -> None:
    before = snapshot(model)
    passes = gradients(model, [batch(), batch()])
    next(passes)
    passes.close()
    assert differences(before, snapshot(model)) == []


def test_gradients_are_those_of_each_batch_by_itself(model: Net) -> None:
    batches = [batch(), batch(3)]
    found = [{name: g.clone() for name, g in grads.items()} for grads in gradients(model, batches)]
    model.eval()
    for (x, labels), grads in zip(batches, found, strict=True):
        assert set(grads) == {name for name, _ in model.named_parameters()}
        model.zero_grad()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        F.cross_entropy(model(x), labels).backward()
        for name, parameter in model.named_parameters():
            assert torch.equal(grads[name], parameter.grad)


def test_untouched_puts_changed_buffers_back(model: Net) -> None:
    before = snapshot(model)
    with untouched(model):
        assert not any(module.training for module in model.modules())
        model.norm.running_mean.fill_(7)
        model.norm.train()
        model.a.weight.requires_grad_(True)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "at least one batch, but it is empty"),
        ([torch.zeros(2, 4)], r"must give \(inputs, labels\) batches, but gave Tensor"),
        ([(torch.zeros(2, 4),)], r"must give \(inputs, labels\) batches, but gave tuple"),
        (
            [batch(), (torch.full((2, 4), math.nan), torch.zeros(2, dtype=torch.long))],
            "loss on calibration batch 1 must be finite, but is nan",
        ),
    ],
)
def test_bad_batches_are_refused_and_leave_the_model(model: Net, batches: Any, words: str) -> None:
    graph = secateur.trace(model, batch()[0])
    before = snapshot(model)
    with pytest.raises(InputError, match=words):
        secateur.score(graph, "taylor", calibration=batches)
    assert differences(before, snapshot(model)) == []


def test_inputs_may_be_a_tuple_or_a_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.a(x)) * scale
            logits = self.b(h)
            return logits, logits.sum()

    model = Two()
    (x, labels), scale = batch(), torch.full((5, 1), 2.0)
    graph = secateur.trace(model, (x, scale))
    by_tuple = secateur.score(graph, "taylor", calibration=[((x, scale), labels)])
    by_list = secateur.score(graph, "taylor", calibration=[[[x, scale], labels]])
    by_dict = secateur.score(graph, "taylor", calibration=[({"x": x, "scale": scale}, labels)])
    assert torch.equal(by_tuple["a"], by_dict["a"])
    assert torch.equal(by_tuple["a"], by_list["a"])


def test_cross_entropy_finds_the_logits() -> None:
    class Record:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    wanted = -logits.log_softmax(1)[range(4), labels].mean()
    for outputs in (logits, Record(logits), (logits, "rest"), {"logits": logits}, [logits, logits]):
        torch.testing.assert_close(cross_entropy(outputs, labels), wanted)
