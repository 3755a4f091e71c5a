"""Taylor scores against explicit index sets, autograd by hand and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.criteria import combine
from secateur.criteria.elements import element_scores
from secateur.errors import InputError

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A convolution with a norm, flattened into a head; smooth, so that differences converge."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.b = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.norm(self.a(x)))).flatten(1)
        return self.head(torch.tanh(self.b(h)))


# Every element of a unit over its whole group, as (parameter, index).
UNIT = {
    "a": lambda u: [
        ("a.weight", (u,)), ("a.bias", (u,)), ("norm.weight", (u,)), ("norm.bias", (u,)),
        *(("b.weight", (slice(None), 4 * u + k)) for k in range(4)),
    ],
    "b": lambda u: [("b.weight", (u,)), ("b.bias", (u,)), ("head.weight", (slice(None), u))],
}  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def batches() -> list[Batch]:
    torch.manual_seed(1)
    return [
        (torch.randn(n, 2, 2, 2, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 4, 3)
    ]


def scores_of(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    return secateur.score(secateur.trace(model, batches[0][0]), "taylor", calibration=batches)


def test_scores_are_squared_sums_of_gradient_times_weight(
    model: nn.Module, batches: list[Batch]
) -> None:
    wanted = {"a": [0.0] * 4, "b": [0.0] * 5}
    parameters = dict(model.named_parameters())
    model.eval()
    for x, labels in batches:
        loss = F.cross_entropy(model(x), labels)
        grads = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
        )
        for group, totals in wanted.items():
            for unit in range(len(totals)):
                change = math.fsum(
                    float((grads[name] * parameters[name].detach())[index].sum())
                    for name, index in UNIT[group](unit)
                )
                totals[unit] += change**2 / len(batches)
    found = scores_of(model, batches)
    assert set(found) == {"a", "b"}
    for group, totals in wanted.items():
        assert found[group].tolist() == pytest.approx(totals, rel=1e-9)


@pytest.mark.parametrize("group", ["a", "b"])
def test_scores_are_the_loss_change_of_shrinking_a_unit(
    model: nn.Module, batches: list[Batch], group: str
) -> None:
    """First order: d loss / d t at t = 0 where the unit's parameters are w (1 - t)."""
    found = scores_of(model, batches[:1])[group]
    x, labels = batches[0]
    model.eval()
    parameters = dict(model.named_parameters())
    step = 1e-5

    def loss_at(unit: int, t: float) -> float:
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, index in UNIT[group](unit):
                parameters[name][index] *= 1 - t
            value = float(F.cross_entropy(model(x), labels))
            for name, p in parameters.items():
                p.copy_(before[name])
        return value

    for unit in range(len(found)):
        slope = (loss_at(unit, step) - loss_at(unit, -step)) / (2 * step)
        assert float(found[unit]) == pytest.approx(slope**2, rel=1e-4, abs=1e-12)


def test_two_batches_are_averaged(model: nn.Module, batches: list[Batch]) -> None:
    one, two, both = (scores_of(model, part) for part in (batches[:1], batches[1:2], batches[:2]))
    for name in both:
        torch.testing.assert_close(both[name], (one[name] + two[name]) / 2)


def test_a_unit_that_nobody_reads_scores_zero(model: nn.Module, batches: list[Batch]) -> None:
    with torch.no_grad():
        model.head.weight[:, 2] = 0
        model.b.weight[2] = 0
        model.b.bias[2] = 0
    found = scores_of(model, batches)["b"]
    assert found[2] == 0
    assert (found[[0, 1, 3, 4]] > 0).all()


def test_dropout_is_off_and_statistics_stay(model: nn.Module, batches: list[Batch]) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = scores_of(model, batches), scores_of(model.eval(), batches)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_parameters_count_and_stay_frozen(model: nn.Module, batches: list[Batch]) -> None:
    free = scores_of(model, batches)
    model.a.weight.requires_grad_(False)
    frozen = scores_of(model, batches)
    assert all(torch.equal(free[name], frozen[name]) for name in free)
    assert not model.a.weight.requires_grad


def test_it_works_under_no_grad(model: nn.Module, batches: list[Batch]) -> None:
    wanted = scores_of(model, batches)
    with torch.no_grad():
        found = scores_of(model, batches)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_another_loss_gives_other_scores(model: nn.Module, batches: list[Batch]) -> None:
    graph = secateur.trace(model, batches[0][0])
    found = secateur.score(
        graph, "taylor", calibration=batches, loss=lambda out, labels: out.square().mean()
    )
    assert not torch.equal(found["a"], scores_of(model, batches)["a"])


def test_it_needs_calibration(model: nn.Module, batches: list[Batch]) -> None:
    graph = secateur.trace(model, batches[0][0])
    with pytest.raises(InputError, match="'taylor' needs calibration batches, but got none"):
        secateur.score(graph, "taylor")


def test_fisher_squares_the_change_of_every_sample(model: nn.Module, batches: list[Batch]) -> None:
    wanted = {"a": [0.0] * 4, "b": [0.0] * 5}
    parameters = dict(model.named_parameters())
    model.eval()
    samples = [(x[n], labels[n]) for x, labels in batches for n in range(len(x))]
    for x, label in samples:
        loss = -model(x[None]).log_softmax(1)[0, label]
        grads = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
        )
        for group, totals in wanted.items():
            for unit in range(len(totals)):
                change = math.fsum(
                    float((grads[name] * parameters[name].detach())[index].sum())
                    for name, index in UNIT[group](unit)
                )
                totals[unit] += change**2 / (2 * len(samples))
    graph = secateur.trace(model, batches[0][0])
    found = secateur.score(graph, "fisher", calibration=batches)
    for group, totals in wanted.items():
        assert found[group].tolist() == pytest.approx(totals, rel=1e-9)


def test_fisher_does_not_see_how_samples_are_batched(
    model: nn.Module, batches: list[Batch]
) -> None:
    graph = secateur.trace(model, batches[0][0])
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = secateur.score(graph, "fisher", calibration=[(inputs, labels)])
    parts = secateur.score(graph, "fisher", calibration=batches)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["snip", "grasp", "hessian", "synflow"])
def test_others_are_sums_over_the_unit(model: nn.Module, batches: list[Batch], name: str) -> None:
    """Of scores of single weights, which have their own oracles."""
    graph = secateur.trace(model, batches[0][0])
    single = element_scores(model, name, batches, example_inputs=batches[0][0], seed=3)
    found = secateur.score(graph, name, calibration=batches, seed=3)
    assert set(found) == {"a", "b"}
    for group, values in found.items():
        for unit, value in enumerate(values.tolist()):
            wanted = math.fsum(
                v
                for parameter, index in UNIT[group](unit)
                for v in single[parameter][index].reshape(-1).tolist()
            )
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_more_draws_make_the_hessian_better(model: nn.Module, batches: list[Batch]) -> None:
    graph = secateur.trace(model, batches[0][0])

    def unit_scores(draws: int, seed: int) -> Tensor:
        options = {"draws": draws}
        return secateur.score(graph, "hessian", batches, seed=seed, options=options)["a"]

    best = unit_scores(200, 99)
    few = [float((unit_scores(1, seed) - best).norm()) for seed in range(8)]
    many = [float((unit_scores(20, seed) - best).norm()) for seed in range(8)]
    assert sum(many) < 0.6 * sum(few)


def test_an_interrupt_between_batches_leaves_the_model(
    model: nn.Module, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass is suspended then: nobody asks it for the next batch."""
    graph = secateur.trace(model, batches[0][0])
    model.train()
    before = snapshot(model)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(combine.SlotSums, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        secateur.score(graph, "taylor", calibration=batches)
    assert differences(before, snapshot(model)) == []
    assert torch.is_grad_enabled()
    assert caught.type is KeyboardInterrupt
