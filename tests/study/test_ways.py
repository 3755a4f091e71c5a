"""Every way to make a network smaller: what it leaves, that a stop changes nothing, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from small_runs import settings, write_residual
from torch import Tensor

import secateur
from secateur import finetune as finetune_room
from secateur.errors import InputError, PlanError
from secateur.results import Result
from secateur.rounds import state
from secateur.sparse_training import loop
from secateur.study import RunConfig, kept, prune_run
from secateur.study.reading import parse
from secateur.study.ways import GradualSettings
from secateur.training import devices

SHORT = {"epochs": 1, "lr": 0.01}
SPARSE = {"epochs": 3, "lr": 0.02, "optimizer": "sgd"}
# Few steps, so large ones; without momentum they do not overshoot.
FACTORS = {"factor_lr": 0.2, "momentum": 0.0, "train": SPARSE}
SELECT = {"method": "select", "strength": 0.8, **FACTORS}

WAYS: dict[str, dict[str, Any]] = {
    "bias": {"recover": "bias"},
    "recalibrate": {"recover": "recalibrate"},
    "least squares": {"recover": "least_squares", "criterion": "reconstruction"},
    "select": {"sparse": SELECT, "target": None},
    "select blocks": {"sparse": {"method": "select", "blocks": 0.8, **FACTORS},
                      "target": None, "model": "blocks"},
    "slim": {"sparse": {"method": "slim", "strength": 0.01, "train": SPARSE},
             "criterion": "norm_scale"},
    "slim in rounds": {"sparse": {"method": "slim", "train": SHORT},
                       "rounds": {"schedule": "geometric", "number": 2}},
    "grow": {"sparse": {"method": "grow", "grow": 0.05, "every": 2, "train": SPARSE}},
    "reconstruction in rounds": {"criterion": "reconstruction",
                                 "rounds": {"schedule": "cubic", "number": 2}},
    "weights": {"granularity": "weight", "criterion": "l1", "target": {"sparsity": 0.7}},
    "weights 2:4": {"granularity": "weight", "criterion": "taylor", "pattern": "2:4",
                    "target": None, "protect": ["9"]},
    "weights in rounds": {"granularity": "weight", "criterion": "l1", "scope": "global",
                          "target": {"sparsity": 0.7},
                          "rounds": {"schedule": "linear", "number": 2}},
    "weights gradually": {"granularity": "weight", "criterion": "l1", "target": {"sparsity": 0.7},
                          "gradual": {"frequency": 1}, "finetune": {"epochs": 3, "lr": 0.01}},
    "weights l1": {"granularity": "weight", "criterion": "l1", "target": {"sparsity": 0.7},
                   "sparse": {"method": "l1", "strength": 0.01, "train": SPARSE}},
}  # fmt: skip


def config_of(folder: Path, **over: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    raw = settings(folder, **{"finetune": SHORT, **over})
    if raw["model"] == "blocks":
        raw["model"] = write_residual(folder)
    return parse(RunConfig, raw, "")


def run(folder: Path, *, resume: bool = False, **over: Any) -> Result:
    return prune_run(config_of(folder, **over), resume=resume)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "run" / "model.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def stop_after(patch: Any, room: object, name: str, call: int) -> None:
    """Press Ctrl-C right after the given call of ``room.name``."""
    whole, calls = getattr(room, name), []

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        outcome = whole(*arguments, **keywords)
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return outcome

    patch.setattr(room, name, stopping)


STOPS: dict[str, list[tuple[object, str, int]]] = {
    "least squares": [(kept, "write_tensors", 1), (finetune_room, "write_state", 1)],
    "select": [(loop, "write_state", 2), (finetune_room, "write_state", 1)],
    "select blocks": [(loop, "write_state", 3)],
    "slim in rounds": [(loop, "write_state", 1), (state, "keep", 1)],
    "grow": [(loop, "write_state", 2)],
    "weights": [(kept, "write_tensors", 1), (finetune_room, "write_state", 1)],
    "weights in rounds": [(state, "keep", 1)],
    "weights gradually": [(finetune_room, "write_state", 2)],
    "weights l1": [(loop, "write_state", 1), (kept, "write_tensors", 1)],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Result, Path]]:
    """Return the result and the folder of a way, run once."""
    done: dict[str, tuple[Result, Path]] = {}

    def get(way: str) -> tuple[Result, Path]:
        if way not in done:
            folder = tmp_path_factory.mktemp("way")
            done[way] = run(folder, **WAYS[way]), folder
        return done[way]

    return get


Get = Callable[[str], tuple[Result, Path]]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_ends_with_a_proven_network(way: str, undisturbed: Get) -> None:
    result, folder = undisturbed(way)
    assert result.check.ok
    assert result.check.changed
    loaded = secateur.load(folder / "run")
    assert sum(p.numel() for p in loaded.parameters()) == result.pruned.size.params
    assert result.history
    assert not (folder / "run" / "stages").exists()
    assert (folder / "run" / "report.html").is_file()
    if "weights" in way:
        assert result.pruned.size.macs == result.dense.size.macs
        assert result.pruned.size.params == result.dense.size.params
        assert result.pruned.size.bytes_gzip < result.dense.size.bytes_gzip
    else:
        assert result.pruned.size.macs < result.dense.size.macs
        assert result.pruned.size.params < result.dense.size.params
        traced = secateur.trace(loaded, torch.zeros(2, 1, 8, 8)).cost()
        assert traced.macs == result.pruned.size.macs


def test_weights_are_zero_where_they_should_be(undisturbed: Get) -> None:
    for way in ("weights", "weights in rounds", "weights gradually", "weights l1"):
        result, folder = undisturbed(way)
        matrices = [t for t in weights(folder).values() if t.dim() > 1]
        zeros, whole = (sum(int(f(t)) for t in matrices) for f in (
            lambda t: (t == 0).sum(), torch.Tensor.numel))  # fmt: skip
        assert zeros == pytest.approx(0.7 * whole, abs=len(matrices))
        (told,) = (note for note in result.notes if "that may be masked are zero" in note)
        assert told.startswith(f"{zeros:,} of {whole:,} weights")
        assert {one.layer: (one.weights, one.zeros) for one in result.zeros} == {
            name.removesuffix(".weight"): (t.numel(), int((t == 0).sum()))
            for name, t in weights(folder).items()
            if t.dim() > 1
        }
        assert result.branches == ()


def test_two_of_four_stay_and_what_is_protected(undisturbed: Get) -> None:
    result, folder = undisturbed("weights 2:4")
    found = weights(folder)
    assert [one.layer for one in result.zeros] == ["0", "4"]
    assert bool((found["9.weight"] != 0).all())
    runs = found["4.weight"].movedim(1, -1).reshape(-1, 4)
    assert ((runs != 0).sum(1) == 2).all()


def test_recovery_is_told(undisturbed: Get) -> None:
    for way in ("bias", "recalibrate", "least squares"):
        recovery = WAYS[way]["recover"]
        assert f"recovered ({recovery})" in undisturbed(way)[0].notes[0]
        assert undisturbed(way)[0].asked["recover"] == recovery


def test_blocks_are_gone(undisturbed: Get) -> None:
    result, folder = undisturbed("select blocks")
    gone = [one.name for one in result.branches if one.gone]
    names = {name.rpartition(".")[0] for name in weights(folder)}
    for block in gone:
        assert f"{block}.conv1" not in names
        assert f"{block}.bn2" not in names
    widths = {width.layer: width.pruned for width in result.widths}
    assert widths[f"{gone[0]}.conv1"] == 0
    assert len(gone) in (1, 2, 3)
    assert len(result.branches) == 3
    assert all((one.factor == 0) == one.gone for one in result.branches)
    # Two 3x3 convolutions of 8 channels with bias, and two norms.
    assert [one.params for one in result.branches] == [2 * (8 * 8 * 9 + 8) + 2 * 16] * 3
    assert result.zeros == ()
    assert (folder / "run" / "branches.csv").is_file()


@pytest.mark.parametrize(
    ("way", "stop"), [(way, n) for way, stops in STOPS.items() for n in range(len(stops))]
)
def test_a_stop_changes_nothing(
    way: str, stop: int, undisturbed: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, *STOPS[way][stop])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **WAYS[way])
    result = run(tmp_path, resume=True, **WAYS[way])
    whole, folder = undisturbed(way)
    assert same(weights(tmp_path), weights(folder))
    assert result.pruned.quality == whole.pruned.quality
    assert result.notes[0] == whole.notes[0]
    assert [(e.phase, e.epoch) for e in result.history] == [
        (e.phase, e.epoch) for e in whole.history
    ]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"granularity": "wait"}, "granularity: must be one of structure, weight, but got 'wait'"),
    ({"granularity": "weight", "criterion": "fpgm"}, "criterion: element-wise criterion must be"),
    ({"granularity": "weight", "recover": "bias"},
     "recover must be none with granularity 'weight', but got 'bias'"),
    ({"granularity": "weight", "target": {"macs": 0.5}},
     r"target must be sparsity with granularity 'weight', but got {'macs': 0\.5}"),
    ({"granularity": "weight", "round_to": 8},
     "round_to must be left out with granularity 'weight', but got 8"),
    ({"granularity": "weight", "limits": {"*": 0.5}}, "limits must be left out with granularity"),
    ({"granularity": "weight", "scope": "isomorphic"}, "scope must be local or global"),
    ({"granularity": "weight", "sparse": {"method": "slim"}},
     "sparse.method must be l1 with granularity 'weight', but got 'slim'"),
    ({"granularity": "weight", "pattern": "2:4"}, "target must be left out with a pattern"),
    ({"granularity": "weight", "pattern": "4:2", "target": None}, "pattern: must be 'N:M'"),
    ({"granularity": "weight", "pattern": "2:4", "target": None,
      "rounds": {"schedule": "linear", "number": 2}}, "rounds must be 1 with a pattern, but got 2"),
    ({"granularity": "weight", "gradual": {}, "rounds": {"schedule": "linear", "number": 2}},
     "rounds must be 1 with gradual, but got 2"),
    ({"granularity": "weight", "gradual": {}, "finetune": {"epochs": 0}},
     "gradual must be left out without finetuning"),
    ({"granularity": "weight", "target": None}, "target: exactly one of sparsity, macs"),
    ({"pattern": "2:4", "target": None},
     "pattern must be left out with granularity 'structure', but got '2:4'"),
    ({"gradual": {"frequency": 2}},
     "gradual must be left out with granularity 'structure', which has rounds"),
    ({"recover": "magic"}, "recover: must be one of bias, least_squares, none, recalibrate"),
    ({"recover": "bias", "rounds": {"schedule": "linear", "number": 2}},
     "recover must be none with rounds, but got 'bias'"),
    ({"criterion": "reconstruction", "aggregation": "mean"},
     "aggregation must be sum with criterion 'reconstruction', but got 'mean'"),
    ({"criterion": "reconstruction", "options": {"p": 1}}, "options must be left out with crit"),
    ({"sparse": {"method": "thin"}}, "sparse.method: must be one of grow, l1, select, slim"),
    ({"sparse": {"method": "slim", "grow": 0.1}},
     r"grow must be left out with method 'slim', which has strength, but got 0\.1"),
    ({"sparse": {"method": "select"}, "target": None}, "strength must be given with method"),
    ({"sparse": {"method": "slim", "strength": 0}}, "sparse.strength: must be above 0"),
    ({"sparse": {"method": "slim", "train": {"patience": 2}}},
     "sparse.train: patience must be null in sparse training, but got 2"),
    ({"sparse": {"method": "slim", "train": {"epochs": 0}}}, "epochs must be at least 1"),
    ({"sparse": {"method": "l1"}}, "sparse.method must be select, slim or grow"),
    ({"sparse": SELECT}, r"target must be left out with sparse\.method 'select', whose zeros go"),
    ({"sparse": SELECT, "target": None, "recover": "bias"}, r"recover must be none with sparse"),
    ({"sparse": {"method": "grow"}, "rounds": {"schedule": "linear", "number": 2}},
     r"rounds must be 1 with sparse\.method 'grow', but got 2"),
    ({"trackers": ["tensorbored"]}, "trackers: must be one of .*did you mean 'tensorboard'"),
]  # fmt: skip


@pytest.mark.parametrize(("over", "told"), BAD, ids=[told[:50] for _, told in BAD])
def test_what_does_not_go_together_is_refused(
    over: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        config_of(tmp_path, **over)


def test_several_wrong_combinations_are_all_named(tmp_path: Path) -> None:
    over = {"granularity": "weight", "round_to": 8, "recover": "bias"}
    with pytest.raises(InputError, match=r"2 errors in the options:\n  round_to .*\n  recover "):
        config_of(tmp_path, **over)


CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"granularity": "weight", "gradual": {"end": 900}},
     r"gradual\.end must be at most \d+ \(the training's steps\), but got 900"),
    ({"granularity": "weight", "protect": ["nowhere"]}, "protect must match something"),
    ({"sparse": {"method": "select", "blocks": 0.1}, "target": None},
     r"sparse\.blocks need a residual branch that can go, but got none"),
    ({"sparse": SELECT, "target": None, "protect": ["*"]}, r"sparse\.strength needs a group that"),
]  # fmt: skip


@pytest.mark.parametrize(("over", "told"), CANNOT, ids=[told[:40] for _, told in CANNOT])
def test_what_this_network_cannot_is_refused_before_the_folder_is_claimed(
    over: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        run(tmp_path, **over)
    assert not (tmp_path / "run").exists()


def test_blocks_of_a_network_that_needs_its_factory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_residual(tmp_path)
    monkeypatch.chdir(tmp_path)
    sparse = {"method": "select", "blocks": 0.1}
    with pytest.raises(InputError, match=r"sparse\.blocks must be left out with model"):
        run(tmp_path, model="residual_net:odd", sparse=sparse, target=None)
    assert not (tmp_path / "run").exists()


def test_factors_that_never_become_zero_are_an_error(tmp_path: Path) -> None:
    sparse = {**SELECT, "strength": 1e-9}
    with pytest.raises(
        PlanError,
        match=r"no factor became zero in 3 epochs \(strength 1e-09, factor_lr 0\.2, momentum 0\)",
    ):
        run(tmp_path, sparse=sparse, target=None)


def test_the_end_of_gradual_pruning() -> None:
    assert GradualSettings().schedule(0.5, 200).end == 150
    assert GradualSettings(begin=10, end=40).schedule(0.5, 40).end == 40
    assert GradualSettings(begin=3).schedule(0.5, 4).end == 4


class TestTrackers:
    def test_without_its_package_it_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "get_available_trackers", list)
        with pytest.raises(InputError, match="trackers: name 'tensorboard', but its package is"):
            config_of(tmp_path, trackers=["tensorboard"])

    @pytest.mark.parametrize("way", ["weights", "weights in rounds", "slim in rounds"])
    def test_finetuning_is_handed_the_names_and_a_folder(
        self, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Enough(Exception):
            pass

        def seen(precision: str, trackers: Any, logs: Path) -> Any:
            assert tuple(trackers) == ("tensorboard",)
            assert logs.is_relative_to(tmp_path / "run" / "logs")
            raise Enough

        monkeypatch.setattr(devices, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
        monkeypatch.setattr(finetune_room, "accelerator_for", seen)
        with pytest.raises(Enough):
            run(tmp_path, **WAYS[way], trackers=["tensorboard"])

    def test_without_finetuning_they_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
        with pytest.raises(InputError, match="trackers must be left out without finetuning"):
            config_of(tmp_path, trackers=["tensorboard"], finetune={"epochs": 0})
