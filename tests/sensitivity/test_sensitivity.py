"""Groups cut alone: what is measured, what is left, and how a target is divided by it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import write_net
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.allocation import predicted
from secateur.allocation.predicted import loss_scores, marginal, predicted_loss
from secateur.cli import app
from secateur.compare.bench import Sealed
from secateur.data import batches, load_data
from secateur.errors import CheckpointError, InputError
from secateur.measure import quality
from secateur.sensitivity import SensitivityConfig, sensitivity_run
from secateur.sensitivity import run as running
from secateur.sensitivity_results import Sensitivity, load_sensitivity
from secateur.study import stages


def asked(folder: Path, **over: Any) -> dict[str, Any]:
    return {
        "model": write_net(folder),
        "data": {"source": "digits", "limit": 120, "batch_size": 64, "calibration": 20},
        "criterion": "l2",
        "sparsities": [0.05, 0.5, 0.9],
        "output": str(folder / "run"),
        **over,
    }


def config(folder: Path, **over: Any) -> SensitivityConfig:
    return SensitivityConfig.model_validate(asked(folder, **over))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sensitivity, Path]:
    folder = tmp_path_factory.mktemp("sensitivity")
    return sensitivity_run(config(folder, target={"macs": 0.5})), folder


def test_cells_are_single_cuts_judged_on_validation(done: tuple[Sensitivity, Path]) -> None:
    found, folder = done
    settings = config(folder)
    model = stages.build(settings.model, {}, None, 0)
    data = load_data("digits", limit=120, calibration=20, seed=0)
    loader = batches(data.validation, 64)
    assert found.dense == quality(model, loader, "validation")
    graph = secateur.trace(model, torch.zeros(2, 1, 8, 8))
    scores = secateur.score(graph, "l2")
    assert [entry.name for entry in found.groups] == [group.name for group in graph.groups]
    for cell, (name, share) in zip(
        found.cells, itertools.product(scores, (0.05, 0.5, 0.9)), strict=True
    ):
        assert (cell.group, cell.sparsity) == (name, share)
        size = graph.by_name[name].size
        assert cell.removed == int(share * size)
        if not cell.removed:
            assert cell.loss == found.dense.loss
            continue
        plan = secateur.allocate(graph, {name: scores[name]}, sparsity=share)
        wanted = quality(secateur.cut(model, plan), loader, "validation")
        assert (cell.accuracy, cell.loss) == (wanted.accuracy, wanted.loss)
    assert found.max_error < 1e-10


def test_what_is_left_is_whole(done: tuple[Sensitivity, Path]) -> None:
    found, folder = done
    run = folder / "run"
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "sensitivity.json", "report.html", "groups.csv", "cells.json",
        "allocations.csv", "shares.csv", "plan.json", "model.safetensors", "model.json",
    }  # fmt: skip
    assert load_sensitivity(run / "sensitivity.json") == found
    rows = list(csv.DictReader((run / "cells.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [cell.loss for cell in found.cells]
    page = (run / "report.html").read_text()
    assert "heatmap" in page
    assert "by sensitivity" in page


def test_the_division_is_measured_and_kept(done: tuple[Sensitivity, Path]) -> None:
    found, folder = done
    assert [one.rule for one in found.allocations] == ["sensitivity", "local", "global"]
    assert all(one.macs <= 0.5 for one in found.allocations)
    mine = found.allocations[0]
    assert mine.predicted <= min(one.predicted for one in found.allocations) + 1e-9
    data = load_data("digits", limit=120, calibration=20, seed=0)
    kept = secateur.load(folder / "run")
    assert quality(kept, batches(data.validation, 64), "validation") == mine.quality


def test_a_finished_run_is_not_run_again(
    done: tuple[Sensitivity, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, folder = done
    monkeypatch.setattr(running, "load_data", None)
    assert sensitivity_run(config(folder, target={"macs": 0.5}), resume=True) == found


def test_the_test_split_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    judge = running._Run.judge

    def watched(self: Any, model: nn.Module) -> Any:
        seen.append(type(self.subject.data.test))
        return judge(self, model)

    monkeypatch.setattr(running._Run, "judge", watched)
    sensitivity_run(config(tmp_path, sparsities=[0.5]))
    assert set(seen) == {Sealed}


def test_killed_and_resumed_is_the_same(tmp_path: Path) -> None:
    whole = sensitivity_run(config(tmp_path, output=str(tmp_path / "whole")))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(asked(tmp_path)))
    command = [sys.executable, "-m", "secateur", "sensitivity", str(path)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    stage = tmp_path / "run" / "stages"
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(stage.glob("cell-*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = sensitivity_run(config(tmp_path), resume=(tmp_path / "run" / "config.yaml").is_file())
    assert again.cells == whole.cells


def test_a_damaged_cell_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "save_sensitivity", stop)
        with pytest.raises(KeyboardInterrupt):
            sensitivity_run(config(tmp_path))
    cell = next((tmp_path / "run" / "stages").glob("cell-*.json"))
    cell.write_text("[{")
    with pytest.raises(CheckpointError, match="delete it to make it again"):
        sensitivity_run(config(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"sparsities": [0.5, 0.2]}, "must rise"),
        ({"sparsities": [1.0]}, "sparsity must satisfy"),
        ({"target": {"macs": 0.5, "params": 0.5}}, "at most one of"),
        ({"criterion": "l3"}, "must be one of"),
        ({"protect": ["nothing"]}, "matches nothing"),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, over: dict[str, Any], told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(asked(tmp_path, **over)))
    outcome = CliRunner().invoke(app, ["sensitivity", str(path)])
    assert outcome.exit_code == 2
    assert told in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_the_verb_tells_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(asked(tmp_path)))
    outcome = CliRunner().invoke(app, ["sensitivity", str(path), "--params", "0.6"])
    assert outcome.exit_code == 0, outcome.output
    assert "Most sensitive:" in outcome.stdout
    assert "Allocation:      On validation: sensitivity" in outcome.stdout


class TestRule:
    """Losses over savings, worked out by hand and by trying everything."""

    def test_the_hull_of_a_curve(self) -> None:
        # Worst so far: 0, 1, 1, 4; the point at 2 lies below the line from 1 to 4.
        assert marginal([(1, 1.0), (2, 0.5), (3, 4.0)], 5) == [0.5, 0.5, 3.0, 3.0, 3.0]

    def test_a_gain_counts_as_flat(self) -> None:
        assert marginal([(2, -1.0), (4, 2.0)], 5) == [0.0, 0.0, 1.0, 1.0, 1.0]

    def test_no_division_of_units_has_a_smaller_loss(self) -> None:
        """Convex curves, where the rule is exact: compared with all divisions."""
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(),
            nn.Linear(4, 2),
        ).eval()  # fmt: skip
        graph = secateur.trace(model, torch.zeros(2, 3))
        scores = secateur.score(graph, "l2")
        curves = {
            group.name: [(k, (place + 1) * k**1.5) for k in range(group.size)]
            for place, group in enumerate(graph.groups)
        }
        mine = loss_scores(graph, scores, curves, "units")
        for sparsity in (0.2, 0.4, 0.6):
            plan = secateur.allocate(
                graph, mine, sparsity=sparsity, scope="global", normalisation="none"
            )
            taken = {name: len(units) for name, units in plan.removed.items()}
            total = sum(taken.values())
            every = itertools.product(*(range(group.size) for group in graph.groups))
            best = min(
                sum((place + 1) * count**1.5 for place, count in enumerate(counts))
                for counts in every
                if sum(counts) == total
            )
            assert predicted_loss(curves, taken) == pytest.approx(best)

    def test_units_keep_the_order_of_their_scores(self) -> None:
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        graph = secateur.trace(model, torch.zeros(2, 3))
        (name,) = graph.by_name
        scores = {name: torch.tensor([5.0, 1, 7, 3, 2, 6, 4, 8])}
        found = loss_scores(graph, scores, {name: [(6, 1.0)]}, "macs")[name]
        assert found.argsort().tolist() == scores[name].argsort().tolist()
        flat = loss_scores(graph, scores, {name: [(6, 0.0)]}, "macs")[name]
        assert flat.argsort().tolist() == scores[name].argsort().tolist()

    def test_savings_are_those_of_the_network(self) -> None:
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        graph = secateur.trace(model, torch.zeros(2, 3))
        (name,) = graph.by_name
        assert predicted.saved_by_one(graph, name, "macs") == 3 + 2
        assert predicted.saved_by_one(graph, name, "params") == 3 + 2 + 1

    @pytest.mark.parametrize(
        ("curves", "saving", "told"),
        [
            ({"nobody": [(1, 1.0)]}, "macs", "no scores"),
            ({"0.weight": [(8, 1.0)]}, "macs", "0 to 7 units"),
            ({"0.weight": [(1, float("nan"))]}, "macs", "NaN"),
            ({}, "flops", "saving must be one of"),
        ],
    )
    def test_curves_are_checked(self, curves: Any, saving: str, told: str) -> None:
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        graph = secateur.trace(model, torch.zeros(2, 3))
        (name,) = graph.by_name
        curves = {name if key == "0.weight" else key: value for key, value in curves.items()}
        with pytest.raises(InputError, match=told):
            loss_scores(graph, {name: torch.arange(8.0)}, curves, saving)


def test_json_holds_every_cell(done: tuple[Sensitivity, Path]) -> None:
    found, folder = done
    table = json.loads((folder / "run" / "cells.json").read_text())
    assert len(table["rows"]) == len(found.cells) == 2 * 3
