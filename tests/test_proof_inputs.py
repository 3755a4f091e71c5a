"""Inputs that are drawn beside the example."""

from __future__ import annotations

from typing import Any

import torch

from secateur.proof_inputs import drawn_inputs


def test_floating_tensors_get_the_mean_and_spread_of_the_example() -> None:
    torch.manual_seed(0)
    x = 5 + 2 * torch.randn(1000, dtype=torch.float32)
    drawn: Any = drawn_inputs(x, 1)
    assert drawn.shape == x.shape
    assert drawn.dtype == x.dtype
    assert not torch.equal(drawn, x)
    assert abs(float(drawn.mean()) - 5) < 0.3
    assert abs(float(drawn.std()) - 2) < 0.2


def test_zeros_become_standard_normal_numbers() -> None:
    drawn: Any = drawn_inputs(torch.zeros(2, 500), 1)
    assert abs(float(drawn.std()) - 1) < 0.1


def test_masks_and_integers_beside_floating_tensors_stay() -> None:
    given = {
        "x": torch.ones(3, 4),
        "ids": torch.tensor([3, 1]),
        "mask": torch.tensor([0.0, 1.0]),
        "bias": torch.tensor([0.0, -torch.inf]),
        "flags": torch.tensor([True, False]),
        "name": "x",
    }
    drawn: Any = drawn_inputs(given, 1)
    assert not torch.equal(drawn["x"], given["x"])  # type: ignore[arg-type]
    for key in ("ids", "mask", "bias", "flags"):
        assert torch.equal(drawn[key], given[key]), key  # type: ignore[arg-type]
    assert drawn["name"] == "x"


def test_integers_alone_are_drawn_from_their_own_range() -> None:
    ids = torch.arange(3, 50)
    drawn: Any = drawn_inputs((ids,), 1)
    assert not torch.equal(drawn[0], ids)
    assert int(drawn[0].min()) >= 3
    assert int(drawn[0].max()) < 50


def test_nothing_is_drawn_for_integers_that_are_all_the_same() -> None:
    assert drawn_inputs(torch.zeros(4, dtype=torch.long), 1) is None


def test_an_empty_batch_gets_samples() -> None:
    drawn: Any = drawn_inputs((torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), 1)
    assert drawn[0].shape == (2, 3)
    assert drawn[1].shape == (2,)


def test_the_same_seed_draws_the_same() -> None:
    x = torch.zeros(2, 3)
    one, two, other = drawn_inputs(x, 1), drawn_inputs(x, 1), drawn_inputs(x, 2)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
