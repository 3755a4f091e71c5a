"""The example files: each is valid, and the one with a known outcome has it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import write_photos, write_residual

from secateur.compare import CompareConfig, compare_run
from secateur.compare.trials import grid
from secateur.results import load_result
from secateur.sensitivity.config import SensitivityConfig
from secateur.study import RunConfig, prune_run
from secateur.study.reading import parse, read_mapping

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_is_valid_and_listed(path: Path) -> None:
    asked = read_mapping(path)
    # A study lists criteria, a run has one; shares of one criterion are for its sensitivity.
    kinds = {"criteria": CompareConfig, "sparsities": SensitivityConfig}
    kind = next((kind for key, kind in kinds.items() if key in asked), RunConfig)
    parse(kind, asked, str(path))
    assert f"`{path.name}`" in (ROOT / "examples" / "README.md").read_text()


RUNS = ("recovered", "weights", "blocks", "slimmed")


@pytest.mark.parametrize("name", RUNS)
def test_each_way_runs_from_its_file(name: str, tmp_path: Path) -> None:
    """The file's own ways, on a small residual network and a few digits."""
    asked = read_mapping(ROOT / "examples" / f"resnet56_{name}.yaml")
    small = {
        **{key: value for key, value in asked.items() if key not in ("arguments", "weights")},
        "model": write_residual(tmp_path),
        "data": {"source": "digits", "limit": 150, "batch_size": 32, "calibration": 64},
        "finetune": {**asked["finetune"], "epochs": min(1, asked["finetune"]["epochs"])},
        "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
        "output": str(tmp_path / "run"),
    }
    if name == "blocks":
        # A dozen steps must do what hundreds have time for.
        few = {"strength": 0.8, "blocks": 0.8, "factor_lr": 0.3, "momentum": 0.0}
        small["sparse"] = {**asked["sparse"], **few}
    result = prune_run(parse(RunConfig, small, name))
    assert result.check.ok
    assert result.check.changed
    if name == "weights":
        assert any(re.search(r"zero \((89\.9|90\.0)", note) for note in result.notes)
    else:
        assert result.pruned.size.macs < result.dense.size.macs
    assert ("recovered (least_squares)" in result.notes[0]) == (name == "recovered")
    assert any(branch.gone for branch in result.branches) == (name == "blocks")


@pytest.mark.parametrize("name", ["thesis_vgg16", "thesis_resnet56"])
def test_the_relevance_study_draws_its_four_figures(name: str, tmp_path: Path) -> None:
    """The file's own criteria, scope and shares, on a small network and a few digits."""
    asked = read_mapping(ROOT / "examples" / f"{name}.yaml")
    whole = parse(CompareConfig, asked, name)
    assert len(grid(whole)) == (4 + 11) * 9
    if name == "thesis_vgg16":
        splits = {"train": {"a": 20, "b": 20}, "test": {"a": 4, "b": 4}}
        photos = str(write_photos(tmp_path / "photos", splits, side=32))
        net = f"{ROOT / 'examples' / 'thesis_vgg16.py'}:build"
        arguments = {"classes": 2, "width": 0.05}
        data = {"source": photos, "channels": 3, "validation": 0.5, "calibration": 10}
    else:
        net, arguments = "secateur.models:digits_cnn", {}
        data = {"source": "digits", "limit": 60, "calibration": 10}
    small = {
        **asked,
        "model": net,
        "arguments": arguments,
        "weights": None,
        "data": {**data, "batch_size": 60},
        "sparsities": [0.3, 0.6],
        "output": str(tmp_path / "run"),
    }
    found = compare_run(parse(CompareConfig, small, name))
    assert all(trial.state == "complete" for trial in found.trials), found.trials
    page = (tmp_path / "run" / "report.html").read_text()
    for figure in ("curves", "losses", "curves-mixed", "losses-mixed"):
        assert f'id="plot-{figure}-sparsity"' in page
    at = {
        (trial.criterion.partition(" ")[0], trial.share, trial.value): trial.quality
        for trial in found.trials
    }
    for value in (0.3, 0.6):
        assert at["delta", 0.0, value] == at["parameters", None, value]
        assert at["delta", 1.0, value] == at["relevance", None, value]


@pytest.mark.slow
def test_resnet56_scores_as_published_and_prunes(tmp_path: Path) -> None:
    path = ROOT / "examples" / "resnet56_cifar10.yaml"
    asked = read_mapping(path)
    for needed in (asked["weights"], asked["data"]["source"]):
        if not (ROOT / needed).exists():
            pytest.skip(f"needs {needed}")
    words = ["prune", str(path), "--epochs", "0", "--output", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-m", "secateur", *words], cwd=ROOT, check=True)
    result = load_result(tmp_path / "run" / "result.json")
    assert result.dense.quality.count == 10_000
    assert result.dense.quality.accuracy == pytest.approx(0.8320, abs=5e-5)
    assert 0.49 < result.pruned.size.macs / result.dense.size.macs <= 0.5
    assert result.check.ok
    assert result.check.changed
    # Imports come first: `dill`, which torch and datasets import, derives from the Unpickler.
    code = (
        "import pickle, sys\n"
        "from secateur import load\n"
        "from secateur.data import batches, load_data\n"
        "from secateur.measure import quality\n"
        "whole = pickle.load, pickle.loads, pickle.Unpickler\n"
        "def refuse(*a, **k): raise RuntimeError('pickle was used')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "model = load(sys.argv[1])\n"
        "pickle.load, pickle.loads, pickle.Unpickler = whole\n"
        "data = load_data(sys.argv[2], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),\n"
        "                 validation=0.05, limit=10000)\n"
        "print(quality(model, batches(data.test, 128), 'test').accuracy)\n"
    )
    words = [str(tmp_path / "run"), asked["data"]["source"]]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert float(done.stdout) == pytest.approx(result.pruned.quality.accuracy, abs=1e-4)
