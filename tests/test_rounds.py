"""Rounds: counts to the unit, zeros that stay, stops that change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur import allocate, cut, score, trace
from secateur.errors import CheckpointError, InputError, PlanError
from secateur.finetune import TrainSettings, finetune, steps_per_epoch
from secateur.rounds import (
    MaskRule,
    gradual,
    keep_weights,
    next_masks,
    read_weights,
    structure_rounds,
    weight_rounds,
)
from secateur.rounds import state as state_room
from secateur.schedule import Cubic, cubic, kept, sparsities

SETTINGS = TrainSettings(epochs=2, lr=0.01, schedule="constant")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 13, 3), nn.BatchNorm2d(13), nn.ReLU(), nn.Flatten(),
            nn.Linear(13 * 4, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 10),
        )  # fmt: skip


EXAMPLE = torch.zeros(2, 1, 8, 8)


def loaders(count: int = 192) -> tuple[DataLoader, DataLoader]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    train = TensorDataset(images[:count], targets[:count])
    checks = TensorDataset(images[-128:], targets[-128:])
    generator = torch.Generator().manual_seed(0)
    return (
        DataLoader(train, batch_size=32, shuffle=True, generator=generator),
        DataLoader(checks, batch_size=128),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def zeros(model: nn.Module) -> dict[str, int]:
    return {n: int((p == 0).sum()) for n, p in model.named_parameters() if p.dim() > 1}


def stop_at(patch: pytest.MonkeyPatch, room: object, name: str, call: int) -> None:
    """Press Ctrl-C right after the given call of ``room.name``."""
    whole, calls = getattr(room, name), []

    def stopping(*arguments: Any, **keywords: Any) -> Any:
        outcome = whole(*arguments, **keywords)
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return outcome

    patch.setattr(room, name, stopping)


class TestLayerByLayerMagnitude:
    def test_each_layer_loses_its_smallest_and_they_stay_zero(self) -> None:
        model = network()
        begun = weights(model)
        shares = sparsities("linear", 0.75, 3)
        seen: list[dict[str, int]] = []
        masks, rounds = weight_rounds(
            model, *loaders(), SETTINGS, shares, each=lambda _, now: seen.append(zeros(now))
        )
        sizes = {name: value.numel() for name, value in begun.items() if value.dim() > 1}
        for found, share in zip(seen, shares, strict=True):
            assert found == {name: math.floor(share * n + 1e-9) for name, n in sizes.items()}
        for name, mask in masks.items():
            assert torch.equal(model.state_dict()[name] != 0, mask)
        assert [entry.history[0].phase for entry in rounds] == ["round 1", "round 2", "round 3"]
        total = sum(sizes.values())
        assert [entry.removed for entry in rounds] == [
            sum(found.values()) / total for found in seen
        ]
        assert rounds[-1].asked == 0.75

    def test_the_first_round_takes_the_smallest_of_the_dense_network(self) -> None:
        model = network()
        begun = weights(model)
        masks, _ = weight_rounds(model, *loaders(), SETTINGS, [0.4])
        for name, mask in masks.items():
            size = begun[name].abs()
            assert size[~mask].max() <= size[mask].min()

    def test_one_layer_after_the_other(self) -> None:
        model, seen = network(), list[dict[str, int]]()
        _, rounds = weight_rounds(
            model,
            *loaders(),
            TrainSettings(epochs=1, lr=0.01),
            [0.5],
            one_layer_at_a_time=True,
            each=lambda _, now: seen.append(zeros(now)),
        )
        names = list(seen[0])
        assert len(rounds) == len(names) == 4
        for number, found in enumerate(seen, start=1):
            assert [name for name in names if found[name]] == names[:number]

    def test_masks_only_tighten_even_where_the_criterion_draws(self) -> None:
        model = network()
        masks: dict[str, Tensor] = {}
        for share in (0.3, 0.5, 0.9):
            rule = MaskRule(criterion="random", scope="global", seed=int(share * 10))
            tighter = next_masks(model, rule, share, masks)
            assert not any(bool((tighter[name] & ~masks[name]).any()) for name in masks)
            masks = tighter
        removed = sum(int((~mask).sum()) for mask in masks.values())
        assert removed == math.floor(0.9 * sum(mask.numel() for mask in masks.values()) + 1e-9)

    def test_what_is_gone_goes_first_whatever_the_scores(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = network()
        generator = torch.Generator().manual_seed(0)

        def drawn(model: nn.Module, *_: Any, **__: Any) -> dict[str, Tensor]:
            return {n: torch.randn(p.shape, generator=generator) for n, p in begun.items()}

        begun = dict(model.named_parameters())
        monkeypatch.setattr("secateur.rounds.weights.element_scores", drawn)
        first = next_masks(model, MaskRule(), 0.5, {})
        second = next_masks(model, MaskRule(), 0.7, first)
        for name, mask in second.items():
            assert not bool((mask & ~first[name]).any())
            assert int((~mask).sum()) == math.floor(0.7 * mask.numel() + 1e-9)

    def test_rewound_rounds_start_from_the_early_weights(self, tmp_path: Path) -> None:
        model = network()
        finetune(model, *loaders(), SETTINGS, hook=keep_weights(3, tmp_path / "early.safetensors"))
        trained, early = weights(model), read_weights(tmp_path / "early.safetensors")
        nothing = TrainSettings(epochs=0)
        masks, _ = weight_rounds(model, *loaders(), nothing, [0.5], rewind=early)
        for name, value in model.state_dict().items():
            left = masks.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(value[left], early[name][left])
            assert not bool(value[~left].any())
            if name in masks:  # the trained weights chose, the early ones stay
                assert trained[name].abs()[~left].max() <= trained[name].abs()[left].min()

    def test_the_weights_kept_are_those_of_that_step(self, tmp_path: Path) -> None:
        steps = steps_per_epoch(loaders()[0], SETTINGS)
        once = network()
        finetune(once, *loaders(), TrainSettings(epochs=1, lr=0.01, schedule="constant"))
        path = tmp_path / "new" / "w.safetensors"
        finetune(network(), *loaders(), SETTINGS, hook=keep_weights(steps, path))
        assert same(read_weights(path), weights(once))
        finetune(network(), *loaders(), SETTINGS, hook=keep_weights(0, path))
        assert same(read_weights(path), weights(network()))


class TestStops:
    @pytest.mark.parametrize(
        ("room", "name", "call"),
        [
            ("secateur.finetune", "write_state", 1),
            ("secateur.finetune", "write_state", 4),
            ("secateur.rounds.state", "keep", 1),
            ("secateur.rounds.state", "keep", 3),
        ],
    )
    @pytest.mark.parametrize("kind", ["weights", "structures"])
    def test_stopped_rounds_end_like_undisturbed_ones(
        self, kind: str, room: str, name: str, call: int, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        import importlib

        def go(folder: Path, resume: bool) -> tuple[dict[str, Tensor], list[Any]]:
            shares = sparsities("geometric", 0.6, 3)
            model = network()
            given = {"folder": folder, "resume": resume}
            if kind == "weights":
                _, rounds = weight_rounds(model, *loaders(), SETTINGS, shares, **given)
                return weights(model), [entry.removed for entry in rounds]
            outcome = structure_rounds(model, EXAMPLE, *loaders(), SETTINGS, shares, **given)
            assert same(weights(model), weights(network()))
            return weights(outcome.model), [entry.removed for entry in outcome.rounds]

        straight = go(tmp_path / "straight", False)
        with monkeypatch.context() as patch:
            stop_at(patch, importlib.import_module(room), name, call)
            with pytest.raises(KeyboardInterrupt):
                go(tmp_path / "stopped", False)
        with pytest.raises(InputError, match="holds rounds; resume"):
            go(tmp_path / "stopped", False)
        resumed = go(tmp_path / "stopped", True)
        assert same(straight[0], resumed[0])
        assert straight[1] == resumed[1]
        left = {path.name for path in (tmp_path / "stopped").iterdir()}
        assert left == {path.name for path in (tmp_path / "straight").iterdir()}
        assert {name.split(".")[0] for name in left} == {"round-0002", "round-0003"}

    def test_a_damaged_round_gives_way_to_the_one_before(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        straight, again = network(), network()
        weight_rounds(straight, *loaders(), SETTINGS, [0.3, 0.6], folder=tmp_path)
        path = tmp_path / "round-0002.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        weight_rounds(again, *loaders(), SETTINGS, [0.3, 0.6], folder=tmp_path, resume=True)
        assert same(weights(straight), weights(again))
        assert "round-0002.safetensors is missing or cut short" in caplog.text
        assert "the round before it is used" in caplog.text
        for path in tmp_path.glob("*.json"):
            path.write_text("{")
        with pytest.raises(CheckpointError, match="every round kept in"):
            weight_rounds(again, *loaders(), SETTINGS, [0.3, 0.6], folder=tmp_path, resume=True)

    def test_other_settings_cannot_resume(self, tmp_path: Path) -> None:
        weight_rounds(network(), *loaders(), SETTINGS, [0.3], folder=tmp_path)
        with pytest.raises(InputError, match=r"sparsities was \[0.3\], but got \[0.4\]"):
            weight_rounds(network(), *loaders(), SETTINGS, [0.4], folder=tmp_path, resume=True)


class TestGradual:
    def test_the_sparsity_of_each_step_is_the_schedules(self) -> None:
        model, found = network(), list[float]()
        steps = steps_per_epoch(loaders()[0], SETTINGS)
        rule = Cubic(0.8, begin=2, end=2 * steps - 2, frequency=3, initial=0.2)
        hook = gradual(rule)
        whole = hook.after

        def watched(now: nn.Module, step: int, masks: Any) -> Any:
            changed = whole(now, step, masks)
            current = masks if changed is None else changed
            left = [int(mask.sum()) / mask.numel() for mask in current.values()]
            found.append(1 - min(left, default=1.0))
            return changed

        object.__setattr__(hook, "after", watched)
        finetune(model, *loaders(), SETTINGS, hook=hook)
        assert len(found) == 2 * steps + 1
        for step, share in enumerate(found):
            # The largest layer is within one weight of it.
            assert share == pytest.approx(cubic(rule, step), abs=1 / 200)
        total = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
        assert zeros(model) == {name: math.floor(0.8 * n + 1e-9) for name, n in total.items()}

    def test_the_best_epoch_is_one_of_the_final_sparsity(self, tmp_path: Path) -> None:
        steps = steps_per_epoch(loaders()[0], SETTINGS)
        # Nearly everything goes in the third epoch, so the first two are far better.
        hook = gradual(Cubic(0.97, begin=2 * steps + 1, end=2 * steps + 3))
        settings = TrainSettings(epochs=4, lr=0.02, schedule="constant", patience=1)
        model = network()
        history = finetune(model, *loaders(), settings, hook=hook, folder=tmp_path)
        accuracies = [entry.val_accuracy for entry in history]
        assert max(accuracies[:2]) > max(accuracies[2:])
        total = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
        assert zeros(model) == {name: math.floor(0.97 * n + 1e-9) for name, n in total.items()}

    # With 8, the steps from the stop at 12 to the update at 18 have the masks of step 11.
    @pytest.mark.parametrize("every", [2, 8])
    def test_a_stop_changes_nothing(
        self, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from secateur import finetune as room

        steps = steps_per_epoch(loaders()[0], SETTINGS)
        settings = TrainSettings(epochs=4, lr=0.02, optimizer="sgd", weight_decay=0.01)
        rule = Cubic(0.9, begin=steps // 2, end=3 * steps, frequency=every)
        straight, resumed = network(), network()
        finetune(straight, *loaders(), settings, hook=gradual(rule))
        given = {"hook": gradual(rule), "folder": tmp_path}
        with monkeypatch.context() as patch:
            stop_at(patch, room, "write_state", 2)
            with pytest.raises(KeyboardInterrupt):
                finetune(network(), *loaders(), settings, **given)
        finetune(resumed, *loaders(), settings, resume=True, **given)
        assert same(weights(straight), weights(resumed))
        with pytest.raises(InputError, match="hook was"):
            finetune(resumed, *loaders(), settings, resume=True, folder=tmp_path,
                     hook=gradual(Cubic(0.9, begin=1, end=3 * steps, frequency=2)))  # fmt: skip

    def test_a_schedule_longer_than_the_training_is_refused(self) -> None:
        with pytest.raises(InputError, match="must end within the training's 12 steps"):
            finetune(network(), *loaders(), SETTINGS, hook=gradual(Cubic(0.5, 0, 13)))


class TestStructures:
    @pytest.mark.parametrize("name", ["linear", "geometric", "cubic"])
    def test_rounds_end_with_the_sizes_of_one_shot(self, name: str) -> None:
        model = network()
        shares = sparsities(name, 0.55, 3)
        outcome = structure_rounds(model, EXAMPLE, *loaders(), SETTINGS, shares)
        graph = trace(model, EXAMPLE)
        once = allocate(graph, score(graph, "l2"), sparsity=0.55)
        assert outcome.plans[-1].pruned == once.pruned
        assert outcome.rounds[-1].removed == 1 - once.pruned.params / once.dense.params
        sizes = [tuple(entry.removed for entry in outcome.rounds)]
        assert sizes == [tuple(sorted(sizes[0]))]
        conv, dense = outcome.model[4], outcome.model[8]
        assert (conv.out_channels, dense.out_features) == (13 - 7, 20 - 11)

    def test_without_training_rounds_are_one_cut_by_their_one_plan(self) -> None:
        model = network()
        outcome = structure_rounds(
            model, EXAMPLE, *loaders(), TrainSettings(epochs=0), [0.2, 0.4, 0.7],
            criterion="random", seed=4, scoring={"aggregation": "mean"},
        )  # fmt: skip
        at_once = cut(model, outcome.plan)
        assert same(weights(at_once), weights(outcome.model))
        assert outcome.plan.pruned == outcome.plans[-1].pruned
        assert {name: len(units) for name, units in outcome.plan.removed.items()} == {
            name: math.floor(0.7 * size) for name, size in outcome.plan.sizes.items()
        }

    @pytest.mark.parametrize("name", ["resnext", "vit", "llama", "lstm"])
    def test_units_keep_their_places_in_any_network(self, name: str) -> None:
        model = build(name)
        none = DataLoader(TensorDataset(torch.zeros(2, 1)), batch_size=2)
        outcome = structure_rounds(
            model, NETWORKS[name].inputs(2), none, none, TrainSettings(epochs=0), [0.02, 0.3, 0.6]
        )
        left, right = weights(cut(model, outcome.plan)), weights(outcome.model)
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert torch.allclose(value, right[key], rtol=1e-12, atol=0)

    def test_macs_are_counted_on_the_dense_network(self) -> None:
        model, found = network(), list[float]()
        outcome = structure_rounds(
            model,
            EXAMPLE,
            *loaders(),
            TrainSettings(epochs=1, lr=0.01),
            kept(sparsities("linear", 0.6, 3)),
            target="macs",
            allocation={"scope": "global"},
        )
        dense = trace(model, EXAMPLE).cost().macs
        found = [plan.pruned.macs / dense for plan in outcome.plans]
        for share, asked in zip(found, (0.8, 0.6, 0.4), strict=True):
            assert asked - 0.12 < share <= asked

    def test_rewound_units_have_their_early_weights(self) -> None:
        model = network()
        early = weights(network(seed=5))
        outcome = structure_rounds(
            model, EXAMPLE, *loaders(), TrainSettings(epochs=0), [0.3, 0.5], rewind=early
        )
        whole, part = early["0.weight"], outcome.model.state_dict()["0.weight"]
        places = [
            next(i for i in range(len(whole)) if torch.equal(whole[i], filter_)) for filter_ in part
        ]
        assert len(places) == 4
        assert places == sorted(places)
        assert same(weights(model), weights(network()))

    def test_training_between_cuts_recovers(self) -> None:
        model = network()
        settings = TrainSettings(epochs=6, lr=0.01)
        finetune(model, *loaders(640), settings)
        outcome = structure_rounds(
            model, EXAMPLE, *loaders(640), settings, sparsities("linear", 0.5, 2)
        )
        assert max(entry.val_accuracy for entry in outcome.rounds[-1].history) > 0.8


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"sparsities": []}, "must name at least one round"),
        ({"sparsities": [0.5, 0.4]}, "must never fall"),
        ({"sparsities": [1.0]}, "0 <= sparsity < 1"),
        ({"settings": [SETTINGS] * 3}, r"settings must be one, or 2 \(a round each\), but got 3"),
        ({"rewind": {}}, "rewind must hold the model's tensors"),
        ({"resume": True}, "resume needs a folder"),
    ],
)
def test_bad_weight_rounds(over: dict[str, Any], message: str) -> None:
    given = {"settings": SETTINGS, "sparsities": [0.2, 0.4], **over}
    with pytest.raises(InputError, match=message):
        weight_rounds(network(), *loaders(), **given)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"targets": []}, "must name at least one round"),
        ({"targets": [0.5, 0.6], "target": "macs"}, "never give back"),
        ({"target": "flops"}, "target must be one of sparsity, params, macs"),
        ({"criterion": "l3"}, "criterion must be one of"),
    ],
)
def test_bad_structure_rounds(over: dict[str, Any], message: str) -> None:
    given = {"settings": SETTINGS, "targets": [0.2, 0.4], **over}
    with pytest.raises(InputError, match=message):
        structure_rounds(network(), EXAMPLE, *loaders(), **given)


def test_nothing_to_mask() -> None:
    with pytest.raises(PlanError, match="no weights"):
        weight_rounds(nn.Sequential(nn.BatchNorm1d(3)), *loaders(), SETTINGS, [0.5])


def test_rounds_kept_elsewhere_are_not_mixed_up(tmp_path: Path) -> None:
    assert state_room.begin(tmp_path, True, {}) is None
    with pytest.raises(CheckpointError, match="holds no weights to rewind to"):
        read_weights(tmp_path / "nothing")
    with pytest.raises(InputError, match="step must be at least 0"):
        keep_weights(-1, tmp_path / "w")
