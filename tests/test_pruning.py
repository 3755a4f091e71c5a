"""All of it in one call."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from exactness import count, differences, snapshot
from rich.console import Console
from rich.progress import Progress
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


def unsound(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let every cut of the layers ``names`` be wrong."""

    def wrong(model: Any, plan: secateur.Plan, **kwargs: Any) -> Any:
        pruned = secateur.cut(model, plan, **kwargs)
        with torch.no_grad():
            for name in names:
                if name in plan.removed:
                    pruned.get_submodule(name).weight[0] += 1
        return pruned

    monkeypatch.setattr(pruning, "cut", wrong)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(8, 3)).eval()


def rows() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8)


@pytest.mark.parametrize("guilty", [("0",), ("6",), ("10",), ("2", "8")])
def test_groups_that_cannot_be_proved_stay_whole_and_the_rest_goes(
    monkeypatch: pytest.MonkeyPatch, guilty: tuple[str, ...]
) -> None:
    unsound(monkeypatch, *guilty)
    model = deep()
    result = secateur.prune(model, rows(), sparsity=0.5)
    assert result.check.ok
    assert set(result.plan.removed) == {"0", "2", "4", "6", "8", "10"} - set(guilty)
    for name in guilty:
        (note,) = (n for n in result.plan.notes if n.startswith(f"group {name} stays whole"))
        assert "differs from its masked reference" in note
        assert result.model.get_submodule(name).weight.shape[0] == 8
    monkeypatch.undo()
    assert secateur.verify(model, result.model, result.plan, rows()).ok


def test_a_target_is_met_by_the_other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    unsound(monkeypatch, "4")
    result = secateur.prune(deep(), rows(), params=0.6, scope="global")
    assert "4" not in result.plan.removed
    assert result.plan.pruned.params <= 0.6 * result.plan.dense.params
    assert count(result.model) == result.plan.pruned.params


def test_a_target_out_of_reach_without_the_guilty_groups_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsound(monkeypatch, "0", "2", "4", "6")
    with pytest.raises(VerificationError, match=r"differs from .*protect=\['group:0', 'group:2'"):
        secateur.prune(deep(), rows(), params=0.2)


def test_groups_that_are_wrong_together_alone_lose_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, plan: secateur.Plan, **kwargs: Any) -> Any:
        pruned = secateur.cut(model, plan, **kwargs)
        if {"2", "6"} <= plan.removed.keys():
            with torch.no_grad():
                pruned[2].weight[0] += 1
        return pruned

    monkeypatch.setattr(pruning, "cut", wrong)
    result = secateur.prune(deep(), rows(), sparsity=0.5)
    assert set(result.plan.removed) == {"0", "2", "4", "8", "10"}


def test_a_cut_that_shows_nothing_is_no_proof_and_says_what_to_do() -> None:
    model = deep()
    with torch.no_grad():
        model[12].weight.zero_()
    with pytest.raises(VerificationError, match="nothing is shown: the outputs do not depend on w"):
        secateur.prune(model, rows(), sparsity=0.5)


def test_nothing_is_blamed_on_a_network_that_never_computes_the_same() -> None:
    class Clocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.tensor([[int.from_bytes(os.urandom(2), "big") / 2**16]])
            return self.b(torch.tanh(self.a(x) + noise))

    with pytest.raises(VerificationError, match="the network does not compute the same twice"):
        secateur.prune(Clocked().eval(), rows(), sparsity=0.5)


def test_a_cut_draw_that_cannot_be_the_same_protects_its_group_by_name() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            return self.c(torch.tanh(self.b(h + h.shape[1] * torch.poisson(h.abs()))))

    torch.manual_seed(0)
    result = secateur.prune(Shuffled().eval(), rows(), sparsity=0.5)
    assert result.check.ok
    assert "b" in result.plan.removed


def test_progress_tells_of_a_protected_group(monkeypatch: pytest.MonkeyPatch) -> None:
    unsound(monkeypatch, "6")
    console = Console(file=io.StringIO(), width=200)
    with Progress(console=console, disable=True) as progress:
        secateur.prune(deep(), rows(), sparsity=0.5, progress=progress)
    assert "group 6 stays whole: the cut network differs" in console.file.getvalue()  # type: ignore[attr-defined]
