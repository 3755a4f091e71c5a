"""The demo, in small: what it compares, what it chooses, and that a stop changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from secateur.results import Point, Result
from secateur.study import DemoConfig, demo, demo_run, store

SMALL: dict[str, Any] = {
    "train": {"epochs": 2, "lr": 0.003},
    "finetune": {"epochs": 1},
    "criteria": ["l2", "taylor"],
    "sparsities": [0.3, 0.8],
    "trial_epochs": 1,
    "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
}


def point(accuracy: float, macs: int, loss: float = 1.0) -> Point:
    return Point("l2", "local", 0.5, "validation", accuracy, loss, params=1, macs=macs)


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([point(0.99, 50), point(0.98, 20), point(0.90, 5)], 1),
        ([point(0.99, 20), point(0.985, 20)], 0),
        ([point(0.98, 20, 0.5), point(0.98, 20, 0.4)], 1),
        ([point(0.90, 50), point(0.95, 70), point(0.93, 5)], 1),
        ([point(0.95, 50, 0.3), point(0.95, 70, 0.2)], 1),
    ],
    ids=["fewest MACs", "then accuracy", "then loss", "none is good", "none is good, then loss"],
)
def test_the_rule(points: list[Point], chosen: int) -> None:
    assert demo.choose(points, least=0.98) == chosen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    return demo_run(DemoConfig.model_validate({**SMALL, "output": str(folder)})), folder


def timeless(result: Result) -> dict[str, Any]:
    plain = dataclasses.asdict(result)
    for name in ("dense", "pruned"):
        del plain[name]["speeds"]
    del plain["facts"]["layers"]
    for entry in plain["history"]:
        del entry["seconds"]
    del plain["asked"]["output"]
    return {key: value for key, value in plain.items() if key != "environment"}


def test_compares_on_validation_and_measures_on_test(undisturbed: tuple[Result, Path]) -> None:
    result, _ = undisturbed
    assert [(p.criterion, p.sparsity) for p in result.points] == [
        ("l2", 0.3),
        ("l2", 0.8),
        ("taylor", 0.3),
        ("taylor", 0.8),
    ]
    assert {p.split for p in result.points} == {"validation"}
    (chosen,) = (p for p in result.points if p.chosen)
    assert result.pruned.size.params == chosen.params
    assert result.pruned.size.macs == chosen.macs
    assert result.dense.quality.split == result.pruned.quality.split == "test"
    assert [entry.phase for entry in result.history] == ["train", "train", "finetune"]
    assert result.check.ok
    assert result.check.changed


@pytest.mark.parametrize("stop", ["train", "points", "finetune"])
def test_a_stopped_demo_ends_like_an_undisturbed_one(
    stop: str,
    undisturbed: tuple[Result, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DemoConfig.model_validate({**SMALL, "output": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        if stop == "points":
            patch.setattr(store, "write_records", stopping(store.write_records, "points.json"))
        else:
            from secateur import finetune

            patch.setattr(finetune, "write_state", stopping(finetune.write_state, stop))
        with pytest.raises(KeyboardInterrupt):
            demo_run(config)
    assert timeless(demo_run(config, resume=True)) == timeless(undisturbed[0])


def stopping(function: Any, name: str) -> Any:
    def call(path: Path, *rest: Any) -> None:
        function(path, *rest)
        if path.name == name:
            raise KeyboardInterrupt

    return call
