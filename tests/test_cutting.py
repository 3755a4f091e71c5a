"""The cut itself: which numbers stay, what the new network is, and which plans do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.cutting import declare_sizes
from secateur.errors import PlanError
from secateur.graph.attributes import set_held
from secateur.planning import make_plan


class Net(nn.Module):
    """A convolution, a norm, a head over pixels, and buffers of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 5)
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.register_buffer("volatile", torch.randn(4, 1, 1), persistent=False)
        self.note = {"kept": [1, 2]}

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x)) + self.shift * self.volatile
        return self.head(torch.relu(h).flatten(1))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def image() -> Tensor:
    return torch.ones(2, 3, 4, 4)


def plan_for(model: nn.Module, *units: int) -> secateur.Plan:
    graph = secateur.trace(model, image())
    (group,) = graph.groups
    return make_plan(graph, {group.name: units})


def test_exactly_the_kept_numbers_stay(model: Net) -> None:
    pruned = secateur.cut(model, plan_for(model, 1, 3))
    keep, columns = [0, 2], [0, 1, 2, 3, 8, 9, 10, 11]
    assert torch.equal(pruned.a.weight, model.a.weight[keep])
    assert torch.equal(pruned.a.bias, model.a.bias[keep])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(pruned.norm, name), getattr(model.norm, name)[keep])
    assert torch.equal(pruned.norm.num_batches_tracked, model.norm.num_batches_tracked)
    assert torch.equal(pruned.head.weight, model.head.weight[:, columns])
    assert torch.equal(pruned.head.bias, model.head.bias)
    assert torch.equal(pruned.shift, model.shift[keep])
    assert torch.equal(pruned.volatile, model.volatile[keep])


def test_the_new_network_is_of_the_same_class_and_says_its_sizes(model: Net) -> None:
    pruned = secateur.cut(model, plan_for(model, 1))
    assert type(pruned) is Net
    assert (pruned.a.in_channels, pruned.a.out_channels) == (3, 3)
    assert pruned.norm.num_features == 3
    assert (pruned.head.in_features, pruned.head.out_features) == (12, 5)
    assert "Conv2d(3, 3," in repr(pruned)
    assert set(pruned.state_dict()) == set(model.state_dict())
    assert "volatile" not in pruned.state_dict()


def test_the_dense_network_is_left_as_it_was_and_shares_nothing(model: Net) -> None:
    plan = plan_for(model, 1)
    before = snapshot(model)
    pruned = secateur.cut(model, plan)
    held = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            assert tensor.untyped_storage().data_ptr() not in held
            tensor.zero_()
    pruned.note["kept"].append(3)
    assert differences(before, snapshot(model)) == []
    assert model.note == {"kept": [1, 2]}


def test_an_empty_plan_copies(model: Net) -> None:
    plan = plan_for(model)
    pruned = secateur.cut(model, plan)
    assert pruned is not model
    assert pruned.a.weight is not model.a.weight
    assert pruned.a.weight.data_ptr() != model.a.weight.data_ptr()
    assert torch.equal(pruned(image()), model(image()))


def test_in_place_changes_the_model_itself(model: Net) -> None:
    plan = plan_for(model, 0, 2)
    wanted = secateur.cut(model, plan)
    found = secateur.cut(model, plan, inplace=True)
    assert found is model
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert model.a.out_channels == 2
    assert torch.equal(model(image()), wanted(image()))


@pytest.mark.parametrize("inplace", [False, True])
def test_ties_modes_and_frozen_weights_stay_and_gradients_go(inplace: bool) -> None:
    model = nn.ModuleDict(
        {"first": nn.Linear(3, 6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 2)}
    )
    model["b"].weight = model["a"].weight
    model["first"].requires_grad_(False)
    model["c"].train()
    model["a"].eval()

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            h = self.parts["a"](self.parts["first"](x)).relu()
            return self.parts["c"](self.parts["b"](h))

    network = Run()
    network(torch.randn(2, 3)).sum().backward()
    graph = secateur.trace(network, torch.randn(2, 3))
    (group,) = graph.groups
    pruned = secateur.cut(network, make_plan(graph, {group.name: (0, 5)}), inplace=inplace)
    parts = pruned.parts
    assert parts["a"].weight is parts["b"].weight
    assert parts["a"].weight.shape == (4, 4)
    assert not parts["first"].weight.requires_grad
    assert parts["a"].weight.requires_grad
    assert parts["c"].training
    assert not parts["a"].training
    assert parts["a"].weight.grad is None
    assert parts["a"].weight.is_leaf
    pruned(torch.randn(2, 3)).sum().backward()
    assert parts["a"].weight.grad.shape == (4, 4)


def test_the_cut_network_trains_and_can_be_cut_again(model: Net) -> None:
    pruned = secateur.cut(model, plan_for(model, 1)).train()
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    before = pruned.a.weight.detach().clone()
    pruned(torch.randn(4, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(pruned.a.weight, before)
    again = secateur.cut(pruned.eval(), plan_for(pruned, 0))
    assert torch.equal(again.a.weight, pruned.a.weight[1:])
    assert again(image()).shape == (2, 5)


def test_other_memory_formats_and_types_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model = model.to(torch.bfloat16)
    graph = secateur.trace(model, torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16))
    pruned = secateur.cut(model, make_plan(graph, {"0": (1,)}))
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            nn.Linear(3, 4),
            r"knows 'a.weight' of shape \(4, 3, 3, 3\), which this network does not have",
        ),
        (
            nn.ModuleDict({"a": nn.Conv2d(3, 2, 3), "norm": nn.BatchNorm2d(2)}),
            r"'a.weight' has shape \(4, 3, 3, 3\) there, and \(2, 3, 3, 3\) in this network",
        ),
    ],
)
def test_a_plan_of_another_model_is_refused(model: Net, other: nn.Module, words: str) -> None:
    plan = plan_for(model, 1, 3)
    for verb in (secateur.cut, secateur.mask):
        with pytest.raises(PlanError, match=words):
            verb(other, plan)


def test_a_plan_does_not_fit_twice(model: Net) -> None:
    plan = plan_for(model, 1, 3)
    with pytest.raises(PlanError, match=r"a\.weight"):
        secateur.cut(secateur.cut(model, plan), plan)


def test_a_plan_that_does_not_fit_changes_nothing(model: Net) -> None:
    plan = plan_for(model, 1)
    broken = dataclasses.replace(plan, cuts={**plan.cuts, "head.bias": {0: (9,)}})
    before = snapshot(model)
    with pytest.raises(PlanError, match=r"head\.bias"):
        secateur.cut(model, broken, inplace=True)
    assert differences(before, snapshot(model)) == []


def test_attributes_are_set_by_path() -> None:
    model = nn.Sequential(nn.Sequential(nn.LayerNorm(6), nn.Linear(3, 4)))
    model[0][1].sizes = [1, 2, 3]
    set_held(model, {"0.0.normalized_shape[0]": 5, "0.1.out_features": 7, "0.1.sizes[2]": 9})
    assert model[0][0].normalized_shape == (5,)
    assert model[0][1].out_features == 7
    assert model[0][1].sizes == [1, 2, 9]


@pytest.mark.parametrize("path", ["nothing", "0.nothing", "0.a-b"])
def test_attributes_that_are_not_there_are_refused(path: str) -> None:
    with pytest.raises(PlanError, match=f"plan sets '{path}'"):
        set_held(nn.Sequential(nn.Linear(3, 4)), {path: 1})


def test_declared_sizes_follow_the_tensors() -> None:
    layers = {
        "linear": nn.Linear(9, 9),
        "grouped": nn.Conv1d(8, 8, 3, groups=2),
        "up": nn.ConvTranspose1d(8, 8, 3, groups=2),
        "norm": nn.BatchNorm1d(9),
        "bare": nn.InstanceNorm1d(9, affine=False, track_running_stats=True),
        "group": nn.GroupNorm(2, 8),
        "slope": nn.PReLU(9),
        "rows": nn.Embedding(5, 9),
    }
    for name, shape in {
        "linear": (3, 4), "grouped": (6, 2, 3), "up": (4, 3, 3), "norm": (5,), "group": (6,),
        "slope": (5,), "rows": (5, 4),
    }.items():  # fmt: skip
        layers[name].weight = nn.Parameter(torch.zeros(shape))
    layers["norm"].running_mean = torch.zeros(5)
    layers["bare"].running_mean = torch.zeros(4)
    declare_sizes(nn.ModuleDict(layers))
    assert (layers["linear"].out_features, layers["linear"].in_features) == (3, 4)
    assert (layers["grouped"].out_channels, layers["grouped"].in_channels) == (6, 4)
    assert (layers["up"].in_channels, layers["up"].out_channels) == (4, 6)
    assert layers["norm"].num_features == 5
    assert layers["bare"].num_features == 4
    assert layers["group"].num_channels == 6
    assert layers["slope"].num_parameters == 5
    assert layers["rows"].embedding_dim == 4
