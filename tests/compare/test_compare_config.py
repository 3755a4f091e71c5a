"""Settings of a study: problems named all at once, and settings that come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import asked, study

from secateur.compare import CompareConfig
from secateur.compare.config import plain, to_yaml
from secateur.compare.entries import ScheduleEntry
from secateur.compare.trials import grid, said
from secateur.criteria.orders import delta, interleave
from secateur.errors import InputError
from secateur.study.reading import parse


def refused(folder: Path, **over: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse(CompareConfig, asked(folder, **over), "study.yaml")
    return str(caught.value)


def test_all_problems_are_named_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    text = refused(
        tmp_path,
        critera=["l1"],
        sparsities=[0.5, 1.5],
        criteria=["l1", {"nam": "l2"}],
        scopes=["locl"],
        data={"source": "digits", "btch_size": 3},
    )
    assert "5 errors in study.yaml" in text or "6 errors in study.yaml" in text
    assert "critera: unknown key; did you mean 'criteria'?" in text
    assert "sparsity must satisfy 0 <= sparsity < 1, but got 1.5" in text
    assert "nam: unknown key; did you mean 'name'?" in text
    assert "did you mean 'local'?" in text
    assert "data.btch_size: unknown key; did you mean 'batch_size'?" in text


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"criteria": ["l1", "l1"]}, "each thing once, but 'l1' stands twice"),
        ({"criteria": ["taylr"]}, "did you mean 'taylor'?"),
        ({"criteria": [{"name": "l1", "options": {"x": 1}}]}, "has no options"),
        ({"criteria": [{"delta": ["l1"], "share": [0.5]}]}, "delta must hold two criteria"),
        ({"criteria": [{"delta": ["l1", "l2"]}]}, "share must list numbers"),
        ({"criteria": [{"delta": ["l1", "l2"], "share": [2]}]}, "share must be from 0 to 1"),
        ({"criteria": [{"interleave": ["l1"]}]}, "at least two criteria"),
        ({"criteria": [{"name": "l1", "share": [0.5]}]}, "share must list numbers"),
        ({"criteria": []}, "at least 1"),
        ({"sparsities": []}, "sparsities must list something"),
        ({"macs": [0.0]}, "macs: must satisfy 0 < macs <= 1"),
        ({"recoveries": ["magic"]}, "recoveries: must be one of"),
        ({"epochs": [-1]}, "whole numbers from 0"),
        ({"finetune": {"epochs": 3}}, "finetune.epochs must not be given: epochs lists them"),
        ({"finetune": {"warmup": 2}, "epochs": [1, 3]}, "finetune must fit 1 epochs: warmup"),
        ({"finetune": {"warmup": 4}, "epochs": [1, 3]}, "finetune: warmup must be in [0, 3]"),
        ({"choose": {"cost": "mac"}}, "did you mean 'macs'?"),
        ({"test": "always"}, "test: must be one of"),
        ({"score": "course"}, "did you mean 'course-project'?"),
        ({"granularities": ["weight"], "macs": [0.5]}, "sparsities must be the only target"),
        ({"granularities": ["weight"], "recoveries": ["bias"]}, "none or recalibrate"),
        ({"criteria": ["l1", {"name": "l2", "label": "l1"}]}, "labels of their own, but 'l1'"),
        ({"schedules": ["linea"]}, "did you mean 'linear'?"),
        ({"schedules": [{"number": 3}]}, "rounds must be 1 with the schedule 'one-shot'"),
        ({"schedules": [{"gradual": {}, "number": 2}]}, "gradual must stand alone"),
        ({"schedules": ["gradual"]}, "granularities must be weight alone"),
        (
            {"schedules": ["gradual"], "granularities": ["weight"], "epochs": [0]},
            "epochs must be above 0",
        ),
        (
            {"schedules": [{"schedule": "linear", "number": 2}], "recoveries": ["bias"]},
            "recoveries must be none",
        ),
        (
            {"criteria": [{"interleave": ["l1", "l2"]}], "scopes": ["isomorphic"]},
            "among global, local where criteria are mixed",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, over: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **over)


def test_settings_are_read_again_as_they_were_written(tmp_path: Path) -> None:
    config = study(
        tmp_path,
        criteria=["l1", {"interleave": ["l1", "taylor"]}, {"delta": ["l1", "l2"], "share": [0.5]}],
        finetune={"lr": 0.1, "warmup": 3},
        epochs=[0, 5],
        latency={"repeats": 3},
        schedules=["one-shot", {"schedule": "linear", "number": 2}],
    )
    again = CompareConfig.model_validate(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert plain(again) == plain(config)


def test_the_grid_has_every_combination_once(tmp_path: Path) -> None:
    config = study(
        tmp_path,
        criteria=["l1", {"delta": ["l1", "taylor"], "share": [0.0, 0.3]}],
        macs=[0.5],
        seeds=[0, 4],
        recoveries=["none", "bias"],
        epochs=[0, 2],
    )
    specs = grid(config)
    assert len(specs) == 3 * 3 * 2 * 2 * 2
    assert [spec.trial.number for spec in specs] == list(range(len(specs)))
    assert len({(*spec.trial.setup, spec.trial.seed) for spec in specs}) == len(specs)
    assert (
        said(specs[-1].trial) == "delta 0.3 (l1, taylor), local, macs 0.5, bias, 2 epochs, seed 4"
    )


def test_labels_stand_for_what_they_name(tmp_path: Path) -> None:
    relevance = {"name": "lrp", "options": {"rule": "epsilon"}, "label": "relevance"}
    mixtures = [
        {"interleave": ["l1", relevance]},
        {"delta": ["l1", relevance], "share": [0.0, 0.5]},
        {"delta": ["l2", relevance], "share": [0.5], "label": "mixed"},
    ]
    config = study(tmp_path, criteria=["l1", relevance, *mixtures], sparsities=[0.5])
    assert [spec.trial.criterion for spec in grid(config)] == [
        "l1", "relevance", "interleave (l1, relevance)", "delta 0 (l1, relevance)",
        "delta 0.5 (l1, relevance)", "mixed 0.5",
    ]  # fmt: skip
    assert grid(config)[1].rule.options == {"rule": "epsilon"}
    assert CompareConfig.model_validate(yaml.safe_load(to_yaml(config))) == config


def test_schedules_are_in_the_grid_and_share_the_epochs_out(tmp_path: Path) -> None:
    entries = ["one-shot", {"schedule": "cubic", "number": 3}, {"schedule": "linear", "number": 1}]
    specs = grid(study(tmp_path, schedules=entries[:2], epochs=[0, 7], sparsities=[0.5]))
    assert [spec.trial.schedule for spec in specs[:2]] == ["one-shot", "3 rounds, cubic"]
    assert said(specs[3].trial) == "l1, local, sparsity 0.5, 7 epochs, 3 rounds, cubic, seed 0"
    assert specs[3].schedule.epochs(7) == (2, 2, 3)
    assert specs[3].schedule.epochs(0) == (0, 0, 0)
    assert specs[3].schedule.epochs(1) == (0, 0, 1)
    assert ScheduleEntry.model_validate(entries[2]).at_once


def test_rules_become_the_criteria_they_name(tmp_path: Path) -> None:
    mixtures = [{"interleave": ["l1", "taylor"]}, {"delta": ["l1", "taylor"], "share": [0.3]}]
    config = study(tmp_path, criteria=mixtures, sparsities=[0.5])
    first, second = (spec.rule.criterion("global", "max") for spec in grid(config))
    assert first.name == interleave("l1", "taylor").name
    assert second.name == delta("l1", "taylor", 0.3).name
    assert first.options == second.options == {"scope": "global", "normalisation": "max"}
    assert first.needs_calibration


def test_the_study_in_the_documentation_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    config = parse(CompareConfig, yaml.safe_load(page.split("```")[1].removeprefix("yaml")), "docs")
    assert len(grid(config)) == 8 * 3 * 2 * 2 * 2 * 3
