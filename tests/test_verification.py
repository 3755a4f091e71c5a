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
from secateur import verification
from secateur.errors import InputError, PlanError, TraceError
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
    assert not check.ok
    assert not check.changed
    assert check.max_error == 0
    assert check.inputs > 2
    assert "the outputs do not depend on what the plan cuts" in check.reason


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


def test_an_example_of_zeros_exercises_no_weight_so_that_others_are_drawn() -> None:
    """All biases are zero, too: on the example alone every network gives the same zeros."""
    model = network()
    pruned, plan = prepared(model)
    with torch.no_grad():
        pruned[0].weight.normal_()
    zeros = torch.zeros(2, 3, 4, 4)
    check = secateur.verify(model, pruned, plan, zeros)
    assert not check.ok
    assert "differs from its masked reference by" in check.reason
    check = secateur.verify(model, secateur.cut(model, plan), plan, zeros)
    assert (check.ok, check.changed, check.inputs, check.reason) == (True, True, 2, "")


def test_units_that_were_zero_change_nothing_and_their_cut_is_proved_all_the_same() -> None:
    model = network()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            parameter[[1, 4]] = 0
    pruned, plan = prepared(model)
    check = secateur.verify(model, pruned, plan, image())
    assert (check.ok, check.changed) == (True, False)
    with torch.no_grad():
        pruned[0].weight[2] *= 1.001
    assert not secateur.verify(model, pruned, plan, image()).ok


class Residual(nn.Module):
    """A branch whose last layer is zero, as many are initialised, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h + self.b(torch.tanh(self.a(h)))


def test_a_branch_at_zero_is_proved_with_other_weights() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(3, 5)
    plan = make_plan(secateur.trace(model, x), {"a": (1, 4)})
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, x)
    assert (check.ok, check.changed) == (True, False)
    with torch.no_grad():
        pruned.a.weight[0, 0] += 1  # no output shows it yet
    check = secateur.verify(model, pruned, plan, x)
    assert not check.ok
    assert check.max_error == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_show_nothing(value: float) -> None:
    model = network()
    with torch.no_grad():
        model[4].bias.fill_(value)
    pruned, plan = prepared(model)
    check = secateur.verify(model, pruned, plan, image())
    assert not check.ok
    assert "the outputs are not finite" in check.reason


def test_outputs_without_elements_show_nothing() -> None:
    class Detector(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return scores[scores > 1e9]

    model = Detector(*network()).eval()
    plan = make_plan(secateur.trace(model, image()), {"0": (1, 4)})
    check = secateur.verify(model, secateur.cut(model, plan), plan, image())
    assert not check.ok
    assert "the outputs hold no numbers" in check.reason


def test_an_output_that_is_not_finite_hides_no_other() -> None:
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {
                "nan": y * math.nan,
                "inf": y + math.inf,
                "y": y,
                "label": "cat",
                "nothing": None,
            }

    model = Both(*network()).eval()
    plan = make_plan(secateur.trace(model, image()), {"0": (1, 4)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, image()).ok
    with torch.no_grad():
        nudge(pruned)
    assert not secateur.verify(model, pruned, plan, image()).ok


def test_a_constant_that_fills_masked_places_hides_no_error() -> None:
    class Filled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.tensor([0, 0, 0, 0, 1]).bool(), -1e9)

    model = Filled(*network()).eval()
    plan = make_plan(secateur.trace(model, image()), {"0": (1, 4)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, image()).ok
    with torch.no_grad():
        nudge(pruned)
    check = secateur.verify(model, pruned, plan, image())
    assert not check.ok
    assert check.max_error > 1e-8


def test_choices_alone_are_compared_on_inputs_where_the_cut_changes_them() -> None:
    class Chooses(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    model = Chooses(*network()).eval()
    graph = secateur.trace(model, image(64))
    plan = make_plan(graph, {"0": (0, 1, 4, 5)})
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, image(64))
    assert (check.ok, check.changed) == (True, True)
    with torch.no_grad():
        pruned[0].weight.neg_()
    assert not secateur.verify(model, pruned, plan, image(64)).ok


def test_a_cut_network_that_does_not_run_is_told_as_that() -> None:
    model = network()
    pruned, plan = prepared(model)
    pruned[4] = nn.Linear(7, 5)
    check = secateur.verify(model, pruned, plan, image())
    assert not check.ok
    assert check.max_error == math.inf
    assert "the cut network fails: RuntimeError: mat1 and mat2" in check.reason


def test_drawn_inputs_that_the_network_refuses_are_left_out() -> None:
    class Picky(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not bool((x > 0).all()):
                raise ValueError("negative")
            return super().forward(x)

    model, x = Picky(*network()).eval(), image().abs()
    plan = make_plan(secateur.trace(model, x), {"0": (1, 4)})
    check = secateur.verify(model, secateur.cut(model, plan), plan, x)
    assert (check.ok, check.inputs) == (True, 1)


def test_a_dense_network_that_fails_is_no_fault_of_the_cut() -> None:
    model = network()
    pruned, plan = prepared(model)
    with pytest.raises(TraceError, match="the model fails on its example input: in float32 the ne"):
        secateur.verify(model, pruned, plan, torch.randn(2, 5, 4, 4))


def test_example_inputs_may_require_gradients() -> None:
    model, x = network(), image().requires_grad_()
    result = secateur.prune(model, x * 1, sparsity=0.5)
    assert result.check.ok
    assert secateur.prune(model, {"input": x}, sparsity=0.5).check.ok
    assert x.grad is None


def test_a_device_without_float64_is_proved_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "_computes_in", lambda device, dtype: False)
    model = network()
    pruned, plan = prepared(model)
    check = secateur.verify(model, pruned, plan, image())
    assert (check.ok, check.dtype) == (True, "float64")
    assert check.notes == ("proved on cpu: the device has no float64",)


def test_a_reference_that_misses_its_mask_points_compares_nothing() -> None:
    """Layer norm by parts, where the plan masks PyTorch's: nothing is compared wrongly."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)
            self.fused = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            if self.fused:
                return self.b(torch.tanh(torch.layer_norm(h, h.shape[-1:])))
            h = h - h.mean(-1, keepdim=True)
            return self.b(torch.tanh(h / h.square().mean(-1, keepdim=True).sqrt()))

    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(4, 5)
    plan = make_plan(secateur.trace(model, x), {"a": (1, 4)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, x).ok
    model.fused = pruned.fused = False
    check = secateur.verify(model, pruned, plan, x)
    assert not check.ok
    assert "aten.native_layer_norm in the model does not run" in check.reason
    with pytest.raises(PlanError, match="takes another path than the traced one"):
        secateur.mask(model, plan)(x)
