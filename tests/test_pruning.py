"""All of it in one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import count, differences, snapshot
from torch import Tensor, nn

import secateur
from secateur import pruning
from secateur.criteria import Context, Criterion
from secateur.errors import InputError, PlanError, TraceError, VerificationError
from secateur.verification import Check


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, 4)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(image(), torch.tensor([0, 4]))]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "taylor"])
def test_it_is_the_sum_of_its_parts(criterion: str, scope: str) -> None:
    model = network()
    data = batches() if criterion == "taylor" else None
    result = secateur.prune(
        model, image(), criterion=criterion, sparsity=0.4, scope=scope, round_to=2,
        calibration=data, seed=3,
    )  # fmt: skip
    graph = secateur.trace(model, image())
    scores = secateur.score(graph, criterion, data, seed=3)
    plan = secateur.allocate(graph, scores, sparsity=0.4, scope=scope, round_to=2)
    assert result.plan == plan
    pruned = secateur.cut(model, plan)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)
    assert result.check.ok
    assert result.check.changed
    assert result.check == secateur.verify(model, pruned, plan, image())


def test_every_choice_is_handed_on() -> None:
    model = network()
    how: dict[str, Any] = {
        "scope": "global", "normalisation": "max", "limits": {"0": 0.25}, "max_sparsity": 0.7,
        "protect": ["param:7.bias"],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"param:7\.bias"):
        secateur.prune(model, image(), sparsity=0.3, **how)
    how["protect"] = ["group:3"]
    options = {"statistic": "max_abs"}
    result = secateur.prune(
        model, image(), criterion="weight_statistic", options=options, aggregation="max",
        sparsity=0.2, **how,
    )  # fmt: skip
    graph = secateur.trace(model, image())
    scores = secateur.score(graph, "weight_statistic", options=options, aggregation="max")
    assert result.plan == secateur.allocate(graph, scores, sparsity=0.2, **how)
    assert {name: len(units) for name, units in result.plan.removed.items()} == {"0": 1}


def test_l2_is_what_is_taken_when_nothing_is_said() -> None:
    model = network()
    assert secateur.prune(model, image(), sparsity=0.5).plan == (
        secateur.prune(model, image(), criterion="l2", sparsity=0.5).plan
    )


@pytest.mark.parametrize("target", ["macs", "params"])
def test_targets_are_met(target: str) -> None:
    model = network()
    result = secateur.prune(model, image(), **{target: 0.5})  # type: ignore[arg-type]
    assert getattr(result.plan.pruned, target) <= 0.5 * getattr(result.plan.dense, target)
    assert result.plan.pruned.params == count(result.model)


def test_the_model_is_left_exactly_as_it_was() -> None:
    model = network().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = snapshot(model)
    result = secateur.prune(model, image(), criterion="taylor", sparsity=0.5, calibration=batches())
    assert differences(before, snapshot(model)) == []
    assert type(result.model) is nn.Sequential
    assert result.model.training


def test_a_criterion_of_ones_own_decides() -> None:
    def lowest_first(graph: secateur.Graph, context: Context) -> dict[str, Tensor]:
        return {g.name: torch.arange(g.size, dtype=torch.float64) for g in graph.groups}

    result = secateur.prune(
        network(), image(), criterion=Criterion("mine", lowest_first), sparsity=0.5
    )
    assert result.plan.removed == {"0": (0, 1, 2, 3), "3": (0, 1, 2)}


class NeverCalled(nn.Module):
    """Bad arguments must be refused before the network runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the network ran before the arguments were checked")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"criterion": "l3", "sparsity": 0.5}, "criterion must be one of .*l1, l2"),
        ({"sparsity": 1.0}, "sparsity must satisfy 0 <= sparsity < 1, but got 1.0"),
        ({"macs": 0.0}, "macs must satisfy 0 < macs <= 1, but got 0.0"),
        ({"params": 2}, "params must satisfy 0 < params <= 1, but got 2"),
        ({"latency": 2}, "latency must satisfy 0 < latency <= 1, but got 2"),
        ({"sparsity": 0.5, "scope": "all"}, "scope must be one of local, global, isomorphic"),
        ({"sparsity": 0.5, "normalisation": "l3"}, "normalisation must be one of"),
        ({"sparsity": 0.5, "aggregation": "l3"}, "aggregation must be one of"),
        ({"sparsity": 0.5, "options": {"p": 3}}, "criterion 'l2' has no options, but got 'p'"),
        ({"sparsity": 0.5, "limits": {"a": 2.0}}, "limits of 'a' must be a share"),
        ({"sparsity": 0.5, "max_sparsity": 2}, "max_sparsity must satisfy"),
        ({"sparsity": 0.5, "protect": "a"}, "protect must be a list of patterns"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.prune(NeverCalled(), image(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of sparsity, macs, params"),
        ({"sparsity": 0.5, "macs": 0.5}, "exactly one of sparsity, macs, params"),
        ({"sparsity": 0.5, "scope": "everywhere"}, "scope must be one of local, global"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to must be at least 1"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "'taylor' needs calibration"),
    ],
)
def test_other_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.prune(network(), image(), **arguments)


def test_a_model_that_fails_and_one_without_anything_to_cut() -> None:
    with pytest.raises(TraceError, match="AssertionError: the network ran"):
        secateur.prune(NeverCalled(), image(), sparsity=0.5)
    with pytest.raises(PlanError, match="nothing can be cut; pinned by: the model's input"):
        secateur.prune(nn.Linear(4, 4), image(), sparsity=0.5)


def test_a_wrong_network_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        pruned = secateur.cut(*args, **kwargs)
        with torch.no_grad():
            pruned[0].bias += 1
        return pruned

    monkeypatch.setattr(pruning, "cut", wrong)
    with pytest.raises(VerificationError, match=r"differs from its masked reference by .*1e-10"):
        secateur.prune(network(), image(), sparsity=0.5)


def test_every_public_name_is_there() -> None:
    for name in secateur.__all__:
        assert getattr(secateur, name).__name__ == name
    assert secateur.Check is Check
    with pytest.raises(AttributeError, match="'secateur' has no attribute 'compress'"):
        secateur.compress  # noqa: B018
