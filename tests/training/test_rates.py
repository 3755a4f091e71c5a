"""Learning rates against traces written by hand."""

from __future__ import annotations

import math

import pytest

from secateur.training import TrainSettings, flat_epochs, learning_rate


class TestPlateau:
    # What Keras documents of ReduceLROnPlateau: "once learning stagnates", that is `patience`
    # epochs without an improvement of more than `min_delta`, the rate is multiplied by `factor`,
    # down to `min_lr`; the count then starts again, the best loss stays.
    TRACE = (
        # loss of the epoch, rate of the epoch after it
        (1.00, 0.1),
        (0.90, 0.1),
        (0.895, 0.1),  # lower, but not by more than 0.01: flat 1
        (0.92, 0.1),  # flat 2
        (0.891, 0.05),  # flat 3: halved; compared with 0.90, so still no improvement
        (0.80, 0.05),  # lower
        (0.81, 0.05),
        (0.82, 0.05),
        (0.83, 0.025),
        (0.84, 0.025),
        (0.84, 0.025),
        (0.84, 0.02),  # would be 0.0125
        (0.10, 0.02),
    )

    def test_as_keras_reduces(self) -> None:
        asked = TrainSettings(
            epochs=20, lr=0.1, schedule="plateau", lr_factor=0.5, lr_every=3, lr_min=0.02,
            min_delta=0.01,
        )  # fmt: skip
        losses: list[float] = []
        assert learning_rate(asked, 0, losses) == 0.1
        for loss, rate in self.TRACE:
            losses.append(loss)
            assert learning_rate(asked, len(losses) + 0.5, losses) == pytest.approx(rate)


class TestWarmUp:
    @pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau"])
    def test_it_grows_in_a_straight_line(self, schedule: str) -> None:
        asked = TrainSettings(
            epochs=10, lr=1.0, lr_min=0.2, warmup=2.5, schedule=schedule, lr_every=3
        )
        for when in (0.0, 0.5, 1.25, 2.4):
            expected = 0.2 + 0.8 * when / 2.5
            assert learning_rate(asked, when, []) == pytest.approx(expected)
        assert learning_rate(asked, 2.5, []) == pytest.approx(1.0)

    def test_the_cosine_has_the_rest(self) -> None:
        asked = TrainSettings(epochs=10, lr=1.0, warmup=2)
        for when in (2, 3.5, 6, 9, 10):
            expected = (1 + math.cos(math.pi * (when - 2) / 8)) / 2
            assert learning_rate(asked, when, []) == pytest.approx(expected)

    def test_nothing_but_warm_up(self) -> None:
        asked = TrainSettings(epochs=2, lr=1.0, warmup=2)
        assert learning_rate(asked, 1.0, []) == 0.5


@pytest.mark.parametrize(
    ("losses", "delta", "flat"),
    [
        ([], 0, 0),
        ([2.0], 0, 0),
        ([2.0, 2.0], 0, 1),
        ([2.0, 1.0, 1.5, 1.0], 0, 2),
        ([2.0, 1.95, 1.91], 0.1, 2),
        ([2.0, 1.95, 1.89], 0.1, 0),
    ],
)
def test_epochs_since_a_lower_loss(losses: list[float], delta: float, flat: int) -> None:
    assert flat_epochs(losses, delta) == flat
