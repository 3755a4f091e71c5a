"""Whole studies: what they find, what they leave, and what stops them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from studies import asked, study

import secateur
from secateur.compare import compare_run, dry_run, making
from secateur.compare import run as running
from secateur.compare.bench import Made, Sealed, calibrating, set_up
from secateur.compare.making import left, made_again, make, run_trial
from secateur.compare.trials import grid
from secateur.comparison import Comparison, load_comparison, setups
from secateur.data import batches
from secateur.errors import CheckpointError, InputError, SecateurError
from secateur.measure import quality
from secateur.study import kept

OTHER_FORMAT = "update study_user_attributes set value_json = '7' where key = 'format'"
OTHER_OPTUNA = "update alembic_version set version_num = 'v9'"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("done")
    return compare_run(study(folder), command="secateur compare study.yaml"), folder


def test_a_study_leaves_all_it_found(done: tuple[Comparison, Path]) -> None:
    found, folder = done
    left = {path.name for path in (folder / "study").iterdir()}
    assert left >= {
        "config.yaml", "study.db", "comparison.json", "report.html", "setups.csv", "setups.json",
        "trials.csv", "trials.json", "plan.json", "model.safetensors", "model.json",
    }  # fmt: skip
    assert "stages" not in left
    assert load_comparison(folder / "study" / "comparison.json") == found
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]
    assert all(trial.state == "complete" for trial in found.trials)
    assert all(trial.max_error is not None and trial.max_error < 1e-10 for trial in found.trials)


def test_optuna_reads_the_trials(done: tuple[Comparison, Path]) -> None:
    found, folder = done
    path = folder / "study" / "study.db"
    study = optuna.load_study(study_name="compare", storage=f"sqlite:///{path}")
    assert [trial.values[0] for trial in study.trials] == [
        trial.quality.accuracy for trial in found.trials if trial.quality
    ]
    assert study.trials[1].params["value"] == 0.5
    study._storage.remove_session()
    study._storage._backend.engine.dispose()


def test_figures_are_those_of_the_single_steps(done: tuple[Comparison, Path]) -> None:
    found, folder = done
    bench, _ = set_up(study(folder), folder / "again")
    spec = grid(bench.config)[3]
    made = make(bench, spec)
    trial = found.trials[3]
    wanted = quality(made.model, batches(bench.data.validation, 50), "validation")
    assert trial.quality == wanted
    assert trial.params == sum(p.numel() for p in made.model.parameters())
    assert made.plan is not None
    assert trial.macs == made.plan.pruned.macs


def test_the_kept_network_is_the_chosen_one(done: tuple[Comparison, Path]) -> None:
    found, folder = done
    assert found.chosen is not None
    kept = secateur.load(folder / "study")
    trial = found.trials[found.chosen]
    assert sum(p.numel() for p in kept.parameters()) == trial.params
    best = [one for one in found.trials if one.quality and one.macs < trial.macs]
    least = found.validation.accuracy - found.within
    assert all(one.quality is not None and one.quality.accuracy < least for one in best)


def test_the_test_split_is_sealed_until_the_end(tmp_path: Path) -> None:
    bench, test = set_up(study(tmp_path), tmp_path)
    assert len(test) > 0
    for reach in (
        lambda: len(bench.data.test),
        lambda: batches(bench.data.test, 8),
        lambda: bench.data.test[0],
        lambda: bench.data.test.labels,
    ):
        with pytest.raises(InputError, match="before every trial is done"):
            reach()
    assert isinstance(bench.data.test, Sealed)


def test_test_is_read_for_what_was_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    real = kept.answers

    def watched(model: Any, loader: Any, split: str, **options: Any) -> Any:
        seen.append((split, (tmp_path / "study" / "stages" / "test.json").is_file()))
        return real(model, loader, split, **options)

    monkeypatch.setattr(kept, "answers", watched)
    found = compare_run(study(tmp_path, test="all"))
    # The chosen network and the dense one are side by side by the same answers.
    assert [split for split, _ in seen] == ["validation", *["test"] * 5]
    assert found.facts is not None
    assert found.facts.split == "test"
    assert all(written for split, written in seen if split == "test")
    assert all(trial.test is not None and trial.test.split == "test" for trial in found.trials)


def test_a_failure_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.compare import workers

    real = workers.run_trial

    def sometimes(bench: Any, spec: Any) -> Any:
        if spec.trial.number == 1:
            raise RuntimeError("out of luck")
        return real(bench, spec)

    monkeypatch.setattr(workers, "run_trial", sometimes)
    monkeypatch.setattr(running, "_concluded", _stop)
    with pytest.raises(KeyboardInterrupt):
        compare_run(study(tmp_path))
    monkeypatch.undo()
    with sqlite3.connect(tmp_path / "study" / "study.db") as database:
        states = [row[0] for row in database.execute("select state from trials order by 1")]
    database.close()
    assert states == ["COMPLETE"] * 3 + ["FAIL"]

    kept = compare_run(study(tmp_path), resume=True)
    failed = kept.trials[1]
    assert (failed.state, failed.quality) == ("failed", None)
    assert failed.error.startswith("RuntimeError: out of luck (test_compare_run.py, line ")
    page = (tmp_path / "study" / "report.html").read_text()
    assert "1 of 4 failed" in page
    assert "out of luck" in page


def test_failed_trials_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.compare import workers

    def never(bench: Any, spec: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(workers, "run_trial", never)
    with pytest.raises(SecateurError, match="not one of 4 trials is complete: RuntimeError: brok"):
        compare_run(study(tmp_path))
    monkeypatch.undo()
    found = compare_run(study(tmp_path), resume=True, retry_failed=True)
    assert all(trial.state == "complete" for trial in found.trials)


def test_a_stopped_study_goes_on_and_does_nothing_twice(
    done: tuple[Comparison, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.compare import workers

    real, ran = workers.run_trial, []

    def counted(bench: Any, spec: Any) -> Any:
        if len(ran) == 2:
            ran.append(-1)
            raise KeyboardInterrupt
        ran.append(spec.trial.number)
        return real(bench, spec)

    monkeypatch.setattr(workers, "run_trial", counted)
    with pytest.raises(KeyboardInterrupt):
        compare_run(study(tmp_path))
    found = compare_run(study(tmp_path), resume=True)
    assert ran == [0, 1, -1, 2, 3]
    assert table(tmp_path) == table(done[1])
    assert compare_run(study(tmp_path), resume=True) == found
    assert ran == [0, 1, -1, 2, 3]


def test_workers_find_the_same(done: tuple[Comparison, Path], tmp_path: Path) -> None:
    compare_run(study(tmp_path), workers=2)
    assert table(tmp_path) == table(done[1])


@pytest.mark.slow
def test_a_dead_worker_fails_its_trial_alone(tmp_path: Path) -> None:
    network = tmp_path / "dying.py"
    network.write_text(
        "import os, signal\n"
        "from net import build as real\n"
        "def build():\n"
        "    model = real()\n"
        "    def die(module, args):\n"
        "        if module[0].out_channels == 4 and 'STUDY' in os.environ:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    model.register_forward_pre_hook(die)\n"
        "    return model\n"
    )
    os.environ["STUDY"], path = "1", list(sys.path)
    sys.path.insert(0, str(tmp_path))
    try:
        config = study(tmp_path, criteria=["l1"], model="dying:build", test="none")
        with pytest.raises(SecateurError):
            compare_run(config.model_copy(update={"sparsities": (0.5,)}), workers=2)
    finally:
        del os.environ["STUDY"]
        sys.path[:] = path
        sys.modules.pop("dying", None)
        sys.modules.pop("net", None)
    rows = recorded_errors(tmp_path / "study" / "study.db")
    assert rows == ["the worker process died (signal 9)"]


def test_killed_at_any_moment_it_ends_with_the_same_table(
    done: tuple[Comparison, Path], tmp_path: Path
) -> None:
    killed_and_resumed(tmp_path, kills=1)
    assert table(tmp_path) == table(done[1])


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_table(tmp_path: Path) -> None:
    grown = {"epochs": [0, 1], "recoveries": ["none", "bias"], "finetune": {"lr": 0.01}}
    whole = tmp_path / "whole"
    whole.mkdir()
    compare_run(study(whole, **grown))
    killed_and_resumed(tmp_path, kills=3, **grown)
    assert table(tmp_path) == table(whole)


def test_bad_folders_are_refused_with_what_to_do(tmp_path: Path) -> None:
    compare_run(study(tmp_path, test="none"))
    with pytest.raises(InputError, match="holds another run"):
        compare_run(study(tmp_path, test="none"))
    with pytest.raises(InputError, match=r"sparsities was \[0.25, 0.5\], but got \[0.5\]"):
        compare_run(study(tmp_path, test="none", sparsities=[0.5]), resume=True)
    with pytest.raises(InputError, match="workers must be at least 1"):
        compare_run(study(tmp_path), workers=0)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is damaged"),
        (lambda path: path.write_text("no database"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: changed(path, OTHER_FORMAT), "has format 7 where this version writes 1"),
        (lambda path: changed(path, OTHER_OPTUNA), "cannot be read"),
        (lambda path: changed(path, "delete from studies"), "is damaged"),
        (lambda path: changed(path, "delete from trial_user_attributes"), "without a whole record"),
    ],
)
def test_a_broken_database_is_refused_with_what_to_do(
    done: tuple[Comparison, Path], tmp_path: Path, harm: Any, words: str
) -> None:
    folder = tmp_path / "study"
    (folder / "stages").mkdir(parents=True)
    for name in ("config.yaml", "study.db"):
        (folder / name).write_bytes((done[1] / "study" / name).read_bytes())
    config = study(done[1], output=str(folder))
    harm(folder / "study.db")
    with pytest.raises(CheckpointError, match=f"{words}.*move it away to measure all trials again"):
        compare_run(config, resume=True)


def test_masked_weights_keep_their_shapes(tmp_path: Path) -> None:
    found = compare_run(
        study(tmp_path, granularities=["weight"], recoveries=["none", "recalibrate"], epochs=[0, 1])
    )
    dense = found.dense.size
    for trial in found.trials:
        assert trial.state == "complete", trial.error
        assert trial.macs == dense.macs
        assert trial.params < dense.params
        assert trial.max_error is None


def test_structures_go_in_rounds_beside_one_shot(tmp_path: Path) -> None:
    """Both end with as many channels, both were trained for as long, and the folder holds one."""
    mixture = {"delta": ["l1", "taylor"], "share": [0.5]}
    config = study(
        tmp_path,
        criteria=["taylor", mixture],
        sparsities=[0.5],
        scopes=["global"],
        schedules=["one-shot", {"schedule": "linear", "number": 2}],
        epochs=[0, 2],
        choose={"within": 0.99},
        test="all",
    )
    found = compare_run(config)
    assert [trial.error for trial in found.trials] == [""] * 8
    shapes = {trial.macs for trial in found.trials if trial.criterion == "taylor"}
    assert len({trial.setup for trial in found.trials}) == 8
    assert max(shapes) < 0.75 * found.dense.size.macs
    for trial in found.trials:
        assert trial.test is not None
        assert trial.max_error is not None
        assert trial.max_error < 1e-10
    text = (tmp_path / "study" / "setups.csv").read_text()
    assert "2 rounds, linear" in text
    kept = found.trials[found.chosen or 0]
    model = secateur.load(tmp_path / "study")
    assert sum(p.numel() for p in model.parameters()) == kept.params
    changes = found.changes
    assert changes is not None
    assert changes.history == kept.history
    widths = {one.layer: one.pruned for one in changes.widths}
    assert widths == {
        name: len(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    for trial in found.trials:
        assert len(trial.history) == trial.epochs
        last = [epoch.val_accuracy for epoch in trial.history]
        assert trial.quality is not None
        assert not last or trial.quality.accuracy in last
        assert {epoch.phase for epoch in trial.history} <= {"finetune", "round 1", "round 2"}


def test_trials_that_differ_in_training_alone_share_one_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, judged = making.judge_of, []

    def counted(*given: Any) -> Any:
        judge = real(*given)
        return lambda plan: judged.append(plan) or judge(plan)

    monkeypatch.setattr(making, "judge_of", counted)
    asked = {"sparsities": [], "macs": [0.6], "criteria": ["l1"], "epochs": [0, 1]}
    found = compare_run(study(tmp_path, **asked, scopes=["search"], search={"trials": 8}))
    assert 0 < len(judged) <= 8
    untrained, trained = found.trials
    assert untrained.macs == trained.macs <= 0.6 * found.dense.size.macs


def test_rounds_without_training_are_those_of_the_library(tmp_path: Path) -> None:
    config = study(
        tmp_path, criteria=["taylor"], sparsities=[0.5], scopes=["global"],
        schedules=[{"schedule": "linear", "number": 3}],
    )  # fmt: skip
    bench, _ = set_up(config, tmp_path / "stage")
    (spec,) = grid(config)
    trial = run_trial(bench, spec)
    # By hand: three plans, each from scores of the network as it is then.
    model, example = bench.subject.model, bench.subject.example
    total = sum(group.size for group in secateur.trace(model, example).groups)
    gone = 0
    for done in (1, 2, 3):
        graph = secateur.trace(model, example)
        scores = secateur.score(graph, "taylor", calibrating(bench, 0))
        now = math.floor(0.5 * done / 3 * total + 1e-9) - gone
        share = (now + 0.5) / sum(group.size for group in graph.groups)
        plan = secateur.allocate(graph, scores, sparsity=share, scope="global")
        model, gone = secateur.cut(model, plan), gone + now
    assert trial.params == sum(p.numel() for p in model.parameters())
    again = made_again(bench, spec).model
    assert torch.allclose(again(example), model(example), atol=1e-6)


def test_weights_go_in_rounds_and_gradually(tmp_path: Path) -> None:
    found = compare_run(
        study(
            tmp_path,
            criteria=["l1"],
            granularities=["weight"],
            schedules=["one-shot", {"schedule": "geometric", "number": 2}],
            epochs=[2],
            test="all",
        )
    )
    other = tmp_path / "gradual"
    other.mkdir()
    gradual = compare_run(
        study(
            other,
            criteria=["l1"],
            granularities=["weight"],
            schedules=[{"gradual": {"frequency": 1}}],
            epochs=[2],
            test="all",
        )
    )
    trials = (*found.trials, *gradual.trials)
    assert [trial.error for trial in trials] == [""] * 6
    assert [len(trial.history) for trial in trials] == [2] * 6
    for study_of in (found, gradual):
        assert study_of.chosen is not None
        assert study_of.changes is not None
        gone = sum(one.zeros for one in study_of.changes.zeros)
        assert gone == study_of.dense.size.params - study_of.trials[study_of.chosen].params
    for value in (0.25, 0.5):
        left = {trial.params for trial in trials if trial.value == value}
        assert len(left) == 1, left


def test_a_gradual_schedule_that_ends_too_late_is_refused_before_any_trial(tmp_path: Path) -> None:
    config = study(
        tmp_path,
        criteria=["l1"],
        granularities=["weight"],
        schedules=[{"gradual": {"end": 10_000}}],
        epochs=[1],
    )
    with pytest.raises(InputError, match="end must be at most"):
        compare_run(config)
    assert not (tmp_path / "study").exists()


def test_time_is_measured_for_every_network_where_asked(tmp_path: Path) -> None:
    found = compare_run(study(tmp_path, latency={"repeats": 2, "seconds": 0.01}, test="none"))
    assert all(trial.latency is not None and trial.latency > 0 for trial in found.trials)
    assert "Time of a pass" in (tmp_path / "study" / "report.html").read_text()


def test_seeds_draw_other_calibration_images(tmp_path: Path) -> None:
    bench, _ = set_up(study(tmp_path), tmp_path)
    first, again, other = (
        torch.cat([images for images, _ in calibrating(bench, seed)]) for seed in (1, 1, 2)
    )
    assert first.shape == other.shape == (20, 1, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    own = torch.cat([images for images, _ in calibrating(bench, 0)])
    assert torch.equal(own, torch.cat([images for images, _ in batches(bench.data.calibration, 9)]))


def test_means_are_over_seeds(tmp_path: Path) -> None:
    found = compare_run(study(tmp_path, criteria=["random"], seeds=[1, 2, 3], test="none"))
    (first, _) = setups(found.trials)
    accuracies = [t.quality.accuracy for t in found.trials if t.value == 0.25 and t.quality]
    assert len(accuracies) == 3
    assert first.accuracy == pytest.approx(sum(accuracies) / 3)
    assert (first.low, first.high) == (min(accuracies), max(accuracies))


def test_a_dry_run_lists_and_estimates_and_leaves_nothing(tmp_path: Path) -> None:
    config = study(tmp_path)
    before = set(tmp_path.iterdir())
    found = dry_run(config)
    assert found.trials[0] == "l1, local, sparsity 0.25, seed 0"
    assert len(found.trials) == 4
    assert found.seconds > 100 * found.per_image > 0
    bench, test = set_up(config, tmp_path)
    validation = len(bench.data.validation)
    # 0.75 and 0.5 of the channels stay, so about (0.5625 + 0.25) / 2 of the MACs.
    saved = (1 - 0.40625) * (4 * validation + len(test))
    assert (found.seconds - found.least) / found.per_image == pytest.approx(saved)
    weights = dry_run(study(tmp_path, granularities=["weight"]))
    assert weights.least == weights.seconds
    asked_macs = {"sparsities": [], "macs": [0.5], "test": "none"}
    one = dry_run(study(tmp_path, **asked_macs))
    searched = {"scopes": ["search"], "search": {"trials": 9}}
    many = dry_run(study(tmp_path, **asked_macs, **searched))
    more = many.seconds / many.per_image - one.seconds / one.per_image
    assert more == pytest.approx(2 * 9 * validation)
    assert set(tmp_path.iterdir()) == before


def test_masked_weights_are_not_counted_and_other_zeros_are() -> None:
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(layer.bias)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert left(Made(layer, 6)) == 8
    assert left(Made(layer, 6, masks={"weight": mask})) == 6


def _stop(*args: Any, **options: Any) -> Any:
    raise KeyboardInterrupt


def table(folder: Path) -> str:
    return (folder / "study" / "trials.csv").read_text()


def changed(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


def recorded_errors(path: Path) -> list[str]:
    database = sqlite3.connect(path)
    query = "select value_json from trial_user_attributes where key = 'error'"
    rows = [json.loads(row[0]) for row in database.execute(query)]
    database.close()
    return rows


def killed_and_resumed(folder: Path, *, kills: int, **over: Any) -> None:
    """Start a study, kill it with -9 when some trials are recorded, and go on until it is done."""
    settings = folder / "study.yaml"
    settings.write_text(yaml.safe_dump(asked(folder, **over)))
    command = [sys.executable, "-m", "secateur", "compare", str(settings)]
    total = len(grid(study(folder, **over)))
    chosen = random.Random()
    for _ in range(kills):
        resume = ["--resume"] if (folder / "study" / "config.yaml").is_file() else []
        process = subprocess.Popen(
            [*command, *resume], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wanted = chosen.randrange(total)
        while process.poll() is None and count(folder / "study" / "study.db") < wanted:
            time.sleep(0.01)
        time.sleep(chosen.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -9)
    compare_run(study(folder, **over), resume=(folder / "study" / "config.yaml").is_file())


def count(path: Path) -> int:
    """Count the trials that are recorded."""
    if not path.is_file():
        return 0
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return int(database.execute("select count(*) from trials").fetchone()[0])
    finally:
        database.close()


def test_records_of_one_setup_differ_in_their_seed_alone(done: tuple[Comparison, Path]) -> None:
    trial = done[0].trials[0]
    assert dataclasses.replace(trial, seed=9).setup == trial.setup
    assert dataclasses.replace(trial, value=0.9).setup != trial.setup
    assert dataclasses.replace(trial, value=0.9).line == trial.line
