"""Training: what it learns, what it refuses, and that a stop changes nothing."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import CheckpointError, InputError, SecateurError
from secateur.finetune import TrainSettings, finetune, learning_rate


def network(seed: int = 0) -> nn.Module:
    """Batch norm and dropout, so that buffers and random numbers count too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )


def samples(count: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loaders(count: int = 48) -> tuple[DataLoader, DataLoader]:
    shuffled = DataLoader(
        samples(count), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    return shuffled, DataLoader(samples(), batch_size=16)


class Stopping(DataLoader):
    """Presses Ctrl-C in front of a given batch, counted over all epochs."""

    def __init__(self, *arguments: object, stop: int, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]
        sampler, count = self.batch_sampler, itertools.count(1)

        class Sampler:
            batch_size = sampler.batch_size
            drop_last = False

            def __iter__(self) -> Iterator[list[int]]:
                for rows in sampler:
                    if next(count) == stop:
                        raise KeyboardInterrupt
                    yield rows

            def __len__(self) -> int:
                return len(sampler)

        self.__dict__["batch_sampler"] = Sampler()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


SETTINGS = [
    TrainSettings(epochs=5, lr=0.02, weight_decay=0.01),
    TrainSettings(epochs=5, lr=0.02, optimizer="adamw", schedule="constant"),
    TrainSettings(epochs=5, lr=0.1, optimizer="sgd", schedule="plateau", label_smoothing=0.1),
    TrainSettings(epochs=5, lr=0.1, optimizer="sgd", momentum=0.0, schedule="step", seed=5),
]


def interrupt(folder: Path, settings: TrainSettings, batch: int) -> None:
    train = Stopping(samples(), batch_size=8, shuffle=True, generator=torch.Generator(), stop=batch)
    with pytest.raises(KeyboardInterrupt):
        finetune(network(), train, loaders()[1], settings, folder=folder)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.optimizer}-{s.schedule}")
def test_resumed_training_ends_bit_for_bit_like_an_undisturbed_one(
    settings: TrainSettings, tmp_path: Path
) -> None:
    straight = network()
    history = finetune(straight, *loaders(), settings, folder=tmp_path / "straight")
    # The third epoch of six batches stops in the middle: two are whole.
    interrupt(tmp_path / "stopped", settings, batch=15)
    resumed = network(seed=99)
    torch.manual_seed(12345)
    told = finetune(resumed, *loaders(), settings, folder=tmp_path / "stopped", resume=True)
    assert same(straight.state_dict(), resumed.state_dict())
    assert [(e.epoch, e.lr, e.train_loss, e.val_loss, e.val_accuracy) for e in told] == [
        (e.epoch, e.lr, e.train_loss, e.val_loss, e.val_accuracy) for e in history
    ]


def test_resuming_a_finished_training_trains_nothing(tmp_path: Path) -> None:
    first, again = network(), network(seed=4)
    settings = TrainSettings(epochs=2)
    told = finetune(first, *loaders(), settings, folder=tmp_path)
    assert finetune(again, *loaders(), settings, folder=tmp_path, resume=True) == told
    assert same(first.state_dict(), again.state_dict())


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    interrupt(tmp_path, SETTINGS[0], batch=3)
    straight, resumed = network(), network()
    finetune(straight, *loaders(), SETTINGS[0])
    finetune(resumed, *loaders(), SETTINGS[0], folder=tmp_path, resume=True)
    assert same(straight.state_dict(), resumed.state_dict())


def test_training_learns_and_leaves_the_callers_random_state_alone() -> None:
    model = network()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    history = finetune(model, *loaders(), TrainSettings(epochs=25, lr=0.02))
    assert torch.equal(torch.rand(3), expected)
    assert history[-1].train_loss < history[0].train_loss
    assert max(entry.val_accuracy for entry in history) > 0.85
    assert not model.training


def test_the_best_epoch_comes_back() -> None:
    model, (train, validation) = network(), loaders()
    # A rate this high makes the last epochs differ from the best one.
    history = finetune(
        model, train, validation, TrainSettings(epochs=12, lr=0.3, schedule="constant")
    )
    inputs, labels = samples().tensors
    with torch.no_grad():
        logits = model(inputs)
    best = max(history, key=lambda entry: (entry.val_accuracy, -entry.val_loss))
    assert best.epoch != len(history)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(best.val_accuracy)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(best.val_loss)


def test_early_stopping_counts_epochs_without_a_lower_loss() -> None:
    settings = TrainSettings(epochs=60, lr=0.3, schedule="constant", patience=2)
    history = finetune(network(), *loaders(), settings)
    losses = [entry.val_loss for entry in history]
    assert len(history) < 60
    assert losses.index(min(losses)) == len(losses) - 3


def test_no_epochs_change_nothing() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert finetune(model, *loaders(), TrainSettings(epochs=0)) == ()
    assert same(before, model.state_dict())


def test_a_lone_last_sample_does_not_break_batch_norm() -> None:
    assert len(finetune(network(), *loaders(count=41), TrainSettings(epochs=1))) == 1


def test_a_loss_that_is_not_a_number_names_step_and_rate_and_keeps_the_best(
    tmp_path: Path,
) -> None:
    inputs, labels = samples().tensors
    poisoned = inputs.clone()
    poisoned[30] = math.nan
    clean = TrainSettings(epochs=2, schedule="constant", lr=0.02)
    reference = network()
    finetune(reference, *loaders(), clean)

    class Turning(TensorDataset):
        """Turns bad in the third epoch."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch
            self.tensors = (poisoned if epoch == 3 else inputs, labels)

    train = DataLoader(
        Turning(inputs, labels), batch_size=8, shuffle=True, generator=torch.Generator()
    )
    model = network()
    settings = TrainSettings(epochs=4, schedule="constant", lr=0.02)
    with pytest.raises(
        SecateurError, match=r"loss is nan at step \d of epoch 3 .*rate 0.02.*epoch"
    ):
        finetune(model, train, loaders()[1], settings, folder=tmp_path)
    assert same(model.state_dict(), reference.state_dict())
    assert (tmp_path / "epoch-0002.json").is_file()


class TestFolder:
    def test_keeps_the_last_two_epochs_and_the_best(self, tmp_path: Path) -> None:
        settings = TrainSettings(epochs=12, lr=0.3, schedule="constant")
        history = finetune(network(), *loaders(), settings, folder=tmp_path)
        best = max(history, key=lambda entry: (entry.val_accuracy, -entry.val_loss)).epoch
        weights = {path.name for path in tmp_path.glob("epoch-????.safetensors")}
        assert best < 11
        assert weights == {f"epoch-{epoch:04d}.safetensors" for epoch in (best, 11, 12)}
        assert not [p for p in tmp_path.iterdir() if p.suffix not in (".json", ".safetensors")]

    @pytest.mark.parametrize(
        "name", ["epoch-0002.json", "epoch-0002.safetensors", "epoch-0002.optimizer.safetensors"]
    )
    def test_a_checkpoint_cut_short_gives_way_to_the_one_before(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        straight, resumed = network(), network(seed=1)
        finetune(straight, *loaders(), SETTINGS[0])
        interrupt(tmp_path, SETTINGS[0], batch=15)
        broken = tmp_path / name
        broken.write_bytes(broken.read_bytes()[:-20])
        finetune(resumed, *loaders(), SETTINGS[0], folder=tmp_path, resume=True)
        assert same(straight.state_dict(), resumed.state_dict())
        assert name in caplog.text
        assert "the checkpoint before it is used" in caplog.text

    def test_all_checkpoints_damaged_is_an_error(self, tmp_path: Path) -> None:
        finetune(network(), *loaders(), TrainSettings(epochs=2), folder=tmp_path)
        for path in tmp_path.glob("*.json"):
            path.write_text("{")
        with pytest.raises(CheckpointError, match="every checkpoint"):
            finetune(network(), *loaders(), TrainSettings(epochs=2), folder=tmp_path, resume=True)

    def test_other_settings_cannot_resume(self, tmp_path: Path) -> None:
        finetune(network(), *loaders(), TrainSettings(epochs=1), folder=tmp_path)
        with pytest.raises(InputError, match=r"lr was 0\.001, but got 0\.5"):
            finetune(
                network(), *loaders(), TrainSettings(epochs=1, lr=0.5), folder=tmp_path, resume=True
            )

    def test_a_used_folder_needs_resume(self, tmp_path: Path) -> None:
        finetune(network(), *loaders(), TrainSettings(epochs=1), folder=tmp_path)
        with pytest.raises(InputError, match="holds a training; resume"):
            finetune(network(), *loaders(), TrainSettings(epochs=1), folder=tmp_path)

    def test_a_folder_that_cannot_be_written_is_an_error_before_training(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="folder must be writable"):
            finetune(
                network(), *loaders(), TrainSettings(epochs=1), folder=tmp_path / "file" / "below"
            )

    def test_resume_needs_a_folder(self) -> None:
        with pytest.raises(InputError, match="resume needs a folder"):
            finetune(network(), *loaders(), TrainSettings(epochs=1), resume=True)

    def test_numbers_are_json_and_tensors_safetensors(self, tmp_path: Path) -> None:
        finetune(network(), *loaders(), TrainSettings(epochs=1), folder=tmp_path)
        document = json.loads((tmp_path / "epoch-0001.json").read_text())
        assert document["asked"]["phase"] == "finetune"
        assert set(document["files"]) == {
            "epoch-0001.safetensors",
            "epoch-0001.optimizer.safetensors",
        }


class TestSettings:
    def test_all_broken_rules_are_named_at_once(self) -> None:
        with pytest.raises(InputError) as raised:
            TrainSettings(epochs=-1, lr=0.0, optimizer="adm", patience=0, lr_min=-1)
        assert str(raised.value).split("; ") == [
            "epochs must be at least 0, but got -1",
            "lr must be above 0, but got 0.0",
            "optimizer must be one of adam, adamw, sgd, but got 'adm'",
            "lr_min must be in [0, lr], but got -1",
            "patience must be at least 1 or null, but got 0",
        ]


class TestLearningRate:
    def test_constant(self) -> None:
        settings = TrainSettings(epochs=4, lr=0.3, schedule="constant")
        assert learning_rate(settings, 3.5, [1, 2, 3]) == 0.3

    @pytest.mark.parametrize(("when", "rate"), [(0, 1.0), (2, 0.55), (4, 0.1)])
    def test_cosine(self, when: float, rate: float) -> None:
        settings = TrainSettings(epochs=4, lr=1.0, lr_min=0.1)
        assert learning_rate(settings, when, []) == pytest.approx(rate)

    @pytest.mark.parametrize(
        ("when", "rate"), [(0, 1.0), (1.9, 1.0), (2, 0.5), (4.5, 0.25), (8, 0.2)]
    )
    def test_step(self, when: float, rate: float) -> None:
        settings = TrainSettings(
            epochs=9, lr=1.0, schedule="step", lr_factor=0.5, lr_every=2, lr_min=0.2
        )
        assert learning_rate(settings, when, []) == pytest.approx(rate)

    @pytest.mark.parametrize(
        ("losses", "rate"),
        [
            ([], 1.0),
            ([3, 2, 1], 1.0),
            ([3, 2, 2], 1.0),
            ([3, 2, 2, 4], 0.5),
            ([3, 2, 2, 4, 5], 0.5),
            ([3, 2, 2, 4, 5, 2], 0.25),
            ([3, 2, 2, 4, 1, 1], 0.5),
        ],
    )
    def test_plateau(self, losses: list[float], rate: float) -> None:
        settings = TrainSettings(epochs=9, lr=1.0, schedule="plateau", lr_factor=0.5, lr_every=2)
        assert learning_rate(settings, len(losses), losses) == pytest.approx(rate)


def test_training_leaves_no_attribute_behind() -> None:
    model = network()
    before = set(vars(model))
    finetune(model, *loaders(), TrainSettings(epochs=1))
    assert set(vars(model)) == before
