"""Shares found by search, where the best ones are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.allocation.searched import plan_of, search_allocation
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.plan import Plan


@pytest.fixture(scope="module")
def subject() -> tuple[Graph, dict[str, torch.Tensor], str, str]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)
    ).eval()
    graph = secateur.trace(model, torch.zeros(2, 4))
    first, second = (group.name for group in graph.groups)
    return graph, secateur.score(graph, "l2"), first, second


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_the_group_that_matters_is_spared(
    subject: tuple[Graph, dict[str, torch.Tensor], str, str], sampler: str
) -> None:
    graph, scores, first, second = subject

    def judge(plan: Plan) -> float:
        # Only the first group's units are worth anything.
        return 1 - len(plan.removed.get(first, ())) / 20

    found = search_allocation(graph, scores, judge, trials=60, sampler=sampler, seed=0)
    assert [one.macs for one in found] == sorted((one.macs for one in found), reverse=True)
    assert [one.accuracy for one in found] == sorted((one.accuracy for one in found), reverse=True)
    uniform = plan_of(graph, scores, {first: 10, second: 10})
    assert uniform is not None
    share = uniform.pruned.macs / uniform.dense.macs
    # Better than the same share of both, at fewer MACs.
    assert any(one.accuracy > 0.5 and one.macs <= share for one in found)
    plan = plan_of(graph, scores, found[-1].removed)
    assert plan is not None
    assert plan.pruned.macs / plan.dense.macs == found[-1].macs


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_a_stopped_search_goes_on_to_the_same_end(
    subject: tuple[Graph, dict[str, torch.Tensor], str, str], tmp_path: Path, sampler: str
) -> None:
    graph, scores, first, _ = subject
    judged: list[Plan] = []

    def judge(plan: Plan) -> float:
        if len(judged) == 5:
            raise KeyboardInterrupt
        judged.append(plan)
        return 1 - len(plan.removed.get(first, ())) / 20

    path = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        search_allocation(graph, scores, judge, trials=16, sampler=sampler, record=path)
    before = len(judged)

    def counted(plan: Plan) -> float:
        judged.append(plan)
        return 1 - len(plan.removed.get(first, ())) / 20

    found = search_allocation(graph, scores, counted, trials=16, sampler=sampler, record=path)
    assert before == 5
    assert len(judged) <= 16
    # What it proposes and finds is what a search without a stop does.
    calm = search_allocation(
        graph,
        scores,
        lambda plan: 1 - len(plan.removed.get(first, ())) / 20,
        trials=16,
        sampler=sampler,
    )
    assert found == calm
    taken = len(judged)
    assert (
        search_allocation(graph, scores, counted, trials=16, sampler=sampler, record=path) == found
    )
    assert len(judged) == taken


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"trials": 0}, "at least 1"),
        ({"sampler": "cma"}, "nsga2, tpe"),
        ({"most": 1.0}, "most < 1"),
    ],
)
def test_arguments_are_checked(
    subject: tuple[Graph, dict[str, torch.Tensor], str, str], over: dict[str, object], told: str
) -> None:
    graph, scores, *_ = subject
    with pytest.raises(InputError, match=told):
        search_allocation(graph, scores, lambda plan: 0.0, **over)  # type: ignore[arg-type]
