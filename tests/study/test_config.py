"""What settings allow, and how they read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import settings

from secateur.criteria import CRITERIA
from secateur.errors import InputError
from secateur.finetune import TrainSettings
from secateur.study import DemoConfig, RunConfig
from secateur.study.config import to_plain, to_yaml
from secateur.study.reading import differences, merge, parse, read_mapping


def problems(raw: dict[str, Any], kind: type = RunConfig) -> list[str]:
    with pytest.raises(InputError) as raised:
        parse(kind, raw, "run.yaml")
    head, *rest = str(raised.value).splitlines()
    if rest:
        assert head == f"{len(rest)} errors in run.yaml:"
        return [line.strip() for line in rest]
    return [head.removeprefix("run.yaml: ")]


def with_(folder: Path, path: str, value: Any) -> dict[str, Any]:
    """Settings with one value at ``a.b`` replaced or added."""
    raw = settings(folder)
    inner = raw
    *above, last = path.split(".")
    for key in above:
        inner = inner[key]
    inner[last] = value
    return raw


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = parse(RunConfig, settings(tmp_path), "")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(RunConfig, read_mapping(path), "") == config
    assert read_mapping(path) == to_plain(config)


def test_limits_keep_shares_and_numbers_apart(tmp_path: Path) -> None:
    limits = {"a": 1, "b": 1.0, "kind:head": 0.5, "*": 8}
    config = parse(RunConfig, {**settings(tmp_path), "limits": limits}, "")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    again = parse(RunConfig, read_mapping(path), "")
    assert {name: type(value) for name, value in again.limits.items()} == {
        "a": int, "b": float, "kind:head": float, "*": int,
    }  # fmt: skip
    assert again == config


def test_the_resolved_target_is_the_one_that_was_given(tmp_path: Path) -> None:
    assert to_plain(parse(RunConfig, settings(tmp_path), ""))["target"] == {"sparsity": 0.5}


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3"])
def test_a_rate_may_be_written_as_people_write_it(text: str, tmp_path: Path) -> None:
    raw = {**settings(tmp_path), "finetune": yaml.safe_load(f"lr: {text}")}
    assert parse(RunConfig, raw, "").finetune.lr == 0.001


class TestSeed:
    def test_the_runs_seed_is_the_trainings(self, tmp_path: Path) -> None:
        config = parse(RunConfig, settings(tmp_path, seed=7), "")
        assert config.finetune == TrainSettings(epochs=2, lr=0.01, seed=7)

    def test_a_training_may_have_its_own(self, tmp_path: Path) -> None:
        raw = settings(tmp_path, seed=7, finetune={"seed": 1})
        assert parse(RunConfig, raw, "").finetune.seed == 1

    def test_of_the_demo(self) -> None:
        config = parse(DemoConfig, {"seed": 5, "train": {"epochs": 1}}, "")
        assert (config.train.seed, config.finetune.seed) == (5, 5)
        assert config.finetune.epochs == DemoConfig().finetune.epochs
        assert config.train.lr == TrainSettings().lr


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("sead", 1, "sead: unknown key; did you mean 'seed'?"),
        ("data.sorce", "x", "data.sorce: unknown key; did you mean 'source'?"),
        ("finetune.epoch", 1, "finetune.epoch: unknown key; did you mean 'epochs'?"),
        ("target.mac", 1, "target.mac: unknown key; did you mean 'macs'?"),
        (
            "data.augment",
            {"flipp": 1},
            "data.augment.flipp: unknown key; did you mean 'flip'?",
        ),
        (
            "target.zzz",
            1,
            "target.zzz: unknown key; the keys are sparsity, macs, params, latency",
        ),
        (
            "criterion",
            "tayler",
            f"criterion: must be one of {', '.join(sorted([*CRITERIA, 'reconstruction']))}, "
            "but got 'tayler'; "
            "did you mean 'taylor'?",
        ),
        (
            "scope",
            "all",
            "scope: must be one of global, isomorphic, local, search, sensitivity, but got 'all'",
        ),
        (
            "target",
            {"sparsity": 1},
            "target: sparsity must satisfy 0 <= sparsity < 1, but got 1.0",
        ),
        (
            "target",
            {"sparsity": -0.1},
            "target: sparsity must satisfy 0 <= sparsity < 1, but got -0.1",
        ),
        ("target", {"macs": 0}, "target: macs must satisfy 0 < macs <= 1, but got 0.0"),
        (
            "target",
            {"macs": 0.5, "params": 0.5},
            "target: exactly one of sparsity, macs, params, latency must be given, "
            "but got macs, params",
        ),
        (
            "target",
            {},
            "target: exactly one of sparsity, macs, params, latency must be given, but got none",
        ),
        (
            "limits",
            {"8": 1.5},
            "limits: of '8' must be a share in [0.0, 1.0] that may go, "
            "or a whole number of units that stay, but got 1.5",
        ),
        ("max_sparsity", 2, "max_sparsity: must satisfy 0 <= max_sparsity <= 1, but got 2.0"),
        ("protect", "8", "protect: must be a valid tuple, but got '8'"),
        ("options", {"p": 3}, "options: criterion 'l2' has no options, but got 'p'"),
        (
            "aggregation",
            "men",
            "aggregation: must be one of first, max, mean, sum, but got 'men'; "
            "did you mean 'mean'?",
        ),
        (
            "normalisation",
            "men",
            "normalisation: must be one of l2, max, mean, none, rank, but got "
            "'men'; did you mean 'mean'?",
        ),
        ("timing", {"batch": 0}, "timing: batch must be at least 1, but got 0"),
        ("timing", {"bach": 1}, "timing.bach: unknown key; did you mean 'batch'?"),
        ("round_to", 0, "round_to: must be greater than or equal to 1, but got 0"),
        (
            "seed",
            "x",
            "seed: must be a valid integer, but got 'x'",
        ),
        ("speed.batches", [0], "speed.batches: must be at least 1 each, but got [0]"),
        ("data.augment", {"shift": 2}, "data.augment: shift must be in [0, 1], but got 2.0"),
    ],
)
def test_one_wrong_value_is_one_line(path: str, value: Any, told: str, tmp_path: Path) -> None:
    assert problems(with_(tmp_path, path, value)) == [told]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    raw = with_(tmp_path, "finetune", {"epochs": -1, "lr": 0, "momentum": 2})
    del raw["model"]
    raw["data"]["validation"] = 3
    raw["wieghts"] = "x"
    assert problems(raw) == [
        "finetune: epochs must be at least 0, but got -1",
        "finetune: lr must be above 0, but got 0.0",
        "finetune: momentum must be in [0, 1), but got 2.0",
        "model: is required",
        "data.validation: must be less than 1, but got 3",
        "wieghts: unknown key; did you mean 'weights'?",
    ]


def test_the_demo_checks_what_it_compares() -> None:
    assert problems({"criteria": ["tayler"], "sparsities": [1.0]}, DemoConfig) == [
        f"criteria: criterion must be one of {', '.join(CRITERIA)}, but got 'tayler'; "
        "did you mean 'taylor'?",
        "sparsities: sparsity must satisfy 0 <= sparsity < 1, but got 1.0",
    ]


class TestFile:
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("a: 1\nb: {c: 1\n", "is not valid YAML: .* \\(line 3, column 1\\)"),
            ("- 1\n", "must hold keys and values, but got list"),
            ("", "must hold keys and values, but got NoneType"),
            ("seed: 1\nmodel: x\nseed: 2\n", "'seed' twice \\(line 3, column 1\\)"),
            ("a: !!python/object:os.system x", "is not valid YAML"),
        ],
    )
    def test_that_is_none(self, text: str, told: str, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            read_mapping(path)

    def test_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read: No such file"):
            read_mapping(tmp_path / "run.yaml")

    def test_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="not a text file"):
            read_mapping(path)


def test_merge_goes_into_mappings_and_replaces_the_target() -> None:
    base = {"data": {"source": "a", "limit": 3}, "target": {"macs": 0.5}, "seed": 1}
    over = {"data": {"limit": 9}, "target": {"sparsity": 0.1}, "threads": 2}
    assert merge(base, over) == {
        "data": {"source": "a", "limit": 9},
        "target": {"sparsity": 0.1},
        "seed": 1,
        "threads": 2,
    }
    assert base["target"] == {"macs": 0.5}


def test_differences_name_the_path() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": 3}
    now = {"a": {"b": 1, "c": 4}, "e": 5}
    assert list(differences(before, now)) == [
        "a.c was 2, but got 4",
        "d was 3, but got None",
        "e was None, but got 5",
    ]
