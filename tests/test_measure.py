from __future__ import annotations

import gzip
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load, save_file
from torch import Tensor, nn

from secateur.errors import InputError, SecateurError
from secateur.measure import (
    calibration_error,
    device_of,
    environment,
    evaluating,
    quality,
    sparse_bytes,
    weight_bytes,
    wilson,
)


class Echo(nn.Module):
    """Takes its input for logits; notes its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes += [self.training, self.inner.training, torch.is_grad_enabled()]
        return x


def cut(logits: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(logits.split(size), labels.split(size), strict=True)


def test_quality_equals_the_slow_way() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(101, 5, generator=generator)
    labels = torch.randint(0, 5, (101,), generator=generator)
    found = quality(Echo(), cut(logits, labels, 8), "validation")

    truth, guess = labels.tolist(), logits.argmax(1).tolist()
    precisions, recalls, scores = [], [], []
    for name in range(5):
        both = sum(t == g == name for t, g in zip(truth, guess, strict=True))
        precision, recall = both / guess.count(name), both / truth.count(name)
        precisions.append(precision)
        recalls.append(recall)
        scores.append(2 * precision * recall / (precision + recall) if both else 0)
    hits = sum(t == g for t, g in zip(truth, guess, strict=True))
    shares = [
        math.exp(row[t]) / sum(map(math.exp, row))
        for row, t in zip(logits.tolist(), truth, strict=True)
    ]
    assert found.split == "validation"
    assert found.count == 101
    assert found.accuracy == hits / 101
    assert (found.low, found.high) == wilson(hits, 101)
    assert found.precision == pytest.approx(np.mean(precisions))
    assert found.recall == pytest.approx(np.mean(recalls))
    assert found.f1 == pytest.approx(np.mean(scores))
    assert found.loss == pytest.approx(-np.mean(np.log(shares)))


def test_a_class_never_predicted_has_precision_0() -> None:
    logits = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    found = quality(Echo(), [(logits, torch.tensor([0, 1]))], "test")
    assert (found.accuracy, found.precision, found.recall) == (0.5, 0.25, 0.5)


def test_every_mode_comes_back_even_after_an_error() -> None:
    model = Echo()
    model.train()
    model.inner.eval()
    batch = (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    quality(model, [batch], "test")
    assert model.modes == [False, False, False]
    assert (model.training, model.inner.training) == (True, False)
    with pytest.raises(InputError):
        quality(model, [(torch.zeros(1), batch[1])], "test")
    assert (model.training, model.inner.training) == (True, False)
    assert torch.is_grad_enabled()


def test_outputs_with_logits_are_read() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x)

    assert quality(Wrapped(), [(torch.eye(3), torch.arange(3))], "test").accuracy == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_an_error(value: float) -> None:
    logits = torch.zeros(4, 2)
    logits[2, 1] = value
    with pytest.raises(SecateurError, match="NaN or infinite for 1 of 4 images of split 'test'"):
        quality(Echo(), cut(logits, torch.zeros(4, dtype=torch.long), 3), "test")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one image, but split 'test' has none"),
        (
            [(torch.zeros(2, 3, 4), torch.zeros(2).long())],
            r"must return logits \[2, classes\], but gave",
        ),
        (
            [(torch.zeros(3, 4), torch.zeros(2).long())],
            r"must return logits \[2, classes\], but gave",
        ),
        ([(torch.zeros(2, 3), torch.tensor([0, 3]))], "has 3 and labels go from 0 to 3"),
        ([(torch.zeros(2, 3), torch.tensor([-1, 2]))], "has 3 and labels go from -1 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quality(Echo(), batches, "test")


def test_measuring_is_shown_and_the_bar_leaves() -> None:
    with Progress(disable=True) as progress:
        seen = []

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(2):
                seen.append([task.description for task in progress.tasks])
                yield torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)

        quality(Echo(), batches(), "test", progress=progress)
        assert seen == [["Measuring on test"]] * 2
        assert not progress.tasks


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Newcombe 1998, table I, method 3; the last one by symmetry from 0 of 29.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_newcombes_values(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    for hits, count in ((1, 7), (8320, 10_000), (3, 4)):
        for bound in wilson(hits, count):
            share = hits / count
            assert abs(share - bound) == pytest.approx(
                1.959964 * math.sqrt(bound * (1 - bound) / count), rel=1e-5
            )


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(hits: int, count: int) -> None:
    with pytest.raises(InputError, match="hits must be in"):
        wilson(hits, count)


def test_weight_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    written = (tmp_path / "w.safetensors").read_bytes()
    assert weight_bytes(model) == (len(written), len(gzip.compress(written, 6, mtime=0)))


def test_zeros_shrink_only_when_gzipped() -> None:
    model = nn.Linear(64, 64)
    raw, packed = weight_bytes(model)
    nn.init.zeros_(model.weight)
    assert weight_bytes(model)[0] == raw
    assert weight_bytes(model)[1] < packed / 4


def test_shared_views_and_odd_strides_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Module()
    big = torch.rand(4, 6)
    model.register_buffer("view", big[:2])
    model.register_buffer("turned", torch.rand(3, 5).t())
    model.register_parameter("first", nn.Parameter(torch.rand(7)))
    model.register_parameter("second", model.first)
    model.register_buffer("none", torch.empty(0))
    model.register_buffer("hidden", torch.rand(100), persistent=False)
    import secateur.measure as room

    kept: list[bytes] = []
    save = room.save
    monkeypatch.setattr(room, "save", lambda tensors: kept.append(save(tensors)) or kept[-1])
    weight_bytes(model)
    found = load(kept[0])
    assert set(found) == {"view", "turned", "first", "none"}
    assert torch.equal(found["view"], big[:2])
    assert torch.equal(found["turned"], model.turned)


def test_environment_says_what_was_used_and_no_names() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == str(torch.get_num_threads())
    assert {"secateur", "platform", "processor", "cores"} < set(found)
    assert all(isinstance(value, str) and value for value in found.values())
    assert platform.node() not in found.values()


def test_evaluating_and_device() -> None:
    model = nn.Dropout()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert device_of(model) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_five_guesses_and_the_calibration_are_measured() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 9, generator=generator)
    labels = torch.randint(0, 9, (60,), generator=generator)
    found = quality(Echo(), cut(logits, labels, 7), "test")
    ranks = (logits > logits.gather(1, labels.unsqueeze(1))).sum(1)
    assert found.top5 == pytest.approx(float((ranks < 5).double().mean()))
    sure, guess = logits.double().softmax(1).max(1)
    assert found.ece == calibration_error(sure.numpy(), (guess == labels).numpy())
    few = quality(Echo(), cut(logits[:, :5], labels.clamp(max=4), 7), "test")
    assert few.top5 is None


def test_a_sparse_container_holds_bits_and_values() -> None:
    layer = nn.Linear(64, 64, bias=False)
    whole = sparse_bytes(layer)
    assert whole - weight_bytes(layer)[0] < 100, "nothing is gained, so the tensor is as it was"
    with torch.no_grad():
        layer.weight[torch.arange(64 * 64).reshape(64, 64) % 4 != 0] = 0
    kept = 64 * 64 // 4 * 4 + 64 * 64 // 8
    assert kept < sparse_bytes(layer) < kept + 300
