"""Every network of ``networks``: half of every group cut at once, in float64, exactly."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from exactness import (
    LIMIT,
    count,
    differences,
    masked_outputs,
    outputs,
    relative_error,
    snapshot,
    train_once,
)
from networks import NETWORKS, build
from torch import nn

import secateur
from secateur.errors import PlanError
from secateur.planning import make_plan

# All readers of channels are modules here and no norm mixes channels, so hooks can mask.
PLAIN = (
    "vgg16_bn",
    "resnet_option_a",
    "resnet_option_a_shape",
    "resnet_basic",
    "resnet_bottleneck",
    "resnext",
    "densenet",
    "mobilenet_v2",
    "mobilenet_v3",
    "efficientnet",
    "shufflenet_v2",
    "googlenet",
    "regnet",
    "unet",
    "unet_interpolate",
    "cnn3d",
    "cnn1d",
    "instance_norm",
    "grouped_transpose",
    "pixel_shuffle",
    "prelu",
    "flatten",
    "glu",
    "tied",
)


class Cut(NamedTuple):
    """One network on its whole way, with what it was before."""

    model: nn.Module
    inputs: Any
    before: dict[str, Any]
    graph: Any
    plan: Any
    pruned: nn.Module


@cache
def cut(name: str) -> Cut:
    """Trace, score, allocate and cut a network of the registry, once for all tests."""
    model = build(name)
    for index, parameter in enumerate(model.parameters()):
        # Gradients and frozen parameters are the caller's, too.
        if index % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    inputs = NETWORKS[name].inputs(2)
    before = snapshot(model)
    graph = secateur.trace(model, inputs)
    scores = secateur.score(graph, "random", seed=1)
    plan = secateur.allocate(graph, scores, sparsity=0.5, scope="local")
    return Cut(model, inputs, before, graph, plan, secateur.cut(model, plan))


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Cut:
    """Each network in turn, cut."""
    return cut(request.param)


def test_the_cut_equals_its_masked_reference(case: Cut) -> None:
    check = secateur.verify(case.model, case.pruned, case.plan, case.inputs)
    assert check.ok
    assert check.max_error <= LIMIT
    assert check.changed


def test_the_mask_computes_what_the_cut_computes(case: Cut) -> None:
    masked = secateur.mask(case.model, case.plan)
    shapes = {name: tensor.shape for name, tensor in case.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in masked.state_dict().items()} == shapes
    found = outputs(case.pruned, case.inputs)
    assert relative_error(found, outputs(masked, case.inputs)) <= LIMIT
    assert relative_error(found, outputs(case.model, case.inputs)) > 1e-6


def test_counts_are_what_the_plan_says(case: Cut) -> None:
    assert count(case.pruned) < count(case.model)
    assert case.plan.dense.params == case.graph.cost().params == count(case.model)
    assert case.plan.pruned.params == count(case.pruned)
    assert case.graph.cost(case.plan.removed) == case.plan.pruned
    again = secateur.trace(case.pruned, case.inputs)
    assert again.cost() == case.plan.pruned


def test_every_group_loses_its_half_or_the_plan_says_so(case: Cut) -> None:
    told = re.search(r"one is cut: (.*) stay whole", " ".join(case.plan.notes))
    spared = set(told[1].split(", ")) if told else set()
    assert len(spared) < len(case.graph.groups)
    for group in case.graph.groups:
        wanted = 0 if group.name in spared else min(group.size // 2, group.size - 1)
        removed = len(case.plan.removed.get(group.name, ()))
        assert removed == wanted - case.plan.given_back.get(group.name, 0), group.name


def test_the_cut_trains(case: Cut, request: pytest.FixtureRequest) -> None:
    inputs = NETWORKS[request.node.callspec.params["case"]].inputs(3)
    assert train_once(case.pruned, inputs) == []


def test_the_cut_runs_at_another_batch_size(case: Cut, request: pytest.FixtureRequest) -> None:
    inputs = NETWORKS[request.node.callspec.params["case"]].inputs(5)
    check = secateur.verify(case.model, case.pruned, case.plan, inputs)
    assert check.ok
    assert check.max_error <= LIMIT


def test_the_dense_model_is_left_as_it_was(case: Cut) -> None:
    secateur.mask(case.model, case.plan)
    secateur.verify(case.model, case.pruned, case.plan, case.inputs)
    assert differences(case.before, snapshot(case.model)) == []
    mine = {id(p) for p in case.model.parameters()} | {id(b) for b in case.model.buffers()}
    theirs = {id(p) for p in case.pruned.parameters()} | {id(b) for b in case.pruned.buffers()}
    assert not mine & theirs


def test_the_cut_model_has_no_traces_of_the_tool(case: Cut) -> None:
    classes = {name: type(module) for name, module in case.model.named_modules()}
    assert {name: type(module) for name, module in case.pruned.named_modules()} == classes
    assert list(case.pruned.state_dict()) == list(case.model.state_dict())
    for module in case.pruned.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    copy.deepcopy(case.pruned)


def test_a_saved_cut_loads_the_same(case: Cut, tmp_path: Any) -> None:
    secateur.save(case.pruned, tmp_path / "saved")
    loaded = secateur.load(tmp_path / "saved")
    wanted = case.pruned.state_dict()
    assert list(loaded.state_dict()) == list(wanted)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert not loaded.training
    assert relative_error(outputs(loaded, case.inputs), outputs(case.pruned, case.inputs)) == 0


@pytest.mark.parametrize("name", PLAIN)
def test_the_cut_equals_a_reference_masked_by_hooks(name: str) -> None:
    case = cut(name)
    wanted = masked_outputs(case.model, case.graph, case.plan, case.inputs)
    assert relative_error(outputs(case.pruned, case.inputs), wanted) <= LIMIT
    assert relative_error(outputs(case.model, case.inputs), wanted) > 1e-6


@pytest.mark.parametrize("name", ["resnet_option_a", "shufflenet_v2", "efficientnet", "vit"])
def test_every_group_alone(name: str) -> None:
    case = cut(name)
    wrong = {}
    removable = 0
    for index, group in enumerate(case.graph.groups):
        try:
            plan = make_plan(case.graph, {group.name: (index % group.size,)})
        except PlanError:
            # The model's own code may allow this group to go only together with others.
            continue
        removable += 1
        pruned = secateur.cut(case.model, plan)
        check = secateur.verify(case.model, pruned, plan, case.inputs)
        if not check.ok or check.max_error > LIMIT or count(pruned) != plan.pruned.params:
            wrong[group.name] = check.max_error
    assert wrong == {}
    assert removable > len(case.graph.groups) // 2


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("sparsity", [0.25, 0.9])
@pytest.mark.parametrize("name", ["resnet_option_a", "densenet", "shufflenet_v2", "regnet", "glu"])
def test_other_seeds_and_sparsities(name: str, sparsity: float, seed: int) -> None:
    case = cut(name)
    scores = secateur.score(case.graph, "random", seed=seed)
    plan = secateur.allocate(case.graph, scores, sparsity=sparsity, scope="local")
    pruned = secateur.cut(case.model, plan)
    check = secateur.verify(case.model, pruned, plan, case.inputs)
    assert check.ok
    assert check.max_error <= LIMIT
    assert count(pruned) == plan.pruned.params
