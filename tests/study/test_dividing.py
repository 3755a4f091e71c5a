"""Targets that are divided over groups by measured sensitivity, or by search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import write_net

import secateur
from secateur.allocation.predicted import loss_scores
from secateur.compare import CompareConfig, compare_run
from secateur.errors import CheckpointError, InputError, PlanError
from secateur.plan import Plan
from secateur.sensitivity import SensitivityConfig, sensitivity_run
from secateur.study import stages
from secateur.study.config import RunConfig
from secateur.study.dividing import divided
from secateur.study.fields import ShareSearch
from secateur.study.run import prune_run

DATA = {"source": "digits", "limit": 120, "batch_size": 64, "calibration": 20}
QUICK = {"batches": [1], "repeats": 1, "seconds": 0.01}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and the run that measured its groups in the order of l2."""
    folder = tmp_path_factory.mktemp("measured")
    asked = {"model": write_net(folder), "data": DATA, "criterion": "l2", "sparsities": [0.3, 0.6]}
    sensitivity_run(SensitivityConfig.model_validate({**asked, "output": str(folder / "curves")}))
    return folder


def config(measured: Path, output: Path, **over: Any) -> RunConfig:
    asked = {
        "model": f"{measured / 'net.py'}:build",
        "data": DATA,
        "criterion": "l2",
        "target": {"macs": 0.5},
        "finetune": {"epochs": 0},
        "speed": QUICK,
        "output": str(output),
        **over,
    }
    return RunConfig.model_validate(asked)


def test_prune_divides_by_curves(measured: Path, tmp_path: Path) -> None:
    over = {"scope": "sensitivity", "curves": str(measured / "curves")}
    prune_run(config(measured, tmp_path / "run", **over))
    found = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    model = stages.build(f"{measured / 'net.py'}:build", {}, None, 0)
    example = secateur.load(tmp_path / "run")
    assert sum(p.numel() for p in example.parameters()) == found.pruned.params
    # The same by hand, from what stands in the folder.
    from secateur.sensitivity_results import load_sensitivity

    curves = load_sensitivity(measured / "curves" / "sensitivity.json").curves()
    graph = secateur.trace(model, torch.zeros(2, 1, 8, 8))
    worth = loss_scores(graph, secateur.score(graph, "l2"), curves, "macs")
    wanted = secateur.allocate(graph, worth, macs=0.5, scope="global", normalisation="none")
    assert found.removed == wanted.removed


def test_search_never_does_worse_than_where_it_began(measured: Path, tmp_path: Path) -> None:
    """Its first divisions are those of local and global scope, a step of shares further."""
    model = stages.build(f"{measured / 'net.py'}:build", {}, None, 0)
    graph = secateur.trace(model, torch.zeros(2, 1, 8, 8))
    scores = secateur.score(graph, "l2")
    judged: list[Plan] = []

    def accuracy(plan: Plan) -> float:
        judged.append(plan)
        gone = [len(units) for units in plan.removed.values()]
        return 1 - abs(gone[0] - 2) / 10 if len(gone) > 1 else 0.1

    plan = divided(
        graph, scores, {"macs": 0.6}, scope="search", normalisation="mean",
        search=ShareSearch(trials=20), accuracy=accuracy, record=tmp_path / "search.json",
    )  # fmt: skip
    assert plan.pruned.macs <= 0.6 * plan.dense.macs
    small = [one for one in judged if one.pruned.macs <= 0.6 * one.dense.macs]
    assert len(judged) > 5
    assert accuracy(plan) == max(accuracy(one) for one in small)
    # Here local and global scope ask for the same, which is judged once.
    for scope in ("local", "global"):
        least = secateur.allocate(graph, scores, macs=0.6, scope=scope).removed
        assert all(len(judged[0].removed[name]) >= len(units) for name, units in least.items())
    assert judged[0].pruned.macs <= 0.6 * judged[0].dense.macs
    # A second call reads all from the record.
    before = len(judged)
    again = divided(
        graph, scores, {"macs": 0.6}, scope="search", normalisation="mean",
        search=ShareSearch(trials=20), accuracy=accuracy, record=tmp_path / "search.json",
    )  # fmt: skip
    assert again.removed == plan.removed
    assert len(judged) == before


def test_a_share_that_no_division_reaches_is_refused(measured: Path) -> None:
    model = stages.build(f"{measured / 'net.py'}:build", {}, None, 0)
    graph = secateur.trace(model, torch.zeros(2, 1, 8, 8))
    with pytest.raises(PlanError, match=r"raise search.trials or search.most \(0.05\)"):
        divided(
            graph, secateur.score(graph, "l2"), {"macs": 0.3}, scope="search",
            normalisation="mean", search=ShareSearch(trials=3, most=0.05),
            accuracy=lambda plan: 0.5,
        )  # fmt: skip


def test_a_study_has_them_beside_the_others(measured: Path, tmp_path: Path) -> None:
    found = compare_run(
        CompareConfig.model_validate(
            {
                "model": f"{measured / 'net.py'}:build",
                "data": DATA,
                "criteria": ["l2"],
                "macs": [0.5],
                "scopes": ["local", "sensitivity", "search"],
                "curves": str(measured / "curves"),
                "search": {"trials": 6},
                "test": "all",
                "output": str(tmp_path / "study"),
            }
        )
    )
    assert [(one.scope, one.error) for one in found.trials] == [
        ("local", ""), ("sensitivity", ""), ("search", ""),
    ]  # fmt: skip
    assert all(one.macs <= 0.5 * found.dense.size.macs for one in found.trials)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"scope": "sensitivity"}, "curves must be given exactly with scope 'sensitivity'"),
        ({"curves": "x"}, "curves must be given exactly with scope 'sensitivity'"),
        ({"search": {}}, "search must be left out without scope 'search'"),
        ({"scope": "search", "target": {"params": 0.5}}, "target must be macs with scope 'search'"),
        ({"scope": "search", "round_to": 4}, "round_to must be left out with scope 'search'"),
        ({"scope": "search", "normalisation": "max"}, "normalisation must be left out"),
        ({"scope": "search", "search": {"sampler": "nsga"}}, "did you mean 'nsga2'?"),
        ({"scope": "searhc"}, "did you mean 'search'?"),
        (
            {"scope": "search", "rounds": {"schedule": "linear", "number": 2}},
            "rounds must be 1 with scope 'search'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    measured: Path, tmp_path: Path, over: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        config(measured, tmp_path / "run", **over)
    assert words in str(caught.value)


def test_curves_of_another_order_or_network_are_refused(measured: Path, tmp_path: Path) -> None:
    over = {"scope": "sensitivity", "curves": str(measured / "curves")}
    with pytest.raises(InputError, match=r"criterion must be 'l2'.*but got 'l1'"):
        prune_run(config(measured, tmp_path / "run", **over, criterion="l1"))
    with pytest.raises(InputError, match=r"aggregation must be 'sum'.*but got 'mean'"):
        prune_run(config(measured, tmp_path / "run", **over, aggregation="mean"))
    with pytest.raises(InputError, match=r"curves must be of this network.*8 units, but here it"):
        prune_run(config(measured, tmp_path / "run", **over, arguments={"width": 12}))
    with pytest.raises(CheckpointError, match=r"sensitivity\.json"):
        prune_run(config(measured, tmp_path / "run", scope="sensitivity", curves=str(tmp_path)))
    assert not (tmp_path / "run").exists()
