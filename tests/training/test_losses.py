"""The training loss, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.training import TrainSettings, training_loss

LOGITS = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
TAUGHT = [[2.0, 0.5, -1.0], [0.3, 0.2, 0.1]]
LABELS = [0, 2]


def softmax(row: list[float], heat: float = 1.0) -> list[float]:
    powers = [math.exp(value / heat) for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(smoothing: float, share: float, heat: float) -> float:
    total = 0.0
    for row, teacher, label in zip(LOGITS, TAUGHT, LABELS, strict=True):
        wanted = [smoothing / 3 + (1 - smoothing) * (place == label) for place in range(3)]
        hard = -sum(w * math.log(p) for w, p in zip(wanted, softmax(row), strict=True))
        ours, theirs = softmax(row, heat), softmax(teacher, heat)
        soft = sum(q * math.log(q / p) for p, q in zip(ours, theirs, strict=True))
        total += (1 - share) * hard + share * heat * heat * soft
    return total / len(LABELS)


@pytest.mark.parametrize(("share", "heat"), [(0.5, 1.0), (0.9, 4.0), (1.0, 2.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distillation(share: float, heat: float, smoothing: float) -> None:
    asked = TrainSettings(label_smoothing=smoothing, distill_weight=share, distill_temperature=heat)
    found = training_loss(
        torch.tensor(LOGITS, dtype=torch.float64),
        torch.tensor(LABELS),
        asked,
        torch.tensor(TAUGHT, dtype=torch.float64),
    )
    assert float(found) == pytest.approx(by_hand(smoothing, share, heat), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_alone(smoothing: float) -> None:
    found = training_loss(
        torch.tensor(LOGITS, dtype=torch.float64),
        torch.tensor(LABELS),
        TrainSettings(label_smoothing=smoothing),
    )
    assert float(found) == pytest.approx(by_hand(smoothing, 0.0, 1.0), rel=1e-12)
