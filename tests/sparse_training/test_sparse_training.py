"""Learned sparsity against hand-written references."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur.errors import InputError, SecateurError
from secateur.finetune import TrainSettings
from secateur.planning import make_plan
from secateur.sparse_training import (
    accelerated_step,
    grown,
    readers,
    select_structures,
    shrink_units,
    slim,
    soft_threshold,
    train_sparse,
    weight_sparsity,
    zero_smallest,
)
from secateur.sparse_training.factors import fold, scaled

SETTINGS = TrainSettings(epochs=4, lr=0.05, optimizer="sgd", schedule="constant", momentum=0.0)


class Net(nn.Module):
    """Channels, neurons and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.a(x)))
        x = (x + self.b(x)).mean((2, 3))
        return self.down(torch.relu(self.up(x)))


def task(count: int = 6, batch: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        labels = torch.randint(0, 3, (batch,), generator=generator)
        images = 0.3 * torch.randn(batch, 1, 6, 6, generator=generator)
        images[:, 0, 0, :] += labels[:, None].float()
        found.append((images, labels))
    return found


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_soft_threshold_by_cases() -> None:
    values = torch.tensor([-2.0, -0.5, -0.1, 0.0, 0.2, 0.5, 3.0])
    assert soft_threshold(values, 0.5).tolist() == [-1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 2.5]


def test_accelerated_steps_equal_the_unmodified_form() -> None:
    """The paper's first form keeps the last two factors and looks ahead; both must agree."""
    curvature = torch.tensor([3.0, 1.0, 0.2, 2.0], dtype=torch.float64)
    target = torch.tensor([1.0, -0.4, 0.3, 0.05], dtype=torch.float64)
    lr, strength, momentum = 0.1, 0.15, 0.8
    ahead, velocity = torch.ones(4).double(), torch.zeros(4).double()
    before = now = torch.ones(4).double()
    for _ in range(60):
        gradient = curvature * (ahead - target)
        ahead, velocity, factors = accelerated_step(
            ahead, velocity, gradient, lr=lr, strength=strength, momentum=momentum
        )
        look = [float(b + momentum * (b - a)) for a, b in zip(before, now, strict=True)]
        after = []
        for d, c, t in zip(look, curvature.tolist(), target.tolist(), strict=True):
            z = d - lr * c * (d - t)
            size = abs(z) - lr * strength
            after.append((1 if z > 0 else -1) * size if size > 0 else 0.0)
        before, now = now, torch.tensor(after, dtype=torch.float64)
        assert torch.allclose(factors, now, atol=1e-12)
    # The minimum of c/2 (l - t)^2 + g |l|: here it is known.
    assert torch.allclose(factors, soft_threshold(target, 1.0) * 0 + torch.stack(
        [soft_threshold(t, strength / float(c)) for t, c in zip(target, curvature, strict=True)]
    ), atol=2e-2)  # fmt: skip
    assert (factors == 0).tolist() == [False, False, True, True]


def test_factors_act_where_units_are_read_and_fold_away(net: Net) -> None:
    net.eval()
    x = task()[0][0]
    graph = secateur.trace(net, x)
    places = readers(graph)
    assert set(places) == {group.name for group in graph.groups}
    torch.manual_seed(1)
    factors = {name: torch.rand(graph.by_name[name].size) for name in places}
    factors["up"][3:] = 0
    with torch.no_grad():
        by_call = torch.func.functional_call(net, scaled(net, places, factors), (x,))
        hidden = torch.relu(net.bn(net.a(x)))
        channels, neurons = factors[next(n for n in places if n != "up")], factors["up"]
        mixed = F.conv2d(hidden * channels[:, None, None], net.b.weight, net.b.bias, padding=1)
        hidden = ((hidden + mixed).mean((2, 3))) * channels
        by_hand = net.down(torch.relu(net.up(hidden)) * neurons)
    assert torch.allclose(by_call, by_hand, atol=1e-6)
    fold(net, places, factors)
    assert torch.allclose(net(x), by_call, atol=1e-6)
    pruned = secateur.cut(net, make_plan(graph, {"up": list(range(3, 10))}))
    assert torch.allclose(pruned(x), by_call, atol=1e-6)


def test_one_step_of_selection_by_hand(net: Net) -> None:
    data = task(count=1)
    graph = secateur.trace(net, data[0][0])
    twin, factor = copy.deepcopy(net).train(), torch.ones(10, requires_grad=True)
    x, y = data[0]
    hidden = torch.relu(twin.bn(twin.a(x)))
    hidden = (hidden + twin.b(hidden)).mean((2, 3))
    F.cross_entropy(twin.down(torch.relu(twin.up(hidden)) * factor), y).backward()
    assert factor.grad is not None
    moved = soft_threshold(1 - 0.05 * factor.grad, 0.05 * 0.3)
    once = TrainSettings(epochs=1, lr=0.05, optimizer="sgd", schedule="constant", momentum=0.0)
    found = select_structures(graph, data, once, strength={"up": 0.3})
    assert torch.allclose(found.factors["up"], moved, atol=1e-6)
    weight = (twin.down.weight - 0.05 * twin.down.weight.grad) * moved
    assert torch.allclose(net.down.weight, weight, atol=1e-6)


def test_selection_learns_the_task_and_zeros_can_be_cut(net: Net) -> None:
    data = task()
    graph = secateur.trace(net, data[0][0])
    settings = TrainSettings(epochs=60, lr=0.02, optimizer="sgd", schedule="constant")
    found = select_structures(graph, data, settings, strength=0.02)
    assert found.losses[-1] < 0.6 * found.losses[0]
    assert sum(len(units) for units in found.removed.values()) >= 3
    pruned = secateur.cut(net, make_plan(graph, found.removed))
    x, y = data[0]
    assert torch.allclose(pruned(x), net(x), atol=1e-5)
    assert (pruned(x).argmax(1) == y).float().mean() > 0.8
    assert weight_sparsity(pruned, sum(p.numel() for p in net.parameters())) > 0.1


def test_stronger_penalties_leave_fewer_structures() -> None:
    left = []
    for strength in (0.001, 0.15):
        torch.manual_seed(0)
        net, data = Net(), task()
        graph = secateur.trace(net, data[0][0])
        settings = TrainSettings(epochs=40, lr=0.02, optimizer="sgd", schedule="constant")
        factors = select_structures(graph, data, settings, strength=strength).factors
        left.append(sum(int((f != 0).sum()) for f in factors.values()))
    assert left[0] > left[1]


def test_slimming_adds_the_subgradient(net: Net) -> None:
    data = task(count=1)
    twin = copy.deepcopy(net).train()
    F.cross_entropy(twin(data[0][0]), data[0][1]).backward()
    once = TrainSettings(epochs=1, lr=0.05, optimizer="sgd", schedule="constant", momentum=0.0)
    slim(net, data, once, strength=0.4)
    wanted = twin.bn.weight - 0.05 * (twin.bn.weight.grad + 0.4 * twin.bn.weight.sign())
    assert torch.allclose(net.bn.weight, wanted, atol=1e-6)
    assert torch.allclose(net.a.weight, twin.a.weight - 0.05 * twin.a.weight.grad, atol=1e-6)


def test_the_penalty_grows_by_steps_up_to_its_ceiling() -> None:
    found = [grown(step, grow=0.5, every=2, ceiling=1.2) for step in range(7)]
    assert found == [0.5, 0.5, 1.0, 1.0, 1.2, 1.2, 1.2]


def test_growing_fades_the_plan_and_spares_the_rest(net: Net) -> None:
    data = task()
    graph = secateur.trace(net, data[0][0])
    plan = make_plan(graph, {"up": [0, 1, 2, 3, 4]})
    before = net.up.weight[5:].norm()
    settings = TrainSettings(epochs=40, lr=0.1, optimizer="sgd", schedule="constant")
    losses = shrink_units(net, plan, data, settings, grow=0.05, every=10, ceiling=5.0)
    assert losses[-1] < losses[0]
    assert net.up.weight[:5].abs().max() < 1e-4
    assert net.down.weight[:, :5].abs().max() < 1e-4
    assert net.up.weight[5:].norm() > 0.5 * before
    pruned = secateur.cut(net, plan)
    assert torch.allclose(pruned(data[0][0]), net(data[0][0]), atol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_frozen_zeros_stay_zero(net: Net, optimizer: str) -> None:
    zero_smallest(net, 0.6)
    zeros = {n: p == 0 for n, p in net.named_parameters() if p.dim() > 1}
    settings = TrainSettings(epochs=17, lr=0.01, optimizer=optimizer, weight_decay=0.01)
    train_sparse(net, task(), settings)  # 102 steps
    for name, parameter in net.named_parameters():
        if name in zeros:
            assert torch.equal(parameter == 0, zeros[name])


def test_l1_makes_exact_zeros_and_zero_smallest_meets_its_share(net: Net) -> None:
    train_sparse(net, task(), SETTINGS, strength=0.1)
    assert weight_sparsity(net) > 0.2
    zero_smallest(net, {"up.weight": 0.5, "down.weight": 0.25})
    assert int((net.up.weight == 0).sum()) >= 30
    zero_smallest(net, 0.8, together=True)
    weights = [p for p in net.parameters() if p.dim() > 1]
    whole = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == pytest.approx(0.8 * whole, abs=1)


def test_bad_input_is_refused(net: Net) -> None:
    data = task(count=1)
    graph = secateur.trace(net, data[0][0])
    with pytest.raises(InputError, match="strength must be above 0"):
        select_structures(graph, data, SETTINGS, strength=0.0)
    with pytest.raises(InputError, match="momentum must be in"):
        select_structures(graph, data, SETTINGS, strength=0.1, momentum=1.0)
    with pytest.raises(InputError, match="'nowhere'"):
        select_structures(graph, data, SETTINGS, strength={"nowhere": 0.1})
    with pytest.raises(InputError, match="loader must hold"):
        select_structures(graph, [], SETTINGS, strength=0.1)
    with pytest.raises(InputError, match="must have a batch norm"):
        slim(nn.Linear(3, 3), data, SETTINGS)
    with pytest.raises(InputError, match="every must be at least 1"):
        shrink_units(net, make_plan(graph, {"up": [0]}), data, SETTINGS, every=0)
    with pytest.raises(InputError, match=r"shares must be in \[0, 1\)"):
        zero_smallest(net, 1.0)
    with torch.no_grad():
        net.up.weight.fill_(float("nan"))
    with pytest.raises(SecateurError, match=r"the loss is nan at step 1 of epoch 1"):
        train_sparse(net, data, SETTINGS)
