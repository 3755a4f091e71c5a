"""Scores of single weights against full Hessians, loops over samples and sums by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from secateur.criteria.elements import ELEMENTWISE, element_scores
from secateur.errors import InputError

Batch = tuple[Tensor, Tensor]
DOUBLE = torch.float64


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model.train()


@pytest.fixture
def batches() -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(n, 3, dtype=DOUBLE), torch.randint(0, 2, (n,))) for n in (5, 3)]


def forward(flat: Tensor, x: Tensor) -> Tensor:
    """The network of the fixture, written out; parameters in the order of the module."""
    w1, b1, w2, b2 = flat.split([12, 4, 8, 2])
    h = torch.tanh(x @ w1.view(4, 3).T + b1)
    return h @ w2.view(2, 4).T + b2


def mean_loss(batches: list[Batch]) -> Callable[[Tensor], Tensor]:
    def loss(flat: Tensor) -> Tensor:
        return sum(F.cross_entropy(forward(flat, x), y) for x, y in batches) / len(batches)

    return loss


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def flat_scores(model: nn.Module, name: str, batches: list[Batch], **other: Any) -> Tensor:
    found = element_scores(model, name, batches, **other)
    assert list(found) == [key for key, _ in model.named_parameters()]
    for key, p in model.named_parameters():
        assert found[key].shape == p.shape
    return torch.cat([value.reshape(-1) for value in found.values()])


def test_magnitudes(model: nn.Module) -> None:
    w = flat_weights(model)
    assert flat_scores(model, "l1", []).tolist() == [abs(v) for v in w.tolist()]
    assert flat_scores(model, "l2", []).tolist() == [v * v for v in w.tolist()]


def test_taylor_and_snip_are_products_with_the_gradient(
    model: nn.Module, batches: list[Batch]
) -> None:
    w = flat_weights(model)
    slopes = [
        torch.autograd.functional.jacobian(mean_loss([batch]), w).tolist() for batch in batches
    ]
    taylor = [math.fsum((v * g[i]) ** 2 for g in slopes) / 2 for i, v in enumerate(w.tolist())]
    snip = [abs(v * math.fsum(g[i] for g in slopes) / 2) for i, v in enumerate(w.tolist())]
    assert flat_scores(model, "taylor", batches).tolist() == pytest.approx(taylor, rel=1e-9)
    assert flat_scores(model, "snip", batches).tolist() == pytest.approx(snip, rel=1e-9)


def test_fisher_goes_sample_by_sample(model: nn.Module, batches: list[Batch]) -> None:
    w = flat_weights(model)
    samples = [(x[n : n + 1], y[n : n + 1]) for x, y in batches for n in range(len(x))]
    wanted = torch.zeros_like(w)
    for sample in samples:
        slope = torch.autograd.functional.jacobian(mean_loss([sample]), w)
        wanted += (w * slope) ** 2 / (2 * len(samples))
    found = flat_scores(model, "fisher", batches)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    assert not torch.allclose(found, flat_scores(model, "taylor", batches) / 2)


def test_grasp_is_the_weight_times_hessian_times_gradient(
    model: nn.Module, batches: list[Batch]
) -> None:
    w, loss = flat_weights(model), mean_loss(batches)
    hessian = torch.autograd.functional.hessian(loss, w)
    slope = torch.autograd.functional.jacobian(loss, w)
    torch.testing.assert_close(
        flat_scores(model, "grasp", batches), w * (hessian @ slope), rtol=1e-9, atol=1e-15
    )


def test_grasp_keeps_what_holds_the_gradient_up(model: nn.Module, batches: list[Batch]) -> None:
    """Shrinking a weight of high score lowers the squared norm of the gradient."""
    w, loss = flat_weights(model), mean_loss(batches)

    def norm(flat: Tensor) -> float:
        return float(torch.autograd.functional.jacobian(loss, flat).square().sum())

    found, step = flat_scores(model, "grasp", batches), 1e-5
    for i in range(len(w)):
        less, more = w.clone(), w.clone()
        less[i] *= 1 - step
        more[i] *= 1 + step
        assert float(found[i]) == pytest.approx(
            (norm(more) - norm(less)) / (4 * step), rel=1e-5, abs=1e-9
        )


def test_the_hessians_diagonal_is_estimated_within_its_error(
    model: nn.Module, batches: list[Batch]
) -> None:
    w, draws = flat_weights(model), 400
    hessian = torch.autograd.functional.hessian(mean_loss(batches), w)
    found = flat_scores(model, "hessian", batches, options={"draws": draws}) * 2 / w.square()
    # Of Hutchinson's estimate by random signs: the sum of the squares beside the diagonal.
    error = ((hessian.square().sum(1) - hessian.diag().square()) / draws).sqrt()
    away = (found - hessian.diag()).abs() / error
    assert float(away.max()) < 4.5
    assert 0.5 < float(away.square().mean()) < 2


def test_a_diagonal_hessian_is_exact_in_one_draw() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE))
            self.unused = nn.Parameter(torch.ones(2, dtype=DOUBLE))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.square()

    batch = (torch.tensor([5.0, 0.5, -1.0], dtype=DOUBLE), torch.zeros(1))
    found = element_scores(
        Own(), "hessian", [batch], loss=lambda y, _: y.sum() / 2, options={"draws": 1}
    )
    # The second derivative of x w^2 / 2 is x.
    assert found["weight"].tolist() == [0.5 * 1 * 5, 0.5 * 4 * 0.5, 0.5 * 9 * -1]
    assert found["unused"].tolist() == [0, 0]


def test_another_seed_draws_other_signs(model: nn.Module, batches: list[Batch]) -> None:
    first, again, other = (flat_scores(model, "hessian", batches, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_lamp_by_sorted_lists() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -3.0, 2.0], [0.0, 2.0, -1.0]]))
        model.bias.copy_(torch.tensor([4.0, -4.0]))
    found = element_scores(model, "lamp")
    # Squares 9, 4, 4, 1, 1, 0: those not smaller sum to 9, 17, 17, 19, 19, 19.
    wanted = [[1 / 19, 1, 4 / 17], [0, 4 / 17, 1 / 19]]
    for row, values in zip(found["weight"].tolist(), wanted, strict=True):
        assert row == pytest.approx(values, rel=1e-12)
    assert found["bias"].tolist() == [0.5, 0.5]


def test_lamp_in_general_by_a_slow_loop(model: nn.Module) -> None:
    found = element_scores(model, "lamp")
    for name, p in model.named_parameters():
        squares = [v * v for v in p.detach().reshape(-1).tolist()]
        wanted = [s / math.fsum(other for other in squares if other >= s) for s in squares]
        assert found[name].reshape(-1).tolist() == pytest.approx(wanted, rel=1e-9)


def test_synflow_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model[2].weight.copy_(torch.tensor([[-4.0, 10.0]]))
    found = element_scores(model, "synflow", example_inputs=torch.full((1, 2), -7.0))
    assert found["0.weight"].dtype == DOUBLE
    assert found["0.weight"].tolist() == [[4, 8], [30, 5]]
    assert found["2.weight"].tolist() == [[12, 35]]


def test_synflow_is_conserved_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 2, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False),
    )  # fmt: skip
    found = element_scores(model, "synflow", example_inputs=torch.randn(1, 3, 8, 8))
    sums = [float(value.sum()) for value in found.values()]
    assert len(sums) == 4
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-12)
    assert all(bool((value >= 0).all()) for value in found.values())


def test_synflow_takes_the_sizes_of_norm_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().train()
    for value in (model[1].weight, model[1].bias, model[1].running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    w, b, scale, shift, v, c = (p.detach().abs().requires_grad_() for p in model.parameters())
    h = w.sum(1) + b - model[1].running_mean.abs()
    h = h / (model[1].running_var + model[1].eps).sqrt() * scale + shift
    (v @ h + c).sum().backward()
    found = element_scores(model, "synflow", example_inputs=torch.randn(1, 3, dtype=DOUBLE))
    for value, p in zip(found.values(), (w, b, scale, shift, v, c), strict=True):
        torch.testing.assert_close(value, (p * p.grad).detach(), rtol=1e-9, atol=1e-12)


def test_random_follows_the_seed(model: nn.Module) -> None:
    first, again, other = (flat_scores(model, "random", [], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < float(first.max()) < 1


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_the_model_stays_as_it_was(name: str, model: nn.Module, batches: list[Batch]) -> None:
    model[0].weight.requires_grad_(False)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before, generator = snapshot(model), torch.get_rng_state()
    first = flat_scores(model, name, batches, example_inputs=batches[0][0])
    assert differences(before, snapshot(model)) == []
    assert torch.equal(generator, torch.get_rng_state())
    assert not first.requires_grad
    assert torch.equal(first, flat_scores(model, name, batches, example_inputs=batches[0][0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_scores_are_single_precision_or_better(
    name: str, dtype: torch.dtype, model: nn.Module, batches: list[Batch]
) -> None:
    model = model.to(dtype)
    batches = [(x.to(dtype), y) for x, y in batches]
    found = flat_scores(model, name, batches, example_inputs=batches[0][0])
    assert found.dtype in (torch.float32, DOUBLE)
    assert bool(found.isfinite().all())


def interrupted(batches: list[Batch]) -> Iterator[Batch]:
    yield batches[0]
    raise KeyboardInterrupt


class Again:
    """Batches that break off on every reading."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return interrupted(self.batches)


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if ELEMENTWISE[n].needs_calibration])
def test_an_interrupt_leaves_the_model(name: str, model: nn.Module, batches: list[Batch]) -> None:
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt) as caught:
        element_scores(model, name, Again(batches))
    assert differences(before, snapshot(model)) == []
    assert caught.type is KeyboardInterrupt


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if ELEMENTWISE[n].needs_calibration])
def test_missing_calibration_is_an_error(name: str, model: nn.Module) -> None:
    with pytest.raises(InputError, match=f"'{name}' needs calibration batches, but got none"):
        element_scores(model, name)


def test_what_is_refused(model: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(InputError, match=r"grasp.*got 'grabs'; did you mean 'grasp'"):
        element_scores(model, "grabs")
    with pytest.raises(InputError, match="'synflow' needs example_inputs"):
        element_scores(model, "synflow")
    with pytest.raises(InputError, match="draws must be at least 1, but got 0"):
        element_scores(model, "hessian", batches, options={"draws": 0})
    with pytest.raises(InputError, match="more than once by criterion 'grasp', but got an iter"):
        element_scores(model, "grasp", iter(batches))
    with pytest.raises(InputError, match=r"shapes \[\(5, 3\), \(1,\)\]"):
        element_scores(model, "fisher", [(batches[0][0], torch.zeros(1))])
    nn.init.constant_(model[0].weight, math.inf)
    with pytest.raises(InputError, match=r"not finite in 0\.weight"):
        element_scores(model, "l2")
    for p in model.parameters():
        nn.init.ones_(p)
    with pytest.raises(InputError, match="all weights of every parameter the same score"):
        element_scores(model, "l1")


def test_what_cannot_be_differentiated_twice_is_an_error() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise NotImplementedError("derivative of once is not implemented")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    def loss(y: Tensor, _: Tensor) -> Tensor:
        return Twice.apply(y).sum()

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return Once.apply(gradient * 2 * ctx.saved_tensors[0])

    batch = (torch.randn(2, 3), torch.zeros(2))
    with pytest.raises(InputError, match=r"differentiable twice.*once is not implemented"):
        element_scores(Net(), "hessian", [batch], loss=loss)


def test_hard_sigmoids_are_differentiated_twice(batches: list[Batch]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Tanh(), nn.Linear(4, 2)).double()
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Tanh(), nn.Linear(4, 2)).double()
    plain.load_state_dict(model.state_dict())
    plain[1].forward = lambda x: F.relu6(x + 3) / 6
    torch.testing.assert_close(
        flat_scores(model, "grasp", batches), flat_scores(plain, "grasp", batches)
    )


def test_progress_counts_the_batches(model: nn.Module, batches: list[Batch]) -> None:
    seen: list[tuple[str, float | None]] = []

    class Seen(Progress):
        def add_task(self, description: str, **other: Any) -> Any:
            seen.append((description, other["total"]))
            return super().add_task(description, **other)

    with Seen(console=Console(file=io.StringIO())) as progress:
        element_scores(model, "grasp", batches, progress=progress)
        assert progress.tasks == []
    assert seen == [("Scoring by grasp", 2)] * 2
