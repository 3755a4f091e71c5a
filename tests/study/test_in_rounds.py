"""A run in rounds: sizes of one shot, a stop that changes nothing, a teacher, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_runs import settings

import secateur
from secateur.errors import InputError
from secateur.results import Result
from secateur.rounds import state
from secateur.study import RunConfig, prune_run
from secateur.study.config import RoundSettings

ROUNDS = {"schedule": "linear", "number": 2}
SHORT = {"epochs": 1, "lr": 0.01}


def run(folder: Path, *, resume: bool = False, **over: Any) -> Result:
    config = RunConfig.model_validate(settings(folder, **{"finetune": SHORT, **over}))
    return prune_run(config, resume=resume)


def test_rounds_end_with_the_sizes_of_one_shot(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    once, turns = run(tmp_path / "a"), run(tmp_path / "b", rounds=ROUNDS)
    assert turns.pruned.size.params == once.pruned.size.params
    assert turns.pruned.size.macs == once.pruned.size.macs
    assert turns.widths == once.widths
    assert turns.check.ok
    assert [entry.phase for entry in turns.history] == ["round 1", "round 2"]
    assert "after 2 rounds" in turns.notes[0]
    loaded = secateur.load(tmp_path / "b" / "run")
    assert sum(p.numel() for p in loaded.parameters()) == turns.pruned.size.params
    assert not (tmp_path / "b" / "run" / "stages").exists()


def test_a_stop_between_rounds_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    run(tmp_path / "straight", rounds=ROUNDS)
    whole = state.keep

    def stop(*arguments: Any) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", rounds=ROUNDS)
    run(tmp_path / "stopped", rounds=ROUNDS, resume=True)
    left, right = (
        load_file(tmp_path / name / "run" / "model.safetensors") for name in ("straight", "stopped")
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("rounds", [{}, {"rounds": ROUNDS}], ids=["at once", "in rounds"])
def test_the_dense_network_teaches(rounds: dict[str, Any], tmp_path: Path) -> None:
    weights = []
    for name, over in (("alone", {}), ("taught", {"distill_weight": 0.5})):
        (tmp_path / name).mkdir()
        run(tmp_path / name, finetune={**SHORT, **over}, **rounds)
        weights.append(load_file(tmp_path / name / "run" / "model.safetensors"))
    alone, taught = weights
    assert any(not torch.equal(alone[name], taught[name]) for name in alone)


def test_targets_of_rounds() -> None:
    three = RoundSettings(schedule="linear", number=3)
    assert three.targets("sparsity", 0.6) == pytest.approx((0.2, 0.4, 0.6))
    found = three.targets("macs", 0.1)
    assert found == pytest.approx((0.7, 0.4, 0.1))
    assert found[-1] == 0.1  # 1 - (1 - 0.1) is another number
    assert RoundSettings().targets("params", 0.3) == (0.3,)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"rounds": {"number": 3}}, "rounds must be 1 with the schedule 'one-shot'"),
        ({"rounds": {"schedule": "cubical", "number": 3}}, "did you mean 'cubic'"),
        ({"rounds": {"schedule": "linear", "number": 0}}, "greater than or equal to 1"),
        ({"rounds": ROUNDS, "target": {"latency": 0.5}}, "rounds must be 1 with a target of lat"),
    ],
)
def test_bad_rounds(over: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, ValidationError), match=message):
        RunConfig.model_validate(settings(tmp_path, **over))
