"""The verb: flags over the file, the page drawn again, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import yaml
from small import settings
from typer.testing import CliRunner

from secateur.cli import app
from secateur.tuning_results import load_tuning


def test_flags_override_the_file_and_the_page_can_be_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, top=1, retrain={"epochs": 1})))
    done = CliRunner().invoke(app, ["tune", str(path), "--trials", "2", "--sampler", "grid"])
    assert done.exit_code == 0, done.output
    assert "Chosen:" in done.output
    found = load_tuning(tmp_path / "run" / "tuning.json")
    assert [one.values["lr"] for one in found.tried] == [1e-4, 0.1]
    page = tmp_path / "run" / "report.html"
    before = page.read_bytes()
    page.unlink()
    again = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    assert page.read_bytes() == before
    assert (tmp_path / "run" / "trials.csv").is_file()


def test_what_is_wrong_is_said_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "tune.yaml"
    bad = settings(tmp_path, search={"space": {"lr": {"type": "log", "low": 1, "high": 0.1}}})
    path.write_text(yaml.safe_dump({**bad, "topp": 1}))
    done = CliRunner().invoke(app, ["tune", str(path)])
    assert done.exit_code == 2
    assert "did you mean 'top'" in done.output
    assert not (tmp_path / "run").exists()
