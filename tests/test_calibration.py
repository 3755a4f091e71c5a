"""Calibration passes: what they yield, and that they leave no trace."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import secateur
from secateur.calibration import check_repeatable, cross_entropy, gradients, untouched, watched
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


def test_buffers_that_a_pass_replaces_come_back_themselves(model: Net) -> None:
    class Counting(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    model = Counting()
    held = model.calls
    list(gradients(model, [batch(), batch()]))
    assert model.calls is held
    assert held.item() == 0


def test_every_sample_by_itself(model: Net) -> None:
    x, labels = batch(3)
    found = [g["b.bias"].clone() for g in gradients(model, [(x, labels)], each_sample=True)]
    for n, grad in enumerate(found):
        (alone,) = gradients(model, [(x[n : n + 1], labels[n : n + 1])])
        assert torch.equal(grad, alone["b.bias"])
    assert len(found) == 3


def test_what_is_no_sample_is_not_taken_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor, rest: Tensor) -> Tensor:
            return self.a(x) * scale * rest.sum()

    x = torch.randn(3, 4)
    given = (x, torch.tensor(2.0), torch.ones(7))
    seen = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append((outputs.detach().clone(), labels))
        return outputs.sum()

    model = Scaled()
    list(gradients(model, [(given, torch.arange(3))], loss, each_sample=True))
    assert [labels.tolist() for _, labels in seen] == [[0], [1], [2]]
    torch.testing.assert_close(torch.cat([y for y, _ in seen]), model(*given))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(2), r"batch 0 has shapes \[\(3, 4\), \(2,\)\]"),
        (torch.tensor(1), r"batch 0 has shapes \[\(3, 4\), \(\)\]"),
    ],
)
def test_samples_must_lie_along_the_first_dimension(model: Net, labels: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        next(gradients(model, [(torch.randn(3, 4), labels)], each_sample=True))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda y, labels: y.sum(1), r"tensor of one number, but got shape \(5,\)"),
        (lambda y, labels: 3.0, "tensor of one number, but got float"),
        (lambda y, labels: y.detach().sum(), "must depend on the model's parameters"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_refused(model: Net, loss: Any, words: str) -> None:
    before = snapshot(model)
    graph = secateur.trace(model, batch()[0])
    with pytest.raises(InputError, match=words):
        secateur.score(graph, "taylor", calibration=[batch()], loss=loss)
    assert differences(before, snapshot(model)) == []


def test_an_iterator_is_read_once(model: Net) -> None:
    once = watched(iter([batch()]), "", None)
    assert len(list(once)) == 1
    with pytest.raises(InputError, match="must be a list or a data loader, as it is read more"):
        iter(once)
    often = watched([batch()], "", None)
    assert [len(list(often)) for _ in range(2)] == [1, 1]
    check_repeatable(often, "me")
    with pytest.raises(InputError, match="more than once by me, but got an iterator"):
        check_repeatable(iter([batch()]), "me")


def test_what_cannot_be_looped_over_is_refused(model: Net) -> None:
    graph = secateur.trace(model, batch()[0])
    with pytest.raises(InputError, match="calibration must be an iterable"):
        secateur.score(graph, "taylor", calibration=3)


def test_a_network_that_draws_is_judged_by_the_seed() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    data = [batch()]
    graph = secateur.trace(Noisy(), data[0][0])

    def judge(seed: int) -> Tensor:
        return secateur.score(graph, "taylor", calibration=data, seed=seed)["a"]

    first = judge(0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(first, judge(0))
    assert not torch.equal(first, judge(1))
    assert torch.equal(state, torch.get_rng_state())


def test_progress_counts_the_batches(model: Net) -> None:
    counted = []

    class Seen(Progress):
        def advance(self, *args: Any) -> None:
            counted.append(self.tasks[0].description)
            super().advance(*args)

    graph = secateur.trace(model, batch()[0])
    with Seen(console=Console(file=io.StringIO())) as progress:
        secateur.score(graph, "taylor", calibration=[batch(), batch()], progress=progress)
        assert progress.tasks == []
    assert counted == ["Scoring by taylor"] * 2
