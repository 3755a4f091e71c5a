"""The proof must fail when the cut is wrong, and must say when it proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.errors import InputError
from secateur.planning import make_plan


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten(), nn.Linear(24, 5)
    ).eval()


def image(n: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 3, 4, 4)


def prepared(model: Any) -> tuple[Any, secateur.Plan]:
    graph = secateur.trace(model, image())
    plan = make_plan(graph, {"0": (1, 4)})
    return secateur.cut(model, plan), plan


def test_a_right_cut_passes_and_says_how() -> None:
    model = network()
    pruned, plan = prepared(model)
    check = secateur.verify(model, pruned, plan, image())
    assert (check.ok, check.changed, check.dtype) == (True, True, "float64")
    assert check.max_error <= check.tolerance == 1e-10
    check = secateur.verify(model, pruned, plan, image(), dtype=torch.float32)
    assert (check.ok, check.changed, check.dtype) == (True, True, "float32")
    assert check.max_error <= check.tolerance == 1e-4


def swap(pruned: Any, *rows: int) -> None:
    order = list(range(4))
    order[rows[0]], order[rows[1]] = order[rows[1]], order[rows[0]]
    pruned[0].weight.copy_(pruned[0].weight[order].clone())


def nudge(pruned: Any) -> None:
    pruned[4].weight[0, 0] += 1e-6


WRONG: dict[str, Callable[[Any], None]] = {
    "two channels swapped": lambda pruned: swap(pruned, 0, 2),
    "a bias forgotten": lambda pruned: pruned[0].bias.zero_(),
    "a statistic shifted": lambda pruned: pruned[1].running_mean.copy_(
        pruned[1].running_mean.roll(1) + torch.arange(4) * 1e-3
    ),
    "one weight off by a millionth": nudge,
    "a column of another channel": lambda pruned: pruned[4].weight.copy_(
        pruned[4].weight.roll(4, 1)
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_cut_is_found(what: str) -> None:
    model = network()
    pruned, plan = prepared(model)
    with torch.no_grad():
        WRONG[what](pruned)
    check = secateur.verify(model, pruned, plan, image())
    assert not check.ok
    assert check.max_error > check.tolerance


def test_another_unit_than_planned_is_found() -> None:
    model = network()
    _, plan = prepared(model)
    other = make_plan(secateur.trace(model, image()), {"0": (1, 3)})
    check = secateur.verify(model, secateur.cut(model, other), plan, image())
    assert not check.ok
    assert check.changed


def test_the_dense_network_is_no_cut_network() -> None:
    model = network()
    _, plan = prepared(model)
    assert not secateur.verify(model, model, plan, image()).ok


def test_the_error_is_relative_to_the_largest_output() -> None:
    """Worked out by hand: one output is off by a known share of the largest."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    plan = make_plan(secateur.trace(model, x), {"0": (0,)})
    pruned = secateur.cut(model, plan)
    wanted = pruned(x).detach()
    with torch.no_grad():
        pruned[1].weight[1] *= 1.001
    largest = float(wanted.abs().max())
    off = float((wanted[:, 1] * 0.001).abs().max())
    check = secateur.verify(model, pruned, plan, x)
    assert check.max_error == pytest.approx(off / largest, rel=1e-6)


def test_a_zero_head_proves_nothing_and_says_so() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight.zero_()
    pruned, plan = prepared(model)
    check = secateur.verify(model, pruned, plan, image())
    assert check.ok
    assert not check.changed


def test_an_empty_plan_changes_nothing() -> None:
    model = network()
    plan = make_plan(secateur.trace(model, image()), {})
    check = secateur.verify(model, secateur.cut(model, plan), plan, image())
    assert check.ok
    assert not check.changed
    assert check.max_error == 0


class Speckled(nn.Module):
    """Its output has a NaN and an infinity wherever ``bad`` says so."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)
        self.register_buffer("bad", torch.zeros(4))
        self.bad[at] = math.nan
        self.bad[3] = math.inf

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))) + self.bad


def test_nans_in_the_same_places_are_equal_and_elsewhere_not() -> None:
    torch.manual_seed(0)
    model, x = Speckled().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, x)
    assert check.ok
    assert check.changed
    pruned.bad.copy_(Speckled(1).bad)
    check = secateur.verify(model, pruned, plan, x)
    assert check.max_error == math.inf
    assert not check.ok


def test_an_infinity_is_no_nan() -> None:
    torch.manual_seed(0)
    model, x = Speckled().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    pruned.bad[3] = -math.inf
    check = secateur.verify(model, pruned, plan, x)
    assert not check.ok


def test_an_infinity_for_a_nan_is_found() -> None:
    torch.manual_seed(0)
    model, x = Speckled().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    pruned.bad[0] = math.inf
    assert not secateur.verify(model, pruned, plan, x).ok


def test_other_shapes_are_infinitely_wrong() -> None:
    model = network()
    pruned, plan = prepared(model)
    pruned[4] = nn.Linear(16, 6)
    check = secateur.verify(model, pruned, plan, image())
    assert check.max_error == math.inf
    assert not check.ok


class Answers(nn.Module):
    """Several outputs: logits, a choice, and nothing."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)
        self.shift = shift

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.b(torch.tanh(self.a(x)))
        return {"logits": logits, "parts": [logits.argmax(1) + self.shift, None]}


def test_whole_numbers_must_be_equal() -> None:
    torch.manual_seed(0)
    model, x = Answers().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, x).ok
    pruned.shift = 1
    assert secateur.verify(model, pruned, plan, x).max_error == math.inf


def test_a_missing_output_is_found() -> None:
    torch.manual_seed(0)
    model, x = Answers().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2,)})
    pruned = secateur.cut(model, plan)

    class Less(Answers):
        def forward(self, x: Tensor) -> Any:
            return self.b(torch.tanh(self.a(x)))

    less = Less()
    less.a, less.b = pruned.a, pruned.b
    assert secateur.verify(model, less, plan, x).max_error == math.inf


def test_both_networks_are_left_as_they_were() -> None:
    model = network().train()
    pruned, plan = prepared(model)
    pruned.train()
    x = image()
    kept = x.clone()
    before = snapshot(model), snapshot(pruned)
    secateur.verify(model, pruned, plan, x)
    assert differences(before[0], snapshot(model)) == []
    assert differences(before[1], snapshot(pruned)) == []
    assert torch.equal(x, kept)


def test_train_mode_does_not_matter() -> None:
    model = network()
    pruned, plan = prepared(model)
    wanted = secateur.verify(model, pruned, plan, image())
    assert secateur.verify(model.train(), pruned.train(), plan, image()) == wanted


def test_a_network_that_casts_is_proved_in_double_precision() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x).float())
            return self.b(h.to(torch.float32))

    torch.manual_seed(0)
    model, x = Casts().eval(), torch.randn(2, 3)
    plan = make_plan(secateur.trace(model, x), {"a": (2, 5)})
    check = secateur.verify(model, secateur.cut(model, plan), plan, x)
    assert check.ok
    assert check.max_error <= 1e-14


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float16}, "dtype must be torch.float64 or torch.float32, but got torch.f"),
        ({"example_inputs": None}, "example_inputs must be a tensor"),
        ({"model": 3}, "model must be a torch.nn.Module, but got int"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], words: str) -> None:
    model = network()
    pruned, plan = prepared(model)
    arguments = {"model": model, "pruned": pruned, "plan": plan, "example_inputs": image()}
    with pytest.raises(InputError, match=words):
        secateur.verify(**{**arguments, **change})
