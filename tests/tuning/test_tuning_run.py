"""A whole tuning run: what it leaves, how it survives, how workers share it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from small import settings

from secateur.errors import InputError, SecateurError
from secateur.report.tuning_page import render_tuning, write_tuning_tables
from secateur.results import Quality
from secateur.study.reading import parse
from secateur.tuning import attempts
from secateur.tuning.config import TuneConfig
from secateur.tuning.objective import QUALITY_METRICS, Objective, pir
from secateur.tuning.run import tune_run
from secateur.tuning.search import check_trained, saturated
from secateur.tuning_results import Tried, Tuning, load_tuning, ranked

HERE = Path(__file__).parent


def tuned(folder: Path, **over: Any) -> Tuning:
    return tune_run(TuneConfig.model_validate(settings(folder, **over)), command="secateur tune x")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuning, Path]:
    folder = tmp_path_factory.mktemp("tune")
    return tuned(folder, trust={"settings": 4, "resamples": 100}), folder / "run"


def worker(config: Path, *flags: str) -> subprocess.Popen[bytes]:
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(HERE / "small.py"), str(config), *flags],
                            env=environment, stderr=subprocess.PIPE)  # fmt: skip


def written(folder: Path, **over: Any) -> Path:
    path = folder / "tune.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **over)), encoding="utf-8")
    return path


def killed_at(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Kill -9 as soon as ``reached``; fail if the worker ends before."""
    limit = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finished_well(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors.decode()


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must not depend on how often a run was stopped."""
    found = load_tuning(folder / "run" / "tuning.json")
    return {
        "tried": [(one.number, one.values, one.state, one.value, one.curve) for one in found.tried],
        "retrained": [(one.values, one.validation, one.test) for one in found.retrained],
    }


def test_a_run_leaves_its_tables_its_network_and_its_page(done: tuple[Tuning, Path]) -> None:
    tuning, folder = done
    assert [one.number for one in tuning.tried] == [0, 1, 2, 3]
    assert tuning.check.ok
    assert tuning.proxy.size.params < tuning.dense.size.params
    best = ranked(tuning.tried, tuning.metric)
    assert [one.number for one in tuning.retrained] == [one.number for one in best[:2]]
    assert [len(one.history) for one in tuning.retrained] == [2, 2]
    accuracies = [one.validation.accuracy for one in tuning.retrained if one.validation]
    (chosen,) = [one for one in tuning.retrained if one.chosen]
    assert chosen.validation is not None
    assert chosen.validation.accuracy == max(accuracies)
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml", "tuning.json", "report.html", "study.db", "model.safetensors", "model.json"
    }  # fmt: skip
    assert load_tuning(folder / "tuning.json") == tuning


def test_a_trial_says_precision_pir_and_zeta_together(done: tuple[Tuning, Path]) -> None:
    tuning, _ = done
    before = tuning.before.precision
    for one in tuning.tried:
        assert one.quality is not None
        assert one.zeta == pytest.approx(one.quality.precision / before)
        assert one.pir == pir(before, one.quality.precision)
        assert one.value == one.quality.precision == one.curve[-1]
        assert len(one.curve) == 2


def test_the_chosen_network_in_the_folder_is_the_one_that_was_tested(
    done: tuple[Tuning, Path],
) -> None:
    from secateur.checkpoint import load
    from secateur.data import batches, load_data
    from secateur.measure import quality

    tuning, folder = done
    data = load_data("digits", limit=150, calibration=32, seed=3)
    found = quality(load(folder), batches(data.test, 50), "test")
    (chosen,) = [one for one in tuning.retrained if one.chosen]
    assert chosen.test is not None
    assert found.accuracy == chosen.test.accuracy


def test_trust_is_measured_on_both_networks(done: tuple[Tuning, Path]) -> None:
    (transfer,) = done[0].transfers
    assert transfer.sparsity == "50 % of the units removed"
    assert transfer.metric == "precision"
    rates = [pair.values["lr"] for pair in transfer.pairs]
    assert (min(rates), max(rates)) == (1e-4, 0.1)
    assert all(pair.proxy_seconds > 0 < pair.dense_seconds for pair in transfer.pairs)
    assert 1 <= transfer.rank <= 4


def test_the_page_and_the_tables_show_it(done: tuple[Tuning, Path], tmp_path: Path) -> None:
    tuning, _ = done
    page = render_tuning(tuning)
    for word in ("Best settings", "Zeta", "Do settings transfer?", "plot-surrogate",
                 "dense, before", "Kendall", "Inferences per second"):  # fmt: skip
        assert word in page
    files = write_tuning_tables(tuning, tmp_path)
    trials = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))["rows"]
    assert len(files) == 12
    assert [row["zeta"] for row in trials] == [one.zeta for one in tuning.tried]


def test_a_finished_run_is_read_and_not_repeated(done: tuple[Tuning, Path]) -> None:
    tuning, folder = done
    config = TuneConfig.model_validate(
        settings(folder.parent, trust={"settings": 4, "resamples": 100})
    )
    assert tune_run(config, resume=True) == tuning
    with pytest.raises(InputError, match="holds another run"):
        tune_run(config)


def test_a_killed_trial_loses_at_most_its_epoch_and_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    tuned(tmp_path / "calm")
    config = written(tmp_path / "killed")
    stages = tmp_path / "killed" / "run" / "stages"

    first = stages / "trial-0001" / "epoch-0001.json"
    killed_at(worker(config), first.is_file)
    stamp = first.stat().st_mtime_ns
    again = worker(config, "--resume")
    second = stages / "retrain-0000" / "epoch-0001.json"
    others = [stages / f"retrain-{number:04d}" / "epoch-0001.json" for number in range(1, 4)]
    kept: list[int] = []

    def retraining() -> bool:
        if first.is_file():
            kept.append(first.stat().st_mtime_ns)
        return any(path.is_file() for path in (second, *others))

    killed_at(again, retraining)
    # The epoch that was over before the first kill was not trained again.
    assert kept
    assert set(kept) == {stamp}
    finished_well(worker(config, "--resume"))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "calm")


def test_two_workers_do_no_trial_twice(tmp_path: Path) -> None:
    config = written(tmp_path, search={"trials": 6}, trust={"settings": 4, "resamples": 100})
    first = worker(config)
    limit = time.monotonic() + 120
    while not (tmp_path / "run" / "study.db").is_file():
        assert first.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    second = worker(config, "--resume")
    finished_well(first)
    finished_well(second)
    tuning = load_tuning(tmp_path / "run" / "tuning.json")
    assert [one.number for one in tuning.tried] == list(range(6))
    assert len({one.values["lr"] for one in tuning.tried}) == 6
    with closing(sqlite3.connect(tmp_path / "run" / "study.db")) as study:
        assert study.execute("select count(*) from trials").fetchone() == (6,)


def test_a_loss_that_is_no_number_is_the_worst_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = attempts.finetune

    def failing(model: Any, *rest: Any, **named: Any) -> Any:
        if named["phase"] == "trial 1":
            raise SecateurError("trial 1: the loss is nan at step 1 of epoch 1")
        return true(model, *rest, **named)

    monkeypatch.setattr(attempts, "finetune", failing)
    tuning = tuned(tmp_path)
    broken = tuning.tried[1]
    assert (broken.state, broken.value, broken.quality) == ("diverged", 0.0, None)
    assert "nan" in broken.note
    assert [one.state for one in tuning.tried].count("complete") == 3
    assert 1 not in [one.number for one in tuning.retrained]
    assert "diverged" in render_tuning(tuning)


def test_hopeless_trials_are_stopped_early(tmp_path: Path) -> None:
    tuning = tuned(
        tmp_path,
        search={
            "trials": 6,
            # From rates that train to rates that do not.
            "sampler": "grid",
            "space": {"lr": {"type": "log", "low": 1e-2, "high": 1e3}},
            "early_stopping": {"first": 1, "factor": 2},
            "objective": {"metric": "accuracy"},
        },
        finetune={"epochs": 4},
        top=1,
        retrain={"epochs": 1},
    )
    stopped = [one for one in tuning.tried if one.state == "stopped"]
    assert stopped
    assert all(len(one.curve) < 4 and one.value == one.curve[-1] for one in stopped)
    assert all(len(one.curve) == 4 for one in tuning.tried if one.state == "complete")


def test_a_proxy_that_learns_nothing_is_said_with_what_to_try() -> None:
    quality = Quality("validation", 10, 0.1, 0.0, 0.2, 0.1, 0.1, 0.1, 2.3)
    tried = (
        Tried(0, {"lr": 1e-12}, "complete", 0.0, 0.0, 1.0, quality, (0.0,), 1.0),
        Tried(1, {"lr": 1e-1}, "diverged", 0.0, None, None, None, (), 1.0, "nan"),
    )
    with pytest.raises(
        SecateurError, match=r"no setting of 2 trains .*\(1 ended .* lower sparsity"
    ):
        check_trained(tried, Objective("pir"), quality)
    better = Quality("validation", 10, 0.2, 0.0, 0.3, 0.2, 0.2, 0.2, 2.2)
    grown = (dataclasses.replace(tried[0], quality=better, value=0.2, pir=0.1), tried[1])
    for metric in QUALITY_METRICS:
        with pytest.raises(SecateurError, match=f"{metric} is no better than before"):
            check_trained(tried, Objective(metric), quality)
        check_trained(grown, Objective(metric), quality)
        with pytest.raises(SecateurError, match="no better than before"):
            check_trained(grown, Objective(metric), better)


def test_a_pir_that_tells_nothing_apart_is_said_with_what_to_try() -> None:
    quality = Quality("validation", 10, 0.1, 0.0, 0.2, 0.1, 0.1, 0.1, 2.3)
    tried = tuple(
        Tried(number, {"lr": 0.1}, "complete", value, 3.0, 1.0, quality, (value,), 1.0)
        for number, value in enumerate((1.0, 1.0, 0.4))
    )
    assert "1, its end, for 2 of 3 settings" in saturated(tried, Objective("pir"))
    assert saturated(tried[1:], Objective("pir")) != ""
    assert saturated(tried[2:], Objective("pir")) == ""
    assert saturated(tried, Objective("accuracy")) == ""


def test_bad_settings_are_named_at_once(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    raw["search"] |= {"space": {"lr": {"type": "log", "low": 1, "high": 0.1}}, "trials": 3}
    with pytest.raises(InputError, match="low must be below high"):
        parse(TuneConfig, raw, "tune.yaml")
    for key, value, told in (
        ("top", 9, "top must be at most 4"),
        ("start", "scratch", "start: must be one of initial, trained"),
        ("search", {"sampler": "tpee"}, "did you mean 'tpe'"),
        ("search", {"objective": {"metric": "auc"}}, "must be one of accuracy"),
        ("search", {"objective": {"at": 3}}, "at most 2"),
        ("search", {"beta": -1}, "at least 0"),
        ("finetune", {"epochs": 0}, "at least 1"),
        ("trust", {"settings": 2}, "greater than or equal to 4"),
        ("trust", {"settings": 5, "epochs": 1, "sparsities": [1.5]}, "1.5"),
    ):
        with pytest.raises(InputError, match=told):
            parse(TuneConfig, settings(tmp_path, **{key: value}), "tune.yaml")
