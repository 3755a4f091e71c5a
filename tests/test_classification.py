"""Training and measuring are for classifiers; what is none is refused before a weight moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.classification import class_logits, pair_of
from secateur.errors import InputError
from secateur.finetune import TrainSettings, finetune
from secateur.measure import quality
from secateur.sparse_training import train_sparse

X = torch.arange(32.0).reshape(8, 4) / 32
IMAGES = torch.arange(8 * 3 * 16.0).reshape(8, 3, 4, 4) / 384


def loader(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=4)


class Rows(nn.Module):
    """Logits for each place of a row, as taggers give them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[..., None]).transpose(1, 2)


CASES: dict[str, tuple[nn.Module, Any, str]] = {
    "regression": (nn.Linear(4, 1), loader(X, X[:, :1]), r"float32 \(4, 1\)"),
    "regression of whole numbers": (nn.Linear(4, 1), loader(X, X[:, 0].round()), "float32"),
    "one output": (nn.Linear(4, 1), loader(X, torch.arange(8) % 2), "has 1 and labels go from"),
    "several labels": (nn.Linear(4, 5), loader(X, (torch.rand(8, 5) > 0.5).float()), r"\(4, 5\)"),
    "several flags": (nn.Linear(4, 5), loader(X, torch.rand(8, 5) > 0.5), r"bool \(4, 5\)"),
    "segmentation": (nn.Conv2d(3, 4, 1), loader(IMAGES, torch.zeros(8, 4, 4).long()), "segment"),
    "places": (Rows(), loader(X, torch.zeros(8, 4).long()), r"int64 \(4, 4\)"),
    "places, one label": (Rows(), loader(X, torch.zeros(8).long()), r"gave \(4, 3, 4\)"),
    "images, one label": (nn.Conv2d(3, 4, 1), loader(IMAGES, torch.zeros(8).long()), "must return"),
    "a class too many": (nn.Linear(4, 2), loader(X, torch.arange(8) % 3), "labels go from"),
    "a label to ignore": (nn.Linear(4, 2), loader(X, torch.full((8,), -100)), "go from -100"),
    "no labels": (nn.Linear(4, 2), loader(X), "pairs of inputs and labels"),
    "three parts": (nn.Linear(4, 2), loader(X, X, torch.zeros(8)), "pairs of inputs and labels"),
    "a dictionary": (
        nn.Linear(4, 2),
        DataLoader([{"x": x, "y": 0} for x in X], batch_size=4),
        "pairs of inputs and labels",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_classifier_is_refused_and_left_as_it_was(name: str) -> None:
    model, batches, words = CASES[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for attempt in (
        lambda: finetune(model, batches, batches, TrainSettings(epochs=1)),
        lambda: train_sparse(model, batches, TrainSettings(epochs=1), strength=0.1),
        lambda: quality(model, batches, "test"),
    ):
        with pytest.raises(InputError, match=words):
            attempt()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_validation_is_checked_too() -> None:
    with pytest.raises(InputError, match="labels must be whole numbers"):
        finetune(nn.Linear(4, 2), loader(X, torch.arange(8) % 2), loader(X, X), TrainSettings(1))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_any_whole_numbers(kind: torch.dtype) -> None:
    data = loader(X, (torch.arange(8) % 2).to(kind))
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    (entry,) = finetune(model, data, data, TrainSettings(epochs=1, lr=0.1))
    found = quality(model, data, "test")
    with torch.no_grad():
        truth = nn.functional.cross_entropy(model(X), torch.arange(8) % 2)
    assert entry.val_loss == pytest.approx(float(truth), rel=1e-6)
    assert found.loss == pytest.approx(float(truth), rel=1e-6)
    assert entry.val_accuracy == found.accuracy <= 1


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.a(first) + self.b(second)


@pytest.mark.parametrize("named", [False, True])
def test_inputs_may_be_several(named: bool) -> None:
    pairs = [({"first": x, "second": -x} if named else (x, -x), i % 2) for i, x in enumerate(X)]
    data = DataLoader(pairs, batch_size=4)
    torch.manual_seed(0)
    model = Two()
    (entry,) = finetune(model, data, data, TrainSettings(epochs=1, lr=0.1))
    with torch.no_grad():
        truth = nn.functional.cross_entropy(model(X, -X), torch.arange(8) % 2)
    assert entry.val_loss == pytest.approx(float(truth), rel=1e-6)


def test_logits_of_what_models_return() -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    for output in (logits, SimpleNamespace(logits=logits), (logits, None)):
        assert class_logits(output, labels) is logits
    for output in ("text", None, (), SimpleNamespace(logits=None), logits.long()):
        with pytest.raises(InputError, match="must return logits"):
            class_logits(output, labels)


def test_pairs() -> None:
    inputs, labels = pair_of([X, torch.zeros(8, dtype=torch.int64)])
    assert inputs is X
    assert len(labels) == 8
    for batch in (X, None, [X, [0] * 8], "ab"):
        with pytest.raises(InputError):
            pair_of(batch)


# --- what is frozen stays so ---


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)
    )


def freeze_mode(model: nn.Sequential) -> None:
    model.train()
    model[1].eval()


def freeze_parameters(model: nn.Sequential) -> None:
    model.eval()
    model[1].requires_grad_(False)


def freeze_parameters_in_train_mode(model: nn.Sequential) -> None:
    model.train()
    model[1].requires_grad_(False)


def freeze_both(model: nn.Sequential) -> None:
    model.train()
    model[1].eval().requires_grad_(False)


@pytest.mark.parametrize(
    "freeze", [freeze_mode, freeze_parameters, freeze_parameters_in_train_mode, freeze_both]
)
def test_frozen_norms_stay_frozen(freeze: Any) -> None:
    data = loader(X * 3 + 2, torch.arange(8) % 2)
    for train in (
        lambda model: finetune(model, data, data, TrainSettings(epochs=2, lr=0.1)),
        lambda model: train_sparse(model, data, TrainSettings(epochs=2, lr=0.1), strength=0.01),
    ):
        model = normed()
        freeze(model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        train(model)
        after = model.state_dict()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert after[f"1.{name}"].equal(before[f"1.{name}"]), name
        assert not after["0.weight"].equal(before["0.weight"])


@pytest.mark.parametrize("mode", [True, False])
def test_norms_that_are_not_frozen_move(mode: bool) -> None:
    data = loader(X * 3 + 2, torch.arange(8) % 2)
    model = normed().train(mode)
    finetune(model, data, data, TrainSettings(epochs=1, lr=0.1))
    assert int(model[1].num_batches_tracked) == 2


def test_what_was_put_into_eval_mode_stays_there() -> None:
    seen: list[bool] = []
    data = loader(X, torch.arange(8) % 2)
    model = normed().train()
    model[3].eval()
    model[3].register_forward_hook(lambda module, *_: seen.append(module.training))
    finetune(model, data, data, TrainSettings(epochs=1))
    assert seen
    assert not any(seen)
