"""Recovery without training, against slow ways of computing the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import secateur
from secateur.errors import InputError, PlanError
from secateur.graph import Graph
from secateur.models import cifar_resnet
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.recovery import recalibrate, reconstruction_scores, recover
from secateur.recovery.lockstep import entries
from secateur.recovery.norms import Moments

Batches = list[tuple[Tensor, Tensor]]


def draw(*shape: int, count: int = 3, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(*shape, generator=generator, dtype=torch.float64),
            torch.zeros(shape[0]).long(),
        )
        for _ in range(count)
    ]


class Chain(nn.Module):
    """Convolutions with and without bias, a grouped one, and dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, padding=1, stride=2, dilation=2, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 8, 3, padding="same", groups=2)
        self.d = nn.Linear(8, 10)
        self.e = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.bn(self.b(x)))
        x = torch.tanh(self.c(x)).mean((2, 3))
        return self.e(torch.tanh(self.d(x)))


class Twice(nn.Module):
    """Two residual blocks; what the first loses reaches the second by the skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.one, self.two = Block(6), Block(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, 10, 3, padding=1)
        self.down = nn.Conv2d(10, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.down(torch.tanh(self.up(x))))


def statistics(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give batch norms scales and statistics that are not those of a new one."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def pruned_pair(
    model: nn.Module, x: Tensor, sparsity: float = 0.5
) -> tuple[Graph, Plan, nn.Module]:
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=sparsity)
    return graph, plan, secateur.cut(model, plan)


def distance(model: nn.Module, dense: nn.Module, data: Batches) -> float:
    model.eval()
    with torch.no_grad():
        return sum(float((model(x) - dense(x)).square().sum()) for x, _ in data)


@pytest.fixture
def chain() -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    dense, data = statistics(Chain()), draw(16, 3, 7, 7)
    recalibrate(dense, data)  # as in a trained network, where they fit the data
    return dense, data


@pytest.mark.parametrize("method", ["bias", "least_squares"])
def test_no_layer_gets_worse_and_the_models_stay_as_they_were(
    method: str, chain: tuple[nn.Module, Batches]
) -> None:
    dense, data = chain
    _, plan, pruned = pruned_pair(dense, data[0][0][:2])
    before = copy.deepcopy(pruned.state_dict()), copy.deepcopy(dense.state_dict())
    pruned.train()
    found = recover(dense, pruned, plan, data, method)
    for model, state in zip((pruned, dense), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert pruned.training
    assert not dense.training
    assert all(module.training for module in found.model.modules())
    assert found.layers
    assert all(0 <= layer.after <= layer.before for layer in found.layers)
    assert any(layer.changed and layer.after < layer.before for layer in found.layers)


def test_least_squares_is_nearer_than_bias_and_bias_than_nothing(
    chain: tuple[nn.Module, Batches],
) -> None:
    dense, data = chain
    _, plan, pruned = pruned_pair(dense, data[0][0][:2])
    bias = recover(dense, pruned, plan, data, "bias").model
    solved = recover(dense, pruned, plan, data).model
    errors = [distance(model, dense, data) for model in (solved, bias, pruned)]
    assert errors == sorted(errors)
    assert errors[0] < 0.5 * errors[2]


def test_first_layer_equals_a_plain_least_squares(chain: tuple[nn.Module, Batches]) -> None:
    dense, data = chain
    _, plan, pruned = pruned_pair(dense, data[0][0][:2])
    found = recover(dense, pruned, plan, data, ridge=0.0).model
    x = torch.cat([batch for batch, _ in data])
    with torch.no_grad():
        inputs = F.unfold(torch.tanh(pruned.a(x)), 3, dilation=2, padding=1, stride=2)
        rows = inputs.transpose(1, 2).reshape(-1, inputs.shape[1])
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
        kept = [i for i in range(12) if i not in plan.cuts["b.weight"].get(0, ())]
        targets = dense.b(torch.tanh(dense.a(x)))[:, kept].movedim(1, -1).reshape(-1, len(kept))
    solution = torch.linalg.lstsq(rows, targets).solution
    assert torch.allclose(found.b.weight.reshape(len(kept), -1), solution[:-1].T, atol=1e-9)
    # The convolution has no bias: the batch norm behind it takes the intercept.
    assert torch.allclose(found.bn.running_mean, pruned.bn.running_mean - solution[-1], atol=1e-9)


def test_grouped_convolution_equals_least_squares_group_by_group(
    chain: tuple[nn.Module, Batches],
) -> None:
    dense, data = chain
    _, plan, pruned = pruned_pair(dense, data[0][0][:2], 0.3)
    found = recover(dense, pruned, plan, data, ridge=0.0).model
    x = torch.cat([batch for batch, _ in data])
    assert found.c.groups == 2
    with torch.no_grad():
        inside = torch.tanh(found.bn(found.b(torch.tanh(found.a(x)))))
        inside = F.pad(inside, (1, 1, 1, 1))
        wanted = dense.c(torch.tanh(dense.bn(dense.b(torch.tanh(dense.a(x))))))
    kept = [i for i in range(8) if i not in plan.cuts["c.weight"].get(0, ())]
    half, width = len(kept) // 2, inside.shape[1] // 2
    for group in range(2):
        rows = F.unfold(inside[:, group * width : (group + 1) * width], 3)
        rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
        mine = kept[group * half : (group + 1) * half]
        targets = wanted[:, mine].movedim(1, -1).reshape(-1, half)
        solution = torch.linalg.lstsq(rows, targets).solution
        weight = found.c.weight[group * half : (group + 1) * half].reshape(half, -1)
        assert torch.allclose(weight, solution[:-1].T, atol=1e-8)
        bias = found.c.bias[group * half : (group + 1) * half]
        assert torch.allclose(bias, solution[-1], atol=1e-8)


def test_targets_make_up_for_what_the_skip_path_lost() -> None:
    torch.manual_seed(0)
    dense = statistics(Twice())
    data = draw(16, 3, 5, 5)
    graph = secateur.trace(dense, data[0][0][:2])
    inner = {"one.up": range(5), "two.up": range(5)}
    plan = make_plan(graph, {name: list(units) for name, units in inner.items()})
    pruned = secateur.cut(dense, plan)
    found = recover(dense, pruned, plan, data, ridge=0.0).model
    x = torch.cat([batch for batch, _ in data])
    with torch.no_grad():
        skip, lost = dense.one(dense.stem(x)), found.one(found.stem(x))
        norm = pruned.two.bn
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        targets = dense.two.down(torch.tanh(dense.two.up(skip)))
        targets = targets + (skip - lost) / slope[:, None, None]
        rows = F.unfold(torch.tanh(found.two.up(lost)), 3, padding=1)
        rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    assert not torch.allclose(skip, lost, atol=1e-3)
    solution = torch.linalg.lstsq(rows, targets.movedim(1, -1).reshape(-1, 6)).solution
    assert torch.allclose(found.two.down.weight.reshape(6, -1), solution[:-1].T, atol=1e-8)


def test_a_copied_neuron_is_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        dense[0].weight[4:] = dense[0].weight[:4]
        dense[0].bias[4:] = dense[0].bias[:4]
    data = draw(64, 5)
    graph = secateur.trace(dense, data[0][0])
    plan = make_plan(graph, {"0": [4, 5, 6, 7]})
    pruned = secateur.cut(dense, plan)
    assert distance(pruned, dense, data) > 0.1
    found = recover(dense, pruned, plan, data, ridge=1e-12)
    assert distance(found.model, dense, data) < 1e-16
    assert found.layers[0].after < 1e-16


def test_bias_moves_means_alone(chain: tuple[nn.Module, Batches]) -> None:
    dense, data = chain
    _, plan, pruned = pruned_pair(dense, data[0][0][:2])
    found = recover(dense, pruned, plan, data, "bias").model
    changed = {
        name for name, value in pruned.state_dict().items()
        if not torch.equal(value, found.state_dict()[name])
    }  # fmt: skip
    assert changed == {"bn.running_mean", "c.bias", "d.bias", "e.bias"}
    with torch.no_grad():
        gap = sum((found(x) - dense(x)).sum(0) for x, _ in data)
    assert gap.abs().max() < 1e-10


def test_waiting_passes_and_repeated_ones_give_the_same() -> None:
    torch.manual_seed(0)
    dense = statistics(cifar_resnet(8))
    data = draw(4, 3, 8, 8)
    _, plan, pruned = pruned_pair(dense, data[0][0][:2])
    waited = recover(dense, pruned, plan, data)
    repeated = recover(dense, pruned, plan, data, memory=0)
    assert waited.layers == repeated.layers
    assert {layer.name for layer in waited.layers} == {
        *(f"layer{n}.0.conv{m}" for n in (1, 2, 3) for m in (1, 2)), "linear",
    }  # fmt: skip
    for a, b in zip(waited.model.parameters(), repeated.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_failure_between_two_stops_ends_the_waiting_passes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    steps = entries(model, [x for x, _ in draw(4, 3)], ["0", "1"], waiting=True)
    assert len(list(next(steps)())) == 3
    steps.close()  # joins its threads: it would hang if one were left


def test_every_layer_takes_those_that_read_nothing_removed() -> None:
    torch.manual_seed(0)
    dense = statistics(Twice())
    data = draw(16, 3, 5, 5)
    graph = secateur.trace(dense, data[0][0][:2])
    plan = make_plan(graph, {"one.up": [0, 1, 2]})
    pruned = secateur.cut(dense, plan)
    few, many = (recover(dense, pruned, plan, data, every_layer=every) for every in (False, True))
    assert [layer.name for layer in few.layers] == ["one.down"]
    assert [layer.name for layer in many.layers] == ["one.down", "two.up", "two.down", "head"]
    assert distance(many.model, dense, data) < distance(few.model, dense, data)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.twice, self.down = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.twice(torch.relu(self.twice(torch.relu(self.up(x))))))


def test_what_cannot_be_solved_is_left_with_a_reason() -> None:
    torch.manual_seed(0)
    dense = Shared().double()
    data = draw(32, 4)
    _, plan, pruned = pruned_pair(dense, data[0][0])
    found = recover(dense, pruned, plan, data)
    assert "2 products" in found.left["twice.weight"]
    assert [layer.name for layer in found.layers] == ["down"]


def test_computed_weights_are_left() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), parametrizations.weight_norm(nn.Linear(6, 2))
    ).double()
    data = draw(32, 4)
    _, plan, pruned = pruned_pair(dense, data[0][0])
    found = recover(dense, pruned, plan, data)
    assert found.left == {"product": "no weight itself reads the removed units there"}
    assert not found.layers


def test_recalibration_is_the_mean_and_variance_of_all_values() -> None:
    torch.manual_seed(0)
    model = statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model[1].momentum = 0.3
    data = [*draw(5, 3, 6, 6), *draw(2, 3, 6, 6, count=1, seed=7)]
    before = copy.deepcopy(model.state_dict())
    assert recalibrate(model, iter(data)) == 1
    with torch.no_grad():
        values = model[0](torch.cat([x for x, _ in data])).transpose(0, 1).reshape(4, -1)
    assert torch.allclose(model[1].running_mean, values.mean(1), atol=1e-12)
    assert torch.allclose(model[1].running_var, values.var(1), atol=1e-12)
    assert model[1].momentum == 0.3
    assert not model[1].training
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var"}


def test_moments_do_not_depend_on_how_values_are_batched() -> None:
    x = 1e6 + torch.randn(40, 2, dtype=torch.float64)
    parts, whole = Moments(), Moments()
    for start, stop in ((0, 1), (1, 4), (4, 40)):
        parts.add(x[start:stop])
    whole.add(x)
    assert torch.allclose(parts.variance(), whole.variance(), rtol=1e-9)
    assert torch.allclose(whole.variance(), x.var(0), rtol=1e-9)


def test_recalibration_helps_where_the_cut_moved_the_statistics() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    ).double().eval()  # fmt: skip
    data = draw(8, 3, 6, 6)
    recalibrate(dense, data)
    _, plan, pruned = pruned_pair(dense, data[0][0])
    found = recover(dense, pruned, plan, data, "recalibrate")
    (record,) = found.layers
    assert record.changed
    assert record.after < record.before
    assert distance(found.model, dense, data) < distance(pruned, dense, data)


def test_recalibration_that_does_not_help_is_taken_back() -> None:
    torch.manual_seed(0)
    dense = statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    data = draw(4, 3, 6, 6)
    graph = secateur.trace(dense, data[0][0])
    plan = make_plan(graph, {"0": [1]})
    pruned = secateur.cut(dense, plan)
    # The dense network's statistics are not those of the data: new ones lead away from it.
    found = recover(dense, pruned, plan, data, "recalibrate")
    (record,) = found.layers
    assert not record.changed
    assert record.after == record.before
    assert torch.equal(found.model[1].running_var, pruned[1].running_var)


def bad_batches() -> Iterator[Tensor]:
    yield torch.zeros(2, 4)


def test_bad_input_is_refused_before_any_work() -> None:
    dense = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    data = draw(8, 4)
    _, plan, pruned = pruned_pair(dense, data[0][0])
    with pytest.raises(InputError, match="method must be one of bias, least_squares, recalibrate"):
        recover(dense, pruned, plan, data, "least-squares")
    with pytest.raises(InputError, match="ridge must be at least 0"):
        recover(dense, pruned, plan, data, ridge=-1.0)
    with pytest.raises(InputError, match="memory must be at least 0"):
        recover(dense, pruned, plan, data, memory=-1)
    with pytest.raises(InputError, match="at least one batch"):
        recover(dense, pruned, plan, [])
    with pytest.raises(InputError, match="batches, but gave Tensor"):
        recover(dense, pruned, plan, bad_batches())  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"0\.weight should have shape \(3, 4\)"):
        recover(dense, dense, plan, data)
    with pytest.raises(InputError, match="needs batch norms"):
        recover(dense, pruned, plan, data, "recalibrate")
    assert recalibrate(dense, data) == 0


def test_reconstruction_scores_are_what_least_squares_loses() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3)).double()
    data = draw(8, 2, 9, 9)
    graph = secateur.trace(dense, data[0][0])
    scores = reconstruction_scores(graph, data, ridge=0.0)["0"]
    order = scores.argsort().tolist()
    x = torch.cat([batch for batch, _ in data])
    with torch.no_grad():
        rows = F.unfold(torch.tanh(dense[0](x)), 3).transpose(1, 2).reshape(-1, 45)
        targets = dense[2](torch.tanh(dense[0](x))).movedim(1, -1).reshape(-1, 4)

    def lost(gone: list[int]) -> float:
        kept = [i for i in range(45) if i // 9 not in gone]
        inputs = torch.cat([rows[:, kept], torch.ones(len(rows), 1).double()], dim=1)
        solution = torch.linalg.lstsq(inputs, targets).solution
        error = (inputs @ solution - targets).square().sum()
        return float(error / (targets - targets.mean(0)).square().sum())

    for count in (1, 2, 3):
        # The cheapest next step, found by trying all of them, is the one that was taken.
        before = order[: count - 1]
        trials = {u: lost([*before, u]) for u in range(5) if u not in before}
        assert min(trials, key=trials.__getitem__) == order[count - 1]
        assert lost(order[:count]) == pytest.approx(float(scores[order[:count]].sum()), rel=1e-6)


def test_reconstruction_scores_leave_out_what_several_layers_read() -> None:
    torch.manual_seed(0)
    dense = statistics(Twice())
    data = draw(8, 3, 5, 5)
    graph = secateur.trace(dense, data[0][0][:2])
    assert set(reconstruction_scores(graph, data)) == {"one.up", "two.up"}
    with pytest.raises(InputError, match="a single layer reads"):
        reconstruction_scores(graph, data, ["stem"])
    with pytest.raises(InputError, match="at least one batch"):
        reconstruction_scores(graph, [])
