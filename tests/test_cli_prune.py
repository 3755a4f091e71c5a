"""Flags of ``secateur prune`` for schedules, recovery, weights and learned sparsity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import settings
from typer.testing import CliRunner

from secateur import study
from secateur.cli import app
from secateur.cli_prune import scheduled, without_old_target
from secateur.errors import InputError
from secateur.results import load_result
from secateur.study import RunConfig


class Seen(Exception):
    """Carries the settings out of the command."""


def asked(path: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return what the run would be asked, without running it."""

    def stop(config: RunConfig, **_: Any) -> None:
        raise Seen(config)

    monkeypatch.setattr(study, "prune_run", stop)
    outcome = CliRunner().invoke(app, ["prune", str(path), *words.split()])
    assert isinstance(outcome.exception, Seen), outcome.output
    config = outcome.exception.args[0]
    assert isinstance(config, RunConfig)
    return config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    return path


def test_flags_reach_the_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--criterion reconstruction --recover least_squares"
    config = asked(file, words, monkeypatch)
    assert (config.criterion, config.recover) == ("reconstruction", "least_squares")
    config = asked(file, "--schedule linear --rounds 3", monkeypatch)
    assert (config.rounds.schedule, config.rounds.number) == ("linear", 3)
    words = "--granularity weight --criterion l1 --schedule gradual --frequency 7"
    config = asked(file, words, monkeypatch)
    assert config.gradual is not None
    assert config.gradual.frequency == 7
    config = asked(file, "--granularity weight --criterion l1 --pattern 2:4", monkeypatch)
    assert (config.pattern, config.target) == ("2:4", None)
    words = "--sparse select --strength 0.1 --block-strength 0.2 --sparse-epochs 4"
    config = asked(file, words, monkeypatch)
    assert config.sparse is not None
    assert (config.sparse.method, config.sparse.strength) == ("select", 0.1)
    assert (config.sparse.blocks, config.sparse.train.epochs) == (0.2, 4)
    # The run's seed is this training's, too.
    assert (config.sparse.train.seed, config.target) == (3, None)


def test_a_run_by_flags_and_its_resume(file: Path, tmp_path: Path) -> None:
    words = [
        "prune",
        str(file),
        "--granularity",
        "weight",
        "--criterion",
        "l1",
        "--sparsity",
        "0.6",
    ]
    outcome = CliRunner().invoke(app, [*words, "--epochs", "1"])
    assert outcome.exit_code == 0, outcome.output
    first = (tmp_path / "run" / "result.json").read_bytes()
    assert load_result(tmp_path / "run" / "result.json").asked["granularity"] == "weight"
    again = ["prune", str(tmp_path / "run" / "config.yaml"), "--resume"]
    outcome = CliRunner().invoke(app, again)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "run" / "result.json").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--schedule linaer --rounds 2", "schedule must be one of cubic, geometric, gradual"),
        ("--schedule linear", "rounds must be given with --schedule linear, but got none"),
        ("--rounds 3", "rounds: must be 1 with the schedule 'one-shot', but got 3"),
        ("--schedule gradual --rounds 3", "rounds must be left out with --schedule gradual"),
        ("--frequency 3", "frequency must be left out without --schedule gradual, but got 3"),
        ("--schedule gradual", "gradual must be left out with granularity 'structure'"),
        ("--recover bios", "recover: must be one of bias, least_squares, none, recalibrate"),
        ("--pattern 2:4", "pattern must be left out with granularity 'structure'"),
        ("--sparse select", "sparse: strength must be given with method 'select'"),
        ("--strength 0.1", "sparse.method: is required"),
        ("--sparse select --strength 0.1 --sparsity 0.5", "target must be left out with sparse"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: str, told: str, file: Path) -> None:
    outcome = CliRunner().invoke(app, ["prune", str(file), *words.split()])
    assert outcome.exit_code == 2, outcome.output
    assert told in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (file.parent / "run").exists()


def test_a_schedule_replaces_the_files() -> None:
    rounds = {"rounds": {"schedule": "linear", "number": 4}}
    assert scheduled(rounds, None, None, None) == rounds
    assert scheduled(rounds, None, 2, None) == {"rounds": {"schedule": "linear", "number": 2}}
    assert scheduled(rounds, "cubic", None, None) == {"rounds": {"schedule": "cubic", "number": 4}}
    assert scheduled(rounds, "one-shot", None, None) == {"rounds": {"schedule": "one-shot"}}
    assert scheduled(rounds, "gradual", None, None) == {"gradual": {}}
    gradual = {"gradual": {"begin": 5}}
    assert scheduled(gradual, None, None, 9) == {"gradual": {"begin": 5, "frequency": 9}}
    assert scheduled(gradual, "linear", 2, None) == {"rounds": {"schedule": "linear", "number": 2}}
    with pytest.raises(InputError, match="frequency must be left out"):
        scheduled(rounds, "cubic", None, 3)


def test_a_flag_for_how_much_replaces_the_files() -> None:
    raw = {"target": {"sparsity": 0.5}, "seed": 1}
    assert without_old_target({**raw, "pattern": "2:4"}, {"pattern": "2:4"}) == {
        "seed": 1, "pattern": "2:4",
    }  # fmt: skip
    assert without_old_target(raw, {"sparse": {"method": "select"}}) == {"seed": 1}
    assert without_old_target(raw, {"sparse": {"method": "slim"}}) == raw
    assert without_old_target({**raw, "pattern": "2:4"}, {"target": {"sparsity": 0.5}}) == raw
