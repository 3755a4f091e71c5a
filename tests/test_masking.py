"""The masked reference against masks made by hand."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.planning import make_plan

GONE = (1, 4)
KEPT = [0, 2, 3, 5]


def randomise(model: nn.Module) -> Any:
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2)
    return model


def plain() -> nn.Sequential:
    """A sigmoid of zero is not zero, and batch norms have biases: producers must not be masked."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2)
    )


def image(n: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 3, 8, 8, dtype=torch.float64)


def plan_of(model: nn.Module, inputs: Tensor, gone: tuple[int, ...] = GONE) -> secateur.Plan:
    graph = secateur.trace(model, inputs)
    (group,) = graph.groups
    return make_plan(graph, {group.name: gone})


def hooked(model: nn.Module, inputs: Tensor) -> Tensor:
    """Zero the removed channels where the last convolution reads them."""

    def blank(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].index_fill(1, torch.tensor(GONE), 0.0),)

    handle = model[4].register_forward_pre_hook(blank)  # type: ignore[index]
    try:
        return model(inputs)
    finally:
        handle.remove()


def test_channels_are_zero_where_they_are_read() -> None:
    model = randomise(plain())
    masked = secateur.mask(model, plan_of(model, image()))
    for inputs in (image(), image(5)):
        torch.testing.assert_close(masked(inputs), hooked(model, inputs), rtol=1e-13, atol=0)
        assert not torch.allclose(masked(inputs), model(inputs))


def test_only_the_readers_weights_are_zero() -> None:
    model = randomise(plain())
    masked = secateur.mask(model, plan_of(model, image()))
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted["4.weight"][:, GONE] = 0
    for name, tensor in masked.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_the_model_is_left_as_it_was() -> None:
    model = randomise(plain())
    plan = plan_of(model, image())
    before = snapshot(model)
    masked = secateur.mask(model, plan)
    masked(image())
    assert differences(before, snapshot(model)) == []
    assert type(masked) is type(model)
    assert masked[0].weight is not model[0].weight


def test_in_place_masks_the_model_itself() -> None:
    model = randomise(plain())
    plan = plan_of(model, image())
    wanted = secateur.mask(model, plan)(image())
    assert secateur.mask(model, plan, inplace=True) is model
    assert torch.equal(model(image()), wanted)


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 6), norm, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(x))))


def sequence() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 4, 5, dtype=torch.float64)


def test_a_layer_norm_runs_over_the_kept_units_alone() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    h = model.a(sequence())[..., KEPT]
    mean = sum(h[..., i] for i in range(4)) / 4
    var = sum((h[..., i] - mean) ** 2 for i in range(4)) / 4
    h = (h - mean[..., None]) / torch.sqrt(var + 1e-5)[..., None]
    h = torch.tanh(h * model.norm.weight[KEPT] + model.norm.bias[KEPT])
    wanted = h @ model.b.weight[:, KEPT].T + model.b.bias
    torch.testing.assert_close(masked(sequence()), wanted, rtol=1e-12, atol=1e-14)
    whole = torch.tanh(model.norm(model.a(sequence()))).index_fill(2, torch.tensor(GONE), 0.0)
    assert not torch.allclose(masked(sequence()), model.b(whole))


def test_a_layer_norm_without_weights_runs_over_the_kept_units_too() -> None:
    model = randomise(Normed(nn.LayerNorm(6, elementwise_affine=False)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    h = torch.tanh(F.layer_norm(model.a(sequence())[..., KEPT], (4,)))
    wanted = h @ model.b.weight[:, KEPT].T + model.b.bias
    torch.testing.assert_close(masked(sequence()), wanted, rtol=1e-12, atol=1e-14)


def test_a_group_norm_runs_over_the_kept_channels_of_each_group() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)))
    graph = secateur.trace(model, image())
    within = next(group for group in graph.groups if group.size == 4)
    masked = secateur.mask(model, make_plan(graph, {within.name: (0, 3)}))
    keep = [1, 2, 5, 6]
    h = F.group_norm(model[0](image())[:, keep], 2, model[1].weight[keep], model[1].bias[keep])
    wanted = F.conv2d(h, model[2].weight[:, keep], model[2].bias)
    torch.testing.assert_close(masked(image()), wanted, rtol=1e-12, atol=1e-14)


class Scores(nn.Module):
    """Contractions without a weight: the operation itself must see zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 6), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ x


def test_contractions_of_two_activations_see_zeros() -> None:
    model = randomise(Scores())
    masked = secateur.mask(model, plan_of(model, sequence()))
    q, k = model.q(sequence())[..., KEPT], model.k(sequence())[..., KEPT]
    wanted = torch.softmax(torch.einsum("nic,njc->nij", q, k), -1) @ sequence()
    torch.testing.assert_close(masked(sequence()), wanted, rtol=1e-12, atol=1e-14)
    assert torch.equal(masked.q.weight, model.q.weight)


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.exp(self.a(x) / 4)
        return self.b(h.softmax(-1) - h.mean(-1, keepdim=True)) + h.sum() + h.amax(-1, True)


def test_sums_means_maxima_and_softmax_run_over_the_kept_units() -> None:
    model = randomise(Means())
    masked = secateur.mask(model, plan_of(model, sequence()))
    h = torch.exp(model.a(sequence())[..., KEPT] / 4)
    inner = h.softmax(-1) - h.mean(-1, keepdim=True)
    wanted = inner @ model.b.weight[:, KEPT].T + model.b.bias + h.sum() + h.amax(-1, True)
    torch.testing.assert_close(masked(sequence()), wanted, rtol=1e-12, atol=1e-14)


def test_gradients_pass_by_the_removed_channels() -> None:
    model = randomise(plain())
    plan = plan_of(model, image())
    masked, pruned = secateur.mask(model, plan), secateur.cut(model, plan)
    for network in (masked, pruned):
        network(image()).square().sum().backward()
    gradient = masked[0].weight.grad
    assert (gradient[list(GONE)] == 0).all()
    torch.testing.assert_close(gradient[KEPT], pruned[0].weight.grad)


def test_a_masked_network_can_be_copied() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    assert torch.equal(copy.deepcopy(masked)(sequence()), masked(sequence()))


def test_an_error_inside_the_forward_pass_leaves_no_mode_behind() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    wanted = masked(sequence())
    with pytest.raises(RuntimeError):
        masked(torch.zeros(2, 3, dtype=torch.float64))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert torch.equal(masked(sequence()), wanted)


def test_an_interrupt_leaves_no_mode_behind() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    wanted = masked(sequence())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = masked.b.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        masked(sequence())
    handle.remove()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert torch.equal(masked(sequence()), wanted)


def test_a_masked_network_takes_what_the_dense_one_takes() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    assert inspect.signature(masked.forward) == inspect.signature(model.forward)


def test_another_path_than_the_traced_one_is_refused() -> None:
    class Varies(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] > 10:
                F.layer_norm(x[..., :5], (5,))
            return super().forward(x)

    model = randomise(Normed(Varies(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    long = torch.randn(2, 11, 5, dtype=torch.float64)
    with pytest.raises(PlanError, match=r"another path than the traced one.*size 5 where.*has 6"):
        masked(long)


def test_a_masked_norm_refuses_gradients_that_would_be_wrong() -> None:
    model = randomise(Normed(nn.LayerNorm(6)))
    masked = secateur.mask(model, plan_of(model, sequence()))
    with pytest.raises(PlanError, match="no gradients"):
        masked(sequence()).square().sum().backward()
